"""
Idempotency keys: how they are made, read from a header, scoped and shown.

A generated key is a digest of a canonical text, equal in every process for
equal values and different for values that differ, also in type: 1, 1.0, True
and "1" give four keys. What has no canonical form is refused, never replaced
by its `repr()`.
"""

from __future__ import annotations

import hmac
import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum, Flag
from hashlib import sha256
from math import isfinite
from typing import Any, NoReturn
from uuid import UUID

from dotmac_tasks.errors import InvalidKeyError, SerializationError
from dotmac_tasks.serialization import MAX_DEPTH, Path, format_path

__all__ = [
    "MAX_ID_LENGTH",
    "MAX_KEY_LENGTH",
    "RESERVED_KEY",
    "canonical_json",
    "derive_downstream_key",
    "generate_idempotency_key",
    "http_storage_key",
    "key_hash",
    "keyed_digest",
    "new_token",
    "parse_key_header",
    "quota_caller",
    "shorten_id",
    "validate_operation_id",
    "validate_stored_key",
]

MAX_KEY_LENGTH = 255
"""
Most characters that a key may have.
"""

RESERVED_KEY = "index"
"""
The one stored key that no operation may have: it would name the index.
"""

MAX_ID_LENGTH = 255
"""
Most characters that are stored of a tenant or a user of a request.
"""

_MAX_HEADER_LENGTH = 4096

# Printable ASCII without comma and quote, not blank at either end: nearly every key there is.
_BARE_KEY = re.compile(r"[!#-+\--~](?:[ !#-+\--~]{0,253}[!#-+\--~])?")
_STRING = r'"((?:[ !#-\[\]-~]|\\["\\])*)"'
# RFC 9651: each kind of value begins differently, so that matching takes linear time.
_PARAMETERS = (
    r"(?:; *[a-z*][a-z0-9_.*-]*(?:="
    r'(?:"(?:[ !#-\[\]-~]|\\["\\])*"'
    r"|[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*"
    r"|-?(?:[0-9]{1,12}\.[0-9]{1,3}|[0-9]{1,15})"
    r"|:[A-Za-z0-9+/=]*:"
    r"|\?[01]"
    r"|@-?[0-9]{1,15}"
    r'|%"(?:[ !#$&-~]|%[0-9a-f]{2})*"'
    r"))?)*"
)
_QUOTED_KEY = re.compile(_STRING + _PARAMETERS)
_ESCAPED = re.compile(r'\\(["\\])')
_UNPRINTABLE = re.compile(r"[^ -~]")
_UNSTORABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_encode_text: Callable[[str], str] = json.JSONEncoder(ensure_ascii=False).encode


def generate_idempotency_key(
    tenant_id: str, user_id: str | None, operation_type: str, parameters: Any
) -> str:
    """
    Return the key of an operation: 32 hex digits, equal for equal arguments.

    It is the beginning of the SHA-256 of ``tenant_id:user_id:operation_type:parameters_json`` in
    UTF-8, with `canonical_json` of the parameters and ``%`` and ``:`` percent-encoded in the
    other parts. A missing user is the empty string.

    Raises:
        SerializationError: A parameter has no canonical form.
    """
    text = ":".join(
        (
            _escape_part("tenant_id", tenant_id),
            _escape_part("user_id", "" if user_id is None else user_id),
            _escape_part("operation_type", operation_type),
            canonical_json(parameters),
        )
    )
    return sha256(text.encode()).hexdigest()[:32]


def http_storage_key(tenant: str, principal: str, client_key: str, secret: str = "") -> str:
    """
    Return the stored key of a client's key: 32 hex digits, its own for each tenant and principal.

    With a secret, nobody who lacks it can tell which client's key a stored key stands for.
    """
    # A generated key's text never begins with a bare "%", so that the two kinds cannot meet.
    return keyed_digest(secret, f"%http:{_quote(tenant)}:{_quote(principal)}:{client_key}")[:32]


def quota_caller(tenant: str, principal: str, secret: str = "") -> str:
    """
    Return whom a quota counts: 32 hex digits, which show neither tenant nor principal.
    """
    return keyed_digest(secret, f"%quota:{_quote(tenant)}:{_quote(principal)}")[:32]


def keyed_digest(secret: str, text: str) -> str:
    """
    Return the HMAC-SHA-256 of a text under a secret, in hex; its SHA-256 without a secret.
    """
    data = text.encode("utf-8", "surrogatepass")
    if not secret:
        return sha256(data).hexdigest()
    return hmac.digest(secret.encode("utf-8", "surrogatepass"), data, "sha256").hex()


def shorten_id(text: str) -> str:
    """
    Return a tenant or user as it is stored: a long one cut, with a digest of all of it at the end.
    """
    if len(text) <= MAX_ID_LENGTH:
        return text
    digest = keyed_digest("", text)[:32]
    return f"{text[: MAX_ID_LENGTH - len(digest) - 1]}~{digest}"


def derive_downstream_key(key: str, name: str) -> str:
    """
    Return the key that the work of a stored key gives another system: 64 hex digits.
    """
    # A stored key over HTTP is a fixed number of hex digits: no two pairs meet in one text.
    return sha256(f"downstream:{key}:{name}".encode("utf-8", "surrogatepass")).hexdigest()


