"""
Views of Django REST framework, which are claimed behind the framework's own checks.

The framework authenticates, and checks permissions and throttles, inside the view: in `initial`.
So the middleware, or a decorator around the whole view, only leaves the claim on the request. It is
made by who comes first behind the checks: the decorator on the method, or else a hook around
`initial` of the view's class.

Nothing here imports the framework: its views and requests are known by what they have.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from dotmac_tasks.http import Run, ViewOptions
from dotmac_tasks_django.bodies import digest_while_read
from dotmac_tasks_django.protection import (
    Exempt,
    begin,
    end_with_error,
    find_inner_view,
    find_method_options,
    has_key,
    is_concerned,
)

__all__ = [
    "begin_behind_checks",
    "end_with_view",
    "finalize_leniently",
    "find_view",
    "is_left_to_another",
    "is_left_to_view",
    "leave_to_view",
    "warn_of_unclaimed",
    "watch_methods",
]

logger = logging.getLogger(__name__)

_LEFT: Final = "dotmac_tasks_left_to_view"
_HOOKED: Final = "dotmac_tasks_hooked"


class _Left(NamedTuple):
    # What is kept on a request until its view claims.
    view_class: Any
    options: ViewOptions | None


def _get_left(request: HttpRequest) -> _Left:
    left: _Left = getattr(request, _LEFT)
    return left


def find_view(request: Any) -> Any:
    """
    Return the view that handles a request of the framework, or None.
    """
    context: Mapping[str, Any] | None = getattr(request, "parser_context", None)
    return (context or {}).get("view")


def leave_to_view(
    request: HttpRequest,
    options: ViewOptions | Exempt | None,
    view: Callable[..., Any],
    instance: Any = None,
) -> bool:
    """
    Leave the claim of a request to a view of the framework, and tell whether that was done.

    Ending the run stays with the caller, who has a function, or a method and its view.
    """
    view_class = _find_class(view, instance)
    if view_class is None or isinstance(options, Exempt) or not is_concerned(request, options):
        return False
    _hook_into(view_class)
    if has_key(request):
        # A permission may read the data before the claim asks what was in it.
        digest_while_read(request)
    setattr(request, _LEFT, _Left(view_class, options))
    return True


def _find_class(view: Callable[..., Any], instance: Any) -> Any:
    owner: Any = getattr(find_inner_view(view), "cls", None)
    if owner is None and instance is None:
        return None  # a plain view of Django, as most are
    for candidate in (owner, type(instance)):
        # Asynchronous views come from other packages, and take no handler of ours.
        if hasattr(candidate, "perform_authentication") and not candidate.view_is_async:
            return candidate
    return None


def watch_methods() -> None:
    """
    Have bodies digested that a check reads before the decorator of a method claims.

    For projects without the middleware, where nothing comes before the view. Called where
    something is decorated: whoever decorates a view of the framework has imported the framework.
    """
    base: Any = getattr(sys.modules.get("rest_framework.views"), "APIView", None)
    if base is None or hasattr(base.initialize_request, _HOOKED):
        return
    initialize = base.initialize_request

    @wraps(initialize)
    def watch_and_initialize(view: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if has_key(request):
            actions = getattr(view, "action_map", None)
            if isinstance(find_method_options(view, request.method or "", actions), ViewOptions):
                digest_while_read(request)
        return initialize(view, request, *args, **kwargs)

    setattr(watch_and_initialize, _HOOKED, base)
    base.initialize_request = watch_and_initialize


def is_left_to_view(request: HttpRequest) -> bool:
    """
    Tell whether the claim of a request has been left to its view, and is not made yet.
    """
    return _LEFT in vars(request)


def is_left_to_another(request: HttpRequest, view: Any) -> bool:
    """
    Tell whether a view was called by another one, which has not come to its claim yet.

    The claim of the other one is for both: it knows who asks, and sends the whole answer.
    """
    if view is None or not is_left_to_view(request):
        return False
    return _get_left(request).view_class is not type(view)


def begin_behind_checks(
    request: Any, view_kwargs: dict[str, Any], options: ViewOptions | Exempt | None
) -> Run | HttpResponse | None:
    """
    Decide about a request of the framework, as `begin` does, whose checks have been passed.
    """
    django_request: HttpRequest = request._request  # noqa: SLF001 - the framework's one way
    try:
        if not isinstance(options, Exempt) and is_concerned(django_request, options):
            # Some views authenticate only when they are asked who it is. Now somebody asks.
            getattr(request, "user", None)
        return begin(django_request, view_kwargs, options)
    finally:
        # Until now, so that a client that hangs up meanwhile finds one or the other.
        vars(django_request).pop(_LEFT, None)


def warn_of_unclaimed(request: HttpRequest, response: HttpResponseBase) -> None:
    """
    Say so where a view has answered without coming to the claim that was left to it.
    """
    if is_left_to_view(request) and response.status_code < HTTPStatus.BAD_REQUEST:
        logger.warning(
            "%s answered a request and never came to its claim: it is not protected. Have its "
            "dispatch call initial.",
            _get_left(request).view_class.__qualname__,
        )


def finalize_leniently(view: Any) -> None:
    """
    Have a view that expects responses of the framework in `finalize_response` send an answer.

    Such a view has finalized the response that was stored, and refusals are none of its own.
    """
    own = view.finalize_response

    def finalize(request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return own(request, response, *args, **kwargs)
        except AttributeError:
            # It has no data, no renderer and the like.
            framework: Any = sys.modules["rest_framework.views"]
            return framework.APIView.finalize_response(view, request, response, *args, **kwargs)

    view.finalize_response = finalize


def end_with_view(view: Any, run: Run, end: Callable[[HttpResponseBase], None]) -> None:
    """
    End a run with what one view makes of its handler's response or exception.
    """
    finalize = _ended_by_errors(run, view.finalize_response)

    def finalize_and_end(*args: Any, **kwargs: Any) -> HttpResponseBase:
        response: HttpResponseBase = finalize(*args, **kwargs)
        end(response)
        return response

    view.handle_exception = _ended_by_errors(run, view.handle_exception)
    view.finalize_response = finalize_and_end


def _ended_by_errors(run: Run, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            end_with_error(run, error)
            raise

    return call


def _hook_into(view_class: Any) -> None:
    """
    Have views of a class make claims that are left to them, behind all that `initial` checks.
    """
    if getattr(vars(view_class).get("initial"), _HOOKED, None) is view_class:
        return
    initial = view_class.initial

    @wraps(initial)
    def initial_and_claim(view: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        initial(view, request, *args, **kwargs)
        # The hook of a base class, which is a view as well, leaves it to that of the whole view.
        if type(view) is view_class:
            _claim(view, request)

    setattr(initial_and_claim, _HOOKED, view_class)
    # No lock: of two hooks in each other the inner one claims, and the outer finds nothing left.
    view_class.initial = initial_and_claim


def _claim(view: Any, request: Any) -> None:
    verb: str = request.method.lower()
    django_request: HttpRequest = request._request  # noqa: SLF001 - the framework's one way
    is_served = verb in view.http_method_names and hasattr(view, verb)
    if not is_left_to_view(django_request) or not is_served:
        return
    if is_left_to_another(django_request, view):
        return
    options = find_method_options(view, verb, getattr(view, "action_map", None))
    if isinstance(options, ViewOptions):
        return  # the method's decorator claims, behind the checks of the decorators around it
    decision = begin_behind_checks(
        request, view.kwargs, options or _get_left(django_request).options
    )
    if isinstance(decision, HttpResponse):
        _answer_instead(view, decision)


class _AnsweredError(Exception):
    """
    Leaves a view that has its answer already; raised and caught by one thread.
    """


def _answer_instead(view: Any, answer: HttpResponse) -> None:
    """
    End a view before its handler is called, however it would choose one.

    The framework asks `handle_exception` for the response to whatever is raised up to then. A view
    whose own `dispatch` does not ask fails: that is better than work that is done twice.
    """
    handle = view.handle_exception

    def answer_or_handle(error: Exception) -> Any:
        return answer if isinstance(error, _AnsweredError) else handle(error)

    view.handle_exception = answer_or_handle
    finalize_leniently(view)
    raise _AnsweredError
