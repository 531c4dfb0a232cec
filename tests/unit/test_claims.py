from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dotmac_tasks import claims
from dotmac_tasks import heartbeat as heartbeat_module
from dotmac_tasks.claims import Claim, IdempotencyGuard
from dotmac_tasks.clock import SystemClock
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    ConfigurationError,
    CorruptRecordError,
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
    QuotaExceeded,
)
from dotmac_tasks.heartbeat import Heartbeat
from dotmac_tasks.keys import key_hash, new_token
from dotmac_tasks.models import ClaimOutcome, ClaimReply, ClaimRequest, Quota
from dotmac_tasks.retry import POLLING
from dotmac_tasks.serialization import encode_error
from dotmac_tasks.testing import FakeClock
from support.concurrency import Counter, run_together
from support.faulty import FaultyStorage
from support.guards import IN_DOUBT, LEASE, TTL, GuardBench


@pytest.fixture
def bench(clock: FakeClock) -> Iterator[GuardBench]:
    bench = GuardBench(clock)
    yield bench
    bench.events.close()


# The claim


def test_claim_is_held_and_its_outcome_replayed(bench: GuardBench) -> None:
    """The first claim runs, is renewed until it completes, and a duplicate gets its outcome."""
    claim = bench.claim()
    assert (claim.fencing_token, claim.taken_over, bench.heartbeat.held_count) == (1, False, 1)
    assert claim.complete(b"1j1")
    assert bench.heartbeat.held_count == 0
    reply = bench.reply()
    assert (reply.outcome, reply.payload) == (ClaimOutcome.FINISHED, b"1j1")


def test_claim_of_a_running_key_is_refused(bench: GuardBench) -> None:
    """A duplicate of a running operation gets no claim, and the owner keeps its own."""
    bench.claim()
    assert bench.reply().outcome is ClaimOutcome.IN_PROGRESS
    assert bench.heartbeat.held_count == 1


@pytest.mark.parametrize("lease", [0.0, -1.0, TTL + 1, float("nan")])
def test_claim_with_an_impossible_lease_is_refused(bench: GuardBench, lease: float) -> None:
    """A lease must be positive and no longer than the retention; nothing is sent."""
    with pytest.raises(ConfigurationError, match="lease"):
        bench.claim(lease=lease)
    assert bench.storage.calls == []


def test_claim_completed_twice_keeps_the_first_outcome(bench: GuardBench) -> None:
    """A second completion answers as the first one and writes nothing."""
    claim = bench.claim()
    assert claim.complete(b"1j1")
    assert claim.complete(b"1j2")
    assert bench.record().payload == b"1j1"
    assert bench.storage.calls.count("complete_operation") == 1


def test_failed_outcome_is_recorded_as_failed(bench: GuardBench) -> None:
    """An outcome that says failed is one."""
    bench.claim().complete(encode_error("no"), failed=True)
    assert bench.status() == "failed"
    assert bench.seen(OperationCompleted)[0].status == "failed"


def test_released_key_runs_again(bench: GuardBench) -> None:
    """A released key is free at once."""
    assert bench.claim().release()
    assert bench.status() is None
    bench.claim()


def test_endings_after_the_first_do_nothing(bench: GuardBench) -> None:
    """A claim that has ended cannot be released, deferred or abandoned any more."""
    claim = bench.claim()
    claim.complete(b"1j1")
    claim.abandon()
    assert not claim.release()
    assert not claim.defer(10)
    assert bench.status() == "completed"


def test_abandoned_claim_is_left_to_its_lease(bench: GuardBench) -> None:
    """Abandoning stops the renewals and records nothing; a completion afterwards is refused."""
    claim = bench.claim()
    claim.abandon()
    assert (bench.status(), bench.heartbeat.held_count) == ("in_progress", 0)
    assert not claim.complete(b"1j1")
    bench.clock.advance(LEASE + 1)
    assert bench.claim().taken_over


def test_release_that_fails_is_tried_again(bench: GuardBench) -> None:
    """A storage that fails at the release raises nothing; the key is free when it is back."""
    claim = bench.claim()
    bench.storage.refuse("release_operation")
    assert not claim.release()
    assert (bench.heartbeat.held_count, bench.heartbeat.unwritten_count) == (0, 1)
    assert bench.reply().outcome is ClaimOutcome.IN_PROGRESS
    bench.clock.advance(1)
    bench.heartbeat.beat()
    assert (bench.status(), bench.heartbeat.unwritten_count) == (None, 0)
    assert bench.claim().fencing_token > claim.fencing_token


