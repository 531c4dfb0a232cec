"""
What each middleware adds to a Django request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import redis
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings

from benchmarks import site, stacks
from benchmarks.floor import MemoryFloor, RedisFloor
from benchmarks.floor_checks import check_floor
from benchmarks.report import Check, Section, micro, spread
from benchmarks.stacks import BARE, EMPTY, FLOOR, OURS, RIVAL, SHORTCUT
from benchmarks.timing import Series, interleave
from dotmac_tasks.storage.memory import MemoryStorage

KINDS = ("first request", "replay", "no key")
_FIRST, _REPLAY, _NO_KEY = range(3)

# Of a bare request; less is lost between two runs of the same code.
_MEASURABLE = 0.05

_NOTES = (
    "Microseconds per request, in process through Django's WSGIHandler. Added: what a stack takes",
    "more than its baseline in the same round: for a first request the bare view, for a replay a",
    "middleware that has its answer ready and runs no view, without a key one that does nothing.",
    "Median [quartiles] over rounds; ratios are formed within each round.",
)
_COLUMNS = ("", "baseline", "floor adds", "ours adds", "ours / floor", "target", "")


def measure_over_redis(url: str, *, rounds: int, size: int) -> list[Section]:
    """
    Compare ours with the floor and with drf-idempotency, all over one Redis.
    """
    settings = {
        "BACKEND": "drf_idempotency.backends.redis.RedisBackend",
        "BACKEND_OPTIONS": {"url": url},
    }
    with (
        redis.Redis.from_url(url, socket_timeout=2) as client,
        stacks.our_storage(url),
        override_settings(IDEMPOTENCY=settings),
    ):
        RedisFloor.client = client
        handlers = {
            **_baselines(),
            FLOOR: stacks.build_handler(stacks.REDIS_FLOOR),
            OURS: stacks.build_handler(stacks.OUR_MIDDLEWARE),
            RIVAL: stacks.build_handler(stacks.RIVAL_MIDDLEWARE),
        }
        times = _measure(handlers, rounds, size)
    beside_floor = _beside_floor("Middleware over Redis", times, 1.4)
    return [beside_floor, _beside_rival(times)]


def measure_over_memory(*, rounds: int, size: int) -> Section:
    """
    Compare ours with the floor, both over memory.
    """
    options = {
        "BACKEND": f"{MemoryStorage.__module__}.MemoryStorage",
        "OPTIONS": {"max_records": 10 * rounds * size},
    }
    MemoryFloor.records = {}
    with stacks.our_storage(options):
        handlers = {
            **_baselines(),
            FLOOR: stacks.build_handler(stacks.MEMORY_FLOOR),
            OURS: stacks.build_handler(stacks.OUR_MIDDLEWARE),
        }
        times = _measure(handlers, rounds, size)
    MemoryFloor.records = {}
    return _beside_floor("Middleware over memory", times, 2.0)


def check_floors(url: str) -> Section:
    """
    Try whether the floors are correct; they must be, to be compared with.

    Raises:
        AssertionError: One of them is not.
    """
    section = Section(
        "The floor: the smallest correct middleware",
        ("What it must get right, tried before anything is compared with it.",),
        ("", "over Redis", "over memory"),
    )
    with redis.Redis.from_url(url, socket_timeout=2) as client:
        RedisFloor.client = client
        MemoryFloor.records = {}
        over_redis = check_floor(stacks.build_handler(stacks.REDIS_FLOOR), client.flushdb)
        over_memory = check_floor(
            stacks.build_handler(stacks.MEMORY_FLOOR), MemoryFloor.records.clear
        )
    for fact, kept in over_redis.items():
        section.add(fact, _word(kept), _word(over_memory[fact]))
        if not (kept and over_memory[fact]):
            raise AssertionError(f"The floor is not correct: {fact}")
    section.data = {"over_redis": over_redis, "over_memory": over_memory}
    return section


def _word(kept: bool) -> str:
    return "yes" if kept else "NO"


def _baselines() -> dict[str, WSGIHandler]:
    return {
        BARE: stacks.build_handler(),
        EMPTY: stacks.build_handler(stacks.EMPTY_MIDDLEWARE),
        SHORTCUT: stacks.build_handler(stacks.SHORTCUT_MIDDLEWARE),
    }


def _measure(
    handlers: Mapping[str, WSGIHandler], rounds: int, size: int
) -> dict[str, list[Series]]:
    for name, handler in handlers.items():
        _prove(name, handler)
    used = [stacks.new_key() for _ in range(size)]
    for handler in handlers.values():
        stacks.time_requests(handler, [stacks.build_environ(key) for key in used])
    # Each kind in rounds of its own, so that none runs in the wake of another.
    kinds: tuple[Callable[[], Sequence[str | None]], ...] = (
        lambda: [stacks.new_key() for _ in range(size)],
        lambda: used,
        lambda: [None] * size,
    )
    times: dict[str, list[Series]] = {name: [] for name in handlers}
    for make_keys in kinds:
        cases = {name: _case(handler, make_keys) for name, handler in handlers.items()}
        for name, (series,) in interleave(cases, rounds).items():
            times[name].append(series)
    return times


def _case(
    handler: WSGIHandler, make_keys: Callable[[], Sequence[str | None]]
) -> Callable[[], Sequence[float]]:
    def measure() -> list[float]:
        environs = [stacks.build_environ(key) for key in make_keys()]
        return [stacks.time_requests(handler, environs)]

    return measure


def _prove(name: str, handler: WSGIHandler) -> None:
    # A stack that does not do what its name says would make all its numbers worthless.
    key = stacks.new_key()
    with _views(name, handler, {BARE: 2, EMPTY: 2, SHORTCUT: 0}.get(name, 1)):
        first = stacks.send(handler, stacks.build_environ(key))
        second = stacks.send(handler, stacks.build_environ(key))
    if not first.status == second.status == 201 or not first.body == second.body == site.ANSWER:
        raise AssertionError(f"{name} answers {first}, then {second}")
    replayed = second.header("Idempotent-Replayed") == "true"
    if replayed != (name in (FLOOR, OURS, RIVAL)):
        raise AssertionError(f"{name} does not mark its replay: {second.headers}")
    with _views(name, handler, 0 if name == SHORTCUT else 1):
        stacks.send(handler, stacks.build_environ())


@contextmanager
def _views(name: str, handler: WSGIHandler, expected: int) -> Iterator[None]:
    before = site.calls
    yield
    if site.calls - before != expected:
        raise AssertionError(f"{name} ran the view {site.calls - before} times, not {expected}")


def _baseline(times: Mapping[str, list[Series]], kind: int) -> Series:
    return times[(BARE, SHORTCUT, EMPTY)[kind]][kind]


def _beside_floor(title: str, times: Mapping[str, list[Series]], limit: float) -> Section:
    section = Section(f"{title}, beside the floor", _NOTES, _COLUMNS)
    _keep(section, times)
    for kind in (_FIRST, _REPLAY):
        baseline = _baseline(times, kind)
        floor, ours = (times[name][kind].minus(baseline) for name in (FLOOR, OURS))
        ratio = ours.over(floor)
        section.keep(f"{KINDS[kind]}: ours / floor", ratio)
        section.add(
            KINDS[kind],
            micro(baseline),
            micro(floor),
            micro(ours),
            spread(ratio),
            check=Check(f"{title}: {KINDS[kind]}, ours / floor", ratio.median, limit, unit=" ×"),
        )
    baseline = _baseline(times, _NO_KEY)
    floor, ours = (times[name][_NO_KEY].minus(baseline) for name in (FLOOR, OURS))
    share = ours.over(times[BARE][_NO_KEY])
    section.add(
        KINDS[_NO_KEY],
        micro(baseline),
        micro(floor),
        micro(ours),
        f"{share.median:.1%} of bare",
        check=Check(
            f"{title}: no key, share of a bare request",
            share.median * 100,
            _MEASURABLE * 100,
            unit=" %",
        ),
    )
    section.add("bests of all rounds:")
    for kind in (_FIRST, _REPLAY, _NO_KEY):
        least = min(_baseline(times, kind).values)
        floor_best, ours_best = (min(times[name][kind].values) - least for name in (FLOOR, OURS))
        section.add(
            f"  {KINDS[kind]}",
            f"{least * 1e6:.1f}",
            f"{floor_best * 1e6:.1f}",
            f"{ours_best * 1e6:.1f}",
            f"{ours_best / floor_best:.2f}" if kind != _NO_KEY else "",
        )
    return section


def _beside_rival(times: Mapping[str, list[Series]]) -> Section:
    section = Section(
        "Middleware over Redis, beside drf-idempotency with its Redis backend",
        ("As above; in the same rounds, over the same Redis.",),
        ("", "baseline", "it adds", "ours adds", "ours / it", "target", ""),
    )
    for kind, limit in ((_FIRST, 0.75), (_REPLAY, 0.55)):
        baseline = _baseline(times, kind)
        rival, ours = (times[name][kind].minus(baseline) for name in (RIVAL, OURS))
        ratio = ours.over(rival)
        section.keep(f"{KINDS[kind]}: ours / drf-idempotency", ratio)
        section.add(
            KINDS[kind],
            micro(baseline),
            micro(rival),
            micro(ours),
            spread(ratio),
            check=Check(
                f"Over Redis: {KINDS[kind]}, ours / drf-idempotency",
                ratio.median,
                limit,
                unit=" ×",
            ),
        )
    return section


def _keep(section: Section, times: Mapping[str, list[Series]]) -> None:
    for name, kinds in times.items():
        for kind, series in zip(KINDS, kinds, strict=True):
            scaled = Series(tuple(value * 1e6 for value in series.values))
            section.keep(f"{name}, {kind}, µs per request", scaled)
