"""
Claims on idempotency keys: who may run an operation, and what duplicates are told.

A claim goes through these states, and nothing leads out of the last one::

    open --complete, release, abandon--> ended
    open --defer--> deferred --complete, release, abandon--> ended
"""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.config import TasksConfig, to_seconds
from dotmac_tasks.errors import (
    ConfigurationError,
    CorruptRecordError,
    KeyReusedError,
    OperationInProgressError,
    OutcomeUnknownError,
    StorageError,
    StorageTimeoutError,
)
from dotmac_tasks.events import (
    ClaimLost,
    CompletionDelayed,
    EventDispatcher,
    IdempotencyHit,
    IdempotencyMiss,
    OperationCompleted,
    OperationEnqueued,
    OperationReconciled,
    QuotaExceeded,
    log_fields,
)
from dotmac_tasks.fork import reset_after_fork
from dotmac_tasks.heartbeat import Heartbeat, HeldClaim
from dotmac_tasks.models import (
    ClaimOutcome,
    ClaimReply,
    ClaimRequest,
    Lease,
    LeaseKind,
    WriteOutcome,
)
from dotmac_tasks.reconciliation import Decision, Reconciler
from dotmac_tasks.retry import POLLING
from dotmac_tasks.serialization import bound_payload
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.typing import Clock

__all__ = ["Claim", "GuardCounts", "IdempotencyGuard", "raise_for_reply"]

logger = logging.getLogger(__name__)

# Reading a member through its enum costs more than the comparison it is read for.
_CLAIMED = ClaimOutcome.CLAIMED
_TAKEN_OVER = ClaimOutcome.TAKEN_OVER
_FINISHED = ClaimOutcome.FINISHED
_IN_PROGRESS = ClaimOutcome.IN_PROGRESS
_UNRESOLVED = ClaimOutcome.UNRESOLVED
_OVER_QUOTA = ClaimOutcome.OVER_QUOTA
_DONE = WriteOutcome.DONE
_OPERATION = LeaseKind.OPERATION

# Over before anybody looks, and still a time that every storage can hold, in seconds.
_AT_ONCE = 0.001

_OPEN = 0
_DEFERRED = 1
_ENDED = 2


