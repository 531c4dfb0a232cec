from __future__ import annotations

import pytest

from dotmac_tasks.errors import InvalidKeyError, StaleRecordError
from dotmac_tasks.models import BackgroundRecord, OperationStatus
from dotmac_tasks.storage import Storage
from support.backends import Backend, make_request

PENDING = OperationStatus.PENDING
IN_PROGRESS = OperationStatus.IN_PROGRESS
COMPLETED = OperationStatus.COMPLETED
FAILED = OperationStatus.FAILED


def save(
    storage: Storage,
    operation_id: str = "op",
    *,
    tenant: str = "tenant",
    status: OperationStatus = PENDING,
    data: bytes = b"{}",
    revision: int = 0,
    request_id: str = "",
    retention: float | None = None,
) -> BackgroundRecord:
    """
    Save a background operation under a request id of its own.
    """
    return storage.save_background(
        operation_id,
        tenant,
        status,
        data,
        expected_revision=revision,
        request_id=request_id or f"{operation_id}-{revision}",
        retention=retention,
    )


def list_ids(
    storage: Storage,
    *,
    tenant: str = "tenant",
    status: OperationStatus | None = None,
    limit: int = 100,
) -> list[str]:
    """
    Walk all pages of a listing and return the ids in order.
    """
    ids: list[str] = []
    cursor = None
    for _ in range(1000):
        page = storage.list_background(tenant, status=status, limit=limit, cursor=cursor)
        assert len(page.records) <= limit
        ids += [record.operation_id for record in page.records]
        cursor = page.cursor
        if cursor is None:
            return ids
    raise AssertionError("the cursor never ends")


class TestSave:
    def test_absent_operation_is_created(self, storage: Storage) -> None:
        """A first save creates revision 1 and returns what is found afterwards."""
        record = save(storage, data=b"\x00data\xff")
        assert record == (
            "op",
            "tenant",
            PENDING,
            1,
            record.created_ms,
            record.created_ms,
            None,
            b"\x00data\xff",
        )
        assert storage.find_background("op") == record

    def test_known_operation_is_changed(self, backend: Backend) -> None:
        """A save of the expected revision changes the rest and keeps the creation time."""
        storage = backend.storage
        save(storage)
        backend.age(10)
        before = storage.find_background("op")
        after = save(storage, revision=1, status=COMPLETED, data=b"done", retention=100)
        assert before is not None
        assert (after.revision, after.status, after.data) == (2, COMPLETED, b"done")
        assert after.created_ms == before.created_ms
        assert after.updated_ms >= before.created_ms + 10_000
        assert after.expires_ms == pytest.approx(after.updated_ms + 100_000, abs=50)
        assert storage.find_background("op") == after

    @pytest.mark.parametrize("revision", [0, 1, 3])
    def test_other_revision_is_refused(self, storage: Storage, revision: int) -> None:
        """A save of another revision than the stored one changes nothing."""
        save(storage)
        current = save(storage, revision=1)
        with pytest.raises(StaleRecordError):
            save(storage, revision=revision, request_id="new")
        assert storage.find_background("op") == current

    def test_absent_operation_is_not_changed(self, storage: Storage) -> None:
        """A change of what is absent creates nothing."""
        with pytest.raises(StaleRecordError):
            save(storage, revision=1)
        assert storage.find_background("op") is None
        assert list_ids(storage) == []

    @pytest.mark.parametrize("revision", [0, 1])
    def test_foreign_operation_is_not_changed(self, storage: Storage, revision: int) -> None:
        """Another tenant can neither create over an operation nor change it."""
        record = save(storage, request_id="r")
        with pytest.raises(StaleRecordError):
            save(storage, tenant="other", revision=revision, request_id="r")
        assert storage.find_background("op") == record
        assert list_ids(storage, tenant="other") == []

    def test_save_sent_again_answers_as_the_first_time(self, storage: Storage) -> None:
        """The same request id is answered with the same record and writes nothing."""
        first = save(storage, request_id="r")
        assert save(storage, request_id="r") == first
        second = save(storage, revision=1, request_id="s", status=COMPLETED, retention=100)
        assert save(storage, revision=1, request_id="s") == second
        assert storage.find_background("op") == second

    def test_without_retention_it_stays(self, backend: Backend) -> None:
        """An operation without a retention does not expire."""
        save(backend.storage)
        backend.age(10_000_000)
        assert backend.storage.find_background("op") is not None

    def test_with_retention_it_expires(self, backend: Backend) -> None:
        """An operation is gone when its retention is over, from listings too."""
        save(backend.storage, status=COMPLETED, retention=100)
        backend.age(99)
        assert list_ids(backend.storage) == ["op"]
        backend.age(2)
        assert backend.storage.find_background("op") is None
        assert list_ids(backend.storage) == []

    def test_retention_can_be_taken_back(self, backend: Backend) -> None:
        """A save without a retention keeps what would have expired."""
        save(backend.storage, status=FAILED, retention=100)
        record = save(backend.storage, revision=1, status=IN_PROGRESS)
        backend.age(101)
        found = backend.storage.find_background("op")
        assert record.expires_ms is None
        assert found is not None
        assert found.expires_ms is None

    def test_expired_operation_is_absent(self, backend: Backend) -> None:
        """An expired operation can be created anew, even by another tenant, and not changed."""
        storage = backend.storage
        save(storage, status=COMPLETED, retention=100)
        backend.age(101)
        with pytest.raises(StaleRecordError):
            save(storage, revision=1)
        record = save(storage, tenant="other")
        assert (record.revision, record.tenant_id) == (1, "other")
        assert list_ids(storage) == []
        assert list_ids(storage, tenant="other") == ["op"]

    @pytest.mark.parametrize("operation_id", ["", ":", "tenant:x", "status:pending:x"])
    def test_id_that_could_name_an_index_is_refused(
        self, storage: Storage, operation_id: str
    ) -> None:
        """An operation's id is not empty and has no colon; such a one is never found, either."""
        save(storage, "x", tenant="x")
        with pytest.raises(InvalidKeyError):
            save(storage, operation_id)
        assert storage.find_background(operation_id) is None

    def test_operation_and_key_of_one_name_are_apart(self, storage: Storage) -> None:
        """An operation and an idempotency key of the same name do not see each other."""
        save(storage, "k")
        assert storage.find_operation("k") is None
        storage.claim_operation(make_request(key="k", owner="a"))
        storage.release_operation("k", "a")
        assert storage.find_background("k") is not None

    def test_absent_operation_is_none(self, storage: Storage) -> None:
        """What is not there is None."""
        assert storage.find_background("op") is None

    def test_operation_is_seen_by_another_instance(self, backend: Backend) -> None:
        """What one instance wrote, another one over the same storage reads and lists."""
        record = save(backend.storage)
        other = backend.reopen()
        assert other.find_background("op") == record
        assert list_ids(other) == ["op"]


