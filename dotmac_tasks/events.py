"""
What happens, told to hooks: metrics, logs, signals.

Hooks run on a thread of their own behind a bounded queue, so that a slow or
failing one never hurts an operation. Events hold tenant, type and a hash of
the key; never the key, never a body.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from dotmac_tasks.fork import reset_after_fork
from dotmac_tasks.keys import key_hash
from dotmac_tasks.models import ClaimRequest, StoredOperation
from dotmac_tasks.typing import Clock

__all__ = [
    "ClaimLost",
    "CompletionDelayed",
    "Event",
    "EventDispatcher",
    "IdempotencyHit",
    "IdempotencyMiss",
    "KeyDecided",
    "LockAcquired",
    "LockFailed",
    "LoggingMetricsHooks",
    "MetricsHooks",
    "OperationCompleted",
    "OperationEnqueued",
    "OperationReconciled",
    "QuotaExceeded",
    "StorageCall",
    "StorageUnprotected",
    "log_fields",
]

_logger = logging.getLogger(__name__)


def log_fields(work: ClaimRequest | StoredOperation) -> dict[str, str]:
    """
    Return what logs and events say of a request or a record; the key only as a hash.
    """
    return {
        "tenant_id": work.tenant_id,
        "operation_type": work.operation_type,
        "key_hash": key_hash(work.key),
    }


class Event:
    """
    Base of all events; immutable, so shared by all threads.

    Attributes:
        name: Its name, noun then past participle.
        hook: The method of `MetricsHooks` that receives it.
    """

    __slots__ = ()

    name: ClassVar[str]
    hook: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationEnqueued(Event):
    """
    A background operation was created, or a claimed one handed on, to be finished later.
    """

    name: ClassVar[str] = "operation.enqueued"
    hook: ClassVar[str] = "operation_enqueued"

    tenant_id: str
    operation_type: str
    key_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationCompleted(Event):
    """
    An outcome was recorded.

    Attributes:
        status: ``completed`` or ``failed``.
        duration: Seconds from claim to outcome; 0 where nobody claimed it here.
    """

    name: ClassVar[str] = "operation.completed"
    hook: ClassVar[str] = "operation_completed"

    tenant_id: str
    operation_type: str
    key_hash: str
    status: str
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyHit(Event):
    """
    A duplicate was recognised, and its work was not run again.

    Attributes:
        outcome: What the claim was answered, such as ``finished`` or ``in_progress``.
    """

    name: ClassVar[str] = "idempotency.hit"
    hook: ClassVar[str] = "idempotency_hit"

    tenant_id: str
    operation_type: str
    key_hash: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyMiss(Event):
    """
    A key was claimed and its work runs.

    Attributes:
        taken_over: Whether an earlier executor had died over it.
    """

    name: ClassVar[str] = "idempotency.missed"
    hook: ClassVar[str] = "idempotency_miss"

    tenant_id: str
    operation_type: str
    key_hash: str
    taken_over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageCall(Event):
    """
    A verb of the storage was called.

    Attributes:
        backend: Short name of the storage.
        verb: The method.
        duration: Seconds that it took.
        error: Name of the error that it raised, if any.
        breaker: State of the circuit breaker after it; None where there is none.
    """

    name: ClassVar[str] = "storage.called"
    hook: ClassVar[str] = "storage_call"

    backend: str
    verb: str
    duration: float
    error: str | None
    breaker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockAcquired(Event):
    """
    A lock was taken.

    Attributes:
        name_hash: Hash of the lock's name.
        waited: Seconds that it took.
    """

    name: ClassVar[str] = "lock.acquired"
    hook: ClassVar[str] = "lock_acquired"

    name_hash: str
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFailed(Event):
    """
    A lock was not to be had, or was lost while it was held.

    Attributes:
        name_hash: Hash of the lock's name.
        waited: Seconds that the caller waited.
        reason: ``busy`` or ``lost``.
    """

    name: ClassVar[str] = "lock.failed"
    hook: ClassVar[str] = "lock_failed"

    name_hash: str
    waited: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimLost(Event):
    """
    An executor lost its claim, so its outcome is not recorded.

    Attributes:
        reason: ``taken_over``, ``unwritten`` (tried for too long) or ``corrupt``.
    """

    name: ClassVar[str] = "claim.lost"
    hook: ClassVar[str] = "claim_lost"

    tenant_id: str
    operation_type: str
    key_hash: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionDelayed(Event):
    """
    An outcome could not be written and is tried again while the claim is held.

    Attributes:
        error: Name of the storage's error.
    """

    name: ClassVar[str] = "completion.delayed"
    hook: ClassVar[str] = "completion_delayed"

    tenant_id: str
    operation_type: str
    key_hash: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationReconciled(Event):
    """
    The project's callback was asked what became of abandoned work.

    Attributes:
        decision: ``found``, ``failed``, ``run_again`` or ``ask_person``.
    """

    name: ClassVar[str] = "operation.reconciled"
    hook: ClassVar[str] = "operation_reconciled"

    tenant_id: str
    operation_type: str
    key_hash: str
    decision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUnprotected(Event):
    """
    Work runs without protection, because the storage is down.

    Attributes:
        error: Name of the storage's error.
    """

    name: ClassVar[str] = "storage.unprotected"
    hook: ClassVar[str] = "storage_unprotected"

    tenant_id: str
    operation_type: str
    key_hash: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDecided(Event):
    """
    A person decided about an operation: its key was given back, or its outcome recorded.

    Attributes:
        tenant_id: The tenant; empty for a record that could not be read.
        operation_type: What kind of work; likewise.
        decision: ``released`` or ``resolved``.
        reason: The person's own words.
        by: Who it was, as told.
    """

    name: ClassVar[str] = "key.decided"
    hook: ClassVar[str] = "key_decided"

    tenant_id: str
    operation_type: str
    key_hash: str
    decision: str
    reason: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaExceeded(Event):
    """
    A new key was refused, because its caller had too many of them.

    Attributes:
        retry_after: Seconds until the caller may have new ones.
    """

    name: ClassVar[str] = "quota.exceeded"
    hook: ClassVar[str] = "quota_exceeded"

    tenant_id: str
    operation_type: str
    key_hash: str
    retry_after: float


class MetricsHooks:
    """
    Receives events; override what is of interest.

    Called by one thread at a time. What a method raises is logged and goes no further.
    """

    def receive(self, event: Event) -> None:
        """
        Receive any event and hand it to its own method; override it to treat all alike.
        """
        getattr(self, event.hook)(event)

    def operation_enqueued(self, event: OperationEnqueued) -> None:
        """
        Receive that an operation was created or handed on.
        """

    def operation_completed(self, event: OperationCompleted) -> None:
        """
        Receive that an outcome was recorded.
        """

    def idempotency_hit(self, event: IdempotencyHit) -> None:
        """
        Receive that a duplicate was recognised.
        """

    def idempotency_miss(self, event: IdempotencyMiss) -> None:
        """
        Receive that a key was claimed and its work runs.
        """

    def storage_call(self, event: StorageCall) -> None:
        """
        Receive that a verb of the storage was called.
        """

    def lock_acquired(self, event: LockAcquired) -> None:
        """
        Receive that a lock was taken.
        """

    def lock_failed(self, event: LockFailed) -> None:
        """
        Receive that a lock was not to be had, or was lost.
        """

    def claim_lost(self, event: ClaimLost) -> None:
        """
        Receive that an executor lost its claim.
        """

    def completion_delayed(self, event: CompletionDelayed) -> None:
        """
        Receive that an outcome could not be written yet.
        """

    def operation_reconciled(self, event: OperationReconciled) -> None:
        """
        Receive what a callback has decided about abandoned work.
        """

    def storage_unprotected(self, event: StorageUnprotected) -> None:
        """
        Receive that work runs without protection.
        """

    def key_decided(self, event: KeyDecided) -> None:
        """
        Receive that a person gave a key back or recorded its outcome.
        """

    def quota_exceeded(self, event: QuotaExceeded) -> None:
        """
        Receive that a new key was refused.
        """


class LoggingMetricsHooks(MetricsHooks):
    """
    Writes every event to a logger, its facts as `extra` fields.

    Holds no state of its own; instances may be shared between threads.
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        self._logger = _logger if logger is None else logger
        self._level = level

    def receive(self, event: Event) -> None:
        """
        Log it, then hand it to its own method, which a subclass may override.
        """
        if self._logger.isEnabledFor(self._level):
            self._logger.log(self._level, event.name, extra=_facts(event))
        super().receive(event)


