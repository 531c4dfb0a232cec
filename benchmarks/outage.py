"""
What a request pays while Redis is down, or accepts connections and never answers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, perf_counter, sleep
from typing import Any

from django.http import HttpRequest, HttpResponse

from benchmarks import site, stacks
from benchmarks.report import Check, Section, micro
from benchmarks.stacks import BARE, EMPTY, OURS
from benchmarks.timing import Series, interleave
from support.proxy import RedisProxy

_TIMEOUT = 0.5
# A quarter is the machine's: to be woken up takes its time, too. A second wait would be twice.
_SHARE = 1.25
_LONG = 3600
_PATIENCE = 30.0

_DOWN = f"{OURS}, proceed"
_REFUSED = f"{OURS}, reject"


def measure_outage(port: int, *, rounds: int, size: int, trials: int) -> list[Section]:
    """
    Measure requests beside a Redis that is down, and beside one that hangs.
    """
    return [_measure_down(rounds, size), _measure_hung(port, trials)]


def _measure_down(rounds: int, size: int) -> Section:
    section = Section(
        "Redis down, the breaker open",
        (
            "Microseconds per request with a new key, in process through Django's WSGIHandler.",
            "Median [quartiles] over rounds; the ratio is that of the fastest tenth of the rounds.",
            "With reject no view runs.",
        ),
        ("", "a request", "of a bare one", "target", ""),
    )
    bare, empty, ours = (
        stacks.build_handler(),
        stacks.build_handler(stacks.EMPTY_MIDDLEWARE),
        stacks.build_handler(stacks.OUR_MIDDLEWARE),
    )
    times: dict[str, Series] = {}
    # A port that is taken but not listened on refuses, and goes to nobody else meanwhile.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        for name, policy in ((_DOWN, "proceed"), (_REFUSED, "reject")):
            with _storage(url, cooldown=_LONG, ON_STORAGE_ERROR=policy):
                for _ in range(3):  # as many failures as open the breaker
                    stacks.send(ours, stacks.build_environ(stacks.new_key()))
                _prove(ours, policy)
                cases = {
                    BARE: _case(bare, size),
                    EMPTY: _case(empty, size),
                    name: _case(ours, size),
                }
                measured = interleave(cases, rounds)
            times.update({each: series for each, (series,) in measured.items()})
            ratio = times[name].quick / times[BARE].quick
            if policy == "proceed":
                check = Check(f"Redis down, breaker open: {policy}", ratio, 1.2, unit=" ×")
                section.add(name, micro(times[name]), f"{ratio:.2f}", check=check)
            else:
                section.add(name, micro(times[name]), f"{ratio:.2f}")
    for name in (EMPTY, BARE):
        section.add(name, micro(times[name]), f"{times[name].quick / times[BARE].quick:.2f}")
    for name, series in times.items():
        section.keep(f"{name}, µs", Series(tuple(value * 1e6 for value in series.values)))
    return section


def _measure_hung(port: int, trials: int) -> Section:
    section = Section(
        "Redis hangs: it accepts connections and answers nothing",
        (
            "Seconds that the slowest of four requests took more than a bare one, in",
            f"{trials} trials with STORAGE_TIMEOUT = {_TIMEOUT:g}; a quarter more is left to the",
            "machine. To wait twice would show in every trial, a busy machine in the slowest only.",
        ),
        ("", "slowest trial", "median", "target", ""),
    )
    ours = stacks.build_handler(stacks.OUR_MIDDLEWARE)
    bare = stacks.time_requests(stacks.build_handler(), [stacks.build_environ()])
    with RedisProxy(port) as proxy:
        for policy in ("proceed", "reject"):
            with _storage(proxy.url(), ON_STORAGE_ERROR=policy):
                extra = [_meet_hang(proxy, ours) - bare for _ in range(trials)]
                _add(section, f"it hangs before the work, {policy}", Series(tuple(extra)))
        with _storage(proxy.url()):
            extra = [_meet_hang(proxy, ours, in_view=True) - bare for _ in range(trials)]
            _add(section, "it hangs while the work is done", Series(tuple(extra)))
    return section


def _add(section: Section, what: str, extra: Series) -> None:
    section.keep(f"{what}, s", extra)
    worst = max(extra.values)
    check = Check(f"A hung Redis: {what}, slowest", worst, _TIMEOUT * _SHARE, unit=" s")
    section.add(what, f"{worst:.3f}", f"{extra.median:.3f}", check=check)


def _meet_hang(proxy: RedisProxy, handler: Any, *, in_view: bool = False) -> float:
    """
    Return what the slowest of some requests took, of which the first meets the hang.
    """
    proxy.heal()
    _await_protection(handler)

    def view(request: HttpRequest) -> HttpResponse:
        if in_view:
            proxy.hang()
        return HttpResponse(b"{}", status=201)

    if not in_view:
        proxy.hang()
    slowest = 0.0
    for _ in range(4):  # those until the breaker opens, and one behind
        site.script.append(view)
        environ = stacks.build_environ(stacks.new_key(), path="/scripted/")
        start = perf_counter()
        stacks.send(handler, environ)
        slowest = max(slowest, perf_counter() - start)
        site.script.clear()
    proxy.heal()
    return slowest


def _await_protection(handler: Any) -> None:
    deadline = monotonic() + _PATIENCE
    while monotonic() < deadline:
        reply = stacks.send(handler, stacks.build_environ(stacks.new_key()))
        if reply.status == 201 and reply.header("X-Idempotency-Status") is None:
            return
        sleep(0.05)
    raise AssertionError("Nothing is protected although Redis answers again")


@contextmanager
def _storage(url: str, *, cooldown: float = 0.1, **settings: Any) -> Iterator[None]:
    storage = {
        "BACKEND": "dotmac_tasks.storage.RedisStorage",
        "OPTIONS": {"redis_url": url, "breaker_cooldown": cooldown},
    }
    with stacks.our_storage(storage, STORAGE_TIMEOUT=_TIMEOUT, **settings):
        yield


def _case(handler: Any, size: int) -> Callable[[], Sequence[float]]:
    def measure() -> list[float]:
        environs = [stacks.build_environ(stacks.new_key()) for _ in range(size)]
        return [stacks.time_requests(handler, environs)]

    return measure


def _prove(handler: Any, policy: str) -> None:
    before = site.calls
    reply = stacks.send(handler, stacks.build_environ(stacks.new_key()))
    if policy == "reject":
        right = reply.status == 503 and site.calls == before
    else:
        marked = reply.header("X-Idempotency-Status") == "unprotected"
        right = reply.body == site.ANSWER and marked and site.calls == before + 1
    if not right:
        raise AssertionError(f"Beside a dead Redis, {policy} answers {reply}")
