"""
What a client sees, whichever adapter serves it and whichever storage remembers.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dotmac_tasks.errors import (
    CorruptRecordError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from dotmac_tasks.events import StorageUnprotected
from dotmac_tasks.http import RecordedResponse
from dotmac_tasks.reconciliation import AbandonedOperation, Verdict
from dotmac_tasks.testing import EventRecorder
from support.backends import Backend, MemoryBackend
from support.concurrency import Counter, run_together, wait_until
from support.faulty import FaultyStorage
from support.http_clients import (
    JSON,
    BrokenHandlerError,
    Call,
    HttpClient,
    Reply,
    Response,
)

KEY = "5a1e2f"


class Work:
    """
    A handler that answers how often it ran; instances may be shared between threads.
    """

    def __init__(self, **reply: Any) -> None:
        self._runs = Counter()
        self._reply = reply

    @property
    def runs(self) -> int:
        return self._runs.value

    def __call__(self, call: Call) -> Reply:
        run = self._runs.increment()
        return Reply(**{"body": b'{"run": %d}' % run, **self._reply})


def send_twice(client: HttpClient, **request: Any) -> tuple[Response, Response]:
    return client.send(key=KEY, **request), client.send(key=KEY, **request)


def assert_replay(first: Response, second: Response) -> None:
    assert not first.is_replay
    assert second.is_replay
    assert (second.status, second.body) == (first.status, first.body)


# Without a key, and what is not covered


def test_request_without_key_leaves_no_trace(serve: Any, backend: Backend) -> None:
    """
    Without a key the work runs every time, and nothing is stored or marked.
    """
    work = Work()
    client = serve(work, backend.storage)
    answers = [client.send(), client.send()]
    assert [answer.json()["run"] for answer in answers] == [1, 2]
    assert all(answer.get("X-Idempotency-Key") is None for answer in answers)
    assert backend.storage.get_stats().idempotency_keys == 0


def test_request_with_key_is_stored(serve: Any, backend: Backend) -> None:
    """
    With a key one record is stored, and it does not show the key.
    """
    client = serve(Work(), backend.storage)
    answer = client.send(key=KEY)
    assert answer.get("X-Idempotency-Key") == KEY
    assert backend.storage.get_stats().idempotency_keys == 1
    assert backend.storage.find_operation(KEY) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_method_that_is_not_covered_ignores_the_key(serve: Any, method: str) -> None:
    """
    A key on a method that is not covered has no effect, however malformed it is.
    """
    work = Work(body=b"")
    client = serve(work)
    for key in (KEY, KEY, '"'):
        answer = client.send(method, key=key, body=b"")
        assert answer.status == 200
        assert answer.get("X-Idempotency-Key") is None
    assert work.runs == 3


def test_method_is_covered_where_the_setting_names_it(serve: Any) -> None:
    """
    The methods of the setting are covered, and the default ones only if they are among them.
    """
    work = Work()
    client = serve(work, methods=["PUT"])
    assert_replay(*send_twice(client, method="PUT"))
    send_twice(client, method="POST")
    assert work.runs == 3


@pytest.mark.parametrize("path", ["/health/", "/health/deep", "/metrics", "/admin/orders/add/"])
def test_exempt_path_ignores_the_key(serve: Any, path: str) -> None:
    """
    A request to an exempt path runs every time.
    """
    work = Work()
    send_twice(serve(work), path=path)
    assert work.runs == 2


@pytest.mark.parametrize("path", ["/healthcare", "/metrics/", "/adminx"])
def test_path_that_only_looks_exempt_is_covered(serve: Any, path: str) -> None:
    """
    A path that merely begins like an exempt one is covered.
    """
    assert_replay(*send_twice(serve(Work()), path=path))


# The key


def test_missing_key_is_refused_where_required(serve: Any) -> None:
    """
    Where a key is required, a request without one is refused, before its body is read.
    """
    work = Work()
    client = serve(work, require_key=True)
    answer = client.send(body=b"", CONTENT_LENGTH="100")
    assert (answer.status, answer.problem) == (400, "missing-key")
    assert "Idempotency-Key" in answer.json()["detail"]
    assert work.runs == 0


def test_key_is_enough_where_required(serve: Any) -> None:
    """
    Where a key is required, a request with one runs.
    """
    assert serve(Work(), require_key=True).send(key=KEY).status == 200


@pytest.mark.parametrize(
    "key",
    ["", " ", '""', '"a', 'a"', '"a" b', "a,b", "a, a", "a\tb", "a\x7f", "schlüssel", "k" * 256],
)
def test_malformed_key_is_refused(serve: Any, key: str) -> None:
    """
    A malformed key is refused and the work does not run: not even unprotected.
    """
    work = Work()
    answer = serve(work).send(key=key)
    assert (answer.status, answer.problem) == (400, "invalid-key")
    assert work.runs == 0


@pytest.mark.parametrize("key", ["1", "k" * 255, '"a,b"', '"a";version=1', "8e03978e-40d5", "a b"])
def test_wellformed_key_is_accepted(serve: Any, key: str) -> None:
    """
    A key of any accepted form protects its request, a short one too.
    """
    client = serve(Work())
    assert_replay(client.send(key=key), client.send(key=key))


@pytest.mark.parametrize(
    ("first", "second"),
    [('"abc"', "abc"), ('"abc";a=1', "abc"), (r'"a\"b"', r'"a\"b";q'), (r'"a\\b"', r"a\b")],
)
def test_forms_of_one_key_are_one_key(serve: Any, first: str, second: str) -> None:
    """
    The quoted form and the bare text of a key mean the same operation.
    """
    client = serve(Work())
    assert_replay(client.send(key=first), client.send(key=second))


def test_different_keys_are_different_operations(serve: Any) -> None:
    """
    Another key is another operation, also for an equal request.
    """
    work = Work()
    client = serve(work)
    assert client.send(key="a").json() == {"run": 1}
    assert client.send(key="A").json() == {"run": 2}


def test_header_names_follow_the_settings(serve: Any) -> None:
    """
    The settings name the header of the key and those of the answers.
    """
    client = serve(
        Work(),
        idempotency_header="X-Request-Token",
        cache_hit_header="X-Again",
        idempotency_response_header="X-Token",
    )
    client.send(headers=[("X-Request-Token", KEY)])
    answer = client.send(headers=[("X-Request-Token", KEY)])
    assert (answer.get("X-Again"), answer.get("X-Token")) == ("true", KEY)
    assert not client.send(key=KEY).get("X-Token")


# Replays


def test_replay_equals_the_first_answer(serve: Any, backend: Backend) -> None:
    """
    A retry gets the stored status, body and safe headers, marked as a replay.
    """
    work = Work(status=201, headers=[*JSON, ("Location", "/orders/1"), ("ETag", '"1"')])
    client = serve(work, backend.storage)
    first, second = send_twice(client)
    assert_replay(first, second)
    assert second.status == 201
    for name in ("Content-Type", "Location", "ETag"):
        assert second.get(name) == first.get(name)
    assert second.get("X-Idempotency-Key") == KEY
    assert work.runs == 1


@pytest.mark.parametrize(
    "status", [200, 201, 202, 204, 206, 226, 301, 303, 308, 400, 402, 404, 410, 422, 451, 499]
)
def test_lasting_status_is_replayed(serve: Any, status: int) -> None:
    """
    Successes, redirects and deterministic refusals are stored and replayed.
    """
    body = b"" if status == 204 else b"{}"
    headers = [("Location", "/orders/1")] if status == 204 else [*JSON, ("Location", "/orders/1")]
    client = serve(Work(status=status, headers=headers, body=body))
    first, second = send_twice(client)
    assert_replay(first, second)
    assert second.get("Location") == "/orders/1"
    assert second.get("Content-Type") == first.get("Content-Type")


@pytest.mark.parametrize(
    "status", [401, 403, 407, 408, 409, 421, 423, 425, 429, 500, 501, 502, 503, 504]
)
def test_passing_status_releases_the_key(serve: Any, status: int) -> None:
    """
    What says "not now" or "not you" is never stored: the retry runs the work.
    """
    work = Work(status=status)
    first, second = send_twice(serve(work))
    assert [first.status, second.status] == [status, status]
    assert not second.is_replay
    assert work.runs == 2


def test_exception_releases_the_key(serve: Any, backend: Backend) -> None:
    """
    After an unhandled exception the retry runs the work, and its answer is stored.
    """
    attempts = Counter()

    def fail_once(call: Call) -> Reply:
        if attempts.increment() == 1:
            raise BrokenHandlerError
        return Reply()

    client = serve(fail_once, backend.storage)
    assert client.send(key=KEY).status == 500
    second, third = send_twice(client)
    assert second.status == 200
    assert_replay(second, third)
    assert attempts.value == 2


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("image/png", b"\x89PNG\r\n\x1a\n\x00\xff\n\n"),
        ("text/plain; charset=iso-8859-1", b"Gr\xfc\xdfe\n"),
        ("application/json", b""),
    ],
)
def test_body_is_replayed_byte_for_byte(serve: Any, content_type: str, body: bytes) -> None:
    """
    Bytes that are no text, line feeds and an empty body come back as they are.
    """
    client = serve(Work(headers=[("Content-Type", content_type)], body=body))
    first, second = send_twice(client)
    assert_replay(first, second)
    assert second.body == body
    assert second.get("Content-Type") == content_type


def test_encoded_body_is_replayed_with_its_encoding(serve: Any) -> None:
    """
    What the application itself has compressed is replayed with its Content-Encoding.
    """
    body = gzip.compress(b"{}" * 100)
    client = serve(Work(headers=[*JSON, ("Content-Encoding", "gzip")], body=body))
    first, second = send_twice(client)
    assert_replay(first, second)
    assert second.get("Content-Encoding") == "gzip"


def test_repeated_headers_are_replayed(serve: Any) -> None:
    """
    Headers that occur more than once are replayed in full and in order.
    """
    links = [("Link", "</1>; rel=first"), ("Link", "</9>; rel=last")]
    client = serve(Work(headers=[*JSON, *links, ("Vary", "Accept"), ("Vary", "Cookie")]))
    first, second = send_twice(client)
    for name, value in (
        ("Link", "</1>; rel=first, </9>; rel=last"),
        ("Vary", "Accept, Cookie"),
    ):
        assert first.get(name) == second.get(name) == value


PERSONAL = [
    ("Set-Cookie", "session=secret"),
    ("WWW-Authenticate", "Basic"),
    ("Date", "Mon, 23 Nov 2026 12:00:00 GMT"),
    ("Access-Control-Allow-Origin", "https://one.example"),
    ("X-Cost", "3"),
]


def test_personal_headers_are_not_replayed(serve: Any) -> None:
    """
    The first client gets every header; cookies, challenges, CORS and unknown ones end there.
    """
    first, second = send_twice(serve(Work(headers=[*JSON, *PERSONAL])))
    for name, value in PERSONAL:
        assert first.get(name) == value
        assert second.get(name) is None


def test_replayed_headers_can_be_added_but_not_personal_ones(serve: Any) -> None:
    """
    The setting adds headers to what is replayed; what is personal it cannot add.
    """
    client = serve(Work(headers=[*JSON, *PERSONAL]), replay_headers=[name for name, _ in PERSONAL])
    _, second = send_twice(client)
    assert [second.get(name) for name, _ in PERSONAL] == [None, None, None, None, "3"]


def test_key_works_again_after_the_retention(serve: Any, backend: Backend) -> None:
    """
    Within the retention a retry is a replay; after it, new work.
    """
    work = Work()
    client = serve(work, backend.storage, default_idempotency_ttl=100)
    client.send(key=KEY)
    backend.age(99)
    assert client.send(key=KEY).is_replay
    backend.age(2)
    assert client.send(key=KEY).json() == {"run": 2}


def test_replays_do_not_prolong_the_retention(serve: Any, backend: Backend) -> None:
    """
    However often it is replayed, an outcome is forgotten when its time is over.
    """
    client = serve(Work(), backend.storage, default_idempotency_ttl=100)
    client.send(key=KEY)
    for _ in range(3):
        backend.age(30)
        assert client.send(key=KEY).is_replay
    backend.age(11)
    assert not client.send(key=KEY).is_replay


# Results that the application sets


@pytest.mark.parametrize("result", [None, 0, False, "", [], {}, {"name": "Grüße", "n": 1.5}])
def test_set_result_is_what_retries_get(serve: Any, backend: Backend, result: Any) -> None:
    """
    A set result is replayed as JSON with status 200, a falsy one as itself.
    """

    def handler(call: Call) -> Reply:
        call.set_result({"an": "earlier one"})
        call.set_result(result)
        return Reply(202, body=b"accepted")

    first, second = send_twice(serve(handler, backend.storage))
    assert (first.status, first.body) == (202, b"accepted")
    assert second.is_replay
    assert (second.status, second.json()) == (200, result)
    assert second.get("Content-Type") == "application/json"
    assert second.get("X-Idempotency-Key") == KEY


def test_set_result_keeps_what_the_status_would_release(serve: Any) -> None:
    """
    A set result is kept also with a status that by itself releases the key.
    """

    def handler(call: Call) -> Reply:
        call.set_result("done")
        return Reply(409)

    _, second = send_twice(serve(handler))
    assert (second.status, second.json()) == (200, "done")


def test_set_result_does_not_outlive_a_failure(serve: Any) -> None:
    """
    With a 5xx the key is released, whatever result was set before.
    """
    runs = Counter()

    def handler(call: Call) -> Reply:
        call.set_result("done")
        return Reply(503 if runs.increment() == 1 else 200)

    client = serve(handler)
    assert [client.send(key=KEY).status for _ in range(3)] == [503, 200, 200]
    assert runs.value == 2


def test_result_that_is_not_json_is_refused(serve: Any) -> None:
    """
    A result that is not JSON is an error where it is set, and nothing is changed.
    """
    refused: list[type[Exception]] = []

    def handler(call: Call) -> Reply:
        try:
            call.set_result({1, 2})
        except ValueError as error:
            refused.append(type(error))
        return Reply(body=b"plain")

    _, second = send_twice(serve(handler))
    assert [error.__name__ for error in refused] == ["SerializationError"]
    assert second.body == b"plain"


def test_view_that_fails_over_its_result_is_not_run_again(serve: Any) -> None:
    """
    A result that is not JSON means that there was one: the work is done, whatever comes of it.
    """

    def handler(call: Call) -> Reply:
        try:
            call.set_result({1, 2})
        except ValueError as error:
            raise BrokenHandlerError from error
        return Reply()

    first, second = send_twice(serve(handler))
    assert first.status == 500
    assert second.status == 409
    assert second.json()["type"].endswith("not-replayable")


def test_helpers_without_a_key_do_nothing(serve: Any) -> None:
    """
    Without a key the helpers say so and setting a result has no effect.
    """
    seen: list[object] = []

    def handler(call: Call) -> Reply:
        call.set_result("ignored")
        seen.extend([call.key, call.is_idempotent, call.defer()])
        return Reply()

    serve(handler).send()
    assert seen == [None, False, None]


def test_helpers_with_a_key_tell_it(serve: Any) -> None:
    """
    With a key the helpers tell the client's key and that the request is protected.
    """
    seen: list[object] = []

    def handler(call: Call) -> Reply:
        seen.extend([call.key, call.is_idempotent])
        return Reply()

    serve(handler).send(key='"a,b"')
    assert seen == ["a,b", True]


# Handing work on


class Deferring:
    """
    A handler that hands its work on and keeps the stored keys; used by one thread.
    """

    def __init__(self, status: int = 202, timeout: float = 3600) -> None:
        self.keys: list[str | None] = []
        self._status = status
        self._timeout = timeout

    def __call__(self, call: Call) -> Reply:
        self.keys.append(call.defer(self._timeout))
        if self._status == 0:
            raise BrokenHandlerError
        return Reply(self._status, body=b'{"queued": true}')


def test_deferred_operation_is_running_until_it_is_completed(serve: Any, backend: Backend) -> None:
    """
    The first answer goes out once; retries are told to wait, then get the worker's result.
    """
    work = Deferring()
    client = serve(work, backend.storage)
    first, second = send_twice(client)
    assert first.json() == {"queued": True}
    assert (second.status, second.json()["status"]) == (202, "in_progress")
    assert client.manager.complete_idempotent_operation(work.keys[0], {"sent": 1})
    third = client.send(key=KEY)
    assert third.is_replay
    assert (third.status, third.json()) == (200, {"sent": 1})
    assert len(work.keys) == 1


def test_deferred_operation_that_failed_says_so(serve: Any, backend: Backend) -> None:
    """
    What the worker recorded as failed is replayed as 400 with the application's text.
    """
    work = Deferring()
    client = serve(work, backend.storage)
    client.send(key=KEY)
    client.manager.complete_idempotent_operation(work.keys[0], {}, error="card declined")
    answer = client.send(key=KEY)
    assert answer.is_replay
    assert answer.get("X-Idempotency-Key") == KEY
    assert (answer.status, answer.json()) == (
        400,
        {"status": "failed", "error": "card declined"},
    )


def test_worker_may_finish_before_the_view(serve: Any) -> None:
    """
    A worker that is faster than the view does not have its result overwritten.
    """
    clients: list[HttpClient] = []

    def handler(call: Call) -> Reply:
        key = call.defer()
        assert clients[0].manager.complete_idempotent_operation(key, "fast")
        return Reply(202)

    clients.append(serve(handler))
    first, second = send_twice(clients[0])
    assert first.status == 202
    assert (second.status, second.json()) == (200, "fast")


def test_deferred_operation_is_abandoned_after_its_timeout(serve: Any, backend: Backend) -> None:
    """
    Past its timeout a handed-on operation counts as abandoned, and not before.
    """
    work = Deferring(timeout=600)
    client = serve(work, backend.storage)
    client.send(key=KEY)
    backend.age(599)
    assert client.send(key=KEY).json()["status"] == "in_progress"
    backend.age(2)
    assert client.send(key=KEY).json() == {"queued": True}
    assert len(work.keys) == 2


@pytest.mark.parametrize("status", [0, 500, 503])
def test_failure_after_deferring_releases_the_key(
    serve: Any, backend: Backend, status: int
) -> None:
    """
    A 5xx or an exception after handing on gives the key back.
    """
    work = Deferring(status=status)
    client = serve(work, backend.storage)
    send_twice(client)
    assert len(work.keys) == 2
    assert not client.manager.complete_idempotent_operation(work.keys[0], "late")


# The same key for something else


@pytest.mark.parametrize(
    "other",
    [
        {"body": b'{"amount": 2}'},
        {"body": b""},
        {"query": "dry_run=1"},
        {"path": "/orders/"},
        {"path": "/Orders"},
        {"method": "PATCH"},
        {"content_type": "text/plain"},
    ],
    ids=str,
)
def test_key_for_another_request_is_refused(
    serve: Any, backend: Backend, other: dict[str, Any]
) -> None:
    """
    The same key with another request is a 422 that tells nothing of the first.
    """
    work = Work(body=b'{"secret": 1}')
    client = serve(work, backend.storage)
    client.send(key=KEY)
    answer = client.send(key=KEY, **other)
    assert (answer.status, answer.problem) == (422, "key-reused")
    assert b"secret" not in answer.body
    assert work.runs == 1


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (b'{"a": 1, "b": [1, 2]}', b'{"b":[1,2],"a":1}', True),
        (b'{"a": [1, 2]}', b'{"a": [2, 1]}', False),
        (b'{"amount":1,"amount":1000}', b'{"amount":1000}', False),
        (b"1.00000000000000001", b"1.0", False),
        (b'{"a": true}', b'{"a": 1}', False),
    ],
)
def test_json_bodies_count_by_value(serve: Any, first: bytes, second: bytes, is_same: bool) -> None:
    """
    JSON is the same by value; what is ambiguous or lossy counts by its bytes.
    """
    client = serve(Work())
    client.send(key=KEY, body=first)
    assert (client.send(key=KEY, body=second).status == 200) is is_same


def multipart(boundary: str, content: bytes) -> dict[str, Any]:
    lines = [
        f"--{boundary}".encode(),
        b'Content-Disposition: form-data; name="file"; filename="a.bin"',
        b"Content-Type: application/octet-stream",
        b"",
        content,
        f"--{boundary}--".encode(),
        b"",
    ]
    return {
        "body": b"\r\n".join(lines),
        "content_type": f"multipart/form-data; boundary={boundary}",
    }


@pytest.mark.parametrize(("content", "status"), [(b"\x00" * 5000, 200), (b"\x01" * 5000, 422)])
def test_forms_count_by_their_parts(serve: Any, content: bytes, status: int) -> None:
    """
    A form with a new boundary is the same request; with other bytes in a file it is not.
    """
    client = serve(Work())
    client.send(key=KEY, **multipart("one", b"\x00" * 5000))
    assert client.send(key=KEY, **multipart("two", content)).status == status


def test_application_reads_the_whole_body(serve: Any) -> None:
    """
    The application finds the body as if nobody had read it, a large one too.
    """
    bodies: list[bytes] = []

    def handler(call: Call) -> Reply:
        bodies.append(call.body)
        return Reply()

    client = serve(handler)
    sent = [b"", b"x" * 2_000_000]
    for index, body in enumerate(sent):
        client.send(key=str(index), body=body, content_type="application/octet-stream")
    assert bodies == sent


def test_body_that_ends_early_is_refused(serve: Any) -> None:
    """
    Half a body is no request: nothing is claimed, and the whole one runs later.
    """
    work = Work()
    client = serve(work)
    answer = client.send(key=KEY, body=b'{"amou', CONTENT_LENGTH="13")
    assert (answer.status, answer.problem) == (400, "incomplete-body")
    assert work.runs == 0
    assert client.send(key=KEY).json() == {"run": 1}


# While the first one runs


class Nested:
    """
    A handler that sends a request of its own while it runs; used by one thread.
    """

    def __init__(self, **request: Any) -> None:
        self.client: HttpClient | None = None
        self.inner: list[Response] = []
        self.runs = 0
        self._request = {"key": KEY, **request}

    def __call__(self, call: Call) -> Reply:
        self.runs += 1
        if self.runs == 1:
            assert self.client is not None
            self.inner.append(self.client.send(**self._request))
        return Reply(body=b'{"run": %d}' % self.runs)


def test_duplicate_of_a_running_request_is_accepted(serve: Any, backend: Backend) -> None:
    """
    While the first one runs, a duplicate gets 202 and when to ask again.
    """
    work = Nested()
    work.client = serve(work, backend.storage)
    work.client.send(key=KEY)
    (answer,) = work.inner
    assert answer.status == 202
    assert answer.json()["status"] == "in_progress"
    assert answer.json()["message"]
    assert 1 <= int(answer.get("Retry-After") or 0) <= 30
    assert answer.get("X-Idempotency-Key") == KEY
    assert not answer.is_replay
    assert work.runs == 1
    assert work.client.send(key=KEY).is_replay


def test_duplicate_of_a_running_request_is_a_conflict_by_setting(serve: Any) -> None:
    """
    With `conflict` a duplicate gets 409 and when to ask again.
    """
    work = Nested()
    work.client = serve(work, in_progress="conflict")
    work.client.send(key=KEY)
    (answer,) = work.inner
    assert (answer.status, answer.problem) == (409, "still-running")
    assert 1 <= int(answer.get("Retry-After") or 0) <= 30
    assert work.runs == 1


def test_other_request_is_refused_while_the_first_runs(serve: Any, backend: Backend) -> None:
    """
    A different request with the key is told so at once, not that it should retry.
    """
    work = Nested(body=b'{"amount": 2}')
    work.client = serve(work, backend.storage)
    work.client.send(key=KEY)
    assert work.inner[0].problem == "key-reused"


def test_wait_that_runs_out_is_a_conflict(serve: Any, backend: Backend) -> None:
    """
    A duplicate whose wait runs out gets 409, and the running one is left alone.
    """
    work = Nested()
    work.client = serve(work, backend.storage, in_progress="wait", wait=0.05)
    first = work.client.send(key=KEY)
    assert (work.inner[0].status, work.inner[0].problem) == (409, "still-running")
    assert_replay(first, work.client.send(key=KEY))


def test_surplus_waiter_is_answered_at_once(serve: Any) -> None:
    """
    Where too many wait already, a duplicate gets its 409 without waiting.
    """
    work = Nested()
    work.client = serve(work, in_progress="wait", wait=3600, max_waiting=0)
    work.client.send(key=KEY)
    assert work.inner[0].problem == "still-running"


def test_waiting_duplicates_get_the_first_answer(serve: Any, backend: Backend) -> None:
    """
    With `wait`, duplicates sent together all get the answer of the one that ran.
    """
    work = Work()
    client = serve(work, backend.storage, in_progress="wait", wait=20)
    answers = run_together(4, lambda: client.send(key=KEY))
    assert [answer.body for answer in answers] == [b'{"run": 1}'] * 4  # type: ignore[union-attr]
    assert work.runs == 1


def test_waiting_duplicate_takes_over_a_released_key(serve: Any) -> None:
    """
    When the running one gives the key back, exactly one of those who wait runs the work.
    """
    go_on = threading.Event()
    runs = Counter()

    def handler(call: Call) -> Reply:
        if runs.increment() == 1:
            assert go_on.wait(30)
            return Reply(503)
        return Reply(body=b"second")

    client = serve(handler, in_progress="wait", wait=20, max_waiting=3)
    answers: list[Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.send(key=KEY))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: client.manager.guard._slots._value == 0)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 503]
    assert runs.value == 2


def test_requests_together_run_once(serve: Any, backend: Backend) -> None:
    """
    Of many equal requests at the same instant exactly one runs.
    """
    work = Work()
    client = serve(work, backend.storage)
    answers = run_together(8, lambda: client.send(key=KEY))
    assert work.runs == 1
    assert {answer.status for answer in answers} <= {200, 202}  # type: ignore[union-attr]


# What cannot be kept


def stream(*chunks: bytes) -> Iterator[bytes]:
    yield from chunks


def test_stream_passes_and_is_never_run_again(serve: Any, backend: Backend) -> None:
    """
    A stream reaches the first client whole; a retry is told that it is not replayable.
    """
    runs = Counter()

    def handler(call: Call) -> Reply:
        runs.increment()
        return Reply(headers=[("Content-Type", "text/plain")], body=stream(b"a" * 9, b"b"))

    first, second = send_twice(serve(handler, backend.storage))
    assert (first.status, first.body) == (200, b"a" * 9 + b"b")
    assert first.get("X-Idempotency-Key") == KEY
    assert (second.status, second.problem) == (409, "not-replayable")
    assert runs.value == 1


def test_stream_with_a_failing_status_releases_the_key(serve: Any) -> None:
    """
    A streamed 5xx is a failure like any other: the retry runs the work.
    """
    runs = Counter()

    def handler(call: Call) -> Reply:
        runs.increment()
        return Reply(503, headers=[("Content-Type", "text/plain")], body=stream(b"later"))

    assert [answer.status for answer in send_twice(serve(handler))] == [503, 503]
    assert runs.value == 2


def test_stream_that_breaks_leaves_the_outcome_unknown(serve: Any, backend: Backend) -> None:
    """
    A stream that fails midway is not repeated before its lease is over.
    """
    runs = Counter()

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise BrokenHandlerError

    def handler(call: Call) -> Reply:
        if runs.increment() == 1:
            return Reply(headers=[("Content-Type", "text/plain")], body=broken())
        return Reply()

    client = serve(handler, backend.storage, on_abandoned="refuse")
    client.send(key=KEY)
    assert client.send(key=KEY).json()["status"] == "in_progress"
    backend.age(31)
    assert client.send(key=KEY).problem == "outcome-unknown"
    assert runs.value == 1


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 409)])
def test_body_over_the_cap_is_delivered_but_not_kept(serve: Any, size: int, status: int) -> None:
    """
    A body of the limit's size is replayed; a larger one goes out whole and is not replayable.
    """
    work = Work(headers=[("Content-Type", "text/plain")], body=b"x" * size)
    first, second = send_twice(serve(work, max_response_bytes=1000))
    assert first.body == b"x" * size
    assert second.status == status
    assert work.runs == 1


def test_redacted_response_is_what_is_replayed(serve: Any, backend: Backend) -> None:
    """
    The first client gets the whole answer; stored, and replayed, is what the redactor left of it.
    """
    seen: list[RecordedResponse] = []

    def redact(response: RecordedResponse) -> RecordedResponse:
        seen.append(response)
        return response._replace(body=response.body.replace(b"4111", b"****"))

    work = Work(body=b'{"card": "4111"}', status=201)
    first, second = send_twice(serve(work, backend.storage, redactor=redact))
    assert first.body == b'{"card": "4111"}'
    assert second.is_replay
    assert (second.status, second.body) == (201, b'{"card": "****"}')
    (response,) = seen
    assert (response.operation_type, response.status) == ("POST /orders", 201)
    assert [name for name, _ in response.headers] == ["Content-Type"]


def leave_unsaid(response: RecordedResponse) -> Any:
    return None


def grow(response: RecordedResponse) -> RecordedResponse:
    return response._replace(body=b"x" * 1001)


def make_text(response: RecordedResponse) -> Any:
    return response._replace(body="text")  # type: ignore[arg-type]


def quote(response: RecordedResponse) -> RecordedResponse:
    raise ValueError(response.body.decode())


@pytest.mark.parametrize("redact", [leave_unsaid, grow, make_text, quote])
def test_response_that_cannot_be_redacted_is_not_kept(
    serve: Any, backend: Backend, redact: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Where redaction fails nothing is stored or logged of the answer, and the work never runs again.
    """
    work = Work(body=b'{"card": "4111"}')
    client = serve(work, backend.storage, redactor=redact, max_response_bytes=1000)
    first, second = send_twice(client)
    assert (first.status, first.body) == (200, b'{"card": "4111"}')
    assert (second.status, second.problem) == (409, "not-replayable")
    assert work.runs == 1
    assert "could not be redacted" in caplog.text
    assert "4111" not in caplog.text