class Claim(HeldClaim):
    """
    The right to run an operation once and to record its outcome.

    Belongs to the one executor that got it; only `lost` may be read by others.
    The heartbeat's thread renews it while it is open, and owns the outcome from
    the moment in which `complete` could not write it.

    Attributes:
        request: What was claimed.
        fencing_token: Larger than that of every earlier claim; 0 if the reply
            to the claim was lost.
        taken_over: Whether an earlier executor had died over it.
    """

    __slots__ = (
        "_era",
        "_failed",
        "_guard",
        "_outage",
        "_payload",
        "_recorded",
        "_refused",
        "_releasing",
        "_state",
        "fencing_token",
        "request",
        "taken_over",
    )

    def __init__(
        self,
        guard: IdempotencyGuard,
        request: ClaimRequest,
        reply: ClaimReply,
        since: float,
        outage: StorageError | None = None,
    ) -> None:
        heartbeat = guard.heartbeat
        super().__init__(
            Lease(_OPERATION, request.key, request.owner, request.lease),
            since,
            heartbeat.max_execution,
        )
        self.request = request
        self.fencing_token = reply.fencing_token
        self.taken_over = reply.outcome is _TAKEN_OVER
        self._guard = guard
        self._era = heartbeat.era
        self._state = _OPEN
        self._recorded = False
        self._refused = False
        self._releasing = False
        # What the caller has waited for once: how this ends is written by the heartbeat.
        self._outage = outage
        self._payload = b""
        self._failed = False

    @property
    def lost(self) -> bool:
        """
        Whether the lease is over or was refused, so that another may be at work.

        True does not keep `complete` from trying: the storage decides.
        """
        return self._refused or self._guard.monotonic() >= self.until

    def complete(self, payload: bytes, *, failed: bool = False) -> bool:
        """
        Record the outcome.

        Where the storage cannot write it now, the heartbeat goes on trying and
        keeps the claim meanwhile; the caller has its answer at once. If the
        process dies before it is written, the lease decides.

        Returns:
            True if it is recorded or will be tried again; False if the claim was
            lost. Called again, or after another ending, it answers as the first
            completion did and writes nothing.
        """
        if not self._end():
            return self._recorded
        self._payload = payload
        self._failed = failed
        if self._outage is not None:
            self._recorded = self._hand_over(self._outage)
            return self._recorded
        try:
            outcome = self.write_outcome()
        except CorruptRecordError as error:
            self._report("An outcome cannot be recorded: %s", error)
            self._guard.note_lost(self, "corrupt")
        except StorageError as error:
            self._recorded = self._hand_over(error)
        else:
            self._recorded = outcome is _DONE
            self.on_settled(outcome)
        return self._recorded

    def release(self) -> bool:
        """
        Give the key back, so that the next claim runs the work.

        Returns:
            True if it is free now. False if it was lost, or if the storage
            failed: then the heartbeat goes on trying, and the lease decides who is
            first. Harmless after another ending.
        """
        if not self._end():
            return False
        if self._outage is not None:
            self._release_later(self._outage)
            return False
        try:
            outcome = self._guard.storage.release_operation(self.lease.name, self.lease.owner)
        except CorruptRecordError as error:
            self._report("A key cannot be released: %s", error)
            return False
        except StorageError as error:
            self._release_later(error)
            return False
        return outcome is _DONE

    def abandon(self) -> None:
        """
        Stop renewing and record nothing; the lease and the policy decide.
        """
        self._end()

    def hand_back(self) -> None:
        """
        End its lease at once and record nothing: the work is abandoned again.

        Should the storage fail, the lease ends by itself. Harmless after another ending.
        """
        if not self._end():
            return
        try:
            self._guard.storage.renew_leases([self.lease._replace(seconds=_AT_ONCE)])
        except StorageError as error:
            self._report("A lease could not be ended and runs out by itself: %s", error)

    def defer(self, seconds: float) -> bool:
        """
        Hand the work on, to be settled by anybody within so many seconds.

        The claim is not renewed any more, whatever comes of it. It can still be
        released or completed.

        Returns:
            True if it is written; False if the claim was lost.

        Raises:
            ConfigurationError: It is no finite positive time.
            StorageError: It is not known to be written; the lease decides.
        """
        seconds = to_seconds("timeout", seconds)
        if self._state == _ENDED:
            return False
        self._guard.heartbeat.drop(self)
        if self._era != self._guard.heartbeat.era:
            return False
        outcome = self._guard.storage.defer_operation(self.request, seconds)
        if outcome is not _DONE:
            self._state = _ENDED
            self._guard.note_lost(self, "taken_over")
            return False
        if self._state == _OPEN:
            self._state = _DEFERRED
            self._guard.note_deferred(self)
        return True

    def _end(self) -> bool:
        """
        End it; False if it had ended before, or belongs to the parent of a fork.

        It leaves the heartbeat before the storage is asked. The other way round, a
        renewal that follows the completion would find the record finished and
        report a loss that is none.
        """
        if self._state == _ENDED:
            return False
        self._state = _ENDED
        heartbeat = self._guard.heartbeat
        heartbeat.drop(self)
        return self._era == heartbeat.era

    def _hand_over(self, error: StorageError) -> bool:
        # A claim whose own reply was lost may not exist: there is nothing to renew.
        if not self._guard.heartbeat.retry_completion(self, renew=self.fencing_token > 0):
            self._report("Too many outcomes wait to be written; one is dropped: %s", error)
            self._guard.note_lost(self, "unwritten")
            return False
        self._report("An outcome could not be written and is tried again: %s", error)
        self._guard.note_delayed(self, error)
        return True

    def _release_later(self, error: StorageError) -> None:
        self._releasing = True
        if self._guard.heartbeat.retry_completion(self, renew=False):
            self._report("A key could not be released and is tried again: %s", error)
        else:
            self._report("A key could not be released; its lease decides: %s", error)

    def write_outcome(self) -> WriteOutcome:
        """
        Send the outcome to the storage, or give the key back where there is none.

        Raises:
            StorageError: It has to be sent again.
        """
        if self._releasing:
            return self._guard.storage.release_operation(self.lease.name, self.lease.owner)
        return self._guard.storage.complete_operation(
            self.request, self.fencing_token, self._payload, failed=self._failed
        )

    def on_settled(self, outcome: WriteOutcome | None) -> None:
        """
        Report what became of the outcome; None where it was given up.
        """
        if self._releasing:
            if outcome is None:
                self._report("A key could not be released for too long; its lease decides")
        elif outcome is _DONE:
            self._guard.note_completed(self, failed=self._failed)
        elif outcome is None:
            self._report("An outcome could not be written for too long and is given up")
            self._guard.note_lost(self, "unwritten")
        else:
            self._guard.note_lost(self, "taken_over")

    def on_lost(self) -> None:
        """
        Report that the storage refused to renew it.
        """
        self._guard.note_lost(self, "taken_over")

    def on_overdue(self) -> None:
        """
        Report that the executor runs for too long and is not renewed any more.
        """
        self._report("An operation runs for too long; its claim is not renewed any more")

    def mark_refused(self) -> bool:
        """
        Note the loss; False if it was noted before. The guard's lock is held.
        """
        first = not self._refused
        self._refused = True
        return first

    def _report(self, message: str, *args: object) -> None:
        logger.warning(message, *args, extra=log_fields(self.request))


