from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    CorruptRecordError,
    InvalidKeyError,
    InvalidTransitionError,
    OperationNotFoundError,
    SerializationError,
    StaleRecordError,
    StorageUnavailableError,
)
from dotmac_tasks.events import EventDispatcher, OperationCompleted, OperationEnqueued
from dotmac_tasks.keys import key_hash
from dotmac_tasks.models import BackgroundOperation, ClaimRequest, OperationStatus
from dotmac_tasks.operations import BackgroundOperations, show_key
from dotmac_tasks.serialization import (
    MAX_DEPTH,
    encode_error,
    encode_response,
    encode_result,
    encode_tombstone,
)
from dotmac_tasks.testing import EventRecorder, FakeClock
from support.concurrency import run_together
from support.faulty import FaultyStorage

PENDING = OperationStatus.PENDING
IN_PROGRESS = OperationStatus.IN_PROGRESS
COMPLETED = OperationStatus.COMPLETED
FAILED = OperationStatus.FAILED


class Bench:
    """
    Background operations over a storage that fails on demand.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.storage = FaultyStorage(clock=clock)
        self.recorder = EventRecorder()
        self.events = EventDispatcher((self.recorder,), clock)
        self.operations = BackgroundOperations(self.storage, self.events, TasksConfig())

    def create(self, **options: Any) -> BackgroundOperation:
        return self.operations.create("t", "export", **options)

    def request(self, key: str = "key", tenant_id: str = "t") -> ClaimRequest:
        return ClaimRequest(key, "owner", tenant_id, "", "export", "", 60.0, 30.0)

    def finish(self, payload: bytes, *, failed: bool = False) -> None:
        reply = self.storage.claim_operation(self.request())
        self.storage.complete_operation(self.request(), reply.fencing_token, payload, failed=failed)

    def seen(self, kind: type[Any]) -> list[Any]:
        assert self.events.flush(30)
        return self.recorder.of_type(kind)


@pytest.fixture
def bench(clock: FakeClock) -> Iterator[Bench]:
    bench = Bench(clock)
    yield bench
    bench.events.close()


def test_operation_goes_its_way(bench: Bench) -> None:
    """An operation is created, started and completed, and shows what it was given."""
    created = bench.create(user_id="u", parameters={"format": "csv"})
    started = bench.operations.change(created.operation_id, IN_PROGRESS)
    completed = bench.operations.change(created.operation_id, COMPLETED, result={"rows": 0})
    assert [each.status for each in (created, started, completed)] == [
        PENDING,
        IN_PROGRESS,
        COMPLETED,
    ]
    assert [each.revision for each in (created, started, completed)] == [1, 2, 3]
    assert (completed.user_id, completed.parameters) == ("u", {"format": "csv"})
    assert (completed.result, completed.error) == ({"rows": 0}, None)
    assert created.expires_at is None
    assert completed.expires_at is not None
    assert completed.expires_at - completed.updated_at == timedelta(days=30)
    assert bench.operations.get(created.operation_id) == completed
    assert len(bench.seen(OperationEnqueued)) == 1
    assert [event.status for event in bench.seen(OperationCompleted)] == ["completed"]


def test_operation_that_failed_shows_why(bench: Bench) -> None:
    """A failure keeps its text."""
    created = bench.create()
    failed = bench.operations.change(created.operation_id, FAILED, error="disk full")
    assert (failed.status, failed.error, failed.result) == (FAILED, "disk full", None)


def test_ended_operation_stays_as_it_is(bench: Bench) -> None:
    """The first ending stands; the same again is no error, another one is."""
    operation_id = bench.create().operation_id
    first = bench.operations.change(operation_id, COMPLETED, result=1)
    assert bench.operations.change(operation_id, COMPLETED, result=1) == first
    with pytest.raises(InvalidTransitionError):
        bench.operations.change(operation_id, COMPLETED, result=2)
    with pytest.raises(InvalidTransitionError):
        bench.operations.change(operation_id, FAILED, error="no")
    assert bench.operations.get(operation_id) == first


def test_operation_is_hidden_from_other_tenants(bench: Bench) -> None:
    """Another tenant's operation is not found, by no call; one's own is."""
    operation_id = bench.create().operation_id
    assert bench.operations.get(operation_id, tenant_id="t").status is PENDING
    with pytest.raises(OperationNotFoundError):
        bench.operations.get(operation_id, tenant_id="other")
    with pytest.raises(OperationNotFoundError):
        bench.operations.change(operation_id, COMPLETED, tenant_id="other")
    for unknown in ("unknown", "tenant:t"):
        with pytest.raises(OperationNotFoundError):
            bench.operations.get(unknown)
    assert bench.operations.list("other").operations == []


def test_operation_of_a_known_id_is_returned(bench: Bench) -> None:
    """Creating an id again returns what is there; another tenant's id is refused."""
    first = bench.create(operation_id="op-1")
    bench.operations.change("op-1", IN_PROGRESS)
    again = bench.create(operation_id="op-1")
    assert (again.operation_id, again.status) == (first.operation_id, IN_PROGRESS)
    with pytest.raises(StaleRecordError):
        bench.operations.create("other", "export", operation_id="op-1")


