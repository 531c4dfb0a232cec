"""
One request whose work runs: how it ends, and what is recorded then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dotmac_tasks.claims import Claim
from dotmac_tasks.config import to_seconds
from dotmac_tasks.errors import ClaimLostError, IdempotencyError, StorageError
from dotmac_tasks.events import EventDispatcher, StorageUnprotected, log_fields
from dotmac_tasks.http.answers import UNPROTECTED, Headers
from dotmac_tasks.http.keeping import ResponseKeeper
from dotmac_tasks.idempotency import UNSERIALIZABLE
from dotmac_tasks.models import ClaimRequest
from dotmac_tasks.serialization import bound_payload, encode_result, encode_tombstone

__all__ = ["STORE_HEADER", "Run", "RunContext", "note_unprotected"]

logger = logging.getLogger(__name__)

STORE_HEADER = "X-Idempotency-Store"
"""
Response header by which an application says whether this response is kept.

``no`` releases the key, ``yes`` keeps the response whatever its status, a number
keeps it for so many seconds. Adapters remove it and pass it to `Run.follow`.
"""

# Answers that say "not now" or "not you": the same request may do better later.
_RELEASING = frozenset({401, 403, 407, 408, 409, 421, 423, 425, 429})

# A directive cannot keep a response longer than a setting could: a hundred years.
_LONGEST_KEPT = 100 * 365 * 86_400

_ENDED = (
    "This request has ended, so its operation cannot be handed on any more. "
    "Call defer_operation() before the response is finished."
)


class RunContext(NamedTuple):
    """
    What all runs of one project share.

    Attributes:
        keeper: Decides what of a response is kept.
        events: Hands events to the hooks.
        key_name: The response header that repeats the key.
    """

    keeper: ResponseKeeper
    events: EventDispatcher
    key_name: str


def note_unprotected(events: EventDispatcher, request: ClaimRequest, error: str) -> None:
    """
    Tell the hooks of work that a retry would not recognise.
    """
    if events.active:
        events.emit(StorageUnprotected(**log_fields(request), error=error))


class Run:
    """
    One request whose work runs now; the adapter ends it exactly once.

    Used by the thread that serves the request. Every way to end it records,
    releases or abandons the claim and never raises for the storage's sake, so
    that the client always gets its real answer.

    Attributes:
        key: The client's key.
        lasting_key: The stored key as it is without `KEY_SECRET`, so that a key for another
            system that is derived from it outlives a change of the secret; empty where it is
            the stored key.
        headers: What the response carries besides the application's headers.
        protected: Whether a claim is held.
    """

    __slots__ = (
        "_claim",
        "_context",
        "_deferred",
        "_ended",
        "_keep",
        "_known_request",
        "_result",
        "_retention",
        "_spoiled",
        "_strict",
        "headers",
        "key",
        "lasting_key",
        "protected",
    )

    def __init__(
        self,
        context: RunContext,
        key: str,
        request: ClaimRequest | Callable[[], ClaimRequest],
        claim: Claim | None,
        *,
        protected: bool = True,
        strict: bool = False,
    ) -> None:
        """
        Wrap a claim, or the lack of one while the storage is down.

        A request that was not claimed is described when somebody asks.
        """
        self._context = context
        self._strict = strict
        self._known_request = request
        self._claim = claim
        self._result: bytes | None = None
        self._keep: bool | None = None
        self._retention: float | None = None
        self._deferred = False
        self._spoiled = False
        self._ended = False
        self.key = key
        self.protected = protected
        self.lasting_key = ""
        self.headers: Headers = [(context.key_name, key)]
        if not protected:
            self.headers.append(UNPROTECTED)

    @property
    def storage_key(self) -> str:
        """
        The stored key.
        """
        return self._request.key

    @property
    def _request(self) -> ClaimRequest:
        known = self._known_request
        if not isinstance(known, ClaimRequest):
            known = self._known_request = known()
        return known

    @property
    def ended(self) -> bool:
        """
        Whether the outcome has been decided, so that nothing can be said of it any more.
        """
        return self._ended

    @property
    def records(self) -> bool:
        """
        Whether an end can be recorded; False while the storage is left alone.
        """
        return self._claim is not None

    @property
    def max_body(self) -> int:
        """
        Bytes of a body that can be kept.
        """
        return self._context.keeper.max_body

    def set_result(self, result: Any) -> None:
        """
        Have retries answered with this result as JSON, and status 200.

        One that is larger than `max_body` is not kept: its work is never run again.

        Raises:
            SerializationError: The result is not JSON. Should the view fail over
                it, its work is not run again: there was a result, so it is done.
        """
        self._spoiled = True
        self._result = bound_payload(encode_result(result), self.max_body)
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
            note_unprotected(self._context.events, self._request, type(error).__name__)
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
        if self._settled_before_body(status) or not self._end() or self._claim is None:
            return
        self._complete(self._context.keeper.encode(self._request, status, headers, body))

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
