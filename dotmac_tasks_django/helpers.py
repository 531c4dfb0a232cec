"""
What a view may ask and say about its own idempotent request.

They take the request that the view got, a REST framework's request included.
"""

from __future__ import annotations

from typing import Any

from dotmac_tasks.errors import IdempotencyError
from dotmac_tasks.keys import derive_downstream_key
from dotmac_tasks_django.protection import find_run

__all__ = [
    "defer_operation",
    "downstream_key",
    "get_idempotency_key",
    "is_idempotent_request",
    "set_operation_result",
]

_ENDED = (
    "This request has ended, so its operation cannot be handed on any more. Call "
    "defer_operation() in the view, or in on_commit of its transaction. In a TestCase nothing "
    "commits before the request has ended: use a TransactionTestCase there."
)


def get_idempotency_key(request: Any) -> str | None:
    """
    Return the key that the client sent, or None where the request has none.
    """
    run = find_run(request)
    return None if run is None else run.key


def is_idempotent_request(request: Any) -> bool:
    """
    Tell whether a retry of this request is recognised.

    False without a key, and while the storage is down.
    """
    run = find_run(request)
    return run is not None and run.protected


def set_operation_result(request: Any, result: Any) -> None:
    """
    Have retries answered with this result as JSON; does nothing without a key.

    Raises:
        SerializationError: The result is not JSON; nothing was changed.
    """
    run = find_run(request)
    if run is not None:
        run.set_result(result)


def defer_operation(request: Any, timeout: float = 3600) -> str | None:
    """
    Hand the operation on to a background worker.

    It is written before this returns, so that a fast worker cannot finish
    first. A 5xx or an exception after it gives the key back: call it last, or
    in `transaction.on_commit`. Until the worker calls
    `complete_idempotent_operation(key, result)`, retries are told that the work
    is still running.

    Args:
        request: The view's request.
        timeout: Seconds that the worker has before it counts as dead.

    Returns:
        The stored key for the worker; None without a key.

    Raises:
        IdempotencyError: The request has ended; start no worker.
        ClaimLostError: Another executor has the key; start no worker.
        StorageError: The project asks for strictness and it is not written.
    """
    run = find_run(request)
    if run is None:
        return None
    if run.ended:
        raise IdempotencyError(run.storage_key, _ENDED)
    return run.defer(timeout)


def downstream_key(request: Any, name: str) -> str:
    """
    Return a key for another system, such as a payment provider.

    The same whenever this request is sent again, in any process and also while
    the storage is down; different for every `name` and for every operation.
    64 hex digits.

    Raises:
        IdempotencyError: The request has no key, so that a retry could not be
            given the same one.
    """
    run = find_run(request)
    if run is None:
        raise IdempotencyError(
            "",
            "This request has no idempotency key to derive another from. Mark the view with "
            "@idempotent(required=True), or ask get_idempotency_key() first.",
        )
    return derive_downstream_key(run.lasting_key or run.storage_key, name)
