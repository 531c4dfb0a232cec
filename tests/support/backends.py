"""
The table of storages that the contract is tested over, and what a test may do to each.

A test takes time by making what is stored older, never by waiting.
"""

from __future__ import annotations

import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from dotmac_tasks.models import ClaimRequest
from dotmac_tasks.storage import MemoryStorage, Storage
from dotmac_tasks.testing import FakeClock

if TYPE_CHECKING:
    from support.redis_server import RedisServer

BACKENDS = [
    pytest.param("memory", id="memory"),
    pytest.param("fakeredis", id="fakeredis"),
    pytest.param("redis", id="redis", marks=pytest.mark.redis),
]
"""
Parameters for `open_backend`; servers are looked for when a test asks for one.
"""


def make_request(**changes: Any) -> ClaimRequest:
    """
    Build a claim of the key "k" by the owner "a", with changes.
    """
    request = ClaimRequest(
        key="k",
        owner="a",
        tenant_id="tenant",
        user_id="user",
        operation_type="charge",
        fingerprint="fingerprint",
        ttl=3600,
        lease=30,
    )
    return request._replace(**changes)


class Backend(ABC):
    """
    One storage under test; used by one test, whose threads may share `storage`.

    Attributes:
        storage: The storage, empty at first.
    """

    name: ClassVar[str]
    storage: Storage

    @abstractmethod
    def age(self, seconds: float) -> None:
        """
        Make everything that is stored so many seconds older.
        """

    @abstractmethod
    def reopen(self) -> Storage:
        """
        Return a storage as another process would have it, over the same records.
        """


class MemoryBackend(Backend):
    """
    The storage in memory; one per test.
    """

    name = "memory"

    def __init__(self) -> None:
        self._clock = FakeClock()
        self.storage = MemoryStorage(clock=self._clock)

    def age(self, seconds: float) -> None:
        """
        Move its clock.
        """
        self._clock.advance(seconds)

    def reopen(self) -> Storage:
        """
        Return the one storage: there is no other over the same records.
        """
        return self.storage


class RedisBackend(Backend):
    """
    The Redis storage over a real server or fakeredis; one per test, under its own prefix.
    """

    def __init__(self, name: str, client: Any, prefix: str, *, server: Any = None) -> None:
        self.name = name  # type: ignore[misc] # one class for two rows of the table
        self._client = client
        self._prefix = prefix
        self._server = server
        self._opened: list[Storage] = []
        self.storage = self.reopen()

    def age(self, seconds: float) -> None:
        """
        Set back every instant that is stored under the prefix, by the documented layout.
        """
        age_redis(self._client, self._prefix, round(seconds * 1000))

    def reopen(self, **settings: Any) -> Storage:
        """
        Return a further storage with connections of its own.
        """
        from dotmac_tasks.storage import RedisStorage

        storage = RedisStorage(
            client=settings.pop("client", self._client),
            prefix=self._prefix,
            timeout=10,
            **settings,
        )
        self._opened.append(storage)
        return storage

    @contextmanager
    def break_off(self) -> Iterator[Storage]:
        """
        Yield a storage that nobody answers, while the records stay where they are.
        """
        if self._server is not None:
            self._server.connected = False
            try:
                yield self.reopen()
            finally:
                self._server.connected = True
            return
        import redis

        # A port that is taken but not listened on refuses, and goes to nobody else meanwhile.
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with redis.Redis(host="127.0.0.1", port=taken.getsockname()[1]) as client:
                yield self.reopen(client=client)

    def close(self) -> None:
        """
        Close every storage and the client.
        """
        for storage in self._opened:
            storage.close()
        self._client.close()


@contextmanager
def open_backend(name: str, request: pytest.FixtureRequest) -> Iterator[Backend]:
    """
    Open one row of the table; skips where what it needs is not there.
    """
    if name == "memory":
        yield MemoryBackend()
        return
    prefix = request.getfixturevalue("random_prefix")
    if name == "fakeredis":
        fakeredis = pytest.importorskip("fakeredis")
        server = fakeredis.FakeServer()
        client = fakeredis.FakeRedis(server=server)
        client.ping()  # it makes its database without a lock, so not by threads that race
        backend = RedisBackend(name, client, prefix, server=server)
    else:
        redis = pytest.importorskip("redis")
        running: RedisServer = request.getfixturevalue("redis_server")
        backend = RedisBackend(name, redis.Redis.from_url(running.url()), prefix)
    try:
        yield backend
    finally:
        backend.close()


def age_redis(client: Any, prefix: str, milliseconds: int) -> None:
    """
    Set back the instants of every record, lock and index of expiry under a prefix.

    A key whose time to live is over by that is removed, as Redis would have.
    """
    indexes = (f"{prefix}:idempo:index".encode(), f"{prefix}:operation:index:expiry".encode())
    records = f"{prefix}:idempo:".encode()
    pattern = re.sub(r"([\[\]*?\\^])", r"\\\1", prefix) + ":*"
    for key in list(client.scan_iter(match=pattern, count=1000)):
        kind = client.type(key)
        if kind == b"zset" and key in indexes:
            for member, score in client.zrange(key, 0, -1, withscores=True):
                if score != inf:
                    client.zadd(key, {member: score - milliseconds})
        elif kind == b"hash":
            instants = b"cl" if key.startswith(records) else b"cmx"
            _age_hash(client, key, instants, milliseconds)
        left = client.pttl(key)
        if left > milliseconds:
            client.pexpire(key, left - milliseconds)
        elif left > 0:
            client.delete(key)


def _age_hash(client: Any, key: bytes, instants: bytes, milliseconds: int) -> None:
    fields = client.hgetall(key)
    for code in instants:
        name = bytes([code])
        if fields.get(name):
            client.hset(key, name, int(fields[name]) - milliseconds)
    head = fields.get(b"h")
    if head is None:
        return
    # A finished record packs its fields: name, length, ":" and value, one after the other.
    packed, at = b"", 0
    while at < len(head):
        name, (length, _, rest) = head[at : at + 1], head[at + 1 :].partition(b":")
        value = rest[: int(length)]
        at += 2 + len(length) + len(value)
        if name in (b"c", b"e"):
            value = b"%d" % (int(value) - milliseconds)
        packed += b"%s%d:%s" % (name, len(value), value)
    client.hset(key, b"h", packed)


def claim_and_complete(storage: Storage, owner: str) -> bytes | None:
    """
    Claim the key "k" and complete it with a payload of one's own.

    Returns the payload, or None for whoever did not get the claim.
    """
    request = make_request(owner=owner)
    reply = storage.claim_operation(request)
    if not reply.fencing_token:
        return None
    payload = b"%s:%d" % (owner.encode(), reply.fencing_token)
    storage.complete_operation(request, reply.fencing_token, payload, failed=False)
    return payload


def claim_in_process(url: str, prefix: str) -> bytes | None:
    """
    Do as `claim_and_complete` does, in a process of its own.
    """
    import os

    from dotmac_tasks.storage import RedisStorage

    storage = RedisStorage(url, prefix=prefix, timeout=10)
    try:
        return claim_and_complete(storage, f"process-{os.getpid()}")
    finally:
        storage.close()
