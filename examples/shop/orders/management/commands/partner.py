"""
``manage.py partner NAME``: let a partner shop in, change its token, or shut it out.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import Permission, User
from django.core.management.base import BaseCommand
from django.db import transaction
from rest_framework.authtoken.models import Token


class Command(BaseCommand):
    """
    Changes what a partner may do, and prints its token. One per call.
    """

    help = "Let a partner order, and print its token; a token it had is void from now on."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """
        Take the partner's name.
        """
        parser.add_argument("name")
        parser.add_argument("--revoke", action="store_true", help="it may not order any more")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        """
        Grant or revoke the permission; a partner that may order gets a new token.
        """
        user, _ = User.objects.get_or_create(username=options["name"])
        may_order = Permission.objects.get(content_type__app_label="orders", codename="add_order")
        if options["revoke"]:
            user.user_permissions.remove(may_order)
            return
        user.user_permissions.add(may_order)
        Token.objects.filter(user=user).delete()
        self.stdout.write(Token.objects.create(user=user).key)
