from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from dotmac_tasks.clock import SystemClock


def test_now_is_aware_and_in_utc() -> None:
    """
    The instant is the system's, with its zone.
    """
    before = datetime.now(UTC)
    now = SystemClock().now()
    assert before <= now <= datetime.now(UTC)
    assert now.tzinfo is UTC


def test_monotonic_does_not_step_back() -> None:
    """
    Two readings in a row never decrease.
    """
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()


@pytest.mark.parametrize(("seconds", "slept"), [(0.5, [0.5]), (0, []), (-1, [])])
def test_sleep_passes_on_positive_durations_only(
    monkeypatch: pytest.MonkeyPatch, seconds: float, slept: list[float]
) -> None:
    """
    A duration of nothing or less returns at once instead of failing.
    """
    calls: list[float] = []
    monkeypatch.setattr(time, "sleep", calls.append)
    SystemClock().sleep(seconds)
    assert calls == slept
