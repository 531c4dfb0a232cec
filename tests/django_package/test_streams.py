"""
Large and live answers under both of Django's servers' interfaces.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from dotmac_tasks_django.testing import override_tasks_settings

KEY = {"Idempotency-Key": "key-1"}
PIECE = bytes(range(250)) * 400


def serve(view: Any) -> AbstractContextManager[Any]:
    """
    Put a view at the root.
    """
    return override_settings(ROOT_URLCONF=(path("", csrf_exempt(view)),))


def test_asgi_stream_over_the_cap_reaches_the_first_client_whole() -> None:
    """
    Of 3 MB from an asynchronous generator each byte arrives once, and it is closed once.
    """
    closed: list[str] = []

    async def pieces() -> AsyncIterator[bytes]:
        try:
            for _ in range(30):
                yield PIECE
        finally:
            closed.append("closed")

    def view(request: HttpRequest) -> HttpResponseBase:
        return StreamingHttpResponse(pieces(), status=201, headers={"ETag": '"film"', "X-Own": "1"})

    async def send(headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        response = await AsyncClient().post("/", headers=headers)
        body = b"".join([piece async for piece in response]) if response.streaming else b""
        return response.status_code, dict(response.headers), body

    async def run() -> Any:
        return [await send(headers) for headers in ({}, KEY, KEY)]

    with serve(view), override_tasks_settings(max_response_bytes=1_048_576):
        plain, first, again = asyncio.run(run())
    assert first[0] == plain[0] == 201
    assert first[1] == {**plain[1], "X-Idempotency-Key": "key-1"}
    assert first[2] == plain[2] == PIECE * 30
    assert again[0] == 409
    assert closed == ["closed", "closed"]


def test_asgi_events_go_out_as_they_come() -> None:
    """
    Of server-sent events each is with the client before the next is made.
    """
    log: list[str] = []

    async def events() -> AsyncIterator[bytes]:
        for number in range(3):
            log.append(f"made {number}")
            yield b"data: %d\n\n" % number

    async def view(request: HttpRequest) -> HttpResponseBase:
        return StreamingHttpResponse(events(), content_type="text/event-stream")

    async def run() -> Any:
        response = await AsyncClient().post("/", headers=KEY)
        async for event in response:
            log.append(f"got {event[6:7].decode()}")
        again = await AsyncClient().post("/", headers=KEY)
        return response["Content-Type"], again.status_code

    with serve(view):
        assert asyncio.run(run()) == ("text/event-stream", 409)
    assert log == ["made 0", "got 0", "made 1", "got 1", "made 2", "got 2"]


class Film(io.BytesIO):
    """
    A file that counts how often it was closed while it was open.
    """

    closings = 0

    def close(self) -> None:
        if not self.closed:
            type(self).closings += 1
        super().close()


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume:Warning")
@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_file_reaches_the_first_client_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file over the cap comes with its headers, byte for byte, and is closed once.
    """
    monkeypatch.setattr(Film, "closings", 0)

    def view(request: HttpRequest) -> HttpResponseBase:
        return FileResponse(Film(PIECE * 30), as_attachment=True, filename="film.mp4")

    async def send_async() -> tuple[Any, bytes]:
        response = await AsyncClient().post("/", headers=KEY)
        body = b"".join([piece async for piece in response])
        await asyncio.to_thread(response.close)
        return response, body

    def send() -> tuple[Any, bytes]:
        response = Client().post("/", headers=KEY)
        return response, response.getvalue()

    with serve(view):
        response, body = asyncio.run(send_async()) if kind == "asgi" else send()
        assert Client().post("/", headers=KEY).status_code == 409
    assert body == PIECE * 30
    assert response["Content-Length"] == str(len(body))
    assert response["Content-Type"] == "video/mp4"
    assert response["Content-Disposition"] == 'attachment; filename="film.mp4"'
    assert Film.closings == 1


def test_whole_answer_over_the_cap_reaches_the_first_asgi_client() -> None:
    """
    An answer that is too large to keep is sent like any other.
    """

    async def view(request: HttpRequest) -> HttpResponseBase:
        return HttpResponse(PIECE * 30, content_type="video/mp4")

    async def run() -> Any:
        return [await AsyncClient().post("/", headers=KEY) for _ in range(2)]

    with serve(view):
        first, again = asyncio.run(run())
    assert first.content == PIECE * 30
    assert (again.status_code, again.json()["type"][-14:]) == (409, "not-replayable")
