"""
Single settings of `DOTMAC_TASKS`, changed for a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.test.utils import override_settings

from dotmac_tasks_django.conf import SETTING, get_tasks_settings

__all__ = ["override_tasks_settings"]


class _Override(override_settings):
    """
    Lays some settings over `DOTMAC_TASKS`; used by one test at a time.

    Around a function or a block, over what is set when that starts. A class is
    given to Django, which starts it by itself from what it finds recorded there.
    """

    def __init__(self, changes: dict[str, Any]) -> None:
        super().__init__()
        self._changes = {name.upper(): value for name, value in changes.items()}

    def enable(self) -> None:
        self._lay_over(get_tasks_settings())
        super().enable()

    def decorate_class(self, cls: Any) -> Any:
        # Django copies the options now. A decorator below, or on a base class, has left its own.
        below = getattr(cls, "_overridden_settings", None) or {}
        self._lay_over(below.get(SETTING, get_tasks_settings()))
        return super().decorate_class(cls)

    def _lay_over(self, below: Mapping[str, Any]) -> None:
        self.options = {SETTING: {**below, **self._changes}}


def override_tasks_settings(**changes: Any) -> override_settings:
    """
    Change single settings of `DOTMAC_TASKS` for a test.

    A decorator and a context manager, like Django's `override_settings`; it
    decorates functions, methods and subclasses of Django's `SimpleTestCase`. The
    test gets a manager of its own, so that `memory://` begins empty; the tests of
    a decorated class share one.

    Args:
        changes: Settings by their names, in lower or upper case.
    """
    return _Override(changes)
