"""
Threads that do one thing at the same instant.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from dotmac_tasks.clock import SystemClock

__all__ = ["run_crowd"]

R = TypeVar("R")

_SWITCH_INTERVAL = 1e-5
# Seconds after which a thread no longer waits for one that could not be started.
_ALL_STARTED = 60.0


def run_crowd(call: Callable[[int], R], times: int, timeout: float) -> list[R]:
    """
    Call it with 1, 2 and so on from so many threads at once; return the results in that order.

    While they run, Python switches threads as often as it can, so that a race
    shows; as that is a setting of the whole process, crowds must not overlap. If
    several calls raise, the first of them in that order counts.

    Raises:
        TimeoutError: A thread was not done in time; it is left behind as a daemon.
    """
    barrier = threading.Barrier(times)
    # Each thread writes its own places only.
    results: dict[int, R] = {}
    errors: dict[int, BaseException] = {}

    def run(number: int) -> None:
        try:
            barrier.wait(_ALL_STARTED)
            results[number] = call(number)
        except BaseException as error:  # noqa: BLE001 - raised again where the test runs
            errors[number] = error

    numbers = range(1, times + 1)
    threads = [
        threading.Thread(target=run, args=(number,), name=f"send-{number}", daemon=True)
        for number in numbers
    ]
    monotonic = SystemClock().monotonic
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        for thread in threads:
            thread.start()
        deadline = monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
    finally:
        sys.setswitchinterval(interval)
    stuck = sum(thread.is_alive() for thread in threads)
    if stuck:
        raise TimeoutError(
            f"{stuck} of {times} were not done within {timeout:g} s. Find out what they wait "
            "for, or allow more time with timeout=..."
        )
    for number in numbers:
        if number in errors:
            raise errors[number]
    return [results[number] for number in numbers]
