"""
A clock that stands still.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

__all__ = ["FakeClock"]

# Long enough for another thread to get its turn.
_GIVE_WAY = 0.001


class FakeClock:
    """
    A clock that moves only when it is told to; sleeping moves it at once.

    Instances may be shared between threads: `_lock` guards `_now`, `_monotonic`, `_sleeps` and
    `_still`.
    """

    def __init__(self, now: datetime | None = None) -> None:
        self._lock = threading.Lock()
        self._now = datetime(2026, 1, 1, tzinfo=UTC) if now is None else now.astimezone(UTC)
        self._monotonic = 1_000.0
        self._sleeps: list[float] = []
        self._still = 0

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
            if not self._still:
                self._move(max(0.0, seconds))
                return
        threading.Event().wait(_GIVE_WAY)

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

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """
        Have sleeps move nothing inside the block; each gives way to other threads for a moment.

        For threads that wait for one another. If their sleeps moved the clock, a
        few that poll would use up the lease of the one that works.
        """
        with self._lock:
            self._still += 1
        try:
            yield
        finally:
            with self._lock:
                self._still -= 1

    def _move(self, seconds: float) -> None:
        self._monotonic += seconds
        self._now += timedelta(seconds=seconds)
