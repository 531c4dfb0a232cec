"""
What operators ask of a storage: to see the records, and to give a key back.
"""

from __future__ import annotations

from typing import Any

import pytest

from dotmac_tasks.models import (
    ClaimOutcome,
    Lease,
    LeaseKind,
    OperationStatus,
    SettleOutcome,
    StoredOperation,
    WriteOutcome,
)
from dotmac_tasks.storage import Storage
from support.backends import Backend, make_request

PAYLOAD = b'1j{"answer":42}'


def claim(storage: Storage, key: str = "k", **changes: Any) -> int:
    """
    Claim a key and return the fencing token.
    """
    return storage.claim_operation(make_request(key=key, **changes)).fencing_token


def finish(storage: Storage, key: str = "k", *, failed: bool = False, **changes: Any) -> None:
    """
    Claim a key and record an outcome for it.
    """
    request = make_request(key=key, **changes)
    token = storage.claim_operation(request).fencing_token
    done = storage.complete_operation(request, token, PAYLOAD, failed=failed)
    assert done is WriteOutcome.DONE


def defer(storage: Storage, key: str = "k", *, seconds: float = 60, **changes: Any) -> None:
    """
    Claim a key and leave it for anybody to settle.
    """
    request = make_request(key=key, **changes)
    storage.claim_operation(request)
    assert storage.defer_operation(request, seconds) is WriteOutcome.DONE


def walk(storage: Storage, *, limit: int = 100, **filters: Any) -> list[StoredOperation]:
    """
    Walk all pages of a listing and return the records in order.
    """
    records: list[StoredOperation] = []
    cursor = None
    for _ in range(10_000):
        page = storage.list_operations(limit=limit, cursor=cursor, **filters)
        assert len(page.records) <= limit
        assert page.unreadable == []
        records += page.records
        cursor = page.cursor
        if cursor is None:
            return records
    raise AssertionError("the cursor never ends")


def names(records: list[StoredOperation]) -> list[str]:
    """
    Return the keys of records, in their order.
    """
    return [record.key for record in records]


def find(storage: Storage, key: str = "k") -> StoredOperation:
    """
    Return a record that is there.
    """
    record = storage.find_operation(key)
    assert record is not None
    return record


class TestState:
    def test_running_claim_is_not_abandoned(self, storage: Storage) -> None:
        """A claim with a live lease is neither abandoned nor deferred."""
        claim(storage)
        record = find(storage)
        assert (record.abandoned, record.deferred) == (False, False)

    @pytest.mark.parametrize("policy", ["rerun", "refuse"])
    def test_claim_is_abandoned_after_its_lease(self, backend: Backend, policy: str) -> None:
        """A claim is abandoned from the end of its lease on, by the storage's clock."""
        claim(backend.storage, lease=100, on_abandoned=policy)
        backend.age(90)
        assert not find(backend.storage).abandoned
        backend.age(11)
        assert find(backend.storage).abandoned

    def test_renewed_claim_is_not_abandoned(self, backend: Backend) -> None:
        """A claim that was abandoned and is renewed runs again."""
        claim(backend.storage, lease=100)
        backend.age(101)
        backend.storage.renew_leases([Lease(LeaseKind.OPERATION, "k", "a", 100)])
        assert not find(backend.storage).abandoned

    def test_deferred_claim_is_told_apart(self, backend: Backend) -> None:
        """A deferred claim says so, and is abandoned when its time is over."""
        defer(backend.storage, seconds=100)
        record = find(backend.storage)
        assert (record.deferred, record.abandoned) == (True, False)
        backend.age(101)
        record = find(backend.storage)
        assert (record.deferred, record.abandoned) == (True, True)

    def test_other_records_have_no_lease(self, backend: Backend) -> None:
        """What is pending or finished is neither deferred nor abandoned, whatever it was."""
        storage = backend.storage
        storage.ensure_operation(make_request(key="pending"))
        finish(storage, "finished")
        defer(storage, "settled", seconds=10)
        backend.age(11)
        storage.settle_operation("settled", b"x", failed=False)
        for key in ("pending", "finished", "settled"):
            record = find(storage, key)
            assert (record.deferred, record.abandoned) == (False, False), key

    @pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)) * 40])
    def test_size_is_that_of_the_payload(self, storage: Storage, payload: bytes) -> None:
        """The size of an outcome is told where it is found and where it is listed."""
        request = make_request()
        storage.complete_operation(request, 1, payload, failed=False)
        assert find(storage).payload_size == len(payload)
        (listed,) = walk(storage)
        assert (listed.payload, listed.payload_size) == (b"", len(payload))


