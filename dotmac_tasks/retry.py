"""
How long to wait before trying again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

__all__ = ["POLLING", "RetryPolicy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """
    Exponential backoff with full jitter and a cap; immutable, so shared by all threads.

    Full jitter, anything from nothing to the whole delay, spreads those who failed together.

    Attributes:
        base: Longest first delay, in seconds.
        factor: How many times longer each further one may be.
        cap: Longest delay of all, in seconds.

    Raises:
        ValueError: A number is not finite, negative, or makes delays shrink.
    """

    base: float = 0.1
    factor: float = 2.0
    cap: float = 30.0

    def __post_init__(self) -> None:
        """
        Check the numbers.
        """
        if not all(map(math.isfinite, (self.base, self.factor, self.cap))):
            raise ValueError("base, factor and cap must be finite numbers")
        if self.base < 0 or self.cap < 0 or self.factor < 1:
            raise ValueError("base and cap must be 0 or more, and factor 1 or more")

    def delay(self, attempt: int, random: Callable[[], float] = random.random) -> float:
        """
        Return the seconds to wait after a failed attempt; the first one is 1.

        Args:
            attempt: Which attempt failed.
            random: Returns a number from 0 to 1; injected by tests.
        """
        return random() * self.longest(attempt)

    def delays(self, random: Callable[[], float] = random.random) -> Iterator[float]:
        """
        Yield the delay after each failed attempt, without end.
        """
        return (self.delay(attempt, random) for attempt in count(1))

    def longest(self, attempt: int) -> float:
        """
        Return the most that `delay` may be, for one who fails alone and needs no jitter.
        """
        try:
            return min(self.cap, self.base * self.factor ** (attempt - 1))
        except OverflowError:
            return self.cap if self.base else 0.0


POLLING = RetryPolicy(base=0.03, factor=1.5, cap=0.75)
"""
When those look again who wait for another executor: soon at first, then more rarely.
"""