# Dead and displaced executors


def exit_once(runs: Counter) -> Any:
    def handler(call: Call) -> Reply:
        if runs.increment() == 1:
            raise SystemExit(1)
        return Reply(body=b"second")

    return handler


def test_interrupted_work_runs_again_after_its_lease(serve: Any, backend: Backend) -> None:
    """
    An exit passes through unchanged; the key is held for the lease, then the work runs again.
    """
    runs = Counter()
    client = serve(exit_once(runs), backend.storage)
    with pytest.raises(SystemExit):
        client.send(key=KEY)
    assert client.manager.heartbeat.held_count == 0
    assert client.send(key=KEY).json()["status"] == "in_progress"
    backend.age(31)
    assert client.send(key=KEY).body == b"second"
    assert client.send(key=KEY).is_replay
    assert runs.value == 2


def test_interrupted_work_is_refused_until_somebody_decides(serve: Any, backend: Backend) -> None:
    """
    With `refuse` abandoned work never runs again; a decision about it is replayed.
    """
    runs = Counter()
    client = serve(exit_once(runs), backend.storage, on_abandoned="refuse")
    with pytest.raises(SystemExit):
        client.send(key=KEY)
    backend.age(31)
    answer = client.send(key=KEY)
    assert (answer.status, answer.problem) == (409, "outcome-unknown")
    backend.age(10 * 86_400)
    assert client.send(key=KEY).problem == "outcome-unknown"
    assert runs.value == 1


