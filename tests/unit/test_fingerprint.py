from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks import fingerprint
from dotmac_tasks.errors import SerializationError
from dotmac_tasks.fingerprint import (
    DigestingStream,
    FilePart,
    Spool,
    body_digest,
    parts_digest,
    request_fingerprint,
    selected_digest,
    stream_digest,
)

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
FIELD = 'Content-Disposition: form-data; name="{}"'
FILE = 'Content-Disposition: form-data; name="{}"; filename="{}"\r\nContent-Type: {}'


def field(name: str, value: bytes) -> tuple[bytes, bytes]:
    return FIELD.format(name).encode(), value


def file(name: str, filename: str, content: bytes, kind: str = "image/png") -> tuple[bytes, bytes]:
    return FILE.format(name, filename, kind).encode(), content


def multipart(*parts: tuple[bytes, bytes], boundary: str = "b0undary") -> tuple[str, bytes]:
    """
    Build a form as clients do; return its content type and its bytes.
    """
    mark = b"--" + boundary.encode()
    body = b"".join(mark + b"\r\n" + head + b"\r\n\r\n" + it + b"\r\n" for head, it in parts)
    return f'multipart/form-data; boundary="{boundary}"', body + mark + b"--\r\n"


def digest_of(*parts: tuple[bytes, bytes], boundary: str = "b0undary") -> bytes:
    return body_digest(*multipart(*parts, boundary=boundary))


class Trickle(io.BytesIO):
    """
    A stream that hands out a few bytes at a time and remembers what it was asked for.
    """

    def __init__(self, data: bytes, step: int = 3) -> None:
        super().__init__(data)
        self.step = step
        self.asked = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size > 0
        self.asked += size
        return super().read(min(size, self.step))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (b'{"a":1,"b":[1,2]}', b' { "b" : [1, 2],\n "a": 1 } '),
        (b'{"a":1.10}', b'{"a":1.1}'),
        (b'{"a":1e2}', b'{"a":100.0}'),
        (b'{"a":"\\u00e9"}', '{"a":"é"}'.encode()),
        (b'{"d":"2026-01-02","a":1}', b'{"a":1,"d":"2026-01-02"}'),
        (b"[" * 99 + b"]" * 99, b" [" * 99 + b"]" * 99),
        (b"[" + b"[]," * 300 + b"1]", b"[ " + b"[]," * 300 + b"1]"),
    ],
)
def test_json_counts_by_value(left: bytes, right: bytes) -> None:
    """
    Order of members, spaces and spellings of one number or text do not matter.
    """
    assert body_digest(JSON, left) == body_digest("application/vnd.api+json", right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (b'{"a":1}', b'{"a":2}'),
        (b'{"a":1}', b'{"a":1.0}'),
        (b'{"a":1}', b'{"a":true}'),
        (b'{"a":1}', b'{"a":"1"}'),
        (b'{"a":null}', b"{}"),
        (b"[1,2]", b"[2,1]"),
        (b'{"amount":1,"amount":1000}', b'{"amount":1000}'),
        (b"1.00000000000000001", b"1.0"),
        (b"9007199254740993", b"9007199254740992"),
        (b"1e999", b"1e998"),
        (b"1e-999", b"0.0"),
        (b"0e99999999999999999999", b"0.0"),
        (b"-0", b"0"),
        (b"-0.0", b"0.0"),
        (b"[-0.5]", b"[0.5]"),
        (b"[-0.5, 7]", b"[-0.5, 8]"),
        (b"NaN", b"Infinity"),
        (b'{"a":1', b'{"a":1 '),
        (b'{"a":1} x', b'{"a":1}'),
        (b"\xff", b"\xfe"),
        (b"\xef\xbb\xbf1", b"1"),
        (b"", b" "),
        (b"[" * 500 + b"]" * 500, b"[ " * 500 + b"]" * 500),
        (b"1" * 5000, b"1" * 5000 + b" "),
    ],
)
def test_json_that_differs_or_is_ambiguous_counts_apart(left: bytes, right: bytes) -> None:
    """
    Values that some reader could tell apart do not share a digest.
    """
    assert body_digest(JSON, left) != body_digest(JSON, right)
    assert body_digest(JSON, left) == body_digest(JSON, left)


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 500_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'["' + b'\\"' * 200_000,
        b'["' + b"]" * 300 + b'"' + b"[" * 300,
        b"[" * 150 + b"}" * 150,
    ],
    ids=["lists", "objects", "unterminated", "brackets in text", "unbalanced"],
)
def test_json_bomb_counts_by_its_bytes(bomb: bytes) -> None:
    """
    Depth and malice raise nothing; the bytes count.
    """
    assert body_digest(JSON, bomb) == body_digest("text/plain", bomb)


