from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields

import pytest

from dotmac_tasks import events
from dotmac_tasks.events import (
    Event,
    EventDispatcher,
    LockAcquired,
    LoggingMetricsHooks,
    MetricsHooks,
    StorageCall,
)
from dotmac_tasks.testing import EventRecorder, FakeClock
from support.concurrency import find_threads

# Generous: it bounds a hang, it never decides a result.
PATIENCE = 30.0
KINDS = sorted(
    (
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
    ),
    key=lambda kind: kind.__name__,
)
THREAD = "dotmac-tasks.events"


def make(kind: type[Event]) -> Event:
    return kind(**{item.name: f"the {item.name}" for item in fields(kind)})  # type: ignore[arg-type]


def numbered(number: int) -> LockAcquired:
    return LockAcquired(name_hash="lock", waited=float(number))


class Gate(MetricsHooks):
    """
    A hook that stays in its first call until it is let go.
    """

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.seen: list[float] = []

    def lock_acquired(self, event: LockAcquired) -> None:
        self.entered.set()
        assert self.go.wait(PATIENCE)
        self.seen.append(event.waited)


class Failing(MetricsHooks):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def lock_acquired(self, event: LockAcquired) -> None:
        raise self.error

    def storage_call(self, event: StorageCall) -> None:
        raise self.error


@pytest.fixture
def gate() -> Iterator[Gate]:
    """
    A slow hook, let go in the end.
    """
    made = Gate()
    yield made
    made.go.set()


@pytest.mark.parametrize("kind", KINDS)
def test_event_is_immutable_named_and_has_a_hook(kind: type[Event]) -> None:
    """
    Each event is exported, has a dotted name, a hook that takes it, and no key in clear.
    """
    event = make(kind)
    assert kind.__name__ in events.__all__
    assert event.name.count(".") == 1
    MetricsHooks().receive(event)
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    assert "key" not in names
    with pytest.raises(FrozenInstanceError):
        setattr(event, names[0], "x")


def test_names_and_hooks_are_used_once() -> None:
    """
    No two events share a name or a hook, and no hook is left without an event.
    """
    hooks = {name for name in vars(MetricsHooks) if not name.startswith("_")} - {"receive"}
    assert {kind.hook for kind in KINDS} == hooks
    assert len({kind.name for kind in KINDS}) == len(KINDS) == len(hooks)


