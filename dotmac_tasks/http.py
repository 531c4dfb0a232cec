"""
What a request with an idempotency key gets, decided once for every framework.

An adapter describes the request (`HttpRequest`), asks `HttpIdempotency.begin`
what to do, and does one of three things: let the request pass untouched, send
the `Answer`, or run the application and tell the `Run` how it ended. Nothing
here knows a framework, and no adapter decides anything about idempotency.

Sources: RFC 9110 (methods, statuses), RFC 9457 (problem documents), the IETF
HTTPAPI draft "The Idempotency-Key HTTP Header Field".
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    ClaimLostError,
    ConfigurationError,
    CorruptRecordError,
    InvalidKeyError,
    StorageError,
    StorageTimeoutError,
)
from dotmac_tasks.events import StorageUnprotected
from dotmac_tasks.fingerprint import request_fingerprint
from dotmac_tasks.idempotency import Claim
from dotmac_tasks.keys import http_storage_key, key_hash, new_token, parse_key_header
from dotmac_tasks.models import AbandonedPolicy, ClaimOutcome, ClaimReply, ClaimRequest
from dotmac_tasks.serialization import (
    ErrorOutcome,
    HttpOutcome,
    JsonOutcome,
    decode_payload,
    encode_response,
    encode_result,
    encode_tombstone,
)

if TYPE_CHECKING:
    from dotmac_tasks.events import EventDispatcher
    from dotmac_tasks.idempotency import IdempotencyGuard

__all__ = [
    "PROBLEM_PREFIX",
    "Answer",
    "HttpIdempotency",
    "HttpRequest",
    "Run",
    "ViewOptions",
    "principal_scope",
]

logger = logging.getLogger(__name__)

PROBLEM_PREFIX = "urn:dotmac-tasks:problem:"
"""
Start of the `type` of every problem document that is sent from here.
"""

InProgress = Literal["accepted", "conflict", "wait"]
OnStorageError = Literal["proceed", "reject"]
Headers = list[tuple[str, str]]

# Replayed besides what the project adds. Cookies, challenges, CORS, Date and hop-by-hop
# fields belong to one exchange and are computed anew for each.
_REPLAYED = frozenset(
    {
        "accept-patch",
        "accept-post",
        "allow",
        "cache-control",
        "content-digest",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-location",
        "content-type",
        "deprecation",
        "etag",
        "expires",
        "last-modified",
        "link",
        "location",
        "preference-applied",
        "repr-digest",
        "sunset",
        "vary",
    }
)
_NEVER_REPLAYED = frozenset(
    {
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-connection",
        "server",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "www-authenticate",
    }
)

# Answers that say "not now" or "not you": the same request may do better later.
_RELEASING = frozenset({401, 403, 407, 408, 409, 421, 423, 425, 429})

# Nobody should be told to come back later than this while the work may end any second.
_LONGEST_RETRY_AFTER = 5


class HttpRequest(Protocol):
    """
    What an adapter tells of a request; asked for no more than is needed.

    One per request; used by the thread that serves it.
    """

    @property
    def method(self) -> str:
        """
        The method, in capitals.
        """
        ...

    @property
    def path(self) -> str:
        """
        The path as it came, not normalised, with the mount point.
        """
        ...

    @property
    def query(self) -> str:
        """
        The raw query string, without the question mark.
        """
        ...

    @property
    def content_type(self) -> str:
        """
        The raw content type, or an empty string.
        """
        ...

    def key_header(self) -> str | None:
        """
        Return the raw value of the key's header, or None where there is none.
        """
        ...

    def scope(self) -> tuple[str, str]:
        """
        Return the tenant and the principal, as `principal_scope` forms it.
        """
        ...

    def body_digest(self, selector: Callable[[Any], Any] | None) -> bytes:
        """
        Return the digest of the body, or of what a view's selector makes of it.
        """
        ...


class Answer(NamedTuple):
    """
    A whole response that goes out instead of the application's.

    Attributes:
        status: The status code.
        headers: All headers but the length.
        body: The body.
    """

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewOptions:
    """
    What one view sets differently from its project; None leaves the setting.

    Immutable; shared by all threads. The names are those of the settings.

    Attributes:
        required: Whether a request without a key is refused.
        ttl: Retention of a finished operation, in seconds.
        lease: Seconds that a claim lives without a heartbeat.
        in_progress: What a duplicate gets while the first runs.
        wait: Longest wait of a duplicate, in seconds.
        on_storage_error: Whether the view runs while the storage is down.
        on_abandoned: Whether abandoned work runs again.
        fingerprint: Picks what of the request identifies it; gets the
            framework's request and returns bytes, text or JSON data.
    """

    required: bool | None = None
    ttl: float | None = None
    lease: float | None = None
    in_progress: InProgress | None = None
    wait: float | None = None
    on_storage_error: OnStorageError | None = None
    on_abandoned: AbandonedPolicy | None = None
    fingerprint: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """
        Refuse what the settings would refuse.
        """
        _check_choice("in_progress", self.in_progress, ("accepted", "conflict", "wait"))
        _check_choice("on_storage_error", self.on_storage_error, ("proceed", "reject"))
        _check_choice("on_abandoned", self.on_abandoned, ("rerun", "refuse"))
        for name in ("ttl", "lease", "wait"):
            _check_duration(name, getattr(self, name))
        if self.fingerprint is not None and not callable(self.fingerprint):
            raise ConfigurationError("fingerprint", "must be callable", value=self.fingerprint)
        if self.required is not None and not isinstance(self.required, bool):
            raise ConfigurationError("required", "must be True or False", value=self.required)


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise ConfigurationError(name, f"must be one of {', '.join(choices)}", value=value)


def _check_duration(name: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(name, "must be a positive number of seconds", value=value)


class _Policy(NamedTuple):
    # The project's settings with one view's options laid over them.
    required: bool
    ttl: float
    lease: float
    in_progress: InProgress
    wait: float
    on_storage_error: OnStorageError
    on_abandoned: AbandonedPolicy
    fingerprint: Callable[[Any], Any] | None


def _resolve(config: TasksConfig, options: ViewOptions) -> _Policy:
    chosen = _Policy(
        required=config.require_key,
        ttl=config.default_idempotency_ttl,
        lease=config.lease,
        in_progress=config.in_progress,
        wait=config.wait,
        on_storage_error=config.on_storage_error,
        on_abandoned=config.on_abandoned,
        fingerprint=None,
    )
    set_here = {
        field.name: value
        for field in fields(options)
        if (value := getattr(options, field.name)) is not None
    }
    policy = chosen._replace(**set_here)
    if policy.lease > policy.ttl:
        raise ConfigurationError("lease", "must not be longer than the retention", value=policy.lease)
    return policy


def principal_scope(user: str | None, credentials: str | None) -> str:
    """
    Return the principal's part of a key's scope.

    The authenticated user if there is one; otherwise a digest of the
    credentials that nobody resolved, so that two bearers never share a scope;
    otherwise the empty string, which all anonymous callers of a tenant share.
    """
    if user:
        return f"user:{user}"
    if credentials:
        return "credentials:" + hashlib.sha256(credentials.encode("utf-8", "replace")).hexdigest()
    return ""


class HttpIdempotency:
    """
    Decides for one manager's settings and storage.

    Instances may be shared between threads; the cache of resolved options is
    guarded by nothing, since two threads can only put the same value there.
    """

    def __init__(
        self, config: TasksConfig, guard: IdempotencyGuard, events: EventDispatcher
    ) -> None:
        """
        Take what a manager has wired together.
        """
        self.config = config
        self._guard = guard
        self._events = events
        self._methods = frozenset(config.methods)
        self._default = _resolve(config, ViewOptions())
        self._resolved: dict[int, tuple[ViewOptions, _Policy]] = {}
        self._replayed = _REPLAYED | {
            name
            for name in map(str.lower, config.replay_headers)
            if name not in _NEVER_REPLAYED and not name.startswith("access-control-")
        }

    def covers(self, method: str, path: str) -> bool:
        """
        Tell whether requests of this method to this path are looked at.
        """
        return method in self._methods and not self.config.is_exempt(path)

    def begin(self, request: HttpRequest, options: ViewOptions | None = None) -> Answer | Run | None:
        """
        Decide what happens to a request that `covers` accepted.

        Returns:
            None to let it pass untouched, an `Answer` to send instead of the
            application's, or a `Run`: run the application and tell it the end.

        Costs one storage call, none without a key. Storage errors do not
        escape: they become an answer or an unprotected run, as the policy says.
        """
        policy = self._default if options is None else self._policy(options)
        header = request.key_header()
        if header is None:
            return self._missing_key() if policy.required else None
        try:
            client_key = parse_key_header(header)
        except InvalidKeyError as error:
            return self._problem("invalid-key", str(error))
        claim_request = self._claim_request(request, policy, client_key)
        wait = policy.wait if policy.in_progress == "wait" else 0.0
        try:
            reply = self._guard.claim(claim_request, wait=wait)
        except CorruptRecordError:
            return self._unreadable(claim_request, client_key)
        except StorageError as error:
            return self._without_storage(claim_request, client_key, policy, error)
        if isinstance(reply, Claim):
            strict = policy.on_storage_error == "reject"
            return Run(self, client_key, reply, protected=True, strict=strict)
        return self._answer(claim_request, client_key, reply, policy)

    def _policy(self, options: ViewOptions) -> _Policy:
        # The options object is kept beside its policy, so that its id stays taken.
        known = self._resolved.get(id(options))
        if known is None:
            known = self._resolved[id(options)] = (options, _resolve(self.config, options))
        return known[1]

    def _claim_request(
        self, request: HttpRequest, policy: _Policy, client_key: str
    ) -> ClaimRequest:
        tenant, principal = request.scope()
        method, path = request.method, request.path
        return ClaimRequest(
            http_storage_key(tenant, principal, client_key),
            new_token(),
            tenant,
            principal,
            f"{method} {path}"[:200],
            request_fingerprint(
                method,
                path,
                request.query,
                request.content_type,
                request.body_digest(policy.fingerprint),
            ),
            policy.ttl,
            policy.lease,
            policy.on_abandoned,
        )

    # Answers

    def _answer(
        self, request: ClaimRequest, client_key: str, reply: ClaimReply, policy: _Policy
    ) -> Answer:
        outcome = reply.outcome
        if outcome is ClaimOutcome.FINISHED:
            return self._replay(request, client_key, reply.payload)
        if outcome is ClaimOutcome.IN_PROGRESS:
            return self._still_running(client_key, reply.remaining, policy)
        if outcome is ClaimOutcome.UNRESOLVED:
            return self._problem("outcome-unknown", _OUTCOME_UNKNOWN, client_key=client_key)
        # Another tenant's record looks exactly like a reused key, so that nothing is told.
        return self._problem("key-reused", _KEY_REUSED, client_key=client_key)

    def _replay(self, request: ClaimRequest, client_key: str, payload: bytes) -> Answer:
        try:
            outcome = decode_payload(payload)
        except ValueError:
            return self._unreadable(request, client_key)
        headers: Headers = [
            (self.config.cache_hit_header, "true"),
            ("Idempotent-Replayed", "true"),
            (self.config.idempotency_response_header, client_key),
        ]
        if isinstance(outcome, HttpOutcome):
            return Answer(outcome.status, outcome.headers + headers, outcome.body)
        if isinstance(outcome, JsonOutcome):
            return _json_answer(200, outcome.value, headers)
        if isinstance(outcome, ErrorOutcome):
            return _json_answer(400, {"status": "failed", "error": outcome.message}, headers)
        return self._problem("not-replayable", _NOT_REPLAYABLE, client_key=client_key)

    def _still_running(self, client_key: str, remaining: float, policy: _Policy) -> Answer:
        seconds = max(1, min(math.ceil(remaining), _LONGEST_RETRY_AFTER))
        if policy.in_progress != "accepted":
            return self._problem(
                "still-running", _STILL_RUNNING, client_key=client_key, retry_after=seconds
            )
        headers: Headers = [
            ("Retry-After", str(seconds)),
            (self.config.idempotency_response_header, client_key),
        ]
        return _json_answer(202, {"status": "in_progress", "message": _STILL_RUNNING}, headers)

    def _missing_key(self) -> Answer:
        name = self.config.idempotency_header
        return self._problem(
            "missing-key",
            f"This operation needs the {name} header. Send a new unique value with each new "
            "piece of work, and the same value when you retry it.",
        )

    def _unreadable(self, request: ClaimRequest, client_key: str) -> Answer:
        logger.error(
            "An idempotency record cannot be read; the request is refused",
            extra=_log_fields(request),
        )
        return self._problem(
            "unreadable-record", _UNREADABLE, client_key=client_key, retry_after=30
        )

    def _without_storage(
        self, request: ClaimRequest, client_key: str, policy: _Policy, error: StorageError
    ) -> Answer | Run:
        refused = policy.on_storage_error == "reject"
        logger.warning(
            "The storage failed before the work; the request %s: %s",
            "is refused" if refused else "runs unprotected",
            error,
            extra=_log_fields(request),
        )
        if refused:
            return self._problem(
                "storage-unavailable", _STORAGE_DOWN, client_key=client_key, retry_after=1
            )
        if self._events.active:
            self._events.emit(
                StorageUnprotected(
                    tenant_id=request.tenant_id,
                    operation_type=request.operation_type,
                    key_hash=key_hash(request.key),
                    error=type(error).__name__,
                )
            )
        # Only where the claim may have been written can its outcome be recorded.
        doubtful = isinstance(error, StorageTimeoutError)
        claim = self._guard.unconfirmed(request) if doubtful else None
        return Run(self, client_key, claim, protected=False, storage_key=request.key)

    def _problem(
        self, name: str, detail: str, *, client_key: str | None = None, retry_after: int = 0
    ) -> Answer:
        status, title = _PROBLEMS[name]
        document = {
            "type": PROBLEM_PREFIX + name,
            "title": title,
            "status": status,
            "detail": detail,
        }
        headers: Headers = [
            ("Content-Type", "application/problem+json"),
            ("Cache-Control", "no-store"),
        ]
        if retry_after:
            headers.append(("Retry-After", str(retry_after)))
        if client_key is not None:
            headers.append((self.config.idempotency_response_header, client_key))
        return Answer(status, headers, json.dumps(document).encode())

    # What a Run asks

    def response_headers(self, client_key: str, *, protected: bool) -> Headers:
        """
        Return what a first response carries besides its own headers.
        """
        headers: Headers = [(self.config.idempotency_response_header, client_key)]
        if not protected:
            headers.append(("X-Idempotency-Status", "unprotected"))
        return headers

    def kept_headers(self, headers: Sequence[tuple[str, str]]) -> Headers:
        """
        Return the headers that a replay may carry, repeated ones included.
        """
        replayed = self._replayed
        return [header for header in headers if header[0].lower() in replayed]


class Run:
    """
    One request whose work runs now; the adapter ends it exactly once.

    Used by the thread that serves the request. Every way to end it records,
    releases or abandons the claim and never raises for the storage's sake, so
    that the client always gets its real answer.

    Attributes:
        key: The client's key.
        storage_key: The stored key.
        headers: What the response carries besides the application's headers.
        protected: Whether a claim is held.
    """

    __slots__ = (
        "_claim",
        "_deferred",
        "_ended",
        "_http",
        "_result",
        "_strict",
        "headers",
        "key",
        "protected",
        "storage_key",
    )

    def __init__(
        self,
        http: HttpIdempotency,
        key: str,
        claim: Claim | None,
        *,
        protected: bool,
        strict: bool = False,
        storage_key: str = "",
    ) -> None:
        """
        Wrap a claim, or the lack of one while the storage is down.
        """
        self._http = http
        self._strict = strict
        self._claim = claim
        self._result: bytes | None = None
        self._deferred = False
        self._ended = False
        self.key = key
        self.protected = protected
        self.storage_key = storage_key if claim is None else claim.request.key
        self.headers = http.response_headers(key, protected=protected)

    @property
    def max_body(self) -> int:
        """
        Bytes of a body that can be kept.
        """
        return self._http.config.max_response_bytes

    def set_result(self, result: Any) -> None:
        """
        Have retries answered with this result as JSON, and status 200.

        Raises:
            SerializationError: The result is not JSON; nothing was changed.
        """
        self._result = encode_result(result)

    def defer(self, timeout: float) -> str:
        """
        Hand the operation on to a worker and return the stored key.

        Written before it returns. Without a claim (the storage was down) there
        is nothing to hand on, and the worker's completion will say so.

        Raises:
            ClaimLostError: Another executor has the key; start no worker.
            StorageError: The project asks for strictness and it is not written.
        """
        if self._claim is None or not self.protected:
            return self.storage_key
        try:
            if not self._claim.defer(timeout):
                raise ClaimLostError(self.storage_key)
        except StorageError as error:
            # The record stays as the claim left it, and its lease decides.
            if self._strict:
                raise
            logger.warning("An operation could not be handed on: %s", error)
        self._deferred = True
        return self.storage_key

    def finish(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """
        End with a whole response: it is recorded, or the key is released.
        """
        if self._settled_before_body(status):
            return
        if len(body) > self.max_body:
            self.finish_unkept("too-large")
            return
        if not self._end():
            return
        kept = self._http.kept_headers(headers)
        self._complete(encode_response(status, kept, body))

    def finish_unkept(self, reason: str, status: int = 200) -> None:
        """
        End with a response that cannot be kept; the work is never run again.
        """
        if self._settled_before_body(status) or not self._end():
            return
        self._complete(encode_tombstone(reason))

    def fail(self) -> None:
        """
        End with an unhandled exception: the next retry runs the work.
        """
        if self._end() and self._claim is not None:
            self._claim.release()

    def abandon(self) -> None:
        """
        End without knowing the outcome: the lease and the policy decide.
        """
        if self._end() and self._claim is not None:
            self._claim.abandon()

    def _settled_before_body(self, status: int) -> bool:
        # True once the status alone, a handed-on operation or a set result has ended it.
        if status >= 500 or (self._result is None and not self._deferred and status in _RELEASING):
            self.fail()
            return True
        if self._deferred:
            self._end()
            return True
        if self._result is not None:
            if self._end():
                self._complete(self._result)
            return True
        return False

    def _complete(self, payload: bytes) -> None:
        if self._claim is not None:
            self._claim.complete(payload)

    def _end(self) -> bool:
        # True for the first end only.
        if self._ended:
            return False
        self._ended = True
        return True


def _json_answer(status: int, value: Any, headers: Headers) -> Answer:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status, [("Content-Type", "application/json"), *headers], body)


def _log_fields(request: ClaimRequest) -> dict[str, str]:
    return {
        "tenant_id": request.tenant_id,
        "operation_type": request.operation_type,
        "key_hash": key_hash(request.key),
    }


_PROBLEMS = {
    "missing-key": (400, "Idempotency key missing"),
    "invalid-key": (400, "Idempotency key malformed"),
    "key-reused": (422, "Idempotency key used for a different request"),
    "still-running": (409, "The first request is still running"),
    "not-replayable": (409, "The first response was not kept"),
    "outcome-unknown": (409, "Outcome unknown"),
    "unreadable-record": (503, "Idempotency record unreadable"),
    "storage-unavailable": (503, "Idempotency storage unavailable"),
}

_KEY_REUSED = (
    "This key was sent before with another request (method, path, query, content type or body). "
    "Use a new key for new work, or retry the first request unchanged."
)
_STILL_RUNNING = "The first request with this key is still running. Retry it later."
_NOT_REPLAYABLE = (
    "The first request with this key has been carried out, but its response could not be kept. "
    "It will not be carried out again; look up the result in another way."
)
_OUTCOME_UNKNOWN = (
    "The first request with this key was interrupted and its outcome is not known. "
    "It will not be carried out again before the operator has decided."
)
_UNREADABLE = (
    "The record of this key cannot be read by this server. "
    "The request was not carried out again; retry it later."
)
_STORAGE_DOWN = (
    "Repeats cannot be recognised right now, so the request was not carried out. Retry it later."
)
