"""
The WSGI middleware as a server and an application meet it: PEP 3333 to the letter.
"""

from __future__ import annotations

import gzip
import http.client
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest

from dotmac_tasks import (
    BackgroundOperationsManager,
    BackgroundOperationsMiddleware,
    ConfigurationError,
    add_background_operations_middleware,
    get_idempotency_key,
    set_operation_result,
)
from support.http_clients import (
    BrokenHandlerError,
    HttpClient,
    Response,
    StrictInput,
    exchange,
)

KEY = "5a1e2f"
TEXT = ("Content-Type", "text/plain")

App = Callable[..., Iterable[bytes]]
Wrap = Callable[..., HttpClient]


@pytest.fixture
def manager() -> Iterator[BackgroundOperationsManager]:
    """
    A manager over memory; no claim may be left that is renewed.
    """
    with BackgroundOperationsManager() as opened:
        yield opened
        assert opened.heartbeat.held_count == 0


@pytest.fixture
def wrap(manager: BackgroundOperationsManager) -> Wrap:
    """
    Wrap an application: `wrap(app, **options)`.
    """

    def make_client(app: App, **options: Any) -> HttpClient:
        return HttpClient(BackgroundOperationsMiddleware(app, manager, **options), manager)

    return make_client


def make_environ(key: str | None = KEY, body: bytes = b"{}", **changes: Any) -> dict[str, Any]:
    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/orders",
        "QUERY_STRING": "",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": StrictInput(body, len(body)),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        **changes,
    }
    if key is not None:
        environ["HTTP_IDEMPOTENCY_KEY"] = key
    return environ


def refuse_to_start(*args: Any) -> Any:
    raise AssertionError("start_response was called")


def refuse_other_statuses(wanted: str) -> Callable[..., Any]:
    def start_response(status: str, headers: Any) -> Any:
        assert status.startswith(wanted)

    return start_response


