"""
The body of a request is the same whether a check of the REST framework reads it before the claim.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncRequestFactory, RequestFactory, override_settings
from django.test.client import encode_multipart
from rest_framework.parsers import FileUploadParser, FormParser, JSONParser, MultiPartParser
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dotmac_tasks_django import idempotent
from dotmac_tasks_django.middleware import BackgroundOperationsMiddleware
from support.django_project.calls import count_call, get_calls
from support.django_project.records import get_statuses

LARGE = 3 * 1024 * 1024


class Body(NamedTuple):
    content_type: str
    content: bytes


def multipart(boundary: str, amount: int, content: bytes) -> Body:
    data = {"amount": amount, "file": SimpleUploadedFile("a.txt", content)}
    return Body(f"multipart/form-data; boundary={boundary}", encode_multipart(boundary, data))


# Two spellings of one request, and another request.
BODIES: dict[str, tuple[Body, Body, Body]] = {
    "json": (
        Body("application/json", b'{"amount": 5, "to": "a"}'),
        Body("application/json", b'{"to":"a","amount":5}'),
        Body("application/json", b'{"amount": 6, "to": "a"}'),
    ),
    "form": (
        Body("application/x-www-form-urlencoded", b"amount=5&csrfmiddlewaretoken=one"),
        Body("application/x-www-form-urlencoded", b"amount=5&csrfmiddlewaretoken=two"),
        Body("application/x-www-form-urlencoded", b"amount=6&csrfmiddlewaretoken=one"),
    ),
    "multipart": (
        multipart("one", 5, b"content"),
        multipart("two", 5, b"content"),
        multipart("one", 5, b"Content"),
    ),
    "upload": (
        multipart("one", 5, b"x" * LARGE),
        multipart("two", 5, b"x" * LARGE),
        multipart("one", 5, b"x" * (LARGE - 1) + b"y"),
    ),
    "octets": (
        Body("application/octet-stream", b"x" * LARGE),
        Body("application/octet-stream", b"x" * LARGE),
        Body("application/octet-stream", b"x" * (LARGE - 1) + b"y"),
    ),
    "empty": (
        Body("application/json", b""),
        Body("application/json", b""),
        Body("application/json", b"5"),
    ),
}
EARLY: dict[str, Callable[[Request], Any]] = {
    "nothing": lambda request: None,
    "data": lambda request: request.data,
    "post": lambda request: request._request.POST,
    "body": lambda request: request.body,
}


class Reads(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        EARLY[request.headers["X-Early"]](request)
        return True


class Upload(APIView):
    authentication_classes = ()
    permission_classes = (Reads,)
    parser_classes = (JSONParser, FormParser, MultiPartParser, FileUploadParser)

    def post(self, request: Request) -> Response:
        count_call("rest")
        fields = {name: value for name, value in request.data.items() if name in ("amount", "to")}
        files = {
            name: [type(file).__name__, file.size, sha256(file.read()).hexdigest()]
            for name, file in request.FILES.items()
        }
        return Response({"fields": fields, "files": files})

    def finalize_response(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, *args, **kwargs)
        # The framework leaves files open that did not come in a form.
        if hasattr(request._files, "values"):
            for file in request._files.values():
                file.close()
        return response


class Decorated(Upload):
    @idempotent
    def post(self, request: Request) -> Response:
        return super().post(request)


class Rest(Upload):
    """
    Reads what the permission has left of the stream.
    """

    def post(self, request: Request) -> Response:
        return Response({"rest": request._request.read().decode(), "run": count_call("rest")})


def make_wsgi_request(body: Body, **headers: str) -> HttpRequest:
    return RequestFactory().generic("POST", "/", body.content, body.content_type, headers=headers)


def make_asgi_request(body: Body, **headers: str) -> HttpRequest:
    request = AsyncRequestFactory().generic(
        "POST", "/", body.content, body.content_type, headers=headers
    )
    # The handler spools the body before there is a request.
    request._stream = io.BytesIO(body.content)
    return request


SERVERS = {"wsgi": make_wsgi_request, "asgi": make_asgi_request}


def serve(
    request: HttpRequest, view_class: type[APIView] = Upload, *, installed: bool = True
) -> Any:
    view = view_class.as_view()

    def get_response(request: HttpRequest) -> Any:
        if installed:
            middleware.process_view(request, view, (), {})
        response: Any = view(request)
        return response.render() if hasattr(response, "render") else response

    middleware = BackgroundOperationsMiddleware(get_response)
    try:
        return middleware(request) if installed else get_response(request)
    finally:
        request.close()


@pytest.fixture(params=SERVERS)
def make_request(request: pytest.FixtureRequest) -> Any:
    make = SERVERS[request.param]

    def make_with_key(body: Body, early: str) -> HttpRequest:
        headers = {"Idempotency-Key": "key-1", "X-Early": early, "Accept": "application/json"}
        if body.content_type == "application/octet-stream":
            headers["Content-Disposition"] = "attachment; filename=a.bin"
        return make(body, **headers)

    return make_with_key


@pytest.fixture(autouse=True)
def _any_size() -> Any:
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=None):
        yield


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("early", EARLY)
@pytest.mark.parametrize(
    ("view_class", "installed"), [(Upload, True), (Decorated, True), (Decorated, False)]
)
def test_body_counts_the_same_whoever_read_it(
    make_request: Any, kind: str, early: str, view_class: type[APIView], installed: bool
) -> None:
    """Equal bodies are one request and others are another, in whatever order they were read."""
    one, same, other = BODIES[kind]
    first = serve(make_request(one, early), view_class, installed=installed)
    assert (first.status_code, get_calls("rest")) == (200, 1)
    for again in EARLY:
        retry = serve(make_request(same, again), view_class, installed=installed)
        assert retry.content == first.content
        refused = serve(make_request(other, again), view_class, installed=installed)
        assert refused.status_code == 422
    assert get_calls("rest") == 1


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("early", ["nothing", "data", "post"])
def test_view_finds_its_body(make_request: Any, kind: str, early: str) -> None:
    """The view parses what it would without the middleware, upload handlers included."""
    body = BODIES[kind][0]
    plain = serve(make_request(body, early), installed=False)
    seen = serve(make_request(body, early))
    assert seen.status_code == plain.status_code == 200
    assert json.loads(seen.content) == json.loads(plain.content)
    if kind == "upload":
        kind_of_file, size, _ = json.loads(seen.content)["files"]["file"]
        assert (kind_of_file, size) == (TemporaryUploadedFile.__name__, LARGE)


@pytest.mark.parametrize(
    "read", [lambda request: request.read(5), lambda request: request.readline(5)]
)
def test_view_reads_on_where_a_permission_stopped(
    make_request: Any, read: Callable[[HttpRequest], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stream that was read in part all bytes count, and the rest is there for the view."""
    monkeypatch.setitem(EARLY, "part", lambda request: read(request._request))
    bodies = [Body("text/plain", text) for text in (b"12345rest", b"12345rest", b"12345Rest")]
    first, again, other = (serve(make_request(body, "part"), Rest) for body in bodies)
    assert json.loads(first.content) == {"rest": "rest", "run": 1}
    assert again.content == first.content
    assert other.status_code == 422


