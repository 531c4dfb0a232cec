"""
What a project's callback may decide about abandoned work, and what follows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dotmac_tasks import claims
from dotmac_tasks.claims import Claim
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    ConfigurationError,
    OperationFailedError,
    OutcomeUnknownError,
    SerializationError,
)
from dotmac_tasks.events import OperationReconciled
from dotmac_tasks.keys import derive_downstream_key
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import ClaimOutcome, ClaimReply
from dotmac_tasks.reconciliation import (
    AbandonedOperation,
    Reconciler,
    Verdict,
    find_reconcile,
)
from dotmac_tasks.serialization import HttpOutcome, JsonOutcome, decode_payload
from dotmac_tasks.testing import FakeClock
from support.concurrency import Counter, run_together
from support.faulty import FaultyStorage
from support.guards import LEASE, GuardBench

Callback = Callable[[AbandonedOperation], Any]


@pytest.fixture
def bench(clock: FakeClock) -> Iterator[GuardBench]:
    bench = GuardBench(clock)
    yield bench
    bench.events.close()


def abandon(bench: GuardBench) -> None:
    """
    Leave the key behind as a dead executor does whose work must not run again.
    """
    bench.claim(on_abandoned="refuse").abandon()
    bench.clock.advance(LEASE + 1)


def reconciler(callback: Callback, subject: Any = None, *, is_http: bool = False) -> Reconciler:
    return Reconciler(lambda: callback, lambda: subject, is_http)


def ask(bench: GuardBench, callback: Callback, **changes: Any) -> Claim | ClaimReply:
    changes = {"on_abandoned": "refuse", **changes}
    return bench.guard.claim(bench.request(**changes), reconciler=reconciler(callback))


def operation(*, is_http: bool = False) -> AbandonedOperation:
    return AbandonedOperation(
        key="key",
        tenant_id="t",
        user_id=None,
        operation_type="charge",
        fencing_token=7,
        subject=None,
        is_http=is_http,
    )


# What a verdict does


def test_found_outcome_is_recorded_and_replayed(bench: GuardBench) -> None:
    """An outcome that was found answers the retry that asked and all later ones."""
    abandon(bench)
    found = ask(bench, lambda abandoned: abandoned.found({"charge": 5}))
    assert isinstance(found, ClaimReply)
    assert found.outcome is ClaimOutcome.FINISHED
    assert decode_payload(found.payload) == JsonOutcome({"charge": 5})
    assert bench.reply().payload == found.payload
    assert bench.heartbeat.held_count == 0
    assert [event.decision for event in bench.seen(OperationReconciled)] == ["found"]


def test_found_failure_is_recorded_as_failed(bench: GuardBench) -> None:
    """Work of which the failure was found is a failed operation."""
    abandon(bench)
    ask(bench, lambda abandoned: abandoned.failed("declined"))
    assert bench.status() == "failed"


def test_work_that_was_not_done_runs(bench: GuardBench) -> None:
    """Told to run again, the retry is the executor, under a larger fencing token."""
    abandon(bench)
    before = bench.record().fencing_token
    claim = ask(bench, AbandonedOperation.run_again)
    assert isinstance(claim, Claim)
    assert claim.taken_over
    assert claim.fencing_token > before
    assert claim.complete(b"1j1")
    assert bench.status() == "completed"


def test_work_that_runs_again_is_refused_again_if_that_executor_dies(bench: GuardBench) -> None:
    """The permission to run was for one run, whatever the policy of the retry says."""
    abandon(bench)
    claim = ask(bench, AbandonedOperation.run_again, on_abandoned="rerun")
    assert isinstance(claim, Claim)
    claim.abandon()
    bench.clock.advance(LEASE + 1)
    assert bench.reply(on_abandoned="rerun").outcome is ClaimOutcome.UNRESOLVED


def test_undecided_work_is_refused_at_once_and_asked_about_again(bench: GuardBench) -> None:
    """Left to a person, the work is abandoned again without another lease, and never expires."""
    abandon(bench)
    reply = ask(bench, AbandonedOperation.ask_person)
    assert isinstance(reply, ClaimReply)
    assert reply.outcome is ClaimOutcome.UNRESOLVED
    bench.clock.advance(0.01)
    assert bench.reply().outcome is ClaimOutcome.UNRESOLVED
    assert bench.record().expires_ms is None
    found = ask(bench, lambda abandoned: abandoned.found(1))
    assert isinstance(found, ClaimReply)
    assert found.outcome is ClaimOutcome.FINISHED


@pytest.mark.parametrize("answer", [None, True, "run_again", ValueError("a bug")])
def test_callback_that_fails_leaves_it_to_a_person(
    bench: GuardBench, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that raises or returns anything else decides nothing, and the log says so."""

    def callback(abandoned: AbandonedOperation) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    abandon(bench)
    reply = ask(bench, callback)
    assert isinstance(reply, ClaimReply)
    assert reply.outcome is ClaimOutcome.UNRESOLVED
    assert "could not be found out" in caplog.text
    assert bench.status() == "in_progress"