class Server:
    """
    Notes in which order things reach the server; used by one thread.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        self.events.append(("start", status))
        return lambda data: self.events.append(("write", data))


class Body:
    """
    A body that notes what is done with it; used by one thread.
    """

    def __init__(self, *chunks: bytes | BaseException) -> None:
        self.log: list[str] = []
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks, None)
        if chunk is None:
            self.log.append("end")
            raise StopIteration
        if isinstance(chunk, BaseException):
            raise chunk
        self.log.append(chunk.decode())
        return chunk

    def close(self) -> None:
        self.log.append("close")


def respond(body: Any, *headers: tuple[str, str], status: str = "200 OK") -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, [TEXT, *headers])
        made: Iterable[bytes] = body() if callable(body) else body
        return made

    return app


def problem_of(client: HttpClient) -> str | None:
    return client.send(key=KEY).problem


# What an application writes


def test_written_data_is_sent_and_replayed(wrap: Wrap) -> None:
    """
    What write() got comes before the returned body, in the first answer and in a replay.
    """

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [TEXT])
        write(b"a")
        write(b"b")
        return [b"c", b"d"]

    client = wrap(app, max_response_bytes=4)
    first, second = client.send(key=KEY), client.send(key=KEY)
    assert first.body == second.body == b"abcd"
    assert second.is_replay


def test_written_data_is_stored_before_it_is_sent(
    manager: BackgroundOperationsManager,
) -> None:
    """
    A body that fits reaches the server only after its outcome is stored.
    """
    server = Server()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [TEXT])(b"a")
        return []

    middleware = BackgroundOperationsMiddleware(app, manager)
    chunks = middleware(make_environ(), server.start_response)
    assert server.events == [("start", "200 OK")]
    assert exchange(middleware, make_environ()).is_replay
    assert b"".join(chunks) == b"a"
    chunks.close()  # type: ignore[attr-defined]


def test_too_much_written_data_goes_straight_through(
    manager: BackgroundOperationsManager,
) -> None:
    """
    Beyond the limit write() no longer holds back, nothing is lost, and nothing is kept.
    """
    server = Server()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [TEXT])
        for chunk in (b"a", b"bc", b"d"):
            write(chunk)
        return [b"e"]

    middleware = BackgroundOperationsMiddleware(app, manager, max_response_bytes=2)
    chunks = middleware(make_environ(), server.start_response)
    assert server.events[1:] == [("write", b"abc"), ("write", b"d")]
    assert list(chunks) == [b"e"]
    chunks.close()  # type: ignore[attr-defined]
    assert exchange(middleware, make_environ()).problem == "not-replayable"


def test_written_data_comes_before_a_stream(wrap: Wrap) -> None:
    """
    What was written before a stream reaches the client before it.
    """

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [TEXT])(b"a")
        return iter([b"b", b"c"])

    client = wrap(app)
    assert client.send(key=KEY).body == b"abc"
    assert problem_of(client) == "not-replayable"


def test_writing_while_streaming_loses_nothing(manager: BackgroundOperationsManager) -> None:
    """
    Data that is written between two chunks, which PEP 3333 frowns upon, still reaches the server.
    """
    server = Server()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        write = start_response("200 OK", [TEXT])
        write(b"a")
        yield b"b"
        write(b"c")
        yield b"d"

    chunks = BackgroundOperationsMiddleware(app, manager)(make_environ(), server.start_response)
    assert list(chunks) == [b"a", b"b", b"d"]
    assert server.events[1:] == [("write", b"c")]
    chunks.close()  # type: ignore[attr-defined]


# How a response starts


def lazy_app(*headers: tuple[str, str]) -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("201 Created", [TEXT, *headers])
        yield b"a"
        yield b"b"

    return app


def test_late_start_of_a_body_with_a_length_is_replayed(wrap: Wrap) -> None:
    """
    An application that starts its response with its first chunk is kept by its length.
    """
    client = wrap(validator(lazy_app(("Content-Length", "2"))))
    first, second = client.send(key=KEY), client.send(key=KEY)
    assert (first.status, first.body) == (second.status, second.body) == (201, b"ab")
    assert second.is_replay


def test_late_start_of_a_stream_loses_nothing(wrap: Wrap) -> None:
    """
    An application that starts its response with its first chunk streams as it would alone.
    """
    client = wrap(validator(lazy_app()))
    first = client.send(key=KEY)
    assert (first.status, first.body) == (201, b"ab")
    assert first.get("X-Idempotency-Key") == KEY
    assert problem_of(client) == "not-replayable"


@pytest.mark.parametrize("body", [[b"a"], (b"a",), iter([b"a"]), iter([])], ids=repr)
def test_response_that_never_starts_is_a_failure(
    manager: BackgroundOperationsManager, body: Iterable[bytes]
) -> None:
    """
    What an application returns without a start is the server's to refuse; the key is released.
    """
    middleware = BackgroundOperationsMiddleware(lambda environ, start: body, manager)
    chunks = middleware(make_environ(), refuse_to_start)
    list(chunks)
    getattr(chunks, "close", lambda: None)()
    assert manager.storage.get_stats().idempotency_keys == 0


def replacing_app(second: str, body: list[bytes]) -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [TEXT, ("X-Idempotency-Store", "yes")])
        try:
            raise BrokenHandlerError
        except BrokenHandlerError:
            start_response(second, [TEXT], sys.exc_info())
        return body

    return app


def test_replaced_response_is_the_one_that_counts(wrap: Wrap) -> None:
    """
    A response that is replaced before output is stored, or released, as the new one.
    """
    client = wrap(replacing_app("404 Not Found", [b"no"]))
    first, second = client.send(key="a"), client.send(key="a")
    assert (second.status, second.body, second.is_replay) == (404, b"no", True)
    assert first.get("Content-Type") == "text/plain"
    client = wrap(replacing_app("500 Broken", [b"no"]))
    assert [client.send(key="b").is_replay for _ in range(2)] == [False, False]


def test_replacing_what_was_written_raises_the_error(wrap: Wrap) -> None:
    """
    After write() there is no way back: the error goes on to the server, and the key is released.
    """
    runs: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        runs.append(1)
        start_response("200 OK", [TEXT])(b"a")
        try:
            raise BrokenHandlerError
        except BrokenHandlerError:
            start_response("500 Broken", [TEXT], sys.exc_info())
        raise AssertionError("not reached")

    client = wrap(app)
    assert [client.send(key=KEY).status for _ in range(2)] == [500, 500]
    assert len(runs) == 2


def test_error_after_output_leaves_the_outcome_unknown(wrap: Wrap) -> None:
    """
    An application that fails after data has gone out is not repeated within the lease.
    """

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [TEXT])(b"too much")
        raise BrokenHandlerError

    client = wrap(app, max_response_bytes=1)
    assert client.send(key=KEY).status == 500
    assert client.send(key=KEY).status == 202


def test_second_start_is_the_servers_to_refuse(manager: BackgroundOperationsManager) -> None:
    """
    A second start_response without exc_info fails as it does without the middleware.
    """
    started: list[str] = []

    def server_start(status: str, headers: Any, exc_info: Any = None) -> Any:
        if started and exc_info is None:
            raise AssertionError("Headers already set!")
        started.append(status)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [TEXT])
        start_response("201 Created", [TEXT])
        return []

    middleware = BackgroundOperationsMiddleware(app, manager)
    with pytest.raises(AssertionError, match="already set"):
        middleware(make_environ(), server_start)
    assert manager.storage.get_stats().idempotency_keys == 0


def test_headers_of_the_application_are_left_alone(wrap: Wrap) -> None:
    """
    The first answer has the application's headers as they are, and ours behind them.
    """
    mine = [TEXT, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Custom", "c")]
    headers = list(mine)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [b"a"]

    first = wrap(app).send(key=KEY)
    assert first.headers == [*mine, ("X-Idempotency-Key", KEY)]
    assert headers == mine


# The body


@pytest.mark.parametrize("make", [list, tuple])
def test_list_is_handed_on_as_it_is(manager: BackgroundOperationsManager, make: Any) -> None:
    """
    A list or a tuple is stored, and the server gets that very object, whose length it may use.
    """
    body = make([b"a", b"b"])
    middleware = BackgroundOperationsMiddleware(respond(body), manager)
    assert middleware(make_environ(), Server().start_response) is body
    assert exchange(middleware, make_environ()).body == b"ab"


def test_declared_length_decides_what_is_kept(wrap: Wrap) -> None:
    """
    A body of any kind is kept if it declares a length within the limit, and streamed otherwise.
    """
    for length, problem in (("2", None), ("3", "not-replayable"), ("two", "not-replayable")):
        app = respond(lambda: Body(b"a", b"b"), ("Content-Length", length))
        client = wrap(app, max_response_bytes=2)
        client.send(key=length)
        assert client.send(key=length).problem == problem


def test_stream_is_passed_chunk_by_chunk(manager: BackgroundOperationsManager) -> None:
    """
    A stream is not read ahead: each chunk is made when the server asks for it.
    """
    body = Body(b"a", b"b", b"c")
    middleware = BackgroundOperationsMiddleware(respond(body), manager)
    chunks = iter(middleware(make_environ(), Server().start_response))
    assert body.log == []
    assert next(chunks) == b"a"
    assert body.log == ["a"]
    assert exchange(middleware, make_environ()).status == 202
    assert list(chunks) == [b"b", b"c"]
    assert exchange(middleware, make_environ()).problem == "not-replayable"
    chunks.close()  # type: ignore[attr-defined]


def test_large_generator_reaches_the_client_whole(wrap: Wrap) -> None:
    """
    A generator of three megabytes over a limit of one arrives whole, with its headers.
    """

    def generate() -> Iterator[bytes]:
        for _ in range(300):
            yield b"x" * 10_000

    client = wrap(validator(respond(generate, ("Content-Length", "3000000"))))
    first = client.send(key=KEY)
    assert (len(first.body), first.get("Content-Length")) == (3_000_000, "3000000")
    assert problem_of(client) == "not-replayable"


@pytest.mark.parametrize("headers", [[], [("Content-Length", "2")]], ids=["stream", "length"])
def test_close_is_called_once_after_the_last_chunk(
    manager: BackgroundOperationsManager, headers: list[tuple[str, str]]
) -> None:
    """
    The application's close() runs when the server closes, once, and after the last chunk.
    """
    body = Body(b"a", b"b")
    middleware = BackgroundOperationsMiddleware(respond(body, *headers), manager)
    chunks = middleware(make_environ(), Server().start_response)
    assert list(chunks) == [b"a", b"b"]
    assert body.log == ["a", "b", "end"]
    chunks.close()  # type: ignore[attr-defined]
    chunks.close()  # type: ignore[attr-defined]
    assert body.log == ["a", "b", "end", "close"]


def test_close_of_a_list_is_called(manager: BackgroundOperationsManager) -> None:
    """
    A list that has a close() of its own gets it called after it was sent.
    """
    closed: list[bool] = []

    class ClosingList(list[bytes]):
        def close(self) -> None:
            closed.append(True)

    middleware = BackgroundOperationsMiddleware(respond(ClosingList([b"a"])), manager)
    chunks = middleware(make_environ(), Server().start_response)
    assert list(chunks) == [b"a"]
    assert closed == []
    chunks.close()  # type: ignore[attr-defined]
    assert closed == [True]


def test_close_is_called_when_draining_fails(wrap: Wrap) -> None:
    """
    A body that fails before anything was sent is closed, and the key is released.
    """
    bodies: list[Body] = []

    def make() -> Body:
        bodies.append(Body(b"a", BrokenHandlerError()))
        return bodies[-1]

    client = wrap(respond(make, ("Content-Length", "2")))
    assert [client.send(key=KEY).status for _ in range(2)] == [500, 500]
    assert [body.log for body in bodies] == [["a", "close"]] * 2


def test_failing_close_still_ends_the_request(manager: BackgroundOperationsManager) -> None:
    """
    A close() that fails is the server's to see; the outcome is recorded before.
    """

    class Unclosable(Body):
        def close(self) -> None:
            raise BrokenHandlerError

    middleware = BackgroundOperationsMiddleware(respond(Unclosable(b"a")), manager)
    chunks = middleware(make_environ(), Server().start_response)
    list(chunks)
    with pytest.raises(BrokenHandlerError):
        chunks.close()  # type: ignore[attr-defined]
    assert exchange(middleware, make_environ()).problem == "not-replayable"


def test_outcome_is_stored_before_the_first_byte(manager: BackgroundOperationsManager) -> None:
    """
    A client that hangs up before the first byte finds its answer when it retries.
    """
    app = respond(lambda: Body(b"a"), ("Content-Length", "1"))
    middleware = BackgroundOperationsMiddleware(app, manager)
    chunks = middleware(make_environ(), Server().start_response)
    chunks.close()  # type: ignore[attr-defined]
    answer = exchange(middleware, make_environ())
    assert (answer.body, answer.is_replay) == (b"a", True)


@pytest.mark.parametrize("taken", [0, 1])
def test_stream_whose_client_hangs_up_is_not_run_again(
    manager: BackgroundOperationsManager, taken: int
) -> None:
    """
    A stream that the server closes early has done its work: it is never run again.
    """
    body = Body(b"a", b"b")
    middleware = BackgroundOperationsMiddleware(respond(body), manager)
    chunks = middleware(make_environ(), Server().start_response)
    for _ in range(taken):
        next(iter(chunks))
    chunks.close()  # type: ignore[attr-defined]
    assert body.log[-1] == "close"
    assert exchange(middleware, make_environ()).problem == "not-replayable"


@pytest.mark.parametrize("error", [BrokenHandlerError(), GeneratorExit(), SystemExit()])
def test_stream_that_breaks_is_held_for_its_lease(
    manager: BackgroundOperationsManager, error: BaseException
) -> None:
    """
    An error midway passes through unchanged and leaves the outcome unknown, closed or not.
    """
    middleware = BackgroundOperationsMiddleware(respond(Body(b"a", error)), manager)
    chunks = middleware(make_environ(), Server().start_response)
    with pytest.raises(type(error)):
        list(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert exchange(middleware, make_environ()).status == 202


@pytest.mark.parametrize("status", [299, 204])
def test_unusual_status_is_replayed(wrap: Wrap, status: int) -> None:
    """
    A status without a phrase of its own, or without a body, is replayed as it is.
    """

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(f"{status} Whatever", [] if status == 204 else [TEXT])
        return iter([])

    client = wrap(app)
    client.send(key=KEY)
    answer = client.send(key=KEY)
    if status == 204:
        assert (answer.status, answer.body, answer.is_replay) == (204, b"", True)
        assert answer.get("Content-Length") is None
        assert answer.get("Content-Type") is None
    else:
        assert answer.problem == "not-replayable"


def test_status_without_a_phrase_is_replayed(wrap: Wrap) -> None:
    """
    A status that Python has no phrase for comes back as a number with a stand-in.
    """
    client = wrap(respond([b"a"], status="299 Mostly OK"))
    client.send(key=KEY)
    assert client.send(key=KEY).status == 299


# The input


class Unreadable:
    """
    A request body that nobody may read.
    """

    def read(self, *args: int) -> bytes:
        raise AssertionError("the body was read")

    readline = readlines = __iter__ = read


def test_input_without_an_end_is_not_read(manager: BackgroundOperationsManager) -> None:
    """
    Without a length the application gets the server's stream untouched, and a key still works.
    """
    seen: list[object] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(environ["wsgi.input"])
        start_response("200 OK", [TEXT])
        return [b"a"]

    middleware = BackgroundOperationsMiddleware(app, manager)
    for _ in range(2):
        environ = make_environ(CONTENT_LENGTH="")
        environ["wsgi.input"] = Unreadable()
        exchange(middleware, environ)
        assert seen[0] is not None
    assert isinstance(seen[0], Unreadable)
    assert len(seen) == 1


@pytest.mark.parametrize("length", ["9" * 5000, "+5", "5 ", "0x5"], ids=["long", "+", " ", "x"])
def test_length_that_is_none_is_refused(manager: BackgroundOperationsManager, length: str) -> None:
    """
    A declared length that readers would read in two ways, or not at all, is refused.
    """
    environ = make_environ(CONTENT_LENGTH=length)
    environ["wsgi.input"] = Unreadable()
    answer = exchange(BackgroundOperationsMiddleware(fail, manager), environ)
    assert (answer.status, answer.problem) == (411, "length-required")


def test_chunked_input_without_an_end_is_refused(manager: BackgroundOperationsManager) -> None:
    """
    A body that is there but cannot be read is never taken for an empty one.
    """
    middleware = BackgroundOperationsMiddleware(fail, manager)
    environ = make_environ(CONTENT_LENGTH="", HTTP_TRANSFER_ENCODING="chunked")
    environ["wsgi.input"] = Unreadable()
    answer = exchange(middleware, environ)
    assert (answer.status, answer.problem) == (411, "length-required")
    assert manager.storage.get_stats().idempotency_keys == 0


@pytest.mark.parametrize("length", ["+2", "2 ", "-2", "many"])
def test_length_that_readers_could_disagree_about_is_refused(
    manager: BackgroundOperationsManager, length: str
) -> None:
    """
    A body is never taken for an empty one because only the application can read its length.
    """
    middleware = BackgroundOperationsMiddleware(fail, manager)
    environ = make_environ(CONTENT_LENGTH=length)
    environ["wsgi.input"] = Unreadable()
    list(middleware(environ, refuse_other_statuses("411")))
    assert manager.storage.get_stats().idempotency_keys == 0


def test_method_in_small_letters_is_the_method(manager: BackgroundOperationsManager) -> None:
    """
    Frameworks that serve `post` as POST do not serve it past the middleware.
    """
    middleware = BackgroundOperationsMiddleware(fail, manager, require_key=True)
    environ = make_environ(key=None, REQUEST_METHOD="post")
    list(middleware(environ, refuse_other_statuses("400")))


def test_chunked_input_is_read_where_the_server_ends_it(
    manager: BackgroundOperationsManager,
) -> None:
    """
    A body without a length is read to its end if the server says that it has one.
    """
    bodies: list[bytes] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [TEXT])
        return [b"a"]

    middleware = BackgroundOperationsMiddleware(app, manager)
    answers = []
    for body in (b"[1]", b"[1]", b"[2]"):
        environ = make_environ(CONTENT_LENGTH="")
        environ.update({"wsgi.input_terminated": True, "wsgi.input": io.BytesIO(body)})
        answers.append(exchange(middleware, environ))
    assert bodies == [b"[1]"]
    assert [answer.status for answer in answers] == [200, 200, 422]


@pytest.mark.parametrize(
    "changes",
    [{"key": None}, {"REQUEST_METHOD": "PUT"}, {"PATH_INFO": "/health/"}, {"key": ""}],
    ids=str,
)
def test_input_is_not_touched_without_need(
    manager: BackgroundOperationsManager, changes: dict[str, Any]
) -> None:
    """
    Without a usable key, or where nothing is covered, nobody reads the body.
    """
    stream = Unreadable()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        assert environ["wsgi.input"] is stream
        start_response("200 OK", [TEXT])
        return []

    environ = make_environ(**changes)
    environ["wsgi.input"] = stream
    assert exchange(BackgroundOperationsMiddleware(app, manager), environ).status in (200, 400)


def test_input_that_fails_claims_nothing(manager: BackgroundOperationsManager) -> None:
    """
    An error of the server's stream passes through, and nothing is claimed.
    """

    class Broken(Unreadable):
        def read(self, *args: int) -> bytes:
            raise OSError("connection reset")

    middleware = BackgroundOperationsMiddleware(respond([b"a"]), manager)
    environ = make_environ()
    environ["wsgi.input"] = Broken()
    with pytest.raises(OSError, match="reset"):
        middleware(environ, refuse_to_start)
    assert manager.storage.get_stats().idempotency_keys == 0


def fail(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    raise BrokenHandlerError


@pytest.mark.parametrize(
    "app",
    [
        respond([b"a"]),
        respond(lambda: Body(b"a"), ("Content-Length", "1")),
        respond(lambda: Body(b"a")),
        respond([b"a"], status="503 Later"),
        fail,
    ],
    ids=["list", "length", "stream", "release", "error"],
)
def test_spooled_input_is_closed_at_the_end(wrap: Wrap, app: App) -> None:
    """
    However a request ends, the copy of its body is closed; until then it can be read.
    """
    inputs: list[Any] = []

    def reading(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        inputs.append(environ["wsgi.input"])
        assert inputs[-1].read(8) == b"[1, 2]"
        return app(environ, start_response)

    wrap(reading).send(key=KEY, body=b"[1, 2]")
    assert inputs[0].closed


def test_fingerprint_may_leave_out_what_changes(wrap: Wrap) -> None:
    """
    A selector picks what identifies a request, and the application still reads all of it.
    """
    bodies: list[bytes] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        bodies.append(environ["wsgi.input"].read(3))
        start_response("200 OK", [TEXT])
        return [b"a"]

    client = wrap(app, fingerprint=lambda environ: environ["wsgi.input"].read(1))
    assert client.send(key=KEY, body=b"a-1").status == 200
    assert client.send(key=KEY, body=b"a-2").is_replay
    assert client.send(key=KEY, body=b"b-1").problem == "key-reused"
    assert bodies == [b"a-1"]


def test_selector_that_fails_claims_nothing(manager: BackgroundOperationsManager) -> None:
    """
    An error of the selector passes through, and nothing is claimed.
    """

    def select(environ: dict[str, Any]) -> object:
        raise BrokenHandlerError

    middleware = BackgroundOperationsMiddleware(respond([b"a"]), manager, fingerprint=select)
    environ = make_environ()
    with pytest.raises(BrokenHandlerError):
        middleware(environ, refuse_to_start)
    assert environ["wsgi.input"].closed
    assert manager.storage.get_stats().idempotency_keys == 0


# Around and inside


def test_middleware_inside_another_steps_aside(wrap: Wrap, manager: Any) -> None:
    """
    Wrapped twice, a request is claimed once and does not wait for itself.
    """
    runs: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        runs.append(1)
        start_response("200 OK", [TEXT])
        return [b"a"]

    client = wrap(BackgroundOperationsMiddleware(app, manager))
    first, second = client.send(key=KEY), client.send(key=KEY)
    assert (first.body, second.body, second.is_replay) == (b"a", b"a", True)
    assert [name for name, _ in first.headers].count("X-Idempotency-Key") == 1
    assert len(runs) == 1


def test_check_outside_comes_before_a_replay(manager: BackgroundOperationsManager) -> None:
    """
    Who was let in before and is refused now gets no stored answer, and nothing runs.
    """
    allowed = [True, False, True]
    runs: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        runs.append(1)
        start_response("200 OK", [TEXT])
        return [b"secret"]

    inner = BackgroundOperationsMiddleware(app, manager)

    def guarded(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if allowed.pop(0):
            return inner(environ, start_response)
        start_response("403 Forbidden", [TEXT])
        return [b"no"]

    answers = [exchange(guarded, make_environ()).body for _ in range(3)]
    assert answers == [b"secret", b"no", b"secret"]
    assert len(runs) == 1


def test_compression_outside_suits_each_client(manager: BackgroundOperationsManager) -> None:
    """
    A replay to a client without gzip is readable though the first answer was compressed.
    """
    inner = BackgroundOperationsMiddleware(respond([b"plain"]), manager)

    def compressing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("HTTP_ACCEPT_ENCODING") != "gzip":
            return inner(environ, start_response)
        answer = exchange(inner, environ)
        start_response("200 OK", [*answer.headers, ("Content-Encoding", "gzip")])
        return [gzip.compress(answer.body)]

    first = exchange(compressing, make_environ(HTTP_ACCEPT_ENCODING="gzip"))
    second = exchange(compressing, make_environ())
    assert gzip.decompress(first.body) == second.body == b"plain"
    assert second.get("Content-Encoding") is None


def test_logs_never_hold_the_key(
    wrap: Wrap, manager: BackgroundOperationsManager, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Whatever is logged names the key's hash only, as a field beside tenant and operation.
    """
    caplog.set_level(logging.DEBUG)
    key = "do-not-log-me"
    lost = wrap(respond([b"a"], ("X-Idempotency-Store", "?")))
    assert lost.send(key=key).status == 200
    (record,) = (each for each in caplog.records if "X-Idempotency-Store" in each.getMessage())
    assert vars(record)["tenant_id"] == "default"
    assert vars(record)["operation_type"] == "POST /orders"
    assert len(vars(record)["key_hash"]) == 12
    assert key not in caplog.text
    assert all(key not in str(vars(record)) for record in caplog.records)


