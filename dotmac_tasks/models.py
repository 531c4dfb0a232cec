"""
The records that the library hands out, and their statuses.

Everything here is immutable and may be shared between threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple, Self

from dotmac_tasks.clock import SystemClock

__all__ = [
    "AbandonedPolicy",
    "BackgroundOperation",
    "BackgroundPage",
    "BackgroundRecord",
    "ClaimOutcome",
    "ClaimReply",
    "ClaimRequest",
    "IdempotencyKey",
    "KeyPage",
    "KeySummary",
    "Lease",
    "LeaseKind",
    "LockGrant",
    "OperationPage",
    "OperationStatus",
    "PurgeReport",
    "Quota",
    "SettleOutcome",
    "StorageHealth",
    "StorageStats",
    "StoredOperation",
    "StoredPage",
    "UnreadableRecord",
    "WriteOutcome",
    "dump_record",
    "parse_instants",
]

AbandonedPolicy = Literal["rerun", "refuse"]


class OperationStatus(StrEnum):
    """
    Where one piece of work is; the values are part of the stored format.
    """

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class IdempotencyKey:
    """
    What is recorded under one idempotency key.

    Attributes:
        key: The stored key.
        tenant_id: The tenant that it belongs to.
        user_id: The principal that created it, if there was one.
        operation_type: What kind of work it stands for.
        status: Where that work is.
        created_at: When the record was made, by the storage's clock.
        expires_at: When it vanishes; None for one that stays until decided.
        result: The recorded result; meaningful once the status is final.
        error: The recorded failure text, if it failed.
        fencing_token: Number of the claim that holds it; 0 while unclaimed.
        lease_until: When the executor's lease ends, while in progress.
        deferred: Whether it is in progress and handed on to a worker.
        abandoned: Whether it is in progress and its lease is over, by the
            storage's clock: nobody is known to be at work on it.
        outcome_kind: What is recorded: ``result``, ``response``, ``failure``, or
            ``not-kept`` for work that is done and whose response was not kept.
        outcome_size: Bytes that the outcome takes; 0 until there is one.
        response_status: Status code of a recorded response.
        not_kept_reason: Why a response was not kept, in a word.
    """

    key: str
    tenant_id: str
    user_id: str | None
    operation_type: str
    status: OperationStatus
    created_at: datetime
    expires_at: datetime | None
    result: Any = None
    error: str | None = None
    fencing_token: int = 0
    lease_until: datetime | None = None
    deferred: bool = False
    abandoned: bool = False
    outcome_kind: str | None = None
    outcome_size: int = 0
    response_status: int | None = None
    not_kept_reason: str | None = None

    def is_expired(self, now: datetime | None = None) -> bool:
        """
        Tell whether the retention is over; without `now`, by the local clock.
        """
        if self.expires_at is None:
            return False
        return (now or SystemClock().now()) >= self.expires_at

    def is_completed(self) -> bool:
        """
        Tell whether a result is recorded.
        """
        return self.status is OperationStatus.COMPLETED

    def is_failed(self) -> bool:
        """
        Tell whether a failure is recorded.
        """
        return self.status is OperationStatus.FAILED

    def is_in_progress(self) -> bool:
        """
        Tell whether an executor has claimed it and recorded nothing yet.
        """
        return self.status is OperationStatus.IN_PROGRESS

    def to_dict(self) -> dict[str, Any]:
        """
        Return it as plain JSON data; instants in ISO 8601.
        """
        return dump_record(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """
        Build it from what `to_dict` returned, here or in an earlier version.
        """
        return cls(**_from_dict(data))


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySummary:
    """
    What a listing shows of one idempotency key: all but its outcome.

    Attributes:
        key: The stored key.
        tenant_id: The tenant that it belongs to.
        user_id: The principal that created it, if there was one.
        operation_type: What kind of work it stands for.
        status: Where that work is.
        created_at: When the record was made, by the storage's clock.
        expires_at: When it vanishes; None for one that stays until decided.
        fencing_token: Number of the claim that holds it; 0 while unclaimed.
        lease_until: When the executor's lease ends, while in progress.
        deferred: Whether it is in progress and handed on to a worker.
        abandoned: Whether it is in progress and its lease is over.
        outcome_size: Bytes that the outcome takes; 0 until there is one.
    """

    key: str
    tenant_id: str
    user_id: str | None
    operation_type: str
    status: OperationStatus
    created_at: datetime
    expires_at: datetime | None
    fencing_token: int
    lease_until: datetime | None
    deferred: bool
    abandoned: bool
    outcome_size: int

    def to_dict(self) -> dict[str, Any]:
        """
        Return it as plain JSON data; instants in ISO 8601.
        """
        return dump_record(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundOperation:
    """
    The unified view of one piece of work, for listing and for status pages.

    Attributes:
        operation_id: Its id.
        tenant_id: The tenant that it belongs to.
        user_id: Who asked for it, if known.
        operation_type: What kind of work it is.
        status: Where it is.
        created_at: When it was made, by the storage's clock.
        updated_at: When it last changed.
        expires_at: When a finished one vanishes; None while it is not finished.
        idempotency_key: The stored key it belongs to, if there is one.
        saga_id: The saga it belongs to, if there is one.
        parameters: What it was asked to do, as JSON data.
        result: Its result, once completed.
        error: Why it failed, once failed.
        revision: Grows with every change, from 1.
    """

    operation_id: str
    tenant_id: str
    user_id: str | None
    operation_type: str
    status: OperationStatus
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    idempotency_key: str | None = None
    saga_id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    revision: int = 1

    def to_dict(self) -> dict[str, Any]:
        """
        Return it as plain JSON data; instants in ISO 8601.
        """
        return dump_record(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """
        Build it from what `to_dict` returned.
        """
        return cls(**_from_dict(data))


class OperationPage(NamedTuple):
    """
    One page of a listing, newest first.

    Attributes:
        operations: The operations.
        cursor: Pass it to get the next page; None after the last one.
    """

    operations: list[BackgroundOperation]
    cursor: str | None


class UnreadableRecord(NamedTuple):
    """
    An idempotency record that cannot be read; it is left as it is.

    Attributes:
        key: The stored key.
        reason: Why it cannot be read.
    """

    key: str
    reason: str


class KeyPage(NamedTuple):
    """
    One page of idempotency keys: first those that stay until decided, then by expiry.

    Attributes:
        keys: The keys, those that expire last first.
        unreadable: Those of this part of the listing that cannot be read.
        cursor: Pass it to get the next page; None after the last one. It may
            hold a key that the filters left out, another tenant's too.
    """

    keys: list[KeySummary]
    unreadable: list[UnreadableRecord]
    cursor: str | None


class ClaimOutcome(StrEnum):
    """
    What a storage answers to a claim.
    """

    CLAIMED = "claimed"
    """The caller holds the key now and runs the work."""
    TAKEN_OVER = "taken_over"
    """As claimed, and an earlier executor's lease had ended without an outcome."""
    FINISHED = "finished"
    """An outcome is recorded; it is in the reply."""
    IN_PROGRESS = "in_progress"
    """Another executor holds a live lease."""
    UNRESOLVED = "unresolved"
    """The executor's lease is over and its policy is `refuse`."""
    MISMATCH = "mismatch"
    """The key was used with a different fingerprint."""
    FOREIGN = "foreign"
    """The key belongs to another tenant."""
    OVER_QUOTA = "over_quota"
    """The key is new, and its caller may have no more of them in this window."""


