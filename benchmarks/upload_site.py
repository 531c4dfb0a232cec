"""
The upload endpoints that gunicorn serves for the measurements: `django_app` and `wsgi_app`.

Both keep what they get in a temporary file, as upload endpoints do. They tell which process has
answered and how many bytes it found.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest, JsonResponse
from django.urls import path

from benchmarks import stacks
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.wsgi import BackgroundOperationsMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_STEP = 64 * 1024


def _store(stream: Any) -> int:
    with TemporaryFile() as kept:
        shutil.copyfileobj(stream, kept, _STEP)
        return kept.tell()


def form(request: HttpRequest) -> JsonResponse:
    """
    Take a form; Django's default upload handlers put its files into temporary files.
    """
    return _answer(sum(file.size or 0 for file in request.FILES.values()))


def raw(request: HttpRequest) -> JsonResponse:
    """
    Take a body of bytes.
    """
    return _answer(_store(request))


def document(request: HttpRequest) -> JsonResponse:
    """
    Take a JSON document.
    """
    return _answer(len(json.load(request)["content"]))


def _answer(size: int) -> JsonResponse:
    return JsonResponse({"process": os.getpid(), "size": size})


urlpatterns = [path("form", form), path("raw", raw), path("json", document)]


def django_app() -> WSGIApplication:
    """
    Return the Django site with our middleware, over a memory storage.
    """
    stacks.configure(
        MIDDLEWARE=[stacks.OUR_MIDDLEWARE], ROOT_URLCONF=__name__, DATA_UPLOAD_MAX_MEMORY_SIZE=None
    )
    return stacks.WSGIHandler()


def wsgi_app() -> WSGIApplication:
    """
    Return a plain application in our middleware, over a memory storage.
    """
    return BackgroundOperationsMiddleware(_plain, BackgroundOperationsManager())


def _plain(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    size = _store(environ["wsgi.input"])
    body = json.dumps({"process": os.getpid(), "size": size}).encode()
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    )
    return [body]