@pytest.mark.parametrize("kind", KINDS)
def test_logging_hooks_write_facts_as_fields(
    kind: type[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """
    Each event becomes one record with the event's name as text and its facts as fields.
    """
    event = make(kind)
    with caplog.at_level(logging.DEBUG, logger="shop"):
        hooks = LoggingMetricsHooks(logging.getLogger("shop"), logging.DEBUG)
        hooks.receive(event)
    (record,) = caplog.records
    assert (record.getMessage(), record.levelno) == (event.name, logging.DEBUG)
    for item in fields(kind):  # type: ignore[arg-type]
        assert getattr(record, item.name) == getattr(event, item.name)


def test_logging_hooks_can_be_extended_by_a_method() -> None:
    """
    A method that a subclass overrides is called beside the logging.
    """
    seen: list[LockAcquired] = []

    class Extended(LoggingMetricsHooks):
        def lock_acquired(self, event: LockAcquired) -> None:
            seen.append(event)

    Extended().receive(numbered(1))
    assert seen == [numbered(1)]


def test_logging_hooks_are_silent_below_the_level(caplog: pytest.LogCaptureFixture) -> None:
    """
    The default is the module's logger at INFO, and a logger above it gets nothing.
    """
    with caplog.at_level(logging.INFO, logger=events.__name__):
        LoggingMetricsHooks().receive(numbered(1))
    with caplog.at_level(logging.WARNING, logger=events.__name__):
        LoggingMetricsHooks().receive(numbered(2))
    assert [(record.name, record.levelno) for record in caplog.records] == [
        (events.__name__, logging.INFO)
    ]


def test_dispatcher_without_hooks_does_nothing(clock: FakeClock) -> None:
    """
    Nobody listens, so nothing is queued and no thread starts.
    """
    dispatcher = EventDispatcher([], clock)
    assert not dispatcher.active
    dispatcher.emit(numbered(1))
    assert dispatcher.flush(0)
    dispatcher.close()
    assert dispatcher._thread is None


def test_dispatcher_hands_every_event_to_every_hook_in_order(clock: FakeClock) -> None:
    """
    All hooks see all events, in the order in which they were emitted, on one named thread.
    """
    recorders = [EventRecorder(), EventRecorder()]
    dispatcher = EventDispatcher(recorders, clock)
    assert dispatcher.active
    assert dispatcher._thread is None
    sent = [numbered(number) for number in range(100)]
    for event in sent:
        dispatcher.emit(event)
    assert dispatcher._thread in find_threads(THREAD)
    assert dispatcher._thread is not None
    assert dispatcher._thread.daemon
    assert dispatcher.flush(PATIENCE)
    assert [recorder.events for recorder in recorders] == [sent, sent]
    assert dispatcher.dropped == 0
    dispatcher.close()


def test_slow_hook_does_not_hold_up_the_emitter(clock: FakeClock, gate: Gate) -> None:
    """
    Emitting returns while a hook is stuck; flush says in time that it is not done.
    """
    dispatcher = EventDispatcher([gate], clock)
    for number in range(3):
        dispatcher.emit(numbered(number))
    assert gate.entered.wait(PATIENCE)
    assert not dispatcher.flush(0)
    assert gate.seen == []
    gate.go.set()
    assert dispatcher.flush(PATIENCE)
    assert gate.seen == [0, 1, 2]
    dispatcher.close()


def test_full_queue_drops_counts_and_warns_now_and_then(
    clock: FakeClock, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Events that find no room are counted, and a warning comes once in a while, not each time.
    """
    dispatcher = EventDispatcher([gate], clock, capacity=2)
    dispatcher.emit(numbered(0))
    assert gate.entered.wait(PATIENCE)
    for number in range(1, 6):
        dispatcher.emit(numbered(number))
    assert dispatcher.dropped == 3
    assert [record.dropped for record in caplog.records] == [1]  # type: ignore[attr-defined]
    clock.advance(61)
    dispatcher.emit(numbered(6))
    assert [record.dropped for record in caplog.records] == [1, 4]  # type: ignore[attr-defined]
    gate.go.set()
    assert dispatcher.flush(PATIENCE)
    assert gate.seen == [0, 1, 2]
    dispatcher.close()


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(1), KeyboardInterrupt()])
def test_failing_hook_hurts_nobody_and_is_logged_once_per_method(
    clock: FakeClock, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """
    Other hooks and later events are served, and each failing method is logged once.
    """
    recorder = EventRecorder()
    dispatcher = EventDispatcher([Failing(error), recorder], clock)
    call = StorageCall(backend="memory", verb="close", duration=0.0, error=None)
    for event in (numbered(1), numbered(2), call, call):
        dispatcher.emit(event)
    assert dispatcher.flush(PATIENCE)
    assert len(recorder.events) == 4
    logged = [record.hook for record in caplog.records]  # type: ignore[attr-defined]
    assert logged == ["lock_acquired", "storage_call"]
    assert all(record.exc_info for record in caplog.records)
    dispatcher.close()


def test_event_caused_by_a_hook_is_dropped(clock: FakeClock) -> None:
    """
    A hook that uses what it observes does not feed itself for ever, nor wait for itself.
    """
    flushed: list[bool] = []

    class Echo(EventRecorder):
        def lock_acquired(self, event: LockAcquired) -> None:
            dispatcher.emit(event)
            flushed.append(dispatcher.flush(PATIENCE))
            dispatcher.close()

    echo = Echo()
    dispatcher = EventDispatcher([echo], clock)
    dispatcher.emit(numbered(1))
    assert dispatcher.flush(PATIENCE)
    assert len(echo.events) == 1
    assert flushed == [False]
    dispatcher.close()


def test_close_hands_on_what_is_queued_and_ends_the_thread(clock: FakeClock) -> None:
    """
    Nothing queued is lost at an orderly end; a later event starts anew; closing twice is fine.
    """
    recorder = EventRecorder()
    dispatcher = EventDispatcher([recorder], clock)
    for round_number in (1, 2):
        dispatcher.emit(numbered(round_number))
        thread = dispatcher._thread
        dispatcher.close(PATIENCE)
        dispatcher.close(PATIENCE)
        assert thread is not None
        assert not thread.is_alive()
        assert len(recorder.events) == round_number


def test_close_gives_up_on_a_stuck_hook(clock: FakeClock, gate: Gate) -> None:
    """
    The caller is let go, what is still queued is dropped, and no second thread joins the stuck one.
    """
    dispatcher = EventDispatcher([gate], clock)
    dispatcher.emit(numbered(0))
    assert gate.entered.wait(PATIENCE)
    stuck = dispatcher._thread
    dispatcher.emit(numbered(1))
    dispatcher.close(0)
    dispatcher.emit(numbered(2))
    assert dispatcher._thread is stuck
    gate.go.set()
    assert dispatcher.flush(PATIENCE)
    assert gate.seen == [0, 2]
    dispatcher.close()


def test_idle_thread_ends_by_itself(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A dispatcher that nobody closes keeps no thread for ever, and wakes up when needed.
    """
    monkeypatch.setattr(EventDispatcher, "_idle_seconds", 0.001)
    recorder = EventRecorder()
    dispatcher = EventDispatcher([recorder], clock)
    for round_number in (1, 2):
        dispatcher.emit(numbered(round_number))
        thread = dispatcher._thread
        if thread is not None:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert len(recorder.events) == round_number
    assert dispatcher._thread is None


def test_thread_that_cannot_start_breaks_nothing(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    An exhausted system loses no event and no request: the next event tries again.
    """
    recorder = EventRecorder()
    dispatcher = EventDispatcher([recorder], clock)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        dispatcher.emit(numbered(1))
    dispatcher.emit(numbered(2))
    assert dispatcher.flush(PATIENCE)
    assert len(recorder.events) == 2
    dispatcher.close()


def test_emitting_from_many_threads_loses_nothing(clock: FakeClock) -> None:
    """
    All events of all threads arrive, by way of one thread.
    """
    from support.concurrency import run_together

    recorder = EventRecorder()
    dispatcher = EventDispatcher([recorder], clock)
    run_together(8, lambda: [dispatcher.emit(numbered(number)) for number in range(50)])
    assert dispatcher.flush(PATIENCE)
    assert len(recorder.events) == 400
    dispatcher.close()


def test_after_fork_begins_anew(clock: FakeClock, gate: Gate) -> None:
    """
    What the parent had queued is not sent again, and its thread is not waited for.
    """
    dispatcher = EventDispatcher([gate], clock, capacity=1)
    dispatcher.emit(numbered(0))
    assert gate.entered.wait(PATIENCE)
    old = dispatcher._thread
    for number in range(1, 5):
        dispatcher.emit(numbered(number))
    dispatcher.after_fork()
    assert dispatcher.flush(0)
    assert dispatcher.dropped == 0
    assert dispatcher._thread is None
    dispatcher.close()
    gate.go.set()
    assert old is not None
    old.join(PATIENCE)
    assert gate.seen == [0]


CHILD = """
import os
from dotmac_tasks.clock import SystemClock
from dotmac_tasks.events import EventDispatcher, LockAcquired
from dotmac_tasks.testing import EventRecorder

recorder = EventRecorder()
dispatcher = EventDispatcher([recorder], SystemClock())
dispatcher.emit(LockAcquired(name_hash="x", waited=0.0))
assert dispatcher.flush(30)
child = os.fork()
dispatcher.emit(LockAcquired(name_hash="y", waited=0.0))
done = dispatcher.flush(30)
if child == 0:
    os._exit(len(recorder.events) if done else 99)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(recorder.events))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_child_has_a_thread_of_its_own() -> None:
    """
    In parent and child alike events arrive after the fork.
    """
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", CHILD],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert run.stdout.split() == ["2", "2"]


def test_process_ends_in_spite_of_a_stuck_hook() -> None:
    """
    The thread never keeps a process alive.
    """
    code = CHILD.split("recorder =")[0] + (
        "import threading\n"
        "class Stuck(EventRecorder):\n"
        "    def lock_acquired(self, event): threading.Event().wait()\n"
        "EventDispatcher([Stuck()], SystemClock()).emit(LockAcquired(name_hash='x', waited=0.0))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert run.returncode == 0
