from __future__ import annotations

import asyncio
import gc
import gzip
import io
import json
import os
import threading
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import pytest
from django import urls
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.files.uploadedfile import SimpleUploadedFile, TemporaryUploadedFile
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.utils.functional import SimpleLazyObject
from django.views.decorators.csrf import csrf_exempt
from rest_framework.response import Response
from rest_framework.views import APIView

from dotmac_tasks.errors import StorageTimeoutError, StorageUnavailableError
from dotmac_tasks.models import OperationStatus
from dotmac_tasks_django import idempotent
from dotmac_tasks_django.conf import get_manager
from dotmac_tasks_django.middleware import BackgroundOperationsMiddleware
from dotmac_tasks_django.requests import find_tenant_id
from dotmac_tasks_django.testing import override_tasks_settings
from support.concurrency import run_together
from support.django_project.calls import count_call, get_calls
from support.django_project.gate import Gate, gate, note
from support.django_project.records import get_statuses
from support.django_project.settings import MIDDLEWARE

KEY = {"Idempotency-Key": "key-1"}
JSON = "application/json"


class ReadPostMiddleware:
    """
    Parses every form before anybody else does.
    """

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        request.POST.get("anything")
        return self.get_response(request)


class ReadStreamMiddleware(ReadPostMiddleware):
    """
    Consumes the body and keeps nothing.
    """

    def __call__(self, request: HttpRequest) -> Any:
        request.read()
        return self.get_response(request)


class CorsMiddleware(ReadPostMiddleware):
    """
    Lets in whatever origin asks, as a middleware for that does.
    """

    def __call__(self, request: HttpRequest) -> Any:
        response = self.get_response(request)
        response["Access-Control-Allow-Origin"] = request.headers.get("Origin", "")
        return response


class ContextMiddleware(ReadPostMiddleware):
    """
    Looks at what a view has left in a context variable.
    """

    def __call__(self, request: HttpRequest) -> Any:
        response = self.get_response(request)
        response["X-Seen"] = note.get()
        return response


def serve_stream(response: StreamingHttpResponse) -> tuple[HttpRequest, Any]:
    """
    Return the request, which nobody closes, and what comes out of the middleware.
    """

    def view(request: HttpRequest) -> StreamingHttpResponse:
        middleware.process_view(request, view, (), {})
        return response

    middleware = BackgroundOperationsMiddleware(view)
    request = RequestFactory(headers=KEY).post("/", {}, JSON)
    return request, middleware(request)


