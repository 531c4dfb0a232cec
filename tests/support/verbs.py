"""
Every verb of the storage contract, with arguments that a wrapper has to pass on.
"""

from __future__ import annotations

from typing import Any

from dotmac_tasks.models import OperationStatus

CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "claim_operation": (("request",), {}),
    "ensure_operation": (("request",), {}),
    "find_operation": (("key",), {}),
    "complete_operation": (("request", 7, b"payload"), {"failed": True}),
    "release_operation": (("key", "owner"), {}),
    "defer_operation": (("request", 3.0), {}),
    "settle_operation": (("key", b"payload"), {"failed": True, "tenant_id": "t"}),
    "list_operations": (
        (),
        {"tenant_id": "t", "status": OperationStatus.FAILED, "limit": 5, "cursor": "c"},
    ),
    "discard_operation": (
        ("key",),
        {"tenant_id": "t", "finished": True, "fencing_token": 7, "unreadable": True},
    ),
    "renew_leases": ((["lease"],), {}),
    "acquire_lock": (("name", "owner", 3.0), {}),
    "release_lock": (("name", "owner"), {}),
    "save_background": (
        ("op", "t", OperationStatus.PENDING, b"data"),
        {"expected_revision": 1, "request_id": "r", "retention": 3.0},
    ),
    "find_background": (("op",), {}),
    "list_background": (
        ("t",),
        {"status": OperationStatus.FAILED, "limit": 5, "cursor": "c"},
    ),
    "purge_expired": ((10,), {"dry_run": True}),
    "check_health": ((), {}),
    "get_stats": ((), {}),
    "close": ((), {}),
}
