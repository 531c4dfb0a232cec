from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dotmac_tasks import heartbeat as heartbeat_module
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    ClaimLostError,
    ConfigurationError,
    CorruptRecordError,
    IdempotencyError,
    InvalidKeyError,
    KeyReusedError,
    OperationFailedError,
    OperationInProgressError,
    OutcomeUnknownError,
    SerializationError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from dotmac_tasks.events import (
    ClaimLost,
    CompletionDelayed,
    EventDispatcher,
    IdempotencyHit,
    IdempotencyMiss,
    OperationCompleted,
    OperationEnqueued,
)
from dotmac_tasks.heartbeat import Heartbeat
from dotmac_tasks.idempotency import (
    Claim,
    FunctionKey,
    IdempotencyGuard,
    IdempotentOperation,
    OperationSettings,
    decorate_function,
    fingerprint_of,
)
from dotmac_tasks.keys import generate_idempotency_key, new_token
from dotmac_tasks.models import ClaimOutcome, ClaimReply, ClaimRequest, StoredOperation
from dotmac_tasks.serialization import encode_error, encode_result
from dotmac_tasks.testing import EventRecorder, FakeClock
from support.concurrency import Counter, run_together
from support.faulty import FaultyStorage

LEASE = 30.0
TTL = 3600.0


class Bench:
    """
    A guard over a storage that fails on demand and a clock that stands still.
    """

    def __init__(self, clock: FakeClock, *, max_waiting: int = 4) -> None:
        self.clock = clock
        self.storage = FaultyStorage(clock=clock)
        self.heartbeat = Heartbeat(self.storage, clock=clock, max_execution=300.0)
        # As if it ran: tests beat themselves.
        self.heartbeat._thread = threading.Thread()
        self.recorder = EventRecorder()
        self.events = EventDispatcher((self.recorder,), clock)
        config = TasksConfig(max_waiting=max_waiting)
        self.guard = IdempotencyGuard(self.storage, self.heartbeat, self.events, config, clock)

    def request(self, key: str = "key", **changes: Any) -> ClaimRequest:
        request = ClaimRequest(key, new_token(), "t", "u", "charge", "", TTL, LEASE)
        return request._replace(**changes)

    def claim(self, key: str = "key", **changes: Any) -> Claim:
        claim = self.guard.claim(self.request(key, **changes))
        assert isinstance(claim, Claim)
        return claim

    def reply(self, key: str = "key", wait: float = 0.0, **changes: Any) -> ClaimReply:
        reply = self.guard.claim(self.request(key, **changes), wait=wait)
        assert isinstance(reply, ClaimReply)
        return reply

    def status(self, key: str = "key") -> str | None:
        record = self.storage.find_operation(key)
        return None if record is None else record.status.value

    def record(self, key: str = "key") -> StoredOperation:
        record = self.storage.find_operation(key)
        assert record is not None
        return record

    def seen(self, kind: type[Any]) -> list[Any]:
        assert self.events.flush(30)
        return self.recorder.of_type(kind)

    def take_over(self, key: str = "key") -> None:
        """
        Let the lease end and somebody else claim the key.
        """
        self.clock.advance(LEASE + 1)
        reply = self.storage.claim_operation(self.request(key))
        assert reply.outcome is ClaimOutcome.TAKEN_OVER

    def settings(self, **changes: Any) -> OperationSettings:
        return OperationSettings("charge", TTL, LEASE, 0.0, "rerun")._replace(**changes)

    def decorate(self, function: Any, *, how: FunctionKey | None = None, **changes: Any) -> Any:
        how = how or FunctionKey("t", None, None)
        return decorate_function(self.guard, self.settings(**changes), how, function)

    def block(self, key: str = "key", wait: float = 0.0) -> IdempotentOperation:
        return IdempotentOperation(self.guard, self.request(key), wait)


@pytest.fixture
def bench(clock: FakeClock) -> Iterator[Bench]:
    bench = Bench(clock)
    yield bench
    bench.events.close()


# The claim


def test_claim_is_held_and_its_outcome_replayed(bench: Bench) -> None:
    """The first claim runs, is renewed until it completes, and a duplicate gets its outcome."""
    claim = bench.claim()
    assert (claim.fencing_token, claim.taken_over, bench.heartbeat.held_count) == (1, False, 1)
    assert claim.complete(b"1j1")
    assert bench.heartbeat.held_count == 0
    reply = bench.reply()
    assert (reply.outcome, reply.payload) == (ClaimOutcome.FINISHED, b"1j1")


