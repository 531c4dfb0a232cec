"""
Django handlers that differ in one line of `MIDDLEWARE`, and requests for them.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from time import perf_counter
from typing import Any, NamedTuple

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings

BODY = (
    b'{"product": "green tea", "quantity": 2, "price": "12.40", '
    b'"address": {"street": "Long Lane 7", "city": "Bristol"}}'
)

BARE = "bare view"
EMPTY = "empty middleware"
SHORTCUT = "ready answer"
FLOOR = "floor"
OURS = "dotmac-tasks"
RIVAL = "drf-idempotency"

EMPTY_MIDDLEWARE = "benchmarks.site.Empty"
SHORTCUT_MIDDLEWARE = "benchmarks.site.Shortcut"
REDIS_FLOOR = "benchmarks.floor.RedisFloor"
MEMORY_FLOOR = "benchmarks.floor.MemoryFloor"
OUR_MIDDLEWARE = "dotmac_tasks_django.middleware.BackgroundOperationsMiddleware"
RIVAL_MIDDLEWARE = "drf_idempotency.middleware.IdempotencyMiddleware"

_KEYS = (f"{secrets.token_hex(8)}-{number}" for number in itertools.count())


class Reply(NamedTuple):
    """
    What a client gets. Immutable, so it may be shared between threads.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """
        Return the first header of that name, or None.
        """
        return next((text for each, text in self.headers if each.lower() == name.lower()), None)


def configure(**more: Any) -> None:
    """
    Set Django up, once per process; `more` are settings that differ from the usual ones.
    """
    usual = {
        "ALLOWED_HOSTS": ["*"],
        "DATABASES": {},
        "DEBUG_PROPAGATE_EXCEPTIONS": True,
        "DOTMAC_TASKS": {"STORAGE": "memory://"},
        "INSTALLED_APPS": ["dotmac_tasks_django"],
        "LOGGING_CONFIG": None,
        "MIDDLEWARE": [],
        "ROOT_URLCONF": "benchmarks.site",
        "SECRET_KEY": secrets.token_hex(16),
        "USE_TZ": True,
    }
    settings.configure(**{**usual, **more})
    django.setup()


def new_key() -> str:
    """
    Return a key that was not used before.
    """
    return next(_KEYS)


def build_handler(*middleware: str) -> WSGIHandler:
    """
    Return a WSGI application of the site with those middlewares inside sign-in.
    """
    with override_settings(MIDDLEWARE=["benchmarks.site.signed_in", *middleware]):
        return WSGIHandler()


@contextmanager
def our_storage(storage: Any, **more: Any) -> Iterator[None]:
    """
    Let our middleware use a storage within the block.
    """
    with override_settings(DOTMAC_TASKS={"STORAGE": storage, **more}):
        yield


def build_environ(
    key: str | None = None,
    *,
    method: str = "POST",
    path: str = "/orders/",
    query: str = "",
    body: bytes = BODY,
    user: int | None = None,
) -> dict[str, Any]:
    """
    Return what a WSGI server hands to the application for one request.
    """
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "443",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "203.0.113.7",
        "HTTP_HOST": "shop.example",
        "HTTP_ACCEPT": "application/json",
        "HTTP_USER_AGENT": "shop-app/7.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": BytesIO(body),
        "wsgi.errors": BytesIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if key is not None:
        environ["HTTP_IDEMPOTENCY_KEY"] = key
    if user is not None:
        environ["HTTP_X_TEST_USER"] = str(user)
    return environ


def send(handler: WSGIHandler, environ: dict[str, Any]) -> Reply:
    """
    Serve one request and return the whole answer.
    """
    heads: list[tuple[str, list[tuple[str, str]]]] = []
    response = handler(environ, lambda status, headers, *_: heads.append((status, headers)))
    body = b"".join(response)
    response.close()
    status, headers = heads[0]
    return Reply(int(status.split()[0]), headers, body)


def time_requests(handler: WSGIHandler, environs: Sequence[dict[str, Any]]) -> float:
    """
    Serve requests one after the other; return the seconds that one took.
    """
    start = perf_counter()
    for environ in environs:
        response = handler(environ, _ignore)
        for _ in response:
            pass
        response.close()
    return (perf_counter() - start) / len(environs)


def _ignore(status: str, headers: list[tuple[str, str]], *rest: object) -> None:
    pass
