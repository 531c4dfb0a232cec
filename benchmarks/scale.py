"""
That cost does not grow with the number of records stored.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import NamedTuple

import redis

from benchmarks.cloning import Original
from benchmarks.report import Check, Section, micro, spread
from benchmarks.storage import PAYLOAD, new_request
from benchmarks.timing import Series, interleave
from dotmac_tasks.clock import SystemClock
from dotmac_tasks.keys import new_token
from dotmac_tasks.models import ClaimOutcome, ClaimRequest, OperationStatus
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks.storage.redis import RedisStorage
from support.redis_server import RedisServer

SMALL = 1_000
_SMALL_PURGE = 10_000
_PURGED = 1_000
_PAGE = 100
_DATA = b'{"operation_type": "orders.export", "user_id": "user:42", "parameters": {"year": 2026}}'

# "The same" in Redis, where a call is a round trip and an index a tree that grows by its depth.
_SAME = 1.35
# "The same" in memory, in microseconds per call or removed record: a call takes so few of them
# that the processor's cache shows, which no million records fit.
_SAME_IN_MEMORY = 10.0

_COLUMNS = ("", "few", "many", "many / few", "target", "")


class _Stock:
    """
    A storage that holds many records, and how to make work on it; used by one thread.
    """

    def __init__(
        self, storage: Storage, name_of: Callable[[int], str], size: int, template: ClaimRequest
    ) -> None:
        self.storage = storage
        self.name_of = name_of
        self.size = size
        self.template = template
        self._next = 0

    def claim(self, count: int) -> float:
        """
        Claim new keys; give them back, untimed.
        """
        requests = [new_request() for _ in range(count)]
        start = perf_counter()
        for request in requests:
            self.storage.claim_operation(request)
        took = perf_counter() - start
        for request in requests:
            self.storage.release_operation(request.key, request.owner)
        return took / count

    def replay(self, count: int) -> float:
        """
        Claim keys that are finished, all over what is stored.
        """
        requests = [self._stored() for _ in range(count)]
        start = perf_counter()
        for request in requests:
            reply = self.storage.claim_operation(request)
        took = perf_counter() - start
        if reply.outcome is not ClaimOutcome.FINISHED:
            raise AssertionError(f"A finished record answers {reply.outcome}")
        return took / count

    def list_page(self, count: int) -> float:
        """
        Read one page of a tenant's operations.
        """
        start = perf_counter()
        for _ in range(count):
            page = self.storage.list_background("default", limit=_PAGE)
        took = perf_counter() - start
        if len(page.records) != _PAGE:
            raise AssertionError(f"A page holds {len(page.records)} operations")
        return took / count

    def _stored(self) -> ClaimRequest:
        # A step that visits every record before it returns to one.
        self._next = (self._next + 7919) % self.size
        return self.template._replace(key=self.name_of(self._next), owner=new_token())


def measure_scale(many: int, *, rounds: int) -> list[Section]:
    """
    Compare few records with many, in memory and in Redis.
    """
    return [_over_redis(many, rounds), _over_memory(many, rounds)]


def _section(where: str, many: int) -> Section:
    return Section(
        f"{where}: {SMALL:,} records beside {many:,}",
        (
            "Microseconds per call; idempotency records and background operations, each so many.",
            f"A page is {_PAGE} operations. Cleanup removes {_PURGED:,} expired records, once",
            f"beside {_SMALL_PURGE:,} live ones and once beside {many:,}.",
        ),
        _COLUMNS,
    )


def _compare(section: Section, where: str, few: _Stock, many: _Stock, rounds: int) -> None:
    def case(stock: _Stock) -> Callable[[], Sequence[float]]:
        return lambda: [stock.claim(100), stock.replay(200), stock.list_page(5)]

    times = interleave({"few": case(few), "many": case(many)}, rounds)
    for index, what in enumerate(("claim", "replay", "page of a listing")):
        _judge(section, where, what, times["few"][index], times["many"][index])


def _judge(
    section: Section, where: str, what: str, few: Series, many: Series, *, each: int = 1
) -> None:
    ratio = many.over(few)
    for name, series in (("few", few), ("many", many)):
        section.keep(f"{what}, {name}, µs", Series(tuple(one * 1e6 for one in series.values)))
    section.keep(f"{what}, many / few", ratio)
    if where == "Redis":
        check = Check(f"{where}: {what}, many / few", ratio.median, _SAME, unit=" ×")
    else:
        more = many.minus(few).median * 1e6 / each
        per = "" if each == 1 else ", each"
        check = Check(f"{where}: {what}, many - few{per}", more, _SAME_IN_MEMORY, unit=" µs")
    section.add(what, micro(few), micro(many), spread(ratio), check=check)


def _compare_purges(
    section: Section,
    where: str,
    few: Callable[[], Sequence[float]],
    many: Callable[[], Sequence[float]],
    rounds: int,
) -> None:
    times = interleave({"few": few, "many": many}, max(3, rounds // 2))
    what = f"cleanup of {_PURGED:,} expired ones"
    _judge(section, where, what, times["few"][0], times["many"][0], each=_PURGED)


def _purge(storage: Storage) -> float:
    removed = 0
    start = perf_counter()
    while removed < _PURGED:
        report = storage.purge_expired(500)
        removed += report.removed
        if not report.removed:
            break
    took = perf_counter() - start
    if removed != _PURGED:
        raise AssertionError(f"{removed} of {_PURGED} expired records were removed")
    return took


# Redis


class _RedisStock(NamedTuple):
    # Used by one thread.
    stock: _Stock
    original: Original


def _over_redis(many: int, rounds: int) -> Section:
    section = _section("Redis", many)
    with ExitStack() as stack:
        few, lots = (stack.enter_context(_redis_stock(size)) for size in (SMALL, many))
        _compare(section, "Redis", few.stock, lots.stock, rounds)
        few.original.copy(_SMALL_PURGE - SMALL, first=SMALL)

        def case(filled: _RedisStock) -> Callable[[], Sequence[float]]:
            def purge() -> list[float]:
                filled.original.copy_expired(_PURGED)
                return [_purge(filled.stock.storage)]

            return purge

        _compare_purges(section, "Redis", case(few), case(lots), rounds)
    return section


@contextmanager
def _redis_stock(size: int) -> Iterator[_RedisStock]:
    with RedisServer() as server, redis.Redis.from_url(server.url()) as client:
        storage = RedisStorage(server.url())
        first = new_request()
        token = storage.claim_operation(first).fencing_token
        storage.complete_operation(first, token, PAYLOAD, failed=False)
        original = Original(client, first.key)
        background = new_token()
        _save(storage, background)
        original_background = Original(client, background)
        original.copy(size)
        original_background.copy(size)
        yield _RedisStock(_Stock(storage, original.name_of, size, first), original)
        storage.close()


def _save(storage: Storage, name: str) -> None:
    storage.save_background(
        name,
        "default",
        OperationStatus.PENDING,
        _DATA,
        expected_revision=0,
        request_id=name,
        retention=None,
    )


# Memory


class _Clock(SystemClock):
    """
    The system's clock, with its monotonic time moved ahead; used by one thread.
    """

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        """
        Return seconds that only grow.
        """
        return perf_counter() + self.ahead


def _over_memory(many: int, rounds: int) -> Section:
    section = _section("Memory", many)
    clock = _Clock()
    few, lots = (_memory_stock(size, clock) for size in (SMALL, many))
    # A million records would have the collector look at them all, which is not what is measured.
    gc.collect()
    gc.freeze()
    _compare(section, "Memory", few, lots, rounds)
    _fill(few.storage, few, SMALL, _SMALL_PURGE)

    def case(stock: _Stock) -> Callable[[], Sequence[float]]:
        def purge() -> list[float]:
            for _ in range(_PURGED):
                request = new_request(ttl=1.0, lease=1.0)
                token = stock.storage.claim_operation(request).fencing_token
                stock.storage.complete_operation(request, token, PAYLOAD, failed=False)
            clock.ahead += 2
            return [_purge(stock.storage)]

        return purge

    _compare_purges(section, "Memory", case(few), case(lots), rounds)
    gc.unfreeze()
    return section


def _memory_stock(size: int, clock: _Clock) -> _Stock:
    storage = MemoryStorage(max_records=2 * size + 100_000, clock=clock)
    stock = _Stock(storage, lambda number: f"c{number:0>31}", size, new_request())
    _fill(storage, stock, 0, size)
    for number in range(size):
        _save(storage, f"b{number:0>31}")
    return stock


def _fill(storage: Storage, stock: _Stock, first: int, end: int) -> None:
    for number in range(first, end):
        request = stock.template._replace(key=stock.name_of(number))
        token = storage.claim_operation(request).fencing_token
        # A copy of its own, as a real outcome would be.
        storage.complete_operation(request, token, bytes(bytearray(PAYLOAD)), failed=False)
