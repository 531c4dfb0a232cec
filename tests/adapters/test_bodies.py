"""
Which bodies are the same request and what becomes of large ones, whichever adapter serves them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dotmac_tasks import spool
from support.backends import MemoryBackend
from support.concurrency import Counter
from support.forms import Part, make_form
from support.full_disk import FullDiskFile
from support.http_clients import Call, HttpClient, Reply, Response

KEY = "5a1e2f"
BYTES = "application/octet-stream"
FORM = "application/x-www-form-urlencoded"
# Beyond what is kept in memory, within what Django lets a view read at once.
LARGE = 2_000_000

Send = Callable[..., Response]


@pytest.fixture
def send(serve: Any) -> Send:
    """
    Send a request with the key to a handler that answers how long a body it found.
    """

    def handler(call: Call) -> Reply:
        return Reply(headers=[("Content-Type", "text/plain")], body=b"%d" % len(call.body))

    client: HttpClient = serve(handler)

    def send_one(**request: Any) -> Response:
        return client.send(**{"key": KEY, **request})

    return send_one


# Forms

PHOTO = Part("photo", b"\x00" * 5000, "a.png", "image/png")
TITLE = Part("title", b"holiday")
FIRST_TAG, SECOND_TAG = Part("tag", b"sea"), Part("tag", b"sun")


@pytest.mark.parametrize(
    "retry",
    [
        make_form(TITLE, PHOTO, FIRST_TAG, SECOND_TAG, boundary="another"),
        make_form(FIRST_TAG, PHOTO, SECOND_TAG, TITLE),
    ],
    ids=["new boundary", "other order"],
)
def test_same_form_is_recognised(send: Send, retry: dict[str, Any]) -> None:
    """
    The same parts behind a new boundary, or in another order of names, are the same form.
    """
    send(**make_form(TITLE, PHOTO, FIRST_TAG, SECOND_TAG))
    assert send(**retry).is_replay


@pytest.mark.parametrize(
    "parts",
    [
        (TITLE, PHOTO._replace(content=b"\x00" * 4999 + b"\x01"), FIRST_TAG, SECOND_TAG),
        (TITLE, PHOTO._replace(content=b"\x00" * 4999), FIRST_TAG, SECOND_TAG),
        (TITLE, PHOTO._replace(filename="b.png"), FIRST_TAG, SECOND_TAG),
        (TITLE, PHOTO._replace(name="picture"), FIRST_TAG, SECOND_TAG),
        (TITLE, PHOTO._replace(content_type="image/gif"), FIRST_TAG, SECOND_TAG),
        (TITLE._replace(content=b"work"), PHOTO, FIRST_TAG, SECOND_TAG),
        (TITLE, PHOTO, SECOND_TAG, FIRST_TAG),
        (TITLE, PHOTO, FIRST_TAG),
        (TITLE, PHOTO, PHOTO, FIRST_TAG, SECOND_TAG),
    ],
    ids=[
        "one byte",
        "shorter file",
        "file name",
        "name of the file's field",
        "type of the file",
        "field",
        "order within a name",
        "value less",
        "file twice",
    ],
)
def test_other_form_is_refused(send: Send, parts: tuple[Part, ...]) -> None:
    """
    Any other name, file, byte or order of the values of one name is another form.
    """
    send(**make_form(TITLE, PHOTO, FIRST_TAG, SECOND_TAG))
    assert send(**make_form(*parts)).problem == "key-reused"


def test_large_upload_is_protected(send: Send) -> None:
    """
    A file far beyond what is kept in memory reaches the application whole, and each byte counts.
    """
    content = os.urandom(LARGE)
    form = make_form(Part("film", content, "a.mp4"))
    first = send(**form)
    assert first.body == b"%d" % len(form["body"])
    assert send(**make_form(Part("film", content, "a.mp4"), boundary="another")).is_replay
    other = make_form(Part("film", content[:-1] + bytes([content[-1] ^ 1]), "a.mp4"))
    assert send(**other).problem == "key-reused"


@pytest.mark.parametrize(
    ("retry", "is_same"),
    [
        (b"a=1&b=2&a=3", True),
        (b"a=3&b=2&a=1", False),
        (b"b=2&a=1&a=3", False),
        (b"a=1&a=3", False),
        (b"a=1&b=2&a=3&", False),
        (b"a=%31&b=2&a=3", False),
    ],
)
def test_urlencoded_form_counts_byte_by_byte(send: Send, retry: bytes, is_same: bool) -> None:
    """
    Names, values, their order and their spelling all count.
    """
    send(body=b"a=1&b=2&a=3", content_type=FORM)
    assert send(body=retry, content_type=FORM).is_replay is is_same


# JSON

QUERY = (
    b'{"query": "mutation($id: ID!) {\\n  pay(id: $id) { ok }\\n}", '
    b'"operationName": null, "variables": {"id": "7", "amounts": [1, 2.5]}}'
)


@pytest.mark.parametrize(
    ("retry", "is_same"),
    [
        (
            b'{"variables":{"amounts":[1,2.50],"id":"\\u0037"},"operationName":null,'
            b'"query":"mutation($id: ID!) {\\n  pay(id: $id) { ok }\\n}"}',
            True,
        ),
        (QUERY.replace(b'"7"', b'"8"'), False),
        (QUERY.replace(b'"7"', b"7"), False),
        (QUERY.replace(b"[1,", b"[1.0,"), False),
        (QUERY.replace(b"\\n  pay", b"\\n pay"), False),
        (QUERY.replace(b'"operationName": null, ', b""), False),
        (b"\xef\xbb\xbf" + QUERY, False),
    ],
    ids=["spelling", "value", "type", "decimal", "text", "member", "byte order mark"],
)
def test_graphql_request_counts_by_value(send: Send, retry: bytes, is_same: bool) -> None:
    """
    The spelling of an operation and its variables does not count, each of their values does.
    """
    send(body=QUERY)
    assert send(body=retry).is_replay is is_same


@pytest.mark.parametrize("charset", ["utf-8", '"UTF-8"'])
def test_charset_of_json_is_part_of_the_content_type(send: Send, charset: str) -> None:
    """
    JSON that names its charset counts by value; without the name it is another content type.
    """
    kind = f"application/json; charset={charset}"
    send(body=b'{"a": "\\u00e9"}', content_type=kind)
    assert send(body='{"a":"é"}'.encode(), content_type="application/json;charset=utf-8").is_replay
    assert send(body=b'{"a": "\\u00e9"}').problem == "key-reused"


def test_json_in_another_charset_counts_byte_by_byte(send: Send) -> None:
    """
    What UTF-16 says is not read, so that only the same bytes are the same request.
    """
    kind = "application/json; charset=utf-16"
    send(body='{"a": 1}'.encode("utf-16"), content_type=kind)
    assert send(body='{"a": 1}'.encode("utf-16"), content_type=kind).is_replay
    assert send(body='{"a":1}'.encode("utf-16"), content_type=kind).problem == "key-reused"


# Where a body ends


def test_nothing_is_a_body(send: Send) -> None:
    """
    A request without a body is protected, and is another one than a request with one.
    """
    assert send(body=b"").body == b"0"
    assert send(body=b"").is_replay
    assert send(body=b" ").problem == "key-reused"


def test_what_follows_the_declared_length_is_not_read(send: Send) -> None:
    """
    Bytes beyond the declared length belong to the next request and count for nothing.
    """
    assert send(body=b"[1][2]", CONTENT_LENGTH="3").body == b"3"
    assert send(body=b"[1]").is_replay


@pytest.mark.parametrize("size", [5000, LARGE])
def test_upload_that_breaks_off_claims_nothing(send: Send, size: int) -> None:
    """
    Of a form whose client hung up nothing is claimed; the whole one runs later.
    """
    form = make_form(Part("film", b"\x00" * size, "a.mp4"))
    cut = {**form, "body": form["body"][: size // 2]}
    answer = send(**cut, CONTENT_LENGTH=str(len(form["body"])))
    assert (answer.status, answer.problem) == (400, "incomplete-body")
    whole = send(**form)
    assert (whole.status, whole.is_replay) == (200, False)


# Temporary files


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A machine whose disk has no room for a body.
    """
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(spool, "SpooledTemporaryFile", FullDiskFile)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("policy", ["proceed", "reject"])
def test_body_that_finds_no_room_is_refused(
    serve: Any, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """
    With a full disk the work does not run unprotected: the client is told to come back.
    """
    runs = Counter()

    def handler(call: Call) -> Reply:
        runs.increment()
        return Reply()

    backend = MemoryBackend()
    client = serve(handler, backend.storage, on_storage_error=policy)
    form = make_form(Part("film", b"\x00" * LARGE, "a.mp4"))
    with caplog.at_level(logging.ERROR, "dotmac_tasks"):
        answer = client.send(key=KEY, **form)
    assert (answer.status, answer.problem) == (503, "body-not-kept")
    assert answer.get("Retry-After") == "30"
    assert runs.value == 0
    assert backend.storage.get_stats().idempotency_keys == 0
    (record,) = [record for record in caplog.records if "ENOSPC" in record.getMessage()]
    assert "/" not in record.getMessage()
    assert record.exc_info is None
    assert KEY not in record.getMessage()


@pytest.mark.usefixtures("full_disk")
def test_small_body_needs_no_disk(send: Send) -> None:
    """
    With a full disk requests that fit into memory are served and protected.
    """
    assert send().status == 200
    assert send().is_replay


# Large answers

CAP = 1_048_576


@pytest.mark.parametrize("way", ["stream", "whole"])
def test_answer_over_the_cap_reaches_the_first_client_whole(serve: Any, way: str) -> None:
    """
    Of 3 MB with a cap of 1 MB the client gets every byte once, with the application's headers.
    """
    piece = os.urandom(100_000)
    closed: list[str] = []

    def pieces() -> Iterator[bytes]:
        try:
            for _ in range(30):
                yield piece
        finally:
            closed.append("closed")

    headers = [
        ("Content-Type", "video/mp4"),
        ("ETag", '"film"'),
        ("Set-Cookie", "a=b"),
        ("X-Own", "1"),
    ]

    def handler(call: Call) -> Reply:
        return Reply(201, headers, pieces() if way == "stream" else piece * 30)

    client = serve(handler, max_response_bytes=CAP)
    plain, first, again = client.send(), client.send(key=KEY), client.send(key=KEY)
    assert first.body == plain.body == piece * 30
    assert first.headers == [*plain.headers, ("X-Idempotency-Key", KEY)]
    assert (again.status, again.problem) == (409, "not-replayable")
    assert closed == (["closed", "closed"] if way == "stream" else [])


def test_events_go_out_as_they_come(serve: Any) -> None:
    """
    Of server-sent events each is with the client before the next is made.
    """
    log: list[str] = []

    def events() -> Iterator[bytes]:
        for number in range(3):
            log.append(f"made {number}")
            yield b"data: %d\n\n" % number

    def handler(call: Call) -> Reply:
        return Reply(headers=[("Content-Type", "text/event-stream")], body=events())

    client = serve(handler)
    answer = client.send(key=KEY, on_chunk=lambda chunk: log.append(f"got {chunk[6:7].decode()}"))
    assert answer.get("Content-Type") == "text/event-stream"
    assert log == ["made 0", "got 0", "made 1", "got 1", "made 2", "got 2"]
    assert client.send(key=KEY).problem == "not-replayable"
