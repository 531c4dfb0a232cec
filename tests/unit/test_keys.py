from __future__ import annotations

import hmac
import os
import re
import subprocess
import sys
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from enum import Enum, Flag, IntEnum, StrEnum
from hashlib import sha256
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks.errors import InvalidKeyError, SerializationError
from dotmac_tasks.keys import (
    MAX_ID_LENGTH,
    MAX_KEY_LENGTH,
    RESERVED_KEY,
    canonical_json,
    generate_idempotency_key,
    http_storage_key,
    key_hash,
    keyed_digest,
    new_token,
    parse_key_header,
    quota_caller,
    shorten_id,
    validate_stored_key,
)

NAIVE = datetime.fromisoformat("2026-01-02")
PLUS_ONE = timezone(timedelta(hours=1))


class Color(Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796 - an alias
    BLUE = 2


class Shade(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    RED = "red"


class Right(Flag):
    READ = 1
    WRITE = 2


class Unzoned(tzinfo):
    def utcoffset(self, dt: datetime | None) -> None:
        return None


class LastValueOnly(dict[str, Any]):
    """
    Like Django's QueryDict: the items it shows are not all that it holds.
    """

    def items(self) -> Any:
        return [(key, values[-1]) for key, values in super().items()]


DISTINCT: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    1.0,
    "1",
    "true",
    "",
    Decimal(1),
    Decimal("1E-30"),
    b"1",
    b"",
    [],
    [1],
    (1,),
    {1},
    {},
    {"a": None},
    {"a": 1},
    [["a", 1]],
    Color.RED,
    Color.BLUE,
    Shade.RED,
    Level.LOW,
    Word.RED,
    "red",
    Right.READ,
    Right.READ | Right.WRITE,
    Right(0),
    date(2026, 1, 2),
    NAIVE,
    datetime(2026, 1, 2, tzinfo=UTC),
    "2026-01-02",
    time(12),
    time(12, tzinfo=UTC),
    time(0, 30, tzinfo=PLUS_ONE),
    time(23, 30, tzinfo=UTC),
    UUID(int=1),
    str(UUID(int=1)),
    {"$decimal": "1E0"},
    {"$$decimal": "1E0"},
    {"$decimal": "1E0", "b": 1},
    {"$tuple": [1]},
    {"$bytes": "31"},
    {"$": 1},
]

EQUAL: list[tuple[Any, Any]] = [
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"a": 1}, OrderedDict(a=1)),
    ({"a": 1}, MappingProxyType({"a": 1})),
    (0.0, -0.0),
    (Decimal("1.0"), Decimal("1.00")),
    (Decimal("100"), Decimal("1E2")),
    (Decimal("0.00"), Decimal("-0")),
    (b"ab", bytearray(b"ab")),
    ({3, 1, 2}, frozenset([2, 1, 3])),
    (Color.RED, Color.CRIMSON),
    (datetime(2026, 1, 2, 1, tzinfo=PLUS_ONE), datetime(2026, 1, 2, 0, tzinfo=UTC)),
    (NAIVE.replace(fold=1), NAIVE),
    (datetime(2026, 1, 2, tzinfo=Unzoned()), NAIVE),
    (time(1, tzinfo=PLUS_ONE), time(0, tzinfo=UTC)),
    (time(1, tzinfo=Unzoned()), time(1)),
]


def test_generated_key_matches_the_test_vector() -> None:
    """
    The key is the beginning of the digest of exactly the documented text.
    """
    text = 'tenant1:user1:send_email:{"n":1,"to":"a@example.com"}'

    key = generate_idempotency_key(
        "tenant1", "user1", "send_email", {"to": "a@example.com", "n": 1}
    )

    assert key == sha256(text.encode()).hexdigest()[:32]


def test_generated_key_treats_a_missing_user_as_empty() -> None:
    """
    No user and the empty user are one.
    """
    assert generate_idempotency_key("t", None, "x", {}) == generate_idempotency_key(
        "t", "", "x", {}
    )


def test_generated_key_keeps_its_parts_apart() -> None:
    """
    A separator inside a part does not move the border between two parts.
    """
    keys = {
        generate_idempotency_key("a:b", "c", "x", {}),
        generate_idempotency_key("a", "b:c", "x", {}),
        generate_idempotency_key("a%3Ab", "c", "x", {}),
        generate_idempotency_key("a", "b", "c:x", {}),
    }
    assert len(keys) == 4


