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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dotmac_tasks.claims import Claim, log_fields
from dotmac_tasks.config import (
    InProgressAnswer,
    StorageErrorPolicy,
    TasksConfig,
    check_setting,
    to_seconds,
)
from dotmac_tasks.errors import (
    ClaimLostError,
    ConfigurationError,
    CorruptRecordError,
    IdempotencyError,
    InvalidKeyError,
    StorageError,
    StorageTimeoutError,
)
from dotmac_tasks.events import StorageUnprotected
from dotmac_tasks.fingerprint import request_fingerprint
from dotmac_tasks.idempotency import UNSERIALIZABLE
from dotmac_tasks.keys import http_storage_key, new_token, parse_key_header
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
    from dotmac_tasks.claims import IdempotencyGuard
    from dotmac_tasks.events import EventDispatcher

__all__ = [
    "PROBLEM_PREFIX",
    "STORE_HEADER",
    "Answer",
    "HttpIdempotency",
    "HttpRequest",
    "IncompleteBodyError",
    "Run",
    "UnknownLengthError",
    "ViewOptions",
    "check_options",
    "principal_scope",
]

logger = logging.getLogger(__name__)

PROBLEM_PREFIX = "urn:dotmac-tasks:problem:"
"""
Start of the `type` of every problem document that is sent from here.
"""

STORE_HEADER = "X-Idempotency-Store"
"""
Response header by which an application says whether this response is kept.

``no`` releases the key, ``yes`` keeps the response whatever its status, a number
keeps it for so many seconds. Adapters remove it and pass it to `Run.follow`.
"""

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
        "content-security-policy",
        "content-security-policy-report-only",
        "content-type",
        "cross-origin-embedder-policy",
        "cross-origin-opener-policy",
        "cross-origin-resource-policy",
        "deprecation",
        "etag",
        "expires",
        "last-modified",
        "link",
        "location",
        "permissions-policy",
        "preference-applied",
        "referrer-policy",
        "repr-digest",
        "retry-after",
        "strict-transport-security",
        "sunset",
        "vary",
        "x-content-type-options",
        "x-frame-options",
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

# In front of a resolved user in a scope, so that no user is called like a digest.
_USER = "user:"

# Far more than a project has views with options.
_MOST_RESOLVED = 1_000

