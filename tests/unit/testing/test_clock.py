from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from dotmac_tasks.testing import FakeClock
from dotmac_tasks.typing import Clock
from support.concurrency import run_together


def test_fake_clock_stands_still_until_it_is_moved() -> None:
    """
    Both of its times move together, by exactly what it is told.
    """
    clock: Clock = FakeClock()
    instant, seconds = clock.now(), clock.monotonic()
    assert (clock.now(), clock.monotonic()) == (instant, seconds)
    assert isinstance(clock, FakeClock)
    clock.advance(1.5)
    clock.advance(timedelta(minutes=1))
    assert clock.now() - instant == timedelta(seconds=61.5)
    assert clock.monotonic() - seconds == 61.5


def test_fake_clock_does_not_go_back() -> None:
    """
    A negative advance is refused and moves nothing.
    """
    clock = FakeClock()
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)
    assert clock.monotonic() == FakeClock().monotonic()


def test_fake_clock_records_sleeps_and_moves_by_them() -> None:
    """
    Sleeping takes no time, is recorded, and moves the clock unless it is for nothing.
    """
    clock = FakeClock()
    start = clock.monotonic()
    for seconds in (2.0, 0.0, -1.0):
        clock.sleep(seconds)
    clock.sleeps.append(99.0)
    assert clock.sleeps == [2.0, 0.0, -1.0]
    assert clock.monotonic() - start == 2.0


def test_fake_clock_starts_where_it_is_told_in_utc() -> None:
    """
    An instant of another zone is shown in UTC, as the system's clock would.
    """
    start = datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert FakeClock(start).now() == start
    assert FakeClock(start).now().tzinfo is UTC


def test_fake_clock_loses_no_movement_between_threads() -> None:
    """
    Threads that sleep at once all move it.
    """
    clock = FakeClock()
    start = clock.monotonic()
    run_together(8, lambda: [clock.sleep(1) for _ in range(50)])
    assert clock.monotonic() - start == 400
    assert len(clock.sleeps) == 400


def test_fake_clock_can_stand_still_while_threads_wait_for_one_another() -> None:
    """
    Inside the block, nested or not, sleeps are recorded and move nothing; advancing still does.
    """
    clock = FakeClock()
    start = clock.monotonic()
    with clock.standing_still():
        with clock.standing_still():
            clock.sleep(5)
        run_together(4, lambda: clock.sleep(5))
        assert clock.monotonic() == start
        clock.advance(1)
    clock.sleep(2)
    assert clock.monotonic() == start + 3
    assert clock.sleeps == [5, 5, 5, 5, 5, 2]