def test_generated_key_is_equal_in_another_process_with_another_hash_seed() -> None:
    """
    Neither hash seed nor memory address enters the key.
    """
    code = (
        "from dotmac_tasks.keys import generate_idempotency_key as g;"
        "print(g('t', 'é', 'x', {'s': {'a', 'b', 'c', 'd'}, 'é': ('z', None)}))"
    )
    here = generate_idempotency_key("t", "é", "x", {"s": {"d", "c", "b", "a"}, "é": ("z", None)})
    for seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == here


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ((7, "u", "x", {}), "tenant_id"),
        (("t", UUID(int=1), "x", {}), "user_id"),
        (("t", "u", None, {}), "operation_type"),
        (("t\ud800", "u", "x", {}), "tenant_id"),
    ],
)
def test_generated_key_refuses_parts_that_are_no_text(arguments: Any, path: str) -> None:
    """
    A part that is not text is refused by its name, never turned into its repr.
    """
    with pytest.raises(SerializationError) as caught:
        generate_idempotency_key(*arguments)
    assert caught.value.path == path


def test_canonical_json_of_distinct_values_is_distinct() -> None:
    """
    No two values of different types or contents share a text, not even imitated tags.
    """
    texts = [canonical_json(value) for value in DISTINCT]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_canonical_json_of_equal_values_is_equal(left: Any, right: Any) -> None:
    """
    Values that Python calls equal, of one kind, share a text, also inside of a container.
    """
    assert canonical_json(left) == canonical_json(right)
    assert canonical_json({"x": [left]}) == canonical_json({"x": [right]})


def test_canonical_json_keeps_digits_beyond_the_decimal_context() -> None:
    """
    The precision of the surrounding context does not round two amounts into one.
    """
    with localcontext() as context:
        context.prec = 3
        assert canonical_json(Decimal("1.2345")) != canonical_json(Decimal("1.2346"))


def test_canonical_json_sees_all_values_of_a_multi_value_mapping() -> None:
    """
    What a dict subclass holds counts, not the part of it that its items() shows.
    """
    left, right = LastValueOnly(a=["1", "3"]), LastValueOnly(a=["2", "3"])
    assert canonical_json(left) != canonical_json(right)


def test_canonical_json_writes_the_documented_forms() -> None:
    """
    The stored keys of earlier versions depend on these texts.
    """
    value = {
        "datetime": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "naive": datetime.fromisoformat("2026-01-31T12:00:00"),
        "date": date(2026, 1, 31),
        "time": time(12),
        "utc": time(0, 0, 1, 5, tzinfo=UTC),
        "decimal": Decimal("-1.50"),
        "uuid": UUID(int=0),
        "enum": Color.RED,
        "flag": Right.READ,
        "bytes": b"\x00\xff",
        "tuple": (1, "é"),
        "set": {2, 1},
    }
    kind = f"{__name__}.Color"
    assert canonical_json(value) == (
        '{"bytes":{"$bytes":"00ff"},"date":{"$date":"2026-01-31"},'
        '"datetime":{"$datetime":"2026-01-31T12:00:00+00:00"},"decimal":{"$decimal":"-15E-1"},'
        f'"enum":{{"$enum":["{kind}","RED"]}},'
        f'"flag":{{"$enum":["{__name__}.Right",1]}},'
        '"naive":{"$datetime":"2026-01-31T12:00:00"},"set":{"$set":[1,2]},'
        '"time":{"$time":"12:00:00"},"tuple":{"$tuple":[1,"é"]},"utc":{"$time":1000005},'
        '"uuid":{"$uuid":"00000000-0000-0000-0000-000000000000"}}'
    )


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path", "type_name"),
    [
        (float("nan"), "$", "float"),
        ({"a": [1, float("inf")]}, "$.a[1]", "float"),
        ({"a": {"b c": Decimal("NaN")}}, "$.a['b c']", "Decimal"),
        ({"a": object()}, "$.a", "object"),
        ({1: "a"}, "$", "int"),
        ({"a": {Word.RED: 1}}, "$.a", "Word"),
        (({"x": timedelta(1)},), "$[0].x", "timedelta"),
        ({"a": "\ud800"}, "$.a", "str"),
        ({"\ud800": 1}, "$", "str"),
        ({object()}, "$['{}']", "object"),
        (datetime.min.replace(tzinfo=PLUS_ONE), "$", "datetime"),
        pytest.param(10**5000, "$", "int", id="huge"),
    ],
)
def test_canonical_json_refuses_what_has_no_form(value: Any, path: str, type_name: str) -> None:
    """
    The error is a ValueError and a TypeError, and says what is wrong where.
    """
    with pytest.raises(SerializationError) as caught:
        canonical_json(value)
    assert (caught.value.path, caught.value.type_name) == (path, type_name)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)


