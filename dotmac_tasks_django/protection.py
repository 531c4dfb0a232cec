"""
How one request is begun and ended; the middleware and the decorator share it.

Both translate only: what happens to a request is decided in `dotmac_tasks.http`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final, cast

from asgiref.sync import sync_to_async
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

from dotmac_tasks.http import STORE_HEADER, Answer, Run, ViewOptions
from dotmac_tasks_django.requests import DjangoRequest, current_adapter

__all__ = [
    "EXEMPT",
    "Exempt",
    "begin",
    "end",
    "end_with_error",
    "find_method_options",
    "find_options",
    "find_run",
    "hold_answer",
    "is_decided",
    "set_options",
    "take_answer",
]


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


def set_options(view: Any, options: ViewOptions | Exempt) -> None:
    """
    Attach options to a view or a method of one; wrappers copy them along.
    """
    setattr(view, _OPTIONS, options)


def find_options(view: Any, method: str = "") -> ViewOptions | Exempt | None:
    """
    Return what was attached to a view; for a class, its method's come first.
    """
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
    handler = getattr(owner, (actions or {}).get(verb, verb), None)
    return getattr(handler, _OPTIONS, None)


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
        return None
    adapter = current_adapter()
    if not adapter.http.covers(request.method or "", request.path):
        return None
    decision = adapter.http.begin(DjangoRequest(adapter, request, view_kwargs), options)
    if isinstance(decision, Answer):
        return _to_response(decision)
    if decision is not None:
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


def _to_response(answer: Answer) -> HttpResponse:
    # Django holds one value per name; a list of values means the same (RFC 9110, 5.3).
    headers: dict[str, tuple[str, str]] = {}
    for name, value in answer.headers:
        folded = name.lower()
        known = headers.get(folded)
        headers[folded] = (name, value) if known is None else (known[0], f"{known[1]}, {value}")
    response = HttpResponse(answer.body, status=answer.status, headers=dict(headers.values()))
    if "content-type" not in headers:
        del response["Content-Type"]  # Django's own guess
    return response


def end(run: Run, response: HttpResponseBase) -> None:
    """
    Record how a run ended and mark its response; a stream is recorded at its end.
    """
    try:
        headers = list(response.items())
        if _STORE in [name.lower() for name, _ in headers]:
            run.follow(response[STORE_HEADER])
            del response[STORE_HEADER]
            headers = list(response.items())
        if response.streaming:
            _watch(run, cast(StreamingHttpResponse, response))
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


def _watch(run: Run, response: StreamingHttpResponse) -> None:
    # The file stays known, so that a server can still send it by itself.
    file = getattr(response, "file_to_stream", None)
    watch: Any = _AsyncStream if response.is_async else _Stream
    response.streaming_content = watch(run, response.status_code, response.streaming_content)
    if isinstance(response, FileResponse):
        response.file_to_stream = file


class _Stream:
    """
    A body that goes out as it comes; its key is never run again once it ended.

    Used by the thread that serves the request.
    """

    def __init__(self, run: Run, status: int, chunks: Iterator[bytes]) -> None:
        self._run = run
        self._status = status
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            self.close()
            raise
        except BaseException:
            # It broke in the middle: nobody knows what the work has done by now.
            self._run.abandon()
            raise

    def close(self) -> None:
        """
        End the run; a client that hung up ends the stream too.
        """
        self._run.finish_unkept("stream", self._status)

    # A response that was dropped unsent is not closed by anybody.
    __del__ = close


class _AsyncStream:
    """
    The same for an asynchronous body; the storage is written from a thread.

    Used by the task that serves the request.
    """

    def __init__(self, run: Run, status: int, chunks: AsyncIterator[bytes]) -> None:
        self._run = run
        self._status = status
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                yield chunk
        except GeneratorExit:
            await self._close()
            raise
        except BaseException:
            self._run.abandon()
            raise
        await self._close()

    async def _close(self) -> None:
        await sync_to_async(self.close, thread_sensitive=False)()

    def close(self) -> None:
        """
        End the run, as above.
        """
        self._run.finish_unkept("stream", self._status)

    __del__ = close
