"""
Helpers for the tests of a project.
"""

from __future__ import annotations

from typing import Any

from django.test.utils import override_settings

from dotmac_tasks_django.conf import get_tasks_settings

__all__ = ["override_tasks_settings"]


class _Override(override_settings):
    """
    Lays some settings over `DOTMAC_TASKS` as it is when it starts; one per use.
    """

    def __init__(self, changes: dict[str, Any]) -> None:
        super().__init__()
        self._changes = {name.upper(): value for name, value in changes.items()}

    def enable(self) -> None:
        self.options = {"DOTMAC_TASKS": {**get_tasks_settings(), **self._changes}}
        super().enable()


def override_tasks_settings(**changes: Any) -> override_settings:
    """
    Change single settings of `DOTMAC_TASKS` for a test.

    A decorator and a context manager, like Django's `override_settings`. The
    test gets a manager of its own, so that `memory://` begins empty.

    Args:
        changes: Settings by their names, in lower or upper case.
    """
    return _Override(changes)
