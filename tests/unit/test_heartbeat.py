from __future__ import annotations

import logging
import os
import threading

import pytest

from dotmac_tasks import heartbeat as heartbeat_module
from dotmac_tasks.clock import SystemClock
from dotmac_tasks.errors import CorruptRecordError, StorageUnavailableError
from dotmac_tasks.heartbeat import THREAD_NAME, Heartbeat, Held, HeldClaim
from dotmac_tasks.models import ClaimRequest, Lease, LeaseKind, WriteOutcome
from dotmac_tasks.testing import FakeClock
from support.concurrency import find_threads, wait_until
from support.faulty import FaultyStorage

LEASE = 30.0


class Recorded(HeldClaim):
    """
    A claim that notes what it is told. One test each.
    """

    def __init__(self, storage: FaultyStorage, request: ClaimRequest, since: float) -> None:
        lease = Lease(LeaseKind.OPERATION, request.key, request.owner, request.lease)
        super().__init__(lease, since, 300.0)
        self.storage = storage
        self.request = request
        self.lost = 0
        self.overdue = 0
        self.settled: list[WriteOutcome | None] = []

    def on_lost(self) -> None:
        self.lost += 1

    def on_overdue(self) -> None:
        super().on_overdue()
        self.overdue += 1

    def write_outcome(self) -> WriteOutcome:
        return self.storage.complete_operation(self.request, 1, b"1jnull", failed=False)

    def on_settled(self, outcome: WriteOutcome | None) -> None:
        self.settled.append(outcome)


