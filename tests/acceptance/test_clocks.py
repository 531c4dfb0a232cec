"""
Hosts whose clocks differ: only the storage's clock counts, for leases and for retention.

Each worker's own clock is five minutes off in its own direction, and its monotonic clock days.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.concurrency import wait_until
from support.http_clients import Response
from support.redis_server import RedisServer
from support.workers import Worker

pytest.importorskip("redis")
from dotmac_tasks.keys import http_storage_key
from dotmac_tasks.models import StoredOperation
from dotmac_tasks.storage.redis import RedisStorage

pytestmark = [pytest.mark.redis, pytest.mark.slow]

FIVE_MINUTES = 300.0
LEASE = 30
TTL = 3600
LIMIT = 60.0

OpenWorkers = Callable[..., list[Worker]]
Age = Callable[[float], None]
Find = Callable[[], StoredOperation]
Hosts = dict[str, Worker]


@pytest.fixture
def hosts(open_workers: OpenWorkers, redis_server: RedisServer) -> Hosts:
    """
    Three hosts: one fast, one right, one slow.
    """
    offsets = {"fast": FIVE_MINUTES, "right": 0.0, "slow": -FIVE_MINUTES}
    return {
        name: open_workers(
            1,
            "wsgi",
            redis_server.url(),
            clock_offset=offset,
            lease=LEASE,
            default_idempotency_ttl=TTL,
        )[0]
        for name, offset in offsets.items()
    }


@pytest.fixture
def find(redis_server: RedisServer, random_prefix: str) -> Find:
    """
    Read the record of the key "k".
    """
    storage = RedisStorage(redis_server.url(), prefix=random_prefix)

    def find_it() -> StoredOperation:
        record = storage.find_operation(http_storage_key("default", "", "k"))
        storage.close()
        assert record is not None
        return record

    return find_it


def server_ms(server: RedisServer) -> int:
    seconds, micros = server.command("TIME")  # type: ignore[misc]
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.mark.parametrize("owner", ["fast", "right", "slow"])
def test_hosts_agree_on_a_live_lease(
    hosts: Hosts, find: Find, redis_server: RedisServer, owner: str
) -> None:
    """
    A claim made on any host is live on every other, and ends by the clock of Redis.
    """
    before = server_ms(redis_server)
    running = hosts[owner].begin_held("k")
    after = server_ms(redis_server)
    assert before + LEASE * 1000 <= find().lease_ms <= after + LEASE * 1000
    assert before <= find().created_ms <= after
    for host in hosts.values():
        answer = host.post("k", "/held")
        assert answer.status == 202
        assert 1 <= int(answer.get("Retry-After") or 0) <= LEASE
    hosts[owner].tell("succeed")
    assert running.result(LIMIT).status == 201
    assert [host.runs for host in hosts.values()].count(1) == 1


@pytest.mark.parametrize("owner", ["fast", "slow"])
def test_hosts_agree_on_a_lease_that_is_over(hosts: Hosts, age: Age, owner: str) -> None:
    """
    Halfway through a dead host's lease nobody takes over, at its end one host does.
    """
    hosts[owner].begin_held("k")
    hosts.pop(owner).kill()
    age(LEASE / 2)
    assert [host.post("k", "/held").status for host in hosts.values()] == [202, 202]
    age(LEASE / 2)
    for host in hosts.values():
        host.tell("succeed")
    assert [host.post("k", "/held").status for host in hosts.values()] == [201, 201]
    assert sorted(host.runs for host in hosts.values()) == [0, 1]


@pytest.mark.parametrize("owner", ["fast", "slow"])
def test_hosts_agree_on_the_end_of_the_retention(
    hosts: Hosts, find: Find, age: Age, redis_server: RedisServer, owner: str
) -> None:
    """
    An outcome of any host is replayed by all for as long as Redis says, then run once more.
    """
    before = server_ms(redis_server)
    first = hosts[owner].post("k")
    after = server_ms(redis_server)
    expires = find().expires_ms
    assert expires is not None
    assert before + TTL * 1000 <= expires <= after + TTL * 1000
    age(TTL - FIVE_MINUTES / 2)
    assert {(each.body, each.is_replay) for each in map(post_k, hosts.values())} == {
        (first.body, True)
    }
    age(FIVE_MINUTES / 2 + 1)
    again = [post_k(host) for host in hosts.values()]
    assert sorted(each.is_replay for each in again) == [False, True, True]
    assert len({each.body for each in again} | {first.body}) == 2
    assert sum(host.runs for host in hosts.values()) == 2


def post_k(host: Worker) -> Response:
    return host.post("k")


@pytest.mark.parametrize("offset", [FIVE_MINUTES, -FIVE_MINUTES])
def test_host_with_a_wrong_clock_renews_its_lease(
    open_workers: OpenWorkers, redis_server: RedisServer, find: Find, offset: float
) -> None:
    """
    A claim held on a host with a wrong clock moves on by the clock of Redis while it is held.
    """
    (owner,) = open_workers(1, "wsgi", redis_server.url(), clock_offset=offset, lease=3)
    running = owner.begin_held("k")
    first = find().lease_ms
    wait_until(lambda: find().lease_ms >= first + 2000, LIMIT)
    assert find().lease_ms <= server_ms(redis_server) + 3000
    owner.tell("succeed")
    assert running.result(LIMIT).status == 201
    assert owner.ask("counts")["lost"] == 0