def test_claim_of_a_running_key_is_refused(bench: Bench) -> None:
    """A duplicate of a running operation gets no claim, and the owner keeps its own."""
    bench.claim()
    assert bench.reply().outcome is ClaimOutcome.IN_PROGRESS
    assert bench.heartbeat.held_count == 1


@pytest.mark.parametrize("lease", [0.0, -1.0, TTL + 1, float("nan")])
def test_claim_with_an_impossible_lease_is_refused(bench: Bench, lease: float) -> None:
    """A lease must be positive and no longer than the retention; nothing is sent."""
    with pytest.raises(ConfigurationError, match="lease"):
        bench.claim(lease=lease)
    assert bench.storage.calls == []


def test_claim_completed_twice_keeps_the_first_outcome(bench: Bench) -> None:
    """A second completion answers as the first one and writes nothing."""
    claim = bench.claim()
    assert claim.complete(b"1j1")
    assert claim.complete(b"1j2")
    assert bench.record().payload == b"1j1"
    assert bench.storage.calls.count("complete_operation") == 1


def test_failed_outcome_is_recorded_as_failed(bench: Bench) -> None:
    """An outcome that says failed is one."""
    bench.claim().complete(encode_error("no"), failed=True)
    assert bench.status() == "failed"
    assert bench.seen(OperationCompleted)[0].status == "failed"


def test_released_key_runs_again(bench: Bench) -> None:
    """A released key is free at once."""
    assert bench.claim().release()
    assert bench.status() is None
    bench.claim()


def test_endings_after_the_first_do_nothing(bench: Bench) -> None:
    """A claim that has ended cannot be released, deferred or abandoned any more."""
    claim = bench.claim()
    claim.complete(b"1j1")
    claim.abandon()
    assert not claim.release()
    assert not claim.defer(10)
    assert bench.status() == "completed"


def test_abandoned_claim_is_left_to_its_lease(bench: Bench) -> None:
    """Abandoning stops the renewals and records nothing; a completion afterwards is refused."""
    claim = bench.claim()
    claim.abandon()
    assert (bench.status(), bench.heartbeat.held_count) == ("in_progress", 0)
    assert not claim.complete(b"1j1")
    bench.clock.advance(LEASE + 1)
    assert bench.claim().taken_over


def test_release_that_fails_leaves_the_lease_to_decide(bench: Bench) -> None:
    """A storage that fails at the release raises nothing; the key is free after its lease."""
    claim = bench.claim()
    bench.storage.refuse("release_operation")
    assert not claim.release()
    assert bench.heartbeat.held_count == 0
    bench.clock.advance(LEASE + 1)
    assert bench.claim().taken_over


def test_release_after_a_takeover_leaves_the_successor(bench: Bench) -> None:
    """An owner that lost its claim cannot release its successor's."""
    claim = bench.claim()
    bench.take_over()
    assert not claim.release()
    assert bench.status() == "in_progress"


def test_completion_after_a_takeover_is_refused(bench: Bench) -> None:
    """An executor that lost its claim records nothing, and one event says so."""
    claim = bench.claim()
    bench.take_over()
    assert not claim.complete(b"1j1")
    assert bench.status() == "in_progress"
    assert [event.reason for event in bench.seen(ClaimLost)] == ["taken_over"]
    assert bench.guard.counts.lost == 1


def test_loss_is_reported_once(bench: Bench) -> None:
    """The heartbeat and the executor find out, and only one event is told."""
    claim = bench.claim()
    bench.take_over()
    bench.heartbeat.beat()
    assert claim.lost
    assert not claim.complete(b"1j1")
    assert len(bench.seen(ClaimLost)) == 1


def test_claim_whose_lease_is_over_is_lost_until_it_is_renewed(bench: Bench) -> None:
    """Without renewals a claim counts as lost from the end of its lease."""
    claim = bench.claim()
    assert not claim.lost
    bench.clock.advance(LEASE)
    assert claim.lost
    bench.heartbeat.beat()
    assert not claim.lost


def test_completion_after_the_record_vanished_writes_it_whole(bench: Bench) -> None:
    """An owner that outlived its record restores all of it, its fingerprint included."""
    claim = bench.claim(fingerprint="f")
    bench.clock.advance(LEASE + TTL + 1)
    assert claim.complete(b"1j1")
    assert (bench.record().fingerprint, bench.record().payload) == ("f", b"1j1")
    assert bench.reply(fingerprint="g").outcome is ClaimOutcome.MISMATCH