class TestList:
    def test_newest_comes_first(self, storage: Storage) -> None:
        """A listing goes from the newest to the oldest, created in one millisecond or not."""
        names = [f"op{number}" for number in range(20)]
        for name in names:
            save(storage, name)
        assert list_ids(storage) == names[::-1]

    def test_change_does_not_move_an_operation(self, storage: Storage) -> None:
        """Listings are in the order of creation, not of change."""
        for name in ("old", "new"):
            save(storage, name)
        save(storage, "old", revision=1, data=b"changed")
        assert list_ids(storage) == ["new", "old"]

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 20, 21])
    def test_pages_hold_each_once(self, storage: Storage, limit: int) -> None:
        """The pages of any size hold each operation exactly once, in order."""
        names = [f"op{number}" for number in range(20)]
        for name in names:
            save(storage, name)
        assert list_ids(storage, limit=limit) == names[::-1]

    def test_first_page_is_the_newest(self, storage: Storage) -> None:
        """A page that is not the last has as many as asked for, and a cursor."""
        for number in range(5):
            save(storage, f"op{number}")
        page = storage.list_background("tenant", limit=2)
        assert [record.operation_id for record in page.records] == ["op4", "op3"]
        assert page.cursor is not None

    def test_new_operation_does_not_disturb_the_pages(self, storage: Storage) -> None:
        """What is created during a walk neither repeats nor hides anything of the later pages."""
        for number in range(4):
            save(storage, f"op{number}")
        first = storage.list_background("tenant", limit=2)
        save(storage, "newer")
        second = storage.list_background("tenant", limit=10, cursor=first.cursor)
        assert [record.operation_id for record in second.records] == ["op1", "op0"]

    def test_unknown_tenant_has_an_empty_page(self, storage: Storage) -> None:
        """A tenant without operations gets an empty page without a cursor."""
        save(storage)
        assert storage.list_background("other") == ([], None)

    def test_tenants_are_apart(self, storage: Storage) -> None:
        """A tenant lists its own operations only, whatever the other's name."""
        tenants = ("a", "a:pending", "a:status", "A")
        for number, tenant in enumerate(tenants):
            save(storage, f"op{number}", tenant=tenant)
        for number, tenant in enumerate(tenants):
            assert list_ids(storage, tenant=tenant) == [f"op{number}"]
            assert list_ids(storage, tenant=tenant, status=PENDING) == [f"op{number}"]

    def test_status_filters(self, storage: Storage) -> None:
        """A listing by status holds exactly those that have it, newest created first."""
        statuses = [PENDING, COMPLETED, FAILED, PENDING, IN_PROGRESS, PENDING]
        for number, status in enumerate(statuses):
            save(storage, f"op{number}", status=status)
        assert list_ids(storage, status=PENDING, limit=2) == ["op5", "op3", "op0"]
        assert list_ids(storage, status=COMPLETED) == ["op1"]
        assert list_ids(storage, status=FAILED) == ["op2"]
        assert list_ids(storage, status=IN_PROGRESS) == ["op4"]

    def test_status_follows_the_operation(self, storage: Storage) -> None:
        """A change of status moves an operation between the listings, in its place."""
        for name in ("old", "middle", "new"):
            save(storage, name, status=IN_PROGRESS if name != "middle" else PENDING)
        save(storage, "middle", status=IN_PROGRESS, revision=1)
        assert list_ids(storage, status=PENDING) == []
        assert list_ids(storage, status=IN_PROGRESS) == ["new", "middle", "old"]
        assert list_ids(storage) == ["new", "middle", "old"]

    def test_expired_operations_are_left_out(self, backend: Backend) -> None:
        """Expired operations are passed over and the page is filled with live ones."""
        storage = backend.storage
        for number in range(12):
            save(storage, f"op{number}", status=COMPLETED, retention=100 if number % 3 else 1000)
        backend.age(101)
        live = ["op9", "op6", "op3", "op0"]
        assert list_ids(storage, limit=3) == live
        assert list_ids(storage, status=COMPLETED) == live

    def test_records_are_whole(self, storage: Storage) -> None:
        """A listing returns the records as `find_background` does."""
        save(storage, data=b"\x00\xff", status=FAILED, retention=60)
        page = storage.list_background("tenant")
        assert page.records == [storage.find_background("op")]
