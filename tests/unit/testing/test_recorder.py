from __future__ import annotations

from dataclasses import fields

from dotmac_tasks import events
from dotmac_tasks.clock import SystemClock
from dotmac_tasks.events import Event, EventDispatcher, LockAcquired, LockFailed
from dotmac_tasks.testing import EventRecorder


def one_of_each() -> list[Event]:
    """
    One event of every type, in the order of the module's list.
    """
    made: list[Event] = []
    for name in events.__all__:
        kind = getattr(events, name)
        if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event:
            made.append(kind(**{item.name: "x" for item in fields(kind)}))  # type: ignore[arg-type]
    return made


def test_recorder_keeps_every_event_in_order() -> None:
    """
    It records events of every kind, and what it hands out is a copy.
    """
    recorder = EventRecorder()
    sent = one_of_each()
    for event in sent:
        recorder.receive(event)
    recorder.events.clear()
    assert recorder.events == sent
    assert len({event.hook for event in sent}) == len(sent) > 1


def test_recorder_filters_and_forgets() -> None:
    """
    Events can be had by type, and be cleared.
    """
    recorder = EventRecorder()
    dispatcher = EventDispatcher([recorder], SystemClock())
    taken = LockAcquired(name_hash="a", waited=0.0)
    for event in (taken, LockFailed(name_hash="a", waited=1.0, reason="busy")):
        dispatcher.emit(event)
    assert dispatcher.flush(10)
    dispatcher.close()
    assert recorder.of_type(LockAcquired) == [taken]
    recorder.clear()
    assert recorder.events == []
