"""
Counts how often the work of the test project's views was done.
"""

from __future__ import annotations

import threading
from collections import Counter

# Guards `_counts`: views of one test may run in several threads.
_lock = threading.Lock()
_counts: Counter[str] = Counter()


def count_call(name: str) -> int:
    """
    Count one more and return how many there are now.
    """
    with _lock:
        _counts[name] += 1
        return _counts[name]


def get_calls(name: str) -> int:
    with _lock:
        return _counts[name]


def forget_calls() -> None:
    with _lock:
        _counts.clear()