def test_overdue_executor_is_let_go_and_may_still_record(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """After the execution limit renewing stops; nobody took the key, so the outcome counts."""
    claim = bench.claim()
    bench.clock.advance(301)
    bench.heartbeat.beat()
    assert "runs for too long" in caplog.text
    assert bench.heartbeat.held_count == 0
    assert claim.complete(b"1j1")


@pytest.mark.parametrize("how", ["refuse", "lose_reply"])
def test_unwritten_outcome_is_recorded_later(bench: Bench, how: str) -> None:
    """The caller has its answer at once, and the outcome is recorded when the storage is back."""
    claim = bench.claim()
    getattr(bench.storage, how)("complete_operation")
    assert claim.complete(b"1j1")
    assert bench.heartbeat.held_count == 1
    bench.clock.advance(1)
    bench.heartbeat.beat()
    assert bench.status() == "completed"
    assert bench.heartbeat.held_count == 0
    assert bench.seen(CompletionDelayed)[0].error.startswith("Storage")
    assert len(bench.seen(OperationCompleted)) == 1
    assert bench.guard.counts.delayed == 1


def test_outcome_that_is_never_written_is_reported(bench: Bench) -> None:
    """An outcome that cannot be written for the execution limit is told as a lost claim."""
    claim = bench.claim()
    bench.storage.refuse("complete_operation", times=1000)
    assert claim.complete(b"1j1")
    bench.clock.advance(301)
    bench.heartbeat.beat()
    assert [event.reason for event in bench.seen(ClaimLost)] == ["unwritten"]


def test_outcome_beyond_the_bound_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where too many outcomes wait, the next one is not promised."""
    monkeypatch.setattr(heartbeat_module, "_MAX_UNWRITTEN", 0)
    claim = bench.claim()
    bench.storage.refuse("complete_operation")
    assert not claim.complete(b"1j1")
    assert [event.reason for event in bench.seen(ClaimLost)] == ["unwritten"]


def test_corrupt_record_is_no_outage(bench: Bench) -> None:
    """A completion that finds a corrupt record is not tried again."""
    claim = bench.claim()
    bench.storage.refuse(
        "complete_operation", error=CorruptRecordError("faulty", "key", "it is damaged")
    )
    assert not claim.complete(b"1j1")
    assert bench.heartbeat.unwritten_count == 0
    assert [event.reason for event in bench.seen(ClaimLost)] == ["corrupt"]


def test_deferred_operation_is_settled_by_anybody(bench: Bench) -> None:
    """A claim that is handed on is not renewed, and whoever knows the outcome records it."""
    claim = bench.claim()
    assert claim.defer(600)
    assert bench.heartbeat.held_count == 0
    assert bench.storage.settle_operation("key", b"1j1", failed=False) == "done"
    assert len(bench.seen(OperationEnqueued)) == 1


def test_deferred_operation_can_still_be_released(bench: Bench) -> None:
    """A view that fails after handing on gives the key back."""
    claim = bench.claim()
    assert claim.defer(600)
    assert claim.release()
    assert bench.status() is None


def test_deferring_again_moves_the_time(bench: Bench) -> None:
    """The last time that was given counts."""
    claim = bench.claim()
    assert claim.defer(600)
    assert claim.defer(60)
    bench.clock.advance(61)
    assert bench.claim().taken_over


def test_deferring_after_a_takeover_is_refused(bench: Bench) -> None:
    """A claim that was lost cannot be handed on, and has ended."""
    claim = bench.claim()
    bench.take_over()
    assert not claim.defer(600)
    assert not claim.release()
    assert len(bench.seen(ClaimLost)) == 1


def test_deferring_beside_a_dead_storage_raises(bench: Bench) -> None:
    """The caller learns that nothing is known to be written; the lease decides."""
    claim = bench.claim()
    bench.storage.refuse("defer_operation")
    with pytest.raises(StorageUnavailableError):
        claim.defer(600)
    assert bench.heartbeat.held_count == 0
    assert claim.release()


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_deferring_for_no_time_is_refused(bench: Bench, seconds: float) -> None:
    """The time for the worker is positive; the claim stays as it is."""
    claim = bench.claim()
    with pytest.raises(ConfigurationError, match="timeout"):
        claim.defer(seconds)
    assert bench.heartbeat.held_count == 1


def test_unconfirmed_claim_records_its_outcome(bench: Bench) -> None:
    """A claim whose reply was lost is not renewed, and its outcome is recorded all the same."""
    request = bench.request()
    bench.storage.lose_reply("claim_operation")
    with pytest.raises(StorageTimeoutError):
        bench.guard.claim(request)
    claim = bench.guard.unconfirmed(request)
    assert bench.heartbeat.held_count == 0
    assert claim.complete(b"1j1")
    assert bench.reply().payload == b"1j1"


def test_unconfirmed_claim_yields_to_another_executor(bench: Bench) -> None:
    """The outcome of an unprotected run does not replace somebody else's claim."""
    claim = bench.guard.unconfirmed(bench.request())
    bench.claim()
    assert not claim.complete(b"1j1")
    assert bench.status() == "in_progress"


def test_unconfirmed_outcome_that_fails_is_tried_again_unrenewed(bench: Bench) -> None:
    """There may be nothing to renew, so only the outcome is sent again."""
    claim = bench.guard.unconfirmed(bench.request())
    bench.storage.refuse("complete_operation")
    assert claim.complete(b"1j1")
    assert (bench.heartbeat.held_count, bench.heartbeat.unwritten_count) == (0, 1)
    bench.clock.advance(1)
    bench.heartbeat.beat()
    assert bench.status() == "completed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_child_of_a_fork_cannot_end_its_parents_claim(bench: Bench) -> None:
    """In a forked child the parent's claim neither completes nor releases nor defers."""
    completed, released, deferred = bench.claim("a"), bench.claim("b"), bench.claim("c")
    bench.heartbeat.after_fork()
    assert not completed.complete(b"1j1")
    assert not released.release()
    assert not deferred.defer(10)
    assert [bench.status(key) for key in "abc"] == ["in_progress"] * 3


# The guard


def test_guard_counts_what_it_saw(bench: Bench) -> None:
    """Executions, takeovers, replays and conflicts are counted; events tell the same."""
    bench.claim("a").complete(b"1j1")
    bench.reply("a")
    bench.claim("b").abandon()
    bench.reply("b")
    bench.clock.advance(LEASE + 1)
    bench.claim("b")
    counts = bench.guard.counts
    assert (counts.executions, counts.takeovers, counts.replays, counts.conflicts) == (3, 1, 1, 1)
    assert [event.taken_over for event in bench.seen(IdempotencyMiss)] == [False, False, True]
    assert [event.outcome for event in bench.seen(IdempotencyHit)] == ["finished", "in_progress"]


def test_guard_without_hooks_works_silently(clock: FakeClock) -> None:
    """Where nobody listens, all paths that would emit an event pass."""
    bench = Bench(clock)
    bench.events.active = False
    bench.claim("a").complete(b"1j1")
    bench.reply("a")
    bench.claim("b").defer(10)
    late = bench.claim("c")
    bench.storage.refuse("complete_operation")
    assert late.complete(b"1j1")
    lost = bench.claim("d")
    bench.take_over("d")
    assert not lost.complete(b"1j1")
    assert bench.recorder.events == []


def test_waiter_gets_the_outcome(bench: Bench) -> None:
    """A duplicate that waits replays the outcome of the first run."""
    claim = bench.claim()
    bench.storage.before = lambda verb: (
        claim.complete(b"1j1") and None if len(bench.clock.sleeps) == 3 else None
    )
    reply = bench.reply(wait=10.0)
    assert (reply.outcome, reply.payload) == (ClaimOutcome.FINISHED, b"1j1")
    assert bench.guard.counts.replays == 1


def test_waiter_that_runs_out_of_time_leaves_the_owner_alone(bench: Bench) -> None:
    """When the wait is over the duplicate is refused, and the owner's record is untouched."""
    claim = bench.claim()
    started = bench.clock.monotonic()
    assert bench.reply(wait=5.0).outcome is ClaimOutcome.IN_PROGRESS
    assert bench.clock.monotonic() - started == pytest.approx(5.0)
    assert max(bench.clock.sleeps) <= 0.5
    assert claim.complete(b"1j1")


def test_waiter_runs_the_work_after_a_release(bench: Bench) -> None:
    """When the owner gives the key back, the duplicate that waits becomes the executor."""
    claim = bench.claim()
    bench.storage.before = lambda verb: (
        claim.release() and None if len(bench.clock.sleeps) == 3 else None
    )
    assert isinstance(bench.guard.claim(bench.request(), wait=10.0), Claim)


def test_of_many_waiters_one_runs_after_a_release() -> None:
    """Of three that wait, one runs the work and the others get its outcome."""
    from dotmac_tasks.clock import SystemClock

    clock = SystemClock()
    storage = FaultyStorage()
    heartbeat = Heartbeat(storage)
    guard = IdempotencyGuard(storage, heartbeat, EventDispatcher((), clock), TasksConfig())

    def request() -> ClaimRequest:
        return ClaimRequest("key", new_token(), "t", "", "charge", "", TTL, LEASE)

    owner = guard.claim(request())
    assert isinstance(owner, Claim)
    runs = Counter()
    polls = Counter()
    storage.before = lambda verb: (
        owner.release() and None if verb == "claim_operation" and polls.increment() == 9 else None
    )

    def duplicate() -> bytes:
        answer = guard.claim(request(), wait=30.0)
        if isinstance(answer, Claim):
            runs.increment()
            answer.complete(b"1j1")
            return b"1j1"
        return answer.payload

    assert run_together(3, duplicate) == [b"1j1"] * 3
    assert runs.value == 1
    heartbeat.stop()


def test_surplus_waiters_are_answered_at_once(clock: FakeClock) -> None:
    """With all places to wait taken, a duplicate does not use up one more thread."""
    bench = Bench(clock, max_waiting=0)
    bench.claim()
    assert bench.reply(wait=10.0).outcome is ClaimOutcome.IN_PROGRESS
    assert bench.clock.sleeps == []


def test_place_to_wait_is_given_back(clock: FakeClock) -> None:
    """After a wait the next duplicate may wait."""
    bench = Bench(clock, max_waiting=1)
    bench.claim()
    bench.reply(wait=1.0)
    sleeps = len(bench.clock.sleeps)
    bench.reply(wait=1.0)
    assert len(bench.clock.sleeps) > sleeps


def test_outage_during_a_wait_is_waited_out(bench: Bench) -> None:
    """A storage that fails while a duplicate waits does not let it run unprotected."""
    bench.claim()
    request = bench.request()

    def fail(verb: str) -> None:
        if bench.clock.sleeps:
            bench.storage.refuse("claim_operation")

    bench.storage.before = fail
    reply = bench.guard.claim(request, wait=5.0)
    assert isinstance(reply, ClaimReply)
    assert reply.outcome is ClaimOutcome.IN_PROGRESS


def test_lost_reply_during_a_wait_is_asked_for_again(bench: Bench) -> None:
    """A waiter whose claim succeeded without a reply recognises it at the next attempt."""
    owner = bench.claim()

    def lose(verb: str) -> None:
        if verb == "claim_operation" and len(bench.clock.sleeps) == 1:
            owner.release()
            bench.storage.lose_reply("claim_operation")

    bench.storage.before = lose
    assert isinstance(bench.guard.claim(bench.request(), wait=10.0), Claim)


def test_doubtful_claim_at_the_end_of_a_wait_is_given_back(bench: Bench) -> None:
    """A waiter that leaves without knowing whether it got the key does not block it."""
    owner = bench.claim()

    def lose(verb: str) -> None:
        if verb == "claim_operation" and bench.clock.sleeps:
            owner.release()
            bench.storage.lose_reply("claim_operation")

    bench.storage.before = lose
    assert bench.reply(wait=5.0).outcome is ClaimOutcome.IN_PROGRESS
    bench.storage.before = lambda verb: None
    bench.storage.heal()
    assert bench.status() is None


def test_corrupt_record_ends_a_wait(bench: Bench) -> None:
    """A record that turns out to be corrupt is an error, not something to wait for."""
    bench.claim()

    def corrupt(verb: str) -> None:
        if bench.clock.sleeps:
            error = CorruptRecordError("faulty", "key", "it is damaged")
            bench.storage._plan("claim_operation", 1, False, error)

    bench.storage.before = corrupt
    with pytest.raises(CorruptRecordError):
        bench.reply(wait=5.0)


def test_forgetting_beside_a_dead_storage_is_harmless(bench: Bench) -> None:
    """Giving back a claim in doubt is tried once and raises nothing."""
    bench.storage.refuse("release_operation")
    bench.guard.forget(bench.request())
    assert bench.storage.calls == ["release_operation"]


# Functions


def test_function_runs_once_for_equal_calls(bench: Bench) -> None:
    """Equal calls run once, however their arguments are passed; others run of their own."""
    calls: list[tuple[int, int]] = []

    def charge(a: int, b: int = 2) -> int:
        calls.append((a, b))
        return a + b

    protected = bench.decorate(charge)
    assert [protected(1), protected(1, b=2), protected(a=1, b=2), protected(2)] == [3, 3, 3, 4]
    assert calls == [(1, 2), (2, 2)]
    assert protected.__name__ == "charge"


@pytest.mark.parametrize("value", [None, 0, 0.0, False, "", [], {}, {"a": [1, None]}])
def test_function_replays_falsy_results_as_themselves(bench: Bench, value: Any) -> None:
    """A falsy result is replayed as itself, and the work is not run again."""
    runs = Counter()

    def work() -> Any:
        runs.increment()
        return value

    protected = bench.decorate(work)
    assert protected() == value
    replayed = protected()
    assert (replayed, type(replayed), runs.value) == (value, type(value), 1)


def test_function_key_is_the_one_that_is_generated(bench: Bench) -> None:
    """The key of a call is the generated key of its bound arguments."""
    bench.decorate(lambda a, *rest, b=2, **more: None)(1, 5, c=3)
    parameters = {"a": 1, "rest": (5,), "b": 2, "more": {"c": 3}}
    key = generate_idempotency_key("t", None, "charge", parameters)
    assert bench.status(key) == "completed"


def test_function_exception_releases_the_key_and_passes_through(bench: Bench) -> None:
    """The function's own exception arrives unchanged, and the next call runs."""
    error = ValueError("no")
    outcomes: list[Any] = [error, 7]

    def work() -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    protected = bench.decorate(work)
    with pytest.raises(ValueError, match="no") as caught:
        protected()
    assert caught.value is error
    assert protected() == 7


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_function_interrupt_leaves_the_lease_to_decide(
    bench: Bench, kind: type[BaseException]
) -> None:
    """An interrupt stops the renewals, records nothing, releases nothing and passes through."""

    def work() -> None:
        raise kind

    protected = bench.decorate(work)
    with pytest.raises(kind):
        protected()
    assert bench.heartbeat.held_count == 0
    with pytest.raises(OperationInProgressError) as caught:
        protected()
    assert 1 <= caught.value.retry_after <= LEASE


def test_function_that_lost_its_claim_hands_out_its_result(bench: Bench) -> None:
    """An executor whose claim was taken over gets an error with its own result on it."""

    def work() -> int:
        bench.clock.advance(LEASE + 1)
        fingerprint = fingerprint_of("charge", None)
        reply = bench.storage.claim_operation(bench.request(key(), fingerprint=fingerprint))
        assert reply.outcome is ClaimOutcome.TAKEN_OVER
        return 0

    def key() -> str:
        return "order-1"

    how = FunctionKey("t", None, key)
    with pytest.raises(ClaimLostError) as caught:
        bench.decorate(work, how=how)()
    assert caught.value.result == 0


def test_function_result_that_is_not_json_is_never_run_again(bench: Bench) -> None:
    """Such a result is an error that keeps the work from being repeated, also after the lease."""
    runs = Counter()

    def work() -> object:
        runs.increment()
        return {"when": object()}

    protected = bench.decorate(work)
    with pytest.raises(SerializationError) as caught:
        protected()
    assert caught.value.path == "$.when"
    bench.clock.advance(LEASE + 1)
    with pytest.raises(OutcomeUnknownError, match="could not be recorded"):
        protected()
    assert runs.value == 1


def test_function_does_not_run_beside_a_dead_storage(bench: Bench) -> None:
    """An outage before the work is an error, and nothing runs unprotected."""
    runs = Counter()
    bench.storage.refuse("claim_operation")
    with pytest.raises(StorageUnavailableError):
        bench.decorate(runs.increment)()
    assert runs.value == 0


def test_function_whose_claim_got_no_reply_does_not_block_the_next(bench: Bench) -> None:
    """A claim that may have been made, and whose work did not run, is given back."""
    runs = Counter()
    protected = bench.decorate(lambda: runs.increment())
    bench.storage.lose_reply("claim_operation")
    with pytest.raises(StorageTimeoutError):
        protected()
    assert protected() == 1


def test_function_result_survives_a_storage_that_blinks(bench: Bench) -> None:
    """The caller gets its result at once, and it is recorded in the background."""
    protected = bench.decorate(lambda: 5)
    bench.storage.refuse("complete_operation", times=2)
    assert protected() == 5
    bench.clock.advance(1)
    bench.heartbeat.beat()
    bench.clock.advance(1)
    bench.heartbeat.beat()
    bench.clock.advance(LEASE + 1)
    assert protected() == 5
    assert bench.storage.calls.count("claim_operation") == 2


def test_function_that_failed_on_record_raises_that(bench: Bench) -> None:
    """A recorded failure is replayed as an error with its text."""
    bench.claim("order-1").complete(encode_error("declined"), failed=True)
    how = FunctionKey("t", None, lambda: "order-1")
    with pytest.raises(OperationFailedError) as caught:
        bench.decorate(lambda: pytest.fail("ran"), how=how)()
    assert caught.value.error_message == "declined"


def test_function_with_an_unreadable_outcome_is_refused(bench: Bench) -> None:
    """An outcome of an unknown form is refused and never run again."""
    bench.claim().complete(b"9z")
    with pytest.raises(CorruptRecordError), bench.block():
        pytest.fail("the block ran")


def test_function_whose_executor_died_is_refused_by_policy(bench: Bench) -> None:
    """With the policy to refuse, an abandoned operation waits for a decision."""

    def work() -> None:
        raise KeyboardInterrupt

    protected = bench.decorate(work, on_abandoned="refuse")
    with pytest.raises(KeyboardInterrupt):
        protected()
    bench.clock.advance(LEASE + 1)
    with pytest.raises(OutcomeUnknownError, match="abandoned"):
        protected()


def test_function_waits_for_the_running_call(bench: Bench) -> None:
    """With a wait, a duplicate blocks until the first result is there."""
    protected = bench.decorate(lambda: 5, wait=10.0)
    key = generate_idempotency_key("t", None, "charge", {})
    claim = bench.claim(key)
    bench.storage.before = lambda verb: (
        claim.complete(encode_result(4)) and None if len(bench.clock.sleeps) == 2 else None
    )
    assert protected() == 4


def test_function_key_callable_decides(bench: Bench) -> None:
    """A callable key sees the call; tenant and user may be callables too."""
    how = FunctionKey(lambda order: order["tenant"], lambda order: order["user"], _order_key)
    protected = bench.decorate(lambda order: order["number"], how=how)
    first = {"tenant": "a", "user": "u1", "number": 1, "x": object()}
    assert protected(first) == protected({**first, "x": object()}) == 1
    record = bench.record("order-1")
    assert (record.tenant_id, record.user_id) == ("a", "u1")


def _order_key(order: dict[str, Any]) -> str:
    return f"order-{order['number']}"


def test_function_key_of_another_operation_is_a_mistake(bench: Bench) -> None:
    """Two functions that return one key do not replay each other."""
    how = FunctionKey("t", None, lambda: "order-1")
    assert bench.decorate(lambda: 1, how=how)() == 1
    with pytest.raises(KeyReusedError):
        bench.decorate(lambda: 2, how=how, operation_type="refund")()


def test_function_key_of_another_tenant_tells_nothing(bench: Bench) -> None:
    """Another tenant's key looks like a reused one."""
    assert bench.decorate(lambda: 1, how=FunctionKey("a", None, lambda: "order-1"))() == 1
    with pytest.raises(KeyReusedError):
        bench.decorate(lambda: 2, how=FunctionKey("b", None, lambda: "order-1"))()


@pytest.mark.parametrize("key", ["", "index", "a\nb", "x" * 256])
def test_function_key_that_cannot_be_stored_is_refused(bench: Bench, key: str) -> None:
    """A bad key is an error before anything runs."""
    with pytest.raises(InvalidKeyError):
        bench.decorate(lambda: pytest.fail("ran"), how=FunctionKey("t", None, lambda: key))()


def test_function_tenant_that_is_not_text_is_refused(bench: Bench) -> None:
    """A tenant callable that returns None is an error, not a shared tenant."""
    how = FunctionKey(lambda: None, None, lambda: "order-1")  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigurationError, match="tenant_id"):
        bench.decorate(lambda: pytest.fail("ran"), how=how)()


