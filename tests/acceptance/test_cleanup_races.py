"""
Two cleanups at once, beside processes that claim what has just expired.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.backends import make_request
from support.concurrency import run_processes
from support.redis_server import RedisServer
from support.workers import child_environment

pytest.importorskip("redis")
from dotmac_tasks.models import ClaimOutcome, OperationStatus
from dotmac_tasks.storage.redis import RedisStorage
from support.cleaning import clean_or_claim

pytestmark = [pytest.mark.redis, pytest.mark.slow]

DEAD = [f"dead-{number}" for number in range(500)]
FINISHED = [f"finished-{number}" for number in range(30)]
RUNNING = [f"running-{number}" for number in range(30)]
LAPSED = [f"lapsed-{number}" for number in range(30)]
REFUSED = [f"refused-{number}" for number in range(30)]
PENDING = [f"pending-{number}" for number in range(30)]
LIVE = FINISHED + RUNNING + LAPSED + REFUSED + PENDING
HOUR = 3600.0

Age = Callable[[float], None]


@pytest.fixture
def storage(redis_server: RedisServer, random_prefix: str, age: Age) -> Iterator[RedisStorage]:
    """
    A storage with records of every kind: `DEAD` ones are past their retention, no other is.
    """
    opened = RedisStorage(redis_server.url(), prefix=random_prefix, timeout=30)
    for key in DEAD:
        finish(opened, key)
    for key in REFUSED:
        opened.claim_operation(make_request(key=key, on_abandoned="refuse"))
    age(2 * HOUR)
    for key in LAPSED:
        opened.claim_operation(make_request(key=key))
    age(60)
    for key in FINISHED:
        finish(opened, key)
    for key in RUNNING:
        opened.claim_operation(make_request(key=key))
    for key in PENDING:
        opened.ensure_operation(make_request(key=key))
    yield opened
    opened.close()


def finish(storage: RedisStorage, key: str) -> None:
    request = make_request(key=key)
    reply = storage.claim_operation(request)
    storage.complete_operation(request, reply.fencing_token, b"1j1", failed=False)


def assert_nothing_live_is_gone(storage: RedisStorage) -> None:
    records = {key: storage.find_operation(key) for key in LIVE}
    statuses = [record and record.status for record in records.values()]
    expected = [OperationStatus.COMPLETED] * 30 + [OperationStatus.IN_PROGRESS] * 90
    assert statuses == expected + [OperationStatus.PENDING] * 30
    # Each still does what its state says.
    other = make_request(owner="other")
    outcomes = [
        storage.claim_operation(other._replace(key=key)).outcome
        for key in (FINISHED[0], RUNNING[0], LAPSED[0], REFUSED[0], PENDING[0])
    ]
    assert outcomes == [
        ClaimOutcome.FINISHED,
        ClaimOutcome.IN_PROGRESS,
        ClaimOutcome.TAKEN_OVER,
        ClaimOutcome.UNRESOLVED,
        ClaimOutcome.CLAIMED,
    ]


def test_two_cleanups_share_the_work(
    storage: RedisStorage, redis_server: RedisServer, random_prefix: str, tmp_path: Path
) -> None:
    """
    Two processes that clean up at once remove each expired entry once, and nothing else.
    """
    removed = run_processes(2, clean_or_claim, redis_server.url(), random_prefix, str(tmp_path), [])
    assert all(isinstance(each, int) for each in removed), removed
    assert sum(each for each in removed if isinstance(each, int)) == len(DEAD)
    assert storage.get_stats().idempotency_keys == len(LIVE)
    assert_nothing_live_is_gone(storage)


def test_cleanups_spare_what_is_claimed_beside_them(
    storage: RedisStorage, redis_server: RedisServer, random_prefix: str, tmp_path: Path
) -> None:
    """
    Keys that are claimed anew while two processes clean them up are run once each and stay.
    """
    outcomes = run_processes(
        4, clean_or_claim, redis_server.url(), random_prefix, str(tmp_path), DEAD
    )
    removed = [each for each in outcomes if isinstance(each, int)]
    claimed = [each for each in outcomes if isinstance(each, list)]
    assert (len(removed), len(claimed)) == (2, 2), outcomes
    assert sorted(key for keys in claimed for key in keys) == sorted(DEAD)
    assert 0 <= sum(removed) <= len(DEAD)
    assert storage.get_stats().idempotency_keys == len(LIVE) + len(DEAD)
    records = [storage.find_operation(key) for key in DEAD]
    assert [record and record.payload for record in records] == [b"1jtrue"] * len(DEAD)
    assert_nothing_live_is_gone(storage)


COMMAND = """
import django.conf, sys
django.conf.settings.configure(
    SECRET_KEY="only-for-tests",
    INSTALLED_APPS=["dotmac_tasks_django"],
    DOTMAC_TASKS={"STORAGE": sys.argv[1], "KEY_PREFIX": sys.argv[2]},
)
django.setup()
from django.core.management import call_command
call_command("cleanup_bgops", "--json", "--batch-size", "7")
"""


def test_two_cleanup_commands_may_run_at_once(
    storage: RedisStorage, redis_server: RedisServer, random_prefix: str
) -> None:
    """
    Two `cleanup_bgops` at once end well, and remove each expired entry once between them.
    """
    pytest.importorskip("django")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMMAND, redis_server.url(), random_prefix],
            stdout=subprocess.PIPE,
            env=child_environment(),
        )
        for _ in range(2)
    ]
    reports = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(report["removed"] for report in reports) == len(DEAD)
    assert not any(report["more"] for report in reports)
    assert_nothing_live_is_gone(storage)
