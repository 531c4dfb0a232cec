"""
How often each piece of work goes to Redis, counted by a proxy in front of it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

from django.http import HttpRequest, HttpResponse

from benchmarks import site, stacks
from benchmarks.report import Check, Section
from dotmac_tasks.claims import Claim
from dotmac_tasks.keys import new_token
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import ClaimRequest
from support.proxy import RedisProxy

_LEASE = 0.9


def count_round_trips(port: int) -> Section:
    """
    Count the round trips of requests, heartbeats and locks.
    """
    section = Section(
        "Round trips to Redis",
        ("Counted by a proxy; connecting and loading scripts, once per process, not included.",),
        ("", "round trips", "target", ""),
    )
    with RedisProxy(port) as proxy:
        with stacks.our_storage(proxy.url()):
            _count_requests(section, proxy)
        with BackgroundOperationsManager(proxy.url(), lease=_LEASE) as manager:
            _count_beat(proxy, manager, 1)  # loads the script
            for held in (1, 100, 400):
                trips = _count_beat(proxy, manager, held)
                _add(section, f"one heartbeat, {held} claims held", trips, 1)
            _count_lock(section, proxy, manager)
    return section


def _add(section: Section, what: str, trips: int, target: int) -> None:
    section.data[what] = trips
    check = Check(f"Round trips: {what}", trips, target, "==")
    section.add(what, str(trips), check=check)


def _count(proxy: RedisProxy, work: Callable[[], object]) -> int:
    before = proxy.counts
    work()
    after = proxy.counts
    if after.connections != before.connections:
        raise AssertionError("A connection was opened while round trips were counted")
    return after.round_trips - before.round_trips


def _count_requests(section: Section, proxy: RedisProxy) -> None:
    handler = stacks.build_handler(stacks.OUR_MIDDLEWARE)

    def send(key: str | None = None, method: str = "POST", path: str = "/orders/") -> None:
        stacks.send(handler, stacks.build_environ(key, method=method, path=path))

    key = stacks.new_key()
    # Once everything: the connection and the scripts.
    send(key)
    send(key)
    key = stacks.new_key()
    _add(section, "no key", _count(proxy, send), 0)
    _add(section, "a key, method PUT", _count(proxy, lambda: send(key, "PUT")), 0)
    _add(section, "a key, exempt path", _count(proxy, lambda: send(key, path="/health/")), 0)
    _add(section, "first request", _count(proxy, lambda: send(key)), 2)
    _add(section, "replay", _count(proxy, lambda: send(key)), 1)
    key = stacks.new_key()
    duplicates: list[int] = []

    def running(request: HttpRequest) -> HttpResponse:
        duplicates.append(_count(proxy, lambda: send(key, path="/scripted/")))
        return HttpResponse()

    site.script.append(running)
    send(key, path="/scripted/")
    _add(section, "duplicate of a running one", duplicates[0], 1)


def _count_beat(proxy: RedisProxy, manager: BackgroundOperationsManager, held: int) -> int:
    # The thread's own beats are watched: the one that renews all of them is what counts.
    heartbeat = manager.heartbeat
    trips: list[int] = []
    beat = heartbeat.beat

    def watched() -> None:
        before = proxy.counts.round_trips
        beat()
        trips.append(proxy.counts.round_trips - before)

    claims = [_claim(manager) for _ in range(held)]
    heartbeat.beat = watched  # type: ignore[method-assign]
    deadline = monotonic() + 10
    while not any(trips) and monotonic() < deadline:
        sleep(0.02)
    del heartbeat.beat
    for claim in claims:
        claim.release()
    return max(trips, default=0)


def _claim(manager: BackgroundOperationsManager) -> Claim:
    request = ClaimRequest(
        stacks.new_key(), new_token(), "default", "user:42", "POST /orders/", "", 60.0, _LEASE
    )
    claim = manager.guard.claim(request)
    if not isinstance(claim, Claim):
        raise AssertionError(f"A new key was not claimed: {claim}")
    return claim


def _count_lock(section: Section, proxy: RedisProxy, manager: BackgroundOperationsManager) -> None:
    with manager.lock("warm-up"):
        pass
    lock = manager.lock("stock", ttl=30)
    _add(section, "take a lock", _count(proxy, lock.acquire), 1)
    _add(section, "release it", _count(proxy, lock.release), 1)
