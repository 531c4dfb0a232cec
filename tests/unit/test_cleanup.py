from __future__ import annotations

import threading

import pytest

from dotmac_tasks.cleanup import CLEANUP_THREAD_NAME, clean_up
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import ClaimRequest, PurgeReport
from dotmac_tasks.testing import FakeClock
from support.concurrency import find_threads, run_together, wait_until
from support.faulty import FaultyStorage


def fill(storage: FaultyStorage, count: int, ttl: float = 10.0) -> None:
    for number in range(count):
        storage.ensure_operation(
            ClaimRequest(f"key-{number}-{ttl}", "o", "t", "", "type", "", ttl, 10.0)
        )


def expired(clock: FakeClock, count: int) -> FaultyStorage:
    storage = FaultyStorage(clock=clock)
    fill(storage, count)
    clock.advance(11)
    fill(storage, 1, ttl=1000.0)
    return storage


def test_cleanup_removes_what_expired_in_batches(clock: FakeClock) -> None:
    """All that expired is removed, in bounded batches, and nothing that is live."""
    storage = expired(clock, 5)
    report = clean_up(storage, batch_size=2, max_records=None, dry_run=False)
    assert report == (5, 3, False, False)
    assert storage.get_stats().idempotency_keys == 1


def test_cleanup_stops_at_its_bound(clock: FakeClock) -> None:
    """With a bound, exactly that many are removed and the report says that more are left."""
    storage = expired(clock, 5)
    report = clean_up(storage, batch_size=2, max_records=3, dry_run=False)
    assert report == (3, 2, True, False)


def test_cleanup_stops_when_told(clock: FakeClock) -> None:
    """A cleanup that is told to end removes no further batch."""
    storage = expired(clock, 5)
    report = clean_up(storage, batch_size=2, max_records=None, dry_run=False, go_on=lambda: False)
    assert report == (0, 0, True, False)


def test_cleanup_dry_run_only_counts(clock: FakeClock) -> None:
    """A dry run removes nothing and counts all."""
    storage = expired(clock, 5)
    report = clean_up(storage, batch_size=2, max_records=None, dry_run=True)
    assert report == (5, 0, True, True)
    assert storage.purge_expired(100, dry_run=True).removed == 5


def test_cleanup_that_makes_no_progress_ends() -> None:
    """A storage that always promises more and removes nothing is not asked without end."""

    class Stuck(FaultyStorage):
        def purge_expired(self, limit: int, *, dry_run: bool = False) -> PurgeReport:
            return PurgeReport(0, True)

    report = clean_up(Stuck(), batch_size=2, max_records=None, dry_run=False)
    assert (report.removed, report.batches) == (0, 1)


# The thread


def test_cleanup_thread_runs_between_start_and_stop() -> None:
    """The thread is there after `start`, once, and gone after `stop`."""
    manager = BackgroundOperationsManager()
    assert find_threads(CLEANUP_THREAD_NAME) == []
    assert manager.start() is manager
    manager.start()
    assert [thread.daemon for thread in find_threads(CLEANUP_THREAD_NAME)] == [True]
    manager.stop()
    assert find_threads(CLEANUP_THREAD_NAME) == []
    manager.stop()


def test_cleanup_thread_is_off_where_it_is_disabled() -> None:
    """Without background cleanup no thread starts."""
    with BackgroundOperationsManager(enable_background_cleanup=False):
        assert find_threads(CLEANUP_THREAD_NAME) == []


def test_cleanup_thread_starts_with_the_first_claim() -> None:
    """Nobody needs to call `start`: the first use does."""
    manager = BackgroundOperationsManager()
    manager.idempotent("work")(lambda: 1)()
    wait_until(lambda: len(find_threads(CLEANUP_THREAD_NAME)) == 1)
    manager.stop()


def test_cleanup_thread_removes_what_expired(caplog: pytest.LogCaptureFixture) -> None:
    """The thread cleans up again and again, whatever a cleanup runs into."""
    caplog.set_level("INFO")
    storage = FaultyStorage()
    storage.refuse("purge_expired")
    storage.refuse("purge_expired", error=ZeroDivisionError())
    with BackgroundOperationsManager(storage, cleanup_interval=0.01):
        wait_until(lambda: storage.calls.count("purge_expired") >= 4)
    assert caplog.text.count("tried again later") == 2
    assert "Expired records were removed" in caplog.text


def test_cleanup_thread_ends_with_its_manager() -> None:
    """A manager that nobody stops takes its thread along when it is gone."""
    manager = BackgroundOperationsManager(cleanup_interval=0.01).start()
    del manager
    wait_until(lambda: find_threads(CLEANUP_THREAD_NAME) == [])


def test_signal_handler_may_stop_a_manager_that_is_starting() -> None:
    """A handler that interrupts the start of the cleanup thread does not wait for itself."""
    manager = BackgroundOperationsManager().start()

    def interrupt() -> None:
        with manager._cleanup._lock:
            manager.stop()

    assert run_together(1, interrupt) == [None]
    assert find_threads(CLEANUP_THREAD_NAME) == []


def test_cleanup_thread_that_cannot_start_does_not_hurt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no thread can be started, a warning is all."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    manager = BackgroundOperationsManager()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        manager.start()
    assert "cannot be started" in caplog.text
    assert find_threads(CLEANUP_THREAD_NAME) == []
