"""
Protocols and aliases that appear in public signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol, TypeAlias

__all__ = ["Clock", "Parameters", "PayloadCodec"]

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


class PayloadCodec(Protocol):
    """
    Turns what is stored into what nobody else can read, and back.

    Implementations are shared by all threads and usable in the child of a fork.
    Both methods may raise: then nothing readable is stored, or the record counts
    as damaged. What they raise is not shown, since it may hold what they were given.
    """

    def encode(self, payload: bytes, key: str) -> bytes:
        """
        Return what to store in the place of `payload`.

        Args:
            payload: What is to be kept secret.
            key: Names the record, for the associated data of a cipher: what was
                encoded for one record must not decode for another.
        """
        ...

    def decode(self, data: bytes, key: str) -> bytes:
        """
        Return what `encode` was given; raise where the data, or the record, is another.
        """
        ...
