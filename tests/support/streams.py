"""
Request bodies that come as a slow network brings them.
"""

from __future__ import annotations

import io


class Trickle(io.BytesIO):
    """
    A stream that hands out a few bytes at a time and remembers what it was asked for.
    """

    def __init__(self, data: bytes, step: int = 3) -> None:
        super().__init__(data)
        self.step = step
        self.asked = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size > 0
        self.asked += size
        return super().read(min(size, self.step))
