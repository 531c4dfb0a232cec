"""
What the work itself wrote down: files that are only ever appended to, one for each process.

A line goes to the system in one piece, so that it survives the process that wrote it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class LedgerFile:
    """
    The file of one process. Instances may be shared between threads: the system orders appends.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / f"{os.getpid()}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, **facts: Any) -> None:
        """
        Append one line, with the time and the process.
        """
        line = {"what": what, "pid": os.getpid(), "at": time.monotonic(), **facts}
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")


@dataclass
class WorkRun:
    """
    One run of the work; filled by one thread.

    Attributes:
        id: The name that its answer carries.
        pid: The process that ran it.
        account: Whose key it was: user and key. None for work without a key.
        at: When it began, on the monotonic clock of the machine.
        fence: The fencing token of its claim; 0 where it ran unprotected.
        ended: When it ended, or None: it was killed in the middle.
        status: What it answered.
        settled: None if it was not handed on; otherwise whether its outcome was reported in time.
    """

    id: str
    pid: int
    account: tuple[str, str] | None
    at: float
    fence: int
    ended: float | None = None
    status: int = 0
    settled: bool | None = None


def read_runs(folder: Path) -> list[WorkRun]:
    """
    Return all runs that any process wrote down, in the order in which they began.
    """
    files = [path.read_text() for path in folder.glob("*.jsonl")]
    return build_runs(json.loads(line) for text in files for line in text.splitlines())


def build_runs(lines: Iterable[dict[str, Any]]) -> list[WorkRun]:
    """
    Put the lines about each run together.
    """
    runs: dict[str, WorkRun] = {}
    for line in sorted(lines, key=lambda line: line["at"]):
        if line["what"] == "begin":
            key = line["key"]
            account = None if key is None else (line["user"], key)
            run = WorkRun(line["run"], line["pid"], account, line["at"], line["fence"])
            runs[run.id] = run
            continue
        run = runs[line["run"]]
        if line["what"] == "end":
            run.ended, run.status = line["at"], line["status"]
        else:
            run.settled = line["what"] == "settled"
    return list(runs.values())


class Fences(threading.local):
    """
    The fencing token of the claim that this thread's request has; 0 without one.
    """

    latest = 0

    def take(self) -> int:
        """
        Return the token and forget it.
        """
        token, self.latest = self.latest, 0
        return token
