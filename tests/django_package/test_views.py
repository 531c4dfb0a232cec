from __future__ import annotations

import pytest
from django.test import Client

from dotmac_tasks.models import StorageHealth
from dotmac_tasks_django.conf import get_manager
from dotmac_tasks_django.testing import override_tasks_settings


def test_healthy_service_is_alive_and_ready(client: Client) -> None:
    """Both pages answer 200 while the storage works, and are not cached."""
    for path, status in (("/health/live/", "alive"), ("/health/ready/", "ready")):
        response = client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": status})
        assert "no-store" in response["Cache-Control"]


def test_service_without_storage_is_alive_and_not_ready(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the storage is down the process lives, is not ready, and shows no detail of it."""
    down = StorageHealth(False, "memory", 0.0, ("password=hunter2 was refused",))
    monkeypatch.setattr(get_manager().storage, "check_health", lambda: down)
    assert client.get("/health/live/").status_code == 200
    response = client.get("/health/ready/")
    assert (response.status_code, response.json()) == (503, {"status": "unavailable"})


def test_health_pages_are_only_read(client: Client) -> None:
    """The pages answer GET and HEAD, whatever the project requires of others."""
    with override_tasks_settings(require_key=True, exempt_paths=[]):
        assert client.head("/health/ready/").status_code == 200
        assert client.post("/health/ready/").status_code == 405
