from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dotmac_tasks.errors import (
    ConfigurationError,
    LockError,
    LockLostError,
    LockNotAcquiredError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from dotmac_tasks.events import EventDispatcher, LockAcquired, LockFailed
from dotmac_tasks.heartbeat import Heartbeat
from dotmac_tasks.keys import key_hash
from dotmac_tasks.locks import DistributedLock
from dotmac_tasks.retry import POLLING
from dotmac_tasks.testing import EventRecorder, FakeClock
from support.concurrency import Counter, run_together
from support.faulty import FaultyStorage

TTL = 30.0


class Bench:
    """
    Locks over a storage that fails on demand and a clock that stands still.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.storage = FaultyStorage(clock=clock)
        self.heartbeat = Heartbeat(self.storage, clock=clock, max_execution=300.0)
        # As if it ran: tests beat themselves.
        self.heartbeat._thread = threading.Thread()
        self.recorder = EventRecorder()
        self.events = EventDispatcher((self.recorder,), clock)

    def lock(self, name: str = "report", **options: Any) -> DistributedLock:
        return DistributedLock(
            name,
            storage=self.storage,
            heartbeat=self.heartbeat,
            events=self.events,
            clock=self.clock,
            **options,
        )

    def seen(self, kind: type[Any]) -> list[Any]:
        assert self.events.flush(30)
        return self.recorder.of_type(kind)

    def hold(self, seconds: float) -> None:
        """
        Let time pass as the heartbeat's thread would.
        """
        end = self.clock.monotonic() + seconds
        while (due := self.heartbeat._wake_at) <= end:
            self.clock.advance(max(0.0, due - self.clock.monotonic()))
            self.heartbeat.beat()
        self.clock.advance(end - self.clock.monotonic())


@pytest.fixture
def bench(clock: FakeClock) -> Iterator[Bench]:
    bench = Bench(clock)
    yield bench
    bench.events.close()


def test_lock_keeps_others_out(bench: Bench) -> None:
    """While one holds the lock another gets an error, and its block never runs."""
    with bench.lock() as lock:
        assert lock.is_held
        lock.check()
        with pytest.raises(LockNotAcquiredError), bench.lock():
            pytest.fail("the block ran")
    assert not lock.is_held
    with bench.lock():
        pass
    assert [event.reason for event in bench.seen(LockFailed)] == ["busy"]
    assert len(bench.seen(LockAcquired)) == 2


def test_lock_tokens_grow(bench: Bench) -> None:
    """Every acquisition has a larger fencing token."""
    lock = bench.lock()
    tokens = []
    for _ in range(3):
        with lock:
            tokens.append(lock.fencing_token)
    assert tokens == sorted(set(tokens))


def test_lock_outlives_its_time_while_it_is_held(bench: Bench) -> None:
    """A lock that is held is renewed."""
    with bench.lock() as lock:
        bench.hold(5 * TTL)
        lock.check()
        with pytest.raises(LockNotAcquiredError):
            bench.lock().acquire()


def test_lock_is_not_renewed_after_its_longest_hold(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A holder that hangs loses the lock, and says so at the end; the log has its hashed name."""
    lock = bench.lock(max_hold=60.0)
    lock.acquire()
    bench.hold(60.0 + 2 * TTL)
    with pytest.raises(LockLostError):
        lock.check()
    with bench.lock():
        assert not lock.release()
    assert [vars(record)["name_hash"] for record in caplog.records] == [key_hash(lock.name)]


def test_lock_waits_for_the_holder(bench: Bench) -> None:
    """A waiting caller gets the lock when the holder gives it back."""
    holder = bench.lock()
    holder.acquire()
    bench.storage.before = lambda verb: (
        holder.release() and None if len(bench.clock.sleeps) == 3 else None
    )
    with bench.lock(wait=10.0) as lock:
        assert lock.is_held
    assert bench.seen(LockAcquired)[-1].waited > 0


def test_lock_wait_runs_out(bench: Bench) -> None:
    """A caller that waited in vain learns how long, and the holder keeps the lock."""
    with bench.lock() as holder:
        with pytest.raises(LockNotAcquiredError) as caught, bench.lock(wait=5.0):
            pytest.fail("the block ran")
        assert caught.value.waited == pytest.approx(5.0)
        assert max(bench.clock.sleeps) <= POLLING.cap
        holder.check()


def test_release_after_the_lock_was_taken_leaves_the_new_holder(bench: Bench) -> None:
    """A former holder that comes back late does not free the lock of its successor."""
    late = bench.lock()
    late.acquire()
    bench.clock.advance(TTL + 1)
    with bench.lock() as successor:
        assert not late.release()
        successor.check()
        with pytest.raises(LockNotAcquiredError):
            bench.lock().acquire()


def test_lock_lost_during_the_block_is_an_error_at_its_end(bench: Bench) -> None:
    """A block that ends well without its lock is told."""
    lock = bench.lock()
    with pytest.raises(LockLostError), lock:
        bench.clock.advance(TTL + 1)


def test_lock_lost_does_not_hide_the_error_of_the_block(bench: Bench) -> None:
    """The block's own error arrives, not the loss."""

    def fail_late() -> None:
        bench.clock.advance(TTL + 1)
        raise ValueError("own")

    with pytest.raises(ValueError, match="own"), bench.lock():
        fail_late()


def test_refused_renewal_is_told(bench: Bench) -> None:
    """A lock that somebody removed is noticed at the next beat, and reported."""
    lock = bench.lock()
    lock.acquire()
    bench.storage.release_lock("report", lock._require_held().lease.owner)
    bench.hold(TTL / 3)
    with pytest.raises(LockLostError):
        lock.check()
    assert not lock.release()
    assert [event.reason for event in bench.seen(LockFailed)] == ["lost"]


def test_failing_renewals_go_unnoticed_when_they_recover(bench: Bench) -> None:
    """Two failed renewals cost nobody the lock."""
    with bench.lock() as lock:
        bench.storage.refuse("renew_leases", times=2)
        bench.hold(TTL)
        lock.check()


def test_check_fails_before_the_storage_lets_go(bench: Bench) -> None:
    """When renewals fail for good, the holder stops before another can begin."""
    lock = bench.lock()
    lock.acquire()
    bench.storage.refuse("renew_leases", times=1000)
    bench.hold(TTL * 0.96)
    with pytest.raises(LockLostError):
        lock.check()
    with pytest.raises(LockNotAcquiredError):
        bench.lock().acquire()


def test_lock_reported_lost_stays_lost(bench: Bench) -> None:
    """A renewal that gets through late does not make a reported loss undone."""
    lock = bench.lock()
    lock.acquire()
    bench.clock.advance(TTL * 0.96)
    with pytest.raises(LockLostError):
        lock.check()
    bench.heartbeat.beat()
    with pytest.raises(LockLostError):
        lock.check()
    assert not lock.release()


def test_no_renewal_extends_a_released_lock(bench: Bench) -> None:
    """A renewal that arrives after the release neither extends nor creates anything."""
    lock = bench.lock()
    lock.acquire()
    bench.storage.before = lambda verb: lock.release() and None if verb == "renew_leases" else None
    bench.hold(TTL / 3)
    bench.storage.before = lambda verb: None
    with bench.lock():
        pass
    assert bench.seen(LockFailed) == []


def test_lost_reply_to_an_acquisition_is_asked_for_again(bench: Bench) -> None:
    """A lock that was granted without a reply is recognised as one's own."""
    bench.storage.lose_reply("acquire_lock")
    with bench.lock() as lock:
        lock.check()


def test_acquisition_in_doubt_is_given_back(bench: Bench) -> None:
    """Without an answer to both attempts the caller gets an error, and the lock is free."""
    bench.storage.lose_reply("acquire_lock", times=2)
    with pytest.raises(StorageTimeoutError), bench.lock():
        pytest.fail("the block ran")
    with bench.lock():
        pass


def test_acquisition_in_doubt_ends_with_its_time(bench: Bench) -> None:
    """If giving it back fails as well, the lock is free after its time to live."""
    bench.storage.lose_reply("acquire_lock", times=2)
    bench.storage.refuse("release_lock")
    with pytest.raises(StorageTimeoutError):
        bench.lock().acquire()
    with pytest.raises(LockNotAcquiredError):
        bench.lock().acquire()
    bench.clock.advance(TTL + 1)
    bench.lock().acquire()


def test_dead_storage_at_the_acquisition_is_an_error(bench: Bench) -> None:
    """Without a storage there is no lock, and the object can be used again."""
    lock = bench.lock()
    bench.storage.refuse("acquire_lock")
    with pytest.raises(StorageUnavailableError):
        lock.acquire()
    with lock:
        pass


def test_slow_release_is_no_loss(bench: Bench) -> None:
    """A lock held to the end of its block is not lost because giving it back takes long."""
    bench.storage.before = lambda verb: bench.clock.advance(TTL) if verb == "release_lock" else None
    with bench.lock(ttl=TTL) as lock:
        lock.check()
    lock.acquire()
    bench.clock.advance(TTL)
    assert not lock.release()


def test_dead_storage_at_the_release_hurts_nobody(bench: Bench) -> None:
    """A block that held its lock to the end has no error; the lock ends by itself."""
    with bench.lock():
        bench.storage.refuse("release_lock")
    bench.clock.advance(TTL + 1)
    with bench.lock():
        pass


def test_lock_object_in_use_refuses_a_second_use(bench: Bench) -> None:
    """One object stands for one execution: nesting it is a clear error, and the first goes on."""
    lock = bench.lock()
    with lock:
        with pytest.raises(LockError, match="this very object"):
            lock.acquire()
        lock.check()


def test_lock_that_was_not_acquired_has_no_token(bench: Bench) -> None:
    """Token and check need an acquired lock; releasing is harmless."""
    lock = bench.lock()
    with pytest.raises(LockError, match="Acquire it first"):
        _ = lock.fencing_token
    with pytest.raises(LockError, match="Acquire it first"):
        lock.check()
    assert not lock.release()


def test_child_of_a_fork_does_not_hold_the_lock(bench: Bench) -> None:
    """In a forked child the parent's lock is not held and cannot be released."""
    lock = bench.lock()
    lock.acquire()
    bench.heartbeat.after_fork()
    assert not lock.is_held
    assert not lock.release()
    with pytest.raises(LockNotAcquiredError):
        bench.lock().acquire()


def test_locks_without_hooks_work_silently(bench: Bench) -> None:
    """Where nobody listens, all paths that would emit an event pass."""
    bench.events.active = False
    lock = bench.lock()
    with lock, pytest.raises(LockNotAcquiredError):
        bench.lock().acquire()
    lock.note_lost()
    assert bench.recorder.events == []


@pytest.mark.parametrize("name", ["", "x" * 256, "saga:1", None])
def test_lock_name_that_cannot_be_used_is_refused(bench: Bench, name: Any) -> None:
    """Empty, overlong and reserved names are refused before anything is sent."""
    with pytest.raises(LockError):
        bench.lock(name)


@pytest.mark.parametrize(
    "options", [{"ttl": 0}, {"ttl": -1}, {"wait": -1}, {"max_hold": 0}, {"ttl": "x"}]
)
def test_lock_duration_that_cannot_work_is_refused(bench: Bench, options: Any) -> None:
    """Durations are checked when the lock object is made."""
    with pytest.raises(ConfigurationError):
        bench.lock(**options)


def test_lock_works_without_a_clock_of_its_own() -> None:
    """By default a lock goes by the system's clock, and threads exclude one another."""
    storage = FaultyStorage()
    heartbeat = Heartbeat(storage)
    events = EventDispatcher((), FakeClock())
    inside = Counter()
    most = []

    def work() -> None:
        lock = DistributedLock(
            "report", storage=storage, heartbeat=heartbeat, events=events, wait=30.0
        )
        with lock:
            most.append(inside.increment())
            inside.increment(-1)

    assert run_together(4, work) == [None] * 4
    assert most == [1] * 4
    heartbeat.stop()