def test_abandoned_work_is_reconciled_by_the_project(serve: Any, backend: Backend) -> None:
    """
    The project's callback sees the retry that asks, and what it found is replayed from then on.
    """
    runs = Counter()
    seen: list[str] = []

    def reconcile(abandoned: AbandonedOperation) -> Verdict:
        environ = getattr(abandoned.subject, "META", abandoned.subject)
        seen.append(f"{environ['REQUEST_METHOD']} {abandoned.operation_type}")
        return abandoned.found({"charge": 7}, status=201)

    client = serve(exit_once(runs), backend.storage, on_abandoned="refuse", reconcile=reconcile)
    with pytest.raises(SystemExit):
        client.send(key=KEY)
    assert client.send(key=KEY).json()["status"] == "in_progress"
    backend.age(31)
    first, second = send_twice(client)
    for answer in (first, second):
        assert answer.is_replay
        assert (answer.status, answer.json()) == (201, {"charge": 7})
    assert seen == ["POST POST /orders"]
    assert runs.value == 1


@pytest.mark.parametrize(
    ("decide", "answers", "expected_runs"),
    [
        (AbandonedOperation.run_again, ["second", "second"], 2),
        (AbandonedOperation.ask_person, ["outcome-unknown", "outcome-unknown"], 1),
        (lambda abandoned: 1 / 0, ["outcome-unknown", "outcome-unknown"], 1),
    ],
    ids=["run again", "ask a person", "broken callback"],
)
def test_abandoned_work_goes_on_as_the_callback_says(
    serve: Any, backend: Backend, decide: Any, answers: list[str], expected_runs: int
) -> None:
    """
    Told to run again it runs once more; left to a person, or to a broken callback, it never does.
    """
    runs = Counter()
    client = serve(exit_once(runs), backend.storage, on_abandoned="refuse", reconcile=decide)
    with pytest.raises(SystemExit):
        client.send(key=KEY)
    backend.age(31)
    seen = []
    for _ in answers:
        answer = client.send(key=KEY)
        seen.append(answer.problem or answer.body.decode())
        backend.age(0.1)
    assert seen == answers
    assert runs.value == expected_runs


