"""
What of a response is kept for its replays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.events import log_fields
from dotmac_tasks.http.answers import Headers
from dotmac_tasks.models import ClaimRequest
from dotmac_tasks.serialization import TOO_LARGE, encode_response, encode_tombstone

__all__ = ["RecordedResponse", "ResponseKeeper"]

logger = logging.getLogger(__name__)

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

# Of the headers that are kept; a server accepts no more than this of a request as a rule.
_MAX_HEADER_BYTES = 65_536


class RecordedResponse(NamedTuple):
    """
    What is about to be recorded of a response, for a project's redactor.

    A redactor is the setting `REDACTOR`: it gets one of these and returns it with
    whatever may not be stored taken out (`response._replace(body=...)`). Replays
    send what it returned; the first client has got the whole answer. Where it
    raises, nothing of the response is stored and the work is not run again. It is
    not asked about results that are set or settled as such.

    Attributes:
        operation_type: The method and the path.
        status: The status code.
        headers: The headers that a replay carries, repeated ones included.
        body: The body.
    """

    operation_type: str
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class ResponseKeeper:
    """
    Turns responses into what is recorded of them, by one project's settings.

    Immutable; shared by all threads.

    Attributes:
        max_body: Bytes of a body that can be kept.
    """

    def __init__(self, config: TasksConfig) -> None:
        """
        Take the settings.
        """
        self.max_body = config.max_response_bytes
        self._config = config
        self._redacts = config.redactor is not None
        self._replayed = _REPLAYED | {
            name
            for name in map(str.lower, config.replay_headers)
            if name not in _NEVER_REPLAYED and not name.startswith("access-control-")
        }

    def encode(
        self,
        request: ClaimRequest,
        status: int,
        headers: Sequence[tuple[str, str]],
        body: bytes,
    ) -> bytes:
        """
        Return the payload to record; a tombstone where the response cannot be kept.

        Never raises for the response's sake: its work is done, and must not run again.
        """
        if len(body) > self.max_body:
            return encode_tombstone(TOO_LARGE)
        replayed = self._replayed
        # Repeated ones included.
        kept: Headers = [header for header in headers if header[0].lower() in replayed]
        if self._redacts:
            try:
                status, kept, body = self._redact(request, status, kept, body)
            except Exception as error:  # noqa: BLE001 - a project's function may raise anything
                # Its type alone: the message may quote what was to be taken out.
                logger.error(
                    "A response could not be redacted (%s); it is not kept",
                    type(error).__name__,
                    extra=log_fields(request),
                )
                return encode_tombstone("redaction")
        try:
            payload = encode_response(status, kept, body)
        except Exception:
            # Whatever it is, such as a header that is no text, the work is done: not again.
            logger.exception(
                "A response could not be encoded; it is not kept", extra=log_fields(request)
            )
            return encode_tombstone("unencodable")
        if len(payload) - len(body) > _MAX_HEADER_BYTES:
            return encode_tombstone(TOO_LARGE)
        return payload

    def _redact(
        self, request: ClaimRequest, status: int, headers: Headers, body: bytes
    ) -> tuple[int, Headers, bytes]:
        redactor = cast(Callable[..., Any], self._config.resolve_callable("redactor"))
        redacted = redactor(RecordedResponse(request.operation_type, status, headers, body))
        if not isinstance(redacted, RecordedResponse) or not isinstance(redacted.body, bytes):
            raise TypeError("REDACTOR must return a RecordedResponse whose body is bytes.")
        if len(redacted.body) > self.max_body:
            raise ValueError("REDACTOR has made the body too large to be kept.")
        return redacted.status, redacted.headers, redacted.body
