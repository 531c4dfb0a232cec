"""
The WSGI adapter: PEP 3333 in, the decisions of `dotmac_tasks.http` out.

The helper functions take the WSGI environment, which every framework hands out
(`request.environ` in Flask).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from dotmac_tasks.fingerprint import selected_digest
from dotmac_tasks.http import (
    STORE_HEADER,
    Answer,
    HttpIdempotency,
    IncompleteBodyError,
    Run,
    UnknownLengthError,
    ViewOptions,
    principal_scope,
)
from dotmac_tasks.http.requests import environ_name, join_credentials
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.serialization import TOO_LARGE
from dotmac_tasks.spool import Spool

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = [
    "BackgroundOperationsMiddleware",
    "add_background_operations_middleware",
    "defer_operation",
    "get_idempotency_key",
    "is_idempotent_request",
    "set_operation_result",
]

_RUN = "dotmac_tasks.run"
_DIRECTIVE = STORE_HEADER.lower()
_BODILESS = (204, 304)
# More than any body has bytes; Python refuses to read a number of thousands of them.
_MOST_DIGITS = 18

_ExcInfo: TypeAlias = (
    "tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]"
)


class BackgroundOperationsMiddleware:
    """
    Gives a WSGI application idempotent requests.

    Instances may be shared between threads; what belongs to one request lives
    in its own objects.
    """

    def __init__(
        self,
        app: WSGIApplication,
        manager: BackgroundOperationsManager,
        *,
        fingerprint: Callable[[WSGIEnvironment], Any] | None = None,
        **options: Any,
    ) -> None:
        """
        Wrap an application.

        Args:
            app: The application.
            manager: Supplies storage and settings; started with the first key.
            fingerprint: Picks what of a request identifies it instead of its whole
                body, which it may read; returns bytes, text or JSON data.
            options: HTTP settings that differ here, by their lower-case names;
                `tenant` and `principal` are called with the environment.

        Raises:
            ConfigurationError: An option is unknown or cannot work.
            TypeError: This is no application, or no manager.
        """
        if not callable(app):
            raise TypeError(f"The application must be a WSGI callable, not a {type(app).__name__}.")
        if not isinstance(manager, BackgroundOperationsManager):
            # What was passed is not shown: a URL may hold a password.
            raise TypeError(
                "The manager must be a BackgroundOperationsManager, not a "
                f"{type(manager).__name__}. Make one: BackgroundOperationsManager(url)."
            )
        self.app = app
        self.manager = manager
        config = manager.config.replace(**options) if options else manager.config
        self._http = HttpIdempotency(config, manager.guard, manager.events)
        self._options = None if fingerprint is None else ViewOptions(fingerprint=fingerprint)
        self._tenant = config.resolve_callable("tenant") or _default_tenant
        self._principal = config.resolve_callable("principal") or _remote_user
        self._key_name = environ_name(config.idempotency_header)
        self._credential_names = [environ_name(name) for name in config.credential_headers]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """
        Serve one request.
        """
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        # Wrapped twice, the outer one has the claim, and the inner one would wait for it.
        # Frameworks serve "post" as POST, although HTTP tells them apart.
        if _RUN in environ:
            return self.app(environ, start_response)
        if not self._http.covers(environ["REQUEST_METHOD"].upper(), path):
            return self.app(environ, _hide_directive(start_response))
        request = _WsgiRequest(self, environ, path)
        try:
            decision = self._http.begin(request, self._options)
        except BaseException:
            request.close()
            raise
        if decision is None:
            return self.app(environ, _hide_directive(start_response))
        if isinstance(decision, Answer):
            request.close()
            return _send(decision, start_response)
        environ[_RUN] = decision
        return _Response(decision, start_response, request.close).run(self.app, environ)

    def read_key(self, environ: WSGIEnvironment) -> str | None:
        """
        Return the raw value of the key's header.
        """
        return environ.get(self._key_name)

    def read_scope(self, environ: WSGIEnvironment) -> tuple[str, str]:
        """
        Return the tenant and the principal of a request.
        """
        tenant = self._tenant(environ)
        credentials = join_credentials(environ, self._credential_names)
        return (
            # By comparison: a tenant whose id is 0 is a tenant.
            "default" if tenant is None or tenant == "" else str(tenant),
            principal_scope(self._principal(environ), credentials),
        )


def _default_tenant(environ: WSGIEnvironment) -> str | None:
    return environ.get("dotmac_tasks.tenant_id")


def _remote_user(environ: WSGIEnvironment) -> str | None:
    return environ.get("REMOTE_USER")


class _WsgiRequest:
    """
    What `dotmac_tasks.http` asks of a WSGI request; one per request.
    """

    __slots__ = ("_environ", "_middleware", "_spool", "method", "path")

    def __init__(
        self, middleware: BackgroundOperationsMiddleware, environ: WSGIEnvironment, path: str
    ) -> None:
        self._middleware = middleware
        self._environ = environ
        self._spool: Spool | None = None
        self.method: str = environ["REQUEST_METHOD"].upper()
        self.path = path

    @property
    def query(self) -> str:
        query: str = self._environ.get("QUERY_STRING", "")
        return query

    @property
    def content_type(self) -> str:
        content_type: str = self._environ.get("CONTENT_TYPE", "")
        return content_type

    @property
    def native(self) -> Any:
        return self._environ

    def key_header(self) -> str | None:
        return self._middleware.read_key(self._environ)

    def scope(self) -> tuple[str, str]:
        return self._middleware.read_scope(self._environ)

    def read_body(self) -> None:
        """
        Spool the body, so that the application reads it as if nobody had.
        """
        self._read()

    def body_digest(self, selector: Callable[[Any], Any] | None) -> bytes:
        """
        Do so, and tell it from others.
        """
        spool = self._read()
        if selector is None:
            return spool.digest
        digest = selected_digest(selector(self._environ))
        spool.file.seek(0)
        return digest

    def _read(self) -> Spool:
        environ = self._environ
        declared = environ.get("CONTENT_LENGTH") or ""
        if declared and (not declared.isdecimal() or len(declared) > _MOST_DIGITS):
            # "+5" and "5 " are a length to some readers and none to others.
            raise UnknownLengthError
        length = int(declared) if declared else None
        if length is None and not environ.get("wsgi.input_terminated"):
            # PEP 3333 promises no end of this stream, so nothing of it may be read.
            if environ.get("HTTP_TRANSFER_ENCODING"):
                raise UnknownLengthError
            length = 0
        self._spool = spool = Spool(environ["wsgi.input"], length, self.content_type)
        if not spool.is_complete:
            raise IncompleteBodyError
        if length != 0:
            environ["wsgi.input"] = spool.file
        return spool

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()


def _send(answer: Answer, start_response: StartResponse) -> Iterable[bytes]:
    headers = list(answer.headers)
    if answer.status not in _BODILESS:
        headers.append(("Content-Length", str(len(answer.body))))
    try:
        phrase = HTTPStatus(answer.status).phrase
    except ValueError:
        phrase = "Status"
    start_response(f"{answer.status} {phrase}", headers)
    return [answer.body]


def _hide_directive(start_response: StartResponse) -> StartResponse:
    """
    Take off what a response says of its own keeping, where nothing is kept.
    """

    def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        own = [header for header in headers if header[0].lower() != _DIRECTIVE]
        return start_response(status, own, *exc_info)

    return start


class _Response:
    """
    Stands between one application run and the server.

    Used by the thread that serves the request, as PEP 3333 has it.
    """

    __slots__ = (
        "_close_request",
        "_headers",
        "_run",
        "_server_start",
        "_server_write",
        "_status",
        "_written",
        "_written_size",
    )

    _server_write: Callable[[bytes], object]

    def __init__(
        self, run: Run, start_response: StartResponse, close_request: Callable[[], None]
    ) -> None:
        self._run = run
        self._server_start = start_response
        self._close_request = close_request
        # 0 until the application has started its response.
        self._status = 0
        self._headers: list[tuple[str, str]] = []
        # What the application has written and the server has not got; None once
        # it goes straight through.
        self._written: list[bytes] | None = []
        self._written_size = 0

    def run(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes]:
        """
        Call the application; its response is stored before this returns if it can be.
        """
        iterable: Iterable[bytes] | None = None
        try:
            iterable = app(environ, self.start_response)
            return self._take(iterable)
        except BaseException as error:
            # Broken off in the middle of what was sent, it leaves the outcome unknown.
            if isinstance(error, Exception) and self._written is not None:
                self._run.fail()
            else:
                self._run.abandon()
            self.close(iterable)
            raise

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: _ExcInfo | None = None,
        /,
    ) -> Callable[[bytes], object]:
        """
        Note what the application answers and pass it on with our headers.
        """
        if exc_info is not None and exc_info[1] is not None and self._written_size:
            # The server would have sent what was written, and then there is no way back.
            raise exc_info[1].with_traceback(exc_info[2])
        own = [header for header in headers if header[0].lower() != _DIRECTIVE]
        sent = own + self._run.headers
        # The server is asked first: it refuses a second call without exc_info.
        if exc_info is None:
            self._server_write = self._server_start(status, sent)
        else:
            self._server_write = self._server_start(status, sent, exc_info)
        directives = [value for name, value in headers if name.lower() == _DIRECTIVE]
        self._run.follow(directives[-1] if directives else None)
        self._status = int(status[:3])
        self._headers = own
        return self._write

    def _write(self, data: bytes) -> None:
        # PEP 3333 lets write() buffer; a body that fits is stored before it is sent.
        self._written_size += len(data)
        if self._written is not None:
            self._written.append(data)
            if self._written_size <= self._run.max_body:
                return
            data, self._written = b"".join(self._written), None
        self._server_write(data)

    def _take(self, iterable: Iterable[bytes]) -> Iterable[bytes]:
        if isinstance(iterable, list | tuple):
            return self._drain(iterable, iterable)
        chunks = iter(iterable)
        # PEP 3333: start_response may be called as late as when the first chunk is asked for.
        first = [] if self._status else list(islice(chunks, 1))
        if self._is_short():
            return self._drain(chain(first, chunks), iterable)
        if not self._status:
            self._run.fail()
        written, self._written = self._written, None
        return _Stream(self, self._run, chain(written or (), first, chunks), iterable)

    def _is_short(self) -> bool:
        """
        Tell whether the response declares a length that can be kept.
        """
        if self._status in _BODILESS:
            return True
        for name, value in self._headers:
            if name.lower() == "content-length":
                return value.isdecimal() and int(value) <= self._run.max_body
        return False

    def _drain(self, chunks: Iterable[bytes], iterable: Iterable[bytes]) -> Iterable[bytes]:
        body = [*(self._written or ()), *chunks]
        if not self._status:
            # The server will refuse a response that was never started.
            self._run.fail()
        elif self._written is None:
            self._run.finish_unkept(TOO_LARGE, self._status)
        else:
            self._run.finish(self._status, self._headers, b"".join(body))
        if not self._written_size and type(iterable) in (list, tuple):
            # The application is done; the server gets what it would have got without us.
            self._close_request()
            return iterable
        return _Drained(self, body, iterable)

    def end_stream(self) -> None:
        """
        Record that the work is done and that its response was not kept.
        """
        self._run.finish_unkept("stream", self._status)

    def close(self, iterable: Iterable[bytes] | None) -> None:
        """
        Close the application's iterable, then what belongs to the request.
        """
        try:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()
        finally:
            self._close_request()


class _Stream:
    """
    A body that goes out as it comes; its key is never run again once it ended.

    Used by the thread that serves the request.
    """

    __slots__ = ("_chunks", "_iterable", "_response", "_run")

    def __init__(
        self, response: _Response, run: Run, chunks: Iterator[bytes], iterable: Iterable[bytes]
    ) -> None:
        self._response = response
        self._run = run
        self._chunks = chunks
        self._iterable: Iterable[bytes] | None = iterable

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            self._response.end_stream()
            raise
        except BaseException:
            # It broke in the middle: nobody knows what the work has done by now.
            self._run.abandon()
            raise

    def close(self) -> None:
        """
        Close the application's iterable, once; a client that hung up ends the stream too.
        """
        iterable, self._iterable = self._iterable, None
        self._response.end_stream()
        self._response.close(iterable)


class _Drained:
    """
    A body that was read whole; closes the application's once it was sent.

    Used by the thread that serves the request.
    """

    __slots__ = ("_body", "_iterable", "_response")

    def __init__(self, response: _Response, body: list[bytes], iterable: Iterable[bytes]) -> None:
        self._response = response
        self._body = body
        self._iterable: Iterable[bytes] | None = iterable

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """
        Close the application's iterable, once.
        """
        iterable, self._iterable = self._iterable, None
        self._response.close(iterable)


def add_background_operations_middleware(
    app: Any, manager: BackgroundOperationsManager | None = None, **options: Any
) -> BackgroundOperationsManager:
    """
    Wrap an application and return the manager that serves it.

    An object with a `wsgi_app` attribute (Flask) is wrapped in place. A plain
    WSGI callable cannot be: serve the returned manager's `wsgi_app` instead,
    which is the wrapped application in either case.

    Args:
        app: A WSGI callable, or an object with a `wsgi_app` attribute.
        manager: The manager to use; without one, one is made from the environment.
        options: As for `BackgroundOperationsMiddleware`.

    Raises:
        ConfigurationError: An option is unknown or cannot work.
        TypeError: This is no application, or no manager.
    """
    manager = manager if manager is not None else BackgroundOperationsManager.from_env()
    holder = hasattr(app, "wsgi_app")
    wrapped = BackgroundOperationsMiddleware(app.wsgi_app if holder else app, manager, **options)
    if holder:
        app.wsgi_app = wrapped
    manager.wsgi_app = wrapped
    return manager


def _run_of(environ: WSGIEnvironment) -> Run | None:
    run: Run | None = environ.get(_RUN)
    return run


def get_idempotency_key(environ: WSGIEnvironment) -> str | None:
    """
    Return the key that the client sent, or None where the request has none.
    """
    run = _run_of(environ)
    return None if run is None else run.key


def is_idempotent_request(environ: WSGIEnvironment) -> bool:
    """
    Tell whether a retry of this request is recognised.
    """
    run = _run_of(environ)
    return run is not None and run.protected


def set_operation_result(environ: WSGIEnvironment, result: Any) -> None:
    """
    Have retries answered with this result as JSON; does nothing without a key.

    Raises:
        SerializationError: The result is not JSON.
    """
    run = _run_of(environ)
    if run is not None:
        run.set_result(result)


def defer_operation(environ: WSGIEnvironment, timeout: float = 3600) -> str | None:
    """
    Hand the operation on to a worker; see `dotmac_tasks.http.Run.defer`.

    Args:
        environ: The request's environment.
        timeout: Seconds that the worker has before it counts as dead.

    Returns:
        The stored key, for `complete_idempotent_operation`; None without a key.

    Raises:
        IdempotencyError: The request has ended; start no worker.
        ClaimLostError: Another executor has the key; start no worker.
        StorageError: The project asks for strictness and it is not written.
    """
    run = _run_of(environ)
    return None if run is None else run.defer(timeout)