class Quota(NamedTuple):
    """
    How many new keys one caller may have.

    A window begins with the first new key that is counted and lasts as long as it
    did then. What is counted stays counted, whatever becomes of the key.

    Attributes:
        caller: Who is counted, as `keys.quota_caller` names them.
        limit: Most new keys in one window.
        window: Its length, in seconds.
    """

    caller: str
    limit: int
    window: float


class ClaimRequest(NamedTuple):
    """
    Who asks for which key, to do what.

    Attributes:
        key: The stored key.
        owner: Random token of this claim; names the executor until the end.
        tenant_id: The tenant.
        user_id: The principal; empty if there is none.
        operation_type: What kind of work.
        fingerprint: Digest of the request; empty where the key is derived from it.
        ttl: Retention of the outcome, in seconds from completion.
        lease: Seconds that the claim lives without a renewal.
        on_abandoned: What may happen when the lease ends without an outcome.
        takeover: Fencing token of an abandoned claim that is taken over although
            its policy is `refuse`, because somebody is about to decide; 0 for none.
        quota: How many new keys the caller may have; None for any number.
    """

    key: str
    owner: str
    tenant_id: str
    user_id: str
    operation_type: str
    fingerprint: str
    ttl: float
    lease: float
    on_abandoned: AbandonedPolicy = "rerun"
    takeover: int = 0
    quota: Quota | None = None


class ClaimReply(NamedTuple):
    """
    A storage's answer to a claim.

    Attributes:
        outcome: What the caller may do.
        fencing_token: Of the caller's claim, or of an unresolved one; else 0.
        payload: The recorded outcome as stored, if finished.
        remaining: Seconds until the running executor's lease ends, or until the
            window of a quota is over.
    """

    outcome: ClaimOutcome
    fencing_token: int = 0
    payload: bytes = b""
    remaining: float = 0.0


class WriteOutcome(StrEnum):
    """
    What a storage answers to an owner's write.
    """

    DONE = "done"
    """It is written, now or by an earlier sending of the same command."""
    LOST = "lost"
    """Refused: the claim belongs to somebody else, or an outcome is recorded."""


class SettleOutcome(StrEnum):
    """
    What a storage answers to a write that comes without a claim.
    """

    DONE = "done"
    """It is written now: the outcome is recorded, or the key is given back."""
    FINISHED = "finished"
    """An outcome was recorded before; it stays."""
    RUNNING = "running"
    """A live executor holds the key; nothing was written."""
    ABSENT = "absent"
    """There is no such record for this tenant."""
    CHANGED = "changed"
    """The key was claimed anew since the caller looked; nothing was written."""


