"""
Fixtures for pytest, switched on by one line in the conftest of a project.

    pytest_plugins = ["dotmac_tasks.testing.fixtures"]

A Django project names `dotmac_tasks_django.testing.fixtures` instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dotmac_tasks.testing.harness import TasksHarness

__all__ = ["tasks_harness", "tasks_settings"]


@pytest.fixture
def tasks_settings() -> dict[str, Any]:
    """
    Settings of the manager by their lower-case names; override it to have others.
    """
    return {}


@pytest.fixture
def tasks_harness(tasks_settings: dict[str, Any]) -> Iterator[TasksHarness]:
    """
    A manager over a fresh storage, and ways to send a request again.
    """
    with TasksHarness(**tasks_settings) as harness:
        yield harness
