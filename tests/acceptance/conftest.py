"""
Servers and workers of the acceptance tests, all of them real processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from support.proxy import RedisProxy

if TYPE_CHECKING:
    from support.redis_server import RedisServer
    from support.workers import Worker

OpenWorkers = Callable[..., "list[Worker]"]


@pytest.fixture(params=["wsgi", "django"])
def adapter(request: pytest.FixtureRequest) -> str:
    """
    Each adapter in turn.
    """
    if request.param == "django":
        pytest.importorskip("django")
    return str(request.param)


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[RedisProxy]:
    """
    A proxy in front of the Redis of the whole run.
    """
    with RedisProxy(redis_server.port) as running:
        yield running


@pytest.fixture
def private_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """
    A Redis for one test, which may stop it; its data survives that.
    """
    from support.redis_server import RedisServer, find_redis_server

    if find_redis_server() is None:
        pytest.skip("redis-server is not installed")
    with RedisServer(appendonly=True) as server:
        yield server


@pytest.fixture
def open_workers(random_prefix: str) -> Iterator[OpenWorkers]:
    """
    Start so many workers over one storage: `open_workers(2, "wsgi", url, lease=30)`.
    """
    pytest.importorskip("redis")
    from support.workers import Worker

    with ExitStack() as stack:

        def open_them(
            n: int, adapter: str, url: str, *, clock_offset: float = 0, **settings: Any
        ) -> list[Worker]:
            settings = {"storage": url, "key_prefix": random_prefix, **settings}
            workers = [Worker(adapter, clock_offset=clock_offset, **settings) for _ in range(n)]
            # All are started before the first is awaited.
            for worker in workers:
                stack.callback(worker.close)
            for worker in workers:
                worker.await_ready()
            return workers

        yield open_them


@pytest.fixture
def age(redis_server: RedisServer, random_prefix: str) -> Iterator[Callable[[float], None]]:
    """
    Make all that this test stored so many seconds older, as if the time had passed.
    """
    redis = pytest.importorskip("redis")
    from support.backends import age_redis

    with redis.Redis.from_url(redis_server.url()) as client:
        yield lambda seconds: age_redis(client, random_prefix, round(seconds * 1000))
