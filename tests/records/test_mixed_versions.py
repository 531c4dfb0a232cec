"""
Workers of two versions side by side, as in a rolling deploy and in a rollback.

The newer one writes format 2, of its records or of its outcomes, and reads format 1. The older one
is this version: what it cannot read it refuses, and never takes for absent.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

pytest.importorskip("redis")

from dotmac_tasks.errors import CorruptRecordError
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import ClaimOutcome, WriteOutcome
from dotmac_tasks.serialization import encode_result
from dotmac_tasks.storage import RedisStorage
from support.backends import RedisBackend, make_request
from support.concurrency import Counter, run_together
from support.http_clients import Call, HttpClient, Reply, Response, open_wsgi
from support.newer import NewerPayloads, NewerRecords

KEYS = 20
THREADS = 8
KINDS = {"records": NewerRecords, "payloads": NewerPayloads}


class Workers(NamedTuple):
    """
    One worker of each version over one Redis, and how often each key's work ran.
    """

    old: HttpClient
    new: HttpClient
    runs: dict[str, Counter]
    held: dict[str, HttpClient]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """
    What it is that the newer version writes otherwise.
    """
    name: str = request.param
    return name


@pytest.fixture
def newer(backend: RedisBackend, kind: str) -> Iterator[RedisStorage]:
    """
    The storage of the newer version.
    """
    storage = KINDS[kind](client=backend._client, prefix=backend._prefix, timeout=10)
    yield storage
    storage.close()


@pytest.fixture
def workers(backend: RedisBackend, newer: RedisStorage) -> Iterator[Workers]:
    """
    Both workers; in the middle of its work a held key's request asks another worker for it.
    """
    runs: dict[str, Counter] = {}
    held: dict[str, HttpClient] = {}

    def run(call: Call) -> Reply:
        assert call.key is not None
        runs.setdefault(call.key, Counter()).increment()
        if call.key in held:
            answer = held[call.key].send(key=call.key)
            return Reply(201, body=f"{answer.status} {answer.problem}".encode())
        return Reply(201, body=b"done")

    settings = {"enable_background_cleanup": False}
    with ExitStack() as stack:
        old, new = (
            stack.enter_context(open_wsgi(run, storage, settings))
            for storage in (backend.storage, newer)
        )
        yield Workers(old, new, runs, held)


def is_refusal(response: Response) -> bool:
    return (response.status, response.problem) == (503, "unreadable-record")


def classify(response: Response) -> str:
    if is_refusal(response):
        return "refused"
    if response.is_replay:
        return "replay"
    return {201: "first", 202: "running"}.get(response.status, str(response))


def test_older_worker_refuses_what_the_newer_finished(workers: Workers) -> None:
    """A retry at a worker of the older version gets 503, time and again, and runs nothing."""
    assert workers.new.send(key="k").status == 201
    for _ in range(3):
        refused = workers.old.send(key="k")
        assert is_refusal(refused)
        assert refused.get("Retry-After") == "30"
    replay = workers.new.send(key="k")
    assert (replay.status, replay.body, replay.is_replay) == (201, b"done", True)
    assert workers.runs["k"].value == 1


def test_older_worker_keeps_away_from_what_the_newer_runs(workers: Workers, kind: str) -> None:
    """While the newer one works a retry at the older one is refused, or told that it is running."""
    workers.held["k"] = workers.old
    seen = workers.new.send(key="k")
    # The format of outcomes shows only where there is one.
    assert seen.body == (b"503 unreadable-record" if kind == "records" else b"202 None")
    assert workers.new.send(key="k").body == seen.body
    assert workers.runs["k"].value == 1


def test_newer_worker_replays_what_the_older_finished(workers: Workers) -> None:
    """After the upgrade a retry gets the answer that the older version gave."""
    assert workers.old.send(key="k").status == 201
    replay = workers.new.send(key="k")
    assert (replay.status, replay.body, replay.is_replay) == (201, b"done", True)
    assert workers.old.send(key="k").is_replay
    assert workers.runs["k"].value == 1


def test_newer_worker_keeps_away_from_what_the_older_runs(workers: Workers) -> None:
    """While the older one works a retry at the newer one is told so, and then gets its answer."""
    workers.held["k"] = workers.new
    assert workers.old.send(key="k").body == b"202 None"
    assert workers.new.send(key="k").is_replay
    assert workers.runs["k"].value == 1


def test_crowd_of_both_versions_runs_each_key_once(workers: Workers) -> None:
    """Of many requests at once at workers of both versions each key's work runs exactly once."""
    keys = [f"key-{number}" for number in range(KEYS)]
    numbers = Counter()

    def send_all() -> list[Response]:
        client = workers.new if numbers.increment() % 2 else workers.old
        return [client.send(key=key) for key in keys]

    rows = run_together(THREADS, send_all, timeout=120)
    assert [row for row in rows if isinstance(row, BaseException)] == []
    for key, *answers in zip(keys, *rows, strict=True):
        kinds = Tally(map(classify, answers))
        assert kinds["first"] == workers.runs[key].value == 1
        assert sum(kinds[name] for name in ("first", "replay", "refused", "running")) == THREADS
        assert workers.new.send(key=key).is_replay
        retry = workers.old.send(key=key)
        assert retry.is_replay or is_refusal(retry)
        assert workers.runs[key].value == 1


