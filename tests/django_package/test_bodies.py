from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadhandler import (
    FileUploadHandler,
    MemoryFileUploadHandler,
    SkipFile,
    StopFutureHandlers,
    StopUpload,
)
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.test import (
    AsyncClient,
    AsyncRequestFactory,
    Client,
    RequestFactory,
    override_settings,
)
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from dotmac_tasks.fingerprint import body_digest
from dotmac_tasks.spool import DigestingStream
from dotmac_tasks_django import idempotency_exempt, idempotent
from dotmac_tasks_django.bodies import (
    digest_while_read,
    ensure_whole_body,
    request_body_digest,
    selected_body_digest,
)
from dotmac_tasks_django.conf import get_manager
from dotmac_tasks_django.testing import override_tasks_settings
from support.django_project.calls import count_call, get_calls
from support.django_project.settings import MIDDLEWARE
from support.forms import Part, make_form

KEY = {"Idempotency-Key": "key-1"}
FORM = "application/x-www-form-urlencoded"

View = Callable[[HttpRequest], HttpResponse]
Serve = Callable[..., None]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """
    Put a view at the root, without CSRF checks unless they are asked for, and change settings.
    """
    with ExitStack() as stack:

        def put(view: View, *, checked: bool = False, **settings: Any) -> None:
            urls = (path("", view if checked else csrf_exempt(view)),)
            stack.enter_context(override_settings(ROOT_URLCONF=urls, **settings))

        yield put


def post(form: dict[str, Any], headers: dict[str, str] | None = None, **environ: Any) -> Any:
    """
    Send a body as it is; a failing view is a 500.
    """
    client = Client(raise_request_exception=False)
    return client.post(
        "/",
        form["body"],
        form["content_type"],
        headers=KEY if headers is None else headers,
        **environ,
    )


def serve_stream(form: dict[str, Any], stream: Any, **environ: Any) -> str:
    """
    Send a form whose bytes come from a stream, past the limits of Django's own client.
    """
    request = RequestFactory(headers=KEY).post("/", b"-", form["content_type"])
    declared = str(len(form["body"]))
    facts = {**request.environ, "CONTENT_LENGTH": declared, "wsgi.input": stream, **environ}
    statuses: list[str] = []
    body: Any = WSGIHandler()(facts, lambda status, *rest: statuses.append(status))
    body.close()
    return statuses[0]


def count_records() -> int:
    return get_manager().storage.get_stats().idempotency_keys


def film(content: bytes, boundary: str = "b0undary") -> dict[str, Any]:
    title, tag = Part("title", b"holiday"), Part("tag", b"sea")
    return make_form(title, Part("film", content, "a.mp4"), tag, boundary=boundary)


CONTENT = bytes(range(256)) * 12_000
OTHER = CONTENT[:-1] + b"!"


# Upload handlers


class StreamingHandler(FileUploadHandler):
    """
    Sends what comes in somewhere else and leaves an object that cannot be read.
    """

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        self.size = 0
        raise StopFutureHandlers

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        self.size += len(raw_data)

    def file_complete(self, file_size: int) -> Any:
        return RemoteFile(self.file_name, self.size)


class RemoteFile:
    """
    What is left of a file that went somewhere else.
    """

    def __init__(self, name: str | None, size: int) -> None:
        self.name = name
        self.size = size

    def close(self) -> None:
        pass


class SkippingHandler(StreamingHandler):
    """
    Wants no files.
    """

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        raise SkipFile


class QuotaHandler(StreamingHandler):
    """
    Takes 100,000 bytes of a file and reads the rest for nothing.
    """

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        super().receive_data_chunk(raw_data, start)
        if self.size > 100_000:
            raise StopUpload(connection_reset=False)


class ResettingHandler(StreamingHandler):
    """
    Reads no further than 100,000 bytes.
    """

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        super().receive_data_chunk(raw_data, start)
        if self.size > 100_000:
            raise StopUpload(connection_reset=True)


class BrokenHandler(StreamingHandler):
    """
    Fails.
    """

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        raise RuntimeError("broken handler")


HANDLERS: list[type[FileUploadHandler]] = [
    MemoryFileUploadHandler,
    StreamingHandler,
    SkippingHandler,
    QuotaHandler,
    ResettingHandler,
    BrokenHandler,
]


def tell_form(request: HttpRequest) -> HttpResponse:
    """
    Tells what the form's parser has left of a form.
    """
    count_call("form")
    files = {name: [file.name, file.size] for name, file in request.FILES.items()}
    return JsonResponse({"fields": dict(request.POST.items()), "files": files})