def answer_something_else(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        get_response(request)
        return HttpResponse("something else")

    return middleware


def with_middleware(*, first: str) -> override_settings:
    return override_settings(MIDDLEWARE=[f"{__name__}.{first}", *MIDDLEWARE])


class TestAnswers:
    def test_retry_gets_the_stored_answer(self, client: Client) -> None:
        """A retry gets status, body and safe headers again, and the marks of a replay."""
        first = client.post("/pay/", {"amount": 1}, JSON, headers=KEY)
        again = client.post("/pay/", {"amount": 1}, JSON, headers=KEY)
        assert (first.status_code, first.content) == (201, b'{"number": 1}')
        assert (again.status_code, again.content) == (201, b'{"number": 1}')
        assert get_calls("pay") == 1
        assert first["X-Idempotency-Key"] == again["X-Idempotency-Key"] == "key-1"
        assert "X-Cache-Hit" not in first
        assert (again["X-Cache-Hit"], again["Idempotent-Replayed"]) == ("true", "true")
        assert (again["Location"], again["ETag"]) == ("/payments/1/", '"1"')
        assert again["Content-Type"] == JSON

    def test_retry_gets_no_cookie_and_no_own_header(self, client: Client) -> None:
        """Cookies and headers outside the allow-list belong to the first exchange alone."""
        first = client.post("/pay/", headers=KEY)
        again = client.post("/pay/", headers=KEY)
        assert "flavour" in first.cookies
        assert first["X-Own"]
        assert "flavour" not in again.cookies
        assert "X-Own" not in again

    def test_other_body_is_refused(self, client: Client) -> None:
        """The same key with another body is answered 422 and runs nothing."""
        client.post("/pay/", {"amount": 1}, JSON, headers=KEY)
        other = client.post("/pay/", {"amount": 2}, JSON, headers=KEY)
        assert other.status_code == 422
        assert other["Content-Type"] == "application/problem+json"
        assert get_calls("pay") == 1

    @pytest.mark.parametrize("path", ["/pay/?dry_run=1", "/pay/other/"])
    def test_other_query_or_path_is_refused(self, client: Client, path: str) -> None:
        """Query and path are part of what a key stands for."""
        client.post("/pay/", headers=KEY)
        with override_tasks_settings():
            assert client.post(path, headers=KEY).status_code == 201
        tenants = {"tenant": lambda request: "one"}
        with override_tasks_settings(**tenants):
            assert client.post("/pay/", headers=KEY).status_code == 201
            assert client.post(path, headers=KEY).status_code == 422

    def test_equal_json_is_the_same_request(self, client: Client) -> None:
        """The order of members in JSON does not count."""
        client.post("/pay/", '{"a": 1, "b": 2}', JSON, headers=KEY)
        assert client.post("/pay/", '{"b":2,"a":1}', JSON, headers=KEY).status_code == 201

    def test_without_a_key_nothing_happens(self, client: Client) -> None:
        """Without a key every request runs and nothing is stored or added."""
        first, second = client.post("/pay/"), client.post("/pay/")
        assert [first.json()["number"], second.json()["number"]] == [1, 2]
        assert "X-Idempotency-Key" not in first
        assert get_statuses() == []

    def test_without_a_key_the_body_is_not_read(self) -> None:
        """Without a key the body reaches the view unread, and so it does with another method."""
        seen: list[bool] = []

        def view(request: HttpRequest) -> HttpResponse:
            seen.append(request._read_started)  # type: ignore[attr-defined]
            return HttpResponse()

        middleware = BackgroundOperationsMiddleware(view)
        for request in (RequestFactory().post("/pay/"), RequestFactory().put("/", b"x")):
            assert middleware.process_view(request, view, (), {}) is None
            middleware(request)
        assert seen == [False, False]

    @pytest.mark.parametrize("method", ["get", "put", "delete"])
    def test_other_methods_are_untouched(self, client: Client, method: str) -> None:
        """A method that is not covered runs each time, key or not."""
        for _ in range(2):
            getattr(client, method)("/pay/", headers=KEY)
        assert get_calls("pay") == 2
        assert get_statuses() == []

    def test_unknown_path_claims_nothing(self, client: Client) -> None:
        """The claim comes behind routing: where there is no view, nothing is recorded."""
        for _ in range(2):
            missing = client.post("/nowhere/", headers=KEY)
            assert missing.status_code == 404
            assert "X-Cache-Hit" not in missing
        assert get_statuses() == []

    def test_exempt_paths_are_untouched(self, client: Client) -> None:
        """A request to an exempt path runs each time."""
        for _ in range(2):
            client.post("/health/pay/", headers=KEY)
        assert get_calls("pay") == 2

    @pytest.mark.parametrize("key", ["", "a,b", '"open', "x" * 256, "caf\u00e9"])
    def test_malformed_key_is_refused(self, client: Client, key: str) -> None:
        """A key that breaks the rules is answered 400 before the view runs."""
        response = client.post("/pay/", headers={"Idempotency-Key": key})
        assert response.status_code == 400
        assert response.json()["type"].endswith("invalid-key")
        assert get_calls("pay") == 0

    def test_quoted_key_is_the_bare_one(self, client: Client) -> None:
        """A structured-field string and its text are one key."""
        client.post("/pay/", headers={"Idempotency-Key": '"abc"'})
        again = client.post("/pay/", headers={"Idempotency-Key": "abc"})
        assert again["X-Cache-Hit"] == "true"

    def test_required_key(self, client: Client) -> None:
        """With REQUIRE_KEY a covered request without a key is answered 400."""
        with override_tasks_settings(require_key=True):
            assert client.post("/pay/").status_code == 400
            assert client.post("/pay/", headers=KEY).status_code == 201
            assert client.get("/pay/").status_code == 201

    @pytest.mark.parametrize("status", [200, 302, 400, 404, 422])
    def test_final_statuses_are_stored(self, client: Client, status: int) -> None:
        """Success, redirection and deterministic refusals are replayed."""
        bodies = [client.post(f"/answer/{status}/", headers=KEY).content for _ in range(2)]
        assert bodies == [b"run 1", b"run 1"]

    @pytest.mark.parametrize("status", [401, 403, 409, 425, 429, 500, 503])
    def test_passing_statuses_release_the_key(self, client: Client, status: int) -> None:
        """What may do better later is not stored; the next retry runs."""
        bodies = [client.post(f"/answer/{status}/", headers=KEY).content for _ in range(2)]
        assert bodies == [b"run 1", b"run 2"]
        assert get_statuses() == []

    @pytest.mark.parametrize(
        ("error", "status", "runs"), [("missing", 404, 1), ("denied", 403, 2), ("bug", 500, 2)]
    )
    def test_exceptions_count_as_their_status(
        self, client: Client, error: str, status: int, runs: int
    ) -> None:
        """An exception that Django turns into a 4xx counts as that, a bug releases the key."""
        for _ in range(2):
            assert client.post(f"/broken/{error}/", headers=KEY).status_code == status
        assert get_calls("broken") == runs

    @override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True)
    def test_propagated_exceptions_release_the_key(self) -> None:
        """Where Django lets an exception through, the key is given back too."""
        client = Client()
        for _ in range(2):
            with pytest.raises(ValueError, match="a bug"):
                client.post("/broken/bug/", headers=KEY)
        assert get_statuses() == []

    def test_exit_leaves_the_outcome_unknown(self, client: Client) -> None:
        """A worker that is told to stop in the middle records nothing and renews nothing."""
        with pytest.raises(SystemExit):
            client.post("/broken/exit/", headers=KEY)
        assert get_statuses() == [OperationStatus.IN_PROGRESS]
        assert get_manager().heartbeat.held_count == 0

    def test_exit_without_a_key_passes(self, client: Client) -> None:
        """The same without a key leaves no trace."""
        with pytest.raises(SystemExit):
            client.post("/broken/exit/")
        assert get_statuses() == []

    def test_bytes_come_back_as_they_were(self, client: Client) -> None:
        """A body that is no text is replayed byte for byte."""
        first, again = (client.post("/binary/", headers=KEY) for _ in range(2))
        assert first.content == again.content == bytes(range(256))
        assert again["Content-Type"] == "image/png"

    def test_empty_answer_stays_empty(self, client: Client) -> None:
        """A 204 is replayed without a body and without an invented content type."""
        _, again = (client.post("/empty/", headers=KEY) for _ in range(2))
        assert (again.status_code, again.content) == (204, b"")
        assert "Content-Type" not in again
        assert get_calls("empty") == 1

    def test_template_response_is_captured_rendered(self, client: Client) -> None:
        """A response that renders behind the view is stored as it went out."""
        first, again = (client.post("/receipt/", headers=KEY) for _ in range(2))
        assert first.content == again.content == b"Receipt 1"

    def test_broken_template_releases_the_key(self, client: Client) -> None:
        """A template that breaks is a 500."""
        for _ in range(2):
            assert client.post("/broken-receipt/", headers=KEY).status_code == 500
        assert get_calls("broken_receipt") == 2

    def test_large_answer_is_not_kept(self, client: Client) -> None:
        """What exceeds MAX_RESPONSE_BYTES goes out whole and is never run again."""
        with override_tasks_settings(max_response_bytes=10):
            assert len(client.post("/binary/", headers=KEY).content) == 256
            again = client.post("/binary/", headers=KEY)
        assert again.status_code == 409
        assert get_calls("binary") == 1

    def test_answer_is_stored_uncompressed(self, client: Client) -> None:
        """Inside GZipMiddleware the first answer may be packed and the replay plain."""
        first = client.post("/long/", headers={**KEY, "Accept-Encoding": "gzip"})
        again = client.post("/long/", headers=KEY)
        assert gzip.decompress(first.content) == again.content == b"1" * 5000
        assert "Content-Encoding" not in again

    def test_replay_passes_through_what_stands_outside(self, client: Client) -> None:
        """CORS, language and conditional headers of a replay are those of the retry's exchange."""
        outside = [
            f"{__name__}.CorsMiddleware",
            "django.middleware.locale.LocaleMiddleware",
            "django.middleware.http.ConditionalGetMiddleware",
        ]
        with override_settings(MIDDLEWARE=[*outside, *MIDDLEWARE]):
            first, again = (
                client.post(
                    "/pay/",
                    {},
                    JSON,
                    headers={
                        **KEY,
                        "Origin": f"https://{origin}.example",
                        "Accept-Language": language,
                        "If-None-Match": '"1"',
                    },
                )
                for origin, language in (("one", "de"), ("two", "fr"))
            )
        assert again["X-Cache-Hit"] == "true"
        assert (again.status_code, again.content) == (201, first.content)
        assert again["Access-Control-Allow-Origin"] == "https://two.example"
        assert (first["Content-Language"], again["Content-Language"]) == ("de", "fr")
        assert again["ETag"] == first["ETag"]

    def test_repeated_headers_of_a_record_are_joined(self, client: Client) -> None:
        """Two values of one header come back as a list, which means the same."""
        from dotmac_tasks.http import Answer
        from dotmac_tasks_django.protection import _to_response

        response = _to_response(Answer(200, [("Link", "<a>"), ("link", "<b>")], b""))
        assert response["Link"] == "<a>, <b>"

    def test_running_duplicate_is_told_so(self) -> None:
        """While the first runs, a duplicate gets 202 and when to come back."""
        entered, leave = threading.Event(), threading.Event()

        def get_response(request: HttpRequest) -> HttpResponse:
            middleware.process_view(request, view, (), {})
            entered.set()
            assert leave.wait(30)
            return HttpResponse("done")

        def view(request: HttpRequest) -> HttpResponse:
            raise AssertionError

        middleware = BackgroundOperationsMiddleware(get_response)

        def make_request() -> HttpRequest:
            return RequestFactory(headers=KEY).post("/x/", {}, JSON)

        thread = threading.Thread(target=lambda: middleware(make_request()))
        thread.start()
        assert entered.wait(30)
        duplicate = middleware.process_view(make_request(), view, (), {})
        leave.set()
        thread.join(30)
        assert duplicate is not None
        assert duplicate.status_code == 202
        assert int(duplicate["Retry-After"]) >= 1
        replay = middleware.process_view(make_request(), view, (), {})
        assert isinstance(replay, HttpResponse)
        assert replay.content == b"done"

    def test_of_many_at_once_one_runs(self) -> None:
        """Of eight equal requests at the same time one runs the view."""

        def send() -> int:
            return Client().post("/pay/", {}, JSON, headers=KEY).status_code

        assert set(run_together(8, send)) <= {201, 202}
        assert get_calls("pay") == 1

    def test_listed_twice_claims_once(self, client: Client) -> None:
        """A middleware that is listed twice does not stand in its own way."""
        with override_settings(MIDDLEWARE=[*MIDDLEWARE, MIDDLEWARE[-1]]):
            first, again = (client.post("/pay/", headers=KEY) for _ in range(2))
        assert first.json() == again.json() == {"number": 1}
        assert "X-Cache-Hit" not in first

    def test_failure_after_the_view_stops_the_renewal(self) -> None:
        """If the response cannot be read, the claim is left to its lease and the error passes."""

        class Unreadable(HttpResponse):
            @property
            def content(self) -> bytes:
                raise ValueError("unreadable")

            @content.setter
            def content(self, value: bytes) -> None:
                pass

        def view(request: HttpRequest) -> HttpResponse:
            middleware.process_view(request, view, (), {})
            return Unreadable()

        middleware = BackgroundOperationsMiddleware(view)
        request = RequestFactory(headers=KEY).post("/")
        with pytest.raises(ValueError, match="unreadable"):
            middleware(request)
        request.close()
        assert get_manager().heartbeat.held_count == 0