class StoredOperation(NamedTuple):
    """
    An idempotency record as a storage holds it; instants in milliseconds.

    Attributes:
        key: The stored key.
        tenant_id: The tenant.
        user_id: The principal; empty if there is none.
        operation_type: What kind of work.
        status: Where it is.
        fingerprint: Digest of the request; empty where there is none.
        created_ms: When it was made, by the storage's clock.
        expires_ms: When it vanishes; None if it stays until it is resolved.
        fencing_token: Of the last claim; 0 while unclaimed.
        lease_ms: When the lease ends; 0 unless in progress.
        payload: The recorded outcome; empty until there is one, and in a listing.
        payload_size: Bytes that the outcome has, in a listing too.
        deferred: Whether it is in progress and handed on, for anybody to settle.
        abandoned: Whether it is in progress and its lease is over, by the
            storage's clock: nobody is known to be at work on it.
    """

    key: str
    tenant_id: str
    user_id: str
    operation_type: str
    status: OperationStatus
    fingerprint: str
    created_ms: int
    expires_ms: int | None
    fencing_token: int = 0
    lease_ms: int = 0
    payload: bytes = b""
    payload_size: int = 0
    deferred: bool = False
    abandoned: bool = False


class StoredPage(NamedTuple):
    """
    One page of the idempotency records, without their outcomes.

    Attributes:
        records: The records; those that never expire first, then by expiry, the
            latest first.
        unreadable: Those of this part of the listing that cannot be read.
        cursor: Opaque; pass it to get the next page. None after the last one. It
            may hold the key of a record that the filters left out.
    """

    records: list[StoredOperation]
    unreadable: list[UnreadableRecord]
    cursor: str | None


class BackgroundRecord(NamedTuple):
    """
    A background operation as a storage holds it; instants in milliseconds.

    Attributes:
        operation_id: Its id.
        tenant_id: The tenant.
        status: Where it is.
        revision: Grows by one with every write, from 1.
        created_ms: When it was made, by the storage's clock.
        updated_ms: When it was last written.
        expires_ms: When it vanishes; None while it is not finished.
        data: The rest of it, opaque to the storage.
    """

    operation_id: str
    tenant_id: str
    status: OperationStatus
    revision: int
    created_ms: int
    updated_ms: int
    expires_ms: int | None
    data: bytes


class BackgroundPage(NamedTuple):
    """
    One page of a tenant's background operations, newest first.

    Attributes:
        records: The records.
        cursor: Opaque; pass it to get the next page. None after the last one.
    """

    records: list[BackgroundRecord]
    cursor: str | None


class LeaseKind(StrEnum):
    """
    What a lease is held on.
    """

    OPERATION = "operation"
    LOCK = "lock"


class Lease(NamedTuple):
    """
    One lease that a process holds and renews.

    Attributes:
        kind: What it is held on.
        name: The stored key, or the lock's name.
        owner: The random token it was taken with.
        seconds: How long it is extended, from the storage's now.
    """

    kind: LeaseKind
    name: str
    owner: str
    seconds: float


class LockGrant(NamedTuple):
    """
    A lock that was acquired.

    Attributes:
        fencing_token: Grows with every acquisition of any lock.
    """

    fencing_token: int


class PurgeReport(NamedTuple):
    """
    What one batch of a cleanup did.

    Attributes:
        removed: Expired entries that were removed, or would have been.
        more: Whether more are waiting.
    """

    removed: int
    more: bool


class StorageHealth(NamedTuple):
    """
    What a storage says of itself; secrets are left out.

    Attributes:
        healthy: Whether it answers and can be written to.
        backend: Its short name.
        latency: Seconds that the answer took.
        warnings: What will hurt, one sentence each.
        details: Facts about it, such as the server's version.
    """

    healthy: bool
    backend: str
    latency: float
    warnings: tuple[str, ...] = ()
    details: Mapping[str, str | int | float | bool | None] = {}


class StorageStats(NamedTuple):
    """
    How much a storage holds.

    Attributes:
        idempotency_keys: Records of idempotency, unexpired or not yet purged.
        operations: Background operations, likewise.
    """

    idempotency_keys: int
    operations: int


def dump_record(record: Any) -> dict[str, Any]:
    """
    Return the fields of a record as plain JSON data, records inside of it included.
    """
    return {name: _dump(getattr(record, name)) for name in record.__dataclass_fields__}


def parse_instants(data: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """
    Return a copy of what `dump_record` gave, with these instants read where they are text.
    """
    values = dict(data)
    for name in names:
        if isinstance(values.get(name), str):
            values[name] = datetime.fromisoformat(values[name])
    return values


def _dump(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_dump(item) for item in value]
    if is_dataclass(value):
        return dump_record(value)
    return value


def _from_dict(data: Mapping[str, Any]) -> dict[str, Any]:
    values = parse_instants(data, "created_at", "updated_at", "expires_at", "lease_until")
    values["status"] = OperationStatus(values["status"])
    return values
