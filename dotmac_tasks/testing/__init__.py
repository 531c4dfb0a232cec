"""
Helpers for the tests of those who use the library.

A clock that stands still, a recorder of events, and a harness that sends a
request twice, at once, or with its worker dying, and reports what became of it.
For pytest there are fixtures in `dotmac_tasks.testing.fixtures`.
"""

from __future__ import annotations

from dotmac_tasks.testing.clock import FakeClock
from dotmac_tasks.testing.death import WorkerDeath
from dotmac_tasks.testing.harness import TasksHarness
from dotmac_tasks.testing.recorder import EventRecorder
from dotmac_tasks.testing.report import Attempt, AttemptOutcome, SendReport
from dotmac_tasks.testing.storage import HookedStorage, StorageHook, VerbCall

__all__ = [
    "Attempt",
    "AttemptOutcome",
    "EventRecorder",
    "FakeClock",
    "HookedStorage",
    "SendReport",
    "StorageHook",
    "TasksHarness",
    "VerbCall",
    "WorkerDeath",
]