class Displaced:
    """
    A handler whose first run loses its claim to the second; used by one thread.
    """

    def __init__(self, backend: Backend, fails: bool) -> None:
        self.client: HttpClient | None = None
        self.second: Response | None = None
        self.runs = 0
        self._backend = backend
        self._fails = fails

    def __call__(self, call: Call) -> Reply:
        self.runs += 1
        if self.runs > 1:
            return Reply(body=b"second")
        self._backend.age(31)
        assert self.client is not None
        self.second = self.client.send(key=KEY)
        if self._fails:
            raise BrokenHandlerError
        return Reply(body=b"first")


@pytest.mark.parametrize("fails", [False, True])
def test_displaced_executor_changes_nothing(serve: Any, backend: Backend, fails: bool) -> None:
    """
    Who lost the claim still answers its own client, and neither overwrites nor releases.
    """
    work = Displaced(backend, fails)
    work.client = serve(work, backend.storage)
    first = work.client.send(key=KEY)
    assert first.status == (500 if fails else 200)
    assert fails or first.body == b"first"
    assert work.second is not None
    assert work.second.body == b"second"
    third = work.client.send(key=KEY)
    assert third.is_replay
    assert third.body == b"second"
    assert work.runs == 2


# Who asks


def by_header(name: str) -> Any:
    def read(request: Any) -> str | None:
        environ = getattr(request, "META", request)
        value: str | None = environ.get(f"HTTP_{name}")
        return value

    return read