def test_json_survives_a_nearly_full_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A parser that runs out of stack makes the bytes count.
    """

    def exhausted(text: str) -> Any:
        raise RecursionError

    monkeypatch.setattr(fingerprint, "_decode", exhausted)
    assert body_digest(JSON, b"{}") == body_digest("text/plain", b"{}")


def test_large_json_counts_by_its_bytes() -> None:
    """
    Beyond the limit nothing is parsed, in one piece as well as in a stream.
    """
    large = b'"' + b"x" * (1024 * 1024) + b'"'
    assert body_digest(JSON, large) == body_digest("", large)
    assert stream_digest(JSON, io.BytesIO(large)) == body_digest("", large)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON_VALUES), st.integers(1, 4))
def test_json_digest_ignores_how_it_is_written(value: dict[str, Any], indent: int) -> None:
    """
    A value that JSON holds exactly has one digest in every order and indentation.
    """
    text = json.dumps(value)
    other = json.dumps(dict(reversed(value.items())), indent=indent)
    exact = not any(word in text for word in ("Infinity", "-0.0"))
    assert (body_digest(JSON, text.encode()) == body_digest(JSON, other.encode())) or not exact


@given(JSON_VALUES, JSON_VALUES)
def test_json_digest_tells_values_apart(left: Any, right: Any) -> None:
    """
    Different values have different digests.
    """
    texts = [json.dumps(value, sort_keys=True).encode() for value in (left, right)]
    digests = [body_digest(JSON, text) for text in texts]
    assert (digests[0] == digests[1]) == (texts[0] == texts[1])


@given(
    st.binary(max_size=200), st.sampled_from([JSON, FORM, "multipart/form-data; boundary=x", ""])
)
def test_stream_has_the_digest_of_its_bytes(body: bytes, content_type: str) -> None:
    """
    Whatever the bytes and however they come, body and stream agree.
    """
    for ignored in ((), ("a",)):
        expected = body_digest(content_type, body, ignored_fields=ignored)
        assert stream_digest(content_type, Trickle(body), ignored_fields=ignored) == expected


def test_other_bodies_count_by_their_bytes() -> None:
    """
    Text and forms without ignored fields are the bytes that they are.
    """
    assert body_digest("text/plain", b"a") == body_digest("", b"a") == body_digest(FORM, b"a")
    assert body_digest("text/plain", b"a") != body_digest("text/plain", b"b")


def test_form_leaves_out_ignored_fields() -> None:
    """
    Another token is the same form; another value, order or name of a field is not.
    """
    ignored = {"token"}

    def digest(body: bytes) -> bytes:
        return body_digest(FORM + "; charset=utf-8", body, ignored_fields=ignored)

    same = digest(b"a=1&b=2")
    assert digest(b"token=x&a=1&b=2") == digest(b"a=1&token=y&b=2") == digest(b"token&a=1&b=2")
    assert digest(b"token=x&a=1&b=2") == same
    assert same not in {digest(b"a=1&b=3"), digest(b"b=2&a=1"), digest(b"tokens=x&a=1&b=2")}


def test_multipart_ignores_the_boundary() -> None:
    """
    The same parts behind another boundary are the same form.
    """
    parts = (field("a", b"1"), file("f", "x.png", b"\x00\r\n--b0undar\r\n" * 9))
    assert digest_of(*parts) == digest_of(*parts, boundary="other")


@pytest.mark.parametrize(
    "parts",
    [
        (field("a", b"2"), file("f", "x.png", b"data")),
        (field("b", b"1"), file("f", "x.png", b"data")),
        (field("a", b"1"), file("g", "x.png", b"data")),
        (field("a", b"1"), file("f", "y.png", b"data")),
        (field("a", b"1"), file("f", "x.png", b"datA")),
        (field("a", b"1"), file("f", "x.png", b"data", kind="image/gif")),
        (field("a", b"1"),),
        (field("a", b"1"), field("f", b"data")),
        (field("a", b"1"), field("a", b"1"), file("f", "x.png", b"data")),
        (field("a", b"1"), file("f", "x.png", b"data"), file("f", "", b"x")),
        (field("a", b"1"), file("f", "x.png", b"data"), file("g", "", b"")),
        (
            field("a", b"1"),
            (FILE.format("f", "x.png", "image/png").encode() + b"\r\nX-More: 1", b"data"),
        ),
        (
            field("a", b"1"),
            (
                b"Content-Disposition: form-data; name=f; filename=x.png; filename*=UTF-8''y\r\n"
                b"Content-Type: image/png",
                b"data",
            ),
        ),
        (
            field("a", b"1"),
            (
                b"Content-Disposition: form-data; name=f; filename*=UTF-8''x.png\r\n"
                b"Content-Type: image/png",
                b"data",
            ),
        ),
    ],
)
def test_multipart_tells_every_fact_of_a_part(parts: tuple[tuple[bytes, bytes], ...]) -> None:
    """
    Name, file name, content type, further headers, number and every byte of the parts count.
    """
    assert digest_of(*parts) != digest_of(field("a", b"1"), file("f", "x.png", b"data"))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("form-data; name=\"a\"; name*=utf-8''b", "form-data; name=\"a\"; name*=utf-8''c"),
        ('form-data; name="a"; name*0="b"', 'form-data; name="a"; name*0="c"'),
        ('form-data; name="a"; filename*0="b"', 'form-data; name="a"; filename*0="c"'),
        ('form-data; name="b"; name="a"', 'form-data; name="c"; name="a"'),
        ('form-data; name="a;b', 'form-data; name="a;c'),
        ('form-data; name="a"; filename=a b', 'form-data; name="a"; filename=a c'),
        ('form-data; name="a"', 'attachment; name="a"'),
        ('form-data; name="a"', 'form-data; Name="a"'),
    ],
)
def test_multipart_tells_names_apart_that_some_reader_does(left: str, right: str) -> None:
    """
    Where the parts of a disposition could be read in two ways, all of it counts.
    """
    twins = [f"Content-Disposition: {text}".encode() for text in (left, right)]
    assert digest_of((twins[0], b"1")) != digest_of((twins[1], b"1"))
    assert digest_of((twins[0], b"1")) == digest_of((twins[0], b"1"), boundary="other")


def test_multipart_ignores_no_field_that_may_have_another_name() -> None:
    """
    A field that some reader takes for an amount does not count as a token.
    """
    head = b"Content-Disposition: form-data; name=\"token\"; name*=utf-8''amount"
    forms = [multipart((head, amount)) for amount in (b"1", b"1000")]
    assert body_digest(*forms[0], ignored_fields=["token"]) != body_digest(
        *forms[1], ignored_fields=["token"]
    )


def test_multipart_keeps_the_order_of_equal_names_only() -> None:
    """
    Two values of one name may not swap; two fields may.
    """
    one, two, other = field("a", b"1"), field("a", b"2"), field("b", b"1")
    assert digest_of(one, two) != digest_of(two, one)
    assert digest_of(one, other, two) == digest_of(other, one, two)


def test_multipart_leaves_out_ignored_fields_but_not_files() -> None:
    """
    A token's value does not count, whereas a file of that name does.
    """

    def digest(*parts: tuple[bytes, bytes]) -> bytes:
        return body_digest(*multipart(*parts), ignored_fields=["token"])

    form = field("a", b"1")
    assert digest(field("token", b"x"), form) == digest(form, field("token", b"y")) == digest(form)
    assert digest(file("token", "x", b""), form) != digest(form)


def test_multipart_takes_what_clients_send() -> None:
    """
    Blank lines around the parts, padding, escaped names and no parts at all are well formed.
    """
    content_type, body = multipart(field("a", b"1"))
    plain = body_digest(content_type, body)
    assert body_digest(content_type, b"\r\n" * 9 + body + b"\r\n") == plain
    assert body_digest(content_type, body.replace(b"y\r\nC", b"y \t\r\nC")) == plain
    escaped, bare = digest_of(field(r"\"x\\", b"1")), digest_of(field("x", b"1"))
    assert escaped != bare
    assert digest_of() != body_digest("text/plain", multipart()[1])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no parts",
        b"--x\r\n" + FIELD.format("a").encode() + b"\r\n\r\n1",
        b"--x\r\n" + FIELD.format("a").encode(),
        b"--xy\r\n\r\n\r\n--x--",
        b"--x" + b"y" * 20_000,
        b"--x" + b" " * 20_000,
        b"--x\r\nno colon\r\n\r\n1\r\n--x--",
        b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--",
        b"--x\r\nContent-Type: text/plain\r\n\r\n1\r\n--x--",
        b"--x\r\n\r\n1\r\n--x--",
        b"--x\r\nA: " + b"y" * 20_000 + b"\r\n\r\n1\r\n--x--",
        b"--x\r\nA: " + b"y" * 20_000,
        (b"--x\r\n" + FIELD.format("a").encode() + b"\r\n\r\n1\r\n") * 10_001 + b"--x--",
        b"first" * 9 + b"--x\r\n" + FIELD.format("a").encode() + b"\r\n\r\n1\r\n--x--",
        b"--x\r\n" + FIELD.format("a").encode() + b"\r\n\r\n1\r\n--x--\r\n--x\r\n",
        b"--x\r\n" + FIELD.format("a").encode() + b"\r\n\r\n1--x\r\nB: c\r\n\r\n2\r\n--x--",
        b"--x\r\n" + (FIELD.format("a").encode() + b"\r\n") * 2 + b"\r\n1\r\n--x--",
        b"--x\r\n" + FIELD.format("a").replace(":", " :").encode() + b"\r\n\r\n1\r\n--x--",
    ],
    ids=range(19),
)
def test_malformed_multipart_counts_by_its_bytes(body: bytes) -> None:
    """
    What cannot be told into parts is compared byte by byte, in one piece as well as in a stream.
    """
    content_type = "multipart/form-data; boundary=x"
    assert body_digest(content_type, body) == body_digest("text/plain", body)
    assert stream_digest(content_type, Trickle(body, 1000)) == body_digest("text/plain", body)


def test_long_names_fill_no_memory() -> None:
    """
    Of a form's names nothing is kept but digests.
    """

    class Form:
        """
        Many parts, made as they are read; used by one thread.
        """

        def __init__(self) -> None:
            self.parts = iter(range(500))

        def read(self, size: int) -> bytes:
            number = next(self.parts, None)
            if number is None:
                return b""
            return b"--x\r\n" + FIELD.format(str(number) * 5_000).encode() + b"\r\n\r\n1\r\n"

    tracemalloc.start()
    try:
        stream_digest("multipart/form-data; boundary=x", Form())
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_multipart_without_a_boundary_counts_by_its_bytes() -> None:
    """
    Without a boundary there are no parts.
    """
    assert body_digest("multipart/form-data", b"--\r\n") == body_digest("", b"--\r\n")


@pytest.mark.parametrize("tail", ["; boundary=y", "; charset", " x; a=b", "; a=1; A=2"])
def test_ambiguous_content_type_counts_as_it_is(tail: str) -> None:
    """
    Where the content type can be read in two ways, it and its body count by their characters.
    """
    content_type, body = multipart(field("a", b"1"), boundary="x")
    assert body_digest(content_type + tail, body) == body_digest("text/plain", body)
    twins = [request_fingerprint("POST", "/", "", it + tail, b"") for it in (content_type, "b/c")]
    assert twins[0] != twins[1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "content_type",
    ["a; b=c" + " " * 200_000 + "x", "a;" + " " * 200_000 + "x", "a;" + "b" * 200_000 + " x"],
    ids=["value", "separator", "name"],
)
def test_long_content_type_is_read_in_linear_time(content_type: str) -> None:
    """
    Nobody keeps a server busy with a header.
    """
    assert body_digest(content_type, b"{}") == body_digest("text/plain", b"{}")


def test_json_in_another_charset_counts_by_its_bytes() -> None:
    """
    A text may be another one in another charset; UTF-8 by name is no other charset.
    """
    escaped, plain = b'{"a":"\\u00e9"}', '{"a":"é"}'.encode()
    for charset in ("latin-1", "utf-7", "utf-16"):
        kind = f"{JSON}; charset={charset}"
        assert body_digest(kind, escaped) != body_digest(kind, plain)
        assert body_digest(kind, plain) == stream_digest(kind, io.BytesIO(plain))
    for charset in ("UTF-8", '"utf-8"', "utf8"):
        kind = f"{JSON}; charset={charset}"
        assert body_digest(kind, escaped) == body_digest(kind, plain)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "é"]), st.none() | st.just("x.bin"), st.binary()),
        max_size=5,
    ),
    st.integers(1, 50),
)
def test_multipart_digest_is_the_same_by_all_ways(
    parts: list[tuple[str, str | None, bytes]], step: int
) -> None:
    """
    In one piece, in drops, or already parsed by a framework: one form has one digest.
    """
    kind = "application/octet-stream"
    texts = [(name, it.decode("latin-1")) for name, filename, it in parts if filename is None]
    files = [
        FilePart(name, filename, kind, io.BytesIO(it))
        for name, filename, it in parts
        if filename is not None
    ]
    content_type, body = multipart(
        *(
            field(name, it.decode("latin-1").encode())
            if filename is None
            else file(name, filename, it, kind)
            for name, filename, it in parts
        ),
        boundary="0123456789abcdef",
    )
    whole = body_digest(content_type, body)
    assert stream_digest(content_type, Trickle(body, step)) == whole
    assert parts_digest(texts, files) == whole


def test_parsed_form_leaves_files_rewound_and_ignores_what_it_should() -> None:
    """
    A file is read from its beginning and left there; an ignored field does not count.
    """
    content = io.BytesIO(b"data")
    content.seek(2)
    files = [FilePart("f", "x.png", "image/png", content)]
    digest = parts_digest([("token", "1"), ("a", "1")], files, ignored_fields=["token"])
    assert content.tell() == 0
    assert digest == digest_of(field("a", b"1"), file("f", "x.png", b"data"))


def test_selection_counts_by_value_and_kind() -> None:
    """
    What a selector picks is the same in any order, and text, bytes and data stay apart.
    """
    assert selected_digest({"a": 1, "b": 2}) == selected_digest({"b": 2, "a": 1})
    picked: list[Any] = ["1", b"1", 1, [1], {"a": 1}, {"a": 2}, '"1"', b'"1"', None]
    assert len({selected_digest(it) for it in picked}) == len(picked)


def test_selection_without_a_form_is_refused() -> None:
    """
    An object is not compared by its address.
    """
    with pytest.raises(SerializationError):
        selected_digest(object())


BASE = ("POST", "/orders/", "a=1", "application/json; charset=utf-8", b"\x01" * 32)


def test_request_fingerprint_is_short_and_stable() -> None:
    """
    Equal requests have equal fingerprints of 32 hex digits; a boundary does not count.
    """
    assert request_fingerprint(*BASE) == request_fingerprint(*BASE)
    assert len(request_fingerprint(*BASE)) == 32
    forms = {
        request_fingerprint("POST", "/", "", f"Multipart/Form-Data; boundary={mark}", b"")
        for mark in ("a", "b")
    }
    assert len(forms) == 1
    assert request_fingerprint("POST", "/", "", "", b"") != ""


@pytest.mark.parametrize(
    "request_facts",
    [
        ("PATCH", *BASE[1:]),
        ("POST", "/orders", *BASE[2:]),
        ("POST", "/%6frders/", *BASE[2:]),
        ("POST", "/orders/a", "=1", *BASE[3:]),
        ("POST", "/orders/", "a=2", *BASE[3:]),
        ("POST", "/orders/", "", *BASE[3:]),
        (*BASE[:3], "text/json; charset=utf-8", BASE[4]),
        (*BASE[:3], "application/json; charset=latin-1", BASE[4]),
        (*BASE[:3], "application/json; charset=utf-8; version=2", BASE[4]),
        (*BASE[:3], "", BASE[4]),
        (*BASE[:4], b"\x02" * 32),
        ("POST", "/\ud800", *BASE[2:]),
    ],
)
def test_request_fingerprint_tells_every_fact(request_facts: Any) -> None:
    """
    Method, path, query, content type and body each count.
    """
    assert request_fingerprint(*request_facts) != request_fingerprint(*BASE)


@pytest.mark.parametrize("length", [0, 1, 10, 300_000])
def test_spool_reads_exactly_the_length(length: int) -> None:
    """
    It never asks for a byte beyond the length, and hands on all of them, rewound.
    """
    data = bytes(range(256)) * 1200
    stream = Trickle(data + b"next request", step=50_000)
    spool = Spool(stream, length, "text/plain", max_memory=1000)
    assert stream.tell() == length == spool.length
    assert spool.is_complete
    assert spool.file.read() == data[:length]
    assert spool.digest == body_digest("text/plain", data[:length])
    spool.close()
    spool.close()
    assert spool.file.closed


def test_spool_reads_a_terminated_stream_to_its_end() -> None:
    """
    Without a length it stops where the stream does.
    """
    spool = Spool(Trickle(b'{"a": 1}'), None, JSON)
    assert (spool.length, spool.is_complete) == (8, True)
    assert spool.digest == body_digest(JSON, b'{"a":1}')
    spool.close()


def test_spool_tells_of_a_stream_that_ends_early() -> None:
    """
    Fewer bytes than announced are no complete body.
    """
    spool = Spool(Trickle(b"abc"), 10, FORM, ignored_fields=["token"])
    assert (spool.length, spool.is_complete) == (3, False)
    spool.close()


def test_spool_removes_its_file_when_reading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The stream's error passes, and no temporary file stays open.
    """
    made: list[Any] = []
    original = fingerprint.SpooledTemporaryFile

    def remember(**options: Any) -> Any:
        made.append(original(**options))
        return made[-1]

    class Broken:
        def read(self, size: int, /) -> bytes:
            raise OSError("the client went away")

    monkeypatch.setattr(fingerprint, "SpooledTemporaryFile", remember)
    with pytest.raises(OSError, match="went away"):
        Spool(Broken(), None, JSON)
    assert made[0].closed


@pytest.mark.parametrize("content_type", [JSON, "text/plain"])
def test_body_that_somebody_else_reads_is_digested(content_type: str) -> None:
    """Whatever sizes and lines a body is read in, its digest is that of all its bytes."""
    body = b'{"a": 1,\n "b": [2, 3],\n "c": 4}'
    source = io.BytesIO(body)
    stream = DigestingStream(source, content_type)
    assert not stream.seekable()
    assert stream.read(3) + stream.readline() + stream.readline(2) + stream.read() == body
    assert stream.read() == b""
    assert stream.length == len(body)
    assert stream.digest() == body_digest(content_type, body)
    stream.close()
    assert source.closed


def test_part_of_a_body_has_the_digest_of_the_part() -> None:
    """What nobody has read does not count yet."""
    stream = DigestingStream(io.BytesIO(b"one two"), "text/plain")
    assert stream.read(3) == b"one"
    assert (stream.length, stream.digest()) == (3, body_digest("text/plain", b"one"))
    stream.read()
    assert stream.digest() == body_digest("text/plain", b"one two")