class Bench:
    """
    A heartbeat without its thread, over a clock that stands still. One test each.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.storage = FaultyStorage(clock=clock)
        self.heartbeat = Heartbeat(self.storage, clock=clock, max_execution=300.0)
        # As if it ran, so that no test depends on when a thread gets to run.
        self.heartbeat._thread = threading.Thread()

    def claim(self, key: str = "key", lease: float = LEASE) -> Recorded:
        request = ClaimRequest(key, f"owner-{key}", "t", "", "type", "", 3600.0, lease)
        self.storage.claim_operation(request)
        held = Recorded(self.storage, request, self.clock.monotonic())
        self.heartbeat.hold(held)
        return held

    def pass_time(self, seconds: float) -> None:
        """
        Let time pass as the thread would: beat whenever it is due.
        """
        end = self.clock.monotonic() + seconds
        while (due := self.heartbeat._wake_at) <= end:
            self.clock.advance(max(0.0, due - self.clock.monotonic()))
            self.heartbeat.beat()
        self.clock.advance(end - self.clock.monotonic())

    def renewals(self) -> int:
        return self.storage.calls.count("renew_leases")

    def is_live(self, key: str = "key") -> bool:
        request = ClaimRequest(key, "other", "t", "", "type", "", 3600.0, LEASE)
        return self.storage.claim_operation(request).outcome == "in_progress"


@pytest.fixture
def bench(clock: FakeClock) -> Bench:
    return Bench(clock)


def test_held_claim_outlives_its_lease(bench: Bench) -> None:
    """A claim that is held is still live after many times its lease."""
    bench.claim()
    bench.pass_time(9 * LEASE)
    assert bench.is_live()


def test_dropped_claim_ends_with_its_lease(bench: Bench) -> None:
    """A claim that is dropped is not renewed, and its lease ends."""
    bench.heartbeat.drop(bench.claim())
    bench.pass_time(LEASE + 1)
    assert not bench.is_live()
    assert bench.renewals() == 0


def test_drop_of_what_is_not_held_is_harmless(bench: Bench) -> None:
    """Dropping twice changes nothing."""
    held = bench.claim()
    bench.heartbeat.drop(held)
    bench.heartbeat.drop(held)
    assert bench.heartbeat.held_count == 0


def test_staggered_claims_share_renewals(bench: Bench) -> None:
    """Claims taken at different moments are renewed in one command per third of a lease."""
    for number in range(10):
        bench.claim(f"key-{number}")
        bench.pass_time(1.0)
    before = bench.renewals()
    bench.pass_time(10 * LEASE / 3)
    assert bench.renewals() - before <= 11
    assert all(bench.is_live(f"key-{number}") for number in range(10))


def test_renewals_are_batched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """More leases than fit in one command go out in several."""
    monkeypatch.setattr(heartbeat_module, "_BATCH", 2)
    for number in range(5):
        bench.claim(f"key-{number}")
    bench.clock.advance(LEASE / 3)
    bench.heartbeat.beat()
    assert bench.renewals() == 3


def test_short_lease_wakes_the_thread(bench: Bench) -> None:
    """A lease that is due before the planned beat brings the beat forward."""
    bench.claim("long")
    planned = bench.heartbeat._wake_at
    bench.claim("short", lease=3.0)
    assert bench.heartbeat._wake_at == bench.clock.monotonic() + 1.0 < planned


def test_equal_lease_does_not_wake_the_thread(bench: Bench) -> None:
    """Serial claims of one lease leave the planned beat alone, also after an idle one."""
    bench.heartbeat.drop(bench.claim("first", lease=3.0))
    bench.pass_time(1.0)
    planned = bench.heartbeat._wake_at
    bench.heartbeat.drop(bench.claim("second", lease=3.0))
    assert bench.heartbeat._wake_at == planned


def test_lost_claim_is_told_once_and_not_renewed(bench: Bench) -> None:
    """A claim whose key was given to somebody else learns so, once."""
    held = bench.claim()
    bench.storage.release_operation("key", held.lease.owner)
    bench.pass_time(LEASE)
    assert (held.lost, bench.heartbeat.held_count, bench.renewals()) == (1, 0, 1)


def test_claim_dropped_during_its_renewal_is_not_lost(bench: Bench) -> None:
    """A refusal that arrives after the claim was given back is no loss."""
    held = bench.claim()

    def give_back(verb: str) -> None:
        if verb == "renew_leases":
            bench.heartbeat.drop(held)
            bench.storage.release_operation("key", held.lease.owner)

    bench.storage.before = give_back
    bench.pass_time(LEASE)
    assert held.lost == 0
    assert not bench.is_live()


def test_failing_renewal_is_repeated_sooner(bench: Bench) -> None:
    """A storage that fails twice costs nobody a claim."""
    held = bench.claim()
    bench.storage.refuse("renew_leases", times=2)
    bench.pass_time(LEASE / 3 + 2.5)
    assert bench.renewals() == 3
    assert held.until > bench.clock.monotonic() + LEASE * 2 / 3
    assert held.lost == 0


def test_short_lease_is_repeated_within_a_sixth(bench: Bench) -> None:
    """The pause after a failed renewal shrinks with the lease."""
    held = bench.claim(lease=3.0)
    bench.storage.refuse("renew_leases")
    bench.clock.advance(1.0)
    bench.heartbeat.beat()
    assert held.due == bench.clock.monotonic() + 0.5


def test_claim_is_extended_after_an_outage_that_nobody_used(bench: Bench) -> None:
    """A claim whose lease ended during an outage is live again when the storage is back."""
    bench.claim()
    bench.storage.refuse("renew_leases", times=100)
    bench.pass_time(2 * LEASE)
    bench.storage.heal()
    bench.pass_time(2.0)
    assert bench.is_live()


def test_outage_is_complained_of_now_and_then(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing renewal is logged at once, then every ten seconds, and so is its end."""
    caplog.set_level(logging.INFO)
    bench.claim()
    bench.storage.refuse("renew_leases", times=100)
    bench.pass_time(21)
    assert bench.renewals() > 5
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("Leases could not be renewed (1): ")
    caplog.clear()
    bench.storage.heal()
    bench.pass_time(2)
    assert [record.getMessage() for record in caplog.records] == ["Leases are renewed again"]
    caplog.clear()
    bench.pass_time(LEASE)
    assert not caplog.records


def test_executor_that_hangs_is_not_renewed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """After the execution limit a claim is let go, and its lease decides."""
    held = bench.claim()
    bench.pass_time(300.0 + LEASE + LEASE / 3)
    assert (held.overdue, held.lost, bench.heartbeat.held_count) == (1, 0, 0)
    assert not bench.is_live()
    assert "longer than it may" in caplog.text


def test_unwritten_outcome_is_written_later(bench: Bench) -> None:
    """An outcome that the storage refused is recorded when it is back, once."""
    held = bench.claim()
    bench.storage.refuse("complete_operation", times=3)
    assert bench.heartbeat.retry_completion(held)
    bench.pass_time(LEASE)
    assert held.settled == [WriteOutcome.DONE]
    assert bench.storage.find_operation("key").status == "completed"  # type: ignore[union-attr]
    assert (bench.heartbeat.unwritten_count, bench.heartbeat.held_count) == (0, 0)