@pytest.mark.parametrize(
    "options", [{"operation_id": ""}, {"operation_id": "tenant:t"}, {"idempotency_key": "index"}]
)
def test_operation_with_a_bad_id_is_refused(bench: Bench, options: Any) -> None:
    """Ids and keys that cannot be stored are errors, and nothing is stored."""
    with pytest.raises(InvalidKeyError):
        bench.create(**options)
    assert bench.storage.get_stats().operations == 0


def test_operation_data_that_is_not_json_is_refused(bench: Bench) -> None:
    """Parameters and results must be JSON, and the error says where they are not."""
    with pytest.raises(SerializationError) as caught:
        bench.create(parameters={"x": object()})
    assert caught.value.path == "$.parameters.x"
    operation_id = bench.create().operation_id
    with pytest.raises(SerializationError):
        bench.operations.change(operation_id, COMPLETED, result=object())
    assert bench.operations.get(operation_id).status is PENDING


def test_of_two_endings_at_once_one_wins(bench: Bench) -> None:
    """Of many threads that end one operation differently, one succeeds and the rest are told."""
    operation_id = bench.create().operation_id
    numbers = iter(range(8))

    def end() -> int:
        number = next(numbers)
        bench.operations.change(operation_id, COMPLETED, result=number)
        return number

    outcomes = run_together(8, end)
    winners = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert winners == [bench.operations.get(operation_id).result]
    assert {type(outcome) for outcome in outcomes} == {int, InvalidTransitionError}


def test_change_that_always_comes_too_late_is_told(bench: Bench) -> None:
    """After a bounded number of attempts the caller is told that others change it."""
    operation_id = bench.create().operation_id
    bench.storage.refuse("save_background", times=100, error=StaleRecordError("faulty", "It"))
    with pytest.raises(StaleRecordError):
        bench.operations.change(operation_id, COMPLETED)
    assert bench.storage.calls.count("save_background") == 11


def test_change_that_comes_too_late_once_is_made_again(bench: Bench) -> None:
    """A change by somebody else in between does not hurt."""
    operation_id = bench.create().operation_id
    bench.storage.refuse("save_background", error=StaleRecordError("faulty", "It"))
    assert bench.operations.change(operation_id, COMPLETED).status is COMPLETED


def test_lost_reply_to_an_ending_can_be_repeated(bench: Bench) -> None:
    """The same ending again after a lost reply succeeds."""
    operation_id = bench.create().operation_id
    bench.storage.lose_reply("save_background")
    with pytest.raises(Exception, match="no answer"):
        bench.operations.change(operation_id, COMPLETED, result=1)
    assert bench.operations.change(operation_id, COMPLETED, result=1).revision == 2


def test_linked_operation_shows_the_record_of_its_key(bench: Bench) -> None:
    """Status and result come from the key's record, and outlive it."""
    operation_id = bench.create(idempotency_key="key").operation_id
    assert bench.operations.get(operation_id).status is PENDING
    bench.storage.claim_operation(bench.request())
    assert bench.operations.get(operation_id).status is IN_PROGRESS
    bench.finish(encode_result([1]))
    seen = bench.operations.get(operation_id)
    assert (seen.status, seen.result, seen.error) == (COMPLETED, [1], None)
    bench.clock.advance(61)
    assert bench.storage.find_operation("key") is None
    assert bench.operations.get(operation_id).result == [1]


def test_linked_operation_shows_the_failure_of_its_key(bench: Bench) -> None:
    """A failure comes through with its text."""
    operation_id = bench.create(idempotency_key="key").operation_id
    bench.finish(encode_error("declined"), failed=True)
    seen = bench.operations.get(operation_id)
    assert (seen.status, seen.error) == (FAILED, "declined")


def test_linked_outcome_that_cannot_be_copied_is_shown(bench: Bench) -> None:
    """If the copy fails the right status is shown all the same."""
    operation_id = bench.create(idempotency_key="key").operation_id
    bench.finish(encode_result(1))
    bench.storage.refuse("save_background")
    assert bench.operations.get(operation_id).status is COMPLETED


@pytest.mark.parametrize(
    "body",
    [b'{"a":NaN}', b'"\\ud800"', b"[" * 100_000, b"no JSON"],
    ids=["nan", "surrogate", "deep", "text"],
)
def test_linked_response_that_is_no_json_is_no_result(bench: Bench, body: bytes) -> None:
    """A body that Python reads and JSON does not hold ends the operation without a result."""
    operation_id = bench.create(idempotency_key="key").operation_id
    bench.finish(encode_response(200, [], body))
    for operation in (bench.operations.get(operation_id), *bench.operations.list("t").operations):
        assert (operation.status, operation.result) == (COMPLETED, None)


