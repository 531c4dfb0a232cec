"""
A fresh storage and fresh counters for every test of the Django package.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.test import Client, override_settings

from dotmac_tasks_django.testing import override_tasks_settings
from dotmac_tasks_django.testing.fixtures import tasks_harness, tasks_settings
from support.django_project.calls import forget_calls
from support.django_project.connections import left_alone
from support.django_project.settings import MIDDLEWARE

__all__ = ["client", "tasks_harness", "tasks_settings"]


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


@pytest.fixture
def _atomic_requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """
    ATOMIC_REQUESTS, and a table of children whose missing parents only COMMIT refuses.
    """
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        cursor.execute("INSERT INTO parent VALUES (1)")
        cursor.execute(
            "CREATE TABLE child (parent INTEGER REFERENCES parent (id) "
            "DEFERRABLE INITIALLY DEFERRED)"
        )
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE child")
        cursor.execute("DROP TABLE parent")


@pytest.fixture(params=["middleware", "decorator"])
def either(request: pytest.FixtureRequest) -> Iterator[str]:
    """
    The project with the middleware, and without it.
    """
    installed = MIDDLEWARE if request.param == "middleware" else MIDDLEWARE[:-1]
    with override_settings(MIDDLEWARE=installed):
        yield request.param