def test_claim_is_renewed_while_its_outcome_waits(bench: Bench) -> None:
    """During a long outage of completions alone the key stays taken."""
    held = bench.claim()
    bench.storage.refuse("complete_operation", times=10_000)
    bench.heartbeat.retry_completion(held)
    bench.pass_time(3 * LEASE)
    assert bench.is_live()
    assert held.settled == []


def test_unconfirmed_claim_is_not_renewed_while_its_outcome_waits(bench: Bench) -> None:
    """A claim that may not exist is not renewed, only its outcome is tried."""
    held = bench.claim()
    bench.heartbeat.drop(held)
    bench.storage.refuse("complete_operation", times=3)
    bench.heartbeat.retry_completion(held, renew=False)
    bench.pass_time(LEASE)
    assert held.settled == [WriteOutcome.DONE]
    assert bench.renewals() == 0


def test_pauses_between_attempts_grow_to_a_second(bench: Bench) -> None:
    """A storage that is down is asked about once a second, not without end."""
    held = bench.claim()
    bench.storage.refuse("complete_operation", times=10_000)
    bench.heartbeat.retry_completion(held)
    bench.pass_time(20.0)
    assert 18 <= bench.storage.calls.count("complete_operation") <= 26


def test_beat_during_a_pause_leaves_the_storage_alone(bench: Bench) -> None:
    """A beat that comes for a renewal does not cut the pause after a failure short."""
    held = bench.claim()
    bench.storage.refuse("complete_operation", times=2)
    bench.heartbeat.retry_completion(held)
    bench.heartbeat.beat()
    bench.heartbeat.beat()
    assert bench.storage.calls.count("complete_operation") == 1


def test_stop_beside_a_slow_storage_ends_in_time(bench: Bench) -> None:
    """What cannot be written within the time to stop is given up and reported."""
    claims = [bench.claim(f"key-{number}") for number in range(5)]
    for held in claims:
        bench.heartbeat.retry_completion(held)
    bench.storage.before = lambda verb: bench.clock.advance(1.0)
    bench.heartbeat._thread = None
    bench.heartbeat.stop(timeout=1.5)
    assert [held.settled for held in claims] == [[WriteOutcome.DONE]] * 2 + [[None]] * 3


def test_outcome_is_given_up_after_the_execution_limit(bench: Bench) -> None:
    """An outcome that cannot be written for as long as an execution may take is given up."""
    held = bench.claim()
    bench.storage.refuse("complete_operation", times=10_000)
    bench.heartbeat.retry_completion(held)
    bench.pass_time(302.0)
    assert held.settled == [None]
    assert (bench.heartbeat.unwritten_count, bench.heartbeat.held_count) == (0, 0)


def test_outcomes_that_waited_too_long_are_given_up_together(bench: Bench) -> None:
    """One failure is enough to give up on all that are out of time."""
    first, second = bench.claim("first"), bench.claim("second")
    bench.storage.refuse("complete_operation", times=10_000)
    bench.heartbeat.retry_completion(first)
    bench.heartbeat.retry_completion(second)
    bench.pass_time(302.0)
    assert first.settled == second.settled == [None]


def test_lost_outcome_is_reported(bench: Bench) -> None:
    """An outcome that turns out to be somebody else's to record is settled as lost."""
    held = bench.claim()
    bench.storage.refuse("complete_operation")
    bench.heartbeat.retry_completion(held)
    bench.storage.release_operation("key", held.lease.owner)
    other = ClaimRequest("key", "other", "t", "", "type", "", 3600.0, LEASE)
    bench.storage.claim_operation(other)
    bench.pass_time(1.0)
    assert held.settled == [WriteOutcome.LOST]
    assert held.lost == 0


def test_refused_renewal_leaves_the_decision_to_the_outcome(bench: Bench) -> None:
    """A claim that vanished while its outcome waits is not lost: the outcome is written whole."""
    held = bench.claim()
    bench.storage.refuse("complete_operation", times=20)
    bench.heartbeat.retry_completion(held)
    bench.storage.release_operation("key", held.lease.owner)
    bench.pass_time(LEASE)
    assert held.lost == 0
    assert held.settled == [WriteOutcome.DONE]


