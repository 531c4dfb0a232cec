"""
How an order is placed: reserve, charge, confirm. This module knows no HTTP.

Every step can be done again without doing its work again, since a worker may die between
any two of them and another one then starts from the top with the same token:

1. *reserve* writes the order and takes the stock in one transaction. Done before? The
   unique token says so, and nothing is taken again.
2. *charge* sends the same key to the gateway, which then answers with the same charge.
3. *confirm* writes what is already there.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db import transaction
from django.db.models import F

from orders.models import Order, Product, Stock
from orders.payments import charge


class UnknownProductError(Exception):
    """
    The shop does not sell this.
    """


class OutOfStockError(Exception):
    """
    The shelf does not hold as many as were ordered.
    """


class OrderConflictError(Exception):
    """
    The token belongs to an order with other contents.
    """


@dataclass(frozen=True, kw_only=True)
class Wish:
    """
    What a customer asks for. Immutable, so it may be shared between threads.
    """

    number: str
    customer: str
    product: str
    quantity: int


def place(wish: Wish, *, token: str, charge_key: str) -> Order:
    """
    Place the order, or go on with the one that was begun under this token.

    Raises:
        UnknownProductError: There is no such product; nothing happened.
        OutOfStockError: There is not enough of it; nothing happened.
        OrderConflictError: The token is another order's; nothing happened.
        PaymentFailedError: The gateway failed. The stock stays reserved for the retry.
    """
    order = reserve(wish, token)
    if order.status == Order.Status.RESERVED:
        confirm(order, charge(order, charge_key))
    return order


@transaction.atomic
def reserve(wish: Wish, token: str) -> Order:
    """
    Take the stock and write the order, both or neither, once per token.
    """
    begun = Order.objects.select_related("product").filter(token=token).first()
    if begun is not None:
        if wish_of(begun) != wish:
            raise OrderConflictError
        return begun
    product = Product.objects.filter(sku=wish.product).first()
    if product is None:
        raise UnknownProductError
    shelf = Stock.objects.filter(product=product, quantity__gte=wish.quantity)
    if not shelf.update(quantity=F("quantity") - wish.quantity):
        raise OutOfStockError
    return Order.objects.create(
        token=token,
        number=wish.number,
        customer=wish.customer,
        product=product,
        quantity=wish.quantity,
        total_cents=wish.quantity * product.price_cents,
    )


def wish_of(order: Order) -> Wish:
    """
    Return what the customer of this order asked for.
    """
    return Wish(
        number=order.number,
        customer=order.customer,
        product=order.product.sku,
        quantity=order.quantity,
    )


def confirm(order: Order, charge_id: str) -> None:
    """
    Write that the order is paid.
    """
    order.status = Order.Status.PAID
    order.charge_id = charge_id
    order.save(update_fields=["status", "charge_id"])
