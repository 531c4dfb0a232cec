"""
Views that count their runs; each shows one thing that the middleware must get right.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from django.contrib.auth.decorators import permission_required
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from dotmac_tasks_django import (
    defer_operation,
    downstream_key,
    get_idempotency_key,
    idempotency_exempt,
    idempotent,
    is_idempotent_request,
    set_operation_result,
)
from support.django_project.calls import count_call
from support.django_project.gate import gate, note


@csrf_exempt
def pay(request: HttpRequest, tenant_id: str = "") -> HttpResponse:
    """
    The work: every run answers differently, so that a replay shows.
    """
    number = count_call("pay")
    response = JsonResponse({"number": number}, status=201)
    response["Location"] = f"/payments/{number}/"
    response["ETag"] = f'"{number}"'
    response["X-Own"] = "not replayed"
    response.set_cookie("flavour", "oat")
    return response


def pay_form(request: HttpRequest) -> HttpResponse:
    """
    The same behind CSRF checks; says what it found in the form.
    """
    number = count_call("form")
    files = {name: file.read().decode("latin-1")[:20] for name, file in request.FILES.items()}
    sizes = {name: file.size for name, file in request.FILES.items()}
    posted = {name: value for name, value in request.POST.items() if name != "csrfmiddlewaretoken"}
    return JsonResponse({"number": number, "posted": posted, "files": files, "sizes": sizes})


def form_page(request: HttpRequest) -> HttpResponse:
    """
    Hands out the CSRF cookie.
    """
    from django.middleware.csrf import get_token

    return HttpResponse(get_token(request))


@csrf_exempt
def upload(request: HttpRequest) -> HttpResponse:
    """
    Reads the form in one of the ways that a view may.
    """
    number = count_call("upload")
    way = request.GET.get("way", "form")
    if way == "body":
        seen: Any = len(request.body)
    elif way == "read":
        seen = len(request.read())
    elif way == "lines":
        seen = sum(len(line) for line in request)
    else:
        seen = {name: [file.name, file.size] for name, file in request.FILES.items()}
    return JsonResponse({"number": number, "seen": seen})


@csrf_exempt
def answer(request: HttpRequest, status: int) -> HttpResponse:
    """
    Answers with the status of its URL.
    """
    return HttpResponse(f"run {count_call('answer')}", status=status)


@csrf_exempt
def broken(request: HttpRequest, error: str) -> HttpResponse:
    """
    Ends with the exception of its URL.
    """
    count_call("broken")
    errors: dict[str, BaseException] = {
        "missing": Http404("none"),
        "denied": PermissionDenied(),
        "bug": ValueError("a bug"),
        "exit": SystemExit(1),
    }
    raise errors[error]


@csrf_exempt
def binary(request: HttpRequest) -> HttpResponse:
    """
    Bytes that are no text.
    """
    return HttpResponse(bytes(range(256)) * count_call("binary"), content_type="image/png")


@csrf_exempt
def empty(request: HttpRequest) -> HttpResponse:
    """
    No body and no content type.
    """
    count_call("empty")
    response = HttpResponse(status=204)
    del response["Content-Type"]
    return response


@csrf_exempt
def receipt(request: HttpRequest) -> HttpResponse:
    """
    Rendered behind the view.
    """
    return TemplateResponse(request, "receipt.html", {"number": count_call("receipt")})


class Breaks:
    """
    Breaks in the middle of a template.
    """

    def __str__(self) -> str:
        raise ValueError("broken template")


@csrf_exempt
@idempotent
def broken_receipt(request: HttpRequest) -> HttpResponse:
    """
    Breaks while it is rendered.
    """
    count_call("broken_receipt")
    return TemplateResponse(request, "broken.html", {"broken": Breaks()})


def chunks(breaks: bool) -> Iterator[bytes]:
    """
    Two chunks, or one and an exception.
    """
    yield b"one,"
    if breaks:
        raise ValueError("broken stream")
    yield b"two"


@csrf_exempt
def stream(request: HttpRequest) -> HttpResponseBase:
    """
    A body that comes bit by bit.
    """
    count_call("stream")
    return StreamingHttpResponse(chunks("break" in request.GET))


async def async_chunks(breaks: bool) -> AsyncIterator[bytes]:
    """
    The same for an asynchronous server.
    """
    for chunk in chunks(breaks):
        yield chunk


@csrf_exempt
def async_stream(request: HttpRequest) -> HttpResponseBase:
    """
    An asynchronous body from a synchronous view.
    """
    count_call("stream")
    return StreamingHttpResponse(async_chunks("break" in request.GET))


@csrf_exempt
def file(request: HttpRequest) -> HttpResponseBase:
    """
    A file.
    """
    count_call("file")
    return FileResponse(io.BytesIO(b"content"), filename="a.txt")


@csrf_exempt
async def async_pay(request: HttpRequest) -> HttpResponse:
    """
    An asynchronous view.
    """
    return JsonResponse({"number": count_call("async_pay")})


@csrf_exempt
@idempotency_exempt
def exempt(request: HttpRequest) -> HttpResponse:
    """
    Never protected.
    """
    return JsonResponse({"number": count_call("exempt")})


@csrf_exempt
@idempotent(required=True, in_progress="conflict")
def required(request: HttpRequest) -> HttpResponse:
    """
    Refused without a key.
    """
    return JsonResponse({"number": count_call("required")})


@csrf_exempt
@idempotent(fingerprint=lambda request: json.loads(request.body)["order"])
def selected(request: HttpRequest) -> HttpResponse:
    """
    Looks at one field of the body only.
    """
    return JsonResponse({"number": count_call("selected")})


@csrf_exempt
def told(request: HttpRequest) -> HttpResponse:
    """
    Says what the helpers say.
    """
    count_call("told")
    return JsonResponse(
        {
            "key": get_idempotency_key(request),
            "recognised": is_idempotent_request(request),
            "downstream": downstream_key(request, "charge"),
            "other": downstream_key(request, "mail"),
        }
    )


@csrf_exempt
def with_result(request: HttpRequest) -> HttpResponse:
    """
    Sets what retries get.
    """
    set_operation_result(request, {"number": count_call("with_result")})
    return HttpResponse("the first answer", status=202)


@csrf_exempt
def deferred(request: HttpRequest) -> HttpResponse:
    """
    Hands its work on.
    """
    count_call("deferred")
    return HttpResponse(defer_operation(request, timeout=60) or "", status=202)


@csrf_exempt
def who(request: HttpRequest) -> HttpResponse:
    """
    Looks at the user only where it is asked to.
    """
    count_call("who")
    return HttpResponse(str(request.user) if "look" in request.GET else "somebody")


@csrf_exempt
def long(request: HttpRequest) -> HttpResponse:
    """
    Long enough to be compressed.
    """
    return HttpResponse(str(count_call("long")) * 5000)


@csrf_exempt
def gated(request: HttpRequest) -> HttpResponse:
    """
    Works until the gate opens.
    """
    gate.pass_through()
    return HttpResponse(f"run {count_call('gated')}")


@csrf_exempt
async def async_gated(request: HttpRequest) -> HttpResponse:
    """
    The same, and notes whether it was cancelled.
    """
    gate.entered.set()
    try:
        while not gate.leave.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        gate.cancelled = True
        raise
    return HttpResponse(f"run {count_call('gated')}")


@csrf_exempt
async def set_context(request: HttpRequest) -> HttpResponse:
    """
    Leaves a note in a context variable.
    """
    note.set("set by the view")
    return HttpResponse()


@csrf_exempt
def insert(request: HttpRequest) -> HttpResponse:
    """
    Writes a row that only COMMIT refuses, where it is asked to.
    """
    number = count_call("insert")
    with connection.cursor() as cursor:
        parent = 99 if "orphan" in request.GET else 1
        cursor.execute("INSERT INTO child (parent) VALUES (%s)", [parent])
    return JsonResponse({"number": number})


@csrf_exempt
@idempotent
def decorated_insert(request: HttpRequest) -> HttpResponse:
    """
    The same, decorated.
    """
    return insert(request)


@csrf_exempt
@permission_required("auth.add_user", raise_exception=True)
@idempotent
def guarded(request: HttpRequest) -> HttpResponse:
    """
    Needs a permission, which is checked around the decorator.
    """
    return JsonResponse({"number": count_call("guarded")})


@idempotent
def inner_pay(request: HttpRequest) -> HttpResponse:
    """
    Decorated, and called by another decorated view.
    """
    return JsonResponse({"number": count_call("inner")})


@csrf_exempt
@idempotent
def outer_pay(request: HttpRequest) -> HttpResponse:
    """
    Calls a decorated view.
    """
    return inner_pay(request)


@method_decorator(csrf_exempt, name="dispatch")
class PayView(View):
    """
    One method needs a key, one does not care, one is left alone.
    """

    @idempotent(required=True)
    def post(self, request: HttpRequest) -> HttpResponse:
        """
        Needs a key.
        """
        return JsonResponse({"number": count_call("PayView.post")})

    def patch(self, request: HttpRequest) -> HttpResponse:
        """
        Does not care.
        """
        return JsonResponse({"number": count_call("PayView.patch")})

    @method_decorator(idempotency_exempt)
    def put(self, request: HttpRequest) -> HttpResponse:
        """
        Left alone.
        """
        return JsonResponse({"number": count_call("PayView.put")})


@idempotent(required=True)
@method_decorator(csrf_exempt, name="dispatch")
class RequiredView(View):
    """
    The decorator stands on the class; one method differs.
    """

    def post(self, request: HttpRequest) -> HttpResponse:
        """
        Needs a key like the class.
        """
        return JsonResponse({"number": count_call("RequiredView.post")})

    @idempotent(required=False)
    def patch(self, request: HttpRequest) -> HttpResponse:
        """
        Needs none.
        """
        return JsonResponse({"number": count_call("RequiredView.patch")})