class TestOutage:
    @pytest.fixture
    def _down(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: Any) -> Any:
            raise StorageUnavailableError("memory", "switched off")

        monkeypatch.setattr(get_manager().storage, "claim_operation", fail)

    @pytest.mark.usefixtures("_down")
    def test_request_survives_an_outage(self, client: Client) -> None:
        """While the storage is down the view runs, and its answer says that it is unprotected."""
        response = client.post("/told/", headers=KEY)
        assert response["X-Idempotency-Status"] == "unprotected"
        assert response.json()["recognised"] is False
        assert response.json()["key"] == "key-1"

    @pytest.mark.usefixtures("_down")
    def test_downstream_key_survives_an_outage(self, client: Client) -> None:
        """The key for other systems is the same with and without the storage."""
        during = client.post("/told/", headers=KEY).json()["downstream"]
        with override_tasks_settings():
            after = client.post("/told/", headers=KEY).json()["downstream"]
        assert during == after

    @pytest.mark.parametrize("down", [True, False])
    def test_downstream_key_survives_a_change_of_the_secret(
        self, client: Client, down: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A retry whose record a new `KEY_SECRET` forgets gets the same key for other systems."""

        def fail(*args: Any) -> Any:
            raise StorageUnavailableError("memory", "switched off")

        answers = []
        for secret in ("", "one", "two"):
            with override_tasks_settings(key_secret=secret):
                if down:
                    monkeypatch.setattr(get_manager().storage, "claim_operation", fail)
                answers.append(client.post("/told/", headers=KEY).json())
        assert [answer["recognised"] for answer in answers] == [not down] * 3
        assert answers[0] == answers[1] == answers[2]

    def test_strict_project_refuses(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        """With `reject` a request with a key gets 503 and does not run, one without runs."""
        with override_tasks_settings(on_storage_error="reject"):

            def fail(*args: Any) -> Any:
                raise StorageTimeoutError("memory", "no answer")

            monkeypatch.setattr(get_manager().storage, "claim_operation", fail)
            refused = client.post("/pay/", headers=KEY)
            assert refused.status_code == 503
            assert refused["Retry-After"]
            assert get_calls("pay") == 0
            assert client.post("/pay/").status_code == 201


class TestStreams:
    def test_stream_goes_out_live_and_is_not_kept(self, client: Client) -> None:
        """A stream reaches the client untouched; its retry is refused, not run."""
        first = client.post("/stream/", headers=KEY)
        assert get_statuses() == [OperationStatus.IN_PROGRESS]
        assert first.getvalue() == b"one,two"
        assert first["X-Idempotency-Key"] == "key-1"
        again = client.post("/stream/", headers=KEY)
        assert again.status_code == 409
        assert again.json()["type"].endswith("not-replayable")
        assert get_calls("stream") == 1

    def test_broken_stream_leaves_the_outcome_unknown(self, client: Client) -> None:
        """A stream that breaks in the middle records nothing."""
        response = client.post("/stream/?break", headers=KEY)
        with pytest.raises(ValueError, match="broken stream"):
            response.getvalue()
        assert get_statuses() == [OperationStatus.IN_PROGRESS]
        assert get_manager().heartbeat.held_count == 0

    def test_client_that_hangs_up_ends_the_stream(self) -> None:
        """A stream that is closed early counts as done."""
        environ = RequestFactory(headers=KEY).post("/stream/").environ
        body: Any = WSGIHandler()(environ, lambda *args: lambda data: None)
        assert next(iter(body)) == b"one,"
        body.close()
        assert get_statuses() == [OperationStatus.COMPLETED]

    @with_middleware(first="answer_something_else")
    def test_stream_that_is_dropped_ends_the_run(self, client: Client) -> None:
        """A stream that another middleware drops unsent leaves no claim, and is not run again."""
        assert client.post("/stream/", headers=KEY).content == b"something else"
        assert get_statuses() == [OperationStatus.COMPLETED]
        assert get_manager().heartbeat.held_count == 0

    def test_stream_is_not_ended_by_the_garbage_collector(self) -> None:
        """A stream that is dropped asks nothing of a storage whose lock may be held right then."""
        request, response = serve_stream(StreamingHttpResponse([b"one", b"two"]))
        assert next(iter(response)) == b"one"
        del response
        gc.collect()
        assert get_statuses() == [OperationStatus.IN_PROGRESS]
        request.close()
        assert get_statuses() == [OperationStatus.COMPLETED]

    def test_file_stays_a_file(self, client: Client) -> None:
        """A file keeps its headers, and is not run twice."""
        first = client.post("/file/", headers=KEY)
        assert first["Content-Length"] == "7"
        assert first.getvalue() == b"content"
        assert client.post("/file/", headers=KEY).status_code == 409

    def test_file_sent_by_the_server_ends_the_run(self) -> None:
        """Where the server sends the file without iterating, closing it ends the run."""
        environ = RequestFactory(headers=KEY).post("/file/").environ
        environ["wsgi.file_wrapper"] = lambda file, size=0: file
        body: Any = WSGIHandler()(environ, lambda *args: lambda data: None)
        assert body.read() == b"content"
        body.close()
        assert get_statuses() == [OperationStatus.COMPLETED]

    @pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume:Warning")
    def test_async_stream_under_wsgi(self, client: Client) -> None:
        """An asynchronous body works under WSGI as Django lets it."""
        assert b"".join(client.post("/async-stream/", headers=KEY)) == b"one,two"
        assert client.post("/async-stream/", headers=KEY).status_code == 409


class TestBodies:
    def test_multipart_larger_than_memory(self, client: Client) -> None:
        """An upload beyond every memory limit reaches the view whole, and is told apart."""
        content = os.urandom(3_000_000)

        def send(data: bytes) -> Any:
            return client.post("/upload/", {"file": SimpleUploadedFile("a", data)}, headers=KEY)

        first, again = send(content), send(content)
        assert first.json() == again.json() == {"number": 1, "seen": {"file": ["a", 3_000_000]}}
        assert send(content[:-1] + b"!").status_code == 422

    @pytest.mark.parametrize("way", ["form", "read", "lines"])
    def test_spooled_body_can_be_read_in_any_way(self, client: Client, way: str) -> None:
        """A view reads a spooled body as if nobody had read it before."""
        with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=100):
            plain = client.post(f"/upload/?way={way}", "x" * 5000, "text/plain").json()
            keyed = client.post(f"/upload/?way={way}", "x" * 5000, "text/plain", headers=KEY).json()
        assert plain["seen"] == keyed["seen"] == ({} if way == "form" else 5000)

    def test_too_big_a_body_is_refused_as_without_a_key(self, client: Client) -> None:
        """A view that reads a body beyond the limit gets Django's refusal, key or not."""
        with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=100):
            statuses = [
                client.post("/upload/?way=body", "x" * 101, "text/plain", headers=headers)
                for headers in ({}, KEY)
            ]
        assert [response.status_code for response in statuses] == [400, 400]

    def test_large_bodies_are_told_apart(self, client: Client) -> None:
        """Two bodies beyond the memory limit are not the same request."""
        with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=100):
            client.post("/upload/?way=read", "x" * 500, "text/plain", headers=KEY)
            other = client.post("/upload/?way=read", "y" * 500, "text/plain", headers=KEY)
        assert other.status_code == 422

    def test_small_body_can_be_read_in_any_way(self, client: Client) -> None:
        """A body that was digested in memory can be read as a stream."""
        for way in ("body", "read", "lines"):
            headers = {"Idempotency-Key": way}
            seen = client.post(f"/upload/?way={way}", "x" * 50, "text/plain", headers=headers)
            assert seen.json()["seen"] == 50

    def test_no_limit(self, client: Client) -> None:
        """Without a limit every body but a multipart form is digested in memory."""
        with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=None):
            response = client.post("/upload/?way=body", "x" * 50, "text/plain", headers=KEY)
        assert response.json()["seen"] == 50

    def test_new_boundary_is_the_same_form(self, client: Client) -> None:
        """A client that makes a new boundary for the retry sends the same form."""

        def send(boundary: str, value: str) -> Any:
            part = f'--{boundary}\r\nContent-Disposition: form-data; name="a"\r\n\r\n{value}\r\n'
            body = part + f"--{boundary}--\r\n"
            media = f"multipart/form-data; boundary={boundary}"
            return client.post("/upload/", body.encode(), media, headers=KEY)

        assert send("one", "1").json()["number"] == 1
        assert send("two", "1").json()["number"] == 1
        assert send("two", "2").status_code == 422

    @pytest.mark.parametrize("limit", [1000, 1])
    def test_body_that_ends_early_is_refused(self, limit: int) -> None:
        """Half a body claims nothing, in memory or spooled."""
        environ = RequestFactory(headers=KEY).post("/pay/", b"half", "text/plain").environ
        environ |= {"CONTENT_LENGTH": "8", "wsgi.input": io.BytesIO(b"half")}
        statuses: list[str] = []
        with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=limit):
            body: Any = WSGIHandler()(environ, lambda status, *rest: statuses.append(status))
        body.close()
        assert statuses == ["400 Bad Request"]
        assert get_calls("pay") == 0
        assert get_statuses() == []

    def test_body_that_a_middleware_has_changed(self) -> None:
        """What an earlier middleware made of the body counts, whatever length was declared."""
        middleware = BackgroundOperationsMiddleware(lambda request: HttpResponse())
        outcomes = []
        for body in (b"short", b"short", b"other"):
            request = RequestFactory(headers=KEY).post("/", b"the body as it was sent", JSON)
            request._body = body
            request._read_started = True  # type: ignore[attr-defined]
            outcomes.append(middleware.process_view(request, lambda request: None, (), {}))
        assert outcomes[0] is None
        assert [outcome and outcome.status_code for outcome in outcomes[1:]] == [202, 422]

    def test_body_without_a_length(self) -> None:
        """A request without a declared length has no body under WSGI."""
        environ = RequestFactory(headers=KEY).post("/pay/").environ
        environ.pop("CONTENT_LENGTH", None)
        for _ in range(2):
            body: Any = WSGIHandler()(dict(environ), lambda *args: None)
            assert json.loads(b"".join(body)) == {"number": 1}
            body.close()

    def test_spool_is_closed_with_the_request(self) -> None:
        """The temporary file lives as long as the request."""
        request = RequestFactory(headers=KEY).post(
            "/", {"file": SimpleUploadedFile("a", b"x" * 1_000_000)}
        )
        BackgroundOperationsMiddleware(lambda request: HttpResponse()).process_view(
            request, lambda request: HttpResponse(), (), {}
        )
        stream = request._stream  # type: ignore[attr-defined]
        assert not stream.closed
        request.close()
        assert stream.closed


