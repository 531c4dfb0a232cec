"""
Operators who step in with `manage.py bgops`, beside retries, owners that wake up and each other.

All of them are real processes. Time passes by making what is stored older.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import pytest

from dotmac_tasks.models import ClaimOutcome
from support.backends import make_request
from support.concurrency import wait_until
from support.redis_server import RedisServer
from support.workers import Worker, child_environment

pytest.importorskip("django")
pytestmark = [pytest.mark.redis, pytest.mark.slow]

LEASE = 30
LIMIT = 60.0
CROWD = 20

OpenWorkers = Callable[..., list[Worker]]
Age = Callable[[float], None]

COMMAND = """
import django.conf, sys
django.conf.settings.configure(
    SECRET_KEY="only-for-tests",
    INSTALLED_APPS=["dotmac_tasks_django"],
    DOTMAC_TASKS={"STORAGE": sys.argv[1], "KEY_PREFIX": sys.argv[2], "STORAGE_TIMEOUT": 20},
)
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "bgops", *sys.argv[3:]])
"""


class Operator:
    """
    Somebody at a terminal; may start several commands at once.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._call = [sys.executable, "-c", COMMAND, url, prefix]

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._call, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )

    def run(self, *arguments: str) -> tuple[int, Any]:
        """
        Return the status of a command, and the one document that it printed.
        """
        return read(self.begin(*arguments, "--json"))


def read(process: subprocess.Popen[str]) -> tuple[int, Any]:
    out, err = process.communicate(timeout=LIMIT)
    assert out.count("\n") == 1, err
    return process.returncode, json.loads(out)


KEY = ("--client-key", "k", "--reason", "the gateway knows nothing of it", "--by", "Kim")


@pytest.fixture
def operator(redis_server: RedisServer, random_prefix: str) -> Operator:
    return Operator(redis_server.url(), random_prefix)


def count_runs(workers: list[Worker]) -> int:
    return sum(worker.runs for worker in workers)


def test_two_operators_release_a_key_once(
    open_workers: OpenWorkers, redis_server: RedisServer, age: Age, operator: Operator
) -> None:
    """
    Of two releases at once one is carried out, and of the crowd that retries meanwhile one runs.
    """
    owner, *others = open_workers(3, "wsgi", redis_server.url(), on_abandoned="refuse", lease=LEASE)
    owner.begin_held("k")
    owner.kill()
    age(LEASE + 1)
    assert others[0].post("k", "/held").problem == "outcome-unknown"
    (found,) = operator.run("list", "--abandoned")[1]["keys"]
    assert (found["state"], found["operation_type"]) == ("abandoned", "POST /held")
    with ThreadPoolExecutor(CROWD) as pool:
        releases = [operator.begin("release", *KEY, "--json") for _ in range(2)]

        def retry(worker: Worker) -> list[int]:
            statuses = [409]
            while statuses[-1] == 409:
                statuses.append(worker.post("k", "/held").status)
            return statuses

        retries = [pool.submit(retry, each) for each in islice(cycle(others), CROWD)]
        answers = [read(release) for release in releases]
        wait_until(lambda: sum(each.done() for each in retries) == CROWD - 1, LIMIT)
        for other in others:
            other.tell("succeed")
        last = [each.result(LIMIT)[-1] for each in retries]
    assert sorted(status for status, _ in answers) == [0, 1]
    (refused,) = [document["outcome"] for status, document in answers if status]
    assert refused in ("absent", "running", "changed")
    assert sorted(last) == sorted([201] + [202] * (CROWD - 1))
    assert count_runs(others) == 1
    assert all(other.post("k", "/held").is_replay for other in others)


def test_live_owner_keeps_its_key(
    open_workers: OpenWorkers, redis_server: RedisServer, operator: Operator
) -> None:
    """
    An operator cannot take a key from an owner that lives, and is told until when it holds it.
    """
    workers = open_workers(2, "wsgi", redis_server.url(), lease=LEASE)
    pending = workers[0].begin_held("k")
    tries = [
        operator.begin(*arguments, *KEY, "--json")
        for arguments in (("release", "--finished"), ("resolve", "--result", "1"))
    ]
    for status, document in map(read, tries):
        assert (status, document["outcome"]) == (1, "running")
        assert "An executor holds it until 20" in document["message"]
    workers[0].tell("succeed")
    first = pending.result(LIMIT)
    assert first.status == 201
    replay = workers[1].post("k", "/held")
    assert (replay.body, replay.is_replay) == (first.body, True)
    assert operator.run("release", *KEY)[1]["outcome"] == "finished"
    assert count_runs(workers) == 1
    assert operator.run("release", *KEY, "--finished")[0] == 0
    workers[1].tell("succeed")
    assert not workers[1].post("k", "/held").is_replay
    assert count_runs(workers) == 2


