from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from django.apps import apps
from django.core.checks import registry

import dotmac_tasks_django
from dotmac_tasks_django.checks import check_middleware, check_settings


def test_app_registers_its_checks() -> None:
    """The app has its name, no tables, and its checks are registered."""
    config = apps.get_app_config("dotmac_tasks")
    assert config.name == "dotmac_tasks_django"
    assert list(config.get_models()) == []
    assert {check_settings, check_middleware} <= set(registry.registry.get_checks())


def test_public_names_are_there() -> None:
    """Every public name resolves and shows in `dir()`; an unknown one does not."""
    for name in dotmac_tasks_django.__all__:
        assert getattr(dotmac_tasks_django, name) is not None
    assert set(dotmac_tasks_django.__all__) <= set(dir(dotmac_tasks_django))
    assert dotmac_tasks_django.__all__ == sorted(dotmac_tasks_django.__all__)
    with pytest.raises(AttributeError, match="no attribute 'charge_card'"):
        dotmac_tasks_django.charge_card  # noqa: B018


def test_setup_opens_nothing() -> None:
    """Loading the app reads no settings of ours, starts no thread and opens no connection."""
    script = textwrap.dedent("""
        import socket, threading

        def refuse(*args, **kwargs):
            raise AssertionError("a connection was opened")

        socket.socket.connect = refuse
        import dotmac_tasks_django
        assert "django.conf" not in __import__("sys").modules
        from django.conf import settings

        settings.configure(
            INSTALLED_APPS=["dotmac_tasks_django"],
            DOTMAC_TASKS={"STORAGE": "redis://127.0.0.1:1/0", "LAESE": 1},
        )
        import django

        django.setup()
        from dotmac_tasks_django import get_manager, idempotent
        assert threading.active_count() == 1
        print("fine")
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "fine\n", done.stderr