def test_users_with_equal_keys_are_apart(serve: Any, backend: Backend) -> None:
    """
    Two users who send the same key and request get two executions and two answers.
    """
    work = Work()
    client = serve(work, backend.storage, principal=by_header("TEST_USER"))
    alice, bob = [("Test-User", "alice")], [("Test-User", "bob")]
    assert client.send(key=KEY, headers=alice).json() == {"run": 1}
    assert client.send(key=KEY, headers=bob).json() == {"run": 2}
    assert client.send(key=KEY, headers=alice).json() == {"run": 1}


def test_foreign_key_looks_unused(serve: Any) -> None:
    """
    A key that somebody else holds, for whatever request, looks like an unused one.
    """
    client = serve(Work(headers=JSON, body=b"{}"), principal=by_header("TEST_USER"))
    client.send(key=KEY, headers=[("Test-User", "alice")])
    known = client.send(key=KEY, body=b"[1]", headers=[("Test-User", "bob")])
    unused = client.send(key="unused", body=b"[1]", headers=[("Test-User", "bob")])
    assert known.status == unused.status == 200
    assert known.body == unused.body
    assert {name for name, _ in known.headers} == {name for name, _ in unused.headers}


def test_tenants_with_equal_keys_are_apart(serve: Any, backend: Backend) -> None:
    """
    Two tenants that the project's resolver tells apart never share an outcome.
    """
    client = serve(Work(), backend.storage, tenant=by_header("TEST_TENANT"))
    answers = [
        client.send(key=KEY, headers=[("Test-Tenant", tenant)]).json()["run"]
        for tenant in ("one", "two", "one")
    ]
    assert answers == [1, 2, 1]


