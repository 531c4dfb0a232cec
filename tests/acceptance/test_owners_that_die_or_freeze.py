"""
Owners that are killed in the middle of their work, or frozen until somebody else took over.

Time passes by making what is stored older, but for one test in which a lease really runs out.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import pytest

from support.concurrency import wait_until
from support.redis_server import RedisServer
from support.workers import Worker

pytestmark = [pytest.mark.redis, pytest.mark.slow]

LEASE = 30
LIMIT = 60.0
CROWD = 20

OpenWorkers = Callable[..., list[Worker]]
Age = Callable[[float], None]


@pytest.mark.parametrize(("in_progress", "status"), [("accepted", 202), ("conflict", 409)])
def test_killed_owner_is_replaced_once_after_its_lease(
    open_workers: OpenWorkers,
    redis_server: RedisServer,
    age: Age,
    adapter: str,
    in_progress: str,
    status: int,
) -> None:
    """
    A retry is put off while a killed owner's lease lives, and then exactly one of many runs.
    """
    owner, *others = open_workers(
        3, adapter, redis_server.url(), in_progress=in_progress, lease=LEASE
    )
    lost = owner.begin_held("k")
    owner.kill()
    assert lost.exception(LIMIT) is not None
    early = others[0].post("k", "/held")
    assert (early.status, early.is_replay) == (status, False)
    assert 1 <= int(early.get("Retry-After") or 0) <= LEASE
    age(LEASE + 1)
    with ThreadPoolExecutor(CROWD) as pool:
        pending = [pool.submit(each.post, "k", "/held") for each in islice(cycle(others), CROWD)]
        wait_until(lambda: sum(each.done() for each in pending) == CROWD - 1, LIMIT)
        for other in others:
            other.tell("succeed")
        answers = [each.result(LIMIT) for each in pending]
    assert sorted(each.status for each in answers) == sorted([201] + [status] * (CROWD - 1))
    assert sum(other.runs for other in others) == 1
    assert sum(other.ask("counts")["takeovers"] for other in others) == 1
    assert all(other.post("k", "/held").is_replay for other in others)


def test_lease_of_a_killed_owner_runs_out_by_itself(
    open_workers: OpenWorkers, redis_server: RedisServer, adapter: str
) -> None:
    """
    With a short lease, retries are put off and then one runs, without anybody's help.
    """
    owner, other = open_workers(2, adapter, redis_server.url(), lease=1)
    owner.begin_held("k")
    owner.kill()
    statuses: list[int] = []

    def retry() -> bool:
        statuses.append(other.post("k", "/held").status)
        return statuses[-1] != 202

    other.tell("succeed")
    wait_until(retry, LIMIT)
    assert statuses[-1] == 201
    assert other.runs == 1
    assert other.post("k", "/held").is_replay


def test_outcome_of_a_killed_owner_stays_unknown_with_refuse(
    open_workers: OpenWorkers, redis_server: RedisServer, age: Age, random_prefix: str, adapter: str
) -> None:
    """
    With `refuse` nobody ever runs what a killed owner began, until somebody settles it.
    """
    from dotmac_tasks import BackgroundOperationsManager
    from dotmac_tasks.keys import http_storage_key

    owner, *others = open_workers(
        3, adapter, redis_server.url(), on_abandoned="refuse", lease=LEASE
    )
    owner.begin_held("k")
    owner.kill()
    assert others[0].post("k", "/held").status == 202
    age(365 * 86_400)
    with ThreadPoolExecutor(CROWD) as pool:
        answers = list(pool.map(lambda each: each.post("k", "/held"), islice(cycle(others), CROWD)))
    assert {(each.status, each.problem) for each in answers} == {(409, "outcome-unknown")}
    assert sum(other.runs for other in others) == 0
    with BackgroundOperationsManager(redis_server.url(), key_prefix=random_prefix) as manager:
        key = http_storage_key("default", "", "k")
        assert manager.complete_idempotent_operation(key, {"settled": True})
    settled = [other.post("k", "/held") for other in others]
    assert [(each.status, each.json(), each.is_replay) for each in settled] == [
        (200, {"settled": True}, True)
    ] * 2
    assert sum(other.runs for other in others) == 0


def test_frozen_owner_cannot_overwrite_the_second_result(
    open_workers: OpenWorkers, redis_server: RedisServer, age: Age, adapter: str
) -> None:
    """
    An owner that wakes after another completed is refused, and its client gets its own answer.
    """
    first, second = open_workers(2, adapter, redis_server.url(), lease=LEASE)
    own = first.begin_held("k")
    first.freeze()
    assert second.post("k", "/held").status == 202
    age(LEASE + 1)
    second.tell("succeed")
    taken_over = second.post("k", "/held")
    assert (taken_over.status, taken_over.json()) == (201, {"by": second.pid, "run": 1})
    first.tell("succeed")  # it reads this when it wakes, and so completes late
    first.thaw()
    answer = own.result(LIMIT)
    assert (answer.status, answer.is_replay) == (201, False)
    assert answer.json() == {"by": first.pid, "run": 1}
    for worker in (first, second):
        replay = worker.post("k", "/held")
        assert (replay.body, replay.is_replay) == (taken_over.body, True)
    assert (first.runs, second.runs) == (1, 1)
    assert (first.ask("counts")["lost"], second.ask("counts")["lost"]) == (1, 0)
    assert first.ask("held") == second.ask("held") == 0
    if adapter == "wsgi":  # whose manager has hooks here
        assert first.await_told("claim_lost") == [{"what": "claim_lost", "reason": "taken_over"}]


@pytest.mark.parametrize("ending", ["succeed", "fail"])
def test_claim_of_the_second_owner_survives_the_end_of_the_first(
    open_workers: OpenWorkers, redis_server: RedisServer, age: Age, adapter: str, ending: str
) -> None:
    """
    An owner that wakes and fails, or succeeds, while a second one runs leaves its claim alone.
    """
    first, second, third = open_workers(3, adapter, redis_server.url(), lease=LEASE)
    own = first.begin_held("k")
    first.freeze()
    age(LEASE + 1)
    running = second.begin_held("k")
    first.tell(ending)
    first.thaw()
    assert own.result(LIMIT).status == (201 if ending == "succeed" else 500)
    assert third.post("k", "/held").status == 202
    second.tell("succeed")
    answer = running.result(LIMIT)
    assert answer.json() == {"by": second.pid, "run": 1}
    for worker in (first, second, third):
        replay = worker.post("k", "/held")
        assert (replay.body, replay.is_replay) == (answer.body, True)
    assert [worker.runs for worker in (first, second, third)] == [1, 1, 0]


def test_frozen_owner_that_nobody_replaced_records_its_result(
    open_workers: OpenWorkers, redis_server: RedisServer, age: Age, adapter: str
) -> None:
    """
    An owner that wakes after its lease, while the key is still its own, records as ever.
    """
    first, second = open_workers(2, adapter, redis_server.url(), lease=LEASE)
    own = first.begin_held("k")
    first.freeze()
    age(LEASE + 1)
    first.tell("succeed")
    first.thaw()
    answer = own.result(LIMIT)
    replay = second.post("k", "/held")
    assert (replay.status, replay.body, replay.is_replay) == (201, answer.body, True)
    assert (first.runs, second.runs) == (1, 0)
    assert first.ask("counts")["lost"] == 0


def test_waking_owner_learns_of_its_loss_while_it_still_works(
    open_workers: OpenWorkers, redis_server: RedisServer, age: Age
) -> None:
    """
    The next renewal after waking reports the loss, before the work is done.
    """
    first, second = open_workers(2, "wsgi", redis_server.url(), lease=3)
    own = first.begin_held("k")
    first.freeze()
    age(4)
    second.tell("succeed")
    taken_over = second.post("k", "/held")
    assert taken_over.status == 201
    first.thaw()
    assert first.await_told("claim_lost") == [{"what": "claim_lost", "reason": "taken_over"}]
    assert first.ask("held") == 0
    first.tell("succeed")
    assert own.result(LIMIT).json() == {"by": first.pid, "run": 1}
    assert first.post("k", "/held").body == taken_over.body
    assert len(first.told("claim_lost")) == first.ask("counts")["lost"] == 1