class TestForms:
    @pytest.fixture
    def csrf_client(self) -> Client:
        return Client(enforce_csrf_checks=True, raise_request_exception=False)

    def post(self, client: Client, **data: Any) -> Any:
        token = client.get("/page/").content.decode()
        return client.post("/form/", {"csrfmiddlewaretoken": token, **data}, headers=KEY)

    def post_urlencoded(self, client: Client, **data: str) -> Any:
        from urllib.parse import urlencode

        token = client.get("/page/").content.decode()
        body = urlencode({"csrfmiddlewaretoken": token, **data})
        return client.post("/form/", body, "application/x-www-form-urlencoded", headers=KEY)

    def test_retry_with_a_new_token_is_the_same_form(self, csrf_client: Client) -> None:
        """The token, which is masked anew for each page, is no part of the request."""
        tokens = {csrf_client.get("/page/").content for _ in range(2)}
        assert len(tokens) == 2
        for send in (self.post, self.post_urlencoded):
            with override_tasks_settings():
                first, again = (send(csrf_client, amount="1") for _ in range(2))
                assert first.json()["posted"] == {"amount": "1"}
                assert again["X-Cache-Hit"] == "true"
                assert send(csrf_client, amount="2").status_code == 422

    def test_rejected_form_claims_nothing(self, csrf_client: Client) -> None:
        """A form that fails the CSRF check is no attempt at the work."""
        assert csrf_client.post("/form/", {"a": "1"}, headers=KEY).status_code == 403
        assert get_statuses() == []
        assert self.post(csrf_client, a="1").json()["number"] == 1

    def test_rejected_form_gets_no_stored_answer(self, csrf_client: Client) -> None:
        """Nobody is shown a stored answer without passing the CSRF check."""
        assert self.post(csrf_client, a="1").status_code == 200
        assert csrf_client.post("/form/", {"a": "1"}, headers=KEY).status_code == 403

    def test_uploads_of_a_parsed_form_are_told_apart(self, csrf_client: Client) -> None:
        """Files that the CSRF check has parsed count byte by byte, and reach the view whole."""
        small, large = b"a" * 20, b"b" * 2_600_000

        def send(first: bytes, second: bytes) -> Any:
            return self.post(
                csrf_client,
                small=SimpleUploadedFile("s.txt", first, "text/plain"),
                large=SimpleUploadedFile("l.txt", second, "text/plain"),
            )

        first = send(small, large)
        assert first.json()["sizes"] == {"small": 20, "large": 2_600_000}
        assert first.json()["files"] == {"small": "a" * 20, "large": "b" * 20}
        assert send(small, large)["X-Cache-Hit"] == "true"
        assert send(small, large[:-1] + b"c").status_code == 422
        assert send(b"c" * 20, large).status_code == 422

    def test_empty_form_is_a_form(self, csrf_client: Client) -> None:
        """A form without fields, parsed by the CSRF check, is protected like any other."""
        csrf_client.get("/page/")
        token = csrf_client.cookies["csrftoken"].value
        first, again = (
            csrf_client.post("/form/", headers={**KEY, "X-CSRFToken": token}) for _ in range(2)
        )
        assert first.json()["posted"] == {}
        assert again["X-Cache-Hit"] == "true"

    def test_parsed_and_unread_form_are_one_request(self, client: Client) -> None:
        """A middleware that starts to parse forms does not turn retries into other requests."""
        data = {"amount": "1", "file": SimpleUploadedFile("a.txt", b"data", "text/plain")}
        client.post("/upload/", data, headers=KEY)
        data["file"] = SimpleUploadedFile("a.txt", b"data", "text/plain")
        with with_middleware(first="ReadPostMiddleware"):
            assert client.post("/upload/", data, headers=KEY)["X-Cache-Hit"] == "true"

    def test_middleware_that_ate_the_body_is_named(self) -> None:
        """A body that is gone is a loud error, never an empty fingerprint."""
        with (
            with_middleware(first="ReadStreamMiddleware"),
            pytest.raises(ImproperlyConfigured, match="has read the request's stream"),
        ):
            Client().post("/pay/", {"a": "1"}, headers=KEY)
        with with_middleware(first="ReadStreamMiddleware"):
            assert Client().post("/pay/", {"a": "1"}).status_code == 201


