from __future__ import annotations

import json

import pytest

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.health import report_health
from dotmac_tasks.heartbeat import Heartbeat
from support.faulty import FaultyStorage


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
