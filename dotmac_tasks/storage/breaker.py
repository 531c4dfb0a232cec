"""
Answers for a server that keeps failing, so that nobody waits for it.
"""

from __future__ import annotations

import threading
from math import inf

from dotmac_tasks.typing import Clock

__all__ = ["CircuitBreaker"]


class CircuitBreaker:
    """
    Lets calls through until too many in a row failed; then one at a time.

    Closed, all pass. After `threshold` failures in a row it is open and lets
    nothing through for `cooldown` seconds. Then it is half-open: one call passes
    as a probe, the others are still refused, and the probe's end closes it or
    opens it anew. A probe whose end is not told within another `cooldown`, as
    when an interrupt ended its call, is replaced.

    Instances may be shared between threads: `_lock` guards every write. A call
    that passes a closed breaker takes no lock; it may pass one that opens at
    the same instant, which costs that call its own failure only.

    Args:
        threshold: How many failures in a row open it.
        cooldown: Seconds until it lets a probe through.
        clock: Measures the cool-down.
    """

    def __init__(self, *, threshold: int, cooldown: float, clock: Clock) -> None:
        self._threshold = threshold
        self._cooldown = cooldown
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """
        Start anew, as in the child of a fork; nobody else may use it meanwhile.
        """
        # Reentrant: a signal handler or a finaliser may call the storage right here.
        self._lock = threading.RLock()
        self._failures = 0
        self._opened_at = 0.0
        self._probed_at = -inf

    @property
    def state(self) -> str:
        """
        One of ``closed``, ``open`` and ``half-open``.
        """
        with self._lock:
            if self._failures < self._threshold:
                return "closed"
            return "half-open" if self._is_cool() else "open"

    @property
    def is_refusing(self) -> bool:
        """
        Whether a call that is made now would not be let through; takes nobody's place as a probe.
        """
        if self._failures < self._threshold:
            return False
        since = self._clock.monotonic() - self._cooldown
        return self._opened_at > since or self._probed_at > since

    def lets_through(self) -> bool:
        """
        Tell whether a call may be made; if so, one of `record_…` must follow.
        """
        if self._failures < self._threshold:
            return True
        with self._lock:
            if self.is_refusing:
                return False
            self._probed_at = self._clock.monotonic()
            return True

    def record_success(self) -> None:
        """
        Note that the server answered.
        """
        if self._failures:
            with self._lock:
                self._failures = 0
                self._probed_at = -inf

    def record_failure(self) -> None:
        """
        Note that the server did not answer as it should.
        """
        with self._lock:
            self._failures += 1
            self._probed_at = -inf
            self._opened_at = self._clock.monotonic()

    def record_nothing(self) -> None:
        """
        Note that a call ended without telling anything of the server.
        """
        with self._lock:
            self._probed_at = -inf

    def _is_cool(self) -> bool:
        return self._clock.monotonic() - self._opened_at >= self._cooldown