# A directive cannot keep a response longer than a setting could: a hundred years.
_LONGEST_KEPT = 100 * 365 * 86_400


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

        Raises:
            IncompleteBodyError: The body ended early.
            UnknownLengthError: The body has no end that is known.
        """
        ...


class IncompleteBodyError(Exception):
    """
    The client went away while it sent the body; raised by `HttpRequest.body_digest`.

    Immutable. What arrived is not what the client meant, so nothing is claimed.
    """


class UnknownLengthError(Exception):
    """
    Nobody says clearly where the body ends; raised by `HttpRequest.body_digest`.

    Immutable. Taken for empty, it would be the same as any other body.
    """


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
    in_progress: InProgressAnswer | None = None
    wait: float | None = None
    on_storage_error: StorageErrorPolicy | None = None
    on_abandoned: AbandonedPolicy | None = None
    fingerprint: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """
        Refuse what the settings would refuse; keep durations as seconds.
        """
        for option, setting in _SETTING_OF.items():
            value = getattr(self, option)
            if value is not None:
                checked = check_setting(setting, value, shown=option)
                object.__setattr__(self, option, checked)
        if self.ttl is not None and self.lease is not None:
            _check_lease(self.lease, self.ttl)
        if self.fingerprint is not None and not callable(self.fingerprint):
            raise ConfigurationError(
                "FINGERPRINT", f"must be a callable, not {self.fingerprint!r}."
            )


# The setting that each option of a view stands in for.
_SETTING_OF = {
    "required": "require_key",
    "ttl": "default_idempotency_ttl",
    "lease": "lease",
    "in_progress": "in_progress",
    "wait": "wait",
    "on_storage_error": "on_storage_error",
    "on_abandoned": "on_abandoned",
}


class _Policy(NamedTuple):
    # The project's settings with one view's options laid over them.
    required: bool
    ttl: float
    lease: float
    in_progress: InProgressAnswer
    wait: float
    on_storage_error: StorageErrorPolicy
    on_abandoned: AbandonedPolicy
    fingerprint: Callable[[Any], Any] | None


def _resolve(config: TasksConfig, options: ViewOptions) -> _Policy:
    values: dict[str, Any] = {}
    for option, setting in _SETTING_OF.items():
        value = getattr(options, option)
        values[option] = getattr(config, setting) if value is None else value
    _check_lease(values["lease"], values["ttl"])
    return _Policy(**values, fingerprint=options.fingerprint)


def _check_lease(lease: float, ttl: float) -> None:
    if lease > ttl:
        raise ConfigurationError(
            "LEASE",
            f"{lease:g} s is longer than the retention ({ttl:g} s). Shorten the lease or keep "
            "outcomes longer.",
            value=lease,
        )


def check_options(config: TasksConfig, options: ViewOptions) -> None:
    """
    Refuse options of a view that cannot work with the settings.

    Raises:
        ConfigurationError: The lease is longer than the retention.
    """
    _resolve(config, options)


def principal_scope(user: object, credentials: str | None) -> str:
    """
    Return the principal's part of a key's scope.

    The authenticated user if there is one; otherwise a digest of the
    credentials that nobody resolved, so that two bearers never share a scope;
    otherwise the empty string, which all anonymous callers of a tenant share.
    A user whose id is 0 is a user.
    """
    if user is not None and user != "":
        return f"{_USER}{user}"
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
        self._is_exempt = config.is_exempt
        self._key_name = config.idempotency_response_header
        self._replay_marks = ((config.cache_hit_header, "true"), ("Idempotent-Replayed", "true"))

    def covers(self, method: str, path: str) -> bool:
        """
        Tell whether requests of this method to this path are looked at.
        """
        return method in self._methods and not self._is_exempt(path)

    def begin(
        self, request: HttpRequest, options: ViewOptions | None = None
    ) -> Answer | Run | None:
        """
        Decide what happens to a request that `covers` accepted.

        Returns:
            None to let it pass untouched, an `Answer` to send instead of the
            application's, or a `Run`: run the application and tell it the end.

        Costs one storage call, none without a key. Storage errors do not
        escape: they become an answer or an unprotected run, as the policy says.

        Raises:
            ConfigurationError: The options and the settings cannot work together.
        """
        policy = self._default if options is None else self._policy(options)
        header = request.key_header()
        if header is None:
            return self._missing_key() if policy.required else None
        try:
            client_key = parse_key_header(header)
        except InvalidKeyError as error:
            return self._problem("invalid-key", str(error))
        try:
            claim_request = self._claim_request(request, policy, client_key)
        except IncompleteBodyError:
            return self._problem("incomplete-body", _INCOMPLETE, client_key=client_key)
        except UnknownLengthError:
            return self._problem("length-required", _NO_LENGTH, client_key=client_key)
        wait = policy.wait if policy.in_progress == "wait" else 0.0
        try:
            reply = self._guard.claim(claim_request, wait=wait)
        except CorruptRecordError:
            return self._unreadable(claim_request, client_key)
        except StorageError as error:
            return self._without_storage(claim_request, client_key, policy, error)
        if isinstance(reply, Claim):
            return Run(self, client_key, claim_request, reply, strict=_is_strict(policy))
        return self._answer(claim_request, client_key, reply, policy)

    def _policy(self, options: ViewOptions) -> _Policy:
        # The options object is kept beside its policy, so that its id stays taken.
        known = self._resolved.get(id(options))
        if known is None:
            if len(self._resolved) >= _MOST_RESOLVED:
                # Options that are made for each request must not fill the memory.
                self._resolved.clear()
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
            # A digest of credentials scopes the key; it is not left lying in a storage.
            principal.removeprefix(_USER) if principal.startswith(_USER) else "",
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
        headers: Headers = [*self._replay_marks, (self._key_name, client_key)]
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
        headers: Headers = [("Retry-After", str(seconds)), (self._key_name, client_key)]
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
            extra=log_fields(request),
        )
        return self._problem(
            "unreadable-record", _UNREADABLE, client_key=client_key, retry_after=30
        )

    def _without_storage(
        self, request: ClaimRequest, client_key: str, policy: _Policy, error: StorageError
    ) -> Answer | Run:
        refused = _is_strict(policy)
        # Only after a timeout may the claim have been written.
        doubtful = isinstance(error, StorageTimeoutError)
        logger.warning(
            "The storage failed before the work; the request %s: %s",
            "is refused" if refused else "runs unprotected",
            error,
            extra=log_fields(request),
        )
        if refused:
            if doubtful:
                # Nobody works under it: it must not keep the next attempt out.
                self._guard.forget(request)
            return self._problem(
                "storage-unavailable", _STORAGE_DOWN, client_key=client_key, retry_after=1
            )
        self.note_unprotected(request, error)
        claim = self._guard.unconfirmed(request) if doubtful else None
        return Run(self, client_key, request, claim, protected=False)

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
            headers.append((self._key_name, client_key))
        return Answer(status, headers, json.dumps(document).encode())

    # What a Run asks

    def note_unprotected(self, request: ClaimRequest, error: StorageError) -> None:
        """
        Tell the hooks of work that a retry would not recognise.
        """
        if self._events.active:
            self._events.emit(StorageUnprotected(**log_fields(request), error=type(error).__name__))

    def response_headers(self, client_key: str, *, protected: bool) -> Headers:
        """
        Return what a first response carries besides its own headers.
        """
        if protected:
            return [(self._key_name, client_key)]
        return [(self._key_name, client_key), ("X-Idempotency-Status", "unprotected")]

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
        "_keep",
        "_request",
        "_result",
        "_retention",
        "_spoiled",
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
        request: ClaimRequest,
        claim: Claim | None,
        *,
        protected: bool = True,
        strict: bool = False,
    ) -> None:
        """
        Wrap a claim, or the lack of one while the storage is down.
        """
        self._http = http
        self._strict = strict
        self._request = request
        self._claim = claim
        self._result: bytes | None = None
        self._keep: bool | None = None
        self._retention: float | None = None
        self._deferred = False
        self._spoiled = False
        self._ended = False
        self.key = key
        self.protected = protected
        self.storage_key = request.key
        self.headers = http.response_headers(key, protected=protected)

    @property
    def ended(self) -> bool:
        """
        Whether the outcome has been decided, so that nothing can be said of it any more.
        """
        return self._ended

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
            SerializationError: The result is not JSON. Should the view fail over
                it, its work is not run again: there was a result, so it is done.
        """
        self._spoiled = True
        self._result = encode_result(result)
        self._spoiled = False

    def defer(self, timeout: float) -> str:
        """
        Hand the operation on to a worker and return the stored key.

        Written before it returns. Without a claim (the storage was down) there
        is nothing to hand on, and the worker's completion will say so.

        Raises:
            ConfigurationError: The time is not positive.
            IdempotencyError: The request has ended; start no worker.
            ClaimLostError: Another executor has the key; start no worker.
            StorageError: The project asks for strictness and it is not written.
        """
        # Also where nothing is written: a mistake must not wait for the storage to show itself.
        seconds = to_seconds("timeout", timeout)
        if self._ended:
            raise IdempotencyError(self.storage_key, _ENDED)
        if self._claim is None or not self.protected:
            return self.storage_key
        try:
            if not self._claim.defer(seconds):
                raise ClaimLostError(self.storage_key)
        except StorageError as error:
            # The record stays as the claim left it, and its lease decides.
            if self._strict:
                raise
            logger.warning(
                "An operation could not be handed on: %s",
                error,
                extra=log_fields(self._request),
            )
            self._http.note_unprotected(self._request, error)
        self._deferred = True
        return self.storage_key

    def follow(self, directive: str | None) -> None:
        """
        Do what the response says of its own keeping; see `STORE_HEADER`.

        Beats the policy, and an earlier call. What nobody understands counts as None.
        """
        self._keep = self._retention = None
        if directive is None:
            return
        word = directive.strip().lower()
        if word in ("yes", "no"):
            self._keep = word == "yes"
        elif word.isascii() and word.isdecimal() and 0 < float(word) <= _LONGEST_KEPT:
            self._keep = True
            self._retention = float(word)
        else:
            logger.warning(
                "%s: %s is not understood and ignored",
                STORE_HEADER,
                directive,
                extra=log_fields(self._request),
            )

    def finish(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        """
        End with a whole response: it is recorded, or the key is released.
        """
        if self._settled_before_body(status) or not self._end():
            return
        if len(body) > self.max_body:
            self._complete(encode_tombstone("too-large"))
            return
        try:
            payload = encode_response(status, self._http.kept_headers(headers), body)
        except Exception:
            # Whatever it is, such as a header that is no text, the work is done: not again.
            logger.exception(
                "A response could not be encoded; it is not kept",
                extra=log_fields(self._request),
            )
            payload = encode_tombstone("unencodable")
        self._complete(payload)

    def finish_unkept(self, reason: str, status: int = 200) -> None:
        """
        End with a response that cannot be kept; the work is never run again.
        """
        if not self._settled_before_body(status) and self._end():
            self._complete(encode_tombstone(reason))

    def fail(self) -> None:
        """
        End with an unhandled exception: the next retry runs the work.
        """
        if not self._end() or self._claim is None:
            return
        if self._spoiled and self._keep is not False:
            self._complete(encode_tombstone(UNSERIALIZABLE))
        else:
            self._claim.release()

    def abandon(self) -> None:
        """
        End without knowing the outcome: the lease and the policy decide.

        After another end that broke off in the middle, it still stops the renewal.
        """
        self._ended = True
        if self._claim is not None:
            self._claim.abandon()

    def _settled_before_body(self, status: int) -> bool:
        """
        Tell whether the status, a directive or the application has decided the end.
        """
        if self._is_released(status):
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

    def _is_released(self, status: int) -> bool:
        if self._keep is not None:
            return not self._keep
        if status >= 500:
            return True
        return status in _RELEASING and self._result is None and not self._deferred

    def _complete(self, payload: bytes) -> None:
        claim = self._claim
        if claim is None:
            return
        if self._retention is not None:
            claim.request = claim.request._replace(ttl=self._retention)
        claim.complete(payload)

    def _end(self) -> bool:
        """
        Tell whether this is the first end.
        """
        if self._ended:
            return False
        self._ended = True
        return True


def _json_answer(status: int, value: Any, headers: Headers) -> Answer:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status, [("Content-Type", "application/json"), *headers], body)