def test_function_argument_without_a_form_is_refused(bench: Bench) -> None:
    """An object as argument is an error that names it, before anything runs."""
    with pytest.raises(SerializationError) as caught:
        bench.decorate(lambda thing: pytest.fail("ran"))(object())
    assert caught.value.path == "$.thing"


def test_methods_of_all_kinds_are_protected(bench: Bench) -> None:
    """Methods, class methods and static methods work, in either order of decorators."""
    runs = Counter()

    class Till:
        def charge(self, amount: int) -> int:
            return amount + 0 * runs.increment()

        charge = bench.decorate(charge, operation_type="method")

        def inner(cls, amount: int) -> int:  # noqa: N805 - classmethod is applied below
            assert cls is Till
            return amount + 0 * runs.increment()

        outer_class = classmethod(bench.decorate(inner, operation_type="outer-class"))
        inner_class = bench.decorate(classmethod(inner), operation_type="inner-class")

        def plain(amount: int) -> int:  # noqa: N805 - staticmethod is applied below
            return amount + 0 * runs.increment()

        outer_static = staticmethod(bench.decorate(plain, operation_type="outer-static"))
        inner_static = bench.decorate(staticmethod(plain), operation_type="inner-static")

    for name in ("charge", "outer_class", "inner_class", "outer_static", "inner_static"):
        runs_before = runs.value
        assert [getattr(Till(), name)(5), getattr(Till(), name)(amount=5)] == [5, 5]
        assert runs.value == runs_before + 1
    key = generate_idempotency_key("t", None, "method", {"amount": 5})
    assert bench.status(key) == "completed"


