"""
Fifty requests with one new key at once, time and again: how often the work ran once.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.report import Check, Section
from support.crowd import CROWD, MAX_WAITING, SETTINGS, TRIALS, send_crowd
from support.workers import Worker

_PROCESSES = 3


def count_crowds(url: str) -> Section:
    """
    Send crowds to workers over memory and over Redis, for each answer that duplicates may get.
    """
    section = Section(
        f"Crowds: {CROWD} concurrent requests with one new key",
        (
            f"In how many of {TRIALS} trials the work ran once, and all others got what is",
            f"promised: 202, 409, or with wait the first answer for {MAX_WAITING} of each process",
            "and 409 for the rest. Real requests to real processes; memory has one.",
        ),
        ("", "right", "target", ""),
    )
    for name, storage, processes in (("memory", "memory://", 1), ("Redis", url, _PROCESSES)):
        for in_progress in SETTINGS:
            right = _count(storage, processes, in_progress)
            what = f"{name}, {processes} processes, {in_progress}".replace(
                "1 processes", "1 process"
            )
            section.data[what] = right
            check = Check(f"A crowd runs once: {what}", right, TRIALS, "==", f" of {TRIALS}")
            section.add(what, f"{right} of {TRIALS}", check=check)
    return section


def _count(storage: str, processes: int, in_progress: str) -> int:
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker("wsgi", storage=storage, **SETTINGS[in_progress]))
            for _ in range(processes)
        ]
        trials = [send_crowd(workers, f"{in_progress}-{n}", in_progress) for n in range(TRIALS)]
    return sum(trial.is_right(in_progress, processes) for trial in trials)