# Who asks


def scope_runs(client: HttpClient, *environs: dict[str, Any]) -> list[bool]:
    return [client.send(key=KEY, **environ).is_replay for environ in environs]


def test_servers_user_is_the_principal(wrap: Wrap) -> None:
    """
    By default the user that the server has authenticated scopes the key.
    """
    client = wrap(respond([b"a"]))
    users = [{"REMOTE_USER": name} for name in ("alice", "bob", "alice")]
    assert scope_runs(client, *users) == [False, False, True]


def test_tenant_in_the_environment_scopes_the_key(wrap: Wrap) -> None:
    """
    By default the tenant that an outer layer has put into the environment scopes the key.
    """
    client = wrap(respond([b"a"]))
    tenants = [{"dotmac_tasks.tenant_id": tenant} for tenant in ("one", "two", "default")]
    assert scope_runs(client, {}, *tenants) == [False, False, False, True]


def test_numeric_ids_are_ids(wrap: Wrap) -> None:
    """
    A tenant or a user whose id is 0 is not taken for a missing one.
    """
    ids: list[tuple[Any, Any]] = [(None, None), (0, None), (None, 0), ("", ""), ("0", None)]
    client = wrap(
        respond([b"a"]),
        tenant=lambda environ: ids[0][0],
        principal=lambda environ: ids.pop(0)[1],
    )
    assert scope_runs(client, {}, {}, {}, {}, {}) == [False, False, False, True, True]


