"""
How one request is begun and ended; the middleware and the decorator share it.

Both translate only: what happens to a request is decided in `dotmac_tasks.http`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

from asgiref.sync import sync_to_async
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from dotmac_tasks.http import STORE_HEADER, Answer, Run, ViewOptions
from dotmac_tasks_django.bodies import call_on_close, digest_while_read, read_undigested
from dotmac_tasks_django.requests import DjangoRequest, current_adapter

__all__ = [
    "EXEMPT",
    "Exempt",
    "begin",
    "end",
    "end_with_error",
    "find_inner_view",
    "find_method_options",
    "find_options",
    "find_run",
    "has_key",
    "hide_directive",
    "hold_answer",
    "is_concerned",
    "is_decided",
    "set_options",
    "take_answer",
    "warn_of_unsent",
    "watch",
]

logger = logging.getLogger(__name__)


class Exempt:
    """
    Marks a view that is never protected; immutable and shared.
    """


EXEMPT: Final = Exempt()

# Read through getattr by the name in a constant: these live on objects of other packages.
_OPTIONS = "dotmac_tasks_options"
_RUN = "dotmac_tasks_run"
_STORE = STORE_HEADER.lower()
_IS_EXEMPT = "dotmac_tasks_exempt"
_ANSWER = "dotmac_tasks_answer"
# Where `api_view` makes a class whose methods hide the function that it decorates.
_API_VIEW = "rest_framework.decorators"


def set_options(view: Any, options: ViewOptions | Exempt) -> None:
    """
    Attach options to a view or a method of one; wrappers copy them along.
    """
    setattr(view, _OPTIONS, options)


def find_options(view: Any, method: str = "") -> ViewOptions | Exempt | None:
    """
    Return what was attached to a view; for a class, its method's come first.
    """
    view = find_inner_view(view)
    # `view_class` is Django's, `cls` and `actions` are the REST framework's.
    owner = getattr(view, "view_class", None) or getattr(view, "cls", None)
    if owner is not None:
        options = find_method_options(owner, method, getattr(view, "actions", None))
        if options is not None:
            return options
    return getattr(view, _OPTIONS, None)


def find_method_options(
    owner: Any, method: str, actions: Mapping[str, str] | None
) -> ViewOptions | Exempt | None:
    """
    Return what was attached to the method of a class-based view that serves an HTTP method.
    """
    verb = method.lower()
    handler: Any = getattr(owner, (actions or {}).get(verb, verb), None)
    if getattr(handler, "__module__", "") == _API_VIEW:
        handler = inspect.getclosurevars(handler).nonlocals.get("func")
    return getattr(handler, _OPTIONS, None)


def find_inner_view(view: Any) -> Any:
    """
    Return a view without the arguments that were filled in.
    """
    while isinstance(view, partial):
        view = view.func
    return view


def has_key(request: HttpRequest) -> bool:
    """
    Tell whether a request carries a key, whatever it is.
    """
    return current_adapter().key_name in request.META


def is_concerned(request: HttpRequest, options: ViewOptions | None) -> bool:
    """
    Tell whether `begin` would look at a request at all.
    """
    adapter = current_adapter()
    if options is None and not adapter.requires_key and adapter.key_name not in request.META:
        return False
    return adapter.http.covers(request.method or "", request.path)


def find_run(request: Any) -> Run | None:
    """
    Return the run that this request is part of, or None.
    """
    return getattr(request, _RUN, None)


def is_decided(request: HttpRequest) -> bool:
    """
    Tell whether this request runs already, or has been left alone on purpose.
    """
    return find_run(request) is not None or hasattr(request, _IS_EXEMPT)


def watch(request: HttpRequest) -> None:
    """
    Prepare for a form that is parsed before its request is decided about.
    """
    if request.content_type != "multipart/form-data":
        return  # nearly every request
    if has_key(request) and is_concerned(request, None):
        digest_while_read(request)


def begin(
    request: HttpRequest, view_kwargs: dict[str, Any], options: ViewOptions | Exempt | None
) -> Run | HttpResponse | None:
    """
    Decide about a request; a run is attached to it.

    Returns:
        None to let it pass, a response to send instead, or a run to `end`.
    """
    if isinstance(options, Exempt):
        setattr(request, _IS_EXEMPT, True)
        read_undigested(request)
        return None
    if not is_concerned(request, options):
        return None
    adapter = current_adapter()
    decision = adapter.http.begin(DjangoRequest(adapter, request, view_kwargs), options)
    if isinstance(decision, Answer):
        return _to_response(decision)
    if decision is None:
        read_undigested(request)
    else:
        setattr(request, _RUN, decision)
    return decision


def hold_answer(request: HttpRequest, answer: HttpResponse) -> None:
    """
    Keep an answer until the view's decorator takes it.
    """
    setattr(request, _ANSWER, answer)


def take_answer(request: HttpRequest) -> HttpResponse | None:
    """
    Return the answer that is held for this request, once.
    """
    answer: HttpResponse | None = vars(request).pop(_ANSWER, None)
    return answer


def warn_of_unsent(request: HttpRequest, response: HttpResponseBase) -> None:
    """
    Say so where a view has answered although an answer was held for its decorator.

    A check around the decorator that refuses or redirects is meant to.
    """
    if _ANSWER in vars(request) and response.status_code < HTTPStatus.MULTIPLE_CHOICES:
        view = find_inner_view(getattr(request.resolver_match, "func", None))
        view = getattr(view, "view_class", view)
        logger.warning(
            "%s answered a retry by itself, whose answer its decorator was to send: the work may "
            "have been done again. Decorate what is called for the method.",
            getattr(view, "__qualname__", "A view"),
        )


def _to_response(answer: Answer) -> HttpResponse:
    names = {name.lower() for name, _ in answer.headers}
    headers = dict(answer.headers)
    if len(names) < len(answer.headers):
        headers = _join_repeated(answer.headers)
    response = HttpResponse(answer.body, status=answer.status, headers=headers)
    if "content-type" not in names:
        del response["Content-Type"]  # Django's own guess
    return response


def _join_repeated(headers: list[tuple[str, str]]) -> dict[str, str]:
    # Django holds one value per name; a list of values means the same (RFC 9110, 5.3).
    joined: dict[str, tuple[str, str]] = {}
    for name, value in headers:
        folded = name.lower()
        known = joined.get(folded)
        joined[folded] = (name, value) if known is None else (known[0], f"{known[1]}, {value}")
    return dict(joined.values())


def hide_directive(response: HttpResponseBase) -> None:
    """
    Take off what a response says of its own keeping, where nothing is kept.
    """
    if isinstance(response, HttpResponseBase):  # a view may have returned anything
        response.headers.pop(STORE_HEADER, None)


def end(run: Run, request: HttpRequest, response: HttpResponseBase) -> None:
    """
    Record how a run ended and mark its response.

    A stream is recorded at its end, or when the request is closed.
    """
    if not run.records:
        run.abandon()
        hide_directive(response)
        for name, value in run.headers:
            response.headers[name] = value
        return
    try:
        headers = []
        for header in response.items():
            if header[0].lower() == _STORE:
                run.follow(header[1])
            else:
                headers.append(header)
        if len(headers) < len(response.headers):
            del response[STORE_HEADER]
        if response.streaming:
            _watch(run, request, cast(StreamingHttpResponse, response))
        else:
            run.finish(response.status_code, headers, cast(HttpResponse, response).content)
        for name, value in run.headers:
            response[name] = value
    except BaseException:
        # Whatever broke here, nothing may go on renewing the claim.
        run.abandon()
        raise


def end_with_error(run: Run, error: BaseException) -> None:
    """
    Record that the work was left by an exception.

    One that stops the process or the thread says nothing about the outcome.
    """
    if isinstance(error, Exception):
        run.fail()
    else:
        run.abandon()


def _watch(run: Run, request: HttpRequest, response: StreamingHttpResponse) -> None:
    # A stream that is never sent, or not to its end, ends with its request: a client that hung
    # up, a server that sends the file by itself, a middleware that answers something else.
    status = response.status_code
    call_on_close(request, lambda: run.finish_unkept("stream", status))
    # The file stays known, so that a server can still send it by itself.
    file = getattr(response, "file_to_stream", None)
    watch: Any = _watch_async_chunks if response.is_async else _watch_chunks
    response.streaming_content = watch(run, status, response.streaming_content)
    if isinstance(response, FileResponse):
        response.file_to_stream = file


def _watch_chunks(run: Run, status: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """
    Pass on a body as it comes; its key is never run again once it ended.
    """
    try:
        yield from chunks
    except GeneratorExit:
        # No storage from here: the garbage collector may be what closes it, in any place.
        raise
    except BaseException:
        # It broke in the middle: nobody knows what the work has done by now.
        run.abandon()
        raise
    run.finish_unkept("stream", status)


async def _watch_async_chunks(
    run: Run, status: int, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    """
    Do the same for an asynchronous body; the storage is written from a thread.
    """
    try:
        async for chunk in chunks:
            yield chunk
    except GeneratorExit:
        raise
    except BaseException:
        run.abandon()
        raise
    await sync_to_async(run.finish_unkept, thread_sensitive=False)("stream", status)
