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
from benchmarks.report import Check, Section, micro
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
    "Median [quartiles] over rounds; the ratio, which the target is about, is that of the fastest",
    "tenth of the rounds of each stack, since other work on the machine can only add time.",
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


def _added(times: Mapping[str, list[Series]], name: str, kind: int) -> float:
    return times[name][kind].quick - _baseline(times, kind).quick


def _beside_floor(title: str, times: Mapping[str, list[Series]], limit: float) -> Section:
    section = Section(f"{title}, beside the floor", _NOTES, _COLUMNS)
    _keep(section, times)
    for kind in (_FIRST, _REPLAY):
        _add_ratio(section, title, times, kind, FLOOR, limit)
    baseline = _baseline(times, _NO_KEY)
    share = _added(times, OURS, _NO_KEY) / times[BARE][_NO_KEY].quick * 100
    section.data["no key: share of a bare request, %"] = share
    section.add(
        KINDS[_NO_KEY],
        micro(baseline),
        micro(times[FLOOR][_NO_KEY].minus(baseline)),
        micro(times[OURS][_NO_KEY].minus(baseline)),
        f"{share:.1f} % of bare",
        check=Check(
            f"{title}: no key, share of a bare request", share, _MEASURABLE * 100, unit=" %"
        ),
    )
    section.add("fastest tenth:")
    for kind in (_FIRST, _REPLAY, _NO_KEY):
        section.add(
            f"  {KINDS[kind]}",
            f"{_baseline(times, kind).quick * 1e6:.1f}",
            *(f"{_added(times, name, kind) * 1e6:.1f}" for name in (FLOOR, OURS)),
        )
    return section


def _beside_rival(times: Mapping[str, list[Series]]) -> Section:
    section = Section(
        "Middleware over Redis, beside drf-idempotency with its Redis backend",
        ("As above; in the same rounds, over the same Redis.",),
        ("", "baseline", "it adds", "ours adds", "ours / it", "target", ""),
    )
    title = "Over Redis"
    for kind, limit in ((_FIRST, 0.75), (_REPLAY, 0.55)):
        _add_ratio(section, title, times, kind, RIVAL, limit)
    section.add("the floor, for comparison:")
    for kind in (_FIRST, _REPLAY):
        ratio = _added(times, FLOOR, kind) / _added(times, RIVAL, kind)
        section.data[f"{KINDS[kind]}: floor / {RIVAL}"] = ratio
        section.add(f"  {KINDS[kind]}", "", "", "", f"{ratio:.2f}")
    return section


def _add_ratio(
    section: Section,
    title: str,
    times: Mapping[str, list[Series]],
    kind: int,
    other: str,
    limit: float,
) -> None:
    baseline = _baseline(times, kind)
    ratio = _added(times, OURS, kind) / _added(times, other, kind)
    what = f"{KINDS[kind]}, ours / {other}"
    section.data[what] = ratio
    section.add(
        KINDS[kind],
        micro(baseline),
        micro(times[other][kind].minus(baseline)),
        micro(times[OURS][kind].minus(baseline)),
        f"{ratio:.2f}",
        check=Check(f"{title}: {what}", ratio, limit, unit=" ×"),
    )


def _keep(section: Section, times: Mapping[str, list[Series]]) -> None:
    for name, kinds in times.items():
        for kind, series in zip(KINDS, kinds, strict=True):
            scaled = Series(tuple(value * 1e6 for value in series.values))
            section.keep(f"{name}, {kind}, µs per request", scaled)
