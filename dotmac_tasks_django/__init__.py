"""
dotmac-tasks for Django: one line in `INSTALLED_APPS`, one in `MIDDLEWARE`.

The public names are resolved when they are first used, so that Django can
import this package while it is still loading its apps.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dotmac_tasks_django.conf import get_manager
    from dotmac_tasks_django.decorators import idempotency_exempt, idempotent
    from dotmac_tasks_django.helpers import (
        defer_operation,
        downstream_key,
        get_idempotency_key,
        is_idempotent_request,
        set_operation_result,
    )

__all__ = [
    "defer_operation",
    "downstream_key",
    "get_idempotency_key",
    "get_manager",
    "idempotency_exempt",
    "idempotent",
    "is_idempotent_request",
    "set_operation_result",
]

_HOMES = {
    "defer_operation": "helpers",
    "downstream_key": "helpers",
    "get_idempotency_key": "helpers",
    "get_manager": "conf",
    "idempotency_exempt": "decorators",
    "idempotent": "decorators",
    "is_idempotent_request": "helpers",
    "set_operation_result": "helpers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
