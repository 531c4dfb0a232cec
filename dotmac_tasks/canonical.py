"""
One text for each value: equal in every process for equal values.

It differs for values that differ, also in type: 1, 1.0, True and "1" have four
texts. What has no canonical form is refused, never replaced by its `repr()`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum, Flag
from math import isfinite
from typing import Any
from uuid import UUID

from dotmac_tasks.serialization import MAX_DEPTH, Path, ensure_utf8, unfit

__all__ = ["canonical_json"]

_encode_text: Callable[[str], str] = json.JSONEncoder(ensure_ascii=False).encode


def canonical_json(value: Any) -> str:
    """
    Return the one JSON text that stands for this value, in every process.

    Mapping keys are sorted, separators are ``,`` and ``:``, and nothing is escaped to ASCII. Types
    that JSON lacks are written as a mapping with one key that names them::

        datetime  {"$datetime":"2026-01-31T12:00:00+00:00"}   an instant, in UTC
        datetime  {"$datetime":"2026-01-31T12:00:00"}         without a time zone
        date      {"$date":"2026-01-31"}
        time      {"$time":"12:00:00"}; with an offset, its microseconds since midnight UTC
        Decimal   {"$decimal":"15E-1"}                        without trailing zeros
        UUID      {"$uuid":"..."}
        enum      {"$enum":["module.Class","NAME"]}
        bytes     {"$bytes":"00ff"}
        tuple     {"$tuple":[...]}
        set       {"$set":[...]}                              sorted by canonical text

    A mapping of the caller's that looks like one of them gets a second ``$``.

    Raises:
        SerializationError: Something in it has no canonical form: NaN, an infinity, an object, a
            mapping key that is not text, a lone surrogate, a nesting that is too deep.
    """
    return _render(value, None, 0)


def _render(value: Any, path: Path, depth: int) -> str:
    # bool before int, enum before what it mixes in, datetime before date.
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, Enum):
        return _render_enum(value)
    if isinstance(value, str):
        return _render_text(value, path)
    if isinstance(value, int):
        return _render_int(value, path)
    if isinstance(value, float):
        if not isfinite(value):
            raise unfit(value, path, "is not finite and equals nothing. Use None or text for it.")
        return float.__repr__(value + 0.0)  # -0.0 equals 0.0
    if depth >= MAX_DEPTH:
        raise unfit(value, path, f"is nested deeper than {MAX_DEPTH} levels, or contains itself.")
    if isinstance(value, Mapping):
        return _render_mapping(value, path, depth)
    if isinstance(value, list):
        return _render_items(value, path, depth)
    if isinstance(value, tuple):
        return _tag("tuple", _render_items(value, path, depth))
    if isinstance(value, set | frozenset):
        items = sorted(_render(item, (path, "{}"), depth + 1) for item in value)
        return _tag("set", f"[{','.join(items)}]")
    return _render_scalar(value, path)


def _render_scalar(value: Any, path: Path) -> str:
    if isinstance(value, datetime):
        return _tag("datetime", f'"{_normalise_datetime(value, path)}"')
    if isinstance(value, date):
        return _tag("date", f'"{value.isoformat()}"')
    if isinstance(value, time):
        return _tag("time", _render_time(value))
    if isinstance(value, Decimal):
        return _tag("decimal", f'"{_normalise_decimal(value, path)}"')
    if isinstance(value, UUID):
        return _tag("uuid", f'"{value}"')
    if isinstance(value, bytes | bytearray):
        return _tag("bytes", f'"{value.hex()}"')
    raise unfit(value, path, "has no canonical form. Pass the text or number that identifies it.")


def _tag(name: str, rendered: str) -> str:
    return f'{{"${name}":{rendered}}}'


def _render_text(text: str, path: Path) -> str:
    if not text.isascii():
        ensure_utf8(text, path)
    return _encode_text(text)


def _render_int(value: int, path: Path) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # the interpreter's limit on digits
        raise unfit(value, path, "is too large. Pass it as text.") from None


def _render_items(items: list[Any] | tuple[Any, ...], path: Path, depth: int) -> str:
    rendered = [_render(item, (path, index), depth + 1) for index, item in enumerate(items)]
    return f"[{','.join(rendered)}]"


def _render_mapping(mapping: Mapping[Any, Any], path: Path, depth: int) -> str:
    # Not a subclass's own items(): Django's QueryDict hides all but the last value of a name.
    pairs = list(dict.items(mapping) if isinstance(mapping, dict) else mapping.items())
    for key, _ in pairs:
        if not isinstance(key, str) or isinstance(key, Enum):
            raise unfit(key, path, "is a mapping key, and only text can be one. Convert it.")
    escape = "$" if len(pairs) == 1 and pairs[0][0].startswith("$") else ""
    rendered = [
        f"{_render_text(escape + key, path)}:{_render(item, (path, key), depth + 1)}"
        for key, item in sorted(pairs, key=_first)
    ]
    return f"{{{','.join(rendered)}}}"


def _first(pair: tuple[str, Any]) -> str:
    return pair[0]


def _render_enum(member: Enum) -> str:
    cls = type(member)
    kind = _encode_text(f"{cls.__module__}.{cls.__qualname__}")
    # Combined flags may lack a name, but their value is always a number.
    which = str(member.value) if isinstance(member, Flag) else _encode_text(member.name)
    return _tag("enum", f"[{kind},{which}]")


def _normalise_datetime(value: datetime, path: Path) -> str:
    if value.utcoffset() is None:
        return value.replace(tzinfo=None).isoformat()
    try:
        return value.astimezone(UTC).isoformat()
    except OverflowError:
        raise unfit(value, path, "lies outside of the years that UTC has here.") from None


def _render_time(value: time) -> str:
    offset = value.utcoffset()
    if offset is None:
        return f'"{value.replace(tzinfo=None).isoformat()}"'
    # Two of them are equal when these are, which may lie outside of the day.
    seconds = (value.hour * 60 + value.minute) * 60 + value.second
    seconds -= offset.days * 86_400 + offset.seconds
    return str(seconds * 1_000_000 + value.microsecond)


def _normalise_decimal(value: Decimal, path: Path) -> str:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise unfit(value, path, "is not finite and equals nothing. Use None or text for it.")
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    if not stripped:
        return "0"
    # Not Decimal.normalize(), which rounds to the precision of the context.
    return f"{'-' if sign else ''}{stripped}E{exponent + len(text) - len(stripped)}"