@pytest.mark.django_db
class TestScope:
    @pytest.fixture
    def clients(self) -> list[Client]:
        found = []
        for name in ("alice", "bob"):
            client = Client()
            client.force_login(User.objects.create_user(name))
            found.append(client)
        return found

    def test_users_do_not_share_keys(self, clients: list[Client]) -> None:
        """Two users with one key get two runs and two answers; each gets its own again."""
        numbers = [client.post("/pay/", headers=KEY).json()["number"] for client in clients * 2]
        assert numbers == [1, 2, 1, 2]

    def test_user_keeps_the_key_over_logins(self, clients: list[Client]) -> None:
        """A new session is the same principal."""
        client = clients[0]
        client.post("/pay/", headers=KEY)
        other = Client()
        other.force_login(User.objects.get(username="alice"))
        assert other.post("/pay/", headers=KEY)["X-Cache-Hit"] == "true"

    def test_user_is_not_the_anonymous_caller(self, clients: list[Client]) -> None:
        """Who logs out does not see what was done as a user."""
        clients[0].post("/pay/", headers=KEY)
        assert "X-Cache-Hit" not in Client().post("/pay/", headers=KEY)

    def test_bearers_do_not_share_keys(self, client: Client) -> None:
        """Credentials that nobody resolved separate their bearers."""
        numbers = [
            client.post("/pay/", headers={**KEY, "Authorization": f"Bearer {token}"}).json()
            for token in ("a", "b", "a")
        ]
        assert [answer["number"] for answer in numbers] == [1, 2, 1]

    def test_rotated_credentials_of_a_user_do_not_count(self, clients: list[Client]) -> None:
        """An authenticated user is the principal, whatever else was sent."""
        client = clients[0]
        for token in ("a", "b"):
            client.post("/pay/", headers={**KEY, "Authorization": f"Bearer {token}"})
        assert get_calls("pay") == 1

    def test_principal_setting(self, client: Client) -> None:
        """PRINCIPAL names who is asking; None stands for nobody."""

        def principal(request: HttpRequest) -> str | None:
            return request.headers.get("X-Device")

        with override_tasks_settings(principal=principal):
            numbers = [
                client.post("/pay/", headers={**KEY, "X-Device": name}).json()["number"]
                for name in ("a", "b", "a")
            ]
            assert client.post("/pay/", headers=KEY).json()["number"] == 3
        assert numbers == [1, 2, 1]

    def test_tenant_setting(self, client: Client) -> None:
        """TENANT separates keys; None is the default tenant."""

        def tenant(request: HttpRequest) -> str | None:
            return request.GET.get("tenant")

        with override_tasks_settings(tenant=tenant, principal=lambda request: "same"):
            numbers = [
                client.post("/pay/" + query, headers=KEY).json()["number"]
                for query in ("?tenant=a", "?tenant=b", "?tenant=a", "")
            ]
        assert numbers == [1, 2, 1, 3]

    @pytest.mark.parametrize("name", ["tenant", "principal"])
    def test_what_resolvers_return_is_an_id(self, client: Client, name: str) -> None:
        """0 and objects with a primary key are ids of their own; other objects are refused."""
        found = iter([None, 0, User(pk=5), 5, object()])
        with override_tasks_settings(**{name: lambda request: next(found)}):
            numbers = [client.post("/pay/", headers=KEY).json()["number"] for _ in range(4)]
            assert numbers == [1, 2, 3, 3]
            with pytest.raises(ImproperlyConfigured, match=name.upper()):
                Client().post("/pay/", headers=KEY)

    def test_anonymous_user_is_no_principal(self, client: Client) -> None:
        """A PRINCIPAL that returns an anonymous user does not merge the bearers."""
        with override_tasks_settings(principal=lambda request: request.user):
            for token in ("a", "b"):
                client.post("/pay/", headers={**KEY, "Authorization": f"Bearer {token}"})
        assert get_calls("pay") == 2

    def test_tenant_in_the_url(self, client: Client) -> None:
        """A `tenant_id` in the URL separates keys."""
        for path in ("/pay/a/", "/pay/b/"):
            assert client.post(path, headers=KEY).status_code == 201
        assert get_calls("pay") == 2

    def test_tenant_on_the_request(self) -> None:
        """What the project put on the request is used: an id, an object's key, else the URL's."""
        request = RequestFactory().post("/")
        assert find_tenant_id(request, {}) is None
        assert find_tenant_id(request, {"tenant_id": 7}) == "7"
        request.tenant_id = "acme"  # type: ignore[attr-defined]
        assert find_tenant_id(request, {"tenant_id": 7}) == "acme"
        request.tenant = SimpleLazyObject(lambda: User(pk=5))  # type: ignore[attr-defined]
        assert find_tenant_id(request, {}) == "5"
        for stranger in (object(), User()):
            request.tenant = stranger  # type: ignore[attr-defined]
            with pytest.raises(ImproperlyConfigured, match="TENANT"):
                find_tenant_id(request, {})


