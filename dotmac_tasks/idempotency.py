"""
Claims on idempotency keys, and functions whose work is done once.

A claim goes through these states, and nothing leads out of the last one::

    open --complete, release, abandon--> ended
    open --defer--> deferred --complete, release, abandon--> ended
"""

from __future__ import annotations

import functools
import inspect
import logging
import random
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar, cast

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    ClaimLostError,
    ConfigurationError,
    CorruptRecordError,
    IdempotencyError,
    KeyReusedError,
    OperationFailedError,
    OperationInProgressError,
    OutcomeUnknownError,
    SerializationError,
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
)
from dotmac_tasks.fork import reset_after_fork
from dotmac_tasks.heartbeat import Heartbeat, HeldClaim
from dotmac_tasks.keys import (
    generate_idempotency_key,
    key_hash,
    new_token,
    validate_stored_key,
)
from dotmac_tasks.models import (
    AbandonedPolicy,
    ClaimOutcome,
    ClaimReply,
    ClaimRequest,
    Lease,
    LeaseKind,
    WriteOutcome,
)
from dotmac_tasks.serialization import (
    ErrorOutcome,
    JsonOutcome,
    decode_payload,
    encode_result,
    encode_tombstone,
)
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.typing import Clock

__all__ = [
    "UNSERIALIZABLE",
    "Claim",
    "FunctionKey",
    "GuardCounts",
    "IdempotencyGuard",
    "IdempotentOperation",
    "OperationSettings",
    "decorate_function",
    "fingerprint_of",
    "log_fields",
]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# Reading a member through its enum costs more than the comparison it is read for.
_CLAIMED = ClaimOutcome.CLAIMED
_TAKEN_OVER = ClaimOutcome.TAKEN_OVER
_FINISHED = ClaimOutcome.FINISHED
_IN_PROGRESS = ClaimOutcome.IN_PROGRESS
_UNRESOLVED = ClaimOutcome.UNRESOLVED
_DONE = WriteOutcome.DONE
_OPERATION = LeaseKind.OPERATION

_OPEN = 0
_DEFERRED = 1
_ENDED = 2

# Seconds between two looks of a duplicate that waits: at first, and at most.
_FIRST_LOOK = 0.02
_LONGEST_LOOK = 0.5

