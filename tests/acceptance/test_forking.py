"""
A process that used the library forks, and its children use it as if they were the first.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from support.concurrency import wait_until
from support.redis_server import RedisServer
from support.workers import child_environment, post

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork"),
    pytest.mark.slow,
]

LIMIT = 120.0
CROWD = 20
WORKERS = 2

BACKENDS = ["memory", pytest.param("redis", marks=pytest.mark.redis)]


@pytest.fixture(params=BACKENDS)
def storage_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """
    Options of the forking program for each storage.
    """
    if request.param == "memory":
        return {"url": None, "prefix": ""}
    pytest.importorskip("redis")
    server: RedisServer = request.getfixturevalue("redis_server")
    return {"url": server.url(), "prefix": request.getfixturevalue("random_prefix")}


def unmeasured_environment() -> dict[str, str]:
    # A child that is forked under load may inherit coverage's own lock, held by another thread.
    return {
        name: value
        for name, value in child_environment().items()
        if not name.startswith("COVERAGE_PROCESS")
    }


def run_program(**options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    Run the forking program; return what the parent and what its children found.
    """
    done = subprocess.run(
        [sys.executable, "-m", "support.fork_program", json.dumps(options)],
        stdout=subprocess.PIPE,
        env=unmeasured_environment() if options.get("load") else child_environment(),
        timeout=LIMIT,
        check=True,
        text=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    (parent,) = [each for each in found if each["role"] == "parent"]
    return parent, [each for each in found if each["role"] == "child"]


def test_children_of_a_used_manager_start_afresh(storage_options: dict[str, Any]) -> None:
    """
    Each child has its own heartbeat and connection, and neither renews nor ends a parent's claim.
    """
    parent, children = run_program(load=False, **storage_options)
    assert parent["exits"] == [0, 0, 0]
    assert len(children) == 3
    for child in children:
        assert (child["inherited"], child["held"], child["executions"]) == ([], 0, 0)
        assert (child["first"], child["is_replay"]) == (201, True)
        assert "dotmac-tasks.heartbeat" in child["threads"]
        assert child["knows_parents_outcome"]
        assert child["parents_claim_unmoved"]
        assert child["parents_claim_endings"] == [False, False]
        assert child["parents_claim_status"] == "in_progress"
        assert child["is_complete"]
        assert child["misses"] == 2  # what its hooks heard of
    assert (parent["after"], parent["protected"], parent["is_complete"]) == (201, True, True)
    assert "dotmac-tasks.heartbeat" in parent["threads"]
    if storage_options["url"] is not None:
        connections = {each["connection"] for each in [parent, *children]}
        assert len(connections) == 4
        assert parent["connection_after"] == parent["connection"]


def test_children_forked_under_load_work(storage_options: dict[str, Any]) -> None:
    """
    A child that is forked while others hold every lock there is still claims, records and locks.
    """
    parent, children = run_program(load=True, **storage_options)
    assert parent["exits"] == [0] * 12
    assert parent["after"] == 201
    assert [
        (each["first"], each["is_replay"], each["is_held"], each["held"]) for each in children
    ] == [(201, True, True, 0)] * 12
    assert all("dotmac-tasks.heartbeat" in each["threads"] for each in children)


@contextmanager
def running_gunicorn(log: Path, **environment: str) -> Iterator[int]:
    """
    Run the preloaded application in gunicorn; yields its port.
    """
    arguments = ["--preload", f"--workers={WORKERS}", "--threads=4", "--bind=127.0.0.1:0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *arguments, "support.preloaded:application"],
            stderr=output,
            cwd=log.parent,
            env=child_environment(HOME=str(log.parent), **environment),
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or find_port(log), LIMIT)
        assert process.poll() is None, log.read_text()
        yield int(find_port(log) or 0)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_port(log: Path) -> str | None:
    found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", log.read_text())
    return found and found.group(1)


@pytest.mark.redis
@pytest.mark.skipif(importlib.util.find_spec("gunicorn") is None, reason="needs gunicorn")
def test_preloaded_application_runs_a_key_once_over_its_workers(
    redis_server: RedisServer, random_prefix: str, tmp_path: Path
) -> None:
    """
    Under gunicorn --preload, with the library used before the fork, one of a crowd runs.
    """
    pytest.importorskip("redis")
    go = tmp_path / "go"
    environment = {
        "DOTMAC_TASKS_STORAGE": redis_server.url(),
        "DOTMAC_TASKS_KEY_PREFIX": random_prefix,
        "PRELOADED_GO": str(go),
    }
    with running_gunicorn(tmp_path / "log", **environment) as port:
        with ThreadPoolExecutor(CROWD) as pool:
            sent = [pool.submit(post, port, "k", "/held") for _ in range(CROWD)]
            wait_until(lambda: sum(each.done() for each in sent) == CROWD - 1, LIMIT)
            go.touch()
            answers = [each.result(LIMIT) for each in sent]
        assert sorted(each.status for each in answers) == [201] + [202] * (CROWD - 1)
        assert (tmp_path / "runs").read_text() == "run\n"
        assert post(port, "k", "/held").is_replay
        # Both children work, each with a heartbeat of its own, and know what the parent did.
        seen: dict[int, bool] = {}
        keys = (f"fresh-{number}" for number in count())

        def has_seen_all() -> bool:
            answer = post(port, next(keys))
            assert (answer.status, answer.is_replay) == (201, False)
            seen[answer.json()["by"]] = answer.json()["heartbeat"]
            return len(seen) == WORKERS

        wait_until(has_seen_all, LIMIT)
        assert set(seen.values()) == {True}
        before = post(port, "preloaded")
        assert before.is_replay
        assert before.json()["by"] not in seen