def _is_strict(policy: _Policy) -> bool:
    return policy.on_storage_error == "reject"


_PROBLEMS = {
    "missing-key": (400, "Idempotency key missing"),
    "invalid-key": (400, "Idempotency key malformed"),
    "incomplete-body": (400, "Request body incomplete"),
    "length-required": (411, "Length of the request body missing"),
    "key-reused": (422, "Idempotency key used for a different request"),
    "still-running": (409, "The first request is still running"),
    "not-replayable": (409, "The first response was not kept"),
    "outcome-unknown": (409, "Outcome unknown"),
    "unreadable-record": (503, "Idempotency record unreadable"),
    "storage-unavailable": (503, "Idempotency storage unavailable"),
}

_INCOMPLETE = (
    "The body ended before its declared length, so the request was not carried out. Send it again."
)
_NO_LENGTH = (
    "A request with an idempotency key needs the Content-Length header here; it was not carried "
    "out. Send it again with one."
)
_KEY_REUSED = (
    "This key was sent before with another request (method, path, query, content type or body). "
    "Use a new key for new work, or retry the first request unchanged."
)
_STILL_RUNNING = "The first request with this key is still running. Retry it later."
_NOT_REPLAYABLE = (
    "The first request with this key has been carried out, but its response could not be kept. "
    "It will not be carried out again; look up the result in another way."
)
_ENDED = (
    "This request has ended, so its operation cannot be handed on any more. "
    "Call defer_operation() before the response is finished."
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
