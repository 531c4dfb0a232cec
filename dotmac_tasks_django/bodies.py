"""
The digest of a Django request's body, which the view finds as if nobody had read it.

Django keeps what it has read of a body in private attributes of the request;
this is the one module that knows them (Django 5.2 to 6.1).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, UnreadablePostError
from django.utils.datastructures import ImmutableList

from dotmac_tasks.fingerprint import (
    FilePart,
    body_digest,
    parts_digest,
    selected_digest,
    stream_digest,
)
from dotmac_tasks.http import IncompleteBodyError
from dotmac_tasks.spool import DigestingStream, Spool
from dotmac_tasks_django.conf import get_setting

__all__ = [
    "call_on_close",
    "digest_while_read",
    "ensure_whole_body",
    "read_undigested",
    "request_body_digest",
    "selected_body_digest",
]

_MULTIPART: Final = "multipart/form-data"

# Django masks it anew for every page, so that a form that is sent again has another one.
_IGNORED: Final = frozenset({"csrfmiddlewaretoken"})
# Django's own limit. Where a project has raised it, what its views may read as a stream is no
# reason to fill memory; what nobody reads but whole is in memory soon anyway.
_MOST_IN_MEMORY: Final = 2_621_440
_READ_WHOLE: Final = ("/json", "+json", "/x-www-form-urlencoded")


class _BodyState(Protocol):
    # Where WSGIRequest and ASGIRequest keep what they have read, and whether they have.
    _read_started: bool
    _stream: Any


def digest_while_read(request: HttpRequest) -> None:
    """
    Have the body digested while it is read, since its digest is asked for only later.

    What upload handlers leave of a form may not tell its files apart, and may be half of it. Not
    needed where something has read the body already, or where it can be read again.
    """
    stream, is_read = _get_stream(request)
    if not is_read and not isinstance(stream, DigestingStream) and not stream.seekable():
        content_type: str = request.META.get("CONTENT_TYPE", "")
        _set_stream(request, DigestingStream(stream, content_type, ignored_fields=_IGNORED))


def read_undigested(request: HttpRequest) -> None:
    """
    Leave a body alone that nobody has read and that needs no digest on the way.
    """
    stream, is_read = _get_stream(request)
    if isinstance(stream, DigestingStream) and not is_read:
        _set_stream(request, stream.stream)


def _get_stream(request: HttpRequest) -> tuple[Any, bool]:
    # A request that was made by hand has neither.
    return getattr(request, "_stream", None), getattr(request, "_read_started", False)


def _set_stream(request: HttpRequest, stream: Any) -> None:
    cast(_BodyState, request)._stream = stream  # noqa: SLF001 - no public way


def request_body_digest(request: HttpRequest) -> bytes:
    """
    Return the digest of the body; read from wherever it is by now.

    Raises:
        IncompleteBodyError: The body ended before its declared length.
        RequestDataTooBig: As Django decides for bodies that are kept in memory.
        SpoolError: The body could not be kept.
        UnreadablePostError: The client cannot be read from any more.
        ImproperlyConfigured: An earlier middleware has read the body and kept nothing of it.
    """
    content_type: str = request.META.get("CONTENT_TYPE", "")
    if not hasattr(request, "_body"):
        read_undigested(request)
        if _get_stream(request)[1]:
            return _consumed_digest(request)
        if not _reads_into_memory(request):
            return _spooled_digest(request, content_type)
    return body_digest(content_type, request.body, ignored_fields=_IGNORED)


def ensure_whole_body(request: HttpRequest) -> None:
    """
    Read the body to its end, if nobody has; the view finds it as if nobody had.

    Raises:
        IncompleteBodyError: The body ended before its declared length.
        RequestDataTooBig: As Django decides for bodies that are kept in memory.
        SpoolError: The body could not be kept.
        UnreadablePostError: The client cannot be read from any more.
    """
    stream, is_read = _get_stream(request)
    if isinstance(stream, DigestingStream):
        request_body_digest(request)  # what was read is known by its digest only
    elif not is_read and not _reads_into_memory(request):
        _spooled_digest(request, request.META.get("CONTENT_TYPE", ""))


def selected_body_digest(request: HttpRequest, selector: Callable[[Any], Any]) -> bytes:
    """
    Return the digest of what a selector makes of the request.

    It may read the body in any way: the view finds it as if nobody had. What a middleware has
    consumed before is not there for the selector either.

    Raises:
        SerializationError: It is nothing that can be compared.
    """
    is_held = hasattr(request, "_body") or not _get_stream(request)[1]
    if is_held:
        request_body_digest(request)  # whole, and can be read again
    digest = selected_digest(selector(request))
    if is_held:
        _rewind_body(request)
    _rewind_files(request)
    return digest


def _rewind_body(request: HttpRequest) -> None:
    stream, _ = _get_stream(request)
    if stream.seekable():  # unless a middleware has put its own bytes into request._body
        stream.seek(0)
        started = hasattr(request, "_body")
        cast(_BodyState, request)._read_started = started  # noqa: SLF001 - no public way


def _rewind_files(request: HttpRequest) -> None:
    if not _is_parsed(request):
        return
    for _, uploaded in request.FILES.lists():
        for file in uploaded:
            # What an upload handler of the project has made may not go back.
            with suppress(AttributeError, ValueError, OSError):
                file.seek(0)


def _is_parsed(request: HttpRequest) -> bool:
    # Django makes the handlers immutable when it parses a form, which may have been empty.
    return isinstance(request.upload_handlers, ImmutableList)


def _reads_into_memory(request: HttpRequest) -> bool:
    """
    Read a body that Django keeps in memory, which nobody has read; False for others.
    """
    length = _declared_length(request)
    # A multipart form may hold files, and read into memory it could not be parsed by upload
    # handlers any more.
    if length is None or request.content_type == _MULTIPART:
        return False
    limit: int | None = get_setting("DATA_UPLOAD_MAX_MEMORY_SIZE")
    if limit is not None and length > limit:
        return False
    if length > _MOST_IN_MEMORY and not (request.content_type or "").endswith(_READ_WHOLE):
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
    # As Django reads it, which takes a sign and spaces too.
    try:
        return int(declared)
    except ValueError:
        return 0


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
        spool = _spool(stream, content_type)
        call_on_close(request, spool.close)
        _set_stream(request, spool.file)
        digest, length = spool.digest, spool.length
    if length < (_declared_length(request) or 0):
        raise IncompleteBodyError
    return digest


def _spool(stream: Any, content_type: str) -> Spool:
    # Where uploads go; unset, it is where Django's own spool goes under ASGI.
    directory: str | None = get_setting("FILE_UPLOAD_TEMP_DIR")
    try:
        return Spool(stream, None, content_type, ignored_fields=_IGNORED, directory=directory)
    except OSError as error:
        raise UnreadablePostError(*error.args) from error


def _consumed_digest(request: HttpRequest) -> bytes:
    stream, _ = _get_stream(request)
    if isinstance(stream, DigestingStream):
        return _digest_of_read(request, stream)
    if not stream.seekable():
        return _parsed_digest(request)
    return _spooled_digest(request, request.META.get("CONTENT_TYPE", ""))


def _digest_of_read(request: HttpRequest, stream: DigestingStream) -> bytes:
    # What an upload handler did not want to read of a form is not read for it either.
    if stream.has_ended or not _is_parsed(request):
        # Who has read a part of it may still want the rest.
        rest = _spool(stream, "")
        call_on_close(request, rest.close)
        _set_stream(request, rest.file)
        if stream.length < (_declared_length(request) or 0):
            raise IncompleteBodyError
    return stream.digest()


def _parsed_digest(request: HttpRequest) -> bytes:
    is_parsed = _is_parsed(request)
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
