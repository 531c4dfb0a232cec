"""
Fixtures for pytest, switched on by one line in the conftest of a Django project.

    pytest_plugins = ["dotmac_tasks_django.testing.fixtures"]

They have the names and the meaning of those in `dotmac_tasks.testing.fixtures`, but
the project's own middleware and decorators use the manager.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dotmac_tasks.testing.fixtures import tasks_settings
from dotmac_tasks_django.testing.harness import TasksHarness

__all__ = ["tasks_harness", "tasks_settings"]


@pytest.fixture
def tasks_harness(tasks_settings: dict[str, Any]) -> Iterator[TasksHarness]:
    """
    The project's manager over a fresh storage, and ways to send a request again.
    """
    with TasksHarness(**tasks_settings) as harness:
        yield harness
