"""
The pool of idle connections, with stand-ins for connections.
"""

from __future__ import annotations

import gc
import threading
import time

import pytest

from dotmac_tasks.storage.pool import NoConnectionFreeError, Place, Pool
from support.concurrency import run_together, wait_until


class Connection:
    """
    Notes that it was closed; used by one thread at a time.
    """

    is_open = True

    def disconnect(self) -> None:
        self.is_open = False


def soon() -> float:
    return time.monotonic() + 0.05


def open_one(pool: Pool) -> Place:
    """
    Take a place and open a stand-in for a connection there.
    """
    place = pool.take(soon())
    assert place.connection is None
    place.connection = Connection()
    return place


def test_pool_hands_out_the_last_used_first() -> None:
    """What is given back last is taken first, and an empty pool gives leave to open one."""
    pool = Pool(2)
    first, second = open_one(pool), open_one(pool)
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take(soon()) is second
    assert pool.take(soon()) is first
    assert pool.count == 2


def test_pool_has_a_limit() -> None:
    """With all in use a call waits until its deadline, and a lost one makes room."""
    pool = Pool(1)
    place = open_one(pool)
    with pytest.raises(NoConnectionFreeError):
        pool.take(soon())
    with pytest.raises(NoConnectionFreeError):
        pool.take(time.monotonic() - 1)
    pool.forget(place)
    assert pool.take(soon()).connection is None


def test_place_of_a_call_that_vanished_is_free() -> None:
    """An interrupt between any two steps of a call costs no place for good."""
    pool = Pool(1)
    place = open_one(pool)
    del place
    gc.collect()
    assert pool.count == 0
    assert open_one(pool)


def test_connection_freed_at_the_deadline_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that runs out in the instant in which one is given back ends with that one."""
    pool = Pool(1)
    place = open_one(pool)

    def free_too_late(_timeout: float) -> bool:
        pool.give_back(place)
        return False

    monkeypatch.setattr(pool._freed, "wait", free_too_late)
    assert pool.take(soon()) is place


def test_signal_handler_may_use_a_pool_that_it_interrupts() -> None:
    """A thread that is stopped inside of the pool can take and give back there, too."""
    pool = Pool(1)

    def interrupt() -> None:
        with pool._lock:
            pool.give_back(open_one(pool))
            pool.drop_idle()

    assert run_together(1, interrupt) == [None]


@pytest.mark.parametrize("close", [False, True])
def test_waiting_thread_gets_what_is_given_back(close: bool) -> None:
    """A thread that waits goes on with the connection, or with leave for one in a closed pool."""
    pool, taken = Pool(1), []
    place = open_one(pool)
    waiter = threading.Thread(target=lambda: taken.append(pool.take(time.monotonic() + 20)))
    waiter.start()
    wait_until(lambda: pool._freed._waiters)  # type: ignore[attr-defined]
    if close:
        pool.drop_idle(close=True)
    pool.give_back(place)
    waiter.join(20)
    assert [each is place for each in taken] == [not close]
    assert place.connection.is_open is not close


def test_dropped_connections_are_closed() -> None:
    """Dropping closes what is idle and makes room for it; a pool left open goes on."""
    pool = Pool(1)
    place = open_one(pool)
    pool.give_back(place)
    pool.drop_idle()
    assert not place.connection.is_open
    later = open_one(pool)
    pool.give_back(later)
    assert later.connection.is_open
