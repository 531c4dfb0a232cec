"""
A storage whose payloads and data nobody reads who lacks the project's codec.
"""

from __future__ import annotations

import logging

from dotmac_tasks.errors import CorruptRecordError, StorageError
from dotmac_tasks.keys import key_hash
from dotmac_tasks.models import (
    BackgroundPage,
    BackgroundRecord,
    ClaimReply,
    ClaimRequest,
    OperationStatus,
    SettleOutcome,
    StoredOperation,
    WriteOutcome,
)
from dotmac_tasks.serialization import SEALED, encode_tombstone
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.delegating import DelegatingStorage
from dotmac_tasks.typing import PayloadCodec

__all__ = ["UNSEALABLE", "SealedStorage"]

logger = logging.getLogger(__name__)

UNSEALABLE = "unsealable"
"""
Reason of the tombstone of an outcome that the codec could not seal.
"""

# Already public words, and all that is left where the codec fails.
_TOMBSTONE = encode_tombstone("")


class SealedStorage(DelegatingStorage):
    """
    Passes every verb on to another storage; what is written goes through a codec.

    Sealed are outcomes and the data of background operations. What was stored
    before the codec was set is read as it is, unless `require_sealed` is set. What
    cannot be opened counts as damaged. Tombstones are never sealed. The codec is
    told which record it works for, so that it can keep a sealed payload from being
    moved to another one.

    Holds no state; as shareable between threads and across forks as the wrapped
    storage and the codec.
    """

    def __init__(
        self, storage: Storage, codec: PayloadCodec, *, require_sealed: bool = False
    ) -> None:
        super().__init__(storage)
        self._codec = codec
        self._require_sealed = require_sealed

    def claim_operation(self, request: ClaimRequest) -> ClaimReply:
        """
        Open the outcome that a duplicate gets.
        """
        reply = self.wrapped.claim_operation(request)
        if not reply.payload:
            return reply
        return reply._replace(payload=self._open(reply.payload, _record_name(request.key)))

    def ensure_operation(self, request: ClaimRequest) -> StoredOperation:
        """
        Open the outcome of a record that is there.
        """
        return self._open_operation(self.wrapped.ensure_operation(request))

    def find_operation(self, key: str) -> StoredOperation | None:
        """
        Open the outcome of a record.
        """
        record = self.wrapped.find_operation(key)
        return None if record is None else self._open_operation(record)

    def complete_operation(
        self, request: ClaimRequest, fencing_token: int, payload: bytes, *, failed: bool
    ) -> WriteOutcome:
        """
        Seal the outcome; one that cannot be sealed leaves a tombstone.
        """
        sealed = self._seal_outcome(payload, request.key)
        return self.wrapped.complete_operation(request, fencing_token, sealed, failed=failed)

    def settle_operation(
        self, key: str, payload: bytes, *, failed: bool, tenant_id: str | None = None
    ) -> SettleOutcome:
        """
        Seal the outcome; one that cannot be sealed leaves a tombstone.
        """
        sealed = self._seal_outcome(payload, key)
        return self.wrapped.settle_operation(key, sealed, failed=failed, tenant_id=tenant_id)

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
        Seal the data.

        Raises:
            StorageError: Also where the codec failed; nothing was written.
        """
        record = self.wrapped.save_background(
            operation_id,
            tenant_id,
            status,
            self._seal(data, _operation_name(operation_id)),
            expected_revision=expected_revision,
            request_id=request_id,
            retention=retention,
        )
        return self._open_background(record)

    def find_background(self, operation_id: str) -> BackgroundRecord | None:
        """
        Open the data of an operation.
        """
        record = self.wrapped.find_background(operation_id)
        return None if record is None else self._open_background(record)

    def list_background(
        self,
        tenant_id: str,
        *,
        status: OperationStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> BackgroundPage:
        """
        Open the data of every operation on a page; leave out what cannot be opened.
        """
        page = self.wrapped.list_background(tenant_id, status=status, limit=limit, cursor=cursor)
        records = []
        for record in page.records:
            try:
                records.append(self._open_background(record))
            except CorruptRecordError as error:
                # Without the traceback: it ends in the codec, which may show what it was given.
                logger.error(
                    "A background operation cannot be opened and is left out: %s",
                    error,
                    extra={"tenant_id": tenant_id, "key_hash": key_hash(record.operation_id)},
                )
        return BackgroundPage(records, page.cursor)

    def _open_operation(self, record: StoredOperation) -> StoredOperation:
        if not record.payload:
            return record
        return record._replace(payload=self._open(record.payload, _record_name(record.key)))

    def _open_background(self, record: BackgroundRecord) -> BackgroundRecord:
        return record._replace(data=self._open(record.data, _operation_name(record.operation_id)))

    def _seal_outcome(self, payload: bytes, key: str) -> bytes:
        if payload.startswith(_TOMBSTONE):
            return payload
        try:
            return self._seal(payload, _record_name(key))
        except StorageError as error:
            # The work is done: it must neither run again nor be stored for everybody to read.
            logger.error(
                "An outcome cannot be sealed; it is not kept: %s",
                error,
                extra={"key_hash": key_hash(key)},
            )
            return encode_tombstone(UNSEALABLE)

    def _seal(self, payload: bytes, name: str) -> bytes:
        try:
            return SEALED + self._codec.encode(payload, name)
        except Exception as error:  # noqa: BLE001 - a codec may raise anything
            # Without its text and its cause, which may hold what was to be kept secret.
            raise StorageError(
                self.name,
                f"PAYLOAD_CODEC could not encode: {type(error).__name__}. Nothing was written; "
                "correct the codec or its keys.",
            ) from None

    def _open(self, payload: bytes, name: str) -> bytes:
        if not payload.startswith(SEALED):
            if self._require_sealed and not payload.startswith(_TOMBSTONE):
                raise _damage(self.name, name, "it is not sealed, and REQUIRE_SEALED is set")
            return payload
        try:
            # Also refuses what a codec returns that is no bytes.
            return b"" + self._codec.decode(payload[len(SEALED) :], name)
        except Exception as error:  # noqa: BLE001 - a codec may raise anything
            reason = f"PAYLOAD_CODEC could not decode it: {type(error).__name__}"
            raise _damage(self.name, name, reason) from None


def _damage(backend: str, name: str, reason: str) -> CorruptRecordError:
    return CorruptRecordError(backend, name.partition(":")[2], reason)


def _record_name(key: str) -> str:
    return f"idempo:{key}"


def _operation_name(operation_id: str) -> str:
    return f"operation:{operation_id}"
