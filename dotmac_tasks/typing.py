"""
Protocols and aliases that appear in public signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol, TypeAlias

__all__ = ["Clock", "Parameters"]

Parameters: TypeAlias = Mapping[str, Any]
"""
Arguments of an operation; `dotmac_tasks.keys` says which values have a form.
"""


class Clock(Protocol):
    """
    Tells the time and sleeps.

    Implementations are shared by all threads.
    """

    def now(self) -> datetime:
        """
        Return the current instant, aware and in UTC, for what is stored.
        """
        ...

    def monotonic(self) -> float:
        """
        Return seconds from an arbitrary start, for what is measured.
        """
        ...

    def sleep(self, seconds: float) -> None:
        """
        Block the calling thread for so many seconds.
        """
        ...
