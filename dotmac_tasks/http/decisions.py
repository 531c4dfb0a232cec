"""
What a request gets: it passes untouched, is answered, or runs.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial

from dotmac_tasks.claims import Claim, IdempotencyGuard
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    CorruptRecordError,
    InvalidKeyError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from dotmac_tasks.events import EventDispatcher, log_fields
from dotmac_tasks.fingerprint import request_fingerprint
from dotmac_tasks.http.answers import (
    REPLAYED,
    STILL_RUNNING,
    Answer,
    Headers,
    json_answer,
    problem_answer,
)
from dotmac_tasks.http.keeping import ResponseKeeper
from dotmac_tasks.http.options import Policy, ViewOptions, resolve_policy
from dotmac_tasks.http.requests import (
    USER_SCOPE,
    HttpRequest,
    IncompleteBodyError,
    UnknownLengthError,
)
from dotmac_tasks.http.run import Run, RunContext, note_unprotected
from dotmac_tasks.keys import (
    http_storage_key,
    keyed_digest,
    new_token,
    parse_key_header,
    quota_caller,
    shorten_id,
)
from dotmac_tasks.models import ClaimOutcome, ClaimReply, ClaimRequest, Quota
from dotmac_tasks.reconciliation import Reconciler
from dotmac_tasks.serialization import ErrorOutcome, HttpOutcome, JsonOutcome, decode_payload
from dotmac_tasks.spool import SpoolError

__all__ = ["HttpIdempotency"]

logger = logging.getLogger(__name__)

# Nobody should be told to come back later than this while the work may end any second.
_LONGEST_RETRY_AFTER = 5

# Seconds between two messages that requests are served beside a storage that is left alone.
_COMPLAINT_INTERVAL = 10.0

# Far more than a project has views with options.
_MOST_RESOLVED = 1_000


@dataclass(slots=True)
class _KeyedRequest:
    """
    What is known of a request with a key before its body is read.

    One per request, and never changed; frozen, it would take three times as long to make.
    Holds nothing of the adapter's, so that a run that keeps it keeps no request alive.
    """

    method: str
    path: str
    policy: Policy
    client_key: str
    tenant: str
    principal: str

    @property
    def lasting_key(self) -> str:
        """
        The stored key without the secret: what another system knows the work by outlasts it.
        """
        return http_storage_key(self.tenant, self.principal, self.client_key)

    def describe(self, secret: str, owner: str = "", fingerprint: str = "") -> ClaimRequest:
        """
        Put together what is claimed, or without an owner what logs and helpers need of it.
        """
        tenant, principal, policy = self.tenant, self.principal, self.policy
        return ClaimRequest(
            http_storage_key(tenant, principal, self.client_key, secret),
            owner,
            shorten_id(tenant),
            # A digest of credentials scopes the key; it is not left lying in a storage.
            shorten_id(principal[len(USER_SCOPE) :]) if principal.startswith(USER_SCOPE) else "",
            f"{self.method} {self.path}"[:200],
            fingerprint,
            policy.ttl,
            policy.lease,
            policy.on_abandoned,
        )


class HttpIdempotency:
    """
    Decides for one manager's settings and storage.

    Instances may be shared between threads. Two things are guarded by nothing:
    the cache of resolved options, where two threads can only put the same value,
    and the time of the next complaint, which two may make at once.
    """

    def __init__(
        self, config: TasksConfig, guard: IdempotencyGuard, events: EventDispatcher
    ) -> None:
        """
        Take what a manager has wired together.
        """
        self.config = config
        self._guard = guard
        self._methods = frozenset(config.methods)
        self._default = resolve_policy(config, ViewOptions())
        self._resolved: dict[int, tuple[ViewOptions, Policy]] = {}
        self._complain_at = -math.inf
        self._is_exempt = config.is_exempt
        self._anonymous = config.anonymous
        self._asks_for_user = config.anonymous != "share"
        self._key_name = config.idempotency_response_header
        self._secret = config.key_secret
        self._limit = config.max_keys_per_caller
        self._context = RunContext(ResponseKeeper(config), events, self._key_name)
        self._replay_marks = ((config.cache_hit_header, "true"), REPLAYED)

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
            if not policy.required:
                return None
            return problem_answer("missing-key", [], header=self.config.idempotency_header)
        try:
            client_key = parse_key_header(header)
        except InvalidKeyError as error:
            return problem_answer("invalid-key", [], reason=error)
        tenant, principal = request.scope()
        if self._asks_for_user and not principal.startswith(USER_SCOPE):
            # Before the body is read: nothing is spent on a caller whom nobody knows.
            if self._anonymous == "ignore" and not policy.required:
                return None
            return self._refuse("unauthenticated", client_key)
        keyed = _KeyedRequest(request.method, request.path, policy, client_key, tenant, principal)
        try:
            decision = self._decide(request, keyed)
        except IncompleteBodyError:
            return self._refuse("incomplete-body", client_key)
        except UnknownLengthError:
            return self._refuse("length-required", client_key)
        except SpoolError as error:
            return self._without_room(client_key, error)
        if self._secret and isinstance(decision, Run):
            decision.lasting_key = keyed.lasting_key
        return decision

    def _policy(self, options: ViewOptions) -> Policy:
        # The options object is kept beside its policy, so that its id stays taken.
        known = self._resolved.get(id(options))
        if known is None:
            if len(self._resolved) >= _MOST_RESOLVED:
                # Options that are made for each request must not fill the memory.
                self._resolved.clear()
            known = self._resolved[id(options)] = (options, resolve_policy(self.config, options))
        return known[1]

    def _decide(self, request: HttpRequest, keyed: _KeyedRequest) -> Answer | Run:
        """
        Claim the key, and say what comes of it.

        Raises:
            IncompleteBodyError: The body ended early.
            UnknownLengthError: The body has no end that is known.
            SpoolError: The body could not be kept.
        """
        guard = self._guard
        if guard.storage.is_refusing:
            # It is not asked, so nothing is prepared for it. But half a body is no more what
            # the client wants than at other times.
            request.read_body()
            return self._beside_storage(keyed)
        claim_request = self._claim_request(request, keyed)
        policy, reconciler = keyed.policy, self._reconciler(request, keyed)
        since = guard.monotonic()
        try:
            reply = guard.claim(claim_request, wait=policy.wait, reconciler=reconciler)
        except CorruptRecordError:
            return self._unreadable(claim_request, keyed.client_key)
        except StorageError as error:
            return self._without_storage(claim_request, keyed, error, since)
        if isinstance(reply, Claim):
            strict = policy.is_strict
            return Run(self._context, keyed.client_key, claim_request, reply, strict=strict)
        return self._answer(claim_request, keyed, reply)

    def _claim_request(self, request: HttpRequest, keyed: _KeyedRequest) -> ClaimRequest:
        fingerprint = request_fingerprint(
            keyed.method,
            keyed.path,
            request.query,
            request.content_type,
            request.body_digest(keyed.policy.fingerprint),
        )
        if self._secret:
            # Bodies can be guessed as keys can.
            fingerprint = keyed_digest(self._secret, fingerprint)
        claim_request = keyed.describe(self._secret, new_token(), fingerprint)
        return claim_request._replace(quota=self._quota(keyed)) if self._limit else claim_request

    def _quota(self, keyed: _KeyedRequest) -> Quota:
        """
        Return how many new keys the caller may have.

        Whom nobody resolved shares one quota with all such callers of the tenant:
        credentials can be made up at will.
        """
        user = keyed.principal if keyed.principal.startswith(USER_SCOPE) else ""
        caller = quota_caller(keyed.tenant, user, self._secret)
        return Quota(caller, self._limit, self.config.quota_window)

    def _reconciler(self, request: HttpRequest, keyed: _KeyedRequest) -> Reconciler | None:
        find = keyed.policy.find_reconcile
        if find is None:
            return None
        lasting_key = keyed.lasting_key if self._secret else ""
        return Reconciler(find, lambda: request.native, True, lasting_key)

    # Answers

    def _answer(self, request: ClaimRequest, keyed: _KeyedRequest, reply: ClaimReply) -> Answer:
        outcome, client_key = reply.outcome, keyed.client_key
        if outcome is ClaimOutcome.FINISHED:
            return self._replay(request, client_key, reply.payload)
        if outcome is ClaimOutcome.IN_PROGRESS:
            return self._still_running(keyed, reply.remaining)
        if outcome is ClaimOutcome.UNRESOLVED:
            return self._refuse("outcome-unknown", client_key)
        if outcome is ClaimOutcome.OVER_QUOTA:
            seconds = max(1, math.ceil(reply.remaining))
            return self._refuse("quota-exceeded", client_key, retry_after=seconds)
        # Another tenant's record looks exactly like a reused key, so that nothing is told.
        return self._refuse("key-reused", client_key)

    def _replay(self, request: ClaimRequest, client_key: str, payload: bytes) -> Answer:
        try:
            outcome = decode_payload(payload)
        except ValueError:
            return self._unreadable(request, client_key)
        headers: Headers = [*self._replay_marks, (self._key_name, client_key)]
        if isinstance(outcome, HttpOutcome):
            return Answer(outcome.status, outcome.headers + headers, outcome.body)
        if isinstance(outcome, JsonOutcome):
            return json_answer(200, outcome.value, headers)
        if isinstance(outcome, ErrorOutcome):
            return json_answer(400, {"status": "failed", "error": outcome.message}, headers)
        return self._refuse("not-replayable", client_key)

    def _still_running(self, keyed: _KeyedRequest, remaining: float) -> Answer:
        seconds = max(1, min(math.ceil(remaining), _LONGEST_RETRY_AFTER))
        if keyed.policy.in_progress != "accepted":
            return self._refuse("still-running", keyed.client_key, retry_after=seconds)
        headers: Headers = [("Retry-After", str(seconds)), (self._key_name, keyed.client_key)]
        return json_answer(202, {"status": "in_progress", "message": STILL_RUNNING}, headers)

    def _unreadable(self, request: ClaimRequest, client_key: str) -> Answer:
        logger.error(
            "An idempotency record cannot be read; the request is refused",
            extra=log_fields(request),
        )
        return self._refuse("unreadable-record", client_key, retry_after=30)

    def _without_room(self, client_key: str, error: SpoolError) -> Answer:
        # Not run unprotected: the storage works, and may know this request.
        logger.error(
            "A request body cannot be written to a temporary file (%s); the request is refused",
            error,
        )
        return self._refuse("body-not-kept", client_key, retry_after=30)

    def _without_storage(
        self, request: ClaimRequest, keyed: _KeyedRequest, error: StorageError, since: float
    ) -> Answer | Run:
        client_key, refused = keyed.client_key, keyed.policy.is_strict
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
                self._guard.forget(request, error, since)
            return self._refuse("storage-unavailable", client_key, retry_after=1)
        note_unprotected(self._context.events, request, type(error).__name__)
        claim = self._guard.unconfirmed(request, error, since) if doubtful else None
        return Run(self._context, client_key, request, claim, protected=False)

    def _beside_storage(self, keyed: _KeyedRequest) -> Answer | Run:
        """
        Answer while the storage is left alone; one line in the log now and then tells of it.
        """
        refused = keyed.policy.is_strict
        describe = partial(keyed.describe, self._secret)
        now = self._guard.monotonic()
        if now >= self._complain_at:
            self._complain_at = now + _COMPLAINT_INTERVAL
            logger.warning(
                "The storage failed repeatedly and is left alone for a moment; requests %s",
                "are refused" if refused else "run unprotected",
                extra=log_fields(describe()),
            )
        if refused:
            return self._refuse("storage-unavailable", keyed.client_key, retry_after=1)
        events = self._context.events
        if events.active:
            note_unprotected(events, describe(), StorageUnavailableError.__name__)
        return Run(self._context, keyed.client_key, describe, None, protected=False)

    def _refuse(self, name: str, client_key: str, *, retry_after: int = 0) -> Answer:
        return problem_answer(name, [(self._key_name, client_key)], retry_after=retry_after)