def test_corrupt_record_ends_the_attempts(bench: Bench) -> None:
    """An outcome whose record is corrupt is given up at once."""
    held = bench.claim()

    def corrupt() -> WriteOutcome:
        raise CorruptRecordError("faulty", "key", "it is damaged")

    held.write_outcome = corrupt  # type: ignore[method-assign]
    bench.heartbeat.retry_completion(held)
    bench.pass_time(1.0)
    assert held.settled == [None]


def test_failing_outcome_does_not_hold_up_others(bench: Bench) -> None:
    """One outcome that can never be written lets the others pass."""
    poison, good = bench.claim("poison"), bench.claim("good")

    def fail() -> WriteOutcome:
        raise StorageUnavailableError("faulty", "it is too large")

    poison.write_outcome = fail  # type: ignore[method-assign]
    bench.heartbeat.retry_completion(poison)
    bench.heartbeat.retry_completion(good)
    bench.pass_time(2.0)
    assert good.settled == [WriteOutcome.DONE]
    assert poison.settled == []


def test_slow_outcomes_do_not_delay_renewals(bench: Bench) -> None:
    """A pass stops after a second of writing, so that renewals come in between."""
    claims = [bench.claim(f"key-{number}") for number in range(5)]
    for held in claims:
        bench.heartbeat.retry_completion(held)
    bench.storage.before = lambda verb: bench.clock.advance(0.6)
    bench.clock.advance(0.2)
    bench.heartbeat.beat()
    assert sum(len(held.settled) for held in claims) == 2
    bench.pass_time(3.0)
    assert all(held.settled == [WriteOutcome.DONE] for held in claims)


def test_too_many_waiting_outcomes_are_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound an outcome is not taken over, because memory is finite."""
    monkeypatch.setattr(heartbeat_module, "_MAX_UNWRITTEN", 1)
    assert bench.heartbeat.retry_completion(bench.claim("first"))
    assert not bench.heartbeat.retry_completion(bench.claim("second"))


def test_stop_writes_what_waits(bench: Bench) -> None:
    """Stopping tries each waiting outcome once more and forgets the leases."""
    written, held = bench.claim("written"), bench.claim("held")
    bench.heartbeat.retry_completion(written)
    bench.heartbeat._thread = None
    bench.heartbeat.stop()
    assert written.settled == [WriteOutcome.DONE]
    assert bench.heartbeat.held_count == 0
    bench.clock.advance(LEASE + 1)
    assert held.lost == 0
    assert not bench.is_live("held")


def test_stop_gives_up_what_cannot_be_written(bench: Bench) -> None:
    """Stopping beside a dead storage gives every waiting outcome up."""
    first, second = bench.claim("first"), bench.claim("second")
    bench.storage.refuse("complete_operation", times=10_000)
    bench.heartbeat.retry_completion(first)
    bench.heartbeat.retry_completion(second)
    bench.heartbeat._thread = None
    bench.heartbeat.stop()
    assert first.settled == second.settled == [None]


def test_outcome_taken_away_meanwhile_is_not_put_back(bench: Bench) -> None:
    """An outcome that another thread settled during a failing attempt stays settled."""
    held = bench.claim()
    bench.heartbeat.retry_completion(held)
    bench.storage.refuse("complete_operation")
    bench.storage.before = lambda verb: (
        bench.heartbeat._settle(held, None) if verb == "complete_operation" else None
    )
    bench.clock.advance(1.0)
    bench.heartbeat.beat()
    assert bench.heartbeat.unwritten_count == 0


class Simple(Held):
    """
    A lease that notes its loss. One test each.
    """

    lost = threading.Event()

    def on_lost(self) -> None:
        self.lost.set()


def real(lease: float, storage: FaultyStorage) -> Simple:
    request = ClaimRequest("key", "owner", "t", "", "type", "", 3600.0, lease)
    storage.claim_operation(request)
    return Simple(
        Lease(LeaseKind.OPERATION, "key", "owner", lease), SystemClock().monotonic(), 300.0
    )


def test_thread_starts_with_the_first_lease_and_renews() -> None:
    """The thread is a daemon, starts lazily, renews, and ends when it is stopped."""
    storage = FaultyStorage()
    renewed = threading.Event()
    storage.before = lambda verb: renewed.set() if verb == "renew_leases" else None
    before = len(find_threads(THREAD_NAME))
    heartbeat = Heartbeat(storage)
    assert len(find_threads(THREAD_NAME)) == before
    heartbeat.hold(real(0.03, storage))
    thread = heartbeat._thread
    assert thread is not None
    assert (thread.daemon, thread.name) == (True, THREAD_NAME)
    assert renewed.wait(30)
    heartbeat.stop()
    assert not thread.is_alive()


def test_stalled_storage_does_not_delay_the_renewals_of_another() -> None:
    """While one storage keeps a renewal waiting, the leases in another one are kept alive."""
    stalled, working = FaultyStorage(), FaultyStorage()
    entered, leave = threading.Event(), threading.Event()

    def stall(verb: str) -> None:
        if verb == "renew_leases":
            entered.set()
            assert leave.wait(30)

    stalled.before = stall
    heartbeats = Heartbeat(stalled), Heartbeat(working)
    heartbeats[0].hold(real(0.03, stalled))
    assert entered.wait(30)
    heartbeats[1].hold(real(0.03, working))
    wait_until(lambda: working.calls.count("renew_leases") >= 3)
    leave.set()
    for heartbeat in heartbeats:
        heartbeat.stop()


@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit(1), KeyboardInterrupt()])
def test_thread_survives_a_storage_that_breaks_its_contract(
    error: BaseException, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that no storage may raise, an exit included, is logged; renewing goes on."""
    monkeypatch.setattr(heartbeat_module, "_LONGEST_PAUSE", 0.01)
    storage = FaultyStorage()
    storage.refuse("renew_leases", error=error)
    heartbeat = Heartbeat(storage)
    heartbeat.hold(real(0.03, storage))
    wait_until(lambda: storage.calls.count("renew_leases") >= 2)
    heartbeat.stop()
    assert "A beat of the heartbeat failed" in caplog.text


