"""
The app's configuration.
"""

from __future__ import annotations

from django.apps import AppConfig


class OrdersConfig(AppConfig):
    """
    Products, stock and orders. Used at start-up only.
    """

    name = "orders"
    default_auto_field = "django.db.models.BigAutoField"
