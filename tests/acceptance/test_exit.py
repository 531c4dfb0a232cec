"""
A process ends when its work does, whatever it still holds, and without complaints.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from support.redis_server import RedisServer
from support.workers import child_environment

LIMIT = 60.0  # against hanging: a lease is an hour

# Holds a claim and a lock, with every thread that the library knows at work.
PROGRAM = """
import sys, threading
from dotmac_tasks import BackgroundOperationsManager, MetricsHooks

url, prefix, ending = sys.argv[1:]
manager = BackgroundOperationsManager(
    url, hooks=[MetricsHooks()], key_prefix=prefix, lease=3600, default_idempotency_ttl=7200
).start()
lock = manager.lock("lock", ttl=3600)
lock.acquire()
operation = manager.idempotent_operation("charge", key="k")
operation.__enter__()
names = sorted(t.name for t in threading.enumerate() if t.name.startswith("dotmac-tasks."))
print(*names, flush=True)
if ending == "exit":
    sys.exit(3)
if ending == "raise":
    raise RuntimeError("as planned")
if ending == "thread":
    threading.Thread(target=lambda: print("last", flush=True)).start()
if ending == "stop":
    manager.stop()
"""


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest) -> str:
    """
    The URL of each storage.
    """
    if request.param == "memory":
        return "memory://"
    pytest.importorskip("redis")
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.url()


def run_program(url: str, prefix: str, ending: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", PROGRAM, url, prefix, ending],
        capture_output=True,
        text=True,
        env=child_environment(),
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [("return", 0, ""), ("exit", 3, ""), ("thread", 0, "last\n"), ("stop", 0, "")],
)
def test_process_that_holds_claims_ends_at_once(
    url: str, random_prefix: str, ending: str, status: int, said: str
) -> None:
    """
    With a claim and a lock held, heartbeat and all, a process ends in silence with its own status.
    """
    done = run_program(url, random_prefix, ending)
    threads = "dotmac-tasks.cleanup dotmac-tasks.events dotmac-tasks.heartbeat\n"
    assert (done.stdout, done.stderr, done.returncode) == (threads + said, "", status)


def test_process_that_fails_shows_its_own_error_only(url: str, random_prefix: str) -> None:
    """
    An unhandled exception ends the process with its own traceback, and nothing from its threads.
    """
    done = run_program(url, random_prefix, "raise")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("RuntimeError: as planned\n")
    assert done.stderr.count("Traceback") == 1
    assert "dotmac-tasks." not in done.stderr


@pytest.mark.redis
def test_claims_of_a_process_that_ended_stay_until_their_leases_end(
    redis_server: RedisServer, random_prefix: str
) -> None:
    """
    Ending says nothing about the outcome: the claim and the lock are neither kept up nor given up.
    """
    pytest.importorskip("redis")
    from dotmac_tasks.models import OperationStatus
    from dotmac_tasks.storage.redis import RedisStorage

    assert run_program(redis_server.url(), random_prefix, "return").returncode == 0
    storage = RedisStorage(redis_server.url(), prefix=random_prefix, timeout=30)
    record: Any = storage.find_operation("k")
    assert record.status is OperationStatus.IN_PROGRESS
    assert storage.acquire_lock("lock", "other", 30) is None
    storage.close()