def test_owner_that_wakes_before_a_retry_is_not_run_again(
    open_workers: OpenWorkers,
    redis_server: RedisServer,
    age: Age,
    operator: Operator,
) -> None:
    """
    If the owner of a released key finishes after all, the retry gets its answer.
    """
    workers = open_workers(2, "wsgi", redis_server.url(), on_abandoned="refuse", lease=LEASE)
    own = workers[0].begin_held("k")
    workers[0].freeze()
    age(LEASE + 1)
    assert operator.run("release", *KEY)[0] == 0
    workers[0].tell("succeed")
    workers[0].thaw()
    answer = own.result(LIMIT)
    replay = workers[1].post("k", "/held")
    assert (replay.status, replay.body, replay.is_replay) == (201, answer.body, True)
    assert count_runs(workers) == 1
    assert operator.run("show", "--client-key", "k")[1]["state"] == "completed"


def test_owner_that_wakes_after_a_retry_records_nothing(
    open_workers: OpenWorkers,
    redis_server: RedisServer,
    age: Age,
    operator: Operator,
) -> None:
    """
    Once a retry runs, the owner of the released key loses, however its own work ends.
    """
    workers = open_workers(2, "wsgi", redis_server.url(), on_abandoned="refuse", lease=LEASE)
    first, second = workers
    own = first.begin_held("k")
    first.freeze()
    age(LEASE + 1)
    assert operator.run("release", *KEY)[0] == 0
    running = second.begin_held("k")
    first.tell("succeed")
    first.thaw()
    assert own.result(LIMIT).json() == {"by": first.pid, "run": 1}
    assert operator.run("release", *KEY)[1]["outcome"] == "running"
    second.tell("succeed")
    answer = running.result(LIMIT)
    assert answer.json() == {"by": second.pid, "run": 1}
    for worker in workers:
        replay = worker.post("k", "/held")
        assert (replay.body, replay.is_replay) == (answer.body, True)
    assert [worker.runs for worker in workers] == [1, 1]
    assert (first.ask("counts")["lost"], second.ask("counts")["lost"]) == (1, 0)


def test_resolved_key_is_replayed_and_runs_nowhere(
    open_workers: OpenWorkers,
    redis_server: RedisServer,
    age: Age,
    operator: Operator,
) -> None:
    """
    Of one who releases and one who resolves at once one decides, and retries see that decision.
    """
    owner, other = open_workers(2, "wsgi", redis_server.url(), on_abandoned="refuse", lease=LEASE)
    owner.begin_held("k")
    owner.kill()
    age(LEASE + 1)
    release = operator.begin("release", *KEY, "--json")
    resolve = operator.begin("resolve", *KEY, "--result", '{"charged": true}', "--json")
    decisions = {"release": read(release)[0], "resolve": read(resolve)[0]}
    assert sorted(decisions.values()) == [0, 1]
    other.tell("succeed")
    answer = other.post("k", "/held")
    if decisions["resolve"] == 0:
        assert (answer.status, answer.json(), answer.is_replay) == (200, {"charged": True}, True)
        assert other.runs == 0
    else:
        assert (answer.status, answer.is_replay) == (201, False)
        assert other.runs == 1


def test_unreadable_record_is_found_and_removed(
    redis_server: RedisServer, random_prefix: str, operator: Operator
) -> None:
    """
    A record that answers 503 for ever is listed, shown and, if that is asked for, removed.
    """
    redis = pytest.importorskip("redis")
    from dotmac_tasks.storage.redis import RedisStorage

    storage = RedisStorage(redis_server.url(), prefix=random_prefix, timeout=20)
    storage.claim_operation(make_request(on_abandoned="refuse"))
    with redis.Redis.from_url(redis_server.url()) as client:
        client.hset(f"{random_prefix}:idempo:k", "v", "9")
    listed, shown = (
        operator.begin("list", "--unreadable", "--json"),
        operator.begin("show", "k", "--json"),
    )
    assert [each["key"] for each in read(listed)[1]["unreadable"]] == ["k"]
    status, document = read(shown)
    assert (status, document["state"]) == (0, "unreadable")
    why = ("--reason", "damaged", "--by", "Kim")
    assert operator.run("release", "k", *why)[0] == 1
    assert operator.run("release", "k", "--unreadable", *why)[0] == 0
    assert storage.claim_operation(make_request()).outcome is ClaimOutcome.CLAIMED
    storage.close()


def test_status_of_a_wrong_call_is_two(operator: Operator) -> None:
    """
    A call that makes no sense ends with status 2 and leaves standard output empty.
    """
    # One that the parser refuses, and one that its module does.
    for process in [operator.begin("release", "k"), operator.begin("show")]:
        out, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, out) == (2, ""), err


def test_health_fits_a_probe(redis_server: RedisServer, operator: Operator) -> None:
    """
    The status says whether the storage works.
    """
    assert operator.run("health")[0] == 0
    status, document = Operator("redis://127.0.0.1:1/0", "x").run("health")
    assert (status, document["healthy"]) == (1, False)
