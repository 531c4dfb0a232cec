r"""
The form in which outcomes are stored: bytes with a version and a kind in front.

::

    1j<JSON>                                  a result
    1h<status>\n<name>: <value>\n...\n<body>   a response, its body byte for byte
    1t<reason>                                a response that could not be kept
    1e<text>                                  a recorded failure
    1s<bytes>                                 any of these but 1t, as a codec has sealed it

A result is only accepted if decoding gives back an equal value of the same
types, so that a replay returns what the first call returned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple, NoReturn, TypeAlias

from dotmac_tasks.errors import SerializationError

__all__ = [
    "MAX_DEPTH",
    "SEALED",
    "TOO_LARGE",
    "ErrorOutcome",
    "HttpOutcome",
    "JsonOutcome",
    "Outcome",
    "Path",
    "Tombstone",
    "bound_payload",
    "decode_payload",
    "encode_error",
    "encode_json_response",
    "encode_response",
    "encode_result",
    "encode_tombstone",
    "ensure_utf8",
    "unfit",
]

MAX_DEPTH = 200
"""
Deepest nesting that is accepted; every process can decode it, whatever its stack holds.
"""

TOO_LARGE = "too-large"
"""
Reason of the tombstone of an outcome that is larger than the settings let it be.
"""

SEALED = b"1s"
"""
How a payload begins that a codec has sealed.
"""

# Every interpreter converts integers of this size to text and back, whatever limit it has set.
_MAX_INT_BITS = 2048

# A status, and headers that HTTP can carry: of control characters a value may hold tabs.
_HEAD = re.compile(r"[1-5][0-9]{2}(?:\n[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\x00-\x08\x0a-\x1f\x7f]*)*")

Path: TypeAlias = "tuple[Path, str | int] | None"
"""
Where a walk is: the way to the parent and the last key or index; None is the root.
"""


class JsonOutcome(NamedTuple):
    """
    A recorded result.

    Attributes:
        value: The result, as JSON gives it back.
    """

    value: Any


class HttpOutcome(NamedTuple):
    """
    A recorded response.

    Attributes:
        status: Its status code.
        headers: Its headers, repeated ones included, in order.
        body: Its body, byte for byte.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Tombstone(NamedTuple):
    """
    The work is done, but its response was not kept.

    Attributes:
        reason: Why, in a word.
    """

    reason: str


class ErrorOutcome(NamedTuple):
    """
    A recorded failure.

    Attributes:
        message: The application's text.
    """

    message: str


Outcome: TypeAlias = JsonOutcome | HttpOutcome | Tombstone | ErrorOutcome

_encode_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_decode_json = json.JSONDecoder(parse_constant=_refuse_constant).decode


def encode_result(value: Any) -> bytes:
    """
    Encode a result that JSON gives back unchanged.

    Accepts None, bool, int, finite float, str, list and dict with text keys, nested at will up to
    `MAX_DEPTH`, of exactly these types: a tuple or an enum member would come back as another type.

    Raises:
        SerializationError: Something in it would not come back as it is; the path says what.
    """
    return b"1j" + _to_json(value)


def encode_json_response(status: int, value: Any) -> bytes:
    """
    Encode a response whose body is this value.

    Raises:
        SerializationError: As `encode_result`.
        ValueError: The status is none of HTTP.
    """
    return encode_response(status, [("Content-Type", "application/json")], _to_json(value))


def _to_json(value: Any) -> bytes:
    _check(value, None, 0)
    text: str = _encode_json(value)
    return text.encode()


