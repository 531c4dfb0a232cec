from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time

import pytest

from support.concurrency import Counter, ProcessDiedError, run_processes, run_together, wait_until


def test_run_together_returns_each_result() -> None:
    """Every thread ran once, and each result has its place."""
    counter = Counter()
    assert sorted(map(int, map(str, run_together(8, counter.increment)))) == list(range(1, 9))
    assert counter.value == 8


def test_run_together_returns_exceptions_as_values() -> None:
    """What a thread raises is handed over and does not end the others."""
    counter = Counter()

    def fail_first() -> int:
        if (number := counter.increment()) == 1:
            raise SystemExit(number)
        return number

    outcomes = run_together(3, fail_first)
    assert sorted(type(outcome) is SystemExit for outcome in outcomes) == [False, False, True]


def test_run_together_lines_threads_up() -> None:
    """All calls are under way at once: they can wait for one another."""
    meeting = threading.Barrier(4)
    outcomes = run_together(4, meeting.wait, 30)
    assert sorted(map(int, map(str, outcomes))) == [0, 1, 2, 3]


def test_run_together_restores_the_switch_interval() -> None:
    """The process switches threads as before afterwards."""
    before = sys.getswitchinterval()
    inside = run_together(1, sys.getswitchinterval)
    assert sys.getswitchinterval() == before
    assert inside != [before]


def test_run_together_fails_on_a_deadlock() -> None:
    """A thread that never ends fails the call and is named with its stack."""
    release = threading.Event()
    try:
        with pytest.raises(TimeoutError, match=r"(?s)1 of 1 .*together-0.*wait"):
            run_together(1, release.wait, timeout=0.05)
    finally:
        release.set()


def test_run_processes_returns_each_result() -> None:
    """Every call ran in a process of its own."""
    pids = run_processes(2, os.getpid)
    assert len({*pids, os.getpid()}) == 3


def test_run_processes_returns_exceptions_as_values() -> None:
    """What a process raises is handed over."""
    (error,) = run_processes(1, math.sqrt, -1)
    assert isinstance(error, ValueError)


def test_run_processes_tells_a_dead_process() -> None:
    """A process that ends without a result is reported with its exit code."""
    (error,) = run_processes(1, signal.raise_signal, signal.SIGKILL)
    assert isinstance(error, ProcessDiedError)
    assert "-9" in str(error)


def test_run_processes_tells_a_result_that_cannot_travel() -> None:
    """A result that pickle refuses comes as an error that shows it."""
    (error,) = run_processes(1, threading.Lock)
    assert isinstance(error, RuntimeError)
    assert "lock" in str(error)


def test_run_processes_fails_on_a_deadlock() -> None:
    """A process that never ends fails the call."""
    with pytest.raises(TimeoutError, match="1 of 1"):
        run_processes(1, time.sleep, 600, timeout=2)


def test_counter_loses_no_increment() -> None:
    """Threads that count together arrive at the exact sum."""
    counter = Counter()

    def count() -> None:
        for _ in range(200):
            counter.increment(2)

    assert run_together(4, count) == [None] * 4
    assert counter.value == 1600


def test_wait_until_returns_once_true() -> None:
    """The predicate is asked until it holds."""
    counter = Counter()
    wait_until(lambda: counter.increment() == 3)
    assert counter.value == 3


def test_wait_until_fails_when_it_stays_false() -> None:
    """A predicate that never holds is an error."""
    with pytest.raises(TimeoutError):
        wait_until(lambda: False, timeout=0)
