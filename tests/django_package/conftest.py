"""
A fresh storage and fresh counters for every test of the Django package.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.test import Client

from dotmac_tasks_django.testing import override_tasks_settings
from support.django_project.calls import forget_calls
from support.django_project.connections import left_alone


@pytest.fixture(autouse=True)
def _fresh_manager() -> Iterator[None]:
    """
    A manager, and with it a memory storage, that no other test has seen.
    """
    forget_calls()
    with override_tasks_settings():
        yield


@pytest.fixture(autouse=True)
def _open_connections() -> Iterator[None]:
    """
    A served request leaves the database alone, as it does with Django's own test client.
    """
    with left_alone():
        yield


@pytest.fixture
def client() -> Client:
    """
    Django's client; an unhandled exception becomes the 500 that a user would see.
    """
    return Client(raise_request_exception=False)
