"""
A storage that tells of every call to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from dotmac_tasks.events import EventDispatcher, StorageCall
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.delegating import DelegatingStorage
from dotmac_tasks.typing import Clock

__all__ = ["ObservedStorage"]

P = ParamSpec("P")
R = TypeVar("R")


class ObservedStorage(DelegatingStorage):
    """
    Passes every verb on to another storage and emits a `StorageCall` for it.

    Holds no state; as shareable between threads and across forks as the wrapped storage.
    """

    def __init__(self, storage: Storage, events: EventDispatcher, clock: Clock) -> None:
        super().__init__(storage)
        self._events = events
        self._clock = clock

    def pass_on(self, verb: str, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Make the call, and tell of it.
        """
        started = self._clock.monotonic()
        try:
            result = call(*args, **kwargs)
        except BaseException as error:
            self._emit(verb, started, type(error).__name__)
            raise
        self._emit(verb, started, None)
        return result

    def _emit(self, verb: str, started: float, error: str | None) -> None:
        self._events.emit(
            StorageCall(
                backend=self.wrapped.name,
                verb=verb,
                duration=self._clock.monotonic() - started,
                error=error,
                breaker=self.wrapped.breaker_state,
            )
        )
