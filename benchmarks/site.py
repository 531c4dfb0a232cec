"""
The smallest Django site that takes an order: URLs, views and who is signed in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path

CUSTOMER = SimpleNamespace(pk=42, is_authenticated=True)

ANSWER = b'{"order": 1042, "status": "accepted", "quantity": 2}'

calls = 0
"""
How often the trivial view ran.
"""

script: list[Callable[[HttpRequest], HttpResponseBase]] = []
"""
What the scripted view does, last entry first; the checks of the floor fill it.
"""


def signed_in(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """
    Stand in for authentication, which every stack here has alike.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        number = request.META.get("HTTP_X_TEST_USER")
        user = SimpleNamespace(pk=int(number), is_authenticated=True) if number else CUSTOMER
        request.user = user  # type: ignore[assignment]
        return get_response(request)

    return middleware


class Empty:
    """
    A middleware that does nothing, with the two hooks that the others have.

    Shared by all threads.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """
        Pass the request on.
        """
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: Any) -> HttpResponseBase | None:
        """
        Let the view run.
        """
        return None


class Shortcut(Empty):
    """
    A middleware that answers instead of the view, with a response at hand.

    Shared by all threads.
    """

    def process_view(self, request: HttpRequest, *_: Any) -> HttpResponseBase | None:
        """
        Answer as the view would.
        """
        headers = {"Content-Type": "application/json"}
        return HttpResponse(ANSWER, status=201, headers=headers)


def order(request: HttpRequest) -> HttpResponse:
    """
    Take an order: read the body, answer in JSON, do nothing else.
    """
    global calls
    calls += 1
    wanted = json.loads(request.body)
    return JsonResponse(
        {"order": 1042, "status": "accepted", "quantity": wanted["quantity"]}, status=201
    )


def scripted(request: HttpRequest) -> HttpResponseBase:
    """
    Do what the check at hand wants.
    """
    return script.pop()(request)


urlpatterns: list[Any] = [
    path("orders/", order),
    path("health/", order),
    path("scripted/", scripted),
]