async def _coroutine() -> None: ...


async def _async_generator() -> Any:
    yield 1


def _generator() -> Iterator[int]:
    yield 1


class _AsyncCall:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (_coroutine, "asynchronous"),
        (_async_generator, "asynchronous"),
        (_AsyncCall(), "asynchronous"),
        (_generator, "generator"),
        (staticmethod(_generator), "generator"),
        (5, "not callable"),
    ],
)
def test_function_that_is_not_done_when_it_returns_is_refused(
    bench: Bench, function: Any, what: str
) -> None:
    """Coroutines, generators and things that cannot be called are refused at decoration."""
    with pytest.raises(TypeError, match=what):
        bench.decorate(function)


def test_nested_and_overlapping_calls_complete_their_own_records(bench: Bench) -> None:
    """One guard serves two functions that nest with equal arguments, in many threads."""
    inner = bench.decorate(lambda n: f"inner-{n}", operation_type="inner")
    outer = bench.decorate(lambda n: f"outer of {inner(n)}", operation_type="outer")
    numbers = iter(range(8))
    lock = threading.Lock()

    def call() -> str:
        with lock:
            number = next(numbers)
        first = outer(number)
        assert outer(number) == first
        assert inner(number) == f"inner-{number}"
        return str(first)

    assert sorted(run_together(8, call), key=str) == [f"outer of inner-{n}" for n in range(8)]
    assert bench.heartbeat.held_count == 0