def test_canonical_json_bounds_the_nesting() -> None:
    """
    Reasonable depth passes; a bomb or a cycle is an error of ours, no RecursionError.
    """
    assert canonical_json(nested(199)) == "[" * 200 + "]" * 200
    cycle: list[Any] = []
    cycle.append(cycle)
    for bomb in (nested(200), nested(50_000), cycle):
        with pytest.raises(SerializationError, match="nested deeper"):
            canonical_json(bomb)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text("$abdecimltup") | st.text(st.characters(codec="utf-8")), inner)
    ),
    max_leaves=10,
)


def typed(value: Any) -> Any:
    """
    Turn a value into one that is equal only if types are equal, too.
    """
    if isinstance(value, dict):
        return ("dict", frozenset((key, typed(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("list", tuple(typed(item) for item in value))
    return (type(value).__name__, value)


@given(PLAIN, PLAIN)
def test_canonical_json_is_equal_exactly_for_equal_values(left: Any, right: Any) -> None:
    """
    Equal texts mean equal values of equal types, and the other way round.
    """
    assert (canonical_json(left) == canonical_json(right)) == (typed(left) == typed(right))


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), PLAIN))
def test_canonical_json_ignores_the_order_of_insertion(value: dict[str, Any]) -> None:
    """
    A mapping filled the other way round has the same text.
    """
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


@given(st.decimals(allow_nan=False, allow_infinity=False), st.integers(0, 5))
def test_canonical_json_ignores_trailing_zeros_of_decimals(value: Decimal, zeros: int) -> None:
    """
    Zeros that do not change the amount do not change the text.
    """
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    longer = Decimal((sign, (*digits, *[0] * zeros), exponent - zeros))
    assert canonical_json(value) == canonical_json(longer)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ("abc", "abc"),
        ("a", "a"),
        (" abc\t", "abc"),
        ("a b;c", "a b;c"),
        ("a\\b", "a\\b"),
        ("x" * 255, "x" * 255),
        ('"abc"', "abc"),
        (' "abc" ', "abc"),
        ('"a,b"', "a,b"),
        (r'"a\"b\\c"', r'a"b\c'),
        ('"' + "x" * 255 + '"', "x" * 255),
        ('"' + r"\"" * 255 + '"', '"' * 255),
        ('"abc";v=1', "abc"),
        ('"abc"; a;b=?1;c="x\\"y";d=tok/en;e=-1.5;f=:YQ==:;g=@12;h=%"a%c3"', "abc"),
    ],
)
def test_header_is_parsed(raw: str, key: str) -> None:
    """
    Bare and quoted forms give the same key; parameters behind a quoted one are ignored.
    """
    assert parse_key_header(raw) == key


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "   ",
        '""',
        '"  "',
        "a,b",
        "a, b",
        '"a","b"',
        '"a" "b"',
        '"a',
        'a"',
        'a"b',
        '"',
        '"a\\',
        r'"a\b"',
        '"a"b',
        '"a" ;v=1',
        '"a";V=1',
        '"a";v=',
        '"a";',
        '"a";v=1234567890123456',
        '"a";v=1.2345',
        "a\x00b",
        "a\tb",
        '"a\x7f"',
        "é",
        '"é"',
        "x" * 256,
        '"' + "x" * 256 + '"',
        "x" * 100_000,
    ],
)
def test_header_is_refused(raw: str) -> None:
    """
    Every other deviation is an invalid key, whose message does not show it.
    """
    with pytest.raises(InvalidKeyError) as caught:
        parse_key_header(raw)
    assert caught.value.key == ""


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_header_of_any_printable_key_survives_quoting(key: str) -> None:
    """
    Quoting a printable text and parsing it gives the text, unless it is blank.
    """
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if key.strip():
        assert parse_key_header(quoted) == key
    else:
        with pytest.raises(InvalidKeyError):
            parse_key_header(quoted)


