"""
Idle connections for calls to come.
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakSet

from dotmac_tasks.clock import SystemClock

__all__ = ["NoConnectionFreeError", "Place", "Pool"]

_monotonic = SystemClock().monotonic


class NoConnectionFreeError(Exception):
    """
    All connections were in use until the deadline; the storage translates it.
    """


class Place:
    """
    Leave to have one connection; used by one thread at a time.

    Attributes:
        connection: The connection, or None while none is open.
    """

    __slots__ = ("__weakref__", "connection")

    def __init__(self) -> None:
        self.connection: Any = None


class Pool:
    """
    Idle connections, the last used first, and how many there may be.

    Instances may be shared between threads: `_lock` guards `_idle`, `_places` and
    `_closed`, and `_freed` waits with it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Reentrant: a signal handler or a finaliser may call the storage right here.
        self._lock = threading.RLock()
        self._freed = threading.Condition(self._lock)
        self._idle: list[Place] = []
        # Counted by who is still there: an exception that a signal handler raises may end a call
        # between any two steps, and the place of that call is free when its frames are gone.
        self._places: WeakSet[Place] = WeakSet()
        self._closed = False

    @property
    def count(self) -> int:
        """
        How many places are in use or hold an idle connection.
        """
        return len(self._places)

    def take(self, deadline: float) -> Place:
        """
        Return a place with an idle connection, or one in which to open one.

        Raises:
            NoConnectionFreeError: All are in use until the deadline.
        """
        with self._lock:
            # One that is woken at its deadline still takes what it was woken for: nobody else was.
            if not self._has_room() and not self._freed.wait_for(
                self._has_room, max(0.0, deadline - _monotonic())
            ):
                raise NoConnectionFreeError
            if self._idle:
                return self._idle.pop()
            place = Place()
            self._places.add(place)
            return place

    def give_back(self, place: Place) -> None:
        """
        Keep a place and its connection for the next call.
        """
        with self._lock:
            self._freed.notify()
            if not self._closed:
                self._idle.append(place)
                return
            self._places.discard(place)
        place.connection.disconnect()

    def forget(self, place: Place) -> None:
        """
        Note that the connection of a place that was taken is gone.
        """
        with self._lock:
            self._places.discard(place)
            self._freed.notify()

    def drop_idle(self, *, close: bool = False) -> None:
        """
        Close the idle connections; with `close` later ones too, when given back.
        """
        with self._lock:
            self._closed = self._closed or close
            idle, self._idle = self._idle, []
            self._places.difference_update(idle)
            self._freed.notify_all()
        for place in idle:
            place.connection.disconnect()

    def _has_room(self) -> bool:
        return bool(self._idle) or len(self._places) < self._limit
