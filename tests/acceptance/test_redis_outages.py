"""
Redis restarted, emptied, stopped or hung, between requests and in the middle of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from support.concurrency import wait_until
from support.http_clients import Response
from support.proxy import RedisProxy
from support.proxy_controls import Counts
from support.redis_server import RedisServer
from support.workers import Worker

pytestmark = [pytest.mark.redis, pytest.mark.slow]

LIMIT = 60.0
LEASE = 30
TIMEOUT = 0.5
# Some calls of a request may each cost TIMEOUT; whoever exceeds this hangs.
BOUND = 20.0

OpenWorkers = Callable[..., list[Worker]]

# How Redis is taken away, and how it comes back.
OUTAGES = {
    "refused": (RedisServer.stop, RedisServer.start),
    "hung": (RedisServer.pause, RedisServer.resume),
}

# A Redis that is stopped costs less of a wait, and is no other case for the adapters.
through_outage = pytest.mark.parametrize(
    ("adapter", "outage"), [("wsgi", "refused"), ("wsgi", "hung"), ("django", "hung")]
)


def is_unprotected(response: Response) -> bool:
    return response.get("X-Idempotency-Status") == "unprotected"


def is_replay_of(response: Response, first: Response) -> bool:
    return (response.status, response.body, response.is_replay) == (201, first.body, True)


def post_within_bound(worker: Worker, key: str | None) -> Response:
    began = time.monotonic()
    response = worker.post(key)
    assert time.monotonic() - began < BOUND
    return response


@pytest.mark.parametrize("how", ["shutdown", "crash"])
def test_replay_survives_a_restart_with_data(
    open_workers: OpenWorkers, private_server: RedisServer, adapter: str, how: str
) -> None:
    """
    An outcome that was recorded before Redis restarted with its data is replayed after.
    """
    workers = open_workers(2, adapter, private_server.url())
    first = workers[0].post("k")
    if how == "crash":
        private_server.kill()
    private_server.restart(keep_data=True)
    assert all(is_replay_of(worker.post("k"), first) for worker in workers)
    assert [worker.runs for worker in workers] == [1, 0]


def test_restart_without_data_costs_one_second_run(
    open_workers: OpenWorkers, private_server: RedisServer, adapter: str
) -> None:
    """
    What an emptied Redis forgot runs once more, as documented, and is then replayed again.
    """
    workers = open_workers(2, adapter, private_server.url())
    first = workers[0].post("k")
    private_server.restart(keep_data=False)
    second = workers[1].post("k")
    assert (second.status, second.is_replay) == (201, False)
    assert second.body != first.body
    assert not is_unprotected(second)
    assert all(is_replay_of(worker.post("k"), second) for worker in workers)
    assert [worker.runs for worker in workers] == [1, 1]


def test_restart_with_data_in_the_middle_of_a_request(
    open_workers: OpenWorkers, private_server: RedisServer, adapter: str
) -> None:
    """
    A claim outlives a restart of Redis with its data: one run, recorded, replayed.
    """
    owner, other = open_workers(2, adapter, private_server.url(), lease=LEASE)
    running = owner.begin_held("k")
    private_server.restart(keep_data=True)
    assert other.post("k", "/held").status == 202
    owner.tell("succeed")
    answer = running.result(LIMIT)
    assert (answer.status, is_unprotected(answer)) == (201, False)
    assert is_replay_of(other.post("k", "/held"), answer)
    assert (owner.runs, other.runs, owner.ask("counts")["lost"]) == (1, 0, 0)


def test_restart_without_data_in_the_middle_of_a_request(
    open_workers: OpenWorkers, private_server: RedisServer, adapter: str
) -> None:
    """
    An owner whose claim an emptied Redis forgot records its outcome if nobody claimed meanwhile.
    """
    owner, other = open_workers(2, adapter, private_server.url(), lease=LEASE)
    running = owner.begin_held("k")
    private_server.restart(keep_data=False)
    owner.tell("succeed")
    answer = running.result(LIMIT)
    assert answer.status == 201
    assert is_replay_of(other.post("k", "/held"), answer)
    assert (owner.runs, other.runs, owner.ask("counts")["lost"]) == (1, 0, 0)
    # The record was written whole: another request under the key is still refused.
    assert other.post("k", "/held", b'{"amount": 2}').problem == "key-reused"


def test_forgotten_claim_that_somebody_else_took_is_not_overwritten(
    open_workers: OpenWorkers, private_server: RedisServer, adapter: str
) -> None:
    """
    After an emptied Redis let a second run begin, the first one's outcome is refused.
    """
    owner, other = open_workers(2, adapter, private_server.url(), lease=LEASE)
    running = owner.begin_held("k")
    private_server.restart(keep_data=False)
    again = other.begin_held("k")
    owner.tell("succeed")
    assert running.result(LIMIT).json() == {"by": owner.pid, "run": 1}
    other.tell("succeed")
    answer = again.result(LIMIT)
    assert all(is_replay_of(worker.post("k", "/held"), answer) for worker in (owner, other))
    assert (owner.runs, other.runs) == (1, 1)
    assert (owner.ask("counts")["lost"], other.ask("counts")["lost"]) == (1, 0)


@through_outage
def test_outage_while_the_work_ends(
    open_workers: OpenWorkers, private_server: RedisServer, adapter: str, outage: str
) -> None:
    """
    An answer goes out although Redis is away, and is recorded and replayed when it is back.
    """
    take_away, bring_back = OUTAGES[outage]
    owner, other = open_workers(
        2, adapter, private_server.url(), lease=LEASE, storage_timeout=TIMEOUT
    )
    running = owner.begin_held("k")
    take_away(private_server)
    owner.tell("succeed")
    answer = running.result(BOUND)
    assert (answer.status, is_unprotected(answer)) == (201, False)
    assert owner.ask("unwritten") == 1
    bring_back(private_server)
    early = other.post("k", "/held")
    assert early.status == 202 or is_replay_of(early, answer)
    wait_until(lambda: owner.ask("unwritten") == 0, LIMIT)
    assert is_replay_of(other.post("k", "/held"), answer)
    assert (owner.runs, other.runs) == (1, 0)
    counts = owner.ask("counts")
    assert (counts["lost"], counts["delayed"]) == (0, 1)


def test_flushed_scripts_are_sent_again(
    open_workers: OpenWorkers, private_server: RedisServer, adapter: str
) -> None:
    """
    Redis forgetting its scripts, before a request or in the middle of it, changes nothing.
    """
    owner, other = open_workers(2, adapter, private_server.url(), lease=LEASE)
    assert owner.post("before").status == 201
    private_server.command("SCRIPT", "FLUSH")
    running = owner.begin_held("k")
    private_server.command("SCRIPT", "FLUSH")
    assert other.post("k", "/held").status == 202
    private_server.command("SCRIPT", "FLUSH")
    owner.tell("succeed")
    answer = running.result(LIMIT)
    assert (answer.status, is_unprotected(answer)) == (201, False)
    private_server.command("SCRIPT", "FLUSH")
    assert is_replay_of(other.post("k", "/held"), answer)
    assert (owner.runs, other.runs) == (2, 0)


@through_outage
def test_requests_run_unprotected_through_an_outage(
    open_workers: OpenWorkers, private_server: RedisServer, adapter: str, outage: str
) -> None:
    """
    With `proceed` every request is answered in bounded time and says so; then protection is back.
    """
    take_away, bring_back = OUTAGES[outage]
    (worker,) = open_workers(1, adapter, private_server.url(), storage_timeout=TIMEOUT)
    assert not is_unprotected(worker.post("before"))
    take_away(private_server)
    answers = [post_within_bound(worker, f"k{number}") for number in range(6)]
    assert [each.status for each in answers] == [201] * 6
    assert all(is_unprotected(each) for each in answers)
    assert post_within_bound(worker, None).status == 201
    assert worker.ask("health")["storage"]["details"]["breaker"] != "closed"
    bring_back(private_server)
    await_protection(worker, is_unprotected)
    assert worker.ask("health")["storage"]["details"]["breaker"] == "closed"
    first = worker.post("after")
    assert not is_unprotected(first)
    assert is_replay_of(worker.post("after"), first)


@through_outage
def test_requests_are_refused_through_an_outage(
    open_workers: OpenWorkers, private_server: RedisServer, adapter: str, outage: str
) -> None:
    """
    With `reject` keyed requests get 503 in bounded time and run nothing; others are untouched.
    """
    take_away, bring_back = OUTAGES[outage]
    (worker,) = open_workers(
        1, adapter, private_server.url(), storage_timeout=TIMEOUT, on_storage_error="reject"
    )
    assert worker.post("before").status == 201
    take_away(private_server)
    answers = [post_within_bound(worker, "k") for _ in range(6)]
    assert {(each.status, each.problem) for each in answers} == {(503, "storage-unavailable")}
    assert all(int(each.get("Retry-After") or 0) >= 1 for each in answers)
    assert worker.runs == 1
    assert post_within_bound(worker, None).status == 201
    assert worker.ask("health")["storage"]["details"]["breaker"] != "closed"
    bring_back(private_server)
    await_protection(worker, lambda response: response.status == 503)
    assert worker.ask("health")["storage"]["details"]["breaker"] == "closed"
    if outage == "refused":  # a claim that reached a hung Redis is in force until its lease ends
        first = worker.post("k")
        assert (first.status, first.is_replay) == (201, False)
        assert is_replay_of(worker.post("k"), first)


def test_breaker_keeps_later_requests_from_waiting(
    open_workers: OpenWorkers, proxy: RedisProxy, adapter: str
) -> None:
    """
    Once the breaker is open, requests no longer even ask Redis, so none waits for it.
    """
    storage = {
        "BACKEND": "dotmac_tasks.storage.RedisStorage",
        "OPTIONS": {"redis_url": proxy.url(), "breaker_threshold": 3, "breaker_cooldown": 3600},
    }
    (worker,) = open_workers(1, adapter, storage, storage_timeout=TIMEOUT)
    assert worker.post("before").status == 201
    proxy.hang()
    for number in range(3):
        assert is_unprotected(post_within_bound(worker, f"opening{number}"))
    proxy.reset_counts()
    answers = [worker.post(f"k{number}") for number in range(100)]
    assert all(is_unprotected(each) for each in answers)
    assert proxy.counts == Counts()
    assert worker.runs == 104


def await_protection(worker: Worker, is_affected: Callable[[Response], bool]) -> None:
    """
    Send requests with a new key each until one is as if nothing had been.
    """
    tried = 0

    def try_again() -> bool:
        nonlocal tried
        tried += 1
        return not is_affected(worker.post(f"again{tried}"))

    wait_until(try_again, LIMIT)
