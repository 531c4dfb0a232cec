"""
The Django middleware: requests in, the decisions of `dotmac_tasks.http` out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from dotmac_tasks_django.protection import (
    begin,
    end,
    end_with_error,
    find_options,
    find_run,
    hide_directive,
    hold_answer,
    is_concerned,
    warn_of_unsent,
    watch,
)
from dotmac_tasks_django.rest_views import leave_to_view, warn_of_unclaimed
from dotmac_tasks_django.shielding import shield_from_disconnect, was_cancelled_before_view

__all__ = ["BackgroundOperationsMiddleware"]


class BackgroundOperationsMiddleware:
    """
    Gives the views of a project idempotent requests.

    Stands behind session, CSRF and authentication in `MIDDLEWARE`, and behind
    whatever compresses. Synchronous: under ASGI Django runs it in a thread. One
    instance is shared by all threads; what belongs to one request is on it.
    """

    sync_capable: ClassVar[bool] = True
    async_capable: ClassVar[bool] = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = shield_from_disconnect(get_response)

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """
        Serve one request and record its outcome.

        By now the view's transaction is committed, the response is rendered,
        and Django has turned exceptions into the responses that they stand for.
        """
        watch(request)
        try:
            response = self.get_response(request)
        except BaseException as error:
            run = find_run(request)
            if run is not None:
                if was_cancelled_before_view(request, error):
                    run.fail()
                else:
                    end_with_error(run, error)
                # Without a response nobody else closes the request.
                request.close()
            raise
        run = find_run(request)
        if run is None:
            warn_of_unclaimed(request, response)
            warn_of_unsent(request, response)
            hide_directive(response)
        else:
            end(run, request, response)
        return response

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[Any, ...],
        view_kwargs: dict[str, Any],
    ) -> HttpResponseBase | None:
        """
        Claim the key, behind routing and the checks of the middleware before.
        """
        if find_run(request) is not None:
            return None
        options = find_options(view_func, request.method or "")
        if options is None and not is_concerned(request, None):
            return None  # most requests of all, so nothing else is looked at
        if leave_to_view(request, options, view_func):
            return None
        decision = begin(request, view_kwargs, options)
        if not isinstance(decision, HttpResponse):
            return None
        if options is None:
            return decision
        # The view's decorator sends it, behind the checks of the decorators around that one:
        # who may no longer call the view may not see its stored answer either.
        hold_answer(request, decision)
        return None
