from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dotmac_tasks import (
    BackgroundOperationsManager,
    ClaimLostError,
    MemoryStorage,
    OperationInProgressError,
)
from dotmac_tasks.testing import FakeClock, TasksHarness
from support.concurrency import Counter, run_together


@pytest.fixture
def manager() -> Iterator[BackgroundOperationsManager]:
    with BackgroundOperationsManager(enable_background_cleanup=False) as manager:
        yield manager


def test_fifty_threads_and_one_key_run_once(manager: BackgroundOperationsManager) -> None:
    """Of fifty calls at once one runs; all others wait for its result or are told it runs."""
    runs = Counter()

    @manager.idempotent("charge")
    def charge(order: int) -> int:
        return order + runs.increment()

    outcomes = run_together(50, charge, 41)
    assert runs.value == 1
    assert 42 in outcomes
    others = [outcome for outcome in outcomes if outcome != 42]
    assert all(isinstance(outcome, OperationInProgressError) for outcome in others)
    assert charge(41) == 42


def test_waiting_calls_get_the_result(manager: BackgroundOperationsManager) -> None:
    """Calls that wait return the first result, as far as there are places to wait."""
    runs = Counter()
    started, go_on = threading.Event(), threading.Event()

    @manager.idempotent("charge", wait=30)
    def charge(order: int) -> int:
        started.set()
        assert go_on.wait(30)
        return order + runs.increment()

    first = threading.Thread(target=charge, args=(41,))
    first.start()
    assert started.wait(30)
    threading.Timer(0.05, go_on.set).start()
    outcomes = run_together(10, charge, 41)
    first.join(30)
    assert runs.value == 1
    assert outcomes.count(42) >= manager.config.max_waiting
    assert {type(outcome) for outcome in outcomes} <= {int, OperationInProgressError}


def test_of_many_failing_calls_each_runs_alone(manager: BackgroundOperationsManager) -> None:
    """A call that fails gives the key back, and never do two run at once."""
    inside, most = Counter(), []

    @manager.idempotent("charge", wait=30)
    def charge() -> None:
        most.append(inside.increment())
        inside.increment(-1)
        raise ValueError("declined")

    outcomes = run_together(4, charge)
    assert {type(outcome) for outcome in outcomes} == {ValueError}
    assert most == [1] * 4


def test_two_managers_over_one_storage_are_two_processes() -> None:
    """Executors of two managers exclude one another through the storage alone."""
    storage = MemoryStorage()
    managers = [
        BackgroundOperationsManager(storage, enable_background_cleanup=False) for _ in range(2)
    ]
    runs = Counter()
    charges = [manager.idempotent("charge", wait=30)(runs.increment) for manager in managers]
    numbers = iter(range(8))

    assert run_together(8, lambda: charges[next(numbers) % 2]()) == [1] * 8
    assert runs.value == 1
    for manager in managers:
        manager.stop()


def test_owner_that_slept_too_long_cannot_replace_its_successor(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen owner that wakes up keeps its own result, and the successor's stays recorded."""
    storage = MemoryStorage(clock=clock)
    sleeper = BackgroundOperationsManager(storage, clock=clock, enable_background_cleanup=False)
    successor = BackgroundOperationsManager(storage, clock=clock, enable_background_cleanup=False)
    # What is frozen renews nothing; a thread that starts late would.
    monkeypatch.setattr(sleeper.heartbeat, "hold", lambda held: None)
    quick = successor.idempotent("charge", key=lambda: "order-1")(lambda: "second")

    @sleeper.idempotent("charge", key=lambda: "order-1")
    def slow() -> str:
        clock.advance(31)
        assert quick() == "second"
        return "first"

    with pytest.raises(ClaimLostError) as caught:
        slow()
    assert caught.value.result == "first"
    assert slow() == quick() == "second"
    sleeper.stop()
    successor.stop()


def test_work_of_a_dead_owner_runs_again_after_its_lease(clock: FakeClock) -> None:
    """An owner that dies frees its key within one lease, not at once and not much later."""
    storage = MemoryStorage(clock=clock)
    dead = BackgroundOperationsManager(storage, clock=clock, enable_background_cleanup=False)
    alive = BackgroundOperationsManager(storage, clock=clock, enable_background_cleanup=False)
    block = dead.idempotent_operation("charge", key="order-1")
    block.__enter__()
    dead.stop()

    def enter() -> bool:
        with alive.idempotent_operation("charge", key="order-1") as operation:
            return operation.is_replay

    clock.advance(29)
    with pytest.raises(OperationInProgressError):
        enter()
    clock.advance(2)
    assert not enter()
    assert enter()
    alive.stop()


def test_work_that_must_not_repeat_waits_for_a_decision() -> None:
    """With the policy to refuse, a dead owner's work is not run again until somebody decides."""
    with TasksHarness(on_abandoned="refuse") as harness:
        manager = harness.manager
        charge = manager.idempotent("charge", key=lambda: "order-1")(lambda: {"charged": False})
        report = harness.send_dying(charge)
        report.assert_ran_once()
        assert report.problems == ["OutcomeUnknownError"]
        harness.clock.advance(10 * 86_400)
        assert harness.send_twice(charge).problems == ["OutcomeUnknownError"] * 2
        assert manager.complete_idempotent_operation("order-1", {"charged": True})
        assert harness.send_twice(charge).responses == [{"charged": True}] * 2


def test_lease_is_kept_alive_while_the_work_goes_on() -> None:
    """Work that takes longer than its lease runs once, as long as its process is healthy."""
    manager = BackgroundOperationsManager(
        lease=1.5, storage_timeout=0.5, enable_background_cleanup=False
    )
    runs = Counter()
    renewed = threading.Event()
    storage = manager.storage
    renew = storage.renew_leases
    beats = Counter()

    def count(leases):  # type: ignore[no-untyped-def]
        if beats.increment() == 4:
            renewed.set()
        return renew(leases)

    storage.renew_leases = count  # type: ignore[method-assign]

    @manager.idempotent("charge", key=lambda: "order-1")
    def charge() -> int:
        assert renewed.wait(60)
        with pytest.raises(OperationInProgressError):
            charge()
        return runs.increment()

    assert charge() == charge() == 1
    manager.stop()
