"""
What the shop remembers.
"""

from __future__ import annotations

from typing import Any

from django.db import models
from django.urls import reverse


class Product(models.Model):
    """
    Something to sell. Instances belong to one thread.
    """

    sku = models.SlugField(unique=True)
    name = models.CharField(max_length=80)
    price_cents = models.PositiveIntegerField()

    def __str__(self) -> str:
        """
        Return the name.
        """
        return self.name


class Stock(models.Model):
    """
    How many of a product are on the shelf. Instances belong to one thread.
    """

    product = models.OneToOneField(Product, on_delete=models.CASCADE)
    quantity = models.PositiveIntegerField()

    def __str__(self) -> str:
        """
        Return the count and the product.
        """
        return f"{self.quantity} × {self.product}"


class Order(models.Model):
    """
    One order: reserved first, paid once the gateway has charged. One per thread.

    ``token`` is the order's identity: stable over the retries of one request, so that an
    order that was begun by a worker which died is found again and not begun twice.
    """

    class Status(models.TextChoices):
        """
        How far an order has come. Immutable.
        """

        RESERVED = "reserved"
        PAID = "paid"

    token = models.CharField(max_length=64, unique=True)
    number = models.CharField(max_length=40, db_index=True)
    customer = models.CharField(max_length=80)
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField()
    total_cents = models.PositiveIntegerField()
    status = models.CharField(max_length=10, choices=Status, default=Status.RESERVED)
    charge_id = models.CharField(max_length=40, blank=True)

    def __str__(self) -> str:
        """
        Return the number that the customer knows.
        """
        return self.number

    def get_absolute_url(self) -> str:
        """
        Return where the order can be read.
        """
        return reverse("order", args=[self.pk])

    def to_dict(self) -> dict[str, Any]:
        """
        Return the order as the API shows it.
        """
        return {
            "id": self.pk,
            "number": self.number,
            "customer": self.customer,
            "product": self.product.sku,
            "quantity": self.quantity,
            "total_cents": self.total_cents,
            "status": self.status,
            "charge": self.charge_id,
        }


class Claim(models.Model):
    """
    A claim for something that came broken. Instances belong to one thread.

    ``token`` is its identity, as with `Order`, and names the file of its photo as well.
    """

    token = models.CharField(max_length=64, unique=True)
    number = models.CharField(max_length=40)
    photo = models.FileField()

    def __str__(self) -> str:
        """
        Return the number that the customer knows.
        """
        return self.number


class Letter(models.Model):
    """
    A welcome letter that went out. Instances belong to one thread.
    """

    address = models.EmailField()

    def __str__(self) -> str:
        """
        Return whom it went to.
        """
        return self.address


class Execution(models.Model):
    """
    One line for each time that an order was worked on, for the demo to count.

    Written by itself before the work begins, so that it also shows the runs that a kill
    cut short: their outcome stays "started". Instances belong to one thread.
    """

    number = models.CharField(max_length=40, db_index=True)
    worker = models.PositiveIntegerField()
    outcome = models.CharField(max_length=20, default="started")

    def __str__(self) -> str:
        """
        Return the order and what became of the run.
        """
        return f"{self.number}: {self.outcome}"
