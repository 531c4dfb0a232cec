"""
One client interface over WSGI and Django, so that one suite can ask the same of both.

A test hands over a handler, which stands for the application's work, and sends requests. Each
request goes through `wsgiref.validate` and finds an input that refuses to be read too far.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from wsgiref.validate import validator

from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.storage import Storage
from dotmac_tasks.wsgi import (
    BackgroundOperationsMiddleware,
    defer_operation,
    get_idempotency_key,
    is_idempotent_request,
    set_operation_result,
)

Headers = Sequence[tuple[str, str]]

JSON: Headers = (("Content-Type", "application/json"),)


class BrokenHandlerError(Exception):
    """
    What a handler raises when the test wants the application to fail.
    """


class Reply(NamedTuple):
    """
    What a handler answers; a body that is not bytes is streamed.
    """

    status: int = 200
    headers: Headers = JSON
    body: bytes | Iterable[bytes] = b"{}"


class Response(NamedTuple):
    """
    What the client got.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        """
        Return a header's values, joined as HTTP joins them, or None.
        """
        values = [value for header, value in self.headers if header.lower() == name.lower()]
        return ", ".join(values) if values else None

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str | None:
        """
        The last part of the problem's type, if this is a problem document.
        """
        if self.get("Content-Type") != "application/problem+json":
            return None
        document = self.json()
        assert document["status"] == self.status
        return str(document["type"]).rpartition(":")[2]

    @property
    def is_replay(self) -> bool:
        """
        Whether it is marked as a replay; the two marks go together.
        """
        marks = (self.get("X-Cache-Hit"), self.get("Idempotent-Replayed"))
        assert marks in (("true", "true"), (None, None))
        return marks[0] is not None


class Call(ABC):
    """
    What a handler sees of its request, and what it may say about it.
    """

    body: bytes
    environ: dict[str, Any]

    @property
    @abstractmethod
    def key(self) -> str | None: ...

    @property
    @abstractmethod
    def is_idempotent(self) -> bool: ...

    @abstractmethod
    def set_result(self, result: Any) -> None: ...

    @abstractmethod
    def defer(self, timeout: float = 3600) -> str | None: ...


Handler = Callable[[Call], Reply]


class StrictInput(io.BytesIO):
    """
    A request body that fails where a socket would hang: on reading past what is declared.
    """

    def __init__(self, body: bytes, declared: int) -> None:
        super().__init__(body)
        self._left = declared
        self.was_read = False

    def read(self, size: int | None = -1, /) -> bytes:
        self.was_read = True
        if size is None or size < 0 or size > self._left:
            raise AssertionError(f"read({size}) with {self._left} bytes left")
        data = super().read(size)
        self._left -= len(data)
        return data


class HttpClient:
    """
    Sends requests to a WSGI application as a server would; may be shared between threads.

    Attributes:
        manager: The manager that serves the application.
    """

    def __init__(self, app: Any, manager: BackgroundOperationsManager) -> None:
        self.manager = manager
        self._bare_app = app
        self._app = validator(app)

    def stop_validating(self) -> None:
        """
        Take whatever the application answers; for answers that nobody of good faith gives.
        """
        self._app = self._bare_app

    def send(
        self,
        method: str = "POST",
        path: str = "/orders",
        *,
        key: str | None = None,
        body: bytes = b'{"amount": 1}',
        content_type: str = "application/json",
        query: str = "",
        headers: Headers = (),
        on_chunk: Callable[[bytes], object] | None = None,
        **environ: Any,
    ) -> Response:
        """
        Send one request; an application that fails gets the client a 500.

        `on_chunk` gets each chunk of the response as it comes.
        """
        declared = int(environ.get("CONTENT_LENGTH") or len(body))
        request = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": content_type,
            "CONTENT_LENGTH": str(declared),
            "SERVER_NAME": "testserver",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": StrictInput(body, declared),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers},
            **environ,
        }
        if key is not None:
            request["HTTP_IDEMPOTENCY_KEY"] = key
        try:
            return exchange(self._app, request, on_chunk)
        except BrokenHandlerError:
            return Response(500, [], b"")


