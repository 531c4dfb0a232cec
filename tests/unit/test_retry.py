from __future__ import annotations

import math
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks.retry import RetryPolicy

NUMBERS = st.floats(0, 1e300)


def test_longest_delays_grow_up_to_the_cap() -> None:
    """
    Without jitter each delay is the factor times the one before, until the cap.
    """
    policy = RetryPolicy(base=1, factor=2, cap=5)
    assert list(islice(policy.delays(lambda: 1.0), 5)) == [1, 2, 4, 5, 5]


def test_jitter_is_full() -> None:
    """
    A delay may be anything from nothing to its longest.
    """
    policy = RetryPolicy(base=8, factor=2, cap=100)
    parts = iter([0.0, 0.25, 1.0])
    assert [policy.delay(2, parts.__next__) for _ in range(3)] == [0, 4, 16]


def test_default_delays_are_random_and_bounded() -> None:
    """
    The built-in randomness stays within the bounds and does not repeat itself.
    """
    delays = [RetryPolicy().delay(3) for _ in range(20)]
    assert all(0 <= delay <= 0.4 for delay in delays)
    assert len(set(delays)) > 1


@given(NUMBERS, st.floats(1, 1e300), NUMBERS, st.floats(0, 1))
def test_thousand_delays_are_bounded(base: float, factor: float, cap: float, part: float) -> None:
    """
    No attempt overflows, and no delay is negative, NaN or above the cap.
    """
    policy = RetryPolicy(base=base, factor=factor, cap=cap)
    for attempt in (1, 2, 3, 10, 100, 1000):
        assert 0 <= policy.delay(attempt, lambda: part) <= cap
    delays = list(islice(policy.delays(lambda: part), 1000))
    assert not any(math.isnan(delay) for delay in delays)
    assert all(0 <= delay <= cap for delay in delays)


@pytest.mark.parametrize("base", [0.0, 1.0])
def test_overflowing_growth_ends_at_the_cap_unless_there_is_none(base: float) -> None:
    """
    A base of nothing stays nothing, however large the factor.
    """
    policy = RetryPolicy(base=base, factor=1e300, cap=7)
    assert policy.delay(1000, lambda: 1.0) == (7 if base else 0)


@pytest.mark.parametrize(
    "numbers",
    [
        {"base": -1},
        {"cap": -1},
        {"factor": 0.5},
        {"base": math.nan},
        {"cap": math.inf},
        {"factor": math.inf},
    ],
)
def test_senseless_numbers_are_refused(numbers: dict[str, float]) -> None:
    """
    Negative, shrinking and endless delays are errors at construction.
    """
    with pytest.raises(ValueError, match="must be"):
        RetryPolicy(**numbers)
