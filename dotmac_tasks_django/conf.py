"""
The only reader of Django's settings, and the manager that is built from them.

`DOTMAC_TASKS` beats the environment, which beats the defaults. Nothing is read
before the first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias

from django.conf import settings
from django.core.signals import setting_changed
from django.dispatch import receiver

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.fork import reset_after_fork
from dotmac_tasks.manager import BackgroundOperationsManager

__all__ = [
    "MIDDLEWARE",
    "SETTING",
    "DjangoTasksConfig",
    "get_manager",
    "get_setting",
    "get_tasks_settings",
    "load_config",
    "managers_made_by",
]

_Factory: TypeAlias = Callable[[TasksConfig], BackgroundOperationsManager]

MIDDLEWARE = "dotmac_tasks_django.middleware.BackgroundOperationsMiddleware"
"""
The entry of Django's `MIDDLEWARE` that is ours.
"""

SETTING = "DOTMAC_TASKS"
"""
Name of the one Django setting.
"""


@dataclass(frozen=True, kw_only=True, repr=False)
class DjangoTasksConfig(TasksConfig):
    """
    The settings with Django's defaults; immutable and shared by all threads.

    Under Django `manage.py cleanup_bgops` runs from cron, so that the worker
    processes do not all clean up at once.
    """

    enable_background_cleanup: bool = False


def get_tasks_settings() -> Mapping[str, Any]:
    """
    Return `DOTMAC_TASKS` as it is set now; empty where it is not.

    Raises:
        ConfigurationError: It is no dictionary.
    """
    given = getattr(settings, SETTING, {})
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            SETTING, f"must be a dictionary, not a {type(given).__name__}.", value=given
        )
    return given


def get_setting(name: str) -> Any:
    """
    Return one of Django's own settings, or None where there is none.
    """
    return getattr(settings, name, None)


def load_config() -> TasksConfig:
    """
    Read and check the settings.

    Raises:
        ConfigurationError: A setting is unknown or cannot work.
    """
    return DjangoTasksConfig.from_mapping(get_tasks_settings(), base=DjangoTasksConfig.from_env())


def _make_manager(config: TasksConfig) -> BackgroundOperationsManager:
    return BackgroundOperationsManager(config=config)


class _Current:
    """
    Holds this process's manager; shared by all threads.

    `manager` and `_make` are written under `_lock` only. `manager` is read without it: a
    reader sees a whole manager or none, and then takes the lock to build one.
    """

    def __init__(self) -> None:
        self.manager: BackgroundOperationsManager | None = None
        self._make: _Factory = _make_manager
        self._lock = Lock()
        reset_after_fork(self)

    def build(self) -> BackgroundOperationsManager:
        with self._lock:
            if self.manager is None:
                self.manager = self._make(load_config())
            return self.manager

    def drop(self, make: _Factory | None = None) -> _Factory:
        """
        Stop the manager, so that the next use builds one, and return what built this one.
        """
        with self._lock:
            manager, self.manager = self.manager, None
            made = self._make
            if make is not None:
                self._make = make
        if manager is not None:
            manager.stop()
        return made

    def after_fork(self) -> None:
        """
        Give the child a lock that nobody holds.

        The manager itself goes on: what it holds per process is rebuilt by its
        parts, and handlers that were registered with it stay registered.
        """
        self._lock = Lock()


_current = _Current()


def get_manager() -> BackgroundOperationsManager:
    """
    Return the manager of this process, built from the settings at first use.

    Cheap enough for every request. A change of the settings in a test
    (`override_settings`) stops it; the next call builds another.

    Raises:
        ConfigurationError: A setting is unknown or cannot work.
    """
    manager = _current.manager
    return _current.build() if manager is None else manager


@contextmanager
def managers_made_by(make: _Factory) -> Iterator[None]:
    """
    Have `get_manager` build with this inside the block, from the checked settings; for tests.

    The manager from before is stopped, as is the one of the block at its end.
    """
    previous = _current.drop(make)
    try:
        yield
    finally:
        _current.drop(previous)


@receiver(setting_changed, dispatch_uid="dotmac_tasks_django.conf")
def _drop_manager(*, setting: str, **kwargs: object) -> None:
    if setting == SETTING:
        _current.drop()
