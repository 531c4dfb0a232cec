"""
What each released version wrote is read, replayed, completed, taken over and listed by this one.

The files are made by `write.py` beside this one and never changed.
"""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import pytest

from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import (
    ClaimOutcome,
    Lease,
    LeaseKind,
    OperationStatus,
    SettleOutcome,
    WriteOutcome,
)
from dotmac_tasks.serialization import decode_payload, encode_result
from dotmac_tasks.storage import Storage
from support.backends import RedisBackend, make_request
from support.concurrency import Counter, run_together
from support.http_clients import Call, Reply, open_wsgi
from support.record_samples import (
    REQUESTS,
    make_golden,
    read_records,
    send,
    write_records,
)
from support.stored_records import dump, forget_instants, load, names_of_records

HERE = Path(__file__).parent
VERSIONS = sorted(folder.name for folder in HERE.iterdir() if (folder / "redis.json").is_file())
PAYLOAD = encode_result("new")


def read_file(version: str, name: str) -> Any:
    return json.loads((HERE / version / f"{name}.json").read_text(encoding="utf-8"))


def get_version() -> str:
    parser = configparser.ConfigParser()
    parser.read(HERE.parents[1] / "setup.cfg")
    return parser["metadata"]["version"]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """
    One released version.
    """
    name: str = request.param
    return name


@pytest.fixture
def storage(backend: RedisBackend, version: str) -> Storage:
    """
    This version's storage over what that version has written.
    """
    load(backend._client, read_file(version, "redis"), backend._prefix)
    return backend.storage


def claim(storage: Storage, key: str, owner: str = "new", **changes: Any) -> Any:
    return storage.claim_operation(make_request(key=key, owner=owner, **changes))


def complete(storage: Storage, key: str, owner: str, token: int) -> WriteOutcome:
    request = make_request(key=key, owner=owner)
    return storage.complete_operation(request, token, PAYLOAD, failed=False)


def test_records_of_this_version_are_kept() -> None:
    """A version is released with the records that it writes; `write.py` makes them."""
    assert get_version() in VERSIONS


def test_record_reads_as_it_did(storage: Storage, version: str) -> None:
    """Each record and each background operation says what it said to the version that wrote it."""
    read = read_records(storage, names_of_records(read_file(version, "redis")))
    kept = read_file(version, "read")
    # This version may say more of a key, but nothing else.
    for key, facts in kept["operations"].items():
        read["operations"][key] = {fact: read["operations"][key][fact] for fact in facts}
    assert read == kept


def test_counts_are_those_of_the_file(storage: Storage, version: str) -> None:
    """The indexes are read as well: everything counts once, and nothing of it has expired."""
    read = read_file(version, "read")
    counts = storage.get_stats()
    assert counts.idempotency_keys == len(read["operations"])
    assert counts.operations == len(read["background"])
    assert storage.purge_expired(1000).removed == 0


@pytest.mark.parametrize("name", REQUESTS)
def test_retry_is_answered_as_it_was(storage: Storage, version: str, name: str) -> None:
    """A retry of a request that was sent to that version gets its answer and runs nothing."""
    runs = Counter()

    def run(call: Call) -> Reply:
        runs.increment()
        return Reply()

    with open_wsgi(run, storage, {"enable_background_cleanup": False}) as client:
        assert send(client, name) == read_file(version, "answers")[name]
        other = client.send(key=name, **{**REQUESTS[name], "body": b"other"})
        assert other.status == 422
    assert runs.value == 0


@pytest.mark.parametrize(
    "key", ["completed", "completed-response", "completed-tombstone", "failed", "settled"]
)
def test_finished_record_is_replayed(storage: Storage, version: str, key: str) -> None:
    """An outcome of any kind is handed to whoever claims the key, and can be decoded."""
    reply = claim(storage, key)
    kept = read_file(version, "read")["operations"][key]["payload"].encode("latin-1")
    assert (reply.outcome, reply.payload) == (ClaimOutcome.FINISHED, kept)
    decode_payload(reply.payload)
    assert storage.settle_operation(key, PAYLOAD, failed=False) is SettleOutcome.FINISHED
    assert claim(storage, key).payload == kept


def test_pending_record_is_claimed_and_completed(storage: Storage) -> None:
    """A record that nobody had claimed goes its way."""
    reply = claim(storage, "pending")
    assert reply.outcome is ClaimOutcome.CLAIMED
    assert complete(storage, "pending", "new", reply.fencing_token) is WriteOutcome.DONE
    assert claim(storage, "pending", "other").payload == PAYLOAD


@pytest.mark.parametrize(
    ("key", "owner"), [("running", "a"), ("running-refuse", "a"), ("taken-over", "b")]
)
def test_running_record_keeps_others_out(
    storage: Storage, version: str, key: str, owner: str
) -> None:
    """A live lease holds, against everybody but its owner, who ends it."""
    assert claim(storage, key).outcome is ClaimOutcome.IN_PROGRESS
    assert claim(storage, key, fingerprint="other").outcome is ClaimOutcome.MISMATCH
    assert claim(storage, key, tenant_id="other").outcome is ClaimOutcome.FOREIGN
    assert storage.settle_operation(key, PAYLOAD, failed=False) is SettleOutcome.RUNNING
    leases = [Lease(LeaseKind.OPERATION, key, name, 60) for name in ("new", owner)]
    assert storage.renew_leases(leases) == [False, True]
    token = read_file(version, "read")["operations"][key]["fencing_token"]
    assert complete(storage, key, "new", token + 1) is WriteOutcome.LOST
    assert complete(storage, key, owner, token) is WriteOutcome.DONE
    assert claim(storage, key).payload == PAYLOAD