def insert_handler(handler: type[FileUploadHandler]) -> View:
    def view(request: HttpRequest) -> HttpResponse:
        request.upload_handlers.insert(0, handler(request))
        return tell_form(request)

    return view


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.__name__)
@pytest.mark.parametrize("way", ["settings", "view"])
def test_upload_handler_works_as_without_a_key(
    serve: Serve, handler: type[FileUploadHandler], way: str
) -> None:
    """
    Handlers of the settings or of the view get every byte, whatever they make of them.
    """
    if way == "view":
        serve(insert_handler(handler))
    else:
        named = [f"{__name__}.{handler.__name__}"]
        serve(tell_form, FILE_UPLOAD_HANDLERS=named, FILE_UPLOAD_MAX_MEMORY_SIZE=5_000_000)
    form = film(CONTENT)
    plain, first, again = post(form, {}), post(form), post(film(CONTENT, "another"))
    assert (first.status_code, first.content) == (plain.status_code, plain.content)
    assert again.headers.get("X-Cache-Hit") == (None if plain.status_code == 500 else "true")
    assert post(film(OTHER)).status_code == (500 if plain.status_code == 500 else 422)
    assert get_calls("form") == (2 if plain.status_code != 500 else 4)


@pytest.mark.parametrize("handler", HANDLERS[1:4], ids=lambda handler: handler.__name__)
def test_uploads_that_the_csrf_check_has_parsed_are_told_apart(
    serve: Serve, handler: type[FileUploadHandler]
) -> None:
    """
    A file that a handler has sent elsewhere counts byte by byte, though nothing is left of it.
    """
    serve(tell_form, checked=True, FILE_UPLOAD_HANDLERS=[f"{__name__}.{handler.__name__}"])
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    token = "a" * 32
    client.cookies["csrftoken"] = token

    def send(content: bytes, boundary: str = "b0undary") -> Any:
        form = make_form(
            Part("csrfmiddlewaretoken", token.encode()),
            Part("film", content, "a.mp4"),
            boundary=boundary,
        )
        return client.post("/", form["body"], form["content_type"], headers=KEY)

    assert send(CONTENT).status_code == 200
    assert send(CONTENT, "another")["X-Cache-Hit"] == "true"
    assert send(OTHER).status_code == 422
    assert get_calls("form") == 1


def test_handler_that_stops_reading_is_left_in_peace(serve: Serve) -> None:
    """
    What a handler of a checked form does not want to read is not read for its digest either.
    """
    serve(tell_form, checked=True, FILE_UPLOAD_HANDLERS=[f"{__name__}.ResettingHandler"])
    token = "a" * 32
    form = make_form(Part("csrfmiddlewaretoken", token.encode()), Part("film", CONTENT, "a.mp4"))
    stream = io.BytesIO(form["body"])
    assert serve_stream(form, stream, HTTP_COOKIE=f"csrftoken={token}") == "200 OK"
    assert stream.tell() < 300_000
    assert count_records() == 1


def test_checked_form_that_breaks_off_claims_nothing(serve: Serve) -> None:
    """
    Half a form that the CSRF check has parsed is no request either.
    """
    serve(tell_form, checked=True)
    token = "a" * 32
    form = make_form(Part("csrfmiddlewaretoken", token.encode()), Part("film", CONTENT, "a.mp4"))
    stream = io.BytesIO(form["body"][:200_000])
    status = serve_stream(form, stream, HTTP_COOKIE=f"csrftoken={token}")
    assert status == "400 Bad Request"
    assert (get_calls("form"), count_records()) == (0, 0)


# What a view may do with a body


def read_all(request: HttpRequest) -> Any:
    return len(request.read())


def read_pieces(request: HttpRequest) -> Any:
    return [len(piece) for piece in iter(lambda: request.read(100_000), b"")]


def read_lines(request: HttpRequest) -> Any:
    return [len(line) for line in request][:50]


def read_body(request: HttpRequest) -> Any:
    return len(request.body)


def read_body_then_form(request: HttpRequest) -> Any:
    return [len(request.body), len(request.POST), len(request.FILES)]


def read_form(request: HttpRequest) -> Any:
    return [dict(request.POST), [len(file.read()) for file in request.FILES.values()]]


def read_form_then_body(request: HttpRequest) -> Any:
    return [read_form(request), len(request.body)]


def read_nothing(request: HttpRequest) -> Any:
    return None


