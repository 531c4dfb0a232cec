"""
That the floor is correct, so that a comparison with it means something.
"""

from __future__ import annotations

from collections.abc import Callable

from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from benchmarks import site
from benchmarks.stacks import Reply, build_environ, new_key, send


class _Site:
    """
    Sends requests to one stack and counts what its view did. One per thread.
    """

    def __init__(self, handler: WSGIHandler) -> None:
        self.handler = handler
        self.runs = 0

    def send(
        self,
        key: str,
        response: Callable[[], HttpResponseBase] = lambda: HttpResponse(b"made", status=201),
        **facts: object,
    ) -> Reply:
        def view(request: HttpRequest) -> HttpResponseBase:
            self.runs += 1
            return response()

        site.script.append(view)
        try:
            return send(self.handler, build_environ(key, path="/scripted/", **facts))  # type: ignore[arg-type]
        finally:
            if view in site.script:
                site.script.remove(view)


def check_floor(handler: WSGIHandler, forget: Callable[[], None]) -> dict[str, bool]:
    """
    Try the situations that a middleware must get right; tell which ones it does.

    Args:
        handler: The site behind the middleware.
        forget: Removes all records, as the end of a lease would.
    """
    return {
        "a retry gets the first answer": _replays(_Site(handler)),
        "a quoted key is its bare text": _unquotes(_Site(handler)),
        "a malformed key is refused": _refuses_malformed(_Site(handler)),
        "another request under the key is refused": _refuses_mismatch(_Site(handler)),
        "another user's key is another key": _separates_users(_Site(handler)),
        "a duplicate of a running one does not run": _refuses_running(_Site(handler)),
        "a failure gives the key back": _releases(_Site(handler)),
        "a client error is kept": _keeps_client_errors(_Site(handler)),
        "cookies are not replayed": _drops_cookies(_Site(handler)),
        "a stream is never run twice": _keeps_stream_once(_Site(handler)),
        "an executor that lost its claim records nothing": _fences(_Site(handler), forget),
    }


def _replays(shop: _Site) -> bool:
    key = new_key()
    first, second = shop.send(key), shop.send(key)
    same = (first.status, first.body) == (second.status, second.body) == (201, b"made")
    marked = second.header("Idempotent-Replayed") == "true"
    return same and marked and first.header("Idempotent-Replayed") is None and shop.runs == 1


def _unquotes(shop: _Site) -> bool:
    key = new_key()
    shop.send(key)
    return shop.send(f'"{key}"').status == 201 and shop.runs == 1


def _refuses_malformed(shop: _Site) -> bool:
    keys = ("", '""', "a,b", '"open', "x" * 256, "tab\t", "é")
    return all(shop.send(key).status == 400 for key in keys) and shop.runs == 0


def _refuses_mismatch(shop: _Site) -> bool:
    key = new_key()
    shop.send(key)
    answers = (
        shop.send(key, body=b"{}"),
        shop.send(key, query="dry_run=1"),
        shop.send(key, method="PATCH"),
    )
    return all(answer.status == 422 for answer in answers) and shop.runs == 1


def _separates_users(shop: _Site) -> bool:
    key = new_key()
    shop.send(key)
    shop.send(key, user=7)
    return shop.runs == 2


def _refuses_running(shop: _Site) -> bool:
    key = new_key()
    inner: list[Reply] = []

    def response() -> HttpResponseBase:
        inner.append(shop.send(key))
        return HttpResponse(b"made", status=201)

    shop.send(key, response)
    return inner[0].status == 202 and inner[0].header("Retry-After") is not None and shop.runs == 1


def _releases(shop: _Site) -> bool:
    for status in (500, 503, 409, 429):
        key = new_key()
        before = shop.runs
        shop.send(key, lambda status=status: HttpResponse(status=status))  # type: ignore[misc]
        if shop.send(key).status != 201 or shop.runs != before + 2:
            return False
    return True


def _keeps_client_errors(shop: _Site) -> bool:
    key = new_key()
    shop.send(key, lambda: HttpResponse(b"no tea left", status=422))
    answer = shop.send(key)
    return (answer.status, answer.body) == (422, b"no tea left") and shop.runs == 1


def _drops_cookies(shop: _Site) -> bool:
    key = new_key()

    def response() -> HttpResponseBase:
        made = HttpResponse(b"made", status=201, headers={"Location": "/orders/7"})
        made.set_cookie("session", "secret")
        return made

    first, second = shop.send(key, response), shop.send(key, response)
    kept = second.header("Location") == "/orders/7" and second.header("Set-Cookie") is None
    return kept and first.header("Set-Cookie") is not None


def _keeps_stream_once(shop: _Site) -> bool:
    key = new_key()
    first = shop.send(key, lambda: StreamingHttpResponse(iter([b"a", b"b"])))
    return first.body == b"ab" and shop.send(key).status == 409 and shop.runs == 1


def _fences(shop: _Site, forget: Callable[[], None]) -> bool:
    key = new_key()

    def slow() -> HttpResponseBase:
        forget()
        shop.send(key, lambda: HttpResponse(b"second", status=201))
        return HttpResponse(b"first", status=201)

    first = shop.send(key, slow)
    return first.body == b"first" and shop.send(key).body == b"second" and shop.runs == 2