def test_newer_worker_takes_over_from_the_older(backend: RedisBackend, newer: RedisStorage) -> None:
    """What an older executor left behind runs on under the newer, and the older records nothing."""
    old = backend.storage
    mine, other = make_request(owner="old"), make_request(owner="new")
    token = old.claim_operation(mine).fencing_token
    backend.age(31)
    taken = newer.claim_operation(other)
    assert taken.outcome is ClaimOutcome.TAKEN_OVER
    try:
        late = old.complete_operation(mine, token, encode_result("late"), failed=False)
    except CorruptRecordError:
        late = WriteOutcome.LOST
    assert late is WriteOutcome.LOST
    payload = encode_result("new")
    done = newer.complete_operation(other, taken.fencing_token, payload, failed=False)
    assert done is WriteOutcome.DONE
    assert newer.claim_operation(make_request(owner="retry")).payload == payload


def test_older_worker_never_takes_over_a_newer_record(backend: RedisBackend) -> None:
    """A lease of the newer version that is over passes to nobody who cannot read it."""
    newer = NewerRecords(client=backend._client, prefix=backend._prefix, timeout=10)
    request = make_request(owner="new")
    token = newer.claim_operation(request).fencing_token
    backend.age(31)
    with pytest.raises(CorruptRecordError):
        backend.storage.claim_operation(make_request(owner="old"))
    with pytest.raises(CorruptRecordError):
        backend.storage.settle_operation("k", b"1jnull", failed=False)
    done = newer.complete_operation(request, token, encode_result(1), failed=False)
    assert done is WriteOutcome.DONE
    newer.close()


def test_background_operations_of_both_versions(backend: RedisBackend) -> None:
    """The newer version goes on with the older one's, which leaves those of the newer alone."""
    storage = NewerRecords(client=backend._client, prefix=backend._prefix, timeout=10)
    with (
        BackgroundOperationsManager(backend.storage, enable_background_cleanup=False) as old,
        BackgroundOperationsManager(storage, enable_background_cleanup=False) as new,
    ):
        old.create_operation("t", "report", operation_id="a")
        old.create_operation("t", "report", operation_id="b")
        assert new.start_operation("a").status == "in_progress"
        with pytest.raises(CorruptRecordError):
            old.complete_operation("a", 1)
        listed = old.list_operations("t").operations
        assert [operation.operation_id for operation in listed] == ["b"]
        listed = new.list_operations("t").operations
        assert [operation.operation_id for operation in listed] == ["b", "a"]
        assert new.complete_operation("a", 1).result == 1
    storage.close()