def parse_key_header(raw: str) -> str:
    r"""
    Return the key that an Idempotency-Key header holds.

    Takes a structured-field string (quoted, with ``\"`` and ``\\`` escaped; well-formed
    parameters behind it are ignored) or the bare text; both forms of one text are one key.

    Raises:
        InvalidKeyError: It is empty, too long, or not of either form.
    """
    if _BARE_KEY.fullmatch(raw):
        return raw
    return _parse_unusual_key(raw)


def key_hash(key: str) -> str:
    """
    Return what logs and metrics show in the place of a key: 12 hex digits.
    """
    return sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def validate_stored_key(key: str) -> None:
    """
    Check that a key can be stored under its own name.

    Raises:
        InvalidKeyError: It is empty, too long, reserved, or holds control characters.
    """
    if not isinstance(key, str):
        raise InvalidKeyError("", f"it is a {type(key).__name__}, not text.")
    if not key:
        raise InvalidKeyError(key, "it is empty. Pass a text that is unique for the operation.")
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidKeyError(key, f"it is longer than {MAX_KEY_LENGTH} characters. Shorten it.")
    if _UNSTORABLE.search(key):
        raise InvalidKeyError(key, "it holds a control character. Remove it.")
    if key == RESERVED_KEY:
        raise InvalidKeyError(key, "the name is reserved. Choose another one.")


def validate_operation_id(operation_id: str) -> None:
    """
    Check that a storage can tell a background operation's id from the names of its indexes.

    Raises:
        InvalidKeyError: It is empty or holds a colon.
    """
    if not operation_id or ":" in operation_id:
        raise InvalidKeyError(operation_id, "the id of an operation is not empty and has no colon.")


def new_token() -> str:
    """
    Return 128 random bits as 32 hex digits.
    """
    return os.urandom(16).hex()


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


def _quote(part: str) -> str:
    return part.replace("%", "%25").replace(":", "%3A")


def _escape_part(name: str, part: str) -> str:
    if not isinstance(part, str):
        raise SerializationError(
            name, type(part).__name__, "is not text. Convert it, never from an object's repr()."
        )
    if not part.isascii():
        _ensure_utf8(part, name)
    return _quote(part)


def _ensure_utf8(text: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SerializationError(
            place, "str", "holds a lone surrogate, which UTF-8 cannot encode. Remove it."
        ) from None


def _parse_unusual_key(raw: str) -> str:
    text = raw.strip(" \t")
    if len(text) > _MAX_HEADER_LENGTH:
        raise InvalidKeyError("", f"it is longer than {MAX_KEY_LENGTH} characters. Shorten it.")
    if _UNPRINTABLE.search(text):
        raise InvalidKeyError("", "only printable ASCII characters are allowed.")
    if text.startswith('"'):
        match = _QUOTED_KEY.fullmatch(text)
        if match is None:
            raise InvalidKeyError("", "its quoting is wrong. Send one quoted string.")
        key = _ESCAPED.sub(r"\1", match[1])
    else:
        if "," in text:
            raise InvalidKeyError("", "it holds a comma. Send one key, quoted if it needs one.")
        if '"' in text:
            raise InvalidKeyError("", "its quoting is wrong. Quote all of it or nothing.")
        key = text
    if not key.strip(" "):
        raise InvalidKeyError("", "it is empty. Send a text that is unique for the request.")
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidKeyError("", f"it is longer than {MAX_KEY_LENGTH} characters. Shorten it.")
    return key


def _refuse(value: object, path: Path, reason: str) -> NoReturn:
    raise SerializationError(format_path(path), type(value).__name__, reason)


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
            _refuse(value, path, "is not finite and equals nothing. Use None or text for it.")
        return float.__repr__(value + 0.0)  # -0.0 equals 0.0
    if depth >= MAX_DEPTH:
        _refuse(value, path, f"is nested deeper than {MAX_DEPTH} levels, or contains itself.")
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
    _refuse(value, path, "has no canonical form. Pass the text or number that identifies it.")


def _tag(name: str, rendered: str) -> str:
    return f'{{"${name}":{rendered}}}'


def _render_text(text: str, path: Path) -> str:
    if not text.isascii():
        _ensure_utf8(text, format_path(path))
    return _encode_text(text)


def _render_int(value: int, path: Path) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # the interpreter's limit on digits
        _refuse(value, path, "is too large. Pass it as text.")


def _render_items(items: list[Any] | tuple[Any, ...], path: Path, depth: int) -> str:
    rendered = [_render(item, (path, index), depth + 1) for index, item in enumerate(items)]
    return f"[{','.join(rendered)}]"


def _render_mapping(mapping: Mapping[Any, Any], path: Path, depth: int) -> str:
    # Not a subclass's own items(): Django's QueryDict hides all but the last value of a name.
    pairs = list(dict.items(mapping) if isinstance(mapping, dict) else mapping.items())
    for key, _ in pairs:
        if not isinstance(key, str) or isinstance(key, Enum):
            _refuse(key, path, "is a mapping key, and only text can be one. Convert it.")
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
        _refuse(value, path, "lies outside of the years that UTC has here.")


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
        _refuse(value, path, "is not finite and equals nothing. Use None or text for it.")
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    if not stripped:
        return "0"
    # Not Decimal.normalize(), which rounds to the precision of the context.
    return f"{'-' if sign else ''}{stripped}E{exponent + len(text) - len(stripped)}"