UNSERIALIZABLE = "unserializable"
"""
Reason of the tombstone that a result leaves which is not JSON.
"""


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
        "_payload",
        "_recorded",
        "_refused",
        "_state",
        "fencing_token",
        "request",
        "taken_over",
    )

    def __init__(
        self, guard: IdempotencyGuard, request: ClaimRequest, reply: ClaimReply, since: float
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
            failed: then the lease decides. Harmless after another ending.
        """
        if not self._end():
            return False
        try:
            outcome = self._guard.storage.release_operation(self.lease.name, self.lease.owner)
        except StorageError as error:
            self._report("A key could not be released; its lease decides: %s", error)
            return False
        return outcome is _DONE

    def abandon(self) -> None:
        """
        Stop renewing and record nothing; the lease and the policy decide.
        """
        self._end()

    def defer(self, seconds: float) -> bool:
        """
        Hand the work on, to be settled by anybody within so many seconds.

        The claim is not renewed any more, whatever comes of it. It can still be
        released or completed.

        Returns:
            True if it is written; False if the claim was lost.

        Raises:
            ConfigurationError: The time is not positive.
            StorageError: It is not known to be written; the lease decides.
        """
        if not seconds > 0:
            raise ConfigurationError("timeout", "must be over 0 seconds.", value=seconds)
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

    def write_outcome(self) -> WriteOutcome:
        """
        Send the outcome to the storage.

        Raises:
            StorageError: It has to be sent again.
        """
        return self._guard.storage.complete_operation(
            self.request, self.fencing_token, self._payload, failed=self._failed
        )

    def on_settled(self, outcome: WriteOutcome | None) -> None:
        """
        Report what became of the outcome; None where it was given up.
        """
        self._payload = b""
        if outcome is _DONE:
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
    """

    executions: int = 0
    takeovers: int = 0
    replays: int = 0
    conflicts: int = 0
    lost: int = 0
    delayed: int = 0


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
        # Spreads the looks of those who wait; no secret depends on it.
        self._random = random.Random().random  # noqa: S311
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
            )

    def claim(self, request: ClaimRequest, *, wait: float = 0.0) -> Claim | ClaimReply:
        """
        Become the executor of a key, or learn what is there.

        A claim that is returned is kept alive by the heartbeat until it ends.

        Args:
            request: Who asks for what, with an owner token of its own.
            wait: Seconds to wait for a running executor. At most
                `config.max_waiting` threads of a process wait; further ones are
                answered at once, so that waiting cannot use up a server's threads.

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
        if isinstance(answer, Claim):
            self._note_claimed(answer)
        else:
            self._note_duplicate(request, answer.outcome)
        return answer

    def unconfirmed(self, request: ClaimRequest) -> Claim:
        """
        Stand in for a claim whose reply was lost, while its work runs unprotected.

        It is not renewed, since it may not exist. Its outcome is still tried: it is
        recorded unless somebody else has claimed the key.
        """
        return Claim(self, request, ClaimReply(_CLAIMED), self.monotonic())

    def forget(self, request: ClaimRequest) -> None:
        """
        Try once to give back a claim that may have been made, and whose work is not run.

        Should that fail as well, the key is free when its lease is over.
        """
        try:
            self.storage.release_operation(request.key, request.owner)
        except StorageError as error:
            logger.warning(
                "A key that may be claimed could not be given back: %s",
                error,
                extra=log_fields(request),
            )

    def _attempt(self, request: ClaimRequest) -> Claim | ClaimReply:
        # Before the command goes out: the lease ends no earlier than this plus its length.
        since = self.monotonic()
        reply = self.storage.claim_operation(request)
        if reply.outcome is not _CLAIMED and reply.outcome is not _TAKEN_OVER:
            return reply
        claim = Claim(self, request, reply, since)
        self.heartbeat.hold(claim)
        return claim

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
        pause = _FIRST_LOOK
        doubtful = False
        while (left := deadline - self.monotonic()) > 0:
            self._sleep(min(left, pause * (0.5 + self._random() / 2)))
            pause = min(pause * 1.5, _LONGEST_LOOK)
            try:
                latest = self._attempt(request)
            except CorruptRecordError:
                raise
            except StorageError as error:
                doubtful = doubtful or isinstance(error, StorageTimeoutError)
                continue
            if isinstance(latest, Claim) or latest.outcome is not _IN_PROGRESS:
                return latest
            doubtful = False
            reply = latest
        if doubtful:
            # The last answer was lost; it may have made this caller the executor.
            self.forget(request)
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

    def _note_duplicate(self, request: ClaimRequest, outcome: ClaimOutcome) -> None:
        with self._lock:
            if outcome is _FINISHED:
                self._replays += 1
            else:
                self._conflicts += 1
        if self.events.active:
            self.events.emit(IdempotencyHit(**log_fields(request), outcome=outcome.value))

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


class OperationSettings(NamedTuple):
    """
    How a protected function or block claims its keys.

    Attributes:
        operation_type: What kind of work; part of the key.
        ttl: Retention of the outcome, in seconds.
        lease: Seconds that the claim lives without a renewal.
        wait: Seconds that a duplicate waits for the running one.
        on_abandoned: What may happen when an executor died.
    """

    operation_type: str
    ttl: float
    lease: float
    wait: float
    on_abandoned: AbandonedPolicy

    def to_request(
        self, key: str, tenant_id: str, user_id: str | None, fingerprint: str
    ) -> ClaimRequest:
        """
        Build one call's request, with an owner token of its own.

        Raises:
            InvalidKeyError: The key cannot be stored.
            ConfigurationError: The tenant is not text.
        """
        validate_stored_key(key)
        _check_text("tenant_id", tenant_id)
        return ClaimRequest(
            key,
            new_token(),
            tenant_id,
            user_id or "",
            self.operation_type,
            fingerprint,
            self.ttl,
            self.lease,
            self.on_abandoned,
        )


class IdempotentOperation:
    """
    A block of code whose work is done once, as a context manager.

    One per execution, used by one thread::

        with manager.idempotent_operation("charge", {"order": 17}) as operation:
            if not operation.is_replay:
                operation.set_result(charge(17))
        return operation.result

    Python cannot skip the block, so it has to ask `is_replay`. A block that ends
    without `set_result` records None. An exception releases the key and passes
    through; `BaseException` (an interrupt, an exit) leaves the lease to decide.
    The result is recorded when the block ends, and what is wrong with it is raised
    there: `SerializationError`, `ClaimLostError`.

    Attributes:
        key: The stored key.
        is_replay: Whether the outcome was recorded before; known inside the block.
        result: The recorded result of a replay, else what `set_result` was given.
    """

    def __init__(self, guard: IdempotencyGuard, request: ClaimRequest, wait: float) -> None:
        self.key = request.key
        self.is_replay = False
        self.result: Any = None
        self._guard = guard
        self._request = request
        self._wait = wait
        self._entered = False
        self._claim: Claim | None = None

    @property
    def fencing_token(self) -> int:
        """
        Number of this execution's claim, for systems that fence; 0 in a replay.
        """
        return 0 if self._claim is None else self._claim.fencing_token

    def set_result(self, result: Any) -> None:
        """
        Say what duplicates get; the last call before the block ends counts.

        Raises:
            IdempotencyError: This is a replay, so the outcome stands.
        """
        if self.is_replay:
            raise IdempotencyError(
                self.key,
                f"Operation {self.key} is a replay and its outcome stands. "
                "Ask `is_replay` before doing the work.",
            )
        self.result = result

    def __enter__(self) -> Self:
        """
        Claim the key, or fetch the recorded result.

        Raises:
            IdempotencyError: The key is running, unresolved, failed or used for
                something else; the block does not run.
            StorageError: The storage failed; the block does not run.
        """
        if self._entered:
            raise IdempotencyError(
                self.key,
                f"This block for operation {self.key} was entered before. "
                "Make a new one for every execution.",
            )
        self._entered = True
        self._claim, self.result = _begin(self._guard, self._request, self._wait)
        self.is_replay = self._claim is None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        claim = self._claim
        if claim is None:
            return
        try:
            if kind is None:
                _record(claim, self.result)
            elif issubclass(kind, Exception):
                claim.release()
        finally:
            claim.abandon()


class FunctionKey(NamedTuple):
    """
    How the calls of one function are told apart.

    Attributes:
        tenant_id: The tenant, or what returns it for a call.
        user_id: The principal, or what returns it for a call.
        key: What returns the stored key of a call; None to build it from the call.
    """

    tenant_id: str | Callable[..., str]
    user_id: str | Callable[..., str | None] | None
    key: Callable[..., str] | None


def decorate_function(
    guard: IdempotencyGuard,
    settings: OperationSettings,
    how: FunctionKey,
    function: Callable[P, R],
) -> Callable[P, R]:
    """
    Wrap a function so that equal calls do their work once.

    Takes a plain function, a method, a `classmethod` or a `staticmethod`.

    Raises:
        TypeError: It is a coroutine function or a generator, whose work is not
            done when the call returns.
    """
    if isinstance(function, classmethod | staticmethod):
        inner = decorate_function(guard, settings, how, function.__func__)
        return cast("Callable[P, R]", type(function)(inner))
    _refuse_unfit(function)
    make_request = _request_maker(settings, how, function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        claim, replayed = _begin(guard, make_request(*args, **kwargs), settings.wait)
        if claim is None:
            return cast("R", replayed)
        try:
            try:
                result = function(*args, **kwargs)
            except Exception:
                claim.release()
                raise
            _record(claim, result)
            return result
        finally:
            # An interrupt or an exit: renewing stops, and the lease decides. Else it has ended.
            claim.abandon()

    return wrapper


def log_fields(request: ClaimRequest) -> dict[str, str]:
    """
    Return what logs and events say of a request; the key only as a hash.
    """
    return {
        "tenant_id": request.tenant_id,
        "operation_type": request.operation_type,
        "key_hash": key_hash(request.key),
    }


def fingerprint_of(operation_type: str, parameters: Any) -> str:
    """
    Return what tells apart two uses of one explicit key.

    Raises:
        SerializationError: A parameter has no canonical form.
    """
    return generate_idempotency_key("", "", operation_type, parameters)


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


def _begin(guard: IdempotencyGuard, request: ClaimRequest, wait: float) -> tuple[Claim | None, Any]:
    """
    Return the claim, or None and the recorded result.

    A function never runs unprotected: there is no client to whom an answer is due,
    and the caller can tell an outage from a result.
    """
    try:
        answer = guard.claim(request, wait=wait)
    except StorageTimeoutError:
        # It may have been claimed, and nothing runs: do not block the next attempt for a lease.
        guard.forget(request)
        raise
    if isinstance(answer, Claim):
        return answer, None
    raise_for_reply(request.key, answer)
    return None, _decode(guard, request.key, answer.payload)


def _decode(guard: IdempotencyGuard, key: str, payload: bytes) -> Any:
    try:
        outcome = decode_payload(payload)
    except ValueError as error:
        raise CorruptRecordError(guard.storage.name, key, str(error)) from error
    if isinstance(outcome, JsonOutcome):
        return outcome.value
    if isinstance(outcome, ErrorOutcome):
        raise OperationFailedError(key, outcome.message)
    raise OutcomeUnknownError(key, reason="its result could not be recorded")


def _record(claim: Claim, result: Any) -> None:
    try:
        payload = encode_result(result)
    except SerializationError:
        # The work is done. Releasing the key would do it again.
        claim.complete(encode_tombstone(UNSERIALIZABLE))
        raise
    if not claim.complete(payload):
        raise ClaimLostError(claim.request.key, result=result)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigurationError(name, f"must be text, not {value!r}.", value=value)


def _refuse_unfit(function: Callable[..., Any]) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if not callable(function):
        raise TypeError(f"{name} cannot be made idempotent: it is not callable.")
    for candidate in (function, getattr(function, "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise TypeError(f"{name} cannot be made idempotent: it is asynchronous.")
        if inspect.isgeneratorfunction(candidate):
            raise TypeError(
                f"{name} cannot be made idempotent: a generator does its work after it returned. "
                "Return a list instead."
            )


def _request_maker(
    settings: OperationSettings, how: FunctionKey, function: Callable[P, Any]
) -> Callable[P, ClaimRequest]:
    """
    Return what builds the request of one call.
    """
    signature = inspect.signature(function)
    first = next(iter(signature.parameters), None)
    # An instance has no canonical form, and its identity differs between processes.
    left_out = first if first in ("self", "cls") else None
    explicit_fingerprint = fingerprint_of(settings.operation_type, None)

    def make_request(*args: P.args, **kwargs: P.kwargs) -> ClaimRequest:
        tenant_id = how.tenant_id(*args, **kwargs) if callable(how.tenant_id) else how.tenant_id
        user_id = how.user_id(*args, **kwargs) if callable(how.user_id) else how.user_id
        if how.key is not None:
            key = how.key(*args, **kwargs)
            # The same key returned for another function is a mistake, not a replay.
            return settings.to_request(key, tenant_id, user_id, explicit_fingerprint)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        parameters = {name: value for name, value in bound.arguments.items() if name != left_out}
        key = generate_idempotency_key(tenant_id, user_id, settings.operation_type, parameters)
        return settings.to_request(key, tenant_id, user_id, "")

    return make_request
