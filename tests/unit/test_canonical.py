from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from enum import Enum, Flag, IntEnum, StrEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks.canonical import canonical_json
from dotmac_tasks.errors import SerializationError

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