class TestList:
    def test_empty_storage_has_an_empty_page(self, storage: Storage) -> None:
        """Where there is nothing the page is empty and the last one."""
        assert storage.list_operations() == ([], [], None)

    def test_what_never_expires_comes_first(self, storage: Storage) -> None:
        """Claims that stay until they are resolved come first, then what expires last."""
        for ttl in (200, 100, 300):
            finish(storage, f"finished-{ttl}", ttl=ttl)
        claim(storage, "stays", on_abandoned="refuse", ttl=100)
        storage.ensure_operation(make_request(key="pending", ttl=250))
        assert names(walk(storage)) == [
            "stays",
            "finished-300",
            "pending",
            "finished-200",
            "finished-100",
        ]

    def test_records_are_as_found_but_for_their_payload(self, backend: Backend) -> None:
        """Records of every kind are listed as they are found, without their payload."""
        storage = backend.storage
        claim(storage, "abandoned", lease=10)
        claim(storage, "unresolved", lease=10, on_abandoned="refuse")
        backend.age(11)
        storage.ensure_operation(make_request(key="pending", user_id=""))
        claim(storage, "running")
        defer(storage, "deferred")
        finish(storage, "completed")
        finish(storage, "failed", failed=True)
        listed = walk(storage)
        assert len(listed) == 7
        for record in listed:
            assert record == find(storage, record.key)._replace(payload=b"")

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 20, 21, 1000])
    def test_pages_hold_each_once(self, storage: Storage, limit: int) -> None:
        """The pages of any size hold each record exactly once, those of one instant too."""
        for number in range(10):
            claim(storage, f"stays-{number}", on_abandoned="refuse")
            finish(storage, f"finished-{number}")
        listed = names(walk(storage, limit=limit))
        assert len(listed) == 20
        assert set(listed[:10]) == {f"stays-{number}" for number in range(10)}
        assert set(listed[10:]) == {f"finished-{number}" for number in range(10)}

    def test_page_that_is_not_the_last_is_full(self, storage: Storage) -> None:
        """A page of fewer than there are holds as many as asked for, and has a cursor."""
        for number in range(3):
            finish(storage, f"k{number}")
        page = storage.list_operations(limit=2)
        assert len(page.records) == 2
        assert page.cursor is not None
        assert len(storage.list_operations(limit=2, cursor=page.cursor).records) == 1
        assert storage.list_operations(limit=3).cursor is None

    @pytest.mark.parametrize("policy", ["rerun", "refuse"])
    def test_what_stays_is_listed_while_others_go(self, storage: Storage, policy: str) -> None:
        """What is released or discarded during a walk, the last seen too, hides nothing."""
        for number in range(30):
            claim(storage, f"k{number:02}", on_abandoned=policy)
        seen: list[str] = []
        cursor = None
        gone = set()
        while True:
            page = storage.list_operations(limit=4, cursor=cursor)
            seen += names(page.records)
            for key in names(page.records)[1:]:
                storage.release_operation(key, "a")
                gone.add(key)
            left = sorted({f"k{number:02}" for number in range(30)} - set(seen))
            for key in left[::5]:
                storage.release_operation(key, "a")
                gone.add(key)
            cursor = page.cursor
            if cursor is None:
                break
        stayed = {f"k{number:02}" for number in range(30)} - gone
        assert stayed <= set(seen)
        assert len(seen) == len(set(seen))

    @pytest.mark.parametrize("policy", ["rerun", "refuse"])
    def test_what_stays_is_listed_while_others_come(self, storage: Storage, policy: str) -> None:
        """What is claimed during a walk, before or behind its place, hides nothing."""
        expected = {f"k{number:02}" for number in range(0, 30, 3)}
        for key in expected:
            claim(storage, key, on_abandoned=policy)
        seen: list[str] = []
        cursor = None
        for step in range(1000):
            page = storage.list_operations(limit=3, cursor=cursor)
            seen += names(page.records)
            claim(storage, f"k{step % 30:02}-{step}", on_abandoned=policy, ttl=60 + 120 * step)
            cursor = page.cursor
            if cursor is None or expected <= set(seen):
                break
        assert expected <= set(seen)
        assert len(seen) == len(set(seen))

    def test_names_of_any_text_are_walked(self, storage: Storage) -> None:
        """Keys of one instant are walked in one order, whatever letters they are made of."""
        keys = ["a", "A", "aa", "a ", "ä", "z", "Z", "é", "\U0001f4b3", "10", "9", "-", "_", "a-b"]
        for key in keys:
            claim(storage, key, on_abandoned="refuse")
        for limit in (1, 4):
            listed = names(walk(storage, limit=limit))
            assert listed == sorted(keys, key=str.encode, reverse=True)

    def test_tenants_are_apart(self, storage: Storage) -> None:
        """With a tenant only that tenant's records are listed; without one all are."""
        for number in range(6):
            claim(storage, f"k{number}", tenant_id=f"t{number % 2}")
        assert set(names(walk(storage, tenant_id="t0", limit=1))) == {"k0", "k2", "k4"}
        assert walk(storage, tenant_id="t") == []
        assert len(walk(storage)) == 6

    def test_status_filters(self, storage: Storage) -> None:
        """With a status exactly the records that have it are listed."""
        storage.ensure_operation(make_request(key="pending"))
        claim(storage, "running")
        defer(storage, "deferred")
        finish(storage, "completed")
        finish(storage, "failed", failed=True)
        assert names(walk(storage, status=OperationStatus.PENDING)) == ["pending"]
        running = names(walk(storage, status=OperationStatus.IN_PROGRESS, limit=1))
        assert sorted(running) == ["deferred", "running"]
        assert names(walk(storage, status=OperationStatus.COMPLETED)) == ["completed"]
        assert names(walk(storage, status=OperationStatus.FAILED, tenant_id="tenant")) == ["failed"]
        assert walk(storage, status=OperationStatus.FAILED, tenant_id="other") == []

    def test_expired_records_are_left_out(self, backend: Backend) -> None:
        """What is past its retention is not listed, purged or not."""
        storage = backend.storage
        for number in range(12):
            finish(storage, f"k{number}", ttl=100 if number % 3 else 1000)
        backend.age(101)
        assert set(names(walk(storage, limit=2))) == {"k0", "k3", "k6", "k9"}
        assert storage.list_operations(limit=4).cursor is None

    @pytest.mark.parametrize(
        "cursor", ["", "x", "inf", "nan:61", "5:", "inf:6", "inf:zz", "inf:ff"]
    )
    def test_cursor_that_is_none_does_no_harm(self, storage: Storage, cursor: str) -> None:
        """A cursor that no listing returned is the caller's mistake, or the place that it names."""
        claim(storage)
        try:
            page = storage.list_operations(cursor=cursor)
        except ValueError:
            return
        assert cursor == "inf:ff"
        assert names(page.records) == ["k"]

    def test_listing_changes_nothing(self, storage: Storage) -> None:
        """A listing leaves records and counts as they are."""
        claim(storage)
        before = find(storage), storage.get_stats()
        walk(storage)
        assert (find(storage), storage.get_stats()) == before