def test_release_that_comes_late_leaves_the_successor(bench: GuardBench) -> None:
    """A release that is tried again does not take the key from who has taken over meanwhile."""
    claim = bench.claim()
    bench.storage.refuse("release_operation")
    claim.release()
    bench.take_over()
    bench.heartbeat.beat()
    assert bench.heartbeat.unwritten_count == 0
    assert bench.record().fencing_token > claim.fencing_token
    assert bench.guard.counts.lost == 0


def test_release_of_a_damaged_record_is_not_tried_again(bench: GuardBench) -> None:
    """What cannot be read cannot be released later, either."""
    claim = bench.claim()
    bench.storage.refuse("release_operation", error=CorruptRecordError("faulty", "key", "damaged"))
    assert not claim.release()
    assert bench.heartbeat.unwritten_count == 0


def test_release_after_a_takeover_leaves_the_successor(bench: GuardBench) -> None:
    """An owner that lost its claim cannot release its successor's."""
    claim = bench.claim()
    bench.take_over()
    assert not claim.release()
    assert bench.status() == "in_progress"


def test_completion_after_a_takeover_is_refused(bench: GuardBench) -> None:
    """An executor that lost its claim records nothing, and one event says so."""
    claim = bench.claim()
    bench.take_over()
    assert not claim.complete(b"1j1")
    assert bench.status() == "in_progress"
    assert [event.reason for event in bench.seen(ClaimLost)] == ["taken_over"]
    assert bench.guard.counts.lost == 1


def test_loss_is_reported_once(bench: GuardBench) -> None:
    """The heartbeat and the executor find out, and only one event is told."""
    claim = bench.claim()
    bench.take_over()
    bench.heartbeat.beat()
    assert claim.lost
    assert not claim.complete(b"1j1")
    assert len(bench.seen(ClaimLost)) == 1


def test_claim_whose_lease_is_over_is_lost_until_it_is_renewed(bench: GuardBench) -> None:
    """Without renewals a claim counts as lost from the end of its lease."""
    claim = bench.claim()
    assert not claim.lost
    bench.clock.advance(LEASE)
    assert claim.lost
    bench.heartbeat.beat()
    assert not claim.lost


def test_completion_after_the_record_vanished_writes_it_whole(bench: GuardBench) -> None:
    """An owner that outlived its record restores all of it, its fingerprint included."""
    claim = bench.claim(fingerprint="f")
    bench.clock.advance(LEASE + TTL + 1)
    assert claim.complete(b"1j1")
    assert (bench.record().fingerprint, bench.record().payload) == ("f", b"1j1")
    assert bench.reply(fingerprint="g").outcome is ClaimOutcome.MISMATCH


def test_log_messages_say_whose_operation_it_is(
    bench: GuardBench, caplog: pytest.LogCaptureFixture
) -> None:
    """Overdue, lost, taken over, undone: tenant, type and the key's hash are fields of each."""
    bench.claim("secret-key")
    bench.clock.advance(301)
    bench.heartbeat.beat()
    bench.claim("secret-key")
    failing = bench.claim("secret-key-2")
    bench.storage.refuse("release_operation")
    failing.release()
    assert len(caplog.records) >= 3
    for record in caplog.records:
        fields = vars(record)
        assert (fields["tenant_id"], fields["operation_type"]) == ("t", "charge")
        assert fields["key_hash"] in (key_hash("secret-key"), key_hash("secret-key-2"))
        assert "secret" not in str(fields)


def test_overdue_executor_is_let_go_and_may_still_record(
    bench: GuardBench, caplog: pytest.LogCaptureFixture
) -> None:
    """After the execution limit renewing stops; nobody took the key, so the outcome counts."""
    claim = bench.claim()
    bench.clock.advance(301)
    bench.heartbeat.beat()
    assert "runs for too long" in caplog.text
    assert bench.heartbeat.held_count == 0
    assert claim.complete(b"1j1")


@pytest.mark.parametrize("how", ["refuse", "lose_reply"])
def test_unwritten_outcome_is_recorded_later(bench: GuardBench, how: str) -> None:
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


def test_outcome_that_is_never_written_is_reported(bench: GuardBench) -> None:
    """An outcome that cannot be written for the execution limit is told as a lost claim."""
    claim = bench.claim()
    bench.storage.refuse("complete_operation", times=1000)
    assert claim.complete(b"1j1")
    bench.clock.advance(301)
    bench.heartbeat.beat()
    assert [event.reason for event in bench.seen(ClaimLost)] == ["unwritten"]