# Blocks


def test_block_runs_once_and_replays(bench: Bench) -> None:
    """The first block sets the result, the second one finds it."""
    with bench.block() as first:
        assert not first.is_replay
        assert first.fencing_token == 1
        first.set_result([1])
    with bench.block() as second:
        assert second.is_replay
        assert second.fencing_token == 0
    assert first.result == second.result == [1]


def test_block_without_a_result_records_none(bench: Bench) -> None:
    """A block that ends without a result is done, with None."""
    with bench.block():
        pass
    with bench.block() as second:
        assert (second.is_replay, second.result) == (True, None)


def test_block_exception_releases_the_key(bench: Bench) -> None:
    """An exception passes through and the next block runs."""
    with pytest.raises(ValueError, match="no"), bench.block():
        raise ValueError("no")
    with bench.block() as second:
        assert not second.is_replay


def test_block_exception_in_a_replay_changes_nothing(bench: Bench) -> None:
    """What happens in the block of a replay leaves the record as it is."""
    with bench.block():
        pass
    with pytest.raises(ValueError, match="no"), bench.block():
        raise ValueError("no")
    assert bench.status() == "completed"


def test_block_interrupt_leaves_the_lease_to_decide(bench: Bench) -> None:
    """An interrupt in the block releases nothing and stops the renewals."""
    with pytest.raises(KeyboardInterrupt), bench.block():
        raise KeyboardInterrupt
    assert (bench.status(), bench.heartbeat.held_count) == ("in_progress", 0)


