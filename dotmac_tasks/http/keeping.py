"""
What of a response is kept for its replays.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dotmac_tasks.claims import log_fields
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.http.answers import Headers
from dotmac_tasks.models import ClaimRequest
from dotmac_tasks.serialization import encode_response, encode_tombstone

__all__ = ["ResponseKeeper"]

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
            return encode_tombstone("too-large")
        replayed = self._replayed
        # Repeated ones included.
        kept: Headers = [header for header in headers if header[0].lower() in replayed]
        try:
            return encode_response(status, kept, body)
        except Exception:
            # Whatever it is, such as a header that is no text, the work is done: not again.
            logger.exception(
                "A response could not be encoded; it is not kept", extra=log_fields(request)
            )
            return encode_tombstone("unencodable")
