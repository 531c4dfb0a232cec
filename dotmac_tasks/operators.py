"""
What people do with idempotency keys: find one, look through them, and decide.

Each decision is one atomic step of the storage. It is made for a reason, and is
logged and told to the hooks with who made it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from dotmac_tasks.errors import (
    ConfigurationError,
    CorruptRecordError,
    StorageError,
    StorageTimeoutError,
)
from dotmac_tasks.events import EventDispatcher, KeyDecided, OperationCompleted, log_fields
from dotmac_tasks.http import principal_scope
from dotmac_tasks.keys import http_storage_key, key_hash, parse_key_header, validate_stored_key
from dotmac_tasks.models import (
    KeyPage,
    OperationStatus,
    SettleOutcome,
    StoredOperation,
)
from dotmac_tasks.operations import summarise_key
from dotmac_tasks.serialization import bound_payload, encode_error, encode_result
from dotmac_tasks.storage.base import Storage

__all__ = ["KeyDecisions", "find_stored_key"]

logger = logging.getLogger(__name__)

_SCOPES = ("user:", "credentials:")


def find_stored_key(  # nosec B107 - an empty secret is none
    tenant_id: str, principal: str | None, client_key: str, secret: str = ""
) -> str:
    """
    Return the key under which a client's key is stored; asks nobody.

    Args:
        tenant_id: The tenant.
        principal: The user's id, or a whole scope as `principal_scope` forms it;
            None or empty for anonymous callers.
        client_key: What the client sent in the header, quoted or not.
        secret: The setting `KEY_SECRET`.

    Raises:
        InvalidKeyError: No client could send this key.
    """
    scope = principal or ""
    if not scope.startswith(_SCOPES):
        scope = principal_scope(scope, None)
    return http_storage_key(tenant_id, scope, parse_key_header(client_key), secret)


class _Decision(NamedTuple):
    """
    What somebody decided about a key, and the record they saw if it could be read.
    """

    what: str
    key: str
    record: StoredOperation | None
    reason: str
    by: str


class KeyDecisions:
    """
    Lists keys, gives them back and records outcomes for them.

    Instances may be shared between threads; holds no state of its own.
    """

    def __init__(self, storage: Storage, events: EventDispatcher, *, max_bytes: int) -> None:
        self._storage = storage
        self._events = events
        self._max_bytes = max_bytes

    def list(
        self,
        *,
        tenant_id: str | None,
        status: OperationStatus | None,
        abandoned: bool,
        limit: int,
        cursor: str | None,
    ) -> KeyPage:
        """
        Return one page of the keys.

        Raises:
            ConfigurationError: What is abandoned has no other status than in progress.
            ValueError: The cursor is none that a listing returned.
            StorageError: The storage failed.
        """
        if abandoned:
            if status not in (None, OperationStatus.IN_PROGRESS):
                raise ConfigurationError(
                    "status", "must be in_progress for abandoned ones.", value=status
                )
            status = OperationStatus.IN_PROGRESS
        page = self._storage.list_operations(
            tenant_id=tenant_id, status=status, limit=limit, cursor=cursor
        )
        keys = [
            summarise_key(record) for record in page.records if record.abandoned or not abandoned
        ]
        return KeyPage(keys, page.unreadable, page.cursor)

    def settle(
        self, key: str, result: Any, error: str | None, *, tenant_id: str | None
    ) -> SettleOutcome:
        """
        Record an outcome for an operation that has no live executor.

        Raises:
            InvalidKeyError: No record can have this key.
            SerializationError: The result is not JSON; nothing is written.
            StorageError: The storage failed; the same call can be made again.
        """
        validate_stored_key(key)
        payload = encode_result(result) if error is None else encode_error(error)
        payload = bound_payload(payload, self._max_bytes)
        outcome = self._storage.settle_operation(
            key, payload, failed=error is not None, tenant_id=tenant_id
        )
        if self._events.active and outcome is SettleOutcome.DONE:
            self._report_settled(key)
        return outcome

    def resolve(
        self,
        key: str,
        result: Any,
        error: str | None,
        *,
        tenant_id: str | None,
        reason: str,
        by: str,
    ) -> SettleOutcome:
        """
        Record an outcome as a person's decision.

        Raises:
            ConfigurationError: There is no reason, or nobody who gives it.
            InvalidKeyError: No record can have this key.
            SerializationError: The result is not JSON; nothing is written.
            StorageError: The storage failed; the same call can be made again.
        """
        reason, by = _read_words("reason", reason), _read_words("by", by)
        validate_stored_key(key)
        decision = _Decision("resolved", key, self._storage.find_operation(key), reason, by)
        return self._carry_out(
            decision, lambda: self.settle(key, result, error, tenant_id=tenant_id)
        )

    def release(
        self,
        key: str,
        *,
        tenant_id: str | None,
        reason: str,
        by: str,
        finished: bool,
        unreadable: bool,
        fencing_token: int | None,
    ) -> SettleOutcome:
        """
        Give a key back as a person's decision.

        Raises:
            ConfigurationError: There is no reason, or nobody who gives it.
            InvalidKeyError: No record can have this key.
            CorruptRecordError: It cannot be read, and stays.
            StorageError: The storage failed. The same call can be made again; it
                answers ABSENT where the first one was carried out.
        """
        reason, by = _read_words("reason", reason), _read_words("by", by)
        validate_stored_key(key)
        try:
            record = self._storage.find_operation(key)
        except CorruptRecordError:
            if not unreadable:
                raise
            record = None
        else:
            if record is None:
                return SettleOutcome.ABSENT
            if fencing_token is None:
                # What is claimed anew from here on is not what this decision is about.
                fencing_token = record.fencing_token
        return self._carry_out(
            _Decision("released", key, record, reason, by),
            lambda: self._storage.discard_operation(
                key,
                tenant_id=tenant_id,
                finished=finished,
                fencing_token=fencing_token,
                unreadable=unreadable,
            ),
        )

    def _carry_out(self, decision: _Decision, act: Callable[[], SettleOutcome]) -> SettleOutcome:
        """
        Act, and tell of it if that changed anything, or may have.
        """
        what, key, record, reason, by = decision
        facts = _describe(key, record)
        fields = {**facts, "decision": what, "reason": reason, "by": by}
        try:
            outcome = act()
        except StorageTimeoutError:
            message = "A key may have been %s by %s, the storage gave no answer: %s"
            logger.warning(message, what, by, reason, extra=fields)
            raise
        if outcome is SettleOutcome.DONE:
            logger.warning("A key was %s by %s: %s", what, by, reason, extra=fields)
            self._events.emit(KeyDecided(**facts, decision=what, reason=reason, by=by))
        return outcome

    def _report_settled(self, key: str) -> None:
        try:
            record = self._storage.find_operation(key)
        except StorageError:
            return  # It is recorded; only the hooks do not learn of it.
        if record is not None:
            self._events.emit(
                OperationCompleted(**log_fields(record), status=record.status.value, duration=0.0)
            )


def _read_words(name: str, text: str) -> str:
    """
    Return what a person wrote, on one line of printable characters.
    """
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not words:
        raise ConfigurationError(
            name, "is empty. Say it in words: others read it in the log when you are not there."
        )
    return words


def _describe(key: str, record: StoredOperation | None) -> dict[str, str]:
    if record is not None:
        return log_fields(record)
    return {"tenant_id": "", "operation_type": "", "key_hash": key_hash(key)}