def test_idle_thread_ends_and_a_new_lease_starts_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread with nothing to do ends by itself; the next lease has one again."""
    monkeypatch.setattr(heartbeat_module, "_IDLE_INTERVAL", 0.001)
    storage = FaultyStorage()
    starts = []
    heartbeat = Heartbeat(storage, on_start=lambda: starts.append(1))
    held = real(0.03, storage)
    heartbeat.hold(held)
    heartbeat.drop(held)
    wait_until(lambda: heartbeat._thread is None)
    heartbeat.hold(held)
    wait_until(lambda: len(starts) == 2)
    heartbeat.stop()


def test_lease_taken_earlier_than_planned_rouses_the_running_thread() -> None:
    """A short lease does not wait for the beat of a long one."""
    storage = FaultyStorage()
    heartbeat = Heartbeat(storage)
    long = real(3000.0, storage)
    heartbeat.hold(long)
    heartbeat.hold(Simple(Lease(LeaseKind.LOCK, "x", "short", 0.03), long.since, 300.0))
    wait_until(lambda: "renew_leases" in storage.calls)
    heartbeat.stop()


def test_missing_thread_does_not_hurt_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no thread can be started, holding a lease warns and goes on."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    storage = FaultyStorage()
    heartbeat = Heartbeat(storage)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(threading.Thread, "start", refuse)
        heartbeat.hold(real(0.03, storage))
    assert "cannot be started" in caplog.text
    heartbeat.hold(real(0.03, storage))
    wait_until(lambda: "renew_leases" in storage.calls)
    heartbeat.stop()


def test_stop_from_the_thread_itself_does_not_wait_for_itself() -> None:
    """A hook that stops the heartbeat from its own thread does not hang."""
    storage = FaultyStorage()
    stopped = threading.Event()

    def stop() -> None:
        heartbeat.stop()
        stopped.set()

    heartbeat = Heartbeat(storage, on_start=stop)
    heartbeat.hold(real(30.0, storage))
    assert stopped.wait(30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_child_of_a_fork_holds_nothing_of_its_parent() -> None:
    """A forked child begins with no leases, no thread and free locks, and can renew its own."""
    storage = FaultyStorage()
    heartbeat = Heartbeat(storage)
    heartbeat.hold(real(30.0, storage))
    with heartbeat._lock:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                clean = (heartbeat.held_count, heartbeat._thread, heartbeat.era) == (0, None, 1)
                heartbeat.hold(real(0.03, storage))
                wait_until(lambda: "renew_leases" in storage.calls)
                status = 0 if clean else 2
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (heartbeat.held_count, heartbeat.era) == (1, 0)
    heartbeat.stop()
