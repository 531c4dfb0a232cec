"""
The service as a whole: `health` and `stats`.
"""

from __future__ import annotations

from typing import Any

from dotmac_tasks import BackgroundOperationsManager
from dotmac_tasks.health import HealthReport
from dotmac_tasks_django.console.parsing import Subparsers, add_command
from dotmac_tasks_django.console.screen import Answer, clean, show_facts

__all__ = ["add_commands"]


def add_commands(subparsers: Subparsers) -> None:
    """
    Declare `health` and `stats`.
    """
    add_command(subparsers, "health", check_health, "ask the storage how it is; for a probe, too")
    add_command(subparsers, "stats", show_stats, "count what is stored")


def check_health(manager: BackgroundOperationsManager, options: dict[str, Any]) -> Answer:
    """
    Ask the storage how it is.

    What a manager holds and has waiting is that of its own process, so of no
    interest here.
    """
    report = manager.health_check()
    document = report.to_dict()
    del document["leases_held"], document["outcomes_waiting"]
    refusal = None
    if not report.healthy:
        refusal = (
            "The storage cannot do its work. Until it can, requests run unprotected, or get 503 "
            'where ON_STORAGE_ERROR is "reject".'
        )
    return Answer(document, _show_health(report), refusal)


def _show_health(report: HealthReport) -> str:
    storage = report.storage
    facts = [
        ("healthy", "yes" if report.healthy else "NO"),
        ("storage", storage.backend),
        ("latency", f"{storage.latency * 1000:.1f} ms"),
    ]
    facts += [(name, clean(str(value))) for name, value in storage.details.items()]
    names = ["warnings", *[""] * len(report.warnings)]
    facts += zip(names, map(clean, report.warnings or ("none",)), strict=False)
    return show_facts(facts)


def show_stats(manager: BackgroundOperationsManager, options: dict[str, Any]) -> Answer:
    """
    Count what is stored; what this process itself has done is nothing.
    """
    stats = manager.get_stats()
    document = {"idempotency_keys": stats.idempotency_keys, "operations": stats.operations}
    facts = [
        ("idempotency keys", f"{stats.idempotency_keys:,}"),
        ("operations", f"{stats.operations:,}"),
    ]
    return Answer(document, show_facts(facts))
