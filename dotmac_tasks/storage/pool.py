"""
Idle connections for calls to come.
"""

from __future__ import annotations

import threading
from typing import Any

from dotmac_tasks.clock import SystemClock

__all__ = ["NoConnectionFreeError", "Pool"]

_monotonic = SystemClock().monotonic


class NoConnectionFreeError(Exception):
    """
    All connections were in use until the deadline; the storage translates it.
    """


class Pool:
    """
    Idle connections, the last used first, and how many there may be.

    Instances may be shared between threads: `_freed` and its lock guard `_idle`,
    `_count` and `_closed`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Reentrant: a signal handler or a finaliser may call the storage right here.
        self._freed = threading.Condition(threading.RLock())
        self._idle: list[Any] = []
        self._count = 0
        self._closed = False

    def take(self, deadline: float) -> Any | None:
        """
        Return an idle connection, or None for leave to open one.

        Raises:
            NoConnectionFreeError: All are in use until the deadline.
        """
        with self._freed:
            # One that is woken at its deadline still takes what it was woken for: nobody else was.
            if not self._has_room() and not self._freed.wait_for(
                self._has_room, max(0.0, deadline - _monotonic())
            ):
                raise NoConnectionFreeError
            if self._idle:
                return self._idle.pop()
            self._count += 1
            return None

    def _has_room(self) -> bool:
        return bool(self._idle) or self._count < self._limit

    def give_back(self, connection: Any) -> None:
        """
        Keep a connection that was taken or opened for the next call.
        """
        with self._freed:
            self._freed.notify()
            if not self._closed:
                self._idle.append(connection)
                return
            self._count -= 1
        connection.disconnect()

    def forget(self) -> None:
        """
        Note that a connection that was taken is gone.
        """
        with self._freed:
            self._count -= 1
            self._freed.notify()

    def drop_idle(self, *, close: bool = False) -> None:
        """
        Close the idle connections; with `close` later ones too, when given back.
        """
        with self._freed:
            self._closed = self._closed or close
            idle, self._idle = self._idle, []
            self._count -= len(idle)
            self._freed.notify_all()
        for connection in idle:
            connection.disconnect()