WAYS = [
    read_all,
    read_pieces,
    read_lines,
    read_body,
    read_body_then_form,
    read_form,
    read_form_then_body,
    read_nothing,
]
BODIES = {
    "small form": film(b"abc\n" * 100),
    "large form": film(CONTENT[:400_000]),
    "huge form": film(CONTENT),
    "urlencoded": {"body": b"a=1&a=2&b=%20", "content_type": FORM},
    "small bytes": {"body": b"abc\n" * 100, "content_type": "text/plain"},
    "large bytes": {"body": CONTENT[:400_000], "content_type": "text/plain"},
    "huge bytes": {"body": CONTENT, "content_type": "text/plain"},
}


@pytest.mark.parametrize("read", WAYS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("sent", BODIES.values(), ids=BODIES)
def test_view_reads_a_body_as_without_a_key(
    serve: Serve, read: Callable[[HttpRequest], Any], sent: dict[str, Any]
) -> None:
    """
    In whatever way a view reads a body, it finds what it finds without a key, errors included.
    """

    def view(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"seen": read(request)})

    serve(view)
    plain, keyed = post(sent, {}), post(sent)
    assert (keyed.status_code, keyed.content) == (plain.status_code, plain.content)


@pytest.mark.parametrize(
    "settings",
    [
        {"DATA_UPLOAD_MAX_MEMORY_SIZE": 20},
        {"DATA_UPLOAD_MAX_NUMBER_FIELDS": 1},
        {"DATA_UPLOAD_MAX_NUMBER_FILES": 0},
        {"DATA_UPLOAD_MAX_MEMORY_SIZE": None, "DATA_UPLOAD_MAX_NUMBER_FIELDS": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("sent", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("read", [read_form, read_body], ids=lambda read: read.__name__)
def test_limits_hold_as_without_a_key(
    serve: Serve, read: Callable[[HttpRequest], Any], sent: dict[str, Any], settings: Any
) -> None:
    """
    Django's limits for what a view reads are those without a key, no more and no less.
    """

    def view(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"seen": read(request)})

    serve(view, **settings)
    plain, keyed = post(sent, {}), post(sent)
    assert (keyed.status_code, keyed.content) == (plain.status_code, plain.content)


@pytest.mark.parametrize("sent", ["huge form", "huge bytes"])
def test_large_body_is_not_pulled_into_memory(sent: str) -> None:
    """
    Where a project has lifted Django's limit a large body waits in a file all the same.
    """
    request = RequestFactory().post("/", BODIES[sent]["body"], BODIES[sent]["content_type"])
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=None):
        request_body_digest(request)
    assert not hasattr(request, "_body")
    assert request.read() == BODIES[sent]["body"]
    request.close()


@pytest.mark.parametrize("content_type", ["application/json", "application/a+json", FORM])
def test_body_that_is_only_read_whole_takes_no_detour(content_type: str) -> None:
    """
    JSON and forms that a project allows in memory are read into it at once.
    """
    request = RequestFactory().post("/", CONTENT, content_type)
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=None):
        request_body_digest(request)
    assert hasattr(request, "_body")


class Reset(io.BytesIO):
    """
    A client that goes away after some bytes.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data:
            raise ConnectionResetError(104, "Connection reset by peer")
        return data


def test_client_that_resets_claims_nothing(serve: Serve) -> None:
    """
    A reset connection is the error that Django makes of it, and nothing is claimed.
    """
    serve(tell_form, DEBUG_PROPAGATE_EXCEPTIONS=True)
    form = BODIES["huge form"]
    with pytest.raises(UnreadablePostError):
        serve_stream(form, Reset(form["body"][:1_000_000]))
    assert count_records() == 0


# Temporary files


def test_body_waits_where_uploads_go(tmp_path: Path) -> None:
    """
    The copy of a body goes where the project has its uploads put, without a name.
    """
    sent = BODIES["huge form"]
    request = RequestFactory().post("/", sent["body"], sent["content_type"])
    with override_settings(FILE_UPLOAD_TEMP_DIR=str(tmp_path)):
        request_body_digest(request)
    stream: Any = request._stream  # type: ignore[attr-defined]
    assert Path(f"/proc/self/fd/{stream.fileno()}").readlink().parent.is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []
    request.close()
    assert stream.closed


def test_directory_that_is_missing_is_told(serve: Serve, tmp_path: Path) -> None:
    """
    Where no temporary file can be made the request is refused, and its answer names no path.
    """
    serve(tell_form, FILE_UPLOAD_TEMP_DIR=str(tmp_path / "missing"))
    answer = post(BODIES["huge form"])
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.content.decode()
    assert (get_calls("form"), count_records()) == (0, 0)


# Selectors


def select_nothing(request: HttpRequest) -> Any:
    return request.headers["X-Order"]


def select_body(request: HttpRequest) -> Any:
    return request.body[-100:]


def select_stream(request: HttpRequest) -> Any:
    return request.read(100)


def select_lines(request: HttpRequest) -> Any:
    return next(iter(request))


def select_form(request: HttpRequest) -> Any:
    return {name: values for name, values in request.POST.lists() if name != "title"}


def select_files(request: HttpRequest) -> Any:
    return [file.read() for file in request.FILES.values()]


@pytest.mark.parametrize(
    "select",
    [select_nothing, select_body, select_stream, select_lines, select_form, select_files],
    ids=lambda select: select.__name__,
)
@pytest.mark.parametrize("read", [read_form, read_all, read_body], ids=lambda read: read.__name__)
@pytest.mark.parametrize("sent", ["small form", "large form", "urlencoded", "small bytes"])
def test_view_finds_what_a_selector_has_read(
    serve: Serve, select: Any, read: Callable[[HttpRequest], Any], sent: str
) -> None:
    """
    In whatever way a selector reads the body, the view finds it as if nobody had.
    """

    def view(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"seen": read(request)})

    serve(idempotent(fingerprint=lambda request: repr(select(request)))(view))
    plain = post(BODIES[sent], {}, HTTP_X_ORDER="7")
    first, again = (post(BODIES[sent], HTTP_X_ORDER="7") for _ in range(2))
    assert (first.status_code, first.content) == (plain.status_code, plain.content)
    assert again["X-Cache-Hit"] == "true"


def test_selector_leaves_out_a_volatile_field_of_an_upload(serve: Serve) -> None:
    """
    A field of the form that changes with each retry does not count, its file does.
    """

    def select(request: HttpRequest) -> Any:
        fields = {name: value for name, value in request.POST.items() if name != "sent_at"}
        return [fields, {name: file.size for name, file in request.FILES.items()}]

    def send(sent_at: bytes, content: bytes) -> Any:
        return post(make_form(Part("sent_at", sent_at), Part("film", content, "a.mp4")))

    serve(idempotent(fingerprint=select)(tell_form))
    first = send(b"10:00", b"one")
    assert send(b"10:01", b"one").content == first.content
    assert send(b"10:01", b"three").status_code == 422
    assert get_calls("form") == 1


@pytest.mark.parametrize("selected", [b"7", "7", 7, [7], {"order": 7}, None, ""])
def test_selector_may_return_bytes_text_or_data(serve: Serve, selected: Any) -> None:
    """
    What it returns decides alone, falsy or not; the body does not.
    """
    serve(idempotent(fingerprint=lambda request: selected)(tell_form))
    post(BODIES["small form"])
    assert post(BODIES["small form"] | {"body": film(b"other")["body"]})["X-Cache-Hit"] == "true"


@pytest.mark.parametrize("selected", [object(), {1: 2}, float("nan")], ids=str)
def test_selector_that_returns_anything_else_claims_nothing(serve: Serve, selected: Any) -> None:
    """
    What cannot be compared is an error before the view runs, and so is one of the selector's own.
    """
    serve(idempotent(fingerprint=lambda request: selected)(tell_form))
    assert post(BODIES["small form"]).status_code == 500
    serve(idempotent(fingerprint=lambda request: request.POST["none"])(tell_form))
    assert post(BODIES["small form"]).status_code in (400, 500)
    assert (get_calls("form"), count_records()) == (0, 0)


def test_selector_sees_no_half_body(serve: Serve) -> None:
    """
    A body that ended early is refused before a selector that looks at something else is asked.
    """
    serve(idempotent(fingerprint=select_nothing)(tell_form))
    sent = BODIES["large form"]
    stream = io.BytesIO(sent["body"][:1000])
    assert serve_stream(sent, stream, HTTP_X_ORDER="7") == "400 Bad Request"
    assert (get_calls("form"), count_records()) == (0, 0)


# Under ASGI


def make_asgi_request(sent: dict[str, Any]) -> Any:
    """
    Make a request as Django's ASGI handler does: its body is in a file that goes back.
    """
    request: Any = AsyncRequestFactory().post("/", sent["body"], sent["content_type"])
    request._stream = io.BytesIO(sent["body"])
    return request


def test_asgi_form_that_was_parsed_is_the_form_that_was_sent() -> None:
    """
    What was spooled by Django is digested from there, and stays where its reader has left it.
    """
    with override_settings(FILE_UPLOAD_HANDLERS=[f"{__name__}.SkippingHandler"]):
        digests = []
        for content, is_parsed in ((CONTENT, False), (CONTENT, True), (OTHER, True)):
            request = make_asgi_request(film(content))
            digest_while_read(request)
            assert not isinstance(request._stream, DigestingStream)
            if is_parsed:
                assert dict(request.POST.items()) == {"title": "holiday", "tag": "sea"}
            position = request._stream.tell()
            digests.append(request_body_digest(request))
            assert request._stream.tell() == position
            request.close()
    assert digests[0] == digests[1] != digests[2]


def test_asgi_upload_is_protected(serve: Serve) -> None:
    """
    A large upload is told apart and reaches the view whole under ASGI, too.
    """
    serve(tell_form)

    async def run() -> list[Any]:
        client = AsyncClient()
        forms = (film(CONTENT), film(CONTENT, "another"), film(OTHER))
        return [
            await client.post("/", form["body"], form["content_type"], headers=KEY)
            for form in forms
        ]

    first, again, other = asyncio.run(run())
    assert again["X-Cache-Hit"] == "true"
    assert first.json()["files"] == {"film": ["a.mp4", len(CONTENT)]}
    assert (again.content, other.status_code) == (first.content, 422)


class PeekingMiddleware:
    """
    Looks at the stream between the start of the request and its claim.
    """

    size = -1

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *args: Any) -> None:
        request.read(self.size)


@pytest.mark.parametrize("size", [20, -1])
def test_form_is_not_told_by_its_beginning(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """
    A middleware that takes a part of the stream, or all of it, makes no two uploads one.
    """
    monkeypatch.setattr(PeekingMiddleware, "size", size)
    serve(read_length, MIDDLEWARE=[f"{__name__}.PeekingMiddleware", *MIDDLEWARE])
    assert [post(film(content)).status_code for content in (CONTENT, OTHER)] == [200, 422]


def read_length(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(len(request.read())))


# Who needs no digest


@pytest.mark.parametrize("case", ["exempt", "anonymous", "no key"])
def test_form_that_needs_no_digest_is_left_alone(serve: Serve, case: str) -> None:
    """
    What is not protected reads the server's stream and nothing of ours.
    """
    streams: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        streams.append(request._stream)  # type: ignore[attr-defined]
        return tell_form(request)

    serve(idempotency_exempt(view) if case == "exempt" else view)
    with override_tasks_settings(anonymous="ignore" if case == "anonymous" else "share"):
        assert post(film(CONTENT), {} if case == "no key" else KEY).status_code == 200
    assert not isinstance(streams[0], DigestingStream)


def test_body_that_a_middleware_has_read_is_watched_no_more() -> None:
    """
    What somebody has read before the middleware is not digested from the middle.
    """
    request: Any = RequestFactory().post("/", film(b"x")["body"], film(b"x")["content_type"])
    request.read(5)
    digest_while_read(request)
    assert not isinstance(request._stream, DigestingStream)


def test_selector_sees_what_a_middleware_has_left() -> None:
    """
    Behind a middleware that consumed the stream, or put its own bytes there, it still picks.
    """
    digests = set()
    for is_consumed in (True, False):
        request: Any = RequestFactory(headers={"X-Order": "7"}).post("/", b"abc", "text/plain")
        if is_consumed:
            request.read()
        else:
            request._body = b"own"
            request._read_started = True
        digests.add(selected_body_digest(request, select_nothing))
    assert len(digests) == 1


def test_length_that_is_no_number_is_none() -> None:
    """
    Where Django reads no length it reads no body, and so does the digest.
    """
    sent = film(b"abc")
    kind = sent["content_type"]
    request = RequestFactory().post("/", sent["body"], kind, CONTENT_LENGTH="many")
    assert request_body_digest(request) == body_digest(kind, b"")
    request.close()


@pytest.mark.parametrize("case", ["checked", "watched", "untouched"])
def test_body_without_a_digest_is_whole(case: str) -> None:
    """
    A form is known to be whole without a digest, whether somebody has read it or nobody.
    """
    sent = film(CONTENT)
    request: Any = RequestFactory().post("/", sent["body"], sent["content_type"])
    if case != "untouched":
        digest_while_read(request)
    if case == "checked":
        assert len(request.POST) == 2
    ensure_whole_body(request)
    assert request.FILES["film"].read() == CONTENT
    request.close()