class TestDiscard:
    def test_pending_key_is_given_back(self, storage: Storage) -> None:
        """A pending record goes, and nothing of it stays behind."""
        storage.ensure_operation(make_request())
        assert storage.discard_operation("k") is SettleOutcome.DONE
        assert storage.find_operation("k") is None
        assert storage.get_stats().idempotency_keys == 0

    @pytest.mark.parametrize("policy", ["rerun", "refuse"])
    def test_abandoned_key_is_given_back(self, backend: Backend, policy: str) -> None:
        """An abandoned claim goes whatever its policy, and the next claim runs the work."""
        storage = backend.storage
        token = claim(storage, lease=10, on_abandoned=policy)
        backend.age(11)
        assert storage.discard_operation("k") is SettleOutcome.DONE
        assert walk(storage) == []
        assert storage.get_stats().idempotency_keys == 0
        reply = storage.claim_operation(make_request(owner="b", fingerprint="other"))
        assert reply.outcome is ClaimOutcome.CLAIMED
        assert reply.fencing_token > token

    def test_running_key_stays(self, storage: Storage) -> None:
        """A live lease protects its record, whatever is asked for."""
        claim(storage)
        before = find(storage)
        for asked in ({}, {"finished": True}, {"unreadable": True}, {"fencing_token": 99}):
            assert storage.discard_operation("k", **asked) is SettleOutcome.RUNNING  # type: ignore[arg-type]
        assert find(storage) == before

    def test_deferred_key_stays_within_its_time(self, backend: Backend) -> None:
        """A claim that was handed on is running until its time is over."""
        storage = backend.storage
        defer(storage, seconds=100)
        assert storage.discard_operation("k", finished=True) is SettleOutcome.RUNNING
        backend.age(101)
        assert storage.discard_operation("k") is SettleOutcome.DONE
        assert storage.settle_operation("k", b"x", failed=False) is SettleOutcome.ABSENT

    @pytest.mark.parametrize("failed", [False, True])
    def test_finished_key_goes_only_if_asked(self, storage: Storage, failed: bool) -> None:
        """A recorded outcome stays unless the caller says that finished ones may go."""
        finish(storage, failed=failed)
        before = find(storage)
        assert storage.discard_operation("k", unreadable=True) is SettleOutcome.FINISHED
        assert find(storage) == before
        assert storage.discard_operation("k", finished=True) is SettleOutcome.DONE
        assert storage.claim_operation(make_request()).outcome is ClaimOutcome.CLAIMED

    def test_absent_key_is_absent(self, backend: Backend) -> None:
        """What was never there, is expired or was given back before is absent."""
        storage = backend.storage
        assert storage.discard_operation("k", finished=True) is SettleOutcome.ABSENT
        finish(storage, ttl=10)
        backend.age(11)
        assert storage.discard_operation("k", finished=True) is SettleOutcome.ABSENT
        storage.ensure_operation(make_request())
        assert storage.discard_operation("k") is SettleOutcome.DONE
        assert storage.discard_operation("k") is SettleOutcome.ABSENT

    def test_foreign_key_is_absent(self, storage: Storage) -> None:
        """Another tenant's record does not exist for this one, and stays."""
        finish(storage)
        outcome = storage.discard_operation("k", tenant_id="other", finished=True, unreadable=True)
        assert outcome is SettleOutcome.ABSENT
        outcome = storage.discard_operation("k", tenant_id="tenant", finished=True)
        assert outcome is SettleOutcome.DONE

    def test_key_that_was_claimed_anew_stays(self, backend: Backend) -> None:
        """With the token that the caller saw, what was claimed since is left alone."""
        storage = backend.storage
        seen = claim(storage, lease=10)
        backend.age(11)
        later = claim(storage, owner="b", lease=10)
        backend.age(11)
        assert storage.discard_operation("k", fencing_token=seen) is SettleOutcome.CHANGED
        assert find(storage).fencing_token == later
        assert storage.discard_operation("k", fencing_token=later) is SettleOutcome.DONE

    def test_outcome_recorded_since_stays(self, backend: Backend) -> None:
        """With the token that the caller saw, a later outcome is not taken for the seen one."""
        storage = backend.storage
        seen = claim(storage, lease=10)
        backend.age(11)
        finish(storage, owner="b")
        outcome = storage.discard_operation("k", fencing_token=seen, finished=True)
        assert outcome is SettleOutcome.CHANGED
        assert find(storage).payload == PAYLOAD

    def test_token_of_a_pending_key_is_zero(self, storage: Storage) -> None:
        """What nobody has claimed has the token 0."""
        storage.ensure_operation(make_request())
        assert storage.discard_operation("k", fencing_token=1) is SettleOutcome.CHANGED
        assert storage.discard_operation("k", fencing_token=0) is SettleOutcome.DONE


