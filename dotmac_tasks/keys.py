"""
Idempotency keys: how they are made, read from a header, scoped and shown.

A generated key is a digest of the canonical text of what it is made from.
"""

from __future__ import annotations

import hmac
import os
import re
from hashlib import sha256
from typing import Any

from dotmac_tasks.canonical import canonical_json
from dotmac_tasks.errors import InvalidKeyError, SerializationError
from dotmac_tasks.serialization import ensure_utf8

__all__ = [
    "MAX_ID_LENGTH",
    "MAX_KEY_LENGTH",
    "RESERVED_KEY",
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


def http_storage_key(  # nosec B107 - an empty secret is none
    tenant: str, principal: str, client_key: str, secret: str = ""
) -> str:
    """
    Return the stored key of a client's key: 32 hex digits, its own for each tenant and principal.

    With a secret, nobody who lacks it can tell which client's key a stored key stands for.
    """
    # A generated key's text never begins with a bare "%", so that the two kinds cannot meet.
    return keyed_digest(secret, f"%http:{_quote(tenant)}:{_quote(principal)}:{client_key}")[:32]


def quota_caller(  # nosec B107 - an empty secret is none
    tenant: str, principal: str, secret: str = ""
) -> str:
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


def _quote(part: str) -> str:
    return part.replace("%", "%25").replace(":", "%3A")


def _escape_part(name: str, part: str) -> str:
    if not isinstance(part, str):
        raise SerializationError(
            name, type(part).__name__, "is not text. Convert it, never from an object's repr()."
        )
    if not part.isascii():
        ensure_utf8(part, name)
    return _quote(part)


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