def test_outcome_given_up_beside_its_writing_is_written_as_it_is(bench: GuardBench) -> None:
    """A stop that gives up what the thread goes on to write spoils nothing of it."""
    for key in ("first", "second"):
        claim = bench.claim(key)
        bench.storage.refuse("complete_operation")
        assert claim.complete(b"1j1")

    def stop_meanwhile(verb: str) -> None:
        if verb == "complete_operation":
            bench.storage.before = lambda _: None
            bench.storage.refuse("complete_operation")
            bench.heartbeat._thread = None
            bench.heartbeat.stop(0)

    bench.storage.before = stop_meanwhile
    bench.clock.advance(1)
    bench.heartbeat.beat()
    assert bench.heartbeat.unwritten_count == 0
    assert bench.record("first").payload == bench.record("second").payload == b"1j1"
    assert len(bench.seen(ClaimLost)) == 2
    assert bench.seen(OperationCompleted) == []


def test_outcome_beyond_the_bound_is_reported(
    bench: GuardBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where too many outcomes wait, the next one is not promised."""
    monkeypatch.setattr(heartbeat_module, "_MAX_UNWRITTEN", 0)
    claim = bench.claim()
    bench.storage.refuse("complete_operation")
    assert not claim.complete(b"1j1")
    assert [event.reason for event in bench.seen(ClaimLost)] == ["unwritten"]


def test_corrupt_record_is_no_outage(bench: GuardBench) -> None:
    """A completion that finds a corrupt record is not tried again."""
    claim = bench.claim()
    bench.storage.refuse(
        "complete_operation", error=CorruptRecordError("faulty", "key", "it is damaged")
    )
    assert not claim.complete(b"1j1")
    assert bench.heartbeat.unwritten_count == 0
    assert [event.reason for event in bench.seen(ClaimLost)] == ["corrupt"]


def test_deferred_operation_is_settled_by_anybody(bench: GuardBench) -> None:
    """A claim that is handed on is not renewed, and whoever knows the outcome records it."""
    claim = bench.claim()
    assert claim.defer(600)
    assert bench.heartbeat.held_count == 0
    assert bench.storage.settle_operation("key", b"1j1", failed=False) == "done"
    assert len(bench.seen(OperationEnqueued)) == 1


def test_deferred_operation_can_still_be_released(bench: GuardBench) -> None:
    """A view that fails after handing on gives the key back."""
    claim = bench.claim()
    assert claim.defer(600)
    assert claim.release()
    assert bench.status() is None


def test_deferring_again_moves_the_time(bench: GuardBench) -> None:
    """The last time that was given counts, and one event is told."""
    claim = bench.claim()
    assert claim.defer(600)
    assert claim.defer(60)
    assert len(bench.seen(OperationEnqueued)) == 1
    bench.clock.advance(61)
    assert bench.claim().taken_over


def test_deferring_after_a_takeover_is_refused(bench: GuardBench) -> None:
    """A claim that was lost cannot be handed on, and has ended."""
    claim = bench.claim()
    bench.take_over()
    assert not claim.defer(600)
    assert not claim.release()
    assert len(bench.seen(ClaimLost)) == 1


def test_deferring_beside_a_dead_storage_raises(bench: GuardBench) -> None:
    """The caller learns that nothing is known to be written; the lease decides."""
    claim = bench.claim()
    bench.storage.refuse("defer_operation")
    with pytest.raises(StorageUnavailableError):
        claim.defer(600)
    assert bench.heartbeat.held_count == 0
    assert claim.release()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e300])
def test_deferring_for_no_time_is_refused(bench: GuardBench, seconds: float) -> None:
    """The time for the worker is positive and finite; the claim stays as it is."""
    claim = bench.claim()
    with pytest.raises(ConfigurationError, match="TIMEOUT"):
        claim.defer(seconds)
    assert bench.heartbeat.held_count == 1


def test_unconfirmed_claim_records_its_outcome(bench: GuardBench) -> None:
    """A claim whose reply was lost is not renewed, and its outcome is recorded all the same."""
    request = bench.request()
    bench.storage.lose_reply("claim_operation")
    with pytest.raises(StorageTimeoutError):
        bench.guard.claim(request)
    claim = bench.unconfirmed(request)
    assert bench.heartbeat.held_count == 0
    assert claim.complete(b"1j1")
    assert bench.reply().payload == b"1j1"


def test_unconfirmed_claim_yields_to_another_executor(bench: GuardBench) -> None:
    """The outcome of an unprotected run does not replace somebody else's claim."""
    claim = bench.unconfirmed(bench.request())
    bench.claim()
    assert not claim.complete(b"1j1")
    assert bench.status() == "in_progress"


def test_unconfirmed_outcome_that_fails_is_tried_again_unrenewed(bench: GuardBench) -> None:
    """There may be nothing to renew, so only the outcome is sent again."""
    claim = bench.unconfirmed(bench.request())
    bench.storage.refuse("complete_operation")
    assert claim.complete(b"1j1")
    assert (bench.heartbeat.held_count, bench.heartbeat.unwritten_count) == (0, 1)
    bench.clock.advance(1)
    bench.heartbeat.beat()
    assert bench.status() == "completed"


def test_outcome_behind_a_slow_claim_is_written_by_the_heartbeat(bench: GuardBench) -> None:
    """A request that waited for its claim in vain does not wait for its outcome, too."""
    claim = bench.unconfirmed(bench.request(), waited=1.0)
    assert claim.complete(b"1j1")
    assert bench.storage.calls == []
    assert (bench.heartbeat.held_count, bench.heartbeat.unwritten_count) == (0, 1)
    assert [event.error for event in bench.seen(CompletionDelayed)] == ["StorageTimeoutError"]
    bench.clock.advance(1)
    bench.heartbeat.beat()
    assert bench.reply().payload == b"1j1"


def test_outcome_behind_a_quick_loss_is_written_at_once(bench: GuardBench) -> None:
    """A reply that was lost without much of a wait leaves the time to write the outcome."""
    assert bench.unconfirmed(bench.request(), waited=0.9).complete(b"1j1")
    assert bench.storage.calls == ["complete_operation"]
    assert bench.heartbeat.unwritten_count == 0


def test_key_behind_a_slow_claim_is_given_back_by_the_heartbeat(bench: GuardBench) -> None:
    """A request that waited for its claim in vain does not wait to give it back, either."""
    request = bench.request()
    bench.storage.claim_operation(request)
    assert not bench.unconfirmed(request, waited=1.0).release()
    assert "release_operation" not in bench.storage.calls
    bench.storage.refuse("release_operation")
    bench.clock.advance(1)
    bench.heartbeat.beat()
    assert bench.status() == "in_progress"
    bench.clock.advance(1)
    bench.heartbeat.beat()
    assert (bench.status(), bench.heartbeat.unwritten_count) == (None, 0)
    assert bench.seen(OperationCompleted) == bench.seen(ClaimLost) == []


def test_key_that_cannot_be_given_back_for_too_long_is_left_to_its_lease(
    bench: GuardBench, caplog: pytest.LogCaptureFixture
) -> None:
    """Giving back is given up one day, and said; nothing counts as lost, since nothing ran."""
    bench.storage.refuse("release_operation", 9)
    bench.unconfirmed(bench.request(), waited=2.0).release()
    bench.clock.advance(301)
    bench.heartbeat.beat()
    assert bench.heartbeat.unwritten_count == 0
    assert "its lease decides" in caplog.text
    assert bench.guard.counts.lost == 0


def test_giving_back_yields_where_too_much_waits(
    bench: GuardBench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the heartbeat has no room for one more, the lease decides, and it is said."""
    monkeypatch.setattr(heartbeat_module, "_MAX_UNWRITTEN", 0)
    assert not bench.unconfirmed(bench.request(), waited=2.0).release()
    assert bench.heartbeat.unwritten_count == 0
    assert "its lease decides" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_child_of_a_fork_cannot_end_its_parents_claim(bench: GuardBench) -> None:
    """In a forked child the parent's claim neither completes nor releases nor defers."""
    completed, released, deferred = bench.claim("a"), bench.claim("b"), bench.claim("c")
    bench.heartbeat.after_fork()
    assert not completed.complete(b"1j1")
    assert not released.release()
    assert not deferred.defer(10)
    assert [bench.status(key) for key in "abc"] == ["in_progress"] * 3


# The guard


def test_guard_counts_what_it_saw(bench: GuardBench) -> None:
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
    bench = GuardBench(clock)
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


def test_waiter_gets_the_outcome(bench: GuardBench) -> None:
    """A duplicate that waits replays the outcome of the first run."""
    claim = bench.claim()
    bench.storage.before = lambda verb: (
        claim.complete(b"1j1") and None if len(bench.clock.sleeps) == 3 else None
    )
    reply = bench.reply(wait=10.0)
    assert (reply.outcome, reply.payload) == (ClaimOutcome.FINISHED, b"1j1")
    assert bench.guard.counts.replays == 1


def test_waiter_that_runs_out_of_time_leaves_the_owner_alone(bench: GuardBench) -> None:
    """When the wait is over the duplicate is refused, and the owner's record is untouched."""
    claim = bench.claim()
    started = bench.clock.monotonic()
    assert bench.reply(wait=5.0).outcome is ClaimOutcome.IN_PROGRESS
    assert bench.clock.monotonic() - started == pytest.approx(5.0)
    assert max(bench.clock.sleeps) <= POLLING.cap
    assert claim.complete(b"1j1")


def test_waiter_runs_the_work_after_a_release(bench: GuardBench) -> None:
    """When the owner gives the key back, the duplicate that waits becomes the executor."""
    claim = bench.claim()
    bench.storage.before = lambda verb: (
        claim.release() and None if len(bench.clock.sleeps) == 3 else None
    )
    assert isinstance(bench.guard.claim(bench.request(), wait=10.0), Claim)


def test_of_many_waiters_one_runs_after_a_release() -> None:
    """Of three that wait, one runs the work and the others get its outcome."""
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
    bench = GuardBench(clock, max_waiting=0)
    bench.claim()
    assert bench.reply(wait=10.0).outcome is ClaimOutcome.IN_PROGRESS
    assert bench.clock.sleeps == []


def test_place_to_wait_is_given_back(clock: FakeClock) -> None:
    """After a wait the next duplicate may wait."""
    bench = GuardBench(clock, max_waiting=1)
    bench.claim()
    bench.reply(wait=1.0)
    sleeps = len(bench.clock.sleeps)
    bench.reply(wait=1.0)
    assert len(bench.clock.sleeps) > sleeps


def test_outage_during_a_wait_is_waited_out(bench: GuardBench) -> None:
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


def test_lost_reply_during_a_wait_is_asked_for_again(bench: GuardBench) -> None:
    """A waiter whose claim succeeded without a reply recognises it at the next attempt."""
    owner = bench.claim()

    def lose(verb: str) -> None:
        if verb == "claim_operation" and len(bench.clock.sleeps) == 1:
            owner.release()
            bench.storage.lose_reply("claim_operation")

    bench.storage.before = lose
    assert isinstance(bench.guard.claim(bench.request(), wait=10.0), Claim)


def test_doubtful_claim_at_the_end_of_a_wait_is_given_back(bench: GuardBench) -> None:
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


def test_corrupt_record_ends_a_wait(bench: GuardBench) -> None:
    """A record that turns out to be corrupt is an error, not something to wait for."""
    bench.claim()

    def corrupt(verb: str) -> None:
        if bench.clock.sleeps:
            error = CorruptRecordError("faulty", "key", "it is damaged")
            bench.storage._plan("claim_operation", 1, False, error)

    bench.storage.before = corrupt
    with pytest.raises(CorruptRecordError):
        bench.reply(wait=5.0)


def test_claim_that_is_interrupted_while_it_is_told_of_is_not_renewed(
    bench: GuardBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit that strikes on the way out leaves the claim to its lease."""

    def interrupt(message: str, **extra: object) -> None:
        raise SystemExit(1)

    bench.claim().abandon()
    bench.clock.advance(LEASE + 1)
    monkeypatch.setattr(claims.logger, "warning", interrupt)
    with pytest.raises(SystemExit):
        bench.claim()
    assert bench.heartbeat.held_count == 0
    assert bench.record().fencing_token == 2


def test_forgetting_beside_a_dead_storage_is_harmless(bench: GuardBench) -> None:
    """Giving back a claim in doubt raises nothing, and is tried again."""
    bench.storage.refuse("release_operation")
    bench.guard.forget(bench.request(), IN_DOUBT, bench.clock.monotonic())
    assert bench.storage.calls == ["release_operation"]
    assert bench.heartbeat.unwritten_count == 1


def test_refused_key_is_counted_and_told_apart(bench: GuardBench) -> None:
    """A key over its caller's quota is no duplicate: it is counted and told by itself."""
    quota = Quota("caller", 1, 60)
    bench.claim("first", quota=quota)
    reply = bench.reply("second", quota=quota)
    assert reply.outcome is ClaimOutcome.OVER_QUOTA
    counts = bench.guard.counts
    assert (counts.over_quota, counts.conflicts, counts.replays) == (1, 0, 0)
    assert bench.seen(IdempotencyHit) == []
    (event,) = bench.seen(QuotaExceeded)
    assert (event.tenant_id, event.retry_after) == ("t", 60)


def test_refused_key_without_hooks_is_counted(clock: FakeClock) -> None:
    """Nobody has to listen for it."""
    bench = GuardBench(clock)
    bench.guard.events = EventDispatcher((), clock)
    quota = Quota("caller", 1, 60)
    bench.claim("first", quota=quota)
    bench.reply("second", quota=quota)
    assert bench.guard.counts.over_quota == 1
