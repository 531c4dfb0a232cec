"""
Helpers for tests: a clock that stands still and a recorder of events.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from dotmac_tasks.events import Event, MetricsHooks

__all__ = ["EventRecorder", "FakeClock"]

EventT = TypeVar("EventT", bound=Event)


class FakeClock:
    """
    A clock that moves only when it is told to; sleeping moves it at once.

    Instances may be shared between threads: `_lock` guards `_now`, `_monotonic` and `_sleeps`.
    """

    def __init__(self, now: datetime | None = None) -> None:
        self._lock = threading.Lock()
        self._now = datetime(2026, 1, 1, tzinfo=UTC) if now is None else now.astimezone(UTC)
        self._monotonic = 1_000.0
        self._sleeps: list[float] = []

    @property
    def sleeps(self) -> list[float]:
        """
        The seconds of every sleep so far, in order; a copy.
        """
        with self._lock:
            return list(self._sleeps)

    def now(self) -> datetime:
        """
        Return the instant it stands at, aware and in UTC.
        """
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """
        Return the seconds it stands at, from an arbitrary start.
        """
        with self._lock:
            return self._monotonic

    def sleep(self, seconds: float) -> None:
        """
        Record the sleep and advance by it; zero or less moves nothing.
        """
        with self._lock:
            self._sleeps.append(seconds)
            self._move(max(0.0, seconds))

    def advance(self, seconds: float | timedelta) -> None:
        """
        Move forward.

        Raises:
            ValueError: The time is negative.
        """
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        if seconds < 0:
            raise ValueError("time does not go back; pass 0 or more seconds")
        with self._lock:
            self._move(seconds)

    def _move(self, seconds: float) -> None:
        self._monotonic += seconds
        self._now += timedelta(seconds=seconds)


class EventRecorder(MetricsHooks):
    """
    Keeps every event that it is given.

    Instances may be shared between threads: `_lock` guards `_events`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []

    @property
    def events(self) -> list[Event]:
        """
        All events so far, in order; a copy.
        """
        with self._lock:
            return list(self._events)

    def of_type(self, kind: type[EventT]) -> list[EventT]:
        """
        Return the events of one type, in order.
        """
        return [event for event in self.events if isinstance(event, kind)]

    def clear(self) -> None:
        """
        Forget all events.
        """
        with self._lock:
            self._events.clear()

    def receive(self, event: Event) -> None:
        """
        Keep it, then hand it to its own method, which a subclass may override.
        """
        with self._lock:
            self._events.append(event)
        super().receive(event)
