"""
The circuit breaker, by an injected clock.
"""

from __future__ import annotations

import pytest

from dotmac_tasks.storage.breaker import CircuitBreaker
from dotmac_tasks.testing import FakeClock
from support.concurrency import run_together


@pytest.fixture
def breaker(clock: FakeClock) -> CircuitBreaker:
    return CircuitBreaker(threshold=2, cooldown=5, clock=clock)


@pytest.fixture
def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    for _ in range(2):
        assert breaker.lets_through()
        breaker.record_failure()
    return breaker


def test_signal_handler_may_use_a_breaker_that_it_interrupts(clock: FakeClock) -> None:
    """A thread that is stopped inside of the breaker can ask it and tell it, too."""

    class Interrupted(FakeClock):
        def monotonic(self) -> float:
            return 0.0 if breaker.state == "closed" else 1.0

    breaker = CircuitBreaker(threshold=2, cooldown=5, clock=Interrupted())
    run_together(1, breaker.record_failure)
    assert breaker.state == "closed"


def test_breaker_stays_closed_while_failures_are_apart(breaker: CircuitBreaker) -> None:
    """A success between failures starts the count anew."""
    for _ in range(5):
        breaker.record_failure()
        breaker.record_success()
    assert breaker.state == "closed"
    assert breaker.lets_through()


def test_breaker_opens_after_failures_in_a_row(opened: CircuitBreaker) -> None:
    """The threshold of failures in a row opens it, and nothing passes."""
    assert opened.state == "open"
    assert not opened.lets_through()


def test_breaker_lets_one_probe_through_after_the_rest(
    opened: CircuitBreaker, clock: FakeClock
) -> None:
    """After the cool-down one call passes and the next one does not."""
    clock.advance(5)
    assert opened.state == "half-open"
    assert opened.lets_through()
    assert not opened.lets_through()


def test_breaker_lets_one_of_many_threads_probe(opened: CircuitBreaker, clock: FakeClock) -> None:
    """Of many threads that ask at once one becomes the probe."""
    clock.advance(5)
    assert run_together(8, opened.lets_through).count(True) == 1


def test_breaker_closes_after_a_good_probe(opened: CircuitBreaker, clock: FakeClock) -> None:
    """A probe that succeeds closes it for all."""
    clock.advance(5)
    assert opened.lets_through()
    opened.record_success()
    assert opened.state == "closed"
    assert opened.lets_through()


def test_breaker_opens_anew_after_a_bad_probe(opened: CircuitBreaker, clock: FakeClock) -> None:
    """A probe that fails starts the rest anew."""
    clock.advance(5)
    assert opened.lets_through()
    opened.record_failure()
    assert opened.state == "open"
    clock.advance(4.9)
    assert not opened.lets_through()
    clock.advance(0.1)
    assert opened.lets_through()


def test_breaker_gives_a_probe_back_that_told_nothing(
    opened: CircuitBreaker, clock: FakeClock
) -> None:
    """A probe that ended without an outcome makes room for the next one."""
    clock.advance(5)
    assert opened.lets_through()
    opened.record_nothing()
    assert opened.lets_through()


def test_breaker_replaces_a_probe_that_vanished(opened: CircuitBreaker, clock: FakeClock) -> None:
    """A probe that was interrupted before it could tell anything is not waited for for ever."""
    clock.advance(5)
    assert opened.lets_through()
    clock.advance(4.9)
    assert not opened.lets_through()
    clock.advance(0.2)
    assert opened.lets_through()


def test_breaker_asks_again_under_its_lock(clock: FakeClock) -> None:
    """A breaker that closes while a caller waits for its lock lets that caller through."""
    breaker = CircuitBreaker(threshold=1, cooldown=5, clock=clock)
    breaker.record_failure()

    class ClosingLock:
        """Closes the breaker before it is entered; used by one thread."""

        def __enter__(self) -> None:
            breaker._failures = 0

        def __exit__(self, *_: object) -> None:
            pass

    breaker._lock = ClosingLock()  # type: ignore[assignment]
    assert breaker.lets_through()


def test_breaker_forgets_when_it_is_reset(opened: CircuitBreaker) -> None:
    """A reset breaker is closed."""
    opened.reset()
    assert opened.state == "closed"
    assert opened.lets_through()


def test_breaker_says_that_it_would_refuse(opened: CircuitBreaker, clock: FakeClock) -> None:
    """Asking whether it refuses takes nobody's place as the probe."""
    assert opened.is_refusing
    clock.advance(5)
    assert not opened.is_refusing
    assert not opened.is_refusing
    assert opened.lets_through()
    assert opened.is_refusing
    opened.record_success()
    assert not opened.is_refusing
