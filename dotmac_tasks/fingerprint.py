"""
What makes two requests the same: digests of bodies and of whole requests.

JSON counts by value and multipart forms by their parts; whatever is malformed
or ambiguous counts by its bytes, which is stricter. A form's ignored fields,
such as a CSRF token, do not count.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from decimal import Decimal
from functools import lru_cache, partial
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from dotmac_tasks.canonical import canonical_json

__all__ = [
    "CHUNK",
    "FINGERPRINT_VERSION",
    "BodyDigester",
    "FilePart",
    "Readable",
    "Rewindable",
    "body_digest",
    "parts_digest",
    "raw_stream_digest",
    "request_fingerprint",
    "selected_digest",
    "stream_digest",
]

FINGERPRINT_VERSION = 1
"""
Part of every fingerprint; another way to make them needs another number.
"""

CHUNK = 256 * 1024
"""
How much of a body is read at once.

Servers copy what they hold for each piece that they are asked for, so that pieces are large.
"""

# Larger bodies count by their bytes, so that memory stays bounded.
_MAX_PARSED = 1024 * 1024
# Up to twice as deep is parsed, the same in every process; beyond it the bytes count.
_MAX_DEPTH = 100
_MAX_PART_HEADERS = 16 * 1024
_MAX_PARTS = 10_000
_RAW = b"raw:"

_VALUE = r'(?:"[^"\\]*(?:\\.[^"\\]*)*"|[^;\s"]*)'
# No two runs of spaces may meet, or a long one would be tried in every way to part it.
_CONTENT_TYPE = re.compile(rf"([^\s;]*)((?:\s*;\s*[^\s=;]+\s*=\s*{_VALUE})*)(?:\s*;)?")
# What nearly every client sends. Of anything else, readers may make different names.
_PLAIN_VALUE = r'(?:"[^"\\]*(?:\\["\\][^"\\]*)*"|[^\s;"=*\\]+)'
_PLAIN_DISPOSITION = re.compile(rf"form-data; ?name={_PLAIN_VALUE}(?:; ?filename={_PLAIN_VALUE})?")
_PARAMETER = re.compile(r';\s*([^\s=;]+)\s*=\s*("[^"\\]*(?:\\.[^"\\]*)*"|[^;\s]*)')
_ESCAPED = re.compile(r'\\(["\\])')
# Other charsets give the same bytes another value, depending on who reads them.
_JSON_CHARSETS = frozenset({"", "utf-8", "utf8", "us-ascii"})
_JSON_SPACE = " \t\n\r"
# The end is optional: an unterminated string would be tried again from each quote in it.
_JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NO_BRACKET = re.compile(r"[^][{}]+")


class Readable(Protocol):
    """
    A stream of bytes; read by one thread.
    """

    def read(self, size: int, /) -> bytes:
        """
        Return at most so many bytes; none at the end.
        """
        ...


class Rewindable(Readable, Protocol):
    """
    A stream of bytes that can be read again; read by one thread.
    """

    def seek(self, offset: int, /) -> object:
        """
        Go to a position.
        """
        ...


class FilePart(NamedTuple):
    """
    A file of a form that a framework has already parsed.

    Attributes:
        name: Name of the form's field.
        filename: The file's name, as the client sent it.
        content_type: Its content type, as the client sent it; empty if it sent none.
        content: Its bytes; read from the beginning and left there.
    """

    name: str
    filename: str
    content_type: str
    content: Rewindable


def body_digest(
    content_type: str, body: bytes, *, ignored_fields: Collection[str] = frozenset()
) -> bytes:
    """
    Return the digest of a body.

    Args:
        content_type: The value of the Content-Type header; empty if there is none.
        body: All of the body.
        ignored_fields: Names of form fields that do not count.
    """
    if _parse_content_type(content_type).is_json:
        return _json_digest(body)
    digester = BodyDigester(content_type, partial(_raw_digest, body), ignored_fields=ignored_fields)
    digester.update(body)
    return digester.digest()


def stream_digest(
    content_type: str, stream: Rewindable, *, ignored_fields: Collection[str] = frozenset()
) -> bytes:
    """
    Return what `body_digest` returns for the same bytes, reading them in chunks to the end.

    They are read from the beginning again where a form turns out to be none.
    """
    digester = BodyDigester(
        content_type, partial(raw_stream_digest, stream), ignored_fields=ignored_fields
    )
    while chunk := stream.read(CHUNK):
        digester.update(chunk)
    return digester.digest()


def raw_stream_digest(stream: Rewindable) -> bytes:
    """
    Return the digest of bytes as they are, read from the beginning to the end.
    """
    digest = sha256(_RAW)
    stream.seek(0)
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.digest()


def parts_digest(
    fields: Iterable[tuple[str, str]],
    files: Iterable[FilePart],
    *,
    ignored_fields: Collection[str] = frozenset(),
) -> bytes:
    """
    Return the digest of a multipart form that a framework has already parsed.

    It equals `body_digest` of the form where parsing lost nothing: fields in UTF-8 without
    headers of their own, files with a name that the framework left alone. Values of one name
    count in their order, names in any order.
    """
    parts = _Parts(ignored_fields)
    for name, value in fields:
        parts.add(_PartHead(_to_bytes(name), None, b"", b""), sha256(_to_bytes(value)).digest())
    for file in files:
        content = sha256()
        file.content.seek(0)
        while chunk := file.content.read(CHUNK):
            content.update(chunk)
        file.content.seek(0)
        head = _PartHead(
            _to_bytes(file.name), _to_bytes(file.filename), _to_bytes(file.content_type), b""
        )
        parts.add(head, content.digest())
    return parts.digest()


def selected_digest(selected: Any) -> bytes:
    """
    Return the digest of what a view's selector has picked: bytes, text or JSON data.

    The three kinds never meet; JSON data counts by value.

    Raises:
        SerializationError: It is something else.
    """
    if isinstance(selected, bytes):
        return sha256(b"selected bytes:" + selected).digest()
    kind = "text" if isinstance(selected, str) else "data"
    return sha256(f"selected {kind}:{canonical_json(selected)}".encode()).digest()


def request_fingerprint(
    method: str, path: str, query: str, content_type: str, body_digest: bytes
) -> str:
    """
    Return the fingerprint of a request: 32 hex digits.

    Of the content type all but the boundary counts, of the rest every character: neither path nor
    query is normalised, since applications may tell their spellings apart.
    """
    text = (
        f"{FINGERPRINT_VERSION}:{method}:{len(path)}:{path}{len(query)}:{query}"
        f"{_parse_content_type(content_type).canonical}:{body_digest.hex()}"
    )
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class BodyDigester:
    """
    Digests a body that comes in chunks, in bounded memory and each byte once; for one thread.

    Of three ways one is at work: collecting what is compared by value, telling a form into its
    parts, or hashing the bytes as they are.

    Args:
        content_type: The value of the Content-Type header; empty if there is none.
        read_again: Returns `raw_stream_digest` of the same bytes, for a form that turns out to be
            none. Without it the bytes of forms are hashed twice.
        ignored_fields: Names of form fields that do not count.
    """

    def __init__(
        self,
        content_type: str,
        read_again: Callable[[], bytes] | None = None,
        *,
        ignored_fields: Collection[str] = frozenset(),
    ) -> None:
        kind = _parse_content_type(content_type)
        self._raw = sha256(_RAW)
        self._read_again = read_again
        self._ignored = ignored_fields
        self._is_json = kind.is_json
        self._buffer: bytearray | None = None
        self._multipart: _Multipart | None = None
        if kind.is_json or (kind.media == "application/x-www-form-urlencoded" and ignored_fields):
            self._buffer = bytearray()
        elif kind.media == "multipart/form-data" and kind.boundary:
            self._multipart = _Multipart(kind.boundary, _Parts(ignored_fields))

    def update(self, chunk: bytes) -> None:
        """
        Take the next bytes.
        """
        if self._multipart is not None:
            self._multipart.update(chunk)
            if self._read_again is None:
                self._raw.update(chunk)
        elif self._buffer is None:
            self._raw.update(chunk)
        elif len(self._buffer) + len(chunk) <= _MAX_PARSED:
            self._buffer += chunk
        else:
            self._raw.update(self._buffer)
            self._raw.update(chunk)
            self._buffer = None

    def digest(self) -> bytes:
        """
        Return the digest of all that was taken.
        """
        if self._buffer is not None:
            body = bytes(self._buffer)
            return _json_digest(body) if self._is_json else _form_digest(body, self._ignored)
        form = None if self._multipart is None else self._multipart.digest()
        if form is not None:
            return form
        if self._multipart is None or self._read_again is None:
            return self._raw.digest()
        return self._read_again()


class _ContentType(NamedTuple):
    media: str
    canonical: str
    boundary: bytes
    is_json: bool


@lru_cache(maxsize=256)
def _parse_content_type(value: str) -> _ContentType:
    match = _CONTENT_TYPE.fullmatch(value.strip())
    pairs = [] if match is None else _parse_parameters(match[2])
    parameters = dict(pairs)
    if match is None or len(parameters) != len(pairs):
        # Malformed or ambiguous, it counts as it is, and so does its body.
        return _ContentType("", f"raw:{value}", b"", is_json=False)
    media = match[1].lower()
    boundary = _to_bytes(parameters.pop("boundary", ""))
    charset = parameters["charset"] = parameters.get("charset", "").lower()
    is_json = media == "application/json" or media.endswith("+json")
    canonical = f"{len(media)}:{media}{sorted(parameters.items())}"
    return _ContentType(media, canonical, boundary, is_json and charset in _JSON_CHARSETS)


def _parse_parameters(text: str) -> list[tuple[str, str]]:
    return [
        (name.lower(), _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value)
        for name, value in _PARAMETER.findall(text)
    ]


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# JSON


class _AmbiguousError(ValueError):
    """
    JSON whose value depends on who reads it; raised and caught by one thread.
    """


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise _AmbiguousError("duplicate members")
    pairs.sort()  # by name alone: no two are equal, so no values are compared
    return dict(pairs)


def _float(text: str) -> float:
    value = float(text)
    if repr(value) == text and value:
        return value
    # Infinity has no exact ratio, and the sign of -0.0 is lost on some readers.
    if Decimal(repr(value)) != Decimal(text) or (not value and text.startswith("-")):
        raise _AmbiguousError("a number loses something")
    return value


def _int(text: str) -> int:
    if text == "-0":
        raise _AmbiguousError("a negative zero")
    return int(text)


def _constant(text: str) -> float:
    raise _AmbiguousError(text)


_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_constant=_constant
).raw_decode
# Slower, since each whole number costs a call.
_decode_with_zeros = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_constant
).raw_decode


def _json_digest(body: bytes) -> bytes:
    if len(body) <= _MAX_PARSED:
        try:
            text = body.decode().strip(_JSON_SPACE)
            if text.count("[") + text.count("{") <= _MAX_DEPTH or not _is_deep(text):
                value, end = _decode_with_zeros(text) if "-0" in text else _decode(text)
                if end == len(text):
                    # Members are sorted by now, and of plain values the literals of Python tell
                    # as much as JSON does, in any version, at half the cost of a JSON encoder.
                    return sha256(b"json:" + ascii(value).encode()).digest()
        # The depth is bounded, but what the caller's stack leaves is not ours to know.
        except (ValueError, ArithmeticError, RecursionError):
            pass
    return _raw_digest(body)


def _raw_digest(body: bytes) -> bytes:
    digest = sha256(_RAW)
    digest.update(body)
    return digest.digest()


def _is_deep(text: str) -> bool:
    """
    Tell whether brackets are nested too deep, each round taking away the innermost pairs.
    """
    brackets = _NO_BRACKET.sub("", _JSON_STRING.sub("", text))
    for _ in range(_MAX_DEPTH):
        outer = brackets.replace("[]", "").replace("{}", "")
        if len(outer) == len(brackets):
            break
        brackets = outer
    return bool(brackets)


# Forms


class _MalformedError(ValueError):
    """
    A form that cannot be told into parts; raised and caught by one thread.
    """


class _PartHead(NamedTuple):
    name: bytes
    filename: bytes | None  # None is a field, not a file
    content_type: bytes
    other_headers: bytes


class _Parts:
    """
    The digests of a form's parts, in no order but that of equal names; for one thread.
    """

    def __init__(self, ignored_fields: Collection[str]) -> None:
        self._ignored = {_to_bytes(name) for name in ignored_fields}
        # By the digests of names, since names may be long.
        self._seen: Counter[tuple[bytes, bool]] = Counter()
        self._digests: list[bytes] = []

    def add(self, head: _PartHead, content_digest: bytes) -> None:
        # With further headers, some reader may find another name there.
        if head.filename is None and head.name in self._ignored and not head.other_headers:
            return
        group = (sha256(head.name).digest(), head.filename is None)
        facts = (
            head.name,
            b"field" if head.filename is None else b"file:" + head.filename,
            head.content_type,
            head.other_headers,
            b"%d" % self._seen[group],
            content_digest,
        )
        self._seen[group] += 1
        self._digests.append(sha256(b"".join(b"%d:%b" % (len(x), x) for x in facts)).digest())

    def digest(self) -> bytes:
        return sha256(b"multipart:" + b"".join(sorted(self._digests))).digest()


def _form_digest(body: bytes, ignored_fields: Collection[str]) -> bytes:
    ignored = {_to_bytes(name) for name in ignored_fields}
    pairs = [pair for pair in body.split(b"&") if pair.partition(b"=")[0] not in ignored]
    return sha256(b"form:" + b"&".join(pairs)).digest()


class _Multipart:
    """
    Tells a multipart form into its parts as its bytes come in; for one thread.

    Keeps a part's headers and the digests of parts, never a part's content.
    """

    def __init__(self, boundary: bytes, parts: _Parts) -> None:
        self._parts = parts
        self._is_complete = False
        self._is_malformed = False
        self._mark = b"--" + boundary
        # The first delimiter may stand at the very beginning, without a line before it.
        self._buffer = bytearray(b"\r\n")
        self._step = self._skip_preamble
        self._count = 0
        self._head = _PartHead(b"", None, b"", b"")
        self._content = sha256()

    def update(self, chunk: bytes) -> None:
        if self._is_malformed:
            return
        self._buffer += chunk
        try:
            while self._step():
                pass
        except _MalformedError:
            self._is_malformed = True
            self._buffer.clear()

    def digest(self) -> bytes | None:
        """
        Return the digest of a whole and well-formed form, None for anything else.
        """
        return self._parts.digest() if self._is_complete and not self._is_malformed else None

    def _find_delimiter(self) -> int:
        """
        Return where the next delimiter's line break is, or -1.

        Some readers take a boundary for a delimiter wherever it stands, others at the
        beginning of a line only.
        """
        at = self._buffer.find(self._mark)
        if at < 0:
            return -1
        if self._buffer[max(at - 2, 0) : at] != b"\r\n":
            raise _MalformedError("a boundary stands within a line")
        return at - 2

    def _take_to_delimiter(self, take: Callable[[memoryview], object]) -> bool:
        """
        Hand over, without a copy, what stands before the next delimiter; tell whether it is there.
        """
        at = self._find_delimiter()
        # What could be the beginning of the delimiter waits for the next chunk.
        end = at if at >= 0 else max(len(self._buffer) - len(self._mark) - 2, 0)
        with memoryview(self._buffer) as whole, whole[:end] as taken:
            take(taken)
        del self._buffer[: end if at < 0 else end + 2 + len(self._mark)]
        return at >= 0

    def _skip_preamble(self) -> bool:
        if self._take_to_delimiter(_check_preamble):
            self._step = self._read_delimiter_end
            return True
        return False

    def _skip_epilogue(self) -> bool:
        # Some readers go on behind the end.
        if self._buffer.strip():
            raise _MalformedError("something follows the last part")
        self._buffer.clear()
        return False

    def _read_delimiter_end(self) -> bool:
        if len(self._buffer) < 2:
            return False
        if self._buffer.startswith(b"--"):
            self._is_complete = True
            del self._buffer[:2]
            self._step = self._skip_epilogue
            return True
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_PART_HEADERS:
                raise _MalformedError("a delimiter's line does not end")
            return False
        if self._buffer[:end].strip(b" \t"):
            raise _MalformedError("a delimiter's line goes on")
        del self._buffer[:end]  # its line end stays, so that no headers look like some
        self._step = self._read_headers
        return True

    def _read_headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end > _MAX_PART_HEADERS or (end < 0 and len(self._buffer) > _MAX_PART_HEADERS):
            raise _MalformedError("a part's headers are too long")
        if end < 0:
            return False
        self._count += 1
        if self._count > _MAX_PARTS:
            raise _MalformedError("too many parts")
        self._head = _parse_part_head(bytes(self._buffer[2:end]))
        self._content = sha256()
        del self._buffer[: end + 4]
        self._step = self._read_content
        return True

    def _read_content(self) -> bool:
        if self._take_to_delimiter(self._content.update):
            self._parts.add(self._head, self._content.digest())
            self._step = self._read_delimiter_end
            return True
        return False


def _check_preamble(preamble: memoryview) -> None:
    if bytes(preamble).strip():
        raise _MalformedError("something precedes the first part")


def _parse_part_head(block: bytes) -> _PartHead:
    headers: dict[str, str] = {}
    for line in block.decode("utf-8", "surrogateescape").split("\r\n"):
        name, found, value = line.partition(":")
        name = name.lower()
        if not found or name != name.strip() or name in headers:
            raise _MalformedError("a part's headers are broken or repeated")
        headers[name] = value.strip(" \t")
    content_type = headers.pop("content-type", "")
    disposition = headers.get("content-disposition", "")
    if _PLAIN_DISPOSITION.fullmatch(disposition):
        del headers["content-disposition"]
    parameters = dict(_parse_parameters(disposition))
    if "name" not in parameters:
        raise _MalformedError("a part has no name")
    filename = parameters.get("filename")
    if "filename*" in parameters:
        filename = filename or "*"
    return _PartHead(
        _to_bytes(parameters["name"]),
        None if filename is None else _to_bytes(filename),
        _to_bytes(content_type),
        ascii(sorted(headers.items())).encode() if headers else b"",
    )