class TestLateOwner:
    def test_completion_after_the_discard_is_written_whole(self, backend: Backend) -> None:
        """An owner that wakes before a retry records its outcome, and the retry gets it."""
        storage = backend.storage
        request = make_request(lease=10, on_abandoned="refuse")
        token = storage.claim_operation(request).fencing_token
        backend.age(11)
        assert storage.discard_operation("k") is SettleOutcome.DONE
        outcome = storage.complete_operation(request, token, PAYLOAD, failed=False)
        assert outcome is WriteOutcome.DONE
        record = find(storage)
        assert (record.fingerprint, record.payload) == (request.fingerprint, PAYLOAD)
        reply = storage.claim_operation(make_request(owner="b"))
        assert (reply.outcome, reply.payload) == (ClaimOutcome.FINISHED, PAYLOAD)

    def test_completion_after_a_retry_is_lost(self, backend: Backend) -> None:
        """Once a retry has claimed the key, an owner that wakes up can record nothing."""
        storage = backend.storage
        request = make_request(lease=10)
        token = storage.claim_operation(request).fencing_token
        backend.age(11)
        storage.discard_operation("k")
        later = claim(storage, owner="b")
        assert later > token
        assert storage.renew_leases([Lease(LeaseKind.OPERATION, "k", "a", 10)]) == [False]
        assert storage.release_operation("k", "a") is WriteOutcome.LOST
        assert storage.defer_operation(request, 60) is WriteOutcome.LOST
        outcome = storage.complete_operation(request, token, PAYLOAD, failed=False)
        assert outcome is WriteOutcome.LOST
        assert find(storage).fencing_token == later

    def test_renewal_after_the_discard_is_refused(self, backend: Backend) -> None:
        """A claim whose key was given back is lost and does not come back by a renewal."""
        storage = backend.storage
        claim(storage, lease=10)
        backend.age(11)
        storage.discard_operation("k")
        assert storage.renew_leases([Lease(LeaseKind.OPERATION, "k", "a", 10)]) == [False]
        assert storage.find_operation("k") is None
