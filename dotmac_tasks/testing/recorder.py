"""
A recorder of events.
"""

from __future__ import annotations

import threading
from typing import TypeVar

from dotmac_tasks.events import Event, MetricsHooks

__all__ = ["EventRecorder"]

EventT = TypeVar("EventT", bound=Event)


class EventRecorder(MetricsHooks):
    """
    Keeps every event that it is given.

    Instances may be shared between threads: `_lock` guards `_events`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []

    @property
    def events(self) -> list[Event]:
        """
        All events so far, in order; a copy.
        """
        with self._lock:
            return list(self._events)

    def of_type(self, kind: type[EventT]) -> list[EventT]:
        """
        Return the events of one type, in order.
        """
        return [event for event in self.events if isinstance(event, kind)]

    def clear(self) -> None:
        """
        Forget all events.
        """
        with self._lock:
            self._events.clear()

    def receive(self, event: Event) -> None:
        """
        Keep it, then hand it to its own method, which a subclass may override.
        """
        with self._lock:
            self._events.append(event)
        super().receive(event)