@given(st.text(max_size=300))
def test_header_is_parsed_or_refused_whatever_it_holds(raw: str) -> None:
    """
    No input raises anything else, and no key comes out that cannot be stored.
    """
    try:
        key = parse_key_header(raw)
    except InvalidKeyError:
        return
    assert 0 < len(key) <= MAX_KEY_LENGTH
    assert key.isprintable()
    assert key.isascii()


def test_http_storage_key_separates_tenants_principals_and_keys() -> None:
    """
    The same client key of another tenant or principal is another stored key.
    """
    scopes = [("t", "p", "k"), ("t", "q", "k"), ("u", "p", "k"), ("t", "p", "l")]
    scopes += [("t:p", "", "k"), ("t", "p:k", ""), ("t", "p", ":k"), ("t%3Ap", "", "k")]
    keys = {http_storage_key(*scope) for scope in scopes}
    assert len(keys) == len(scopes)
    assert http_storage_key("t", "p", "k") == http_storage_key("t", "p", "k")
    assert all(len(key) == 32 for key in keys)


def test_http_storage_key_never_meets_a_generated_key() -> None:
    """
    A generated key cannot be chosen so that it is the one of an HTTP request.
    """
    assert http_storage_key("t", "p", "{}") == sha256(b"%http:t:p:{}").hexdigest()[:32]
    assert generate_idempotency_key("%http", "t", "p", {}) != http_storage_key("t", "p", "{}")


def test_http_storage_key_takes_any_text() -> None:
    """
    A principal that UTF-8 cannot hold still has a key of its own.
    """
    assert http_storage_key("t", "\ud800", "k") != http_storage_key("t", "\ud801", "k")


def test_key_hash_is_short_and_hides_the_key() -> None:
    """
    Logs show twelve hex digits, equal for equal keys.
    """
    assert key_hash("secret") == key_hash("secret") != key_hash("other")
    assert len(key_hash("secret")) == 12
    int(key_hash("\ud800"), 16)


@pytest.mark.parametrize("key", ["a", "x" * 255, "order:17 é", "Index"])
def test_stored_key_is_accepted(key: str) -> None:
    """
    Any printable text within the limit may be a key.
    """
    validate_stored_key(key)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "a\x85", "\ud800", RESERVED_KEY, 7])
def test_stored_key_is_refused(key: Any) -> None:
    """
    Empty, long, unstorable and reserved keys are invalid, and so is what is no text.
    """
    with pytest.raises(InvalidKeyError, match="cannot be used"):
        validate_stored_key(key)


def test_tokens_are_random_hex() -> None:
    """
    Tokens are 128 bits in hex, and no two are equal.
    """
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) == 32 and int(token, 16) >= 0 for token in tokens)


def test_secret_makes_other_keys() -> None:
    """
    Under a secret a stored key is the beginning of an HMAC, and another one under each.
    """
    text = b"%http:t:p:k"
    expected = hmac.new(b"secret", text, "sha256").hexdigest()
    assert http_storage_key("t", "p", "k", "secret") == expected[:32]
    assert keyed_digest("secret", text.decode()) == expected
    keys = {http_storage_key("t", "p", "k", secret) for secret in ("", "secret", "secreu")}
    assert len(keys) == 3


def test_caller_of_a_quota_is_a_digest() -> None:
    """
    Whom a quota counts is told apart by tenant and principal, and shown by neither.
    """
    scopes = [("t", "user:p"), ("t", ""), ("u", "user:p"), ("t:user", "p"), ("", "t:user:p")]
    callers = {quota_caller(*scope, secret) for scope in scopes for secret in ("", "secret")}
    assert len(callers) == 2 * len(scopes)
    assert all(re.fullmatch("[0-9a-f]{32}", caller) for caller in callers)
    assert quota_caller("t", "k") != http_storage_key("t", "k", "")


def test_long_ids_are_shortened_and_stay_apart() -> None:
    """
    An id within the limit is kept as it is; two longer ones never become the same.
    """
    assert shorten_id("x" * MAX_ID_LENGTH) == "x" * MAX_ID_LENGTH
    shortened = {shorten_id("x" * 1000 + end) for end in ("a", "b", "\ud800")}
    assert len(shortened) == 3
    assert {len(text) for text in shortened} == {MAX_ID_LENGTH}
