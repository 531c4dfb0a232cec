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

    # The system's own function, since it is asked several times for each request.
    monotonic = staticmethod(time.monotonic)
    """
    Return seconds that never step back.
    """

    def now(self) -> datetime:
        """
        Return the wall clock's instant, aware and in UTC.
        """
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """
        Block the calling thread; zero or less returns at once.
        """
        if seconds > 0:
            time.sleep(seconds)
