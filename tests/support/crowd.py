"""
Fifty clients with one new key at once, and whether the work was done once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any, NamedTuple

from support.concurrency import wait_until
from support.http_clients import Response
from support.workers import Worker

CROWD = 50
TRIALS = 20
MAX_WAITING = 2
LIMIT = 60.0

SETTINGS: dict[str, dict[str, Any]] = {
    "accepted": {"in_progress": "accepted"},
    "conflict": {"in_progress": "conflict"},
    "wait": {"in_progress": "wait", "wait": LIMIT, "max_waiting": MAX_WAITING},
}
"""
The settings of the workers, by the answer that a duplicate gets.
"""

_STATUS = {"accepted": 202, "conflict": 409, "wait": 409}


class Trial(NamedTuple):
    """
    What came of one crowd; immutable.

    Attributes:
        runs: How often the work ran.
        early: The answers from before the work had ended.
        late: Those from after.
    """

    runs: int
    early: list[Response]
    late: list[Response]

    def is_right(self, in_progress: str, processes: int) -> bool:
        """
        Tell whether the work ran once, and everybody got the answer that is promised.
        """
        waiting = MAX_WAITING * processes if in_progress == "wait" else 0
        replays = [each for each in self.late if each.is_replay]
        return (
            self.runs == 1
            and [each.status for each in self.early]
            == [_STATUS[in_progress]] * (CROWD - 1 - waiting)
            and {(each.status, each.body) for each in self.late} == {(201, self.late[0].body)}
            and len(replays) == waiting
        )


def send_crowd(workers: Sequence[Worker], key: str, in_progress: str) -> Trial:
    """
    Send the crowd to work that ends once all those have their answer who do not wait for it.

    Raises:
        TimeoutError: That many never got one.
    """
    before = [worker.runs for worker in workers]
    waiting = MAX_WAITING * len(workers) if in_progress == "wait" else 0
    with ThreadPoolExecutor(CROWD) as pool:
        sent = [pool.submit(worker.post, key, "/held") for worker in islice(cycle(workers), CROWD)]
        try:
            wait_until(lambda: len(_done(sent)) >= CROWD - 1 - waiting, LIMIT)
            early = _done(sent)
        finally:
            # Only who runs it is told, as often as it runs: nothing is left for the next crowd.
            grown = [worker.runs - count for worker, count in zip(workers, before, strict=True)]
            for worker, count in zip(workers, grown, strict=True):
                for _ in range(count):
                    worker.tell("succeed")
        late = [each.result(LIMIT) for each in sent if each not in early]
    runs = sum(worker.runs for worker in workers) - sum(before)
    return Trial(runs, [each.result() for each in early], late)


def _done(sent: Sequence[Future[Response]]) -> list[Future[Response]]:
    return [each for each in sent if each.done()]