@pytest.mark.django_db
class TestCookies:
    def test_anonymous_answer_does_not_vary(self, client: Client) -> None:
        """Asking for the user does not make an anonymous answer vary on the cookie."""
        plain, keyed = client.post("/who/"), client.post("/who/", headers=KEY)
        assert "Cookie" not in plain.get("Vary", "")
        assert "Cookie" not in keyed.get("Vary", "")

    def test_view_that_looks_makes_it_vary(self, client: Client) -> None:
        """If the view itself looks at an anonymous user, the answer varies as without us."""
        plain, keyed = client.post("/who/?look"), client.post("/who/?look", headers=KEY)
        assert "Cookie" in plain["Vary"]
        assert "Cookie" in keyed["Vary"]
        assert keyed.content == b"AnonymousUser"

    def test_answer_to_a_user_varies(self) -> None:
        """An answer that depends on the user says so, and the user is looked up once."""
        client = Client()
        client.force_login(User.objects.create_user("alice"))
        response = client.post("/who/?look", headers=KEY)
        assert "Cookie" in response["Vary"]
        assert response.content == b"alice"

    def test_session_that_was_touched_stays_so(self) -> None:
        """Where somebody has looked at the session before, nothing is hidden."""
        from django.contrib.auth.models import AnonymousUser
        from django.contrib.sessions.backends.db import SessionStore

        from dotmac_tasks_django.requests import find_user_id

        request = RequestFactory().post("/")
        assert find_user_id(request) is None
        request.session = SessionStore()
        request.session.accessed = True
        request.user = SimpleLazyObject(AnonymousUser)  # type: ignore[assignment]
        assert find_user_id(request) is None
        assert request.session.accessed

    def test_session_that_was_changed_stays_so(self) -> None:
        """Where looking up the user had to drop a broken session, that is not hidden."""
        from django.contrib.auth.models import AnonymousUser
        from django.contrib.sessions.backends.db import SessionStore

        from dotmac_tasks_django.requests import find_user_id

        request = RequestFactory().post("/")
        request.session = SessionStore()

        def look_up() -> AnonymousUser:
            request.session["changed"] = True
            request.session.get("changed")
            return AnonymousUser()

        request.user = SimpleLazyObject(look_up)  # type: ignore[assignment]
        assert find_user_id(request) is None
        assert request.session.accessed

    def test_user_that_was_looked_up_stays_known(self) -> None:
        """A user that somebody else has looked up without the session is not forgotten."""
        from django.contrib.auth.models import AnonymousUser
        from django.contrib.sessions.backends.db import SessionStore

        from dotmac_tasks_django.requests import find_user_id

        request = RequestFactory().post("/")
        request.session = SessionStore()
        request._cached_user = known = AnonymousUser()  # type: ignore[attr-defined]
        request.user = SimpleLazyObject(lambda: known)  # type: ignore[assignment]
        assert find_user_id(request) is None
        assert vars(request)["_cached_user"] is known

    def test_unsaved_user_is_nobody(self) -> None:
        """A user without a primary key is no principal."""
        from dotmac_tasks_django.requests import find_user_id

        request = RequestFactory().post("/")
        request.user = User()
        assert find_user_id(request) is None


@pytest.mark.usefixtures("_atomic_requests")
@pytest.mark.django_db(transaction=True)
class TestTransactions:
    def count_rows(self) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM child")
            (count,) = cursor.fetchone()
            return int(count)

    def test_committed_work_is_recorded(self, client: Client) -> None:
        """A transaction that commits is an outcome."""
        first, again = (client.post("/insert/", headers=KEY) for _ in range(2))
        assert first.json() == again.json() == {"number": 1}
        assert self.count_rows() == 1

    def test_failed_commit_is_not_recorded(self, client: Client) -> None:
        """Where COMMIT fails nothing was done: a 500 goes out and the next retry runs."""
        for number in (1, 2):
            assert client.post("/insert/?orphan", headers=KEY).status_code == 500
            assert get_calls("insert") == number
        assert self.count_rows() == 0
        assert get_statuses() == []