def read_test_user(environ: dict[str, Any]) -> str | None:
    """
    Resolve a principal; named by its dotted path below.
    """
    return environ.get("test.user")


def test_resolver_may_be_a_dotted_path(wrap: Wrap, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A resolver that is named by its path is imported and called with the environment.
    """
    monkeypatch.setitem(sys.modules, "project_of_the_test", sys.modules[__name__])
    client = wrap(respond([b"a"]), principal="project_of_the_test.read_test_user")
    users = [{"test.user": name} for name in ("alice", "bob", "alice")]
    assert scope_runs(client, *users) == [False, False, True]


@pytest.mark.parametrize(
    "options",
    [
        {"principal": "no_such_module.resolve"},
        {"tenant": "sys.no_such_name"},
        {"tenant": "sys.version"},
        {"methds": ["POST"]},
        {"lease": -1},
        {"default_idempotency_ttl": 0},
        {"default_idempotency_ttl": -1},
        {"fingerprint": "amount"},
    ],
    ids=str,
)
def test_bad_option_is_refused_when_wrapping(wrap: Wrap, options: dict[str, Any]) -> None:
    """
    An option that cannot work is an error at start, not at the first request.
    """
    with pytest.raises(ConfigurationError):
        wrap(respond([b"a"]), **options)


# Wrapping applications


def test_plain_application_is_served_from_the_manager() -> None:
    """
    A plain callable cannot be changed; the manager that is returned has it wrapped.
    """
    app = respond([b"a"])
    manager = add_background_operations_middleware(app, require_key=True)
    with manager:
        assert isinstance(manager.wsgi_app, BackgroundOperationsMiddleware)
        assert manager.wsgi_app.app is app
        assert exchange(manager.wsgi_app, make_environ(key=None)).problem == "missing-key"


def test_object_with_a_wsgi_app_is_wrapped_in_place(manager: BackgroundOperationsManager) -> None:
    """
    An object like a Flask application keeps its identity, and its requests are protected.
    """

    class Framework:
        def __init__(self) -> None:
            self.wsgi_app: Any = respond([b"a"])

        def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
            return self.wsgi_app(environ, start_response)

    app = Framework()
    assert add_background_operations_middleware(app, manager) is manager
    assert manager.wsgi_app is app.wsgi_app
    client = HttpClient(app, manager)
    assert [client.send(key=KEY).is_replay for _ in range(2)] == [False, True]


def test_flask_application_is_protected(manager: BackgroundOperationsManager) -> None:
    """
    A Flask application replays its answers, and its views use the helpers.
    """
    flask = pytest.importorskip("flask")
    app = flask.Flask("shop")
    runs: list[str | None] = []

    @app.post("/orders")
    def create_order() -> Any:
        runs.append(get_idempotency_key(flask.request.environ))
        assert flask.request.get_json() == {"amount": 1}
        return {"order": len(runs)}, 201, {"Location": "/orders/1"}

    @app.post("/result")
    def create_result() -> Any:
        set_operation_result(flask.request.environ, {"order": 7})
        return "queued", 202

    add_background_operations_middleware(app, manager)
    client = HttpClient(app, manager)
    answers = [client.send(key=KEY) for _ in range(2)]
    assert [answer.status for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json() == {"order": 1}
    assert answers[1].get("Location") == "/orders/1"
    assert answers[1].is_replay
    assert runs == [KEY]
    results = [client.send(key="b", path="/result") for _ in range(2)]
    assert [result.status for result in results] == [202, 200]
    assert results[1].json() == {"order": 7}


# A real server


class QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def run_server(app: Any) -> Iterator[int]:
    with make_server("127.0.0.1", 0, app, handler_class=QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(30)


def post(port: int, path: str, body: bytes = b'{"amount": 1}') -> Response:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"Idempotency-Key": KEY, "Content-Type": "application/json"}
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return Response(answer.status, answer.getheaders(), answer.read())
    finally:
        connection.close()


def test_mounted_application_is_protected_by_a_real_server(
    manager: BackgroundOperationsManager,
) -> None:
    """
    Under a sub-path of a real server retries replay, and the mount point is part of the path.
    """
    seen: list[tuple[str, str, bytes]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        seen.append((environ["SCRIPT_NAME"], environ["PATH_INFO"], body))
        start_response("201 Created", [TEXT])
        return [b"order ", b"1"]

    protected = validator(BackgroundOperationsMiddleware(app, manager))

    def mount(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        _, first, rest = environ["PATH_INFO"].split("/", 2)
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = f"/{first}", f"/{rest}"
        mounted: Iterable[bytes] = protected(environ, start_response)
        return mounted

    with run_server(mount) as port:
        first, second = post(port, "/shop/orders"), post(port, "/shop/orders")
        elsewhere = post(port, "/club/orders")
        other = post(port, "/shop/orders", b"[]")
    assert (first.status, first.body) == (second.status, second.body) == (201, b"order 1")
    assert second.is_replay
    assert (elsewhere.problem, other.problem) == ("key-reused", "key-reused")
    assert seen == [("/shop", "/orders", b'{"amount": 1}')]