def test_callback_that_is_interrupted_leaves_the_lease_to_decide(bench: GuardBench) -> None:
    """An exit passes through; nothing is renewed, and after the lease the next one asks."""

    def callback(abandoned: AbandonedOperation) -> Verdict:
        raise SystemExit(1)

    abandon(bench)
    with pytest.raises(SystemExit):
        ask(bench, callback)
    assert bench.heartbeat.held_count == 0
    assert bench.reply().outcome is ClaimOutcome.IN_PROGRESS
    bench.clock.advance(LEASE + 1)
    assert bench.reply().outcome is ClaimOutcome.UNRESOLVED


def test_verdict_that_is_interrupted_leaves_the_lease_to_decide(
    bench: GuardBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit that strikes between the verdict and its record leaves nothing renewed."""

    def interrupt(message: str, *args: object, **extra: object) -> None:
        raise SystemExit(1)

    abandon(bench)
    monkeypatch.setattr(claims.logger, "warning", interrupt)
    with pytest.raises(SystemExit):
        ask(bench, lambda abandoned: abandoned.found(1))
    assert bench.heartbeat.held_count == 0
    assert bench.status() == "in_progress"


# Who is asked, and when


def test_callback_is_not_asked_without_need(bench: GuardBench) -> None:
    """New, running and finished work, and work that may run again, ask nobody."""

    def callback(abandoned: AbandonedOperation) -> Verdict:
        raise AssertionError("nobody was to be asked")

    claim = ask(bench, callback, on_abandoned="rerun")
    assert isinstance(claim, Claim)
    ask(bench, callback)
    claim.abandon()
    bench.clock.advance(LEASE + 1)
    again = ask(bench, callback, on_abandoned="rerun")
    assert isinstance(again, Claim)
    again.complete(b"1j1")
    ask(bench, callback)


def test_callback_sees_what_was_abandoned(bench: GuardBench) -> None:
    """It learns whose work it is, what asks, and the key that the systems behind have seen."""
    seen: list[AbandonedOperation] = []

    def callback(abandoned: AbandonedOperation) -> Verdict:
        seen.append(abandoned)
        return abandoned.ask_person()

    abandon(bench)
    request = bench.request(on_abandoned="refuse")
    bench.guard.claim(request, reconciler=reconciler(callback, "the request", is_http=True))
    (abandoned,) = seen
    assert (abandoned.key, abandoned.tenant_id, abandoned.user_id) == ("key", "t", "u")
    assert (abandoned.operation_type, abandoned.subject) == ("charge", "the request")
    assert abandoned.fencing_token == bench.record().fencing_token
    assert abandoned.downstream_key("charge") == derive_downstream_key("key", "charge")


def test_one_of_many_retries_asks(bench: GuardBench) -> None:
    """While one callback runs, the other retries are told that the first request is running."""
    asked = Counter()

    def callback(abandoned: AbandonedOperation) -> Verdict:
        asked.increment()
        reply = bench.reply()
        assert reply.outcome is ClaimOutcome.IN_PROGRESS
        return abandoned.found(1)

    abandon(bench)
    answers = run_together(8, lambda: ask(bench, callback))
    assert asked.value == 1
    outcomes = {answer.outcome for answer in answers if isinstance(answer, ClaimReply)}
    assert outcomes <= {ClaimOutcome.FINISHED, ClaimOutcome.IN_PROGRESS}
    assert len(answers) == 8


def test_retry_that_waits_asks_when_the_lease_ends(bench: GuardBench) -> None:
    """A duplicate that waits for an executor which dies meanwhile asks what became of it."""
    bench.claim(on_abandoned="refuse").abandon()
    answer = bench.guard.claim(
        bench.request(on_abandoned="refuse"),
        wait=2 * LEASE,
        reconciler=reconciler(lambda abandoned: abandoned.found(1)),
    )
    assert isinstance(answer, ClaimReply)
    assert answer.outcome is ClaimOutcome.FINISHED


# When the storage fails in between


def test_takeover_that_fails_leaves_it_unresolved(bench: GuardBench) -> None:
    """Known to be begun, the work does not run unprotected, and nobody is asked unclaimed."""
    abandon(bench)
    calls = iter([lambda: None, lambda: bench.storage.refuse("claim_operation")])
    bench.storage.before = lambda verb: next(calls, lambda: None)()
    reply = ask(bench, AbandonedOperation.run_again)
    assert isinstance(reply, ClaimReply)
    assert reply.outcome is ClaimOutcome.UNRESOLVED


def test_takeover_whose_reply_is_lost_runs_nothing(bench: GuardBench) -> None:
    """The claim that may have been made is left to its lease, and stays refused then."""
    abandon(bench)
    calls = iter([lambda: None, lambda: bench.storage.lose_reply("claim_operation")])
    bench.storage.before = lambda verb: next(calls, lambda: None)()
    reply = ask(bench, AbandonedOperation.run_again, on_abandoned="rerun")
    assert isinstance(reply, ClaimReply)
    assert reply.outcome is ClaimOutcome.UNRESOLVED
    assert bench.reply().outcome is ClaimOutcome.IN_PROGRESS
    bench.clock.advance(LEASE + 1)
    assert bench.reply(on_abandoned="rerun").outcome is ClaimOutcome.UNRESOLVED


def test_retry_that_comes_second_to_the_takeover_is_told_so(bench: GuardBench) -> None:
    """Between learning of the abandoned claim and taking it over, another may be faster."""
    abandon(bench)
    token = bench.record().fencing_token
    calls = iter(
        [
            lambda: None,
            lambda: bench.storage.claim_operation(bench.request(takeover=token)),
        ]
    )
    bench.storage.before = lambda verb: next(calls, lambda: None)()
    reply = ask(bench, AbandonedOperation.run_again)
    assert isinstance(reply, ClaimReply)
    assert reply.outcome is ClaimOutcome.IN_PROGRESS


def test_found_outcome_is_written_later_if_the_storage_blinks(bench: GuardBench) -> None:
    """The retry gets what was found although it could not be recorded yet."""
    abandon(bench)
    bench.storage.refuse("complete_operation")
    found = ask(bench, lambda abandoned: abandoned.found(1))
    assert isinstance(found, ClaimReply)
    assert found.outcome is ClaimOutcome.FINISHED
    bench.heartbeat.beat()
    assert bench.status() == "completed"


def test_found_outcome_of_a_lost_claim_is_not_told(bench: GuardBench) -> None:
    """Whoever lost the claim while the callback ran has nothing to say any more."""

    def callback(abandoned: AbandonedOperation) -> Verdict:
        bench.clock.advance(LEASE + 1)
        token = bench.record().fencing_token
        bench.storage.claim_operation(bench.request(takeover=token))
        return abandoned.found(1)

    abandon(bench)
    reply = ask(bench, callback)
    assert isinstance(reply, ClaimReply)
    assert reply.outcome is ClaimOutcome.IN_PROGRESS
    assert bench.status() == "in_progress"


def test_permission_that_comes_after_the_lease_runs_nothing(bench: GuardBench) -> None:
    """Whoever lost the claim while the callback ran does not run what another may be at."""

    def callback(abandoned: AbandonedOperation) -> Verdict:
        bench.clock.advance(LEASE + 1)
        token = bench.record().fencing_token
        bench.storage.claim_operation(bench.request(takeover=token))
        return abandoned.run_again()

    abandon(bench)
    reply = ask(bench, callback)
    assert isinstance(reply, ClaimReply)
    assert reply.outcome is ClaimOutcome.IN_PROGRESS
    assert bench.heartbeat.held_count == 0
    assert bench.guard.counts.executions == 1


def test_key_that_was_given_back_before_the_takeover_asks_nobody(bench: GuardBench) -> None:
    """What an operator or a late release gave back is new work: it runs, and nobody decides."""

    def callback(abandoned: AbandonedOperation) -> Verdict:
        raise AssertionError("nobody was to be asked")

    abandon(bench)
    calls = iter([lambda: None, lambda: bench.storage.discard_operation("key")])
    bench.storage.before = lambda verb: next(calls, lambda: None)()
    claim = ask(bench, callback)
    assert isinstance(claim, Claim)
    assert not claim.taken_over
    assert bench.seen(OperationReconciled) == []


def test_lease_that_cannot_be_ended_runs_out(bench: GuardBench) -> None:
    """Where the storage fails as the key is handed back, the lease ends by itself."""
    abandon(bench)
    bench.storage.refuse("renew_leases")
    ask(bench, AbandonedOperation.ask_person)
    assert bench.reply().outcome is ClaimOutcome.IN_PROGRESS
    bench.clock.advance(LEASE + 1)
    assert bench.reply().outcome is ClaimOutcome.UNRESOLVED


def test_handing_back_after_another_ending_does_nothing(bench: GuardBench) -> None:
    """A claim that has ended is not handed back."""
    claim = bench.claim()
    claim.complete(b"1j1")
    claim.hand_back()
    assert bench.status() == "completed"


# What can be said


def test_found_response_has_its_status() -> None:
    """Over HTTP a result can come with the status that its request would have had."""
    verdict = operation(is_http=True).found({"id": 5}, status=201)
    assert decode_payload(verdict.payload) == HttpOutcome(
        201, [("Content-Type", "application/json")], b'{"id":5}'
    )


@pytest.mark.parametrize(("is_http", "status"), [(False, 201), (True, 199), (True, 600)])
def test_status_that_cannot_be_is_refused(is_http: bool, status: int) -> None:
    """A status is one of HTTP, and of an HTTP request."""
    with pytest.raises(ConfigurationError, match="status"):
        operation(is_http=is_http).found(1, status=status)


def test_found_result_must_be_json() -> None:
    """A result that is not JSON is refused where it is said."""
    with pytest.raises(SerializationError):
        operation().found(object())


# Where the callback comes from


def never(abandoned: AbandonedOperation) -> Verdict:
    return abandoned.failed("of the settings")


def test_own_callback_beats_that_of_the_settings() -> None:
    """An operation's own callback is asked first, the settings' else, and without one nobody."""
    config = TasksConfig(reconcile=f"{__name__}.never")
    own = find_reconcile(config, AbandonedOperation.run_again)
    assert own is not None
    assert own() is AbandonedOperation.run_again
    assert find_reconcile(TasksConfig(), None) is None


def test_callback_of_the_settings_is_found_when_it_is_needed() -> None:
    """Its module is imported with the first question, not with the manager."""
    find = find_reconcile(TasksConfig(reconcile="no.such.module"), None)
    assert find is not None
    with pytest.raises(ConfigurationError, match="RECONCILE"):
        find()


# Functions and blocks


@pytest.fixture
def storage(clock: FakeClock) -> FaultyStorage:
    return FaultyStorage(clock=clock)


def test_function_that_was_abandoned_is_reconciled(
    storage: FaultyStorage, clock: FakeClock
) -> None:
    """A function's callback sees its arguments and decides for it."""
    seen: list[Any] = []
    runs = Counter()

    def callback(abandoned: AbandonedOperation) -> Verdict:
        seen.append((abandoned.subject, abandoned.is_http))
        return abandoned.found("charged")

    with BackgroundOperationsManager(storage, clock=clock) as manager:

        @manager.idempotent("charge", on_abandoned="refuse", reconcile=callback)
        def charge(order: int, *, cents: int = 5) -> str:
            runs.increment()
            raise SystemExit(1)

        with pytest.raises(SystemExit):
            charge(7)
        clock.advance(31)
        assert charge(7) == "charged"
    assert seen == [({"order": 7}, False)]
    assert runs.value == 1


def test_block_that_was_abandoned_is_reconciled(storage: FaultyStorage, clock: FakeClock) -> None:
    """A block's callback sees its parameters; a failure that it finds is raised."""

    def callback(abandoned: AbandonedOperation) -> Verdict:
        return abandoned.failed(f"order {abandoned.subject['order']} was declined")

    with BackgroundOperationsManager(storage, clock=clock, on_abandoned="refuse") as manager:
        with (
            pytest.raises(SystemExit),
            manager.idempotent_operation("charge", {"order": 7}),
        ):
            raise SystemExit(1)
        clock.advance(31)
        with pytest.raises(OutcomeUnknownError):
            manager.idempotent_operation("charge", {"order": 7}).__enter__()
        block = manager.idempotent_operation("charge", {"order": 7}, reconcile=callback)
        with pytest.raises(OperationFailedError, match="order 7 was declined"):
            block.__enter__()


def test_callback_that_cannot_be_called_is_refused(storage: FaultyStorage) -> None:
    """What is no callable is refused where the function is decorated."""
    with BackgroundOperationsManager(storage) as manager:
        nothing: Any = "nothing"
        with pytest.raises(ConfigurationError, match="reconcile"):
            manager.idempotent("charge", reconcile=nothing)


def test_question_is_logged_without_the_key(
    bench: GuardBench, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what was decided, for which tenant and type, and holds no key."""
    with caplog.at_level(logging.WARNING):
        abandon(bench)
        ask(bench, AbandonedOperation.run_again)
    (record,) = [record for record in caplog.records if "was asked" in record.message]
    assert "run_again" in record.message
    assert record.tenant_id == "t"  # type: ignore[attr-defined]
