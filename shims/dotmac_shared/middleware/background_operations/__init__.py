"""
The names of the earlier package; each use warns, or fails, and says what to import instead.

With ``DOTMAC_TASKS_LEGACY=error`` in the environment a use is an ImportError.
Importing this module warns of nothing and imports nothing.
"""

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dotmac_tasks import (
        BackgroundOperation,
        BackgroundOperationsManager,
        BackgroundOperationsMiddleware,
        IdempotencyKey,
        MemoryStorage,
        OperationStatus,
        SagaStep,
        SagaStepStatus,
        SagaWorkflow,
        add_background_operations_middleware,
        get_idempotency_key,
        is_idempotent_request,
        set_operation_result,
    )

__all__ = [
    "BackgroundOperation",
    "BackgroundOperationsManager",
    "BackgroundOperationsMiddleware",
    "IdempotencyKey",
    "MemoryStorage",
    "OperationStatus",
    "SagaStep",
    "SagaStepStatus",
    "SagaWorkflow",
    "add_background_operations_middleware",
    "get_idempotency_key",
    "is_idempotent_request",
    "set_operation_result",
]

# It is a package only to hold py.typed. Of a package, `from … import Name` asks for each name
# twice, and each use would warn twice.
del __path__

if not TYPE_CHECKING:  # or a type checker would take any name for one of this module

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        advice = f"{__name__}.{name} is deprecated. Write: from dotmac_tasks import {name}"
        mode = os.environ.get("DOTMAC_TASKS_LEGACY") or "warn"
        if mode not in ("warn", "error"):
            raise ImportError(f"DOTMAC_TASKS_LEGACY is {mode!r}. Set it to warn or to error.")
        if mode == "error":
            raise ImportError(f"{advice} (DOTMAC_TASKS_LEGACY=error forbids the old name)")
        try:
            value = getattr(importlib.import_module("dotmac_tasks"), name)
        except ModuleNotFoundError as error:
            if error.name != "dotmac_tasks":
                raise
        else:
            warnings.warn(advice, DeprecationWarning, stacklevel=2)
            return value
        raise ImportError(
            f"{__name__}.{name} is now dotmac_tasks.{name}, and dotmac_tasks is not installed. "
            "Install it with: pip install dotmac-tasks",
            name="dotmac_tasks",
        )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
