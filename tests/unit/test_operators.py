from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from dotmac_tasks.errors import (
    ConfigurationError,
    CorruptRecordError,
    InvalidKeyError,
    SerializationError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from dotmac_tasks.events import KeyDecided, OperationCompleted
from dotmac_tasks.http import principal_scope
from dotmac_tasks.keys import http_storage_key, key_hash
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import OperationStatus, SettleOutcome
from dotmac_tasks.operators import find_stored_key
from dotmac_tasks.serialization import encode_response, encode_tombstone
from dotmac_tasks.testing import EventRecorder, FakeClock
from support.backends import make_request
from support.faulty import FaultyStorage

WHY = {"reason": "the card was not charged", "by": "Kim"}


class Desk:
    """
    A manager over a storage that can fail, and what its hooks were told; one per test.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.storage = FaultyStorage(clock=clock)
        self.recorder = EventRecorder()
        self.manager = BackgroundOperationsManager(
            self.storage, clock=clock, hooks=[self.recorder], enable_background_cleanup=False
        )

    def abandon(self, key: str = "k", **changes: Any) -> None:
        """
        Leave a claim whose lease is over.
        """
        request = make_request(key=key, lease=10, on_abandoned="refuse", **changes)
        self.storage.claim_operation(request)
        self.clock.advance(11)

    def told(self) -> list[KeyDecided]:
        assert self.manager.events.flush(10)
        return self.recorder.of_type(KeyDecided)


@pytest.fixture
def desk(clock: FakeClock) -> Iterator[Desk]:
    made = Desk(clock)
    yield made
    made.manager.stop()


# Finding


@pytest.mark.parametrize(
    ("principal", "scope"),
    [
        (None, principal_scope(None, None)),
        ("", principal_scope(None, None)),
        ("17", principal_scope(17, None)),
        ("user:17", principal_scope(17, None)),
        ("user:user:17", principal_scope("user:17", None)),
        (principal_scope(None, "Bearer x"), principal_scope(None, "Bearer x")),
    ],
)
def test_stored_key_is_that_of_the_request(principal: str | None, scope: str) -> None:
    """A user's id, a whole scope or nobody gives the key under which a request is stored."""
    expected = http_storage_key("acme", scope, "8e03")
    assert find_stored_key("acme", principal, "8e03") == expected
    assert find_stored_key("acme", principal, '"8e03"') == expected


def test_key_that_no_client_can_send_is_refused(desk: Desk) -> None:
    """A malformed client key is told as such, not looked for."""
    with pytest.raises(InvalidKeyError):
        desk.manager.find_stored_key("acme", None, "a,b")
    assert desk.storage.calls == []


# Listing


def test_listing_shows_all_but_the_outcome(desk: Desk) -> None:
    """A listing has the facts of each key and the size of its outcome, as JSON data too."""
    desk.abandon("dead", tenant_id="acme", user_id="")
    request = make_request(key="done")
    desk.storage.claim_operation(request)
    desk.storage.complete_operation(request, 1, b"1j42", failed=False)
    dead, done = desk.manager.list_idempotency_keys().keys
    assert (dead.key, dead.abandoned, dead.deferred, dead.user_id) == ("dead", True, False, None)
    assert (dead.expires_at, dead.outcome_size) == (None, 0)
    assert (done.key, done.status, done.outcome_size) == ("done", OperationStatus.COMPLETED, 4)
    for summary in (dead, done):
        found = desk.manager.check_idempotency(summary.key)
        assert found is not None
        data = json.loads(json.dumps(summary.to_dict()))
        assert data == {name: found.to_dict()[name] for name in data}


def test_abandoned_ones_are_listed_alone(desk: Desk) -> None:
    """Of those in progress only those whose lease is over count as abandoned."""
    desk.abandon("dead")
    desk.storage.claim_operation(make_request(key="alive"))
    desk.manager.create_idempotency_key("tenant", None, "charge", key="pending")
    page = desk.manager.list_idempotency_keys(abandoned=True, status="in_progress")
    assert [each.key for each in page.keys] == ["dead"]
    assert [each.key for each in desk.manager.list_idempotency_keys(abandoned=True).keys] == [
        "dead"
    ]
    assert len(desk.manager.list_idempotency_keys(status="in_progress").keys) == 2
    assert desk.manager.list_idempotency_keys(tenant_id="acme").keys == []


def test_listing_goes_on_where_it_ended(desk: Desk) -> None:
    """The cursor of a page leads to the next one, and none follows the last."""
    for number in range(3):
        desk.abandon(f"k{number}")
    first = desk.manager.list_idempotency_keys(limit=2)
    assert len(first.keys) == 2
    second = desk.manager.list_idempotency_keys(limit=2, cursor=first.cursor)
    assert [each.key for each in second.keys] == ["k0"]
    assert second.cursor is None


@pytest.mark.parametrize(
    "asked",
    [{"limit": 0}, {"status": "lost"}, {"status": "pending", "abandoned": True}],
)
def test_listing_that_cannot_be_is_refused(desk: Desk, asked: dict[str, Any]) -> None:
    """A wrong limit or status is an error that names it."""
    with pytest.raises(ConfigurationError, match=next(iter(asked))):
        desk.manager.list_idempotency_keys(**asked)


# Releasing


def test_release_is_logged_and_told(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A key that was given back is told of with who, why, and a hash in the place of the key."""
    desk.abandon()
    assert desk.manager.release_idempotency_key("k", **WHY) is SettleOutcome.DONE
    assert desk.manager.check_idempotency("k") is None
    facts = {
        "tenant_id": "tenant",
        "operation_type": "charge",
        "key_hash": key_hash("k"),
        "decision": "released",
        **WHY,
    }
    assert desk.told() == [KeyDecided(**facts)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "A key was released by Kim: the card was not charged"
    assert {name: vars(record)[name] for name in facts} == facts


def test_release_needs_no_hooks(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody listens the log has it all the same."""
    with BackgroundOperationsManager(clock=clock, enable_background_cleanup=False) as manager:
        manager.create_idempotency_key("tenant", None, "charge", key="k")
        assert manager.release_idempotency_key("k", **WHY) is SettleOutcome.DONE
    assert caplog.messages == ["A key was released by Kim: the card was not charged"]


@pytest.mark.parametrize("missing", ["reason", "by"])
@pytest.mark.parametrize("words", ["", " \n\t", "\x1b\x00"])
def test_decision_without_words_is_refused(desk: Desk, missing: str, words: str) -> None:
    """Without a reason, or somebody who has it, nothing is asked of the storage."""
    desk.abandon()
    calls = desk.storage.calls
    said = {**WHY, missing: words}
    with pytest.raises(ConfigurationError, match=missing):
        desk.manager.release_idempotency_key("k", **said)
    with pytest.raises(ConfigurationError, match=missing):
        desk.manager.resolve_idempotency_key("k", 1, **said)
    assert desk.storage.calls == calls


def test_words_are_logged_on_one_line(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody forges a log line or colours a terminal with a reason."""
    desk.abandon()
    desk.manager.release_idempotency_key("k", reason=" a\nERROR b\x1b[31m ", by="Kim\r")
    assert caplog.messages == ["A key was released by Kim: a ERROR b [31m"]


@pytest.mark.parametrize(
    ("prepare", "outcome"),
    [("running", "running"), ("finished", "finished"), ("absent", "absent"), ("foreign", "absent")],
)
def test_refused_release_is_not_told(
    desk: Desk, caplog: pytest.LogCaptureFixture, prepare: str, outcome: str
) -> None:
    """A release that changed nothing says why, and is neither logged nor told."""
    if prepare == "running":
        desk.storage.claim_operation(make_request())
    elif prepare == "finished":
        desk.storage.complete_operation(make_request(), 1, b"1j1", failed=False)
    elif prepare == "foreign":
        desk.abandon(tenant_id="other")
    before = desk.storage.find_operation("k")
    answer = desk.manager.release_idempotency_key("k", tenant_id="tenant", **WHY)
    assert answer == outcome
    assert desk.storage.find_operation("k") == before
    assert (desk.told(), caplog.records) == ([], [])


def test_finished_key_is_released_if_asked(desk: Desk) -> None:
    """With `finished` a recorded outcome goes."""
    desk.storage.complete_operation(make_request(), 1, b"1j1", failed=False)
    outcome = desk.manager.release_idempotency_key("k", finished=True, **WHY)
    assert outcome is SettleOutcome.DONE
    assert len(desk.told()) == 1


def test_release_is_about_the_record_that_was_seen(desk: Desk) -> None:
    """A key that is claimed anew between the look and the step, or since, is left alone."""
    desk.abandon()
    seen = desk.manager.check_idempotency("k")
    assert seen is not None

    def intervene(verb: str) -> None:
        if verb == "discard_operation":
            desk.storage.before = lambda verb: None
            desk.storage.settle_operation("k", b"1j1", failed=False)
            desk.storage.discard_operation("k", finished=True)
            request = make_request(owner="b")
            token = desk.storage.claim_operation(request).fencing_token
            desk.storage.complete_operation(request, token, b"1j2", failed=False)

    desk.storage.before = intervene
    outcome = desk.manager.release_idempotency_key("k", finished=True, **WHY)
    assert outcome is SettleOutcome.CHANGED
    outcome = desk.manager.release_idempotency_key(
        "k", finished=True, fencing_token=seen.fencing_token, **WHY
    )
    assert outcome is SettleOutcome.CHANGED
    record = desk.storage.find_operation("k")
    assert record is not None
    assert record.payload == b"1j2"
    assert desk.told() == []


def test_unreadable_key_is_released_only_if_asked(desk: Desk) -> None:
    """What cannot be read stays, unless that is allowed; then it is told without its facts."""
    desk.abandon()
    damage = CorruptRecordError("faulty", "k", "as planned")
    desk.storage.refuse("find_operation", error=damage)
    with pytest.raises(CorruptRecordError):
        desk.manager.release_idempotency_key("k", **WHY)
    assert "discard_operation" not in desk.storage.calls
    desk.storage.refuse("find_operation", error=damage)
    outcome = desk.manager.release_idempotency_key("k", unreadable=True, **WHY)
    assert outcome is SettleOutcome.DONE
    (event,) = desk.told()
    assert (event.tenant_id, event.operation_type) == ("", "")
    assert event.key_hash == key_hash("k")


def test_lost_answer_is_logged(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A release that may have happened leaves its reason in the log, and is no success."""
    desk.abandon()
    desk.storage.lose_reply("discard_operation")
    with pytest.raises(StorageTimeoutError):
        desk.manager.release_idempotency_key("k", **WHY)
    assert caplog.messages == [
        "A key may have been released by Kim, the storage gave no answer: the card was not charged"
    ]
    assert desk.manager.release_idempotency_key("k", **WHY) is SettleOutcome.ABSENT
    assert desk.told() == []


@pytest.mark.parametrize("key", ["", "index", "x" * 256])
def test_key_that_cannot_be_stored_is_refused(desk: Desk, key: str) -> None:
    """No record can have such a key, and nobody is asked."""
    with pytest.raises(InvalidKeyError):
        desk.manager.release_idempotency_key(key, **WHY)
    with pytest.raises(InvalidKeyError):
        desk.manager.resolve_idempotency_key(key, 1, **WHY)
    assert desk.storage.calls == []


# Resolving


def test_resolution_is_recorded_logged_and_told(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """A result that was decided is what retries get, and it is told of twice: event and log."""
    desk.abandon()
    outcome = desk.manager.resolve_idempotency_key("k", {"charged": True}, **WHY)
    assert outcome is SettleOutcome.DONE
    seen = desk.manager.check_idempotency("k", "tenant")
    assert seen is not None
    assert (seen.result, seen.outcome_kind, seen.outcome_size) == ({"charged": True}, "result", 18)
    assert [event.decision for event in desk.told()] == ["resolved"]
    assert [event.status for event in desk.recorder.of_type(OperationCompleted)] == ["completed"]
    assert caplog.messages == ["A key was resolved by Kim: the card was not charged"]


def test_failure_is_resolved(desk: Desk) -> None:
    """With an error the operation failed, and retries get the text."""
    desk.abandon()
    outcome = desk.manager.resolve_idempotency_key("k", None, error="not charged", **WHY)
    assert outcome is SettleOutcome.DONE
    seen = desk.manager.check_idempotency("k")
    assert seen is not None
    assert (seen.error, seen.outcome_kind) == ("not charged", "failure")


def test_refused_resolution_changes_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """What runs, is finished, is not there or is another's is not resolved, nor told of."""
    resolve = desk.manager.resolve_idempotency_key
    assert resolve("k", 1, **WHY) is SettleOutcome.ABSENT
    desk.storage.claim_operation(make_request())
    assert resolve("k", 1, **WHY) is SettleOutcome.RUNNING
    desk.clock.advance(31)
    assert resolve("k", 1, tenant_id="other", **WHY) is SettleOutcome.ABSENT
    desk.storage.settle_operation("k", b"1j2", failed=False)
    assert resolve("k", 1, **WHY) is SettleOutcome.FINISHED
    with pytest.raises(SerializationError):
        resolve("k", object(), **WHY)
    assert (desk.told(), caplog.records) == ([], [])


def test_resolution_that_is_recorded_needs_no_second_look(desk: Desk) -> None:
    """If the record cannot be read back for the hooks, the resolution counts all the same."""
    desk.abandon()

    def fail_later(verb: str) -> None:
        if verb == "settle_operation":
            desk.storage.refuse("find_operation", error=StorageUnavailableError("faulty", "gone"))

    desk.storage.before = fail_later
    assert desk.manager.resolve_idempotency_key("k", 1, **WHY) is SettleOutcome.DONE
    assert [event.decision for event in desk.told()] == ["resolved"]
    assert desk.recorder.of_type(OperationCompleted) == []


def test_resolution_that_vanishes_at_once_is_no_completion(desk: Desk) -> None:
    """If the record is gone before the hooks are told, they are told of the decision alone."""
    desk.abandon()

    def remove_later(verb: str) -> None:
        if desk.storage.calls[-1:] == ["settle_operation"]:
            desk.storage.before = lambda verb: None
            desk.storage.discard_operation("k", finished=True)

    desk.storage.before = remove_later
    assert desk.manager.resolve_idempotency_key("k", 1, **WHY) is SettleOutcome.DONE
    assert [event.decision for event in desk.told()] == ["resolved"]
    assert desk.recorder.of_type(OperationCompleted) == []


# What a key shows of its outcome


def test_kind_of_the_outcome_is_shown(desk: Desk) -> None:
    """A response shows its status and size, one that was not kept the reason."""
    response = encode_response(201, [("Content-Type", "text/plain")], b"hello")
    for key, payload in (("response", response), ("lost", encode_tombstone("too-large"))):
        request = make_request(key=key)
        desk.storage.complete_operation(request, 1, payload, failed=False)
    seen = desk.manager.check_idempotency("response")
    assert seen is not None
    assert (seen.outcome_kind, seen.response_status) == ("response", 201)
    assert seen.outcome_size == len(response)
    seen = desk.manager.check_idempotency("lost")
    assert seen is not None
    assert (seen.outcome_kind, seen.not_kept_reason) == ("not-kept", "too-large")


def test_state_of_a_claim_is_shown(desk: Desk) -> None:
    """Whether a claim is deferred or abandoned is on the key, by the storage's clock."""
    request = make_request(lease=10)
    desk.storage.claim_operation(request)
    desk.storage.defer_operation(request, 100)
    seen = desk.manager.check_idempotency("k")
    assert seen is not None
    assert (seen.deferred, seen.abandoned, seen.outcome_kind) == (True, False, None)
    desk.clock.advance(101)
    seen = desk.manager.check_idempotency("k")
    assert seen is not None
    assert (seen.deferred, seen.abandoned) == (True, True)