class TestHelpers:
    def test_helpers_tell_about_the_request(self, client: Client) -> None:
        """A view learns the client's key and stable keys for other systems."""
        told = client.post("/told/", headers=KEY).json()
        assert told["key"] == "key-1"
        assert told["recognised"] is True
        assert len(told["downstream"]) == 64
        assert told["downstream"] != told["other"]
        other = client.post("/told/", headers={"Idempotency-Key": "key-2"}).json()
        assert other["downstream"] != told["downstream"]

    def test_result_is_what_retries_get(self, client: Client) -> None:
        """The first caller gets the view's answer, retries the result as JSON."""
        first, again = (client.post("/result/", headers=KEY) for _ in range(2))
        assert (first.status_code, first.content) == (202, b"the first answer")
        assert (again.status_code, again.json()) == (200, {"number": 1})

    def test_deferred_work_is_completed_elsewhere(self, client: Client) -> None:
        """Retries are told that the work runs until somebody completes it."""
        stored = client.post("/deferred/", headers=KEY).content.decode()
        again = client.post("/deferred/", headers=KEY)
        assert (again.status_code, again.json()["status"]) == (202, "in_progress")
        assert get_manager().complete_idempotent_operation(stored, {"done": True})
        last = client.post("/deferred/", headers=KEY)
        assert (last.status_code, last.json()) == (200, {"done": True})
        assert get_calls("deferred") == 1

    def test_helpers_without_a_key(self, client: Client) -> None:
        """Without a key there is nothing to tell, to set or to hand on."""
        from dotmac_tasks.errors import IdempotencyError
        from dotmac_tasks_django import (
            defer_operation,
            downstream_key,
            get_idempotency_key,
            is_idempotent_request,
            set_operation_result,
        )

        request = RequestFactory().post("/")
        assert get_idempotency_key(request) is None
        assert is_idempotent_request(request) is False
        set_operation_result(request, 1)
        assert defer_operation(request) is None
        with pytest.raises(IdempotencyError, match="no idempotency key"):
            downstream_key(request, "charge")


class TestAsgi:
    """
    The same sync middleware under Django's ASGI handler.
    """

    def test_replay(self) -> None:
        """Sync and async views are protected under ASGI, request bodies of any size included."""

        async def run() -> None:
            client = AsyncClient(headers=KEY)
            for path in ("/pay/", "/async/"):
                key = {"Idempotency-Key": path.strip("/")}
                first = await client.post(path, {"a": 1}, JSON, headers=key)
                again = await client.post(path, {"a": 1}, JSON, headers=key)
                assert first.json() == again.json() == {"number": 1}
                assert again["X-Cache-Hit"] == "true"

        asyncio.run(run())

    def test_async_stream(self) -> None:
        """An asynchronous stream goes out live and leaves a key that is never run again."""

        async def run() -> list[int]:
            client = AsyncClient()
            first = await client.post("/async-stream/", headers=KEY)
            assert b"".join([part async for part in first]) == b"one,two"
            again = await client.post("/async-stream/", headers=KEY)
            return [first.status_code, again.status_code]

        assert asyncio.run(run()) == [200, 409]

    def test_broken_async_stream(self) -> None:
        """One that breaks in the middle leaves the outcome unknown."""

        async def run() -> None:
            response = await AsyncClient().post("/async-stream/?break", headers=KEY)
            with pytest.raises(ValueError, match="broken stream"):
                async for _ in response:
                    pass

        asyncio.run(run())
        assert get_statuses() == [OperationStatus.IN_PROGRESS]
        assert get_manager().heartbeat.held_count == 0

    def test_async_stream_is_not_ended_by_being_dropped(self) -> None:
        """Nor does an asynchronous one: the end of its request ends the run."""

        async def run() -> HttpRequest:
            request, response = serve_stream(StreamingHttpResponse(two_parts()))
            assert await anext(response._iterator) == b"one"
            await response._iterator.aclose()
            return request

        async def two_parts() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        request = asyncio.run(run())
        assert get_statuses() == [OperationStatus.IN_PROGRESS]
        request.close()
        assert get_statuses() == [OperationStatus.COMPLETED]

    def test_async_stream_that_is_left(self) -> None:
        """A client that hangs up ends an asynchronous stream, started or not."""

        async def run(start: bool) -> None:
            response = await AsyncClient().post("/async-stream/", headers=KEY)
            if start:
                parts = response._iterator.__aiter__()
                assert await anext(parts) == b"one,"
                await parts.aclose()
            await asyncio.to_thread(response.close)

        for start in (True, False):
            with override_tasks_settings():
                asyncio.run(run(start))
                assert get_statuses() == [OperationStatus.COMPLETED]

    @pytest.mark.parametrize("length", [True, False])
    def test_handler(self, length: bool) -> None:
        """Through the real handler a body of any size is digested and read by the view."""

        async def run() -> list[tuple[int, Any]]:
            exchanges = [
                Exchange("/upload/", b"way=read", body, length=length)
                for body in (b"x" * 500, b"x" * 500, b"y" * 500)
            ]
            for exchange in exchanges:
                await exchange.run()
            return [(exchange.status, json.loads(exchange.sent_body)) for exchange in exchanges]

        with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=100):
            first, again, other = asyncio.run(run())
        assert first == again == (200, {"number": 1, "seen": 500})
        assert other[0] == HTTPStatus.UNPROCESSABLE_ENTITY

    @pytest.mark.parametrize("path", ["/gate/", "/async-gate/"])
    def test_client_that_hangs_up_loses_no_outcome(self, path: str) -> None:
        """The view of a client that hung up runs to its end, and the retry gets its answer."""

        async def run() -> tuple[int, bytes]:
            await Exchange(path, hangs_up_at=gate).run()
            retry = Exchange(path)
            await retry.run()
            return retry.status, retry.sent_body

        gate.reset()
        assert asyncio.run(run()) == (200, b"run 1")
        assert get_statuses() == [OperationStatus.COMPLETED]

    @override_settings(ROOT_URLCONF="support.django_project.rest")
    def test_client_that_hangs_up_while_its_view_authenticates_loses_no_outcome(self) -> None:
        """A view of the REST framework that is about to claim runs to its end, too."""

        async def run() -> list[bytes]:
            exchanges = [Exchange("/gate/", hangs_up_at=gate), Exchange("/gate/")]
            for exchange in exchanges:
                await exchange.run()
            return [exchange.sent_body for exchange in exchanges]

        gate.reset()
        assert asyncio.run(run())[1] == b'{"number":1}'
        assert get_statuses() == [OperationStatus.COMPLETED]

    @pytest.mark.parametrize("name", ["template", "rest"])
    def test_client_that_hangs_up_on_a_decorated_view_loses_no_outcome(self, name: str) -> None:
        """Without the middleware, too, what the view made is recorded though nobody renders it."""

        class Rest(APIView):
            @idempotent
            def post(self, request: Any) -> Response:
                gate.pass_through()
                return Response(f"run {count_call('decorated')}")

        @csrf_exempt
        @idempotent
        def template(request: HttpRequest) -> TemplateResponse:
            gate.pass_through()
            return TemplateResponse(request, "receipt.html", {"number": count_call("decorated")})

        async def run() -> list[int]:
            exchanges = [Exchange("/view/", hangs_up_at=gate), Exchange("/view/")]
            await exchanges[0].run()
            while get_statuses() != [OperationStatus.COMPLETED]:
                await asyncio.sleep(0.01)
            await exchanges[1].run()
            return [exchange.status for exchange in exchanges]

        gate.reset()
        view = Rest.as_view() if name == "rest" else template
        with override_settings(MIDDLEWARE=[], ROOT_URLCONF=(urls.path("view/", view),)):
            assert asyncio.run(asyncio.wait_for(run(), 30)) == [0, HTTPStatus.OK]
        assert get_calls("decorated") == 1
        assert get_manager().heartbeat.held_count == 0

    @pytest.mark.parametrize("name", ["template", "rest"])
    def test_rendering_that_fails_gives_the_key_back(self, name: str) -> None:
        """A decorated view under ASGI whose response cannot be rendered has no outcome."""

        class Rest(APIView):
            @idempotent
            def post(self, request: Any) -> Response:
                return Response(object())

        @csrf_exempt
        @idempotent
        def template(request: HttpRequest) -> TemplateResponse:
            return TemplateResponse(request, "broken.html", {"broken": Broken()})

        class Broken:
            def __str__(self) -> str:
                raise ValueError("broken")

        exchange = Exchange("/view/")
        view = Rest.as_view() if name == "rest" else template
        with override_settings(MIDDLEWARE=[], ROOT_URLCONF=(urls.path("view/", view),)):
            asyncio.run(exchange.run())
        assert exchange.status == HTTPStatus.INTERNAL_SERVER_ERROR
        assert get_statuses() == []
        assert get_manager().heartbeat.held_count == 0

    def test_client_that_hangs_up_before_its_view_leaves_the_key(self) -> None:
        """Who hung up while the key was being claimed has done nothing; the retry does it."""

        def principal(request: HttpRequest) -> None:
            gate.pass_through()

        async def run() -> list[int]:
            exchanges = [Exchange("/pay/", hangs_up_at=gate), Exchange("/pay/")]
            for exchange in exchanges:
                await exchange.run()
            return [exchange.status for exchange in exchanges]

        gate.reset()
        with override_tasks_settings(principal=principal):
            assert asyncio.run(run()) == [0, HTTPStatus.CREATED]

    def test_view_without_a_key_is_cancelled(self) -> None:
        """Without a key Django cancels the view of a client that hung up, as it always does."""
        gate.reset()
        asyncio.run(Exchange("/async-gate/", key=None, hangs_up_at=gate).run())
        assert gate.cancelled

    def test_context_of_the_view_is_seen_outside(self, client: Client) -> None:
        """A context variable that a view sets is there for the middleware around it."""

        async def run() -> Any:
            return await AsyncClient().post("/context/", headers=KEY)

        with with_middleware(first="ContextMiddleware"):
            assert asyncio.run(run())["X-Seen"] == "set by the view"


