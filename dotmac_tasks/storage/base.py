"""
The contract that every storage keeps.

A storage speaks in verbs of the domain. Each verb is atomic: of any number of
concurrent calls, in any number of processes, the outcome is that of some
order in which they ran one after the other. A verb that creates or claims can
be sent again with the same arguments and then answers as it did the first
time, so that a client library may resend after a lost reply.

Rules for all verbs:

* Time is the storage's own clock; a caller passes durations in seconds, never
  instants. Durations are positive.
* A record past its expiry is absent, whether or not it was removed yet.
* `StorageUnavailableError`: nothing was changed. `StorageTimeoutError`: it may
  have happened. `CorruptRecordError`: the record is damaged or of a newer
  format; it is left as it is. No exception of a driver escapes.
* A call ends within the storage's timeout, everything included.
* Payloads and data are opaque bytes and come back unchanged.
* Whatever is stored for long carries a version of its format.
* A stored key is never `keys.RESERVED_KEY`; callers see to that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from dotmac_tasks.models import (
    BackgroundPage,
    BackgroundRecord,
    ClaimReply,
    ClaimRequest,
    Lease,
    LockGrant,
    OperationStatus,
    PurgeReport,
    SettleOutcome,
    StorageHealth,
    StorageStats,
    StoredOperation,
    StoredPage,
    WriteOutcome,
)

__all__ = ["Storage"]


class Storage(ABC):
    """
    Keeps idempotency records, background operations and locks.

    Instances are shared by all threads and usable in the child of a fork.
    Constructing one opens no connection and starts no thread.
    """

    name: ClassVar[str]
    """Short name of the backend, for errors, health and metrics."""

    @property
    def breaker_state(self) -> str | None:
        """
        State of the circuit breaker, for metrics; None where there is none. Asks nobody.
        """
        return None

    @property
    def is_refusing(self) -> bool:
        """
        Whether a call that is made now would fail at once, unsent. Asks nobody.

        Where it is true, requests get their answer without a claim; a storage
        without a circuit breaker never refuses.
        """
        return False

    # Idempotency records

    @abstractmethod
    def claim_operation(self, request: ClaimRequest) -> ClaimReply:
        """
        Claim a key, take over a lease that is over, or report what is there.

        Atomic: reading the record and writing the claim with its new fencing
        token and index entry. The fencing token is larger than every one given
        before: max(counter, stored) + 1. The claim expires with its lease plus
        `ttl`, or never where `on_abandoned` is ``refuse``.

        Absent or expired: the record is created, in progress, and the answer is
        CLAIMED. Pending: claimed, keeping its creation time. In progress under
        the same owner: the same answer as the first time, and the lease starts
        anew; a deferred claim is CLAIMED, and its time stays. In progress with a
        lease that is over:
        TAKEN_OVER, or UNRESOLVED with the abandoned claim's fencing token where
        the stored policy is ``refuse``, unless the request names just that token
        as its `takeover`: of all who were told it, one takes over. In progress
        with a live lease: IN_PROGRESS with the seconds that remain.
        Finished: FINISHED with the outcome.

        A takeover or the claim of a pending record leaves the record its user and
        its type, and gives it the request's `ttl` and `on_abandoned`.

        Checked before all of that but absence: another tenant's record answers
        FOREIGN, another fingerprint MISMATCH; both show nothing of the record.
        A record without a fingerprint (made pending without one) takes the
        caller's.

        With a `quota`, an absent or expired key is counted for the caller in the
        same atomic step. Where the limit is reached, nothing is written or counted
        and the answer is OVER_QUOTA with the seconds that the window has left. A
        key that is there is neither counted nor refused, so that a claim that is
        sent again counts once.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def ensure_operation(self, request: ClaimRequest) -> StoredOperation:
        """
        Create the record pending if it is absent, otherwise return it as it is.

        Atomic: the look and the creation with its index entry. `owner`, `lease`
        and `on_abandoned` of the request are not used. An unclaimed record
        expires `ttl` after its creation. Another tenant's record is returned
        like any other; the caller compares.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def find_operation(self, key: str) -> StoredOperation | None:
        """
        Return the record, or None where it is absent or expired.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def complete_operation(
        self, request: ClaimRequest, fencing_token: int, payload: bytes, *, failed: bool
    ) -> WriteOutcome:
        """
        Record the outcome of a claim.

        Atomic: the check of the owner and the write of the outcome, the expiry
        (`ttl` from now) and the index entry. The fingerprint, tenant, user, type
        and creation time survive.

        In progress under the same owner, whether or not the lease is over: DONE.
        Finished by the same owner: DONE, and the first outcome stays. Held or
        finished by anybody else, or pending: LOST. Absent or expired: the
        finished record is written whole from the request, since nobody holds the
        key and no other outcome counts any more, and the fencing counter is raised
        to at least `fencing_token`.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def release_operation(self, key: str, owner: str) -> WriteOutcome:
        """
        Give a claimed key back, so that the next claim runs the work.

        Atomic: the check of the owner and the removal with its index entry.
        Absent: DONE. In progress under another owner, finished or pending: LOST
        and nothing changes.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def defer_operation(self, request: ClaimRequest, seconds: float) -> WriteOutcome:
        """
        Turn a claim into one that anybody may settle within so many seconds.

        Atomic: the check of the owner and the write. The record stays in
        progress, its lease ends in `seconds`, and `settle_operation` treats it
        as having no live executor. The owner may still release it, and may still
        complete it. Sent again by the owner: DONE. Settled meanwhile: DONE, the
        outcome stays. Absent: written whole from the request. Held by another
        owner: LOST.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def settle_operation(
        self, key: str, payload: bytes, *, failed: bool, tenant_id: str | None = None
    ) -> SettleOutcome:
        """
        Record an outcome without holding the claim.

        Atomic: the check of the status and the write. Pending, deferred, or in
        progress with a lease that is over: DONE. In progress with a live lease:
        RUNNING. Finished: FINISHED, the first outcome stays. Absent, expired, or
        of another tenant than `tenant_id` (where one is given): ABSENT. The
        outcome is kept for the record's own `ttl` from now.

        Raises:
            StorageError: As the module's rules say.
        """

    # Idempotency records, for operators

    @abstractmethod
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

        Those that never expire come first, then those that expire last; without
        `tenant_id` those of all tenants. A page looks at a bounded number of
        records, however many there are, so that it may be short or empty although
        more follow: only a cursor of None means the end.

        Not atomic against writes. A record that stays where it is in this order is
        in the listing, whatever comes and goes beside it; one whose expiry moves
        meanwhile, as that of a running claim does, may be missed or come twice.
        Expired ones are left out. One that cannot be read is in `unreadable`, but
        only where no filter is given: it has no tenant and no status.

        Raises:
            ValueError: The cursor is none that this method returned.
            StorageError: As the module's rules say.
        """

    @abstractmethod
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
        Give a key back without holding its claim, so that the next claim runs the work.

        Atomic: the check of the status and the removal with its index entry.
        Pending, or in progress with a lease that is over: DONE. In progress with a
        live lease, or deferred and still within its time: RUNNING. Finished: DONE
        with `finished`, FINISHED without. Absent, expired, or of another tenant
        than `tenant_id` (where one is given): ABSENT. With `fencing_token`, one
        whose last claim has another: CHANGED, unless it is RUNNING. Sent again
        after the first was carried out, it answers ABSENT, or what it finds then.

        With `unreadable` a record that cannot be read is removed as well, whatever
        it may be: DONE. Not with `tenant_id`, which cannot be compared then.

        An owner that wakes up afterwards finds its claim absent or another's, like
        any owner whose record is gone. Its renewal is refused, and its completion
        is LOST once another has claimed the key. Before that its completion is
        written whole, which is right here as well: its work has been done after
        all, and the retry that the removal was for gets that outcome instead of
        doing it again. For the same reason a finished outcome that was removed
        comes back where its owner did not get the answer to its completion and
        sends it once more. `settle_operation` finds the key ABSENT, so the outcome
        of deferred work that ends after the removal is not recorded.

        Raises:
            CorruptRecordError: It cannot be read, and stays.
            StorageError: As the module's rules say.
        """

    # Leases

    @abstractmethod
    def renew_leases(self, leases: Sequence[Lease]) -> list[bool]:
        """
        Extend leases of claims and locks, in one round trip for hundreds.

        Each lease is atomic by itself. True where it now ends `seconds` from
        now. False where it is lost: absent, finished, deferred, or held by
        another owner; nothing is written for it. A claim whose lease is over but
        which nobody took is extended; a lock that expired is not taken anew.

        Raises:
            StorageError: As the module's rules say.
        """

    # Locks

    @abstractmethod
    def acquire_lock(self, name: str, owner: str, ttl: float) -> LockGrant | None:
        """
        Take a lock, or return None while somebody else holds it.

        Atomic: the look and the write. The fencing token is larger than any
        given before, to locks and to claims. Sent again by the holder: the same
        grant, with the time to live started anew.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def release_lock(self, name: str, owner: str) -> bool:
        """
        Give a lock back; True if nobody holds it by this owner afterwards.

        Atomic: the check of the owner and the removal. False where somebody
        else holds it, and then nothing changes; absent is True.

        Raises:
            StorageError: As the module's rules say.
        """

    # Background operations

    @abstractmethod
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

        An id is not empty and holds no colon, since names of indexes may hold one;
        `keys.validate_operation_id` says so. No other id is ever found.

        Atomic: the check and the write of the record and its index entries. An
        expected revision of 0 means that it must be absent. With `retention` it
        expires so many seconds from now, without it stays. Sent again with the
        same `request_id`, and nobody wrote since: answers as the first time.

        Raises:
            InvalidKeyError: The id cannot be one.
            StaleRecordError: The revision is another one, the record is absent
                where it should be there, or it belongs to another tenant.
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def find_background(self, operation_id: str) -> BackgroundRecord | None:
        """
        Return the background operation, or None where absent or expired.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
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

        Not atomic against writes: an operation whose status changes meanwhile
        may be missing from a page that is filtered by status. Costs the same
        however many there are. Expired ones are left out, and
        so is one that cannot be read, which is logged.

        Raises:
            StorageError: As the module's rules say.
        """

    # Housekeeping

    @abstractmethod
    def purge_expired(self, limit: int, *, dry_run: bool = False) -> PurgeReport:
        """
        Remove at most `limit` expired records or leftovers in the indexes.

        Goes by the indexes of expiry; removes nothing that is live, whatever
        runs beside it, a second purge included. With `dry_run` it only counts,
        and counts all of them.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def check_health(self) -> StorageHealth:
        """
        Ask the storage how it is; answers unhealthy instead of raising.
        """

    @abstractmethod
    def get_stats(self) -> StorageStats:
        """
        Count what is stored, from the indexes.

        Raises:
            StorageError: As the module's rules say.
        """

    @abstractmethod
    def close(self) -> None:
        """
        Give up connections; may be called twice. A later call opens anew.
        """
