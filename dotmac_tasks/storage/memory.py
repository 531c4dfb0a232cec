"""
A storage in the memory of one process, for tests, tools and single-process services.

How it is laid out: one dictionary for each kind of record; one queue of all by
their expiry; the finished records in the order in which they may be forgotten;
and sorted numbers for listing.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from heapq import nlargest
from math import inf
from typing import ClassVar, TypeAlias, TypeVar

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.errors import (
    ConfigurationError,
    StaleRecordError,
    StorageUnavailableError,
)
from dotmac_tasks.fork import reset_after_fork
from dotmac_tasks.keys import validate_operation_id
from dotmac_tasks.models import (
    BackgroundPage,
    BackgroundRecord,
    ClaimOutcome,
    ClaimReply,
    ClaimRequest,
    Lease,
    LeaseKind,
    LockGrant,
    OperationStatus,
    PurgeReport,
    Quota,
    SettleOutcome,
    StorageHealth,
    StorageStats,
    StoredOperation,
    StoredPage,
    WriteOutcome,
)
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.cursors import format_cursor, parse_cursor
from dotmac_tasks.storage.indexes import Entry, ExpiryQueue, SortedNumbers
from dotmac_tasks.typing import Clock

__all__ = ["MemoryStorage"]

# Reading a member through its enum costs more than the comparison it is read for.
_PENDING = OperationStatus.PENDING
_IN_PROGRESS = OperationStatus.IN_PROGRESS
_COMPLETED = OperationStatus.COMPLETED
_FAILED = OperationStatus.FAILED
_CLAIMED = ClaimOutcome.CLAIMED
_TAKEN_OVER = ClaimOutcome.TAKEN_OVER
_DONE = WriteOutcome.DONE
_LOST = WriteOutcome.LOST

_NEARLY_FULL = 0.9


class _Operation(Entry):
    """
    An idempotency record; guarded by the storage's lock.

    `request` is that of the last claim, with the user, the type and the
    fingerprint of the record. `offset` turns monotonic seconds into the
    milliseconds that are shown; it is fixed at creation, so that a step of the
    wall clock does not pull the instants of one record apart.
    """

    __slots__ = (
        "created_ms",
        "deferred",
        "fencing_token",
        "lease_until",
        "offset",
        "payload",
        "request",
        "settled",
        "status",
        "taken_over",
    )

    def __init__(
        self,
        request: ClaimRequest,
        status: OperationStatus,
        expires: float,
        created_ms: int,
        offset: float,
    ) -> None:
        self.name = request.key
        self.expires = expires
        self.due = inf
        self.ticket = 0
        self.request = request
        self.status = status
        self.created_ms = created_ms
        self.offset = offset
        self.fencing_token = 0
        self.lease_until = 0.0
        self.payload = b""
        self.taken_over = False
        self.deferred = False
        self.settled = False

    def show(self, now: float) -> StoredOperation:
        """
        Return an immutable copy.
        """
        request = self.request
        in_progress = self.status is _IN_PROGRESS
        return StoredOperation(
            key=request.key,
            tenant_id=request.tenant_id,
            user_id=request.user_id,
            operation_type=request.operation_type,
            status=self.status,
            fingerprint=request.fingerprint,
            created_ms=self.created_ms,
            expires_ms=None if self.expires == inf else round(self.expires * 1000 + self.offset),
            fencing_token=self.fencing_token,
            lease_ms=round(self.lease_until * 1000 + self.offset) if in_progress else 0,
            payload=self.payload,
            payload_size=len(self.payload),
            deferred=in_progress and self.deferred,
            abandoned=in_progress and self.lease_until <= now,
        )


class _Background(Entry):
    """
    A background operation; guarded by the storage's lock.
    """

    __slots__ = ("order", "record", "request_id")

    def __init__(self, record: BackgroundRecord, expires: float, order: int) -> None:
        super().__init__(record.operation_id, expires)
        self.record = record
        self.order = order
        self.request_id = ""


class _HeldLock(Entry):
    """
    A lock that somebody holds; guarded by the storage's lock.
    """

    __slots__ = ("fencing_token", "owner")

    def __init__(self, name: str, owner: str, expires: float, fencing_token: int) -> None:
        super().__init__(name, expires)
        self.owner = owner
        self.fencing_token = fencing_token


class _Window(Entry):
    """
    How many new keys a caller has had in a window; guarded by the storage's lock.
    """

    __slots__ = ("used",)

    def __init__(self, name: str, expires: float) -> None:
        super().__init__(name, expires)
        self.used = 0


_E = TypeVar("_E", bound=Entry)
_Listing: TypeAlias = tuple[str, OperationStatus | None]


class MemoryStorage(Storage):
    """
    Keeps everything in this process; gone when it ends, unseen by any other.

    Instances are shared by all threads. A forked child starts with a copy of
    its own, or with nothing where the fork came in the middle of a write; from
    then on the two do not see each other, so that several processes behind one
    service need another storage.

    Leases and expiry are measured by the monotonic clock; the wall clock is
    only shown. When it is full, expired records make room first, then the
    finished ones that were recorded first; a claim, a pending record, a lock and
    the counter of a quota never do. Where nothing else is left,
    `StorageUnavailableError` is raised.

    Args:
        max_records: How many records of all kinds it holds together.
        clock: Tells the time; the system's by default.

    Raises:
        ConfigurationError: `max_records` is below 1.
    """

    name: ClassVar[str] = "memory"

    def __init__(self, *, max_records: int = 100_000, clock: Clock | None = None) -> None:
        if max_records < 1:
            raise ConfigurationError("max_records", "must be at least 1.", value=max_records)
        self._max_records = max_records
        self._clock = clock or SystemClock()
        self._monotonic = self._clock.monotonic
        # Guards every attribute that `_reset` sets, and all that is reached through them.
        # Reentrant: a signal handler or a finaliser may call the storage right here.
        self._lock = threading.RLock()
        self._reset()
        reset_after_fork(self)

    def _reset(self) -> None:
        self._operations: dict[str, _Operation] = {}
        self._backgrounds: dict[str, _Background] = {}
        self._locks: dict[str, _HeldLock] = {}
        self._windows: dict[str, _Window] = {}
        self._fence = 0
        self._expiry = ExpiryQueue()
        self._finished: OrderedDict[Entry, None] = OrderedDict()
        self._listings: dict[_Listing, SortedNumbers] = {}
        self._by_order: dict[int, _Background] = {}
        self._orders = itertools.count(1)
        # What turns the monotonic clock's milliseconds into the wall clock's, and since when.
        self._offset = 0.0
        self._looked_at = -inf

    def after_fork(self) -> None:
        """
        Give the child a lock of its own, and a state that is whole.
        """
        if not self._lock.acquire(blocking=False):
            self._reset()
        self._lock = threading.RLock()

    # Idempotency records

    def claim_operation(self, request: ClaimRequest) -> ClaimReply:
        """
        Claim a key, take over a lease that is over, or report what is there.
        """
        with self._lock:
            now = self._monotonic()
            record = self._operations.get(request.key)
            if record is None or record.expires <= now:
                return self._claim_new(request, now)
            refusal = _compare(record, request)
            if refusal is not None:
                return ClaimReply(refusal)
            status = record.status
            if status is _IN_PROGRESS:
                return self._claim_in_progress(record, request, now)
            if status is _PENDING:
                self._take(record, request, now)
                return ClaimReply(_CLAIMED, record.fencing_token)
            return ClaimReply(ClaimOutcome.FINISHED, 0, record.payload)

    def _claim_new(self, request: ClaimRequest, now: float) -> ClaimReply:
        window = None
        if request.quota is not None:
            window = self._open_window(request.quota, now)
            if window.used >= request.quota.limit:
                return ClaimReply(ClaimOutcome.OVER_QUOTA, remaining=window.expires - now)
        record = self._create(request, _IN_PROGRESS, now)
        self._take(record, request, now)
        if window is not None:
            window.used += 1
        return ClaimReply(_CLAIMED, record.fencing_token)

    def _claim_in_progress(
        self, record: _Operation, request: ClaimRequest, now: float
    ) -> ClaimReply:
        if record.request.owner == request.owner:
            if not record.deferred:
                _extend(record, now + request.lease)
            outcome = _TAKEN_OVER if record.taken_over else _CLAIMED
            return ClaimReply(outcome, record.fencing_token)
        if record.lease_until > now:
            return ClaimReply(ClaimOutcome.IN_PROGRESS, remaining=record.lease_until - now)
        token = record.fencing_token
        if record.request.on_abandoned == "refuse" and token != request.takeover:
            return ClaimReply(ClaimOutcome.UNRESOLVED, token)
        self._take(record, request, now, taken_over=True)
        return ClaimReply(_TAKEN_OVER, record.fencing_token)

    def ensure_operation(self, request: ClaimRequest) -> StoredOperation:
        """
        Create the record pending if it is absent, otherwise return it as it is.
        """
        with self._lock:
            now = self._monotonic()
            record = self._operations.get(request.key)
            if record is None or record.expires <= now:
                record = self._create(request._replace(owner=""), _PENDING, now)
            return record.show(now)

    def find_operation(self, key: str) -> StoredOperation | None:
        """
        Return the record, or None where it is absent or expired.
        """
        with self._lock:
            now = self._monotonic()
            record = _find_live(self._operations, key, now)
            return None if record is None else record.show(now)

    def complete_operation(
        self, request: ClaimRequest, fencing_token: int, payload: bytes, *, failed: bool
    ) -> WriteOutcome:
        """
        Record the outcome of a claim.
        """
        with self._lock:
            now = self._monotonic()
            record = self._operations.get(request.key)
            if record is None or record.expires <= now:
                record = self._create(request, _IN_PROGRESS, now)
                record.fencing_token = fencing_token
                self._fence = max(self._fence, fencing_token)
            elif record.request.owner != request.owner:
                return _LOST
            elif record.status is not _IN_PROGRESS:
                return _LOST if record.settled else _DONE
            self._finish(record, payload, failed, now + request.ttl)
            return _DONE

    def release_operation(self, key: str, owner: str) -> WriteOutcome:
        """
        Give a claimed key back, so that the next claim runs the work.
        """
        with self._lock:
            record = _find_live(self._operations, key, self._monotonic())
            if record is None:
                return _DONE
            if record.status is not _IN_PROGRESS or record.request.owner != owner:
                return _LOST
            self._remove(record)
            return _DONE

    def defer_operation(self, request: ClaimRequest, seconds: float) -> WriteOutcome:
        """
        Turn a claim into one that anybody may settle within so many seconds.
        """
        with self._lock:
            now = self._monotonic()
            record = self._operations.get(request.key)
            if record is None or record.expires <= now:
                record = self._create(request, _IN_PROGRESS, now)
                self._take(record, request, now)
            elif record.request.owner != request.owner:
                return _LOST
            elif record.status is not _IN_PROGRESS:
                return _DONE
            record.deferred, record.taken_over = True, False
            _extend(record, now + seconds)
            return _DONE

    def settle_operation(
        self, key: str, payload: bytes, *, failed: bool, tenant_id: str | None = None
    ) -> SettleOutcome:
        """
        Record an outcome without holding the claim.
        """
        with self._lock:
            now = self._monotonic()
            record = _find_live(self._operations, key, now)
            if record is None or tenant_id not in (None, record.request.tenant_id):
                return SettleOutcome.ABSENT
            if record.status is _IN_PROGRESS:
                if record.lease_until > now and not record.deferred:
                    return SettleOutcome.RUNNING
            elif record.status is not _PENDING:
                return SettleOutcome.FINISHED
            record.settled = True
            self._finish(record, payload, failed, now + record.request.ttl)
            return SettleOutcome.DONE

    # Idempotency records, for operators

    def list_operations(
        self,
        *,
        tenant_id: str | None = None,
        status: OperationStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> StoredPage:
        """
        Return one page of the records, without their payloads.

        Looks at all of them, of which there are at most `max_records`, and keeps
        every other call waiting meanwhile. All of them can be read.

        Raises:
            ValueError: The cursor is none that this method returned.
        """
        before = None if cursor is None else _parse_place(cursor)
        with self._lock:
            now = self._monotonic()
            matching = (
                record
                for record in self._operations.values()
                if record.expires > now
                and tenant_id in (None, record.request.tenant_id)
                and status in (None, record.status)
                and (before is None or _get_place(record) < before)
            )
            found = nlargest(limit + 1, matching, key=_get_place)
            records = [record.show(now)._replace(payload=b"") for record in found[:limit]]
        following = None
        if len(found) > limit:
            last = found[limit - 1]
            following = format_cursor(last.expires, last.name.encode("utf-8", "surrogatepass"))
        return StoredPage(records, [], following)

    def discard_operation(
        self,
        key: str,
        *,
        tenant_id: str | None = None,
        finished: bool = False,
        fencing_token: int | None = None,
        unreadable: bool = False,
    ) -> SettleOutcome:
        """
        Give a key back without holding its claim; every record can be read.
        """
        with self._lock:
            now = self._monotonic()
            record = _find_live(self._operations, key, now)
            if record is None or tenant_id not in (None, record.request.tenant_id):
                return SettleOutcome.ABSENT
            if record.status is _IN_PROGRESS and record.lease_until > now:
                return SettleOutcome.RUNNING
            if fencing_token not in (None, record.fencing_token):
                return SettleOutcome.CHANGED
            if record.status in (_COMPLETED, _FAILED) and not finished:
                return SettleOutcome.FINISHED
            self._remove(record)
            return SettleOutcome.DONE

    # Leases

    def renew_leases(self, leases: Sequence[Lease]) -> list[bool]:
        """
        Extend leases of claims and locks.
        """
        with self._lock:
            now = self._monotonic()
            return [self._renew(lease, now) for lease in leases]

    def _renew(self, lease: Lease, now: float) -> bool:
        if lease.kind is LeaseKind.LOCK:
            held = _find_live(self._locks, lease.name, now)
            if held is None or held.owner != lease.owner:
                return False
            self._expiry.keep_until(held, now + lease.seconds)
            return True
        record = _find_live(self._operations, lease.name, now)
        if (
            record is None
            or record.status is not _IN_PROGRESS
            or record.deferred
            or record.request.owner != lease.owner
        ):
            return False
        _extend(record, now + lease.seconds)
        return True

    # Locks

    def acquire_lock(self, name: str, owner: str, ttl: float) -> LockGrant | None:
        """
        Take a lock, or return None while somebody else holds it.
        """
        with self._lock:
            now = self._monotonic()
            held = self._locks.get(name)
            if held is None or held.expires <= now:
                self._make_room(held, now)
                self._fence += 1
                held = _HeldLock(name, owner, now + ttl, self._fence)
                self._locks[name] = held
            elif held.owner != owner:
                return None
            self._expiry.keep_until(held, now + ttl)
            return LockGrant(held.fencing_token)

    def release_lock(self, name: str, owner: str) -> bool:
        """
        Give a lock back; True if nobody holds it by this owner afterwards.
        """
        with self._lock:
            held = _find_live(self._locks, name, self._monotonic())
            if held is None:
                return True
            if held.owner != owner:
                return False
            self._remove(held)
            return True

    # Background operations

    def save_background(
        self,
        operation_id: str,
        tenant_id: str,
        status: OperationStatus,
        data: bytes,
        *,
        expected_revision: int,
        request_id: str,
        retention: float | None,
    ) -> BackgroundRecord:
        """
        Write a background operation if its revision is the expected one.
        """
        validate_operation_id(operation_id)
        with self._lock:
            now = self._monotonic()
            entry = _find_live(self._backgrounds, operation_id, now)
            foreign = entry is not None and entry.record.tenant_id != tenant_id
            if entry is not None and entry.request_id == request_id and not foreign:
                return entry.record
            revision = 0 if entry is None else entry.record.revision
            if foreign or revision != expected_revision:
                raise StaleRecordError(self.name, f"Operation {operation_id}")
            now_ms = self._read_wall_clock(now)
            record = BackgroundRecord(
                operation_id,
                tenant_id,
                status,
                revision + 1,
                now_ms if entry is None else entry.record.created_ms,
                now_ms,
                None if retention is None else now_ms + round(retention * 1000),
                data,
            )
            expires = inf if retention is None else now + retention
            self._put_background(entry, record, request_id, now, expires)
            return record

    def find_background(self, operation_id: str) -> BackgroundRecord | None:
        """
        Return the background operation, or None where absent or expired.
        """
        with self._lock:
            entry = _find_live(self._backgrounds, operation_id, self._monotonic())
            return None if entry is None else entry.record

    def list_background(
        self,
        tenant_id: str,
        *,
        status: OperationStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> BackgroundPage:
        """
        Return one page of a tenant's operations, newest first.

        Raises:
            ValueError: The cursor is none that this method returned.
        """
        below: float = inf if cursor is None else _parse_cursor(cursor)
        with self._lock:
            now = self._monotonic()
            page: list[BackgroundRecord] = []
            expired: list[_Background] = []
            next_cursor = None
            for number in self._iterate(tenant_id, status, below):
                entry = self._by_order.get(number)
                if entry is None:
                    continue  # An interrupt in the middle of its removal left the number behind.
                if entry.expires <= now:
                    expired.append(entry)
                elif len(page) < limit:
                    page.append(entry.record)
                    below = number
                else:
                    next_cursor = str(below)
                    break
            # Whoever meets them removes them, so that no later listing has to pass them again.
            for entry in expired:
                self._remove(entry)
            return BackgroundPage(page, next_cursor)

    # Housekeeping

    def purge_expired(self, limit: int, *, dry_run: bool = False) -> PurgeReport:
        """
        Remove at most `limit` expired records, or count them all.
        """
        with self._lock:
            now = self._monotonic()
            if dry_run:
                return PurgeReport(self._expiry.count_expired(now), False)
            removed = 0
            entry = self._expiry.find_expired(now)
            while entry is not None and removed < limit:
                self._remove(entry)
                removed += 1
                entry = self._expiry.find_expired(now)
            return PurgeReport(removed, entry is not None)

    def check_health(self) -> StorageHealth:
        """
        Tell whether there is room for another record.
        """
        with self._lock:
            now = self._monotonic()
            count = self._count_records()
            room = count < self._max_records or bool(self._finished)
            healthy = room or self._expiry.find_expired(now) is not None
            latency = self._monotonic() - now
        warnings = []
        if count >= self._max_records * _NEARLY_FULL:
            warnings.append(
                f"{count} of at most {self._max_records} records are in use; a full storage "
                "forgets finished outcomes before their retention is over."
            )
        details = {"records": count, "max_records": self._max_records}
        return StorageHealth(healthy, self.name, latency, tuple(warnings), details)

    def get_stats(self) -> StorageStats:
        """
        Count what is stored.
        """
        with self._lock:
            return StorageStats(len(self._operations), len(self._backgrounds))

    def close(self) -> None:
        """
        Do nothing: there is no connection, and the records stay.
        """

    # All of what follows is called with the lock held.

    def _read_wall_clock(self, now: float) -> int:
        """
        Return milliseconds by the wall clock, which is looked at once a second.
        """
        if now - self._looked_at >= 1.0:
            self._offset = (self._clock.now().timestamp() - now) * 1000
            self._looked_at = now
        return round(now * 1000 + self._offset)

    def _create(self, request: ClaimRequest, status: OperationStatus, now: float) -> _Operation:
        """
        Put a new record in the place of what is expired or absent.

        It expires `ttl` from now, which is the earliest that any later write of
        its claim can mean.
        """
        self._make_room(self._operations.get(request.key), now)
        created_ms = self._read_wall_clock(now)
        expires = now + request.ttl
        record = _Operation(request, status, expires, created_ms, self._offset)
        self._operations[request.key] = record
        self._expiry.schedule(record, expires)
        return record

    def _open_window(self, quota: Quota, now: float) -> _Window:
        """
        Return the caller's window, a new one where there is none or it is over.
        """
        window = self._windows.get(quota.caller)
        if window is None or window.expires <= now:
            self._make_room(window, now)
            window = _Window(quota.caller, now + quota.window)
            self._windows[quota.caller] = window
            self._expiry.schedule(window, window.expires)
        return window

    def _take(
        self, record: _Operation, request: ClaimRequest, now: float, *, taken_over: bool = False
    ) -> None:
        """
        Give the record to the claim of `request`.
        """
        old = record.request
        if old is not request:
            # The fingerprint is the same by now, or the record had none.
            record.request = request._replace(
                user_id=old.user_id, operation_type=old.operation_type
            )
        self._fence += 1
        record.fencing_token = self._fence
        record.taken_over = taken_over
        record.deferred = False
        record.status = _IN_PROGRESS
        _extend(record, now + request.lease)
        # The claim may be completed at once, so its retention may be over that early.
        if now + request.ttl < record.due:
            self._expiry.schedule(record, now + request.ttl)

    def _put_background(
        self,
        entry: _Background | None,
        record: BackgroundRecord,
        request_id: str,
        now: float,
        expires: float,
    ) -> None:
        """
        Write a background operation, in a new entry where there is none that is live.
        """
        if entry is None:
            self._make_room(self._backgrounds.get(record.operation_id), now)
            entry = _Background(record, expires, next(self._orders))
            self._backgrounds[record.operation_id] = entry
        else:
            self._unlist(entry)
            self._finished.pop(entry, None)
            entry.record = record
        entry.request_id = request_id
        self._list(entry)
        if record.status is _COMPLETED or record.status is _FAILED:
            self._finished[entry] = None
        self._expiry.keep_until(entry, expires)

    def _finish(self, record: _Operation, payload: bytes, failed: bool, expires: float) -> None:
        record.payload = payload
        record.status = _FAILED if failed else _COMPLETED
        self._finished[record] = None
        self._expiry.keep_until(record, expires)

    def _make_room(self, expired: Entry | None, now: float) -> None:
        """
        Remove the expired namesake of what comes, or whatever may go if it is full.
        """
        if expired is not None:
            self._remove(expired)
        elif self._count_records() >= self._max_records:
            victim = self._expiry.find_expired(now) or next(iter(self._finished), None)
            if victim is None:
                raise StorageUnavailableError(
                    self.name, f"none of its {self._max_records} records may be forgotten"
                )
            self._remove(victim)

    def _count_records(self) -> int:
        return (
            len(self._operations) + len(self._backgrounds) + len(self._locks) + len(self._windows)
        )

    def _remove(self, entry: Entry) -> None:
        # The indexes first: a record that an interrupt leaves without them is still whole.
        self._expiry.discard(entry)
        self._finished.pop(entry, None)
        if isinstance(entry, _Operation):
            del self._operations[entry.name]
        elif isinstance(entry, _Background):
            self._unlist(entry)
            del self._backgrounds[entry.name]
        elif isinstance(entry, _Window):
            del self._windows[entry.name]
        else:
            del self._locks[entry.name]

    def _iterate(
        self, tenant_id: str, status: OperationStatus | None, below: float
    ) -> Iterator[int]:
        numbers = self._listings.get((tenant_id, status))
        return iter(()) if numbers is None else numbers.below(below)

    def _list(self, entry: _Background) -> None:
        self._by_order[entry.order] = entry
        for listing in _get_listings(entry):
            self._listings.setdefault(listing, SortedNumbers()).add(entry.order)

    def _unlist(self, entry: _Background) -> None:
        # Harmless for what is not listed: an interrupt may have ended an earlier removal.
        self._by_order.pop(entry.order, None)
        for listing in _get_listings(entry):
            numbers = self._listings.get(listing)
            if numbers is not None:
                numbers.remove(entry.order)
                if not numbers:
                    del self._listings[listing]


def _find_live(table: dict[str, _E], name: str, now: float) -> _E | None:
    entry = table.get(name)
    return None if entry is None or entry.expires <= now else entry


def _get_place(record: _Operation) -> tuple[float, str]:
    """
    Return where a record stands in a listing; the largest comes first.
    """
    return record.expires, record.name


def _parse_place(cursor: str) -> tuple[float, str]:
    expires, name = parse_cursor(cursor)
    return expires, name.decode("utf-8", "surrogatepass")


def _compare(record: _Operation, request: ClaimRequest) -> ClaimOutcome | None:
    """
    Return why the request may not see the record, or None where it may.
    """
    known = record.request
    if known.tenant_id != request.tenant_id:
        return ClaimOutcome.FOREIGN
    if known.fingerprint not in ("", request.fingerprint):
        return ClaimOutcome.MISMATCH
    return None


def _extend(record: _Operation, lease_until: float) -> None:
    """
    Move the end of the lease, and the expiry behind it.

    The expiry never comes before `due`: that is at most `ttl` after the claim.
    """
    request = record.request
    record.lease_until = lease_until
    record.expires = inf if request.on_abandoned == "refuse" else lease_until + request.ttl


def _get_listings(entry: _Background) -> tuple[_Listing, _Listing]:
    record = entry.record
    return (record.tenant_id, None), (record.tenant_id, record.status)


def _parse_cursor(cursor: str) -> int:
    try:
        return int(cursor)
    except ValueError:
        raise ValueError("This cursor is none that a listing returned.") from None
