"""
Many requests with one new key at once, over several processes: the work is done once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import pytest

from support.concurrency import wait_until
from support.crowd import CROWD, SETTINGS, TRIALS, send_crowd
from support.http_clients import Response
from support.redis_server import RedisServer
from support.workers import Worker

pytestmark = [pytest.mark.redis, pytest.mark.slow]

PROCESSES = 3
LIMIT = 60.0

OpenWorkers = Callable[..., list[Worker]]


def hold_crowd(
    workers: list[Worker], until: Callable[[int], bool]
) -> tuple[list[Response], list[Response]]:
    """
    Send the crowd to held work, which ends once `until` says so of the number of answers.

    Returns the responses from before and from after that.
    """
    with ThreadPoolExecutor(CROWD) as pool:
        sent = [pool.submit(worker.post, "k", "/held") for worker in islice(cycle(workers), CROWD)]
        try:
            wait_until(lambda: until(sum(each.done() for each in sent)), LIMIT)
            early = [each for each in sent if each.done()]
        finally:
            for worker in workers:
                worker.tell("succeed")
        late = [each for each in sent if each not in early]
        return [each.result(LIMIT) for each in early], [each.result(LIMIT) for each in late]


@pytest.mark.parametrize("in_progress", SETTINGS)
@pytest.mark.parametrize(("storage", "processes"), [("memory", 1), ("redis", PROCESSES)])
def test_new_key_runs_once_in_every_trial(
    open_workers: OpenWorkers,
    request: pytest.FixtureRequest,
    adapter: str,
    storage: str,
    processes: int,
    in_progress: str,
) -> None:
    """
    In 20 of 20 crowds of 50 one runs, and the others get what is promised to them.
    """
    url = "memory://"
    if storage == "redis":
        url = request.getfixturevalue("redis_server").url()
    workers = open_workers(processes, adapter, url, **SETTINGS[in_progress])
    trials = [send_crowd(workers, f"k{number}", in_progress) for number in range(TRIALS)]
    assert [trial.runs for trial in trials] == [1] * TRIALS
    assert all(trial.is_right(in_progress, processes) for trial in trials)
    for trial in trials:
        assert all(int(each.get("Retry-After") or 0) >= 1 for each in trial.early)
    replays = [worker.post(f"k{n}", "/held") for worker in workers for n in range(TRIALS)]
    assert all(each.is_replay for each in replays)
    assert sum(worker.runs for worker in workers) == TRIALS


@pytest.mark.parametrize(("in_progress", "status"), [("accepted", 202), ("conflict", 409)])
def test_crowd_runs_once_and_the_others_are_told_so(
    open_workers: OpenWorkers,
    redis_server: RedisServer,
    adapter: str,
    in_progress: str,
    status: int,
) -> None:
    """
    Of 50 requests with one new key in three processes one runs, 49 are told that it is running.
    """
    workers = open_workers(PROCESSES, adapter, redis_server.url(), in_progress=in_progress)
    early, (first,) = hold_crowd(workers, lambda answered: answered == CROWD - 1)
    assert [each.status for each in early] == [status] * (CROWD - 1)
    assert all(int(each.get("Retry-After") or 0) >= 1 for each in early)
    assert not any(each.is_replay for each in early)
    assert (first.status, first.is_replay) == (201, False)
    assert sum(worker.runs for worker in workers) == 1
    replays = [worker.post("k", "/held") for worker in workers]
    assert [(each.status, each.body, each.is_replay) for each in replays] == [
        (201, first.body, True)
    ] * PROCESSES
    assert sum(worker.runs for worker in workers) == 1


def test_crowd_waits_for_the_one_that_runs(
    open_workers: OpenWorkers, redis_server: RedisServer, adapter: str
) -> None:
    """
    With waiting, one of 50 runs in three processes and all 50 clients get its very answer.
    """
    workers = open_workers(
        PROCESSES, adapter, redis_server.url(), in_progress="wait", wait=LIMIT, max_waiting=CROWD
    )
    early, late = hold_crowd(workers, lambda _: any(worker.runs for worker in workers))
    answers = early + late
    assert sum(worker.runs for worker in workers) == 1
    assert {(each.status, each.body) for each in answers} == {(201, answers[0].body)}
    assert sorted(each.is_replay for each in answers) == [False] + [True] * (CROWD - 1)


def test_surplus_waiters_are_answered_at_once(
    open_workers: OpenWorkers, redis_server: RedisServer, adapter: str
) -> None:
    """
    Beyond the threads that may wait in each process, duplicates are told that the first runs.
    """
    workers = open_workers(
        PROCESSES, adapter, redis_server.url(), in_progress="wait", wait=LIMIT, max_waiting=2
    )
    surplus = CROWD - 1 - 2 * PROCESSES
    early, late = hold_crowd(workers, lambda answered: answered == surplus)
    assert [each.status for each in early] == [409] * surplus
    assert {(each.status, each.body) for each in late} == {(201, late[0].body)}
    assert sorted(each.is_replay for each in late) == [False] + [True] * (2 * PROCESSES)
    assert sum(worker.runs for worker in workers) == 1


def test_crowd_of_different_keys_runs_each(
    open_workers: OpenWorkers, redis_server: RedisServer, adapter: str
) -> None:
    """
    Fifty requests with a key each all run: nobody is protected from somebody else's work.
    """
    workers = open_workers(PROCESSES, adapter, redis_server.url())
    with ThreadPoolExecutor(CROWD) as pool:
        answers = list(
            pool.map(
                lambda pair: pair[1].post(f"k{pair[0]}"),
                enumerate(islice(cycle(workers), CROWD)),
            )
        )
    assert [each.status for each in answers] == [201] * CROWD
    assert not any(each.is_replay for each in answers)
    assert sum(worker.runs for worker in workers) == CROWD


def test_failing_owner_hands_over_to_one_of_the_waiting(
    open_workers: OpenWorkers, redis_server: RedisServer, adapter: str
) -> None:
    """
    When the first fails while others wait in all processes, exactly one of them runs next.
    """
    workers = open_workers(
        PROCESSES, adapter, redis_server.url(), in_progress="wait", wait=LIMIT, max_waiting=CROWD
    )
    first = workers[0].begin_held("k")
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(worker.post, "k", "/held") for worker in workers * 2]
        workers[0].tell("fail")
        failed = first.result(LIMIT)
        for worker in workers:  # each may be the one whose turn it is now
            worker.tell("succeed")
        answers = [each.result(LIMIT) for each in waiting]
    assert failed.status == 500
    assert sum(worker.runs for worker in workers) == 2
    assert {(each.status, each.body) for each in answers} == {(201, answers[0].body)}
    assert sorted(each.is_replay for each in answers) == [False] + [True] * 5