def _facts(event: Event) -> dict[str, object]:
    return {item.name: getattr(event, item.name) for item in fields(event)}  # type: ignore[arg-type] # all are dataclasses


class EventDispatcher:
    """
    Hands events to hooks, on one daemon thread that starts with the first event.

    Instances may be shared between threads: `_changed` guards `_queue`, `_thread`, `_busy`,
    `_closing`, `_dropped` and `_warned_at`. The thread ends when it has had nothing to do for a
    while, and never keeps the process alive; in the child of a fork everything begins anew.

    Args:
        hooks: Who receives the events.
        clock: Spaces out the warnings about dropped events.
        capacity: Most events that wait; further ones are dropped and counted.
    """

    _idle_seconds = 10.0
    _warning_interval = 60.0

    def __init__(
        self, hooks: Sequence[MetricsHooks], clock: Clock, *, capacity: int = 10_000
    ) -> None:
        self._hooks = tuple(hooks)
        self._clock = clock
        self._capacity = capacity
        self._failed: set[tuple[int, str]] = set()  # touched by the running thread only
        self.active = bool(self._hooks)
        self._reset()
        if self.active:
            reset_after_fork(self)

    @property
    def dropped(self) -> int:
        """
        How many events found the queue full.
        """
        with self._changed:
            return self._dropped

    def emit(self, event: Event) -> None:
        """
        Queue an event; never blocks, never raises.

        An event that a hook causes is dropped, or it would cause the next one.
        """
        if not self.active:
            return
        with self._changed:
            if self._thread is threading.current_thread():
                return
            if len(self._queue) >= self._capacity:
                self._dropped += 1
                warn = self._is_warning_due()
            else:
                self._queue.append(event)
                self._closing = False
                self._ensure_thread()
                self._changed.notify_all()
                return
        if warn:
            _logger.warning(
                "Hooks are too slow: events are dropped", extra={"dropped": self.dropped}
            )

    def flush(self, timeout: float) -> bool:
        """
        Wait until all queued events are handed on; False if that took too long.
        """
        with self._changed:
            if self._thread is threading.current_thread():
                return False
            return self._changed.wait_for(self._is_idle, timeout)

    def close(self, timeout: float = 1.0) -> None:
        """
        Hand on what is queued, then end the thread; a later event starts it anew.
        """
        self.flush(timeout)
        with self._changed:
            self._queue.clear()
            self._closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def after_fork(self) -> None:
        """
        Forget the parent's thread, lock and events.
        """
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[Event] = deque()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._closing = False
        self._dropped: int = 0
        self._warned_at: float | None = None

    def _is_idle(self) -> bool:
        return not self._queue and not self._busy

    def _is_warning_due(self) -> bool:
        now = self._clock.monotonic()
        if self._warned_at is not None and now - self._warned_at < self._warning_interval:
            return False
        self._warned_at = now
        return True

    def _ensure_thread(self) -> None:
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="dotmac-tasks.events", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or the interpreter is going down
            self._thread = None

    def _run(self) -> None:
        while (event := self._next()) is not None:
            for hooks in self._hooks:
                self._deliver(event, hooks)

    def _next(self) -> Event | None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while not self._queue:
                woken = not self._closing and self._changed.wait(self._idle_seconds)
                if not woken and not self._queue:
                    self._thread = None
                    return None
            self._busy = True
            return self._queue.popleft()

    def _deliver(self, event: Event, hooks: MetricsHooks) -> None:
        try:
            hooks.receive(event)
        except BaseException:  # on this thread nobody else would see it
            failure = (id(hooks), event.hook)
            if failure not in self._failed:
                self._failed.add(failure)
                _logger.exception(
                    "A hook failed; its further failures are not logged",
                    extra={"hook": event.hook, "hooks_class": type(hooks).__qualname__},
                )
