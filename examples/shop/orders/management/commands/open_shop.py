"""
``manage.py open_shop``: create the tables and fill the shelves.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import transaction

from orders.models import Product, Stock


class Command(BaseCommand):
    """
    Creates the tables and fills the shelves. One per call.
    """

    help = "Create the tables and put the products of catalog.json on the shelves."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """
        Take the stock as JSON, or the same number of everything.
        """
        parser.add_argument("--stock", default="{}", help='JSON such as {"tea-assam": 12}')
        parser.add_argument("--default", type=int, default=0, help="of each product not in --stock")

    def handle(self, *args: Any, **options: Any) -> None:
        """
        Migrate, then set products, prices and stock.
        """
        call_command("migrate", verbosity=0)
        stock: dict[str, int] = json.loads(options["stock"])
        catalog = json.loads(Path(settings.BASE_DIR, "catalog.json").read_text(encoding="utf-8"))
        with transaction.atomic():
            for entry in catalog:
                facts = {"name": entry["name"], "price_cents": entry["price_cents"]}
                product, _ = Product.objects.update_or_create(sku=entry["sku"], defaults=facts)
                quantity = stock.get(product.sku, options["default"])
                Stock.objects.update_or_create(product=product, defaults={"quantity": quantity})
