"""
Background operations: one piece of work each, to be listed and looked at.

An operation is moved along by whoever does the work. One that is linked to an
idempotency key shows what that key's record says, since that is where the
executor writes; an outcome seen there is copied, because the record of the key
vanishes sooner.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    CorruptRecordError,
    OperationNotFoundError,
    SerializationError,
    StaleRecordError,
    StorageError,
)
from dotmac_tasks.events import EventDispatcher, OperationCompleted, OperationEnqueued
from dotmac_tasks.keys import key_hash, new_token, validate_stored_key
from dotmac_tasks.models import (
    BackgroundOperation,
    BackgroundRecord,
    IdempotencyKey,
    KeySummary,
    OperationPage,
    OperationStatus,
    StoredOperation,
)
from dotmac_tasks.serialization import (
    ErrorOutcome,
    HttpOutcome,
    JsonOutcome,
    Outcome,
    decode_payload,
    encode_result,
)
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.transitions import ensure_transition, is_final
from dotmac_tasks.typing import Parameters

__all__ = ["BackgroundOperations", "show_key", "summarise_key"]

logger = logging.getLogger(__name__)

# Attempts to change a record that others change as well; each loss means that somebody won.
_ATTEMPTS = 10
_VERSION = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Facts(NamedTuple):
    """
    What the storage keeps of an operation without understanding it.
    """

    operation_type: str
    user_id: str | None
    idempotency_key: str | None
    parameters: dict[str, Any]
    result: Any = None
    error: str | None = None

    def encode(self) -> bytes:
        """
        Return it as stored.

        Raises:
            SerializationError: Parameters or result are not JSON.
        """
        return encode_result({"version": _VERSION, **self._asdict()})


class BackgroundOperations:
    """
    Creates, changes, shows and lists background operations.

    Instances may be shared between threads; holds no state of its own.
    """

    def __init__(self, storage: Storage, events: EventDispatcher, config: TasksConfig) -> None:
        self._storage = storage
        self._events = events
        self._retention = config.operation_retention

    def create(
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

        One atomic write. If the reply is lost, the same call with the same id can
        be made again; without an id of its own, that makes a second operation.

        Raises:
            InvalidKeyError: The id or the key cannot be stored.
            SerializationError: A parameter is not JSON.
            StaleRecordError: Another tenant has an operation of this id.
            StorageError: The storage failed.
        """
        operation_id = new_token() if operation_id is None else operation_id
        validate_stored_key(operation_id)
        if idempotency_key is not None:
            validate_stored_key(idempotency_key)
        facts = _Facts(operation_type, user_id, idempotency_key, dict(parameters or {}))
        try:
            record = self._storage.save_background(
                operation_id,
                tenant_id,
                OperationStatus.PENDING,
                facts.encode(),
                expected_revision=0,
                request_id=new_token(),
                retention=None,
            )
        except StaleRecordError:
            existing = self._storage.find_background(operation_id)
            if existing is None or existing.tenant_id != tenant_id:
                raise
            return self._view(existing)
        if self._events.active:
            self._events.emit(
                OperationEnqueued(
                    tenant_id=tenant_id,
                    operation_type=operation_type,
                    key_hash=key_hash(operation_id),
                )
            )
        return self._show(record, facts)

    def get(self, operation_id: str, *, tenant_id: str | None = None) -> BackgroundOperation:
        """
        Return the operation as it stands, its key's record included.

        Raises:
            OperationNotFoundError: There is none for this tenant.
            CorruptRecordError: It, or the record of its key, cannot be read.
            StorageError: The storage failed.
        """
        return self._view(self._find(operation_id, tenant_id))

    def change(
        self,
        operation_id: str,
        status: OperationStatus,
        *,
        tenant_id: str | None = None,
        result: Any = None,
        error: str | None = None,
    ) -> BackgroundOperation:
        """
        Move an operation along, unless somebody else ended it otherwise.

        Atomic by the revision of the record: of two that end it at once, one
        wins, and the other is told. The same ending again is no error, so that a
        call whose reply was lost can be repeated.

        Raises:
            OperationNotFoundError: There is none for this tenant.
            InvalidTransitionError: It has ended otherwise.
            SerializationError: The result is not JSON; nothing is written.
            StaleRecordError: Others changed it all the time.
            StorageError: The storage failed.
        """
        stale: StaleRecordError | None = None
        for _ in range(_ATTEMPTS):
            record = self._find(operation_id, tenant_id)
            facts = self._decode(record)
            ended = facts._replace(result=result, error=error)
            if record.status is status and is_final(status) and ended == facts:
                return self._show(record, facts)
            ensure_transition(f"Operation {operation_id}", record.status, status)
            try:
                saved = self._save(record, status, ended)
            except StaleRecordError as conflict:
                stale = conflict
                continue
            self._report(saved, ended)
            return self._show(saved, ended)
        raise stale or OperationNotFoundError(operation_id)

    def list(
        self,
        tenant_id: str,
        *,
        status: OperationStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> OperationPage:
        """
        Return one page of a tenant's operations, newest first.

        Costs one call, and one more for each operation on it that is linked to a
        key and has not ended. A page may hold fewer than `limit` although more
        follow; only a cursor of None means the end. An operation that cannot be
        read is left out and logged.

        Raises:
            StorageError: The storage failed.
        """
        page = self._storage.list_background(tenant_id, status=status, limit=limit, cursor=cursor)
        operations = []
        for record in page.records:
            try:
                operation = self._view(record)
            except CorruptRecordError:
                logger.exception(
                    "A background operation cannot be read and is left out",
                    extra=_record_fields(record),
                )
                continue
            # The record of its key may have moved on since it was indexed.
            if status is None or operation.status is status:
                operations.append(operation)
        return OperationPage(operations, page.cursor)

    def _find(self, operation_id: str, tenant_id: str | None) -> BackgroundRecord:
        record = self._storage.find_background(operation_id)
        if record is None or (tenant_id is not None and record.tenant_id != tenant_id):
            raise OperationNotFoundError(operation_id)
        return record

    def _save(
        self, record: BackgroundRecord, status: OperationStatus, facts: _Facts
    ) -> BackgroundRecord:
        return self._storage.save_background(
            record.operation_id,
            record.tenant_id,
            status,
            facts.encode(),
            expected_revision=record.revision,
            request_id=new_token(),
            retention=self._retention if is_final(status) else None,
        )

    def _report(self, record: BackgroundRecord, facts: _Facts) -> None:
        if self._events.active and is_final(record.status):
            self._events.emit(
                OperationCompleted(
                    tenant_id=record.tenant_id,
                    operation_type=facts.operation_type,
                    key_hash=key_hash(record.operation_id),
                    status=record.status.value,
                    duration=0.0,
                )
            )

    def _view(self, record: BackgroundRecord) -> BackgroundOperation:
        """
        Show a record; one that has not ended, as the record of its key has it.
        """
        facts = self._decode(record)
        if facts.idempotency_key is None or is_final(record.status):
            return self._show(record, facts)
        linked = self._storage.find_operation(facts.idempotency_key)
        # A key that another tenant holds is not this operation's, whatever it is called.
        if linked is None or linked.tenant_id != record.tenant_id:
            return self._show(record, facts)
        key = show_key(linked, self._storage.name)
        facts = facts._replace(result=key.result, error=key.error)
        if is_final(key.status):
            record = self._adopt(record, key.status, facts)
        return self._show(record._replace(status=key.status), facts)

    def _adopt(
        self, record: BackgroundRecord, status: OperationStatus, facts: _Facts
    ) -> BackgroundRecord:
        # The record of the key vanishes sooner than the operation. Whoever looks next adopts it if
        # this fails, and what is shown now is right in any case.
        try:
            return self._save(record, status, facts)
        except (SerializationError, StorageError) as error:
            logger.info(
                "The outcome of a key was not copied to its operation: %s",
                error,
                extra={**_record_fields(record), "operation_type": facts.operation_type},
            )
            return record

    def _decode(self, record: BackgroundRecord) -> _Facts:
        try:
            outcome = decode_payload(record.data)
            if not isinstance(outcome, JsonOutcome):
                raise ValueError("it holds no facts")
            data = dict(outcome.value)
            version = data.pop("version")
            if version != _VERSION:
                raise ValueError(f"its version is {version!r}")
            return _Facts(**data)
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptRecordError(self._storage.name, record.operation_id, str(error)) from error

    def _show(self, record: BackgroundRecord, facts: _Facts) -> BackgroundOperation:
        return BackgroundOperation(
            operation_id=record.operation_id,
            tenant_id=record.tenant_id,
            user_id=facts.user_id,
            operation_type=facts.operation_type,
            status=record.status,
            created_at=_to_instant(record.created_ms),
            updated_at=_to_instant(record.updated_ms),
            expires_at=None if record.expires_ms is None else _to_instant(record.expires_ms),
            idempotency_key=facts.idempotency_key,
            parameters=facts.parameters,
            result=facts.result,
            error=facts.error,
            revision=record.revision,
        )


def show_key(record: StoredOperation, backend: str) -> IdempotencyKey:
    """
    Turn a stored idempotency record into the one that is handed out.

    The result of a recorded response is its body where that is JSON, else None.

    Raises:
        CorruptRecordError: Its outcome cannot be read.
    """
    facts: dict[str, Any] = {}
    if is_final(record.status):
        try:
            outcome = decode_payload(record.payload)
        except ValueError as damage:
            raise CorruptRecordError(backend, record.key, str(damage)) from damage
        facts = _show_outcome(outcome)
    return IdempotencyKey(**_show_facts(record), **facts)


def summarise_key(record: StoredOperation) -> KeySummary:
    """
    Turn a stored idempotency record into what a listing shows of it.
    """
    return KeySummary(**_show_facts(record))


def _show_facts(record: StoredOperation) -> dict[str, Any]:
    return {
        "key": record.key,
        "tenant_id": record.tenant_id,
        "user_id": record.user_id or None,
        "operation_type": record.operation_type,
        "status": record.status,
        "created_at": _to_instant(record.created_ms),
        "expires_at": None if record.expires_ms is None else _to_instant(record.expires_ms),
        "fencing_token": record.fencing_token,
        "lease_until": _to_instant(record.lease_ms) if record.lease_ms else None,
        "deferred": record.deferred,
        "abandoned": record.abandoned,
        "outcome_size": record.payload_size,
    }


def _show_outcome(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, JsonOutcome):
        return {"outcome_kind": "result", "result": outcome.value}
    if isinstance(outcome, ErrorOutcome):
        return {"outcome_kind": "failure", "error": outcome.message}
    if isinstance(outcome, HttpOutcome):
        return {
            "outcome_kind": "response",
            "result": _read_body(outcome),
            "response_status": outcome.status,
        }
    return {"outcome_kind": "not-kept", "not_kept_reason": outcome.reason}


def _read_body(response: HttpOutcome) -> Any:
    try:
        result = json.loads(response.body)
        encode_result(result)  # Python reads more than JSON has, such as NaN.
    except (ValueError, RecursionError):
        return None
    return result


def _record_fields(record: BackgroundRecord) -> dict[str, str]:
    return {"tenant_id": record.tenant_id, "key_hash": key_hash(record.operation_id)}


def _to_instant(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=milliseconds)