def exchange(
    app: Any, environ: dict[str, Any], on_chunk: Callable[[bytes], object] | None = None
) -> Response:
    """
    Call a WSGI application once and read its response to the end.
    """
    started: list[tuple[str, list[tuple[str, str]]]] = []
    body = io.BytesIO()

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], int]:
        started.append((status, list(headers)))
        return body.write

    chunks = app(environ, start_response)
    try:
        for chunk in chunks:
            body.write(chunk)
            if on_chunk is not None:
                on_chunk(chunk)
    finally:
        if hasattr(chunks, "close"):
            chunks.close()
    status, headers = started[-1]
    return Response(int(status[:3]), headers, body.getvalue())


# WSGI


class _WsgiCall(Call):
    def __init__(self, environ: dict[str, Any]) -> None:
        self.environ = environ
        self.body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))

    @property
    def key(self) -> str | None:
        return get_idempotency_key(self.environ)

    @property
    def is_idempotent(self) -> bool:
        return is_idempotent_request(self.environ)

    def set_result(self, result: Any) -> None:
        set_operation_result(self.environ, result)

    def defer(self, timeout: float = 3600) -> str | None:
        return defer_operation(self.environ, timeout)


def make_wsgi_app(handler: Handler) -> Any:
    """
    Make a WSGI application of a handler, as frameworks do: a body of bytes has a length.
    """

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        reply = handler(_WsgiCall(environ))
        headers = list(reply.headers)
        chunks = reply.body
        if isinstance(chunks, bytes):
            if reply.status not in (204, 304):
                headers.append(("Content-Length", str(len(chunks))))
            chunks = [chunks]
        start_response(f"{reply.status} Answer", headers)
        return chunks

    return app


@contextmanager
def open_wsgi(
    handler: Handler, storage: Storage, settings: dict[str, Any], **options: Any
) -> Iterator[HttpClient]:
    with BackgroundOperationsManager(storage, **settings) as manager:
        app = validator(make_wsgi_app(handler))
        yield HttpClient(BackgroundOperationsMiddleware(app, manager, **options), manager)


# Django

_handed_over: list[Storage] = []


def get_handed_over() -> Storage:
    """
    Return the storage of the running test, as `STORAGE` of a Django project names it.
    """
    return _handed_over[-1]


@contextmanager
def open_django(
    handler: Handler, storage: Storage, settings: dict[str, Any], **options: Any
) -> Iterator[HttpClient]:
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import override_settings
    from django.urls import re_path

    from dotmac_tasks_django import get_manager, idempotent
    from support.django_project.connections import left_alone

    _handed_over.append(storage)
    tasks = {name.upper(): value for name, value in settings.items()}
    tasks["STORAGE"] = {"BACKEND": "support.http_clients.get_handed_over"}
    view = make_django_view(handler)
    if options:
        view = idempotent(**options)(view)
    overrides = override_settings(
        DOTMAC_TASKS=tasks,
        MIDDLEWARE=["dotmac_tasks_django.middleware.BackgroundOperationsMiddleware"],
        ROOT_URLCONF=(re_path("", view),),
    )
    try:
        with overrides, left_alone():
            yield HttpClient(WSGIHandler(), get_manager())
    finally:
        _handed_over.pop()


def make_django_view(handler: Handler) -> Any:
    from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

    import dotmac_tasks_django as helpers

    class DjangoCall(Call):
        def __init__(self, request: HttpRequest) -> None:
            self._request = request
            self.environ = request.META
            self.body = request.body

        @property
        def key(self) -> str | None:
            return helpers.get_idempotency_key(self._request)

        @property
        def is_idempotent(self) -> bool:
            return helpers.is_idempotent_request(self._request)

        def set_result(self, result: Any) -> None:
            helpers.set_operation_result(self._request, result)

        def defer(self, timeout: float = 3600) -> str | None:
            return helpers.defer_operation(self._request, timeout)

    def view(request: HttpRequest) -> Any:
        reply = handler(DjangoCall(request))
        make = HttpResponse if isinstance(reply.body, bytes) else StreamingHttpResponse
        response = make(reply.body, status=reply.status)
        del response["Content-Type"]
        for name, value in reply.headers:
            # Django holds one value for a name; a list of values means the same.
            response[name] = f"{response[name]}, {value}" if name in response else value
        return response

    return view


ADAPTERS: dict[str, Callable[..., Any]] = {"wsgi": open_wsgi, "django": open_django}
"""
What opens a client of each adapter: `open(handler, storage, settings, **options)`.

The options are those of the one view, or of the one middleware under WSGI.
"""
