"""
The soak itself: two projects, their traffic, their troubles, and the audit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.soak.audit import Verdict, audit
from support.soak.faults import LEASE, STORAGE_TIMEOUT, Site, Trouble
from support.soak.ledger import read_runs
from support.soak.pulse import Pulse
from support.soak.traffic import Clients, dump, settle_all
from support.soak.worker import DEFER_TIMEOUT

CLIENTS = 4
# What a worker that serves nobody may have: two threads of its own server, and ours.
_THREADS = {"MainThread", "server", "dotmac-tasks.heartbeat"}
# Standard streams, the ledger, the log, the listener; and connections to Redis, which stay open.
_MOST_DESCRIPTORS = 40
# How long after the last fault everything must have an answer.
_SETTLING = LEASE + DEFER_TIMEOUT + 20.0
_REPORT_EVERY = 5.0
# Quick work, two calls to a storage that does not answer, and a machine that is busy.
_LONGEST = 2 * STORAGE_TIMEOUT + 10.0

Say = Callable[[str], None]

PROJECTS: dict[str, dict[str, Any]] = {
    "lenient": {"on_storage_error": "proceed", "on_abandoned": "rerun"},
    "strict": {
        "on_storage_error": "reject",
        "on_abandoned": "refuse",
        "in_progress": "conflict",
    },
}
"""
The lenient one's Redis loses data now and then, the strict one's never.
"""


@dataclass
class Outcome:
    """
    What became of one project; filled by one thread.

    Attributes:
        name: The project.
        verdict: What the audit says.
        kills: How many workers were killed.
        faults: How often each thing went wrong.
        worst: The longest that a request for quick work took, in seconds.
    """

    name: str
    verdict: Verdict
    kills: int
    faults: dict[str, int]
    worst: float


def run_soak(seconds: float, seed: int, folder: Path, say: Say) -> list[Outcome]:
    """
    Send traffic for so long, with everything going wrong; return what became of each project.

    Ends by itself: what it starts, it ends. The ledgers are written into `folder`.
    """
    with ExitStack() as stack:
        sites = [
            stack.enter_context(Site(name, folder, **settings))
            for name, settings in PROJECTS.items()
        ]
        clients = [Clients(site.slots, seed=seed, count=CLIENTS, name=site.name) for site in sites]
        troubles = [Trouble(site, seed=seed, losing=site.name == "lenient") for site in sites]
        pulses = [Pulse(site) for site in sites]
        for each in (*clients, *troubles, *pulses):
            each.start()
        for pulse in pulses:
            stack.callback(pulse.stop)
        _watch(seconds, sites, clients, say)
        for trouble in troubles:
            trouble.stop()
        stopped = [each.stop() for each in clients]
        say("the traffic has ended; everything must have an answer now")
        outcomes = []
        for site, senders, trouble, ended in zip(sites, clients, troubles, stopped, strict=True):
            findings = [] if ended else ["a client still waits for its answer"]
            if trouble.error is not None:
                findings.append(f"the faults broke off: {trouble.error!r}")
            outcomes.append(_conclude(site, senders, findings))
        return outcomes


def _watch(seconds: float, sites: Sequence[Site], clients: Sequence[Clients], say: Say) -> None:
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        time.sleep(min(_REPORT_EVERY, seconds - passed))
        told = "   ".join(
            f"{site.name}: {senders.count():6,} requests, {len(site.faults):3} faults, "
            f"{len(site.kills):3} kills, now {site.now or 'all is well'}"
            for site, senders in zip(sites, clients, strict=True)
        )
        say(f"{time.monotonic() - began:5.0f} s   {told}")


def _conclude(site: Site, clients: Clients, findings: list[str]) -> Outcome:
    site.proxy.heal()
    stuck = settle_all(clients, site.slots[0], _SETTLING)
    findings += [f"{order.account} has no answer one lease after the last fault" for order in stuck]
    findings += _find_leaks(site)
    answers = "".join(f"{dump(exchange)}\n" for exchange in clients.exchanges)
    site.ledger.with_suffix(".answers.jsonl").write_text(answers)
    runs = read_runs(site.ledger)
    verdict = audit(runs, clients.exchanges, site.faults, site.kills, strict=site.name == "strict")
    verdict.findings[:0] = findings
    if verdict.answers.total() != len(clients.exchanges):
        verdict.findings.append("the answers do not add up to the requests")
    quick = [each.ended - each.began for each in clients.exchanges if each.order.path == "/quick"]
    worst = max(quick, default=0.0)
    if worst > _LONGEST:
        verdict.findings.append(f"a request for quick work took {worst:.1f} s")
    names = [fault.name for fault in site.faults]
    return Outcome(
        site.name,
        verdict,
        len(site.kills),
        {name: names.count(name) for name in sorted(set(names))},
        worst,
    )


def _find_leaks(site: Site) -> list[str]:
    deadline = time.monotonic() + _SETTLING
    while time.monotonic() < deadline:
        leaks = [leak for vitals in site.ask_vitals() for leak in describe_leaks(vitals)]
        if not leaks:
            break
        time.sleep(0.5)
    sockets = site.close_workers()
    if sockets:
        leaks.append(f"{sockets} connections to Redis outlive their workers")
    return leaks


def describe_leaks(vitals: dict[str, Any]) -> list[str]:
    """
    Return what a worker that serves nobody still holds and should not.
    """
    leaks = [
        f"a worker still has {vitals[name]} {what}"
        for name, what in (("held", "claims"), ("unwritten", "outcomes to write"))
        if vitals[name]
    ]
    leaks += [f"thread {name!r} is left" for name in vitals["threads"] if name not in _THREADS]
    leaks += [f"temporary file {name!r} is left" for name in vitals["temporary"]]
    if vitals["descriptors"] > _MOST_DESCRIPTORS:
        leaks.append(f"{vitals['descriptors']} descriptors are open")
    return leaks
