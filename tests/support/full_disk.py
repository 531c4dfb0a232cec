"""
A temporary file on a disk that has no room: every write ends with the system's own ENOSPC.
"""

from __future__ import annotations

from tempfile import SpooledTemporaryFile
from typing import Any


class FullDiskFile(SpooledTemporaryFile[bytes]):
    """
    Stands in for `SpooledTemporaryFile` where what outgrows the memory finds no room.
    """

    def rollover(self) -> None:
        kept: Any = self._file
        self._file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115 - outlives the call
        self._rolled = True
        self._file.write(kept.getvalue())
