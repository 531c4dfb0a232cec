"""
Functions and blocks of code whose work is done once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar, cast

from dotmac_tasks.claims import Claim, IdempotencyGuard, raise_for_reply
from dotmac_tasks.config import TasksConfig, to_seconds
from dotmac_tasks.errors import (
    ClaimLostError,
    ConfigurationError,
    CorruptRecordError,
    IdempotencyError,
    OperationFailedError,
    OutcomeUnknownError,
    SerializationError,
    StorageTimeoutError,
)
from dotmac_tasks.keys import generate_idempotency_key, new_token, validate_stored_key
from dotmac_tasks.models import AbandonedPolicy, ClaimRequest
from dotmac_tasks.reconciliation import Reconcile, Reconciler, find_reconcile
from dotmac_tasks.serialization import (
    ErrorOutcome,
    JsonOutcome,
    decode_payload,
    encode_result,
    encode_tombstone,
)
from dotmac_tasks.typing import Parameters

__all__ = [
    "UNSERIALIZABLE",
    "FunctionKey",
    "IdempotentOperation",
    "OperationSettings",
    "decorate_function",
    "fingerprint_of",
    "resolve_settings",
]

P = ParamSpec("P")
R = TypeVar("R")

UNSERIALIZABLE = "unserializable"
"""
Reason of the tombstone that a result leaves which is not JSON.
"""


class OperationSettings(NamedTuple):
    """
    How a protected function or block claims its keys.

    Attributes:
        operation_type: What kind of work; part of the key.
        ttl: Retention of the outcome, in seconds.
        lease: Seconds that the claim lives without a renewal.
        wait: Seconds that a duplicate waits for the running one.
        on_abandoned: What may happen when an executor died.
        find_reconcile: Finds what says what became of abandoned work; None for nothing.
    """

    operation_type: str
    ttl: float
    lease: float
    wait: float
    on_abandoned: AbandonedPolicy
    find_reconcile: Callable[[], Reconcile] | None = None

    def to_request(
        self, key: str, tenant_id: str, user_id: str | None, fingerprint: str
    ) -> ClaimRequest:
        """
        Build one call's request, with an owner token of its own.

        Raises:
            InvalidKeyError: The key cannot be stored.
            ConfigurationError: The tenant or the user is not text.
        """
        validate_stored_key(key)
        _check_text("tenant_id", tenant_id)
        if user_id is not None:
            _check_text("user_id", user_id)
        return ClaimRequest(
            key,
            new_token(),
            tenant_id,
            user_id or "",
            self.operation_type,
            fingerprint,
            self.ttl,
            self.lease,
            self.on_abandoned,
        )


def resolve_settings(
    config: TasksConfig,
    operation_type: str,
    *,
    ttl: float | None = None,
    wait: float | None = None,
    lease: float | None = None,
    on_abandoned: AbandonedPolicy | None = None,
    reconcile: Reconcile | None = None,
) -> OperationSettings:
    """
    Lay what one function or block sets over the settings.

    Raises:
        ConfigurationError: A setting cannot work.
        TypeError: The operation type is missing or no text.
    """
    if callable(operation_type):
        raise TypeError(
            'The operation type is missing: write @manager.idempotent("charge") with a name '
            "of the work that stays when the function is renamed."
        )
    if not isinstance(operation_type, str):
        raise TypeError(f"The operation type must be text, not a {type(operation_type).__name__}.")
    retention = config.default_idempotency_ttl if ttl is None else to_seconds("ttl", ttl)
    # A retention that was chosen shorter than the default lease shortens the lease with it.
    seconds = min(config.lease, retention) if lease is None else to_seconds("lease", lease)
    if seconds > retention:
        raise ConfigurationError(
            "lease", f"must be no longer than the retention ({retention:g} s).", value=lease
        )
    policy = config.on_abandoned if on_abandoned is None else on_abandoned
    if policy not in ("rerun", "refuse"):
        raise ConfigurationError("on_abandoned", 'must be "rerun" or "refuse".', value=on_abandoned)
    patience = 0.0 if wait is None else to_seconds("wait", wait, zero_allowed=True)
    if reconcile is not None and not callable(reconcile):
        raise ConfigurationError("reconcile", "must be a callable.", value=reconcile)
    return OperationSettings(
        operation_type,
        retention,
        seconds,
        patience,
        policy,
        find_reconcile(config, reconcile),
    )


class IdempotentOperation:
    """
    A block of code whose work is done once, as a context manager.

    One per execution, used by one thread::

        with manager.idempotent_operation("charge", {"order": 17}) as operation:
            if not operation.is_replay:
                operation.set_result(charge(17))
        return operation.result

    Python cannot skip the block, so it has to ask `is_replay`. A block that ends
    without `set_result` records None. An exception releases the key and passes
    through; `BaseException` (an interrupt, an exit) leaves the lease to decide.
    The result is recorded when the block ends, and what is wrong with it is raised
    there: `SerializationError`, `ClaimLostError`.

    Attributes:
        key: The stored key.
        is_replay: Whether the outcome was recorded before; known inside the block.
        result: The recorded result of a replay, else what `set_result` was given.
    """

    def __init__(
        self,
        guard: IdempotencyGuard,
        request: ClaimRequest,
        settings: OperationSettings,
        parameters: Parameters | None,
    ) -> None:
        self.key = request.key
        self.is_replay = False
        self.result: Any = None
        self._guard = guard
        self._request = request
        self._settings = settings
        self._parameters = parameters
        self._entered = False
        self._claim: Claim | None = None

    @property
    def fencing_token(self) -> int:
        """
        Number of this execution's claim, for systems that fence; 0 in a replay.
        """
        return 0 if self._claim is None else self._claim.fencing_token

    def set_result(self, result: Any) -> None:
        """
        Say what duplicates get; the last call before the block ends counts.

        Raises:
            IdempotencyError: This is a replay, so the outcome stands.
        """
        if self.is_replay:
            raise IdempotencyError(
                self.key,
                f"Operation {self.key} is a replay and its outcome stands. "
                "Ask `is_replay` before doing the work.",
            )
        self.result = result

    def __enter__(self) -> Self:
        """
        Claim the key, or fetch the recorded result.

        Raises:
            IdempotencyError: The key is running, unresolved, failed or used for
                something else; the block does not run.
            StorageError: The storage failed; the block does not run.
        """
        if self._entered:
            raise IdempotencyError(
                self.key,
                f"This block for operation {self.key} was entered before. "
                "Make a new one for every execution.",
            )
        self._entered = True
        self._claim, self.result = _begin(
            self._guard, self._request, self._settings, lambda: dict(self._parameters or {})
        )
        self.is_replay = self._claim is None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        claim = self._claim
        if claim is None:
            return
        try:
            if kind is None:
                _record(claim, self.result)
            elif issubclass(kind, Exception):
                claim.release()
        finally:
            claim.abandon()


class FunctionKey(NamedTuple):
    """
    How the calls of one function are told apart.

    Attributes:
        tenant_id: The tenant, or what returns it for a call.
        user_id: The principal, or what returns it for a call.
        key: What returns the stored key of a call; None to build it from the call.
    """

    tenant_id: str | Callable[..., str]
    user_id: str | Callable[..., str | None] | None
    key: Callable[..., str] | None


def decorate_function(
    guard: IdempotencyGuard,
    settings: OperationSettings,
    how: FunctionKey,
    function: Callable[P, R],
) -> Callable[P, R]:
    """
    Wrap a function so that equal calls do their work once.

    Takes a plain function, a method, a `classmethod` or a `staticmethod`.

    Raises:
        TypeError: It is a coroutine function or a generator, whose work is not
            done when the call returns.
    """
    if isinstance(function, classmethod | staticmethod):
        inner = decorate_function(guard, settings, how, function.__func__)
        return cast("Callable[P, R]", type(function)(inner))
    _refuse_unfit(function)
    make_request = _request_maker(settings, how, function)
    signature = inspect.signature(function)

    def bind(*args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        return signature.bind(*args, **kwargs).arguments

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        claim, replayed = _begin(
            guard, make_request(*args, **kwargs), settings, lambda: bind(*args, **kwargs)
        )
        if claim is None:
            return cast("R", replayed)
        try:
            try:
                result = function(*args, **kwargs)
            except Exception:
                claim.release()
                raise
            _record(claim, result)
            return result
        finally:
            # An interrupt or an exit: renewing stops, and the lease decides. Else it has ended.
            claim.abandon()

    return wrapper


def fingerprint_of(operation_type: str, parameters: Any, user_id: str | None) -> str:
    """
    Return what tells apart two uses of one explicit key.

    The principal counts: whoever sends another's key gets no outcome of theirs.

    Raises:
        SerializationError: A parameter has no canonical form, or the user is not text.
    """
    return generate_idempotency_key("", user_id, operation_type, parameters)


def _begin(
    guard: IdempotencyGuard,
    request: ClaimRequest,
    settings: OperationSettings,
    get_arguments: Callable[[], dict[str, Any]],
) -> tuple[Claim | None, Any]:
    """
    Return the claim, or None and the recorded result.

    A function never runs unprotected: there is no client to whom an answer is due,
    and the caller can tell an outage from a result.
    """
    find = settings.find_reconcile
    reconciler = None if find is None else Reconciler(find, get_arguments, False)
    since = guard.monotonic()
    try:
        answer = guard.claim(request, wait=settings.wait, reconciler=reconciler)
    except StorageTimeoutError as error:
        # It may have been claimed, and nothing runs: do not block the next attempt for a lease.
        guard.forget(request, error, since)
        raise
    if isinstance(answer, Claim):
        return answer, None
    raise_for_reply(request.key, answer)
    return None, _decode(guard, request.key, answer.payload)


def _decode(guard: IdempotencyGuard, key: str, payload: bytes) -> Any:
    try:
        outcome = decode_payload(payload)
    except ValueError as error:
        raise CorruptRecordError(guard.storage.name, key, str(error)) from error
    if isinstance(outcome, JsonOutcome):
        return outcome.value
    if isinstance(outcome, ErrorOutcome):
        raise OperationFailedError(key, outcome.message)
    raise OutcomeUnknownError(key, reason="its result could not be recorded")


def _record(claim: Claim, result: Any) -> None:
    try:
        payload = encode_result(result)
    except SerializationError:
        # The work is done. Releasing the key would do it again.
        claim.complete(encode_tombstone(UNSERIALIZABLE))
        raise
    if not claim.complete(payload):
        raise ClaimLostError(claim.request.key, result=result)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ConfigurationError(name, f"must be text, not {value!r}.", value=value)


def _refuse_unfit(function: Callable[..., Any]) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if not callable(function):
        raise TypeError(f"{name} cannot be made idempotent: it is not callable.")
    if isinstance(function, type):
        raise TypeError(
            f"{name} cannot be made idempotent: it is a class. Decorate the method that does the "
            "work."
        )
    for candidate in (function, getattr(function, "__call__", None)):  # noqa: B004 - looked at, not called
        if inspect.iscoroutinefunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise TypeError(f"{name} cannot be made idempotent: it is asynchronous.")
        if inspect.isgeneratorfunction(candidate):
            raise TypeError(
                f"{name} cannot be made idempotent: a generator does its work after it returned. "
                "Return a list instead."
            )


def _request_maker(
    settings: OperationSettings, how: FunctionKey, function: Callable[P, Any]
) -> Callable[P, ClaimRequest]:
    """
    Return what builds the request of one call.
    """
    signature = inspect.signature(function)
    first = next(iter(signature.parameters), None)
    # An instance has no canonical form, and its identity differs between processes.
    left_out = first if first in ("self", "cls") else None

    def make_request(*args: P.args, **kwargs: P.kwargs) -> ClaimRequest:
        tenant_id = how.tenant_id(*args, **kwargs) if callable(how.tenant_id) else how.tenant_id
        user_id = how.user_id(*args, **kwargs) if callable(how.user_id) else how.user_id
        if how.key is not None:
            key = how.key(*args, **kwargs)
            # The same key returned for another function or user is a mistake, not a replay.
            fingerprint = fingerprint_of(settings.operation_type, None, user_id)
            return settings.to_request(key, tenant_id, user_id, fingerprint)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        parameters = {name: value for name, value in bound.arguments.items() if name != left_out}
        key = generate_idempotency_key(tenant_id, user_id, settings.operation_type, parameters)
        return settings.to_request(key, tenant_id, user_id, "")

    return make_request
