"""
Retried requests and calls whose work happens once.

The public names of the framework-neutral core. What needs redis-py is imported
when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dotmac_tasks.errors import (
    ClaimLostError,
    ConfigurationError,
    CorruptRecordError,
    IdempotencyError,
    InvalidKeyError,
    InvalidTransitionError,
    KeyReusedError,
    LockError,
    LockLostError,
    LockNotAcquiredError,
    OperationFailedError,
    OperationInProgressError,
    OperationNotFoundError,
    OutcomeUnknownError,
    SerializationError,
    StaleRecordError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
    TasksError,
)
from dotmac_tasks.events import MetricsHooks
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import BackgroundOperation, IdempotencyKey, OperationStatus
from dotmac_tasks.reconciliation import AbandonedOperation, Verdict
from dotmac_tasks.saga_models import (
    SagaHistoryEntry,
    SagaStatus,
    SagaStep,
    SagaStepStatus,
    SagaWorkflow,
)
from dotmac_tasks.storage import MemoryStorage, Storage
from dotmac_tasks.wsgi import (
    BackgroundOperationsMiddleware,
    add_background_operations_middleware,
    defer_operation,
    get_idempotency_key,
    is_idempotent_request,
    set_operation_result,
)

if TYPE_CHECKING:
    from dotmac_tasks.storage.redis import RedisStorage

    __version__: str

__all__ = [
    "AbandonedOperation",
    "BackgroundOperation",
    "BackgroundOperationsManager",
    "BackgroundOperationsMiddleware",
    "ClaimLostError",
    "ConfigurationError",
    "CorruptRecordError",
    "IdempotencyError",
    "IdempotencyKey",
    "InvalidKeyError",
    "InvalidTransitionError",
    "KeyReusedError",
    "LockError",
    "LockLostError",
    "LockNotAcquiredError",
    "MemoryStorage",
    "MetricsHooks",
    "OperationFailedError",
    "OperationInProgressError",
    "OperationNotFoundError",
    "OperationStatus",
    "OutcomeUnknownError",
    "RedisStorage",
    "SagaHistoryEntry",
    "SagaStatus",
    "SagaStep",
    "SagaStepStatus",
    "SagaWorkflow",
    "SerializationError",
    "StaleRecordError",
    "Storage",
    "StorageError",
    "StorageTimeoutError",
    "StorageUnavailableError",
    "TasksError",
    "Verdict",
    "add_background_operations_middleware",
    "defer_operation",
    "get_idempotency_key",
    "is_idempotent_request",
    "set_operation_result",
]


def __getattr__(name: str) -> Any:
    if name == "RedisStorage":
        from dotmac_tasks.storage import RedisStorage

        return RedisStorage
    if name == "__version__":
        from importlib.metadata import version

        return version("dotmac-tasks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
