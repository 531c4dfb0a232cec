from __future__ import annotations

import io
import json
import random
import tracemalloc
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks import fingerprint
from dotmac_tasks.errors import SerializationError
from dotmac_tasks.fingerprint import (
    FINGERPRINT_VERSION,
    FilePart,
    body_digest,
    parts_digest,
    request_fingerprint,
    selected_digest,
    stream_digest,
)
from support.streams import Trickle

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


# Numbers that every reader takes for the same, however they are written.
EXACT_NUMBERS = st.integers(-(2**63), 2**63) | st.sampled_from(
    [0.5, -0.5, 1.0, 100.0, 1e22, -2.25, 0.1, 1e-7, 10**40, 12345678.875]
)
EXACT_VALUES = st.recursive(
    st.none() | st.booleans() | EXACT_NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def spell(value: Any, chance: random.Random) -> str:
    """
    Write a value as JSON in one of the many ways that mean the same.
    """
    space = chance.choice(["", " ", "\n\t", "\r\n  "])
    if isinstance(value, str):
        text = "".join(spell_character(it, chance) for it in value)
        return f'{space}"{text}"{space}'
    if isinstance(value, dict):
        pairs = chance.sample(list(value.items()), len(value))
        members = [f"{spell(name, chance)}:{spell(it, chance)}" for name, it in pairs]
        return f"{space}{{{','.join(members) or space}}}{space}"
    if isinstance(value, list):
        return f"{space}[{','.join(spell(it, chance) for it in value) or space}]{space}"
    if isinstance(value, float):
        exact = Decimal(repr(value))
        plain = f"{exact:f}" if exact % 1 else f"{int(exact)}.0"
        return space + chance.choice([repr(value), f"{exact:e}", f"{exact:E}", f"{plain}0"])
    return space + json.dumps(value) + space


def spell_character(it: str, chance: random.Random) -> str:
    if it < " " or it in '"\\' or "\ud800" <= it <= "\udfff" or chance.random() < 0.3:
        return json.dumps(it)[1:-1]
    return it


@given(EXACT_VALUES, st.randoms(use_true_random=False))
def test_json_in_any_spelling_has_one_digest(value: Any, chance: random.Random) -> None:
    """
    Order of members, spaces, escapes, exponents and trailing zeros change nothing.
    """
    one, other = spell(value, chance).encode(), spell(value, chance).encode()
    assert body_digest(JSON, one) == body_digest(JSON, other)


@given(EXACT_VALUES, EXACT_VALUES, st.randoms(use_true_random=False))
def test_json_of_another_value_has_another_digest(
    left: Any, right: Any, chance: random.Random
) -> None:
    """
    No spelling makes two values meet; a whole number and a decimal are two.
    """
    digests = [body_digest(JSON, spell(value, chance).encode()) for value in (left, right)]
    assert (digests[0] == digests[1]) == (canon(left) == canon(right))


def canon(value: Any) -> str:
    return ascii(sort_members(value))


def sort_members(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: sort_members(value[name]) for name in sorted(value)}
    return [sort_members(it) for it in value] if isinstance(value, list) else value


def test_many_members_may_come_in_any_order() -> None:
    """
    An object of thousands of members is one value in every order.
    """
    names = [f"member {number}" for number in range(5_000)]
    shuffled = random.Random(7).sample(names, len(names))
    one, other = (
        json.dumps({name: {name: 1} for name in order}).encode() for order in (names, shuffled)
    )
    assert one != other
    assert body_digest(JSON, one) == body_digest(JSON, other)


def test_lone_surrogate_is_a_value() -> None:
    """
    Half a pair, which is no text elsewhere, is itself and nothing else.
    """
    digests = {
        body_digest(JSON, text) for text in (b'"\\ud800"', b'"\\uD800"', b'"\\udc00"', b'"?"')
    }
    assert len(digests) == 3


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
            self.seek(0)

        def seek(self, offset: int) -> None:
            assert offset == 0
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


GOLDEN_FORM = multipart(
    field("a", b"1"),
    file("f", "x.png", bytes(range(256)) * 4),
    field("a", b"2"),
    (b"Content-Disposition: form-data; name=n; filename*=UTF-8''y\r\nX-More: 1", b""),
    field("token", b"t"),
)


@pytest.mark.parametrize(
    ("content_type", "body", "ignored", "expected"),
    [
        (
            JSON,
            b'{"b": [1, 2.50, 1e2, true, null], "a": "\\u00e9"}',
            [],
            "a643afc50b03bc5d986cdc17431efb9284edde0175412fad92a98db83a22fb50",
        ),
        (
            JSON,
            b'{"a": 1, "a": 2}',
            [],
            "2696460ea2bb4ddc21b8262c0eb1e77e2faf5c914ef726bace6afc58d8cb8f88",
        ),
        (
            JSON + "; charset=utf-16",
            b"{}",
            [],
            "1faa013134545c5c8bfa9b9ec2c8e56cf24ed1695d590cea4c5417f3d1e39595",
        ),
        (JSON, b"", [], "aeeb33bdac0e6c18181e6324b1168990d249de2271b514d7bcea66fffcb78651"),
        (
            JSON,
            b'"' + b"x" * 1_048_576 + b'"',
            [],
            "5dbd4e54b06b05ef1152a3ee56487f5ab22cadf8c1ae5732f534ccc6a54a4446",
        ),
        (
            FORM,
            b"a=1&token=2&b=%20&a=3",
            [],
            "f6485792614872efa73e28fa59b5a7f17ca534694831613e678481e8fdb86b36",
        ),
        (
            FORM,
            b"a=1&token=2&b=%20&a=3",
            ["token"],
            "20274e235e90497a47b465f2b328c24f36fe8091ae40d57591714032373280bf",
        ),
        (*GOLDEN_FORM, [], "229ed358f875b459b23a18b97c85a44f494d0db252569eb0509d682647c270a3"),
        (
            *GOLDEN_FORM,
            ["token"],
            "006e529bf1bda5d136e4dd1126192b97a998ceb6a933b75f632dc1fe4b28da4e",
        ),
        (
            GOLDEN_FORM[0],
            GOLDEN_FORM[1][:-1] + b"!",
            [],
            "3aee0850209bb4520ea4827934e4fefeaddc39c4a40e788433405fde64c5d8d5",
        ),
        (
            GOLDEN_FORM[0],
            GOLDEN_FORM[1][:-9],
            [],
            "d0af89f3368003c048885b7d60c88746c982821d2820288b76d802631f66f638",
        ),
        (*multipart(), [], "6470964355e81219abc8db7ca2dbe1aacf9574c29c6f711c57f3212407e9d543"),
        ("", b"any bytes", [], "2fe4fae24c9e5ae2546d86a2011819fa9fc31d6d9cc27777ed74319235ef5b17"),
    ],
)
def test_digests_stay_what_they_are(
    content_type: str, body: bytes, ignored: list[str], expected: str
) -> None:
    """
    A record that was stored before an upgrade is still the record of the same request.
    """
    assert body_digest(content_type, body, ignored_fields=ignored).hex() == expected
    stream = Trickle(body, 7)
    assert stream_digest(content_type, stream, ignored_fields=ignored).hex() == expected


def test_fingerprints_stay_what_they_are() -> None:
    """
    Version 1 of a fingerprint is these digits, in every release that makes it.
    """
    content_type, body = GOLDEN_FORM
    assert FINGERPRINT_VERSION == 1
    assert request_fingerprint(*BASE) == "f4a7c2d6006963bb515ceb00940c23ee"
    digest = body_digest(content_type, body)
    assert (
        request_fingerprint("POST", "/u/", "", content_type, digest)
        == "dee5c59a8433fa15a314c7cd69cf8b15"
    )
    assert (
        selected_digest({"b": [1, "é"], "a": None}).hex()
        == "ff4b2008eff4e26fe11b6a5b5f54eb9dcba609e7b9e8e6c963e523f2d6249c1a"
    )
    assert (
        selected_digest("é").hex()
        == "5f950ffdf3c27950a84604d2f7353bb309b3e207bea0c42bb1fe08f47ccdf5b5"
    )
    assert (
        selected_digest(b"\xff").hex()
        == "0e593423c07fd422865194af33d9d2316dfdfc84181f311b2aa1f00f185ebfa3"
    )