def test_client_cannot_choose_its_tenant(serve: Any) -> None:
    """
    Without a resolver a header that claims a tenant has no effect.
    """
    client = serve(Work())
    client.send(key=KEY, headers=[("X-Tenant-Id", "one")])
    assert client.send(key=KEY, headers=[("X-Tenant-Id", "two")]).is_replay


@pytest.mark.parametrize(
    ("principal", "first", "second"),
    [("a:b", "c", "b:c"), ("a", "b:c", "b:c"), ("a%3Ab", "c", "c"), ("user:a", "x", "x")],
)
def test_separators_in_scopes_do_not_collide(
    serve: Any, principal: str, first: str, second: str
) -> None:
    """
    A principal or a key that holds a separator never meets another pair.
    """
    client = serve(Work(), principal=by_header("TEST_USER"))
    client.send(key=first, headers=[("Test-User", principal)])
    for other in ("a", "a:b"):
        if (principal, first) != (other, second):
            answer = client.send(key=second, headers=[("Test-User", other)])
            assert not answer.is_replay


def test_unresolved_credentials_are_apart(serve: Any, backend: Backend) -> None:
    """
    Bearers that nobody resolved to a user are told apart by their credentials.
    """
    client = serve(Work(), backend.storage)
    answers = [
        client.send(key=KEY, headers=headers).json()["run"]
        for headers in (
            [("Authorization", "Bearer one")],
            [("Authorization", "Bearer two")],
            [("Authorization", "Bearer one")],
            [],
        )
    ]
    assert answers == [1, 2, 1, 3]


def test_credential_headers_follow_the_setting(serve: Any) -> None:
    """
    The setting names the headers whose credentials count; others do not.
    """
    client = serve(Work(), credential_headers=["X-Api-Key"])
    answers = [
        client.send(key=KEY, headers=headers).json()["run"]
        for headers in (
            [("X-Api-Key", "one")],
            [("X-Api-Key", "two")],
            [("X-Api-Key", "one"), ("Authorization", "Bearer new")],
        )
    ]
    assert answers == [1, 2, 1]


def test_rotated_token_is_the_same_principal(serve: Any) -> None:
    """
    A resolved user who comes with a new token gets the replay.
    """
    client = serve(Work(), principal=by_header("TEST_USER"))
    user = ("Test-User", "alice")
    client.send(key=KEY, headers=[user, ("Authorization", "Bearer old")])
    assert client.send(key=KEY, headers=[user, ("Authorization", "Bearer new")]).is_replay


@pytest.mark.parametrize("headers", [[], [("Authorization", "Bearer made-up")]])
def test_unknown_caller_leaves_no_record_where_that_is_set(
    serve: Any, backend: Backend, headers: list[tuple[str, str]]
) -> None:
    """
    With `ignore` a key of somebody whom nobody has authenticated is as if it were not there.
    """
    work = Work()
    client = serve(work, backend.storage, principal=by_header("TEST_USER"), anonymous="ignore")
    for number in (1, 2):
        answer = client.send(key=KEY, headers=headers)
        assert answer.json() == {"run": number}
        assert answer.get("X-Idempotency-Key") is None
    assert backend.storage.get_stats().idempotency_keys == 0
    assert_replay(*send_twice(client, headers=[("Test-User", "alice"), *headers]))


@pytest.mark.parametrize(
    "settings", [{"anonymous": "refuse"}, {"anonymous": "ignore", "require_key": True}]
)
def test_unknown_caller_is_refused_where_that_is_set(
    serve: Any, backend: Backend, settings: dict[str, Any]
) -> None:
    """
    With `refuse`, and wherever work may not run unprotected, an unknown caller's key gets 403.
    """
    work = Work()
    client = serve(work, backend.storage, principal=by_header("TEST_USER"), **settings)
    refused = client.send(key=KEY)
    assert (refused.status, refused.problem) == (403, "unauthenticated")
    assert backend.storage.get_stats().idempotency_keys == 0
    assert work.runs == 0
    assert client.send(key=KEY, headers=[("Test-User", "alice")]).status == 200


def test_anonymous_callers_share_a_scope_whatever_their_cookies(serve: Any) -> None:
    """
    Without a user and credentials the key is the secret; a cookie alone changes nothing.
    """
    client = serve(Work())
    client.send(key=KEY, headers=[("Cookie", "a=1")])
    assert client.send(key=KEY, headers=[("Cookie", "a=2")]).is_replay