class GuardCounts(NamedTuple):
    """
    What one guard of this process has seen since it was made.

    Attributes:
        executions: Claims that it got.
        takeovers: Those of them whose earlier executor had died.
        replays: Duplicates that got a recorded outcome.
        conflicts: Duplicates that got none: running, unresolved, mismatched.
        lost: Claims that were lost while their work ran.
        delayed: Outcomes that could not be written at once.
        over_quota: New keys that were refused, since their caller had too many.
    """

    executions: int = 0
    takeovers: int = 0
    replays: int = 0
    conflicts: int = 0
    lost: int = 0
    delayed: int = 0
    over_quota: int = 0


class IdempotencyGuard:
    """
    Claims keys for this process and answers duplicates.

    Instances may be shared between threads; `_lock` guards the counters and the
    mark of a lost claim, `_slots` counts the threads that wait.
    """

    def __init__(
        self,
        storage: Storage,
        heartbeat: Heartbeat,
        events: EventDispatcher,
        config: TasksConfig,
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.storage = storage
        self.heartbeat = heartbeat
        self.events = events
        self.config = config
        self.monotonic = clock.monotonic
        self._sleep = clock.sleep
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """
        Begin anew in a child: the parent's threads neither wait nor count here.
        """
        # Reentrant: the garbage collector may end a claim of another block right here.
        self._lock = threading.RLock()
        self._slots = threading.Semaphore(self.config.max_waiting)
        self._executions = 0
        self._takeovers = 0
        self._replays = 0
        self._conflicts = 0
        self._lost = 0
        self._delayed = 0
        self._over_quota = 0

    @property
    def counts(self) -> GuardCounts:
        """
        What was seen so far.
        """
        with self._lock:
            return GuardCounts(
                self._executions,
                self._takeovers,
                self._replays,
                self._conflicts,
                self._lost,
                self._delayed,
                self._over_quota,
            )

    def claim(
        self,
        request: ClaimRequest,
        *,
        wait: float = 0.0,
        reconciler: Reconciler | None = None,
    ) -> Claim | ClaimReply:
        """
        Become the executor of a key, or learn what is there.

        A claim that is returned is kept alive by the heartbeat until it ends.
        Where abandoned work waits for a decision, `reconciler` is asked for one.

        Args:
            request: Who asks for what, with an owner token of its own.
            wait: Seconds to wait for a running executor. At most
                `config.max_waiting` threads of a process wait; further ones are
                answered at once, so that waiting cannot use up a server's threads.
            reconciler: Says what became of abandoned work, while it is claimed for
                that; raises nothing but what ends the process or the thread.

        Raises:
            ConfigurationError: A duration of the request cannot work.
            StorageError: The storage failed at the first attempt. Later ones, while
                waiting, are made again: another executor was seen, so "not
                protected" is not an answer any more.
        """
        if not 0 < request.lease <= request.ttl:
            raise ConfigurationError(
                "lease",
                f"{request.lease:g} s must be over 0 and no longer than the retention "
                f"({request.ttl:g} s).",
                value=request.lease,
            )
        answer = self._attempt(request)
        if wait > 0 and isinstance(answer, ClaimReply) and answer.outcome is _IN_PROGRESS:
            answer = self._wait_for(request, answer, wait)
        if (
            reconciler is not None
            and isinstance(answer, ClaimReply)
            and answer.outcome is _UNRESOLVED
        ):
            answer = self._reconcile(request, answer, reconciler)
        if isinstance(answer, Claim):
            try:
                self._note_claimed(answer)
            except BaseException:
                # A time limit that struck while the log was written: nobody ends this claim.
                answer.abandon()
                raise
        else:
            self._note_refused(request, answer)
        return answer

    def unconfirmed(self, request: ClaimRequest, error: StorageError, since: float) -> Claim:
        """
        Stand in for a claim whose reply was lost, while its work runs unprotected.

        It is not renewed, since it may not exist. Its outcome is still tried: it is
        recorded unless somebody else has claimed the key.

        Args:
            request: What may have been claimed.
            error: How the reply was lost.
            since: When the claim was sent. If waiting for the reply took long, the
                caller waits no second time: how it ends is written by the heartbeat.
        """
        now = self.monotonic()
        outage = error if now - since >= self.config.storage_timeout / 2 else None
        return Claim(self, request, ClaimReply(_CLAIMED), now, outage)

    def forget(self, request: ClaimRequest, error: StorageError, since: float) -> None:
        """
        Give back a claim that may have been made, and whose work is not run.

        Takes what `unconfirmed` takes. Should it fail, the key is free when its
        lease is over.
        """
        self.unconfirmed(request, error, since).release()

    def _attempt(self, request: ClaimRequest) -> Claim | ClaimReply:
        # Before the command goes out: the lease ends no earlier than this plus its length.
        since = self.monotonic()
        reply = self.storage.claim_operation(request)
        if reply.outcome is not _CLAIMED and reply.outcome is not _TAKEN_OVER:
            return reply
        claim = Claim(self, request, reply, since)
        self.heartbeat.hold(claim)
        return claim

    def _reconcile(
        self, request: ClaimRequest, reply: ClaimReply, reconciler: Reconciler
    ) -> Claim | ClaimReply:
        """
        Take abandoned work over, ask what became of it, and do what the answer says.

        Naming the token of the claim that was seen, of all who saw it one asks. If this process
        dies before the answer is written, the work is abandoned as it was, and the next one asks.
        """
        try:
            # Whatever the policy is by now: undecided, it must stay refused.
            claim = self._attempt(
                request._replace(takeover=reply.fencing_token, on_abandoned="refuse")
            )
        except StorageError as error:
            # Not as at a first attempt: that this work was begun is known, so it may not run
            # unprotected. And not given back, since that would let the next one run it.
            logger.warning(
                "Abandoned work could not be taken over to be asked about: %s",
                error,
                extra=log_fields(request),
            )
            return reply
        if not isinstance(claim, Claim) or not claim.taken_over:
            # Or it was given back in between, by a person or a late release: it is new work.
            return claim
        try:
            decision, payload = reconciler.judge(claim.request, claim.fencing_token)
            self._note_reconciled(claim, decision)
        except BaseException:
            claim.abandon()
            raise
        if decision is Decision.RUN_AGAIN:
            if not claim.lost:
                return claim
            # The callback outlived its lease: another may have been told the same, and be at it.
            claim.abandon()
            return ClaimReply(_IN_PROGRESS, remaining=request.lease)
        if decision is Decision.ASK_PERSON:
            claim.hand_back()
            return reply
        if reconciler.is_http:
            payload = bound_payload(payload, self.config.max_response_bytes)
        if claim.complete(payload, failed=decision is Decision.FAILED):
            return ClaimReply(_FINISHED, payload=payload)
        return ClaimReply(_IN_PROGRESS, remaining=request.lease)

    def _wait_for(
        self, request: ClaimRequest, reply: ClaimReply, wait: float
    ) -> Claim | ClaimReply:
        """
        Ask again until the executor has ended or the time is over.

        Asking is claiming, in one atomic step: when the executor gives the key back,
        exactly one of all who wait becomes the next one.
        """
        slots = self._slots
        if not slots.acquire(blocking=False):
            return reply
        try:
            return self._poll(request, reply, self.monotonic() + wait)
        finally:
            slots.release()

    def _poll(
        self, request: ClaimRequest, reply: ClaimReply, deadline: float
    ) -> Claim | ClaimReply:
        pauses = POLLING.delays()
        doubt: StorageTimeoutError | None = None
        since = deadline
        while (left := deadline - self.monotonic()) > 0:
            self._sleep(min(left, next(pauses)))
            since = self.monotonic()
            try:
                latest = self._attempt(request)
            except CorruptRecordError:
                raise
            except StorageError as error:
                doubt = error if isinstance(error, StorageTimeoutError) else doubt
                continue
            if isinstance(latest, Claim) or latest.outcome is not _IN_PROGRESS:
                return latest
            doubt = None
            reply = latest
        if doubt is not None:
            # The last answer was lost; it may have made this caller the executor.
            self.forget(request, doubt, since)
        return reply

    def _note_claimed(self, claim: Claim) -> None:
        with self._lock:
            self._executions += 1
            self._takeovers += claim.taken_over
        if claim.taken_over:
            logger.warning("An abandoned operation runs again", extra=log_fields(claim.request))
        if self.events.active:
            self.events.emit(
                IdempotencyMiss(**log_fields(claim.request), taken_over=claim.taken_over)
            )

    def _note_refused(self, request: ClaimRequest, reply: ClaimReply) -> None:
        outcome = reply.outcome
        with self._lock:
            if outcome is _FINISHED:
                self._replays += 1
            elif outcome is _OVER_QUOTA:
                self._over_quota += 1
            else:
                self._conflicts += 1
        if not self.events.active:
            return
        if outcome is _OVER_QUOTA:
            self.events.emit(QuotaExceeded(**log_fields(request), retry_after=reply.remaining))
        else:
            self.events.emit(IdempotencyHit(**log_fields(request), outcome=outcome.value))

    def _note_reconciled(self, claim: Claim, decision: Decision) -> None:
        logger.warning(
            "What became of an abandoned operation was asked: %s",
            decision,
            extra=log_fields(claim.request),
        )
        if self.events.active:
            self.events.emit(OperationReconciled(**log_fields(claim.request), decision=decision))

    def note_completed(self, claim: Claim, *, failed: bool) -> None:
        """
        Tell the hooks that an outcome is recorded.
        """
        if self.events.active:
            self.events.emit(
                OperationCompleted(
                    **log_fields(claim.request),
                    status="failed" if failed else "completed",
                    duration=self.monotonic() - claim.since,
                )
            )

    def note_deferred(self, claim: Claim) -> None:
        """
        Tell the hooks that an operation was handed on.
        """
        if self.events.active:
            self.events.emit(OperationEnqueued(**log_fields(claim.request)))

    def note_delayed(self, claim: Claim, error: StorageError) -> None:
        """
        Count an outcome that could not be written at once, and tell the hooks.
        """
        with self._lock:
            self._delayed += 1
        if self.events.active:
            self.events.emit(
                CompletionDelayed(**log_fields(claim.request), error=type(error).__name__)
            )

    def note_lost(self, claim: Claim, reason: str) -> None:
        """
        Count a lost claim and tell the hooks, once for each claim.
        """
        # The heartbeat and the executor may find out at the same time.
        with self._lock:
            if not claim.mark_refused():
                return
            self._lost += 1
        logger.warning("A claim was lost: %s", reason, extra=log_fields(claim.request))
        if self.events.active:
            self.events.emit(ClaimLost(**log_fields(claim.request), reason=reason))


def raise_for_reply(key: str, reply: ClaimReply) -> None:
    """
    Raise the error that a duplicate without a recorded outcome gets.
    """
    if reply.outcome is _FINISHED:
        return
    if reply.outcome is _IN_PROGRESS:
        raise OperationInProgressError(key, retry_after=max(1.0, reply.remaining))
    if reply.outcome is _UNRESOLVED:
        raise OutcomeUnknownError(key)
    # Another tenant's record looks exactly like a reused key, so that nothing is told.
    raise KeyReusedError(key)