def test_body_that_ends_early_is_no_request(make_request: Any) -> None:
    """A client that went away while a permission read its body has claimed nothing."""
    request = make_request(Body("text/plain", b"half"), "nothing")
    request.META["CONTENT_LENGTH"] = "8"
    if isinstance(request, WSGIRequest):
        request = WSGIRequest(request.META | {"wsgi.input": io.BytesIO(b"half")})
    request.META["HTTP_X_EARLY"] = "part"
    EARLY["part"] = lambda request: request._request.read(2)
    try:
        refused = serve(request)
    finally:
        del EARLY["part"]
    assert refused.status_code == 400
    assert json.loads(refused.content)["type"].endswith("incomplete-body")
    assert get_statuses() == []
    assert get_calls("rest") == 0


def test_malformed_body_that_a_permission_reads_claims_nothing(make_request: Any) -> None:
    """A parse error within the checks is the framework's answer, and no outcome."""
    for content_type in ("application/json", "multipart/form-data"):
        response: HttpResponse = serve(make_request(Body(content_type, b"{"), "data"))
        assert response.status_code == 400
        assert "detail" in json.loads(response.content)
    assert get_statuses() == []


def test_unclaimed_body_is_left_alone() -> None:
    """Without a key nothing stands between the view and the stream."""
    request = make_wsgi_request(BODIES["upload"][0], **{"X-Early": "nothing"})
    stream = request._stream  # type: ignore[attr-defined]
    assert serve(request).status_code == 200
    assert request._stream is stream  # type: ignore[attr-defined]