def test_credentials_are_not_stored(serve: Any, backend: Backend) -> None:
    """
    The record names a resolved user and nothing of credentials that nobody resolved.
    """
    work = Deferring()
    client = serve(work, backend.storage, principal=by_header("TEST_USER"))
    client.send(key="a", headers=[("Authorization", "Basic YTpi")])
    client.send(key="b", headers=[("Test-User", "alice")])
    users = [client.manager.check_idempotency(key).user_id for key in work.keys]
    assert users == [None, "alice"]


# What the response says of its own keeping


@pytest.mark.parametrize(
    ("status", "directive", "runs"),
    [
        (200, "no", 2),
        (503, "yes", 1),
        (409, "YES", 1),
        (500, "60", 1),
        (200, "0", 1),
        (200, "-1", 1),
        (500, "0", 2),
        (500, "-1", 2),
        (200, "?", 1),
    ],
)
def test_directive_beats_the_status(serve: Any, status: int, directive: str, runs: int) -> None:
    """
    The directive of a response decides whether it is kept; one that means nothing does not.
    """
    work = Work(status=status, headers=[*JSON, ("X-Idempotency-Store", directive)])
    answers = send_twice(serve(work))
    assert [answer.status for answer in answers] == [status, status]
    assert work.runs == runs
    assert all(answer.get("X-Idempotency-Store") is None for answer in answers)


def test_directive_sets_the_retention(serve: Any, backend: Backend) -> None:
    """
    A number keeps the response for so many seconds.
    """
    work = Work(headers=[*JSON, ("X-Idempotency-Store", "60")])
    client = serve(work, backend.storage)
    client.send(key=KEY)
    backend.age(59)
    assert client.send(key=KEY).is_replay
    backend.age(2)
    assert not client.send(key=KEY).is_replay


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [("POST", "/orders", None), ("GET", "/orders", KEY), ("POST", "/admin/x", KEY)],
    ids=["no-key", "not-covered", "exempt"],
)
def test_directive_is_not_sent_where_nothing_is_kept(
    serve: Any, method: str, path: str, key: str | None
) -> None:
    """
    A client never sees the directive, with a key or without.
    """
    work = Work(headers=[*JSON, ("X-Idempotency-Store", "no"), ("X-Own", "1")])
    answer = serve(work).send(method, path, key=key)
    assert (answer.get("X-Own"), answer.get("X-Idempotency-Store")) == ("1", None)


# The storage fails


def test_request_runs_unprotected_while_the_storage_is_down(
    serve: Any, faulty: FaultyStorage
) -> None:
    """
    By default the work runs, marked as unprotected, and the application can know.
    """
    faulty.refuse("claim_operation", 9)
    protected: list[bool] = []

    def handler(call: Call) -> Reply:
        protected.append(call.is_idempotent)
        return Reply()

    first, second = send_twice(serve(handler, faulty))
    for answer in (first, second):
        assert answer.status == 200
        assert answer.get("X-Idempotency-Status") == "unprotected"
        assert answer.get("X-Idempotency-Key") == KEY
        assert not answer.is_replay
    assert protected == [False, False]
    assert faulty.calls == ["claim_operation", "claim_operation"]


@pytest.mark.redis
@pytest.mark.parametrize("backend", ["redis"], indirect=True)
def test_unreachable_redis_breaks_no_request(serve: Any, backend: Backend) -> None:
    """
    With Redis out of reach keyed requests run unprotected, or are refused where that is set.
    """
    work = Work()
    with backend.break_off() as storage:
        answer = serve(work, storage).send(key=KEY)
        assert (answer.status, answer.get("X-Idempotency-Status")) == (200, "unprotected")
        strict = serve(work, storage, on_storage_error="reject")
        assert strict.send(key=KEY).problem == "storage-unavailable"
        assert strict.send().status == 200
    assert work.runs == 2


def test_protected_request_is_not_marked(serve: Any, faulty: FaultyStorage) -> None:
    """
    While the storage works, no answer says that it is unprotected.
    """
    assert all(
        answer.get("X-Idempotency-Status") is None for answer in send_twice(serve(Work(), faulty))
    )


@pytest.mark.parametrize("status", [0, 200, 503])
def test_unprotected_request_ends_quietly(serve: Any, faulty: FaultyStorage, status: int) -> None:
    """
    However an unprotected request ends, the storage is not asked for what it cannot have.
    """
    faulty.refuse("claim_operation", 9)

    def handler(call: Call) -> Reply:
        assert call.defer()
        call.set_result(1)
        if status == 0:
            raise BrokenHandlerError
        return Reply(status)

    assert serve(handler, faulty).send(key=KEY).status == (status or 500)
    assert faulty.calls == ["claim_operation"]


def test_request_is_refused_while_the_storage_is_down_by_setting(
    serve: Any, faulty: FaultyStorage
) -> None:
    """
    With `reject` the work does not run and the client is told when to come back.
    """
    faulty.refuse("claim_operation", 9)
    work = Work()
    client = serve(work, faulty, on_storage_error="reject")
    answer = client.send(key=KEY)
    assert (answer.status, answer.problem) == (503, "storage-unavailable")
    assert int(answer.get("Retry-After") or 0) >= 1
    assert work.runs == 0
    assert client.send().status == 200
    faulty.heal()
    assert client.send(key=KEY).status == 200


