"""
Per-view options, and protection for a view where the middleware is not installed.

Under the middleware a decorated view is claimed once, by the middleware, which
reads the options from the view and leaves it to the decorator to send a stored
answer. Without the middleware the decorator does all of it around the view
itself. Views of the REST framework are claimed behind its checks in both cases;
see `rest_views`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypedDict, TypeVar, Unpack, cast, overload

from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import SimpleTemplateResponse

from dotmac_tasks.config import InProgressAnswer, StorageErrorPolicy
from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.http import Run, ViewOptions
from dotmac_tasks.models import AbandonedPolicy
from dotmac_tasks.reconciliation import Reconcile
from dotmac_tasks_django.bodies import call_on_close
from dotmac_tasks_django.protection import (
    EXEMPT,
    Exempt,
    begin,
    end,
    end_with_error,
    find_inner_view,
    find_method_options,
    find_options,
    find_run,
    hide_directive,
    is_decided,
    set_options,
    take_answer,
)
from dotmac_tasks_django.rest_views import (
    begin_behind_checks,
    end_with_view,
    finalize_leniently,
    find_view,
    is_left_to_another,
    is_left_to_view,
    leave_to_view,
    warn_of_unclaimed,
    watch_methods,
)

__all__ = ["idempotency_exempt", "idempotent"]

_ViewT = TypeVar("_ViewT", bound=Callable[..., Any])


class _Options(TypedDict, total=False):
    # The fields of ViewOptions, for the type checker.
    required: bool
    ttl: float
    lease: float
    in_progress: InProgressAnswer
    wait: float
    on_storage_error: StorageErrorPolicy
    on_abandoned: AbandonedPolicy
    reconcile: Reconcile
    fingerprint: Callable[[Any], Any]


@overload
def idempotent(view: _ViewT, /) -> _ViewT: ...
@overload
def idempotent(**options: Unpack[_Options]) -> Callable[[_ViewT], _ViewT]: ...
def idempotent(view: Any = None, /, **options: Any) -> Any:
    """
    Protect a view, or set for it what differs from the project's settings.

    For functions, for methods of class-based views (`post`, or an action of a
    viewset), for the classes themselves, and through `method_decorator`. Used
    bare or with options: `required`, `ttl`, `lease`, `in_progress`, `wait`,
    `on_storage_error`, `on_abandoned`, `reconcile`, `fingerprint`; see `ViewOptions`.

    A stored answer is sent from where the decorator stands: permission checks of
    decorators around it come first. Put it below them. The checks of a REST
    framework come first wherever it stands.

    Without the middleware an exception of a view of Django gives the key back,
    whatever status Django makes of it.

    Raises:
        ConfigurationError: An option is unknown or wrong, or this is no
            synchronous view; when the module is imported, not in a request.
    """
    chosen = _to_options(options)
    if view is not None:
        return _decorate(view, chosen)
    return lambda subject: _decorate(subject, chosen)


def idempotency_exempt(view: _ViewT, /) -> _ViewT:
    """
    Leave a view alone, whatever keys its requests have.

    Raises:
        ConfigurationError: This is no synchronous view, or it is decorated already.
    """
    decorated: _ViewT = _decorate(view, EXEMPT)
    return decorated


def _to_options(options: dict[str, Any]) -> ViewOptions:
    try:
        return ViewOptions(**options)
    except TypeError:
        known = ViewOptions.__dataclass_fields__
        name = next(name for name in options if name not in known)
        raise ConfigurationError(
            name, f"is no option of a view. Choose from {', '.join(known)}."
        ) from None


def _decorate(view: Any, options: ViewOptions | Exempt) -> Any:
    if isinstance(view, type):
        dispatch = getattr(view, "dispatch", None)
        if dispatch is None or getattr(view, "view_is_async", False):
            raise _refused(view, "is no class of synchronous views")
        if "dispatch" in vars(view):  # what a base class says may be said anew
            _check_view(dispatch)
        view.dispatch = _wrap(dispatch, options)  # type: ignore[attr-defined] # looked up above
        return view
    _check_view(view)
    return _wrap(view, options)


def _check_view(view: Any) -> None:
    if not callable(view):
        raise _refused(view, "is no view; options are passed by name")
    if inspect.iscoroutinefunction(view):
        raise _refused(
            view, "is asynchronous; leave it undecorated, the middleware runs around it in a thread"
        )
    if find_options(view) is not None:
        raise _refused(view, "is decorated already; keep one of the two")


def _refused(view: Any, reason: str) -> ConfigurationError:
    return ConfigurationError("view", f"{getattr(view, '__qualname__', view)!r} {reason}")


def _wrap(view: Callable[..., Any], options: ViewOptions | Exempt) -> Callable[..., Any]:
    @wraps(view)
    def protected(*args: Any, **kwargs: Any) -> Any:
        given, request = _find_request(args)
        answer = take_answer(request)
        if answer is not None:
            return answer
        call = partial(view, *args, **kwargs)
        # The middleware, or a decorated view around this one, has seen to it.
        if is_decided(request):
            return call()
        if given is not request:
            watch_methods()  # the framework may have been imported since
            return _call_behind_checks(call, given, request, kwargs, options)
        if is_left_to_view(request):
            return call()
        instance = _find_instance(view, args)
        actions = getattr(instance, "action_map", None)
        chosen = find_method_options(instance, request.method or "", actions) or options
        if not leave_to_view(request, chosen, view, instance):
            decision = begin(request, kwargs, chosen)
            if isinstance(decision, HttpResponse):
                return decision
        return _run_view(call, request)

    set_options(protected, options)
    watch_methods()
    return protected


def _find_request(args: tuple[Any, ...]) -> tuple[Any, HttpRequest]:
    """
    Return the view's request, and Django's, which that of the REST framework wraps.
    """
    for candidate in args[:2]:  # a function gets it first, a method second
        request = getattr(candidate, "_request", candidate)
        if isinstance(request, HttpRequest):
            return candidate, request
    raise TypeError("A decorated view was called without a request as its first argument.")


def _find_instance(view: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """
    Return the class-based view whose method is decorated; anything else for a function.
    """
    return getattr(find_inner_view(view), "__self__", args[0])


def _call_behind_checks(
    call: Callable[[], HttpResponseBase],
    given: Any,
    request: HttpRequest,
    view_kwargs: dict[str, Any],
    options: ViewOptions | Exempt,
) -> HttpResponseBase:
    # Who has left the claim ends the run.
    is_left, view = is_left_to_view(request), find_view(given)
    if is_left_to_another(request, view):
        return call()
    decision = begin_behind_checks(given, view_kwargs, options)
    if isinstance(decision, HttpResponse):
        if view is not None:
            finalize_leniently(view)
        return decision
    if is_left:
        return call()
    if decision is None:
        response = call()
        hide_directive(response)
        return response
    run = decision
    if view is None:
        return _run_view(call, request)
    end_with_view(view, run, lambda response: _end_with_response(run, request, response))
    try:
        return call()
    except Exception:
        raise  # the view makes a response of it, which ends the run
    except BaseException:
        run.abandon()
        raise


def _run_view(call: Callable[[], HttpResponseBase], request: HttpRequest) -> HttpResponseBase:
    try:
        response = call()
    except BaseException as error:
        run = find_run(request)
        if run is not None:
            end_with_error(run, error)
        raise
    run = find_run(request)
    if run is None:
        warn_of_unclaimed(request, response)
        hide_directive(response)
    else:
        _end_with_response(run, request, response)
    return response


def _end_with_response(run: Run, request: HttpRequest, response: HttpResponseBase) -> None:
    if hasattr(request, "scope") and hasattr(response, "render"):
        # Under ASGI Django drops the response of a client that hung up, and renders it no more.
        # The work is done all the same; nobody closes the request either.
        _render_now(run, cast(SimpleTemplateResponse, response))
    if getattr(response, "is_rendered", True):
        _after_commit(lambda: end(run, request, response), request, run)
    else:
        _end_when_rendered(run, request, response)


def _render_now(run: Run, response: SimpleTemplateResponse) -> None:
    try:
        response.render()
    except BaseException as error:
        end_with_error(run, error)
        raise


def _after_commit(record: Callable[[], None], request: HttpRequest, run: Run) -> None:
    # ATOMIC_REQUESTS puts its transaction around the decorator. What has not been
    # committed is not an outcome: it is recorded behind the commit, or given back.
    # One that is going to be rolled back has an outcome without effects.
    atomic = [
        connection.alias
        for connection in connections.all(initialized_only=True)
        if connection.settings_dict["ATOMIC_REQUESTS"]
        and connection.in_atomic_block
        and not connection.needs_rollback
    ]
    if not atomic:
        record()
        return
    call_on_close(request, run.fail)
    # Of several databases Django commits the last one last.
    transaction.on_commit(record, using=atomic[-1])


def _end_when_rendered(run: Run, request: HttpRequest, response: Any) -> None:
    # Django and the REST framework render behind the view, and behind its transaction.
    render = response.render

    def render_and_end() -> HttpResponseBase:
        del response.render
        try:
            rendered: HttpResponseBase = render()
        except BaseException as error:
            end_with_error(run, error)
            raise
        end(run, request, rendered)
        return rendered

    response.render = render_and_end
    call_on_close(request, run.fail)
