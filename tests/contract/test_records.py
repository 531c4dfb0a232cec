from __future__ import annotations

import pytest

from dotmac_tasks.models import OperationStatus, StoredOperation
from dotmac_tasks.storage import Storage
from support.backends import Backend, make_request

TEXTS = [
    "",
    "plain",
    "a:b%3A",
    "1:2:3",
    "ünïcode ✓ 💳",
    "line\nbreak\r\n\ttab",
    "{braces}",
    "x" * 5000,
]


class TestText:
    @pytest.mark.parametrize("text", TEXTS)
    def test_text_comes_back_unchanged(self, storage: Storage, text: str) -> None:
        """Tenant, user, type and fingerprint of any text survive a record's whole life."""
        request = make_request(
            tenant_id=text, user_id=text, operation_type=text, fingerprint=text or "f"
        )
        assert get_texts(storage.ensure_operation(request)) == get_texts_of(request)
        token = storage.claim_operation(request).fencing_token
        assert get_texts(storage.find_operation("k")) == get_texts_of(request)
        storage.complete_operation(request, token, text.encode(), failed=False)
        record = storage.find_operation("k")
        assert get_texts(record) == get_texts_of(request)
        assert record is not None
        assert record.payload == text.encode()

    @pytest.mark.parametrize("text", TEXTS[1:])
    def test_names_of_any_text_are_told_apart(self, storage: Storage, text: str) -> None:
        """Keys, owners and lock names may hold any text."""
        storage.claim_operation(make_request(key=text, owner=text))
        assert storage.claim_operation(make_request(key=text, owner="x")).outcome == "in_progress"
        assert storage.release_operation(text, text) == "done"
        assert storage.acquire_lock(text, text, 30) is not None
        assert storage.acquire_lock(text, "other", 30) is None
        assert storage.release_lock(text, text) is True

    @pytest.mark.parametrize("text", TEXTS)
    def test_background_text_comes_back_unchanged(self, storage: Storage, text: str) -> None:
        """A tenant of any text lists what it saved."""
        record = storage.save_background(
            "op",
            text,
            OperationStatus.PENDING,
            text.encode(),
            expected_revision=0,
            request_id=text,
            retention=None,
        )
        assert (record.tenant_id, record.data) == (text, text.encode())
        assert storage.list_background(text).records == [record]


def get_texts(record: StoredOperation | None) -> tuple[str, ...]:
    """
    Return the texts of a record.
    """
    assert record is not None
    return record.tenant_id, record.user_id, record.operation_type, record.fingerprint


def get_texts_of(request: object) -> tuple[str, ...]:
    """
    Return the same texts of a request.
    """
    return tuple(
        getattr(request, name) for name in ("tenant_id", "user_id", "operation_type", "fingerprint")
    )


class TestImmutability:
    def test_record_that_was_read_does_not_change(self, storage: Storage) -> None:
        """A record in a caller's hands stays as it was read, whatever is written later."""
        request = make_request()
        token = storage.claim_operation(request).fencing_token
        read = storage.find_operation("k")
        assert read is not None
        copy = tuple(read)
        storage.complete_operation(request, token, b"x", failed=False)
        assert tuple(read) == copy
        with pytest.raises(AttributeError):
            read.payload = b"changed"  # type: ignore[misc]

    def test_page_that_was_read_is_the_callers(self, storage: Storage) -> None:
        """Emptying a page that was read removes nothing from the storage."""
        storage.save_background(
            "op",
            "tenant",
            OperationStatus.PENDING,
            b"x",
            expected_revision=0,
            request_id="r",
            retention=None,
        )
        storage.list_background("tenant").records.clear()
        assert len(storage.list_background("tenant").records) == 1


class TestInstants:
    def test_instants_are_in_order(self, storage: Storage) -> None:
        """Creation comes before the lease's end, and that before the expiry."""
        storage.claim_operation(make_request(lease=30, ttl=100))
        record = storage.find_operation("k")
        assert record is not None
        assert record.expires_ms is not None
        assert record.created_ms < record.lease_ms < record.expires_ms

    def test_fractions_of_a_second_count(self, backend: Backend) -> None:
        """Durations below a second are kept, not rounded to whole ones."""
        storage = backend.storage
        storage.claim_operation(make_request(lease=1000.25, ttl=0.5))
        record = storage.find_operation("k")
        assert record is not None
        assert record.lease_ms - record.created_ms == pytest.approx(1_000_250, abs=2)
        assert record.expires_ms == pytest.approx(record.lease_ms + 500, abs=2)

    def test_long_durations_count(self, storage: Storage) -> None:
        """A retention of a hundred years is one."""
        seconds = 100 * 365 * 86400
        storage.claim_operation(make_request(ttl=seconds, lease=30))
        record = storage.find_operation("k")
        assert record is not None
        assert record.expires_ms == record.lease_ms + seconds * 1000
