"""
The pool of idle connections, with stand-ins for connections.
"""

from __future__ import annotations

import threading
import time

import pytest

from dotmac_tasks.storage.pool import NoConnectionFreeError, Pool
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


def test_pool_hands_out_the_last_used_first() -> None:
    """What is given back last is taken first, and an empty pool gives leave to open one."""
    pool = Pool(2)
    assert pool.take(soon()) is None
    assert pool.take(soon()) is None
    first, second = Connection(), Connection()
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take(soon()) is second
    assert pool.take(soon()) is first


def test_pool_has_a_limit() -> None:
    """With all in use a call waits until its deadline, and a lost one makes room."""
    pool = Pool(1)
    pool.take(soon())
    with pytest.raises(NoConnectionFreeError):
        pool.take(soon())
    with pytest.raises(NoConnectionFreeError):
        pool.take(time.monotonic() - 1)
    pool.forget()
    assert pool.take(soon()) is None


def test_connection_freed_at_the_deadline_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that runs out in the instant in which one is given back ends with that one."""
    pool, connection = Pool(1), Connection()
    pool.take(soon())

    def free_too_late(_timeout: float) -> bool:
        pool.give_back(connection)
        return False

    monkeypatch.setattr(pool._freed, "wait", free_too_late)
    assert pool.take(soon()) is connection


def test_signal_handler_may_use_a_pool_that_it_interrupts() -> None:
    """A thread that is stopped inside of the pool can take and give back there, too."""
    pool = Pool(1)

    def interrupt() -> None:
        with pool._freed:
            assert pool.take(soon()) is None
            pool.give_back(Connection())
            pool.drop_idle()

    assert run_together(1, interrupt) == [None]


@pytest.mark.parametrize("close", [False, True])
def test_waiting_thread_gets_what_is_given_back(close: bool) -> None:
    """A thread that waits goes on with the connection, or with leave for one in a closed pool."""
    pool, connection, taken = Pool(1), Connection(), []
    pool.take(soon())
    waiter = threading.Thread(target=lambda: taken.append(pool.take(time.monotonic() + 20)))
    waiter.start()
    wait_until(lambda: pool._freed._waiters)  # type: ignore[attr-defined]
    if close:
        pool.drop_idle(close=True)
    pool.give_back(connection)
    waiter.join(20)
    assert taken == [None if close else connection]
    assert connection.is_open is not close


def test_dropped_connections_are_closed() -> None:
    """Dropping closes what is idle and makes room for it; a pool left open goes on."""
    pool, connection = Pool(1), Connection()
    pool.take(soon())
    pool.give_back(connection)
    pool.drop_idle()
    assert not connection.is_open
    assert pool.take(soon()) is None
    later = Connection()
    pool.give_back(later)
    assert later.is_open
