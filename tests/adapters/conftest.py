"""
Every adapter with every storage: the table that the behaviour suite runs over.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from support.backends import Backend, MemoryBackend, open_backend
from support.faulty import FaultyStorage
from support.http_clients import ADAPTERS, Handler, HttpClient

NEEDS_DJANGO = pytest.mark.skipif(
    importlib.util.find_spec("django") is None, reason="Django is not installed"
)
# What depends on the adapter alone runs over memory; what the storage has a part in, over both.
STORAGES = ["memory", pytest.param("redis", marks=pytest.mark.redis)]

Serve = Callable[..., HttpClient]


@pytest.fixture(params=["wsgi", pytest.param("django", marks=NEEDS_DJANGO)])
def adapter(request: pytest.FixtureRequest) -> str:
    """
    The name of one adapter.
    """
    name: str = request.param
    return name


@pytest.fixture(params=STORAGES)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """
    One storage, empty.
    """
    with open_backend(request.param, request) as opened:
        yield opened


@pytest.fixture
def faulty() -> FaultyStorage:
    """
    A storage in memory that fails when the test says so.
    """
    return FaultyStorage()


@pytest.fixture
def serve(adapter: str) -> Iterator[Serve]:
    """
    Open a client: `serve(handler, storage=None, **settings)`.

    Whatever a test has done, no claim may be left that is renewed.
    """
    with ExitStack() as stack:
        clients: list[HttpClient] = []

        def open_client(handler: Handler, storage: Any = None, **settings: Any) -> HttpClient:
            storage = MemoryBackend().storage if storage is None else storage
            client = stack.enter_context(ADAPTERS[adapter](handler, storage, settings))
            clients.append(client)
            return client

        yield open_client
        assert [client.manager.heartbeat.held_count for client in clients] == [0] * len(clients)