@pytest.mark.parametrize("setting", ["proceed", "reject"])
def test_storage_that_refuses_is_not_asked(
    serve: Any, faulty: FaultyStorage, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    While the breaker is open nothing is sent; the answers are those of an outage, said once.
    """
    work = Work()
    recorder = EventRecorder()
    client = serve(work, faulty, on_storage_error=setting, hooks=[recorder])
    faulty.is_refusing = True
    answers = [client.send(key=f"{KEY}{number}") for number in range(3)]
    if setting == "proceed":
        assert [each.json()["run"] for each in answers] == [1, 2, 3]
        assert {each.get("X-Idempotency-Status") for each in answers} == {"unprotected"}
    else:
        assert {(each.status, each.problem) for each in answers} == {(503, "storage-unavailable")}
        assert {each.get("Retry-After") for each in answers} == {"1"}
        assert work.runs == 0
    assert [each.get("X-Idempotency-Key") for each in answers] == [f"{KEY}{n}" for n in range(3)]
    assert faulty.calls == []
    assert caplog.text.count("is left alone for a moment") == 1
    assert client.manager.events.flush(30)
    told = recorder.of_type(StorageUnprotected)
    assert len({event.key_hash for event in told}) == (3 if setting == "proceed" else 0)
    faulty.is_refusing = False
    assert_replay(*send_twice(client))


def test_storage_that_refuses_changes_nothing_for_the_application(
    serve: Any, faulty: FaultyStorage
) -> None:
    """
    Beside a storage that is left alone the application sees what it always sees.
    """
    seen: list[Any] = []

    def work(call: Call) -> Reply:
        seen.append((call.key, call.body, call.defer()))
        call.set_result({"ignored": True})
        return Reply(201, [*JSON, ("X-Idempotency-Store", "yes")], b"{}")

    client = serve(work, faulty)
    for faulty.is_refusing in (True, False):
        answer = client.send(key=KEY, body=b"[1]")
        assert (answer.status, answer.body) == (201, b"{}")
        assert answer.get("X-Idempotency-Store") is None
    assert seen[0] == seen[1]
    assert seen[0][:2] == (KEY, b"[1]")
    assert faulty.find_operation(seen[0][2]) is not None


def test_half_a_body_is_refused_while_the_storage_refuses(
    serve: Any, faulty: FaultyStorage
) -> None:
    """
    A body that ended early is not carried out, whether or not anything can be claimed.
    """
    work = Work()
    client = serve(work, faulty)
    faulty.is_refusing = True
    for content_type in ("application/json", "multipart/form-data; boundary=x"):
        answer = client.send(key=KEY, content_type=content_type, CONTENT_LENGTH="99")
        assert (answer.status, answer.problem) == (400, "incomplete-body")
    assert work.runs == 0


def test_upload_passes_while_the_storage_refuses(serve: Any, faulty: FaultyStorage) -> None:
    """
    An upload reaches the application whole, whether or not anything can be claimed.
    """
    seen: list[bytes] = []

    def work(call: Call) -> Reply:
        seen.append(call.body)
        return Reply()

    client = serve(work, faulty)
    body = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n"
    faulty.is_refusing = True
    answer = client.send(key=KEY, content_type="multipart/form-data; boundary=x", body=body)
    assert (answer.status, seen) == (200, [body])


def test_refused_request_leaves_no_claim_behind(serve: Any, faulty: FaultyStorage) -> None:
    """
    With `reject`, a claim whose reply was lost is given back, so that the retry can run.
    """
    faulty.lose_reply("claim_operation", 9)
    work = Work()
    client = serve(work, faulty, on_storage_error="reject")
    assert client.send(key=KEY).status == 503
    faulty.heal()
    assert client.send(key=KEY).json() == {"run": 1}


def test_outcome_is_recorded_though_the_reply_to_the_claim_was_lost(
    serve: Any, faulty: FaultyStorage
) -> None:
    """
    Work that ran because the reply was lost is recorded all the same.
    """
    faulty.lose_reply("claim_operation", 9)
    work = Work()
    client = serve(work, faulty)
    first = client.send(key=KEY)
    assert first.get("X-Idempotency-Status") == "unprotected"
    faulty.heal()
    assert_replay(first, client.send(key=KEY))
    assert work.runs == 1


def test_client_gets_its_answer_though_the_outcome_cannot_be_written(
    serve: Any, faulty: FaultyStorage
) -> None:
    """
    The answer goes out at once, the key stays held, and the outcome is written later.
    """
    faulty.refuse("complete_operation", 9)
    work = Work()
    client = serve(work, faulty)
    first = client.send(key=KEY)
    assert (first.status, first.get("X-Idempotency-Status")) == (200, None)
    assert client.send(key=KEY).json()["status"] == "in_progress"
    faulty.heal()
    wait_until(lambda: client.manager.heartbeat.unwritten_count == 0)
    assert_replay(first, client.send(key=KEY))
    assert work.runs == 1


@pytest.mark.parametrize(
    "error",
    [
        StorageUnavailableError("faulty", "down"),
        StorageTimeoutError("faulty", "lost"),
        CorruptRecordError("faulty", "k", "damaged"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failure_reaches_the_client_though_the_key_cannot_be_released(
    serve: Any, faulty: FaultyStorage, error: StorageError
) -> None:
    """
    A storage that fails while a key is released changes nothing of the answer.
    """
    faulty.refuse("release_operation", error=error)
    assert serve(Work(status=503), faulty).send(key=KEY).status == 503


@pytest.mark.parametrize("policy", ["proceed", "reject"])
def test_corrupt_record_is_refused_whatever_the_setting(
    serve: Any, faulty: FaultyStorage, policy: str
) -> None:
    """
    A record that cannot be read is never run again: it is no outage.
    """
    faulty.refuse("claim_operation", error=CorruptRecordError("faulty", "k", "newer format"))
    work = Work()
    answer = serve(work, faulty, on_storage_error=policy).send(key=KEY)
    assert (answer.status, answer.problem) == (503, "unreadable-record")
    assert int(answer.get("Retry-After") or 0) >= 1
    assert work.runs == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"9h[200,[]]\n",
        b'1j"\\ud800"',
        b"1h999\n\n",
        b"1h200\nCont\xc3\xa9nt: a\n\n",
        b"1h200\nLink: \xed\xa0\x80\n\n",
    ],
)
def test_outcome_that_cannot_be_sent_is_refused(
    serve: Any, backend: Backend, payload: bytes
) -> None:
    """
    A damaged outcome, or one that a newer version has written, is refused, not run again.
    """
    work = Deferring()
    client = serve(work, backend.storage)
    client.send(key=KEY)
    backend.storage.settle_operation(work.keys[0] or "", payload, failed=False)
    answer = client.send(key=KEY)
    assert (answer.status, answer.problem) == (503, "unreadable-record")
    assert len(work.keys) == 1


def test_operation_is_handed_on_though_the_storage_fails(serve: Any, faulty: FaultyStorage) -> None:
    """
    By default work can be handed on while the storage is down; its lease decides.
    """
    faulty.refuse("defer_operation", 9)
    work = Deferring()
    first, second = send_twice(serve(work, faulty))
    assert first.json() == {"queued": True}
    assert second.json()["status"] == "in_progress"


def test_operation_is_not_handed_on_by_setting(serve: Any, faulty: FaultyStorage) -> None:
    """
    With `reject` an operation that cannot be handed on is an error, so that no worker starts.
    """
    faulty.refuse("defer_operation", 9)
    errors: list[str] = []

    def handler(call: Call) -> Reply:
        try:
            call.defer()
        except Exception as error:  # noqa: BLE001 - the test looks at what it is
            errors.append(type(error).__name__)
        return Reply(503)

    serve(handler, faulty, on_storage_error="reject").send(key=KEY)
    assert errors == ["StorageUnavailableError"]


def test_operation_of_somebody_else_is_not_handed_on(serve: Any) -> None:
    """
    Who lost the claim is told so when it hands the work on.
    """
    backend = MemoryBackend()
    errors: list[str] = []

    class Losing(Displaced):
        def __call__(self, call: Call) -> Reply:
            reply = super().__call__(call)
            if self.runs == 2 and not errors and self.second is not None:
                with pytest.raises(Exception, match="claim") as caught:
                    call.defer()
                errors.append(type(caught.value).__name__)
            return reply

    work = Losing(backend, fails=False)
    work.client = serve(work, backend.storage)
    work.client.send(key=KEY)
    assert errors == ["ClaimLostError"]
