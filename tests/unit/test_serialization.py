from __future__ import annotations

from collections import OrderedDict
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks.errors import SerializationError
from dotmac_tasks.serialization import (
    MAX_DEPTH,
    TOO_LARGE,
    ErrorOutcome,
    HttpOutcome,
    JsonOutcome,
    Tombstone,
    bound_payload,
    decode_payload,
    encode_error,
    encode_response,
    encode_result,
    encode_tombstone,
)


class Level(IntEnum):
    LOW = 1


class Safe(str):
    __slots__ = ()


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth - 1):
        value = [value]
    return value


def same(left: Any, right: Any) -> bool:
    """
    Compare with types, which == does not: 1, 1.0 and True are equal to it.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


RESULTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**2000), 2**2000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(RESULTS)
def test_result_comes_back_as_it_was(value: Any) -> None:
    """
    Every accepted result is decoded to an equal value of the same types.
    """
    outcome = decode_payload(encode_result(value))
    assert isinstance(outcome, JsonOutcome)
    assert same(outcome.value, value)


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}, 0.0])
def test_falsy_result_comes_back_as_itself(value: Any) -> None:
    """
    Nothing that is falsy turns into something else.
    """
    outcome = decode_payload(encode_result(value))
    assert isinstance(outcome, JsonOutcome)
    assert same(outcome.value, value)


@pytest.mark.parametrize(
    ("value", "path", "type_name", "hint"),
    [
        ((1, 2), "$", "tuple", "Return a list"),
        ({"a": [Level.LOW]}, "$.a[0]", "Level", "plain base type"),
        ({"a": Safe("x")}, "$.a", "Safe", "plain base type"),
        (OrderedDict(), "$", "OrderedDict", "plain base type"),
        ({"a": float("nan")}, "$.a", "float", "not finite"),
        ([float("-inf")], "$[0]", "float", "not finite"),
        ({"a b": {1: 2}}, "$['a b']", "int", "mapping key"),
        (object(), "$", "object", "no JSON form"),
        (b"x", "$", "bytes", "no JSON form"),
        (2**3000, "$", "int", "too large"),
        ({"a": [0, "\ud800"]}, "$.a[1]", "str", "surrogate"),
        ({"a": {"\udfff": 1}}, "$.a", "str", "surrogate"),
    ],
)
def test_result_that_would_change_is_refused(
    value: Any, path: str, type_name: str, hint: str
) -> None:
    """
    What JSON would not give back unchanged is refused, with its place and a hint.
    """
    with pytest.raises(SerializationError, match=hint) as caught:
        encode_result(value)
    assert (caught.value.path, caught.value.type_name) == (path, type_name)


def test_result_is_bounded_in_depth() -> None:
    """
    The deepest accepted result decodes; one level more, or a cycle, is refused.
    """
    assert decode_payload(encode_result(nested(MAX_DEPTH))) == JsonOutcome(nested(MAX_DEPTH))
    cycle: list[Any] = []
    cycle.append(cycle)
    for value in (nested(MAX_DEPTH + 1), cycle):
        with pytest.raises(SerializationError, match="nested deeper"):
            encode_result(value)


# What a response may hold, and more: an adapter hands on what its framework let through.
NAMES = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True)
CONTROLS = "".join(map(chr, (*range(9), *range(10, 32), 127)))
VALUES = st.text(st.characters(codec="utf-8", exclude_characters=CONTROLS), max_size=20)


@given(
    st.integers(100, 599),
    st.lists(st.tuples(NAMES, VALUES), max_size=4),
    st.binary(),
)
def test_response_comes_back_byte_for_byte(
    status: int, headers: list[tuple[str, str]], body: bytes
) -> None:
    """
    Status, repeated headers in their order, and the body survive, line feeds included.
    """
    assert decode_payload(encode_response(status, headers, body)) == HttpOutcome(
        status, headers, body
    )


def test_response_holds_its_body_raw() -> None:
    """
    The body is stored as it is, so that it costs no more than its length.
    """
    payload = encode_response(200, [("A", "b")], b"\x00\nbody")
    assert payload == b"1h200\nA: b\n\n\x00\nbody"


@pytest.mark.parametrize(
    "header",
    [
        ("A:", "b"),
        ("A\n", "b"),
        ("A", "b\n"),
        ("A", "b\nC: d"),
        ("A\r", "b"),
        ("A", "b\rC: d"),
        ("\xc4", "b"),
        ("", "b"),
        ("A B", "c"),
        ("A\x00", "b"),
        ("A", "b\x00"),
        ("A", "b\x1b[31m"),
        ("A", "b\x7f"),
    ],
)
def test_header_that_would_become_another_is_refused(header: tuple[str, str]) -> None:
    """
    No header can pass for two, or for one with another name.
    """
    with pytest.raises(ValueError, match=r"a line of its own|none of HTTP"):
        encode_response(200, [header], b"")


@pytest.mark.parametrize("status", [0, 99, 600, 999])
def test_status_of_no_response_is_refused(status: int) -> None:
    """
    What not every framework can send again is not stored.
    """
    with pytest.raises(ValueError, match="no status"):
        encode_response(status, [], b"")


def test_header_that_is_no_text_is_refused() -> None:
    """
    A lone surrogate cannot be sent, so it is not stored.
    """
    with pytest.raises(ValueError, match="surrogates"):
        encode_response(200, [("A", "\ud800")], b"")


def test_escapes_of_json_are_read() -> None:
    """
    A result that another program wrote with escapes is as good as one without.
    """
    assert decode_payload(b'1j"\\ud83d\\ude00"') == JsonOutcome("\U0001f600")


def test_tombstone_and_error_come_back() -> None:
    """
    Reason and text survive; text that UTF-8 cannot hold is escaped rather than refused.
    """
    assert decode_payload(encode_tombstone("stream")) == Tombstone("stream")
    assert decode_payload(encode_error("declinéd")) == ErrorOutcome("declinéd")
    assert decode_payload(encode_error("a\ud800")) == ErrorOutcome("a\\ud800")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"1",
        b"2j1",
        b"1x1",
        b"1j",
        b"1j{",
        b"1j\xff",
        b"1j" + b"[" * 200_000,
        b"1t\xff",
        b"1e\xff",
        b"1h200\n",
        b"1h200\nA: b\n",
        b"1h\n\n",
        b"1hA: b\n\n",
        b"1h200\nA:b\n\n",
        b"1h200\n\xff: b\n\n",
        b"1h200\nA: b\rC: d\n\n",
        b"1h99999\n\n",
        b"1h-20\nA: b\n\n",
        b"1h099\n\n",
        b"1h600\n\n",
        b"1h200\n: b\n\n",
        b"1h200\nA B: c\n\n",
        b"1h200\nA\x00: b\n\n",
        b"1h200\nA: b\x00\n\n",
        b"1h200\nA: b\x1b\n\n",
        b"1h200\nA: b\x7f\n\n",
        b"1h200\n\xc3\x84: b\n\n",
        b"1h200\nA: \xed\xa0\x80\n\n",
        b'1j"\\ud800"',
        b'1j{"\\udfff":1}',
        b"1jNaN",
        b"1j-Infinity",
        b"1j\x00\x31",
    ],
)
def test_damaged_or_newer_payload_is_a_value_error(payload: bytes) -> None:
    """
    Damage and unknown versions raise ValueError and nothing else.
    """
    with pytest.raises(ValueError):  # noqa: PT011 - the class is the contract
        decode_payload(payload)


@given(st.binary(max_size=40))
def test_decoding_anything_raises_nothing_but_value_errors(payload: bytes) -> None:
    """
    Whatever was stored, decoding it gives an outcome or a ValueError.
    """
    for kind in (b"", b"1h", b"1j"):
        try:
            outcome = decode_payload(kind + payload)
        except ValueError:
            continue
        assert isinstance(outcome, HttpOutcome | JsonOutcome | Tombstone | ErrorOutcome)


def test_sealed_payload_is_not_taken_for_damage_of_another_kind() -> None:
    """
    What a codec has sealed says that a codec is missing.
    """
    with pytest.raises(ValueError, match="PAYLOAD_CODEC"):
        decode_payload(b"1s\x00\xff")


@pytest.mark.parametrize(("size", "kept"), [(10, True), (11, False)])
def test_payload_over_the_limit_leaves_a_tombstone(size: int, kept: bool) -> None:
    """
    What a payload holds is compared with the limit, its two marks are not.
    """
    payload = b"1j" + b"1" * size
    assert bound_payload(payload, 10) == (payload if kept else encode_tombstone(TOO_LARGE))
