"""
Keeps a request with a key running when its client hangs up under ASGI.

Django cancels the handler of a disconnected client. A synchronous view cannot
be stopped: it finishes its work in its thread and its response is dropped, so
that the retry, which is what such a client does next, would do the work again.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - cancelling is the event loop's business
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, cast

from asgiref.sync import AsyncToSync, async_to_sync
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from dotmac_tasks_django.protection import find_run
from dotmac_tasks_django.rest_views import is_left_to_view

__all__ = ["shield_from_disconnect", "was_cancelled_before_view"]

_CANCELLED = "dotmac_tasks_cancelled"


def shield_from_disconnect(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """
    Return `get_response`, which under ASGI finishes a request that has begun a run.

    So it does one whose view is going to begin it. Anything else is cancelled as Django intends.
    """
    if not isinstance(get_response, AsyncToSync):
        return get_response
    handle = get_response.awaitable

    async def handle_to_the_end(request: HttpRequest) -> HttpResponseBase:
        context = contextvars.copy_context()
        handling = cast("Coroutine[Any, Any, HttpResponseBase]", handle(request))
        task = asyncio.create_task(handling, context=context)
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                if find_run(request) is None and not is_left_to_view(request):
                    setattr(request, _CANCELLED, True)
                    task.cancel()
        # What the view has set is seen outside, as if it had been awaited here.
        for variable, value in context.items():
            variable.set(value)
        return task.result()

    return async_to_sync(handle_to_the_end)


def was_cancelled_before_view(request: HttpRequest, error: BaseException) -> bool:
    """
    Tell whether the client hung up before the view was called, so that nothing was done.

    The key may have been claimed meanwhile.
    """
    return isinstance(error, asyncio.CancelledError) and hasattr(request, _CANCELLED)
