"""
What a response says of how its request was treated, whatever client it came from.

Reads the responses of Django's, the REST framework's and Werkzeug's test clients, of
WebTest, requests and httpx, and anything else with a status, headers and a body.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["RequestFacts", "ResponseFacts", "read_request", "read_response"]


class ResponseFacts(NamedTuple):
    """
    What is known of a response.

    Attributes:
        status: The status code.
        headers: The headers, by their lower-case names.
        document: The body as JSON, if it is a JSON object.
    """

    status: int
    headers: Mapping[str, str]
    document: Mapping[str, Any]


class RequestFacts(NamedTuple):
    """
    What a response knows of its request.

    Attributes:
        method: The method.
        path: The path.
        headers: The headers, by their lower-case names.
    """

    method: str
    path: str
    headers: Mapping[str, str]


def read_response(answer: object) -> ResponseFacts | None:
    """
    Return what is known of a response, or None where this is none.
    """
    status = _read_status(answer)
    headers = getattr(answer, "headers", None)
    if status is None or headers is None:
        return None
    found = _read_headers(headers)
    return ResponseFacts(status, found, _read_document(answer, found.get("content-type", "")))


def read_request(answer: object) -> RequestFacts | None:
    """
    Return what the response knows of its request, or None.
    """
    request = getattr(answer, "wsgi_request", None) or getattr(answer, "request", None)
    method = getattr(request, "method", None)
    path = getattr(request, "path", None) or getattr(request, "path_url", None)
    if path is None:
        path = getattr(getattr(request, "url", None), "path", None)
    headers = getattr(request, "headers", None)
    if not (isinstance(method, str) and isinstance(path, str)) or headers is None:
        return None
    return RequestFacts(method, path.partition("?")[0], _read_headers(headers))


def _read_status(answer: object) -> int | None:
    for name in ("status_code", "status_int", "status"):
        value = getattr(answer, name, None)
        if isinstance(value, int):
            return value
        if isinstance(value, str) and value[:3].isdecimal():
            return int(value[:3])
    return None


def _read_headers(headers: Any) -> dict[str, str]:
    pairs: Iterable[tuple[str, str]] = headers.items() if hasattr(headers, "items") else headers
    return {str(name).lower(): str(value) for name, value in pairs}


def _read_document(answer: object, content_type: str) -> Mapping[str, Any]:
    # Only where it is JSON: reading any other body could end a stream.
    if "json" in content_type:
        for name in ("content", "data", "body"):
            body = getattr(answer, name, None)
            if isinstance(body, bytes | str):
                try:
                    document = json.loads(body)
                except ValueError:
                    break
                return document if isinstance(document, dict) else {}
    return {}
