"""
The one place that reads a clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

__all__ = ["SystemClock"]


class SystemClock:
    """
    The clock of the operating system.

    Holds no state; one instance serves all threads.
    """

    def now(self) -> datetime:
        """
        Return the wall clock's instant, aware and in UTC.
        """
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """
        Return seconds that never step back.
        """
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """
        Block the calling thread; zero or less returns at once.
        """
        if seconds > 0:
            time.sleep(seconds)
