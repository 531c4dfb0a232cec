from __future__ import annotations

import json

import pytest

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.health import clean_up, report_health
from dotmac_tasks.heartbeat import Heartbeat
from dotmac_tasks.models import ClaimRequest, PurgeReport
from dotmac_tasks.testing import FakeClock
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


def test_report_tells_of_a_healthy_storage() -> None:
    """A report of a healthy storage holds its answer, and is plain JSON on demand."""
    storage = FaultyStorage()
    heartbeat = Heartbeat(storage)
    report = report_health(storage, heartbeat, TasksConfig(), SystemClock())
    assert report.healthy
    assert (report.leases_held, report.outcomes_waiting, report.warnings) == (0, 0, ())
    assert json.loads(json.dumps(report.to_dict()))["storage"]["backend"] == storage.name


def test_report_warns_of_what_will_hurt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes that wait and risky settings are warned about."""
    storage = FaultyStorage()
    heartbeat = Heartbeat(storage)
    monkeypatch.setitem(heartbeat._unwritten, "owner", None)
    config = TasksConfig(lease=2, storage_timeout=2)
    report = report_health(storage, heartbeat, config, SystemClock())
    assert len(report.warnings) == 2
    assert report.outcomes_waiting == 1


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
