"""
Commands whose reply is lost, or which never arrive: one execution, and a recorded outcome.

A worker talks to Redis through a proxy, which breaks the connection at one verb. A command on a
connection that had been idle is sent once more, so one fault is not seen and two are.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.concurrency import wait_until
from support.http_clients import Response
from support.proxy import RedisProxy
from support.redis_server import RedisServer
from support.workers import Worker

pytest.importorskip("redis")
from dotmac_tasks.storage.lua import load_script

pytestmark = [pytest.mark.redis, pytest.mark.slow]

LIMIT = 60.0
LEASE = 30

OpenWorkers = Callable[..., list[Worker]]

FAULTS = {
    "lost": lambda proxy, n, verb: proxy.lose_next_reply(n, match=verb),
    "dropped": lambda proxy, n, verb: proxy.drop_next_command(n, match=verb),
}

# Both adapters lose replies; that a command which never arrives is one more case, one shows.
faulted = pytest.mark.parametrize(
    ("adapter", "fault"), [("wsgi", "lost"), ("wsgi", "dropped"), ("django", "lost")]
)


def command(script: str) -> str:
    return f"EVALSHA {load_script(script).digest.decode()}"


CLAIM = command("claim_operation")
COMPLETE = command("complete_operation")
RELEASE = command("release_operation")
RENEW = command("renew_leases")


def warm_up(worker: Worker) -> None:
    """
    Have Redis know the scripts, and leave the worker with an idle connection.
    """
    assert worker.post("warm").status == 201
    worker.tell("fail")
    assert worker.post("cold", "/held").status == 500


def is_unprotected(response: Response) -> bool:
    return response.get("X-Idempotency-Status") == "unprotected"


def assert_recorded(worker: Worker, answer: Response, path: str = "/orders") -> None:
    replay = worker.post("k", path)
    assert (replay.status, replay.body, replay.is_replay) == (201, answer.body, True)


@faulted
@pytest.mark.parametrize("verb", [CLAIM, COMPLETE], ids=["claim", "complete"])
def test_verb_that_breaks_once_is_sent_again(
    open_workers: OpenWorkers, proxy: RedisProxy, adapter: str, verb: str, fault: str
) -> None:
    """
    One lost reply or command is not noticed: protected, run once, recorded.
    """
    (worker,) = open_workers(1, adapter, proxy.url())
    warm_up(worker)
    FAULTS[fault](proxy, 1, verb)
    answer = worker.post("k")
    assert (answer.status, is_unprotected(answer)) == (201, False)
    assert proxy.labels.count(verb) >= 3  # once while warming up, then twice
    assert_recorded(worker, answer)
    assert len([each for each in worker.told("run") if each["key"] == "k"]) == 1
    counts = worker.ask("counts")
    assert (counts["lost"], counts["delayed"], worker.ask("held")) == (0, 0, 0)


@faulted
def test_claim_in_doubt_runs_once_and_is_recorded(
    open_workers: OpenWorkers, proxy: RedisProxy, adapter: str, fault: str
) -> None:
    """
    When nobody knows whether the claim was made, the work runs marked, and its outcome is kept.
    """
    (worker,) = open_workers(1, adapter, proxy.url())
    warm_up(worker)
    FAULTS[fault](proxy, 2, CLAIM)
    answer = worker.post("k")
    assert (answer.status, is_unprotected(answer)) == (201, True)
    assert_recorded(worker, answer)
    assert len([each for each in worker.told("run") if each["key"] == "k"]) == 1


@faulted
def test_claim_in_doubt_is_given_back_under_reject(
    open_workers: OpenWorkers, proxy: RedisProxy, adapter: str, fault: str
) -> None:
    """
    With `reject` a claim in doubt runs nothing, and its key is free for the next attempt at once.
    """
    (worker,) = open_workers(1, adapter, proxy.url(), on_storage_error="reject")
    warm_up(worker)
    FAULTS[fault](proxy, 2, CLAIM)
    refused = worker.post("k")
    assert (refused.status, refused.problem) == (503, "storage-unavailable")
    assert "k" not in [each["key"] for each in worker.told("run")]
    answer = worker.post("k")
    assert (answer.status, answer.is_replay) == (201, False)
    assert_recorded(worker, answer)


@faulted
def test_completion_in_doubt_is_written_later(
    open_workers: OpenWorkers, proxy: RedisProxy, adapter: str, fault: str
) -> None:
    """
    A completion that fails twice goes out in the background; the client has its answer before.
    """
    (worker,) = open_workers(1, adapter, proxy.url())
    warm_up(worker)
    FAULTS[fault](proxy, 2, COMPLETE)
    answer = worker.post("k")
    assert (answer.status, is_unprotected(answer)) == (201, False)
    wait_until(lambda: worker.ask("unwritten") == 0, LIMIT)
    assert_recorded(worker, answer)
    assert len([each for each in worker.told("run") if each["key"] == "k"]) == 1
    counts = worker.ask("counts")
    assert (counts["lost"], counts["delayed"], worker.ask("held")) == (0, 1, 0)


def test_claim_is_held_while_its_completion_cannot_be_written(
    open_workers: OpenWorkers, proxy: RedisProxy, redis_server: RedisServer, adapter: str
) -> None:
    """
    While Redis refuses the outcome, duplicates are put off; once it takes it, they replay.
    """
    (worker,) = open_workers(1, adapter, proxy.url(), lease=LEASE)
    (other,) = open_workers(1, adapter, redis_server.url(), lease=LEASE)
    warm_up(worker)
    proxy.replace_next_reply(b"-OOM command not allowed\r\n", 10_000, match=COMPLETE)
    proxy.reset_counts()
    answer = worker.post("k")
    assert (answer.status, is_unprotected(answer)) == (201, False)
    wait_until(lambda: proxy.labels.count(COMPLETE) >= 3, LIMIT)
    assert other.post("k").status == worker.post("k").status == 202
    assert (worker.ask("held"), worker.ask("unwritten")) == (1, 1)
    proxy.heal()
    wait_until(lambda: worker.ask("unwritten") == 0, LIMIT)
    assert_recorded(other, answer)
    assert_recorded(worker, answer)
    assert (other.runs, worker.ask("held"), worker.ask("counts")["lost"]) == (0, 0, 0)
    if adapter == "wsgi":  # whose manager has hooks here
        assert len(worker.await_told("completion_delayed")) == 1


def test_worker_that_ends_sends_the_waiting_outcome_once_more(
    open_workers: OpenWorkers, proxy: RedisProxy, redis_server: RedisServer, adapter: str
) -> None:
    """
    An outcome that still waits when its process ends in order is recorded.
    """
    (worker,) = open_workers(1, adapter, proxy.url(), lease=LEASE)
    (other,) = open_workers(1, adapter, redis_server.url(), lease=LEASE)
    warm_up(worker)
    proxy.replace_next_reply(b"-OOM command not allowed\r\n", 10_000, match=COMPLETE)
    answer = worker.post("k")
    assert worker.ask("unwritten") == 1
    proxy.heal()
    worker.close()
    assert_recorded(other, answer)
    assert other.runs == 0


@faulted
@pytest.mark.parametrize("times", [1, 2])
def test_release_in_doubt_is_sent_again(
    open_workers: OpenWorkers, proxy: RedisProxy, adapter: str, fault: str, times: int
) -> None:
    """
    A release that fails goes out in the background; then the retry runs, without anybody's lease.
    """
    (worker,) = open_workers(1, adapter, proxy.url(), lease=LEASE)
    warm_up(worker)
    FAULTS[fault](proxy, times, RELEASE)
    worker.tell("fail")
    assert worker.post("k", "/held").status == 500
    worker.tell("succeed")
    wait_until(lambda: worker.ask("unwritten") == 0, LIMIT)
    answer = worker.post("k", "/held")
    assert (answer.status, answer.is_replay) == (201, False)
    assert_recorded(worker, answer, "/held")
    assert len([each for each in worker.told("run") if each["key"] == "k"]) == 2
    assert worker.ask("held") == 0


@pytest.mark.parametrize(("adapter", "fault"), [("wsgi", "dropped"), ("django", "lost")])
def test_renewal_in_doubt_is_sent_again(
    open_workers: OpenWorkers, proxy: RedisProxy, adapter: str, fault: str
) -> None:
    """
    Renewals that fail are repeated, the claim is not taken for lost, and the outcome is recorded.
    """
    (worker,) = open_workers(1, adapter, proxy.url(), lease=6)
    warm_up(worker)
    FAULTS[fault](proxy, 3, RENEW)
    running = worker.begin_held("k")
    wait_until(lambda: proxy.labels.count(RENEW) >= 5, LIMIT)
    assert worker.post("k", "/held").status == 202
    worker.tell("succeed")
    answer = running.result(LIMIT)
    assert answer.status == 201
    assert_recorded(worker, answer, "/held")
    assert len([each for each in worker.told("run") if each["key"] == "k"]) == 1
    assert worker.ask("counts")["lost"] == 0
