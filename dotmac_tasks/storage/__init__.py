"""
Where records are kept: the contract, and the storages that come along.

`RedisStorage` is imported when it is first asked for, because it needs redis-py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from dotmac_tasks.storage.redis import RedisStorage

__all__ = ["MemoryStorage", "RedisStorage", "Storage"]


def __getattr__(name: str) -> Any:
    if name == "RedisStorage":
        try:
            from dotmac_tasks.storage.redis import RedisStorage
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "redis":
                raise
            raise ImportError(
                "RedisStorage needs redis-py. Install it with: pip install 'dotmac-tasks[redis]'.",
                name=name,
            ) from error
        return RedisStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
