"""
What every storage does for a user, told in one breath for each kind of record.
"""

from __future__ import annotations

import pytest

from dotmac_tasks.errors import StaleRecordError
from dotmac_tasks.models import (
    ClaimOutcome,
    Lease,
    LeaseKind,
    OperationStatus,
    SettleOutcome,
    WriteOutcome,
)
from dotmac_tasks.storage import Storage
from support.backends import make_request


def tell_life_of_a_key(storage: Storage) -> None:
    """
    Claim, refuse, complete, replay and refuse again.
    """
    mine, other = make_request(owner="a"), make_request(owner="b")
    claimed = storage.claim_operation(mine)
    assert claimed.outcome is ClaimOutcome.CLAIMED
    assert storage.claim_operation(other).outcome is ClaimOutcome.IN_PROGRESS
    assert storage.renew_leases([Lease(LeaseKind.OPERATION, "k", "a", 30)]) == [True]
    lost = storage.complete_operation(other, claimed.fencing_token, b"forged", failed=False)
    assert lost is WriteOutcome.LOST
    done = storage.complete_operation(mine, claimed.fencing_token, b"answer", failed=False)
    assert done is WriteOutcome.DONE
    replayed = storage.claim_operation(other)
    assert (replayed.outcome, replayed.payload) == (ClaimOutcome.FINISHED, b"answer")
    reused = storage.claim_operation(make_request(owner="b", fingerprint="other"))
    assert reused.outcome is ClaimOutcome.MISMATCH
    assert storage.settle_operation("k", b"late", failed=True) is SettleOutcome.FINISHED


def tell_life_of_a_lock(storage: Storage) -> None:
    """
    Acquire, refuse, renew, release and acquire with a larger token.
    """
    first = storage.acquire_lock("l", "a", 30)
    assert first is not None
    assert storage.acquire_lock("l", "b", 30) is None
    assert storage.renew_leases([Lease(LeaseKind.LOCK, "l", "a", 30)]) == [True]
    assert storage.release_lock("l", "b") is False
    assert storage.release_lock("l", "a") is True
    second = storage.acquire_lock("l", "b", 30)
    assert second is not None
    assert second.fencing_token > first.fencing_token


def tell_life_of_an_operation(storage: Storage) -> None:
    """
    Create, change, list and refuse a writer that comes late.
    """

    def save(status: OperationStatus, revision: int, request_id: str) -> None:
        storage.save_background(
            "op",
            "tenant",
            status,
            b"data",
            expected_revision=revision,
            request_id=request_id,
            retention=60 if status is OperationStatus.COMPLETED else None,
        )

    save(OperationStatus.PENDING, 0, "r1")
    save(OperationStatus.COMPLETED, 1, "r2")
    with pytest.raises(StaleRecordError):
        save(OperationStatus.FAILED, 1, "r3")
    page = storage.list_background("tenant", status=OperationStatus.COMPLETED)
    assert page.records == [storage.find_background("op")]
    assert page.cursor is None
    assert storage.list_background("other").records == []