def test_block_result_that_is_not_json_is_never_run_again(bench: Bench) -> None:
    """The error comes when the block ends, and its work is not repeated."""
    with pytest.raises(SerializationError), bench.block() as operation:
        operation.set_result(object())
    with pytest.raises(OutcomeUnknownError), bench.block():
        pytest.fail("the block ran")


def test_block_that_lost_its_claim_says_so(bench: Bench) -> None:
    """A block whose claim was taken over ends with an error that holds its result."""
    operation = bench.block()
    operation.__enter__()
    operation.set_result(5)
    bench.take_over()
    with pytest.raises(ClaimLostError) as caught:
        operation.__exit__(None, None, None)
    assert caught.value.result == 5


def test_block_does_not_run_while_another_does(bench: Bench) -> None:
    """A duplicate block is refused before it runs, and the first one ends well."""
    with bench.block() as first:
        with pytest.raises(OperationInProgressError), bench.block():
            pytest.fail("the block ran")
        first.set_result(1)
    assert bench.status() == "completed"


def test_block_is_entered_once(bench: Bench) -> None:
    """A block object stands for one execution."""
    block = bench.block()
    with block:
        pass
    with pytest.raises(IdempotencyError, match="entered before"), block:
        pytest.fail("the block ran")


def test_block_result_of_a_replay_cannot_be_set(bench: Bench) -> None:
    """The recorded outcome stands."""
    with bench.block():
        pass
    with bench.block() as replay, pytest.raises(IdempotencyError, match="is_replay"):
        replay.set_result(5)


def test_fingerprint_tells_uses_of_one_key_apart() -> None:
    """Operation type and parameters both count."""
    assert fingerprint_of("a", None) == fingerprint_of("a", None)
    assert len({fingerprint_of("a", None), fingerprint_of("b", None), fingerprint_of("a", {})}) == 3
