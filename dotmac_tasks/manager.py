"""
The façade: settings, storage, hooks and the engine, wired together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from dotmac_tasks.claims import IdempotencyGuard
from dotmac_tasks.cleanup import CleanupReport, CleanupThread, clean_up
from dotmac_tasks.clock import SystemClock
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import ConfigurationError, KeyReusedError
from dotmac_tasks.events import EventDispatcher, MetricsHooks
from dotmac_tasks.health import HealthReport, ManagerStats, collect_stats, report_health
from dotmac_tasks.heartbeat import Heartbeat
from dotmac_tasks.http import HttpIdempotency
from dotmac_tasks.idempotency import (
    FunctionKey,
    IdempotentOperation,
    decorate_function,
    fingerprint_of,
    resolve_settings,
)
from dotmac_tasks.keys import generate_idempotency_key, validate_stored_key
from dotmac_tasks.locks import DistributedLock
from dotmac_tasks.models import (
    AbandonedPolicy,
    BackgroundOperation,
    IdempotencyKey,
    KeyPage,
    OperationPage,
    OperationStatus,
    SettleOutcome,
)
from dotmac_tasks.operations import BackgroundOperations, show_key
from dotmac_tasks.operators import KeyDecisions, find_stored_key
from dotmac_tasks.reconciliation import Reconcile
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks.storage.observed import ObservedStorage
from dotmac_tasks.storage.registry import storage_from_setting
from dotmac_tasks.storage.sealed import SealedStorage
from dotmac_tasks.typing import Clock, Parameters

__all__ = ["BackgroundOperationsManager"]

P = ParamSpec("P")
R = TypeVar("R")


class BackgroundOperationsManager:
    """
    Idempotency keys, locks and background operations over one storage.

    Instances are shared by all threads and usable in the child of a fork. Every
    method blocks, for no longer than the storage's timeout unless it says so.
    Constructing one starts no thread and opens no connection.

    Every method that takes a key or an id also takes a `tenant_id`, and then
    behaves as if another tenant's record did not exist.

    Args:
        storage: A storage, a URL, or ``{"BACKEND": ..., "OPTIONS": ...}``. Without
            one, the setting decides, by default a `MemoryStorage` of its own.
        hooks: Receive what happens; see `MetricsHooks`.
        clock: Tells the time; for tests.
        config: Settings to start from.
        settings: Single settings, by their lower-case names; they win over `config`.

    Attributes:
        config: The settings.
        storage: The storage, observed where there are hooks, sealed where there is a codec.
        guard: Claims keys.
        http: Decides about HTTP requests by these settings.
        heartbeat: Renews what this process holds.
        events: Hands events to the hooks.
        wsgi_app: The application that was wrapped last, if one was.

    Raises:
        ConfigurationError: A setting is unknown, wrong or cannot work.
    """

    def __init__(
        self,
        storage: Storage | str | Mapping[str, Any] | None = None,
        *,
        hooks: Sequence[MetricsHooks] = (),
        clock: Clock | None = None,
        config: TasksConfig | None = None,
        **settings: Any,
    ) -> None:
        if storage is not None and not isinstance(storage, Storage):
            settings["storage"] = storage
        self.config = TasksConfig.from_mapping(settings, base=config)
        self.wsgi_app: Any = None
        self._clock = clock or SystemClock()
        self.events = EventDispatcher([*self.config.resolve_hooks(), *hooks], self._clock)
        # A storage that was handed in belongs to whoever made it.
        self._owns_storage = not isinstance(storage, Storage)
        self.storage = storage if isinstance(storage, Storage) else self._make_storage()
        if self.events.active:
            self.storage = ObservedStorage(self.storage, self.events, self._clock)
        codec = self.config.resolve_codec()
        if codec is not None:
            self.storage = SealedStorage(
                self.storage, codec, require_sealed=self.config.require_sealed
            )
        self._cleanup = CleanupThread(self, self.config)
        self.heartbeat = Heartbeat(
            self.storage,
            clock=self._clock,
            max_execution=self.config.max_execution,
            on_start=self._cleanup.start,
        )
        self.guard = IdempotencyGuard(
            self.storage, self.heartbeat, self.events, self.config, self._clock
        )
        self.http = HttpIdempotency(self.config, self.guard, self.events)
        self._decisions = KeyDecisions(
            self.storage, self.events, max_bytes=self.config.max_response_bytes
        )
        self._operations = BackgroundOperations(self.storage, self.events, self.config)

    def _make_storage(self) -> Storage:
        config = self.config
        if config.storage == "memory://":
            return MemoryStorage(clock=self._clock)
        return storage_from_setting(
            config.storage, prefix=config.key_prefix, timeout=config.storage_timeout
        )

    @classmethod
    def from_env(
        cls, *, hooks: Sequence[MetricsHooks] = (), clock: Clock | None = None, **settings: Any
    ) -> Self:
        """
        Make a manager from the environment: ``DOTMAC_TASKS_<NAME>``, ``REDIS_URL``.

        Raises:
            ConfigurationError: A setting is unknown, wrong or cannot work.
        """
        return cls(hooks=hooks, clock=clock, config=TasksConfig.from_env(), **settings)

    # Life

    def start(self) -> Self:
        """
        Start the cleanup thread where it is enabled; may be called twice.

        Not needed: the first use starts what it needs.
        """
        self._cleanup.start()
        return self

    def stop(self, timeout: float = 5.0) -> None:
        """
        Stop the threads, write what waits to be written, give up connections.

        Blocks for about `timeout` seconds at most. Leases that are still held run
        out by themselves. A storage that was handed in is left open. A later use
        starts anew.
        """
        self._cleanup.stop(timeout)
        self.heartbeat.stop(timeout)
        self.events.close()
        if self._owns_storage:
            self.storage.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # Idempotency keys

    def generate_idempotency_key(
        self, tenant_id: str, user_id: str | None, operation_type: str, parameters: Any
    ) -> str:
        """
        Return the key of an operation: 32 hex digits, equal for equal arguments.

        Raises:
            SerializationError: A parameter has no canonical form.
        """
        return generate_idempotency_key(tenant_id, user_id, operation_type, parameters)

    def create_idempotency_key(
        self,
        tenant_id: str,
        user_id: str | None,
        operation_type: str,
        key: str | None = None,
        ttl: float | None = None,
        parameters: Parameters | None = None,
    ) -> IdempotencyKey:
        """
        Record a pending operation under a key, or return what is there.

        One atomic step; what is there is never reset. An unclaimed record lives
        for `ttl` seconds from now, a finished one from its completion.

        Args:
            tenant_id: The tenant.
            user_id: The principal, if there is one.
            operation_type: What kind of work.
            key: The stored key; without one it is generated from the rest.
            ttl: Retention in seconds; the default of the settings without one.
            parameters: What the key is generated from.

        Raises:
            KeyReusedError: Another tenant, or another user of this one, holds this key.
            InvalidKeyError: The key cannot be stored.
            ConfigurationError: The retention is not positive.
            SerializationError: A parameter has no canonical form.
            StorageError: The storage failed.
        """
        if key is None:
            key = generate_idempotency_key(tenant_id, user_id, operation_type, parameters or {})
        settings = resolve_settings(self.config, operation_type, ttl=ttl)
        request = settings.to_request(key, tenant_id, user_id, "")
        record = self.storage.ensure_operation(request)
        another_user = user_id and record.user_id and record.user_id != user_id
        if record.tenant_id != tenant_id or another_user:
            raise KeyReusedError(key)
        self._cleanup.start()
        return show_key(record, self.storage.name)

    def check_idempotency(self, key: str, tenant_id: str | None = None) -> IdempotencyKey | None:
        """
        Return what is recorded under a stored key, or None.

        Raises:
            InvalidKeyError: No record can have this key.
            CorruptRecordError: The record cannot be read.
            StorageError: The storage failed.
        """
        validate_stored_key(key)
        record = self.storage.find_operation(key)
        if record is None or (tenant_id is not None and record.tenant_id != tenant_id):
            return None
        return show_key(record, self.storage.name)

    def complete_idempotent_operation(
        self, key: str, result: Any, error: str | None = None, *, tenant_id: str | None = None
    ) -> bool:
        """
        Record the outcome of an operation that has no live executor.

        For pending operations, those handed on by `defer_operation`, and
        abandoned ones that wait for a decision. Atomic; the first outcome stays.
        One larger than `max_response_bytes` is not kept: the operation counts as
        finished, and duplicates are told that its outcome cannot be replayed.

        Args:
            key: The stored key.
            result: The result, as JSON data.
            error: With one, the operation failed, and this is what duplicates see.
            tenant_id: The tenant that the key must belong to.

        Returns:
            True if the operation is finished now, by this or an earlier call.
            False if it is unknown, or an executor is at work on it.

        Raises:
            InvalidKeyError: No record can have this key.
            SerializationError: The result is not JSON; nothing is written.
            StorageError: The storage failed; the same call can be made again.
        """
        outcome = self._decisions.settle(key, result, error, tenant_id=tenant_id)
        return outcome is SettleOutcome.DONE or outcome is SettleOutcome.FINISHED

    # Idempotency keys, for operators

    def find_stored_key(self, tenant_id: str, principal: str | None, client_key: str) -> str:
        """
        Return the stored key of a client's key; the storage is not asked.

        Args:
            tenant_id: The tenant.
            principal: The user's id; None or empty for anonymous callers. A text that
                begins with ``user:`` or ``credentials:`` is taken as the whole scope,
                see `dotmac_tasks.http.principal_scope`.
            client_key: What the client sent in the header, quoted or not.

        Raises:
            InvalidKeyError: No client could send this key.
        """
        return find_stored_key(tenant_id, principal, client_key, self.config.key_secret)

    def list_idempotency_keys(
        self,
        *,
        tenant_id: str | None = None,
        status: OperationStatus | str | None = None,
        abandoned: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> KeyPage:
        """
        Return one page of what is recorded, without the outcomes.

        First those that stay until somebody decides, then those that expire last. A
        page looks at a bounded number of records and may be short or empty although
        more follow; only a cursor of None means the end. Records that cannot be read
        are listed apart, unless a filter is given.

        For operators: without a `tenant_id` it shows the keys of all tenants, and
        with one the cursor may still hold another tenant's key.

        Args:
            tenant_id: List this tenant's keys only.
            status: List those with this status only.
            abandoned: List those only that are in progress and whose lease is over.
            limit: Most keys of the page.
            cursor: Where an earlier page ended.

        Raises:
            ConfigurationError: The status is unknown or cannot be, or the limit is not
                positive.
            ValueError: The cursor is none that this method returned.
            StorageError: The storage failed.
        """
        _check_positive("limit", limit)
        return self._decisions.list(
            tenant_id=tenant_id,
            status=_to_status(status),
            abandoned=abandoned,
            limit=limit,
            cursor=cursor,
        )

    def release_idempotency_key(
        self,
        key: str,
        *,
        reason: str,
        by: str,
        tenant_id: str | None = None,
        finished: bool = False,
        unreadable: bool = False,
        fencing_token: int | None = None,
    ) -> SettleOutcome:
        """
        Give a key back, so that the next retry runs the work: an operator's decision.

        For pending and abandoned operations, whatever their policy. One atomic step;
        it is logged and told to the hooks. Never takes a key from an executor that
        holds a live lease, nor from a worker that is still within its time.

        An executor that wakes up afterwards can record its outcome only as long as
        no retry has claimed the key; what it records then is what retries get.

        Args:
            key: The stored key; `find_stored_key` gives it for a client's.
            reason: Why, in words.
            by: Who decided it.
            tenant_id: The tenant that the key must belong to.
            finished: Give it back although an outcome is recorded. That outcome is
                lost, and the work is done again.
            unreadable: Give it back although its record cannot be read. What it was
                is not known then: the work may be running, or done. Without effect
                with a `tenant_id`, which cannot be compared.
            fencing_token: That of the record that the decision is about; nothing
                happens if the key was claimed anew since. Without it the one that is
                there when this is called.

        Returns:
            DONE if it was given back by this call; RUNNING, FINISHED, ABSENT or
            CHANGED if not, and then nothing has changed.

        Raises:
            ConfigurationError: The reason is empty, or who decided it.
            InvalidKeyError: No record can have this key.
            CorruptRecordError: The record cannot be read, and stays.
            StorageError: The storage failed. The same call can be made again; it
                answers ABSENT where the first one was carried out.
        """
        return self._decisions.release(
            key,
            tenant_id=tenant_id,
            reason=reason,
            by=by,
            finished=finished,
            unreadable=unreadable,
            fencing_token=fencing_token,
        )

    def resolve_idempotency_key(
        self,
        key: str,
        result: Any,
        error: str | None = None,
        *,
        reason: str,
        by: str,
        tenant_id: str | None = None,
    ) -> SettleOutcome:
        """
        Record the outcome of an operation nobody is at work on: an operator's decision.

        As `complete_idempotent_operation`, and logged and told to the hooks with the
        reason.

        Returns:
            DONE if it was recorded by this call; FINISHED, RUNNING or ABSENT if not,
            and then nothing has changed.

        Raises:
            ConfigurationError: The reason is empty, or who decided it.
            InvalidKeyError: No record can have this key.
            SerializationError: The result is not JSON; nothing is written.
            StorageError: The storage failed; the same call can be made again.
        """
        return self._decisions.resolve(
            key, result, error, tenant_id=tenant_id, reason=reason, by=by
        )

    # Functions and blocks

    def idempotent(
        self,
        operation_type: str,
        *,
        tenant_id: str | Callable[..., str] = "default",
        user_id: str | Callable[..., str | None] | None = None,
        key: Callable[..., str] | None = None,
        ttl: float | None = None,
        wait: float | None = None,
        lease: float | None = None,
        on_abandoned: AbandonedPolicy | None = None,
        reconcile: Reconcile | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """
        Decorate a function so that equal calls do their work once.

        A duplicate returns the recorded result. While the first call runs, it
        raises `OperationInProgressError`, or waits. An exception of the function
        releases the key and passes through. An interrupt or exit leaves the lease
        to decide. If the storage is down, the function does not run: the error
        comes before the work. If it goes down during the work, the caller gets
        the result, and recording it is tried again in the background.

        Two calls are equal when their arguments are, however they are passed,
        defaults included. `self` and `cls` are no part of the key: an instance has
        no form that other processes know, so give what identifies it to `key`.

        Args:
            operation_type: Names the work; part of the key, so a renamed function
                keeps its records.
            tenant_id: The tenant, or a callable that gets the call's arguments.
            user_id: The principal, likewise.
            key: Gets the call's arguments and returns the stored key. A key that was
                used for another operation type or user raises `KeyReusedError`.
            ttl: Retention of the result in seconds.
            wait: Seconds that a duplicate waits for the running call.
            lease: Seconds that the claim lives without a renewal.
            on_abandoned: What happens when an executor died: ``rerun`` or ``refuse``.
            reconcile: Says what became of refused work; see `AbandonedOperation`.

        The decorated function raises, besides what the function does:

        * `OperationInProgressError`: The first call is still running.
        * `OperationFailedError`: The operation was recorded as failed.
        * `OutcomeUnknownError`: Abandoned, or its result could not be recorded.
        * `ClaimLostError`: The work ran, but somebody else took over; the result
          is on the error.
        * `KeyReusedError`: The key stands for another operation, tenant or user.
        * `SerializationError`: An argument has no canonical form and nothing ran,
          or the result is not JSON: then the work is done and never repeated.
        * `StorageError`: The storage failed before the work.

        Raises:
            ConfigurationError: A setting cannot work.
            TypeError: The operation type is missing or no text, or a coroutine function
                or generator is decorated.
        """
        settings = resolve_settings(
            self.config,
            operation_type,
            ttl=ttl,
            wait=wait,
            lease=lease,
            on_abandoned=on_abandoned,
            reconcile=reconcile,
        )
        how = FunctionKey(tenant_id, user_id, key)

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            return decorate_function(self.guard, settings, how, function)

        return decorate

    def idempotent_operation(
        self,
        operation_type: str,
        parameters: Parameters | None = None,
        *,
        tenant_id: str = "default",
        user_id: str | None = None,
        key: str | None = None,
        ttl: float | None = None,
        wait: float | None = None,
        lease: float | None = None,
        on_abandoned: AbandonedPolicy | None = None,
        reconcile: Reconcile | None = None,
    ) -> IdempotentOperation:
        """
        Protect a block of code, where a decorator does not fit.

        See `IdempotentOperation` for how it is used, and `idempotent` for the
        settings. The key is generated from the parameters, or is `key`; then other
        parameters or another user under the same key raise `KeyReusedError`.

        Raises:
            ConfigurationError: A setting cannot work, or neither parameters nor a
                key say which operation it is.
            TypeError: The operation type is no text.
            InvalidKeyError: The key cannot be stored.
            SerializationError: A parameter has no canonical form.
        """
        settings = resolve_settings(
            self.config,
            operation_type,
            ttl=ttl,
            wait=wait,
            lease=lease,
            on_abandoned=on_abandoned,
            reconcile=reconcile,
        )
        if key is not None:
            fingerprint = fingerprint_of(operation_type, parameters, user_id)
        elif parameters is not None:
            key = generate_idempotency_key(tenant_id, user_id, operation_type, parameters)
            fingerprint = ""
        else:
            raise ConfigurationError("key", "is missing. Pass parameters or a key.")
        request = settings.to_request(key, tenant_id, user_id, fingerprint)
        return IdempotentOperation(self.guard, request, settings, parameters)

    # Background operations

    def create_operation(
        self,
        tenant_id: str,
        operation_type: str,
        *,
        user_id: str | None = None,
        operation_id: str | None = None,
        idempotency_key: str | None = None,
        parameters: Parameters | None = None,
    ) -> BackgroundOperation:
        """
        Record a pending operation, or return the one of that id that is there.

        One that is linked to a stored key is shown as that key's record has it.

        Raises:
            InvalidKeyError: The id or the key cannot be stored.
            SerializationError: A parameter is not JSON.
            StaleRecordError: Another tenant has an operation of this id.
            StorageError: The storage failed.
        """
        self._cleanup.start()
        return self._operations.create(
            tenant_id,
            operation_type,
            user_id=user_id,
            operation_id=operation_id,
            idempotency_key=idempotency_key,
            parameters=parameters,
        )

    def start_operation(
        self, operation_id: str, *, tenant_id: str | None = None
    ) -> BackgroundOperation:
        """
        Mark an operation as being worked on.

        Raises:
            OperationNotFoundError: There is none for this tenant.
            InvalidTransitionError: It has ended.
            StorageError: The storage failed.
        """
        return self._operations.change(
            operation_id, OperationStatus.IN_PROGRESS, tenant_id=tenant_id
        )

    def complete_operation(
        self, operation_id: str, result: Any = None, *, tenant_id: str | None = None
    ) -> BackgroundOperation:
        """
        Record the result of an operation; the same result again is no error.

        Raises:
            OperationNotFoundError: There is none for this tenant.
            InvalidTransitionError: It has ended otherwise.
            SerializationError: The result is not JSON; nothing is written.
            StorageError: The storage failed; the same call can be made again.
        """
        return self._operations.change(
            operation_id, OperationStatus.COMPLETED, tenant_id=tenant_id, result=result
        )

    def fail_operation(
        self, operation_id: str, error: str, *, tenant_id: str | None = None
    ) -> BackgroundOperation:
        """
        Record the failure of an operation; the same text again is no error.

        Raises:
            OperationNotFoundError: There is none for this tenant.
            InvalidTransitionError: It has ended otherwise.
            StorageError: The storage failed; the same call can be made again.
        """
        return self._operations.change(
            operation_id, OperationStatus.FAILED, tenant_id=tenant_id, error=error
        )

    def get_operation_status(
        self, operation_id: str, tenant_id: str | None = None
    ) -> BackgroundOperation:
        """
        Return an operation as it stands, the record of its key included.

        Raises:
            OperationNotFoundError: There is none for this tenant.
            CorruptRecordError: It cannot be read.
            StorageError: The storage failed.
        """
        return self._operations.get(operation_id, tenant_id=tenant_id)

    def list_operations(
        self,
        tenant_id: str,
        *,
        status: OperationStatus | str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> OperationPage:
        """
        Return one page of a tenant's operations, newest first.

        A page may hold fewer than `limit` although more follow; only a cursor of
        None means the end. Costs the same however many operations there are.

        Raises:
            ConfigurationError: The status is unknown, or the limit not positive.
            StorageError: The storage failed.
        """
        _check_positive("limit", limit)
        return self._operations.list(
            tenant_id, status=_to_status(status), limit=limit, cursor=cursor
        )

    # Locks

    def lock(
        self, name: str, ttl: float = 30, wait: float = 0, *, max_hold: float | None = None
    ) -> DistributedLock:
        """
        Make a lock object for one execution; nothing is taken yet.

        Args:
            name: What is locked.
            ttl: Seconds that the lock lives without a renewal.
            wait: Seconds that acquiring waits for another holder.
            max_hold: Seconds after which it is not renewed any more; the setting
                `max_execution` without one.

        Raises:
            ConfigurationError: A duration cannot work.
            LockError: The name cannot be used.
        """
        return DistributedLock(
            name,
            storage=self.storage,
            heartbeat=self.heartbeat,
            events=self.events,
            clock=self._clock,
            ttl=ttl,
            wait=wait,
            max_hold=max_hold,
        )

    # Housekeeping

    def cleanup_now(
        self, batch_size: int = 1000, max_records: int | None = None, dry_run: bool = False
    ) -> CleanupReport:
        """
        Remove what has expired, in batches; safe beside any other use.

        Blocks until nothing expired is left or `max_records` are removed. With
        `dry_run` it only counts.

        Raises:
            ConfigurationError: A number is not positive.
            StorageError: The storage failed; what was removed stays removed.
        """
        _check_positive("batch_size", batch_size)
        if max_records is not None:
            _check_positive("max_records", max_records)
        return clean_up(
            self.storage, batch_size=batch_size, max_records=max_records, dry_run=dry_run
        )

    def health_check(self) -> HealthReport:
        """
        Report whether the storage answers, and what will hurt; does not raise.
        """
        return report_health(self.storage, self.heartbeat, self.config, self._clock)

    def get_stats(self) -> ManagerStats:
        """
        Count what is stored, and what this process has seen.

        Raises:
            StorageError: The storage failed.
        """
        return collect_stats(self.storage.get_stats(), self.guard, self.events.dropped)


def _to_status(status: OperationStatus | str | None) -> OperationStatus | None:
    if status is None:
        return None
    try:
        return OperationStatus(status)
    except ValueError:
        known = ", ".join(OperationStatus)
        raise ConfigurationError("status", f"must be one of {known}.", value=status) from None


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(
            name, f"must be a whole number over 0, not {value!r}.", value=value
        )