def encode_response(status: int, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """
    Encode a response.

    Raises:
        ValueError: The status or a header is none of HTTP: a status outside 100 to 599, a name
            that is no token, a line break, a control character or a lone surrogate anywhere.
    """
    if not 100 <= status <= 599:
        raise ValueError(f"{status} is no status of HTTP")
    head = str(status)
    for name, value in headers:
        if ":" in name or "\n" in name or "\n" in value:
            raise ValueError(f"the header {name!r} cannot be kept on a line of its own")
        head += f"\n{name}: {value}"
    if not _HEAD.fullmatch(head):
        raise ValueError("a header is none of HTTP: no token, or with a control character")
    # No header is an empty line, so that the first one ends the head.
    return b"1h%b\n\n%b" % (head.encode(), body)


def encode_tombstone(reason: str) -> bytes:
    """
    Encode that the work is done and its response is not available.
    """
    return b"1t" + reason.encode()


def encode_error(text: str) -> bytes:
    """
    Encode a failure; text that UTF-8 cannot hold is escaped, never refused.
    """
    return b"1e" + text.encode("utf-8", "backslashreplace")


def bound_payload(payload: bytes, limit: int) -> bytes:
    """
    Return a payload, or a tombstone where what it holds is over so many bytes.
    """
    return encode_tombstone(TOO_LARGE) if len(payload) - 2 > limit else payload


def decode_payload(payload: bytes) -> Outcome:
    """
    Decode what one of the functions above encoded.

    Raises:
        ValueError: It is damaged or of a version or kind that is not known here.
    """
    kind = payload[:2]
    try:
        if kind == b"1h":
            return _decode_response(payload)
        if kind == b"1j":
            return JsonOutcome(_decode_result(payload))
        if kind == b"1t":
            return Tombstone(payload[2:].decode())
        if kind == b"1e":
            return ErrorOutcome(payload[2:].decode())
        if kind == SEALED:
            raise ValueError("the stored outcome is sealed, and no PAYLOAD_CODEC is set")
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the stored outcome is damaged: {error}") from error
    raise ValueError(f"the stored outcome is of the unknown kind {kind!r}")


def _decode_result(payload: bytes) -> Any:
    value = _decode_json(payload[2:].decode())
    if b"\\u" in payload:
        # An escape may stand for a lone surrogate, which no answer could carry.
        _encode_json(value).encode()
    return value


def _decode_response(payload: bytes) -> HttpOutcome:
    end = payload.index(b"\n\n")
    head = payload[2:end].decode()
    if not _HEAD.fullmatch(head):
        raise ValueError("the stored response is none of HTTP")
    status, *lines = head.split("\n")
    headers = []
    for line in lines:
        name, _, value = line.partition(": ")
        headers.append((name, value))
    return HttpOutcome(int(status), headers, payload[end + 2 :])


def _format_path(path: Path) -> str:
    # Such as $.items[2].price.
    parts: list[str] = []
    while path is not None:
        path, key = path
        if isinstance(key, int):
            parts.append(f"[{key}]")
        elif key.isidentifier():
            parts.append(f".{key}")
        else:
            parts.append(f"[{key!r}]")
    return "$" + "".join(reversed(parts))


def unfit(value: object, path: Path, reason: str) -> SerializationError:
    """
    Return the error of a value that has no form.
    """
    return SerializationError(_format_path(path), type(value).__name__, reason)


def _check(value: Any, path: Path, depth: int) -> None:
    kind = type(value)
    if kind is str:
        if not value.isascii():
            ensure_utf8(value, path)
    elif kind is bool or value is None:
        pass
    elif kind is int:
        if value.bit_length() > _MAX_INT_BITS:
            raise unfit(value, path, "is too large. Pass it as text.")
    elif kind is float:
        if not isfinite(value):
            raise unfit(value, path, "has no JSON form: it is not finite. Use None or text for it.")
    elif kind is dict or kind is list:
        if depth >= MAX_DEPTH:
            raise unfit(
                value, path, f"is nested deeper than {MAX_DEPTH} levels, or contains itself."
            )
        if kind is list:
            for index, item in enumerate(value):
                _check(item, (path, index), depth + 1)
        else:
            for key, item in value.items():
                if type(key) is not str:
                    raise unfit(
                        key, path, "is a mapping key; the keys of JSON are text. Convert it."
                    )
                if not key.isascii():
                    ensure_utf8(key, path)
                _check(item, (path, key), depth + 1)
    else:
        raise unfit(value, path, _hint(value))


def _hint(value: object) -> str:
    if isinstance(value, tuple):
        return "would come back as a list. Return a list."
    if isinstance(value, bool | int | float | str | list | dict):
        return "would come back as its plain base type. Convert it to that first."
    return "has no JSON form. Convert it to text, numbers, lists and dicts first."


def ensure_utf8(text: str, place: Path | str) -> None:
    """
    Check that a text can be written in UTF-8.

    Raises:
        SerializationError: It holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        where = place if isinstance(place, str) else _format_path(place)
        raise SerializationError(
            where, "str", "holds a lone surrogate, which UTF-8 cannot encode. Remove it."
        ) from None