def test_running_record_is_released_by_its_owner(storage: Storage) -> None:
    """An owner of that version's time can give its key back."""
    assert storage.release_operation("running", "new") is WriteOutcome.LOST
    assert storage.release_operation("running", "a") is WriteOutcome.DONE
    assert claim(storage, "running").outcome is ClaimOutcome.CLAIMED


def test_abandoned_record_is_taken_over(storage: Storage, version: str) -> None:
    """A lease that is over passes on once, and its owner can record nothing any more."""
    old = read_file(version, "read")["operations"]["abandoned"]["fencing_token"]
    numbers = Counter()
    replies = run_together(8, lambda: claim(storage, "abandoned", f"new-{numbers.increment()}"))
    assert [reply for reply in replies if isinstance(reply, BaseException)] == []
    (winner,) = [reply for reply in replies if reply.outcome is ClaimOutcome.TAKEN_OVER]
    assert winner.fencing_token > old
    assert [reply.outcome for reply in replies].count(ClaimOutcome.IN_PROGRESS) == 7
    assert complete(storage, "abandoned", "a", old) is WriteOutcome.LOST


def test_refused_record_waits_for_a_decision(storage: Storage) -> None:
    """What must not run again after that version's executor died does not under this one."""
    assert claim(storage, "abandoned-refuse").outcome is ClaimOutcome.UNRESOLVED
    settled = storage.settle_operation("abandoned-refuse", PAYLOAD, failed=False)
    assert settled is SettleOutcome.DONE
    assert claim(storage, "abandoned-refuse").payload == PAYLOAD


def test_record_that_was_handed_on_is_settled(storage: Storage) -> None:
    """A worker finishes what that version had handed on, and nobody else runs it meanwhile."""
    assert claim(storage, "handed-on").outcome is ClaimOutcome.IN_PROGRESS
    assert storage.settle_operation("handed-on", PAYLOAD, failed=False) is SettleOutcome.DONE
    assert claim(storage, "handed-on").payload == PAYLOAD


def test_fencing_tokens_go_on_growing(storage: Storage, version: str) -> None:
    """No token of that version is given out again."""
    read = read_file(version, "read")["operations"]
    highest = max(record["fencing_token"] for record in read.values())
    assert claim(storage, "brand-new").fencing_token > highest
    grant = storage.acquire_lock("another", "new", 30)
    assert grant is not None
    assert grant.fencing_token > highest


def test_lock_is_held_renewed_and_released(storage: Storage) -> None:
    """A lock of that version keeps others out until its owner gives it back."""
    assert storage.acquire_lock("reports", "new", 30) is None
    leases = [Lease(LeaseKind.LOCK, "reports", name, 60) for name in ("new", "owner-a")]
    assert storage.renew_leases(leases) == [False, True]
    assert storage.release_lock("reports", "new") is False
    assert storage.release_lock("reports", "owner-a") is True
    assert storage.acquire_lock("reports", "new", 30) is not None


@pytest.mark.parametrize("status", OperationStatus)
def test_background_operations_are_listed_by_status(
    storage: Storage, version: str, status: OperationStatus
) -> None:
    """Each is in the listing of its status, in the order of its creation."""
    names = [
        item["operation_id"]
        for item in read_file(version, "read")["background"]
        # A linked one is shown as its key has it, and listed as it was written.
        if ("pending" if item["idempotency_key"] else item["status"]) == status
    ]
    page = storage.list_background("tenant", status=status)
    assert names
    assert [record.operation_id for record in page.records] == names


def test_background_operations_go_on(storage: Storage) -> None:
    """A background operation is started, completed and failed from where that version left it."""
    with BackgroundOperationsManager(storage, enable_background_cleanup=False) as manager:
        started = manager.start_operation("op-pending")
        assert (started.status, started.revision) == ("in_progress", 2)
        assert manager.complete_operation("op-started", 1).result == 1
        assert manager.fail_operation("op-pending", "late").error == "late"
        assert manager.get_operation_status("op-linked").result == {"total": 5}


def test_this_version_writes_what_it_wrote(backend: RedisBackend) -> None:
    """The same work leaves the same records as when this version's files were made."""
    answers = write_records(backend.storage)
    written = dump(backend._client, backend._prefix)
    kept = read_file(get_version(), "redis")
    assert forget_instants(written) == forget_instants(kept)
    assert answers == read_file(get_version(), "answers")


@pytest.mark.parametrize(
    "kind", ["body digests", "fingerprints", "stored keys", "generated keys", "payloads"]
)
def test_keys_and_fingerprints_are_what_they_were(version: str, kind: str) -> None:
    """Another digest or key would make a retry run again, another payload break a replay."""
    kept = read_file(version, "golden")[kind]
    made = make_golden()[kind]
    assert {name: made[name] for name in kept} == kept
