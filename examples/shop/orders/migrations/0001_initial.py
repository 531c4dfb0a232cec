"""
The first tables.
"""

from __future__ import annotations

from typing import ClassVar

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """
    Products, stock, orders and executions. Used at start-up only.
    """

    initial = True
    dependencies: ClassVar = []
    operations: ClassVar = [
        migrations.CreateModel(
            name="Product",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("sku", models.SlugField(unique=True)),
                ("name", models.CharField(max_length=80)),
                ("price_cents", models.PositiveIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="Stock",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("quantity", models.PositiveIntegerField()),
                (
                    "product",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, to="orders.product"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Order",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("token", models.CharField(max_length=64, unique=True)),
                ("number", models.CharField(db_index=True, max_length=40)),
                ("customer", models.CharField(max_length=80)),
                ("quantity", models.PositiveIntegerField()),
                ("total_cents", models.PositiveIntegerField()),
                (
                    "status",
                    models.CharField(
                        choices=[("reserved", "Reserved"), ("paid", "Paid")],
                        default="reserved",
                        max_length=10,
                    ),
                ),
                ("charge_id", models.CharField(blank=True, max_length=40)),
                (
                    "product",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, to="orders.product"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Execution",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("number", models.CharField(db_index=True, max_length=40)),
                ("worker", models.PositiveIntegerField()),
                ("outcome", models.CharField(default="started", max_length=20)),
            ],
        ),
    ]