def test_linked_outcome_that_is_too_deep_to_copy_is_shown(bench: Bench) -> None:
    """A result at the limit of nesting is shown though the operation cannot hold it."""
    result: Any = []
    for _ in range(MAX_DEPTH - 1):
        result = [result]
    operation_id = bench.create(idempotency_key="key").operation_id
    bench.finish(encode_result(result))
    assert bench.operations.get(operation_id).result == result


def test_link_to_a_key_of_another_tenant_shows_nothing(bench: Bench) -> None:
    """A key that another tenant holds does not show through an operation."""
    operation_id = bench.create(idempotency_key="key").operation_id
    bench.storage.claim_operation(bench.request(tenant_id="other"))
    assert bench.operations.get(operation_id).status is PENDING


def test_listing_is_newest_first_and_in_pages(bench: Bench) -> None:
    """Pages follow one another until the cursor is None."""
    made = []
    for _ in range(5):
        made.append(bench.create().operation_id)
        bench.clock.advance(1)
    first = bench.operations.list("t", limit=3)
    second = bench.operations.list("t", limit=3, cursor=first.cursor)
    listed = [each.operation_id for each in first.operations + second.operations]
    assert listed == made[::-1]
    assert second.cursor is None


def test_listing_by_status_follows_the_keys(bench: Bench) -> None:
    """An operation whose key has moved on is not listed under its old status."""
    bench.create(idempotency_key="key")
    plain = bench.create()
    bench.finish(encode_result(1))
    pending = bench.operations.list("t", status=PENDING).operations
    assert [each.operation_id for each in pending] == [plain.operation_id]
    assert len(bench.operations.list("t", status=COMPLETED).operations) == 1


@pytest.mark.parametrize("data", [b"", b"1tno", b"1j[]", b'1j{"version":2}', b'1j{"version":1}'])
def test_unreadable_operation_is_refused_and_left_out(
    bench: Bench, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged operation is an error by itself, and does not hide the others in a listing."""
    bench.storage.save_background(
        "bad", "t", PENDING, data, expected_revision=0, request_id="r", retention=None
    )
    good = bench.create()
    with pytest.raises(CorruptRecordError):
        bench.operations.get("bad")
    listed = bench.operations.list("t").operations
    assert [each.operation_id for each in listed] == [good.operation_id]
    assert "left out" in caplog.text
    (message,) = caplog.records
    assert vars(message)["tenant_id"] == "t"
    assert vars(message)["key_hash"] == key_hash("bad")


def test_dead_storage_is_told(bench: Bench) -> None:
    """A storage that fails is an error of every call."""
    bench.storage.refuse("find_background")
    with pytest.raises(StorageUnavailableError):
        bench.operations.get("x")


def test_operations_without_hooks_work_silently(bench: Bench) -> None:
    """Where nobody listens nothing is emitted."""
    bench.events.active = False
    bench.operations.change(bench.create().operation_id, COMPLETED)
    assert bench.recorder.events == []


@pytest.mark.parametrize(
    ("payload", "result", "error"),
    [
        (encode_result(0), 0, None),
        (encode_error("no"), None, "no"),
        (encode_tombstone("stream"), None, None),
        (encode_response(201, [], b'{"id": 1}'), {"id": 1}, None),
        (encode_response(201, [], b"\x89PNG"), None, None),
    ],
)
def test_record_is_shown(bench: Bench, payload: bytes, result: Any, error: Any) -> None:
    """What is shown of a finished record depends on the kind of its outcome."""
    bench.finish(payload)
    record = bench.storage.find_operation("key")
    assert record is not None
    shown = show_key(record, "faulty")
    assert (shown.result, shown.error, shown.lease_until, shown.user_id) == (
        result,
        error,
        None,
        None,
    )
    assert shown.is_completed()


def test_running_record_is_shown_with_its_lease(bench: Bench) -> None:
    """A running record shows when its lease ends, and one that stays shows no expiry."""
    bench.storage.claim_operation(bench.request()._replace(on_abandoned="refuse"))
    record = bench.storage.find_operation("key")
    assert record is not None
    shown = show_key(record, "faulty")
    assert shown.lease_until is not None
    assert shown.lease_until - shown.created_at == timedelta(seconds=30)
    assert shown.expires_at is None


def test_unreadable_record_is_refused(bench: Bench) -> None:
    """An outcome of an unknown kind is an error, not an empty result."""
    bench.finish(b"9z")
    record = bench.storage.find_operation("key")
    assert record is not None
    with pytest.raises(CorruptRecordError):
        show_key(record, "faulty")