class Exchange:
    """
    One request through Django's ASGI handler, and what came back.
    """

    def __init__(
        self,
        path: str,
        query: bytes = b"",
        body: bytes = b"",
        *,
        key: bytes | None = b"key-1",
        length: bool = True,
        hangs_up_at: Gate | None = None,
    ) -> None:
        headers = [(b"host", b"testserver"), (b"content-type", b"text/plain")]
        if key is not None:
            headers.append((b"idempotency-key", key))
        if length:
            headers.append((b"content-length", str(len(body)).encode()))
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": query,
            "headers": headers,
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
        }
        self.incoming = [
            {"type": "http.request", "body": body[:10], "more_body": True},
            {"type": "http.request", "body": body[10:], "more_body": False},
        ]
        self.hangs_up_at = hangs_up_at
        self.finishes = key is not None
        self.status = 0
        self.sent_body = b""
        self.is_sent = asyncio.Event()

    async def run(self) -> None:
        await ASGIHandler()(self.scope, self.receive, self.send)

    async def receive(self) -> Any:
        if self.incoming:
            return self.incoming.pop(0)
        if self.hangs_up_at is None:
            await self.is_sent.wait()
        else:
            assert await asyncio.to_thread(self.hangs_up_at.entered.wait, 30)
            if self.finishes:
                # Usually the handler has seen the disconnect before the view goes on.
                asyncio.get_running_loop().call_later(0.05, self.hangs_up_at.leave.set)
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.sent_body += message.get("body", b"")
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.is_sent.set()


class TestFork:
    def test_child_of_a_used_process_serves(self, client: Client) -> None:
        """A worker that was forked after the first use claims, replays and renews by itself."""
        client.post("/pay/", headers=KEY)
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                response = client.post("/pay/", headers={"Idempotency-Key": "child"})
                again = client.post("/pay/", headers={"Idempotency-Key": "child"})
                os.write(writable, response.content + again["X-Cache-Hit"].encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writable)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(readable, "rb") as pipe:
            assert pipe.read() == b'{"number": 2}true'
        assert status == 0


def test_uploaded_file_on_disk_is_rewound() -> None:
    """A file that was parsed to disk is digested from its beginning and left there."""
    from dotmac_tasks_django.bodies import request_body_digest

    def digest(content: bytes) -> bytes:
        request = RequestFactory().post("/", {"a": "1"})
        request.POST  # noqa: B018 - parses the form
        uploaded = TemporaryUploadedFile("a.bin", "", len(content), None)
        uploaded.write(content)
        request.FILES["file"] = uploaded  # type: ignore[assignment]
        try:
            found = request_body_digest(request)
            assert uploaded.read() == content
        finally:
            uploaded.close()
        return found

    assert digest(b"one") == digest(b"one") != digest(b"two")


@pytest.mark.parametrize("touch", ["POST", "body"])
def test_body_that_was_read_before_is_left_alone_in_an_outage(touch: str) -> None:
    """What an earlier middleware has read is not read again, nor taken for half a body."""
    from dotmac_tasks_django.bodies import ensure_whole_body

    request = RequestFactory().post("/", {"a": "1"})
    before = getattr(request, touch)
    ensure_whole_body(request)
    assert getattr(request, touch) == before
    assert request.POST["a"] == "1"
