"""
The digest of a Django request's body, which the view finds as if nobody had read it.

Django keeps what it has read of a body in private attributes of the request;
this is the one module that knows them (Django 5.2 to 6.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.utils.datastructures import ImmutableList

from dotmac_tasks.fingerprint import (
    DigestingStream,
    FilePart,
    Spool,
    body_digest,
    parts_digest,
    stream_digest,
)
from dotmac_tasks.http import IncompleteBodyError
from dotmac_tasks_django.conf import get_setting

__all__ = ["call_on_close", "digest_while_read", "ensure_whole_body", "request_body_digest"]

# Django masks it anew for every page, so that a form that is sent again has another one.
_IGNORED: Final = frozenset({"csrfmiddlewaretoken"})


class _BodyState(Protocol):
    # Where WSGIRequest and ASGIRequest keep what they have read, and whether they have.
    _read_started: bool
    _stream: Any


def request_body_digest(request: HttpRequest) -> bytes:
    """
    Return the digest of the body; read from wherever it is by now.

    Raises:
        IncompleteBodyError: The body ended before its declared length.
        RequestDataTooBig: As Django decides for bodies that are kept in memory.
        ImproperlyConfigured: An earlier middleware has read the body and kept nothing of it.
    """
    content_type: str = request.META.get("CONTENT_TYPE", "")
    if not hasattr(request, "_body"):
        stream, is_read = _get_stream(request)
        if isinstance(stream, DigestingStream):
            if is_read:
                return _digest_of_read(request, stream)
            stream = stream.stream
            _set_stream(request, stream)
        if is_read and not stream.seekable():
            return _parsed_digest(request)
        if is_read or not _reads_into_memory(request):
            return _spooled_digest(request, content_type)
    return body_digest(content_type, request.body, ignored_fields=_IGNORED)


def ensure_whole_body(request: HttpRequest) -> None:
    """
    Read the body to its end, if nobody has; the view finds it as if nobody had.

    Raises:
        IncompleteBodyError: The body ended before its declared length.
        RequestDataTooBig: As Django decides for bodies that are kept in memory.
    """
    stream, is_read = _get_stream(request)
    if isinstance(stream, DigestingStream):
        request_body_digest(request)  # what was read is known by its digest only
    elif not is_read and not _reads_into_memory(request):
        _spooled_digest(request, request.META.get("CONTENT_TYPE", ""))


def digest_while_read(request: HttpRequest) -> None:
    """
    Have the body digested while it is read, since its digest is asked for only later.

    Not needed where something has read it already, or where it can be read again.
    """
    stream, is_read = _get_stream(request)
    if not is_read and not isinstance(stream, DigestingStream) and not stream.seekable():
        content_type: str = request.META.get("CONTENT_TYPE", "")
        _set_stream(request, DigestingStream(stream, content_type, ignored_fields=_IGNORED))


def _get_stream(request: HttpRequest) -> tuple[Any, bool]:
    state = cast(_BodyState, request)
    return state._stream, state._read_started  # noqa: SLF001 - no public way


def _set_stream(request: HttpRequest, stream: Any) -> None:
    cast(_BodyState, request)._stream = stream  # noqa: SLF001 - no public way


def _reads_into_memory(request: HttpRequest) -> bool:
    """
    Read a body that Django keeps in memory, which nobody has read; False for others.
    """
    length = _declared_length(request)
    # A multipart form may hold files, and read into memory it could not be parsed by upload
    # handlers any more.
    if length is None or request.content_type == "multipart/form-data":
        return False
    limit: int | None = get_setting("DATA_UPLOAD_MAX_MEMORY_SIZE")
    if limit is not None and length > limit:
        return False
    if len(request.body) < length:
        raise IncompleteBodyError
    return True


def _declared_length(request: HttpRequest) -> int | None:
    """
    Return how long the body is to be; None if it may be of any length (chunked, under ASGI).
    """
    declared: str | None = request.META.get("CONTENT_LENGTH")
    if declared is None:
        return None
    return int(declared) if declared.isdecimal() else 0


def _spooled_digest(request: HttpRequest, content_type: str) -> bytes:
    stream, _ = _get_stream(request)
    if stream.seekable():
        # Under ASGI Django has spooled it already; who reads it now goes on from there.
        place = stream.tell()
        stream.seek(0)
        digest = stream_digest(content_type, stream, ignored_fields=_IGNORED)
        length = stream.tell()
        stream.seek(place)
    else:
        spool = Spool(stream, None, content_type, ignored_fields=_IGNORED)
        call_on_close(request, spool.close)
        _set_stream(request, spool.file)
        digest, length = spool.digest, spool.length
    if length < (_declared_length(request) or 0):
        raise IncompleteBodyError
    return digest


def _digest_of_read(request: HttpRequest, stream: DigestingStream) -> bytes:
    # Who has read a part of it may still want the rest.
    rest = Spool(stream, None, "")
    call_on_close(request, rest.close)
    _set_stream(request, rest.file)
    if stream.length < (_declared_length(request) or 0):
        raise IncompleteBodyError
    return stream.digest()


def _parsed_digest(request: HttpRequest) -> bytes:
    # Django makes the handlers immutable when it parses a form, which may have been empty.
    is_parsed = isinstance(request.upload_handlers, ImmutableList)
    files = [
        FilePart(name, file.name or "", file.content_type or "", file)
        for name, uploaded in request.FILES.lists()
        for file in uploaded
    ]
    fields = [(name, value) for name, values in request.POST.lists() for value in values]
    if not is_parsed:
        raise ImproperlyConfigured(
            "Something before BackgroundOperationsMiddleware has read the request's stream, so "
            "that nothing is left to tell this request from another. Let it use request.body, or "
            "put it behind BackgroundOperationsMiddleware."
        )
    return parts_digest(fields, files, ignored_fields=_IGNORED)


def call_on_close(request: Any, callback: Callable[[], None]) -> None:
    """
    Call back when Django closes the request, after its response was sent.

    What was asked for last is called first.
    """
    close = request.close

    def close_both() -> None:
        try:
            callback()
        finally:
            close()

    request.close = close_both
