"""
What a manager says of itself: health and statistics.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from dotmac_tasks.claims import GuardCounts, IdempotencyGuard
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.heartbeat import Heartbeat
from dotmac_tasks.models import StorageHealth, StorageStats
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.typing import Clock

__all__ = ["HealthReport", "ManagerStats", "collect_stats", "report_health"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthReport:
    """
    Whether the manager can do its work; immutable, holds no secrets.

    Attributes:
        healthy: Whether the storage answers and can be written to.
        checked_at: When it was asked.
        storage: What the storage says of itself.
        leases_held: Leases that this process renews.
        outcomes_waiting: Outcomes that could not be written yet.
        warnings: What will hurt, one sentence each.
    """

    healthy: bool
    checked_at: datetime
    storage: StorageHealth
    leases_held: int
    outcomes_waiting: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """
        Return it as plain JSON data.
        """
        return {
            "healthy": self.healthy,
            "checked_at": self.checked_at.isoformat(),
            "storage": {
                "backend": self.storage.backend,
                "healthy": self.storage.healthy,
                "latency": self.storage.latency,
                "details": dict(self.storage.details),
            },
            "leases_held": self.leases_held,
            "outcomes_waiting": self.outcomes_waiting,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ManagerStats:
    """
    Counts of the storage, and of this process since the manager was made.

    Immutable, so shared by all threads.

    Attributes:
        idempotency_keys: Records in the storage, of all processes.
        operations: Background operations in the storage, likewise.
        leases_held: Claims and locks that this process renews now.
        outcomes_waiting: Outcomes of this process that could not be written yet.
        executions: Claims that this process got.
        takeovers: Those of them whose earlier executor had died.
        replays: Duplicates that got a recorded outcome.
        conflicts: Duplicates that got none: running, unresolved, mismatched.
        claims_lost: Claims that were lost while their work ran.
        completions_delayed: Outcomes that could not be written at once.
        keys_refused: New keys that were refused, since their caller had too many.
        events_dropped: Events that hooks were too slow for.
    """

    idempotency_keys: int
    operations: int
    leases_held: int
    outcomes_waiting: int
    executions: int
    takeovers: int
    replays: int
    conflicts: int
    claims_lost: int
    completions_delayed: int
    keys_refused: int
    events_dropped: int

    def to_dict(self) -> dict[str, int]:
        """
        Return it as plain JSON data.
        """
        return asdict(self)


def report_health(
    storage: Storage, heartbeat: Heartbeat, config: TasksConfig, clock: Clock
) -> HealthReport:
    """
    Ask the storage how it is; never raises for the storage's sake.
    """
    answer = storage.check_health()
    waiting = heartbeat.unwritten_count
    warnings = (*answer.warnings, *config.find_risks())
    if waiting:
        warnings += (f"{waiting} outcomes of this process wait to be written.",)
    return HealthReport(
        healthy=answer.healthy,
        checked_at=clock.now(),
        storage=answer,
        leases_held=heartbeat.held_count,
        outcomes_waiting=waiting,
        warnings=warnings,
    )


def collect_stats(
    counted: StorageStats, guard: IdempotencyGuard, events_dropped: int
) -> ManagerStats:
    """
    Put together what the storage and this process have counted.
    """
    seen: GuardCounts = guard.counts
    return ManagerStats(
        idempotency_keys=counted.idempotency_keys,
        operations=counted.operations,
        leases_held=guard.heartbeat.held_count,
        outcomes_waiting=guard.heartbeat.unwritten_count,
        executions=seen.executions,
        takeovers=seen.takeovers,
        replays=seen.replays,
        conflicts=seen.conflicts,
        claims_lost=seen.lost,
        completions_delayed=seen.delayed,
        keys_refused=seen.over_quota,
        events_dropped=events_dropped,
    )
