"""
Responses of our own, and the texts of the refusals among them (RFC 9457).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, TypeAlias

__all__ = [
    "PROBLEM_PREFIX",
    "REPLAYED",
    "STILL_RUNNING",
    "UNPROTECTED",
    "Answer",
    "Headers",
    "json_answer",
    "problem_answer",
]

REPLAYED = ("Idempotent-Replayed", "true")
"""
Header of an answer that was recorded before.
"""

UNPROTECTED = ("X-Idempotency-Status", "unprotected")
"""
Header of an answer whose retry would run the work again.
"""

PROBLEM_PREFIX = "urn:dotmac-tasks:problem:"
"""
Start of the `type` of every problem document that is sent from here.
"""

Headers: TypeAlias = list[tuple[str, str]]


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


def json_answer(status: int, value: Any, headers: Headers) -> Answer:
    """
    Build an answer in JSON.
    """
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status, [("Content-Type", "application/json"), *headers], body)


def problem_answer(name: str, headers: Headers, *, retry_after: int = 0, **facts: object) -> Answer:
    """
    Build a problem document.

    Args:
        name: Which problem it is; the last part of its type.
        headers: Further headers.
        retry_after: Seconds after which a retry makes sense; 0 says nothing of it.
        facts: What its detail leaves open.
    """
    status, title, detail = _PROBLEMS[name]
    document = {
        "type": PROBLEM_PREFIX + name,
        "title": title,
        "status": status,
        "detail": detail.format(**facts),
    }
    own: Headers = [("Content-Type", "application/problem+json"), ("Cache-Control", "no-store")]
    if retry_after:
        own.append(("Retry-After", str(retry_after)))
    return Answer(status, own + headers, json.dumps(document).encode())


STILL_RUNNING = "The first request with this key is still running. Retry it later."
"""
What a duplicate is told, with 202 or with 409.
"""

# Status, title, and a detail that says what to do next.
_PROBLEMS: dict[str, tuple[int, str, str]] = {
    "missing-key": (
        400,
        "Idempotency key missing",
        "This operation needs the {header} header. Send a new unique value with each new piece of "
        "work, and the same value when you retry it.",
    ),
    "invalid-key": (400, "Idempotency key malformed", "{reason}"),
    "unauthenticated": (
        403,
        "Idempotency key of an unknown caller",
        "Keys are only taken from callers who are known, so the request was not carried out. "
        "Sign in and send it again.",
    ),
    "incomplete-body": (
        400,
        "Request body incomplete",
        "The body ended before its declared length, so the request was not carried out. "
        "Send it again.",
    ),
    "length-required": (
        411,
        "Length of the request body missing",
        "A request with an idempotency key needs the Content-Length header here; it was not "
        "carried out. Send it again with one.",
    ),
    "body-not-kept": (
        503,
        "Request body could not be kept",
        "There is no room to keep the body while it is compared, so the request was not carried "
        "out. Retry it later.",
    ),
    "key-reused": (
        422,
        "Idempotency key used for a different request",
        "This key was sent before with another request (method, path, query, content type or "
        "body). Use a new key for new work, or retry the first request unchanged.",
    ),
    "still-running": (409, "The first request is still running", STILL_RUNNING),
    "not-replayable": (
        409,
        "The first response was not kept",
        "The first request with this key has been carried out, but its response could not be "
        "kept. It will not be carried out again; look up the result in another way.",
    ),
    "outcome-unknown": (
        409,
        "Outcome unknown",
        "The first request with this key was interrupted and its outcome is not known. "
        "It will not be carried out again before the operator has decided.",
    ),
    "quota-exceeded": (
        429,
        "Too many new idempotency keys",
        "This caller has sent too many new keys, so the request was not carried out. Send it again "
        "with the same key after the time in Retry-After; retries of earlier requests still work.",
    ),
    "unreadable-record": (
        503,
        "Idempotency record unreadable",
        "The record of this key cannot be read by this server. "
        "The request was not carried out again; retry it later.",
    ),
    "storage-unavailable": (
        503,
        "Idempotency storage unavailable",
        "Repeats cannot be recognised right now, so the request was not carried out. "
        "Retry it later.",
    ),
}
