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

from dotmac_tasks.http.answers import PROBLEM_PREFIX, Answer
from dotmac_tasks.http.decisions import HttpIdempotency
from dotmac_tasks.http.keeping import RecordedResponse
from dotmac_tasks.http.options import ViewOptions, check_options
from dotmac_tasks.http.requests import (
    HttpRequest,
    IncompleteBodyError,
    UnknownLengthError,
    principal_scope,
)
from dotmac_tasks.http.run import STORE_HEADER, Run

__all__ = [
    "PROBLEM_PREFIX",
    "STORE_HEADER",
    "Answer",
    "HttpIdempotency",
    "HttpRequest",
    "IncompleteBodyError",
    "RecordedResponse",
    "Run",
    "UnknownLengthError",
    "ViewOptions",
    "check_options",
    "principal_scope",
]
