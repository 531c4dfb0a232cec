"""
What is special to the Redis storage: its keys, its records, its scripts and its housekeeping.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

from dotmac_tasks.errors import CorruptRecordError, InvalidKeyError, StorageError
from dotmac_tasks.keys import key_hash
from dotmac_tasks.models import (
    ClaimOutcome,
    ClaimReply,
    Lease,
    LeaseKind,
    OperationStatus,
    PurgeReport,
    Quota,
    SettleOutcome,
    StorageStats,
    WriteOutcome,
)
from support.backends import make_request
from support.concurrency import run_together, wait_until
from support.redis_server import RedisServer

pytest.importorskip("redis")
import redis

from dotmac_tasks.storage import redis as module
from dotmac_tasks.storage.lua import load_script
from dotmac_tasks.storage.redis import RedisStorage

pytestmark = pytest.mark.redis

SCRIPTS = sorted(
    each.name.removesuffix(".lua")
    for each in resources.files("dotmac_tasks.storage.lua").iterdir()
    if each.name.endswith(".lua")
)
SHARED = {"quick_claim", "common", "record", "expiry", "write", "describe", "background", "damage"}


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(redis_server.url()) as opened:
        yield opened


@pytest.fixture
def prefix(random_prefix: str) -> str:
    return random_prefix


@pytest.fixture
def storage(redis_server: RedisServer, prefix: str) -> Iterator[RedisStorage]:
    opened = RedisStorage(redis_server.url(), prefix=prefix, timeout=10)
    yield opened
    opened.close()


def save(storage: RedisStorage, operation_id: str = "op", **changes: Any) -> None:
    values: dict[str, Any] = {"expected_revision": 0, "request_id": "r", "retention": None}
    tenant = changes.pop("tenant", "tenant")
    values.update(changes)
    storage.save_background(operation_id, tenant, OperationStatus.PENDING, b"d", **values)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_short_and_explains_itself(name: str) -> None:
    """A script has at most 40 lines and starts with what it is for; a verb names what it takes."""
    text = resources.files("dotmac_tasks.storage.lua").joinpath(f"{name}.lua").read_text()
    assert len(text.splitlines()) <= 40
    assert text.startswith("-- ")
    if name not in SHARED:
        assert re.search(r"^-- KEYS: ", text, re.MULTILINE)
        assert re.search(r"^-- Returns: ", text, re.MULTILINE)


def test_script_comes_with_what_it_uses() -> None:
    """The shared parts that a script names precede it, in their order."""
    text = load_script("find_operation").text.decode()
    parts = ["local function corrupt", "local function read_record", "local function describe"]
    positions = [text.index(part) for part in [*parts, "read_record(KEYS[1])"]]
    assert positions == sorted(positions)
    assert b"Uses" not in load_script("count_records").text


def test_running_claim_is_one_compact_hash(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A claim is a small hash of named fields that expires one retention after its lease."""
    storage.claim_operation(make_request(lease=30, ttl=100))
    key = f"{prefix}:idempo:k"
    fields = client.hgetall(key)
    assert client.object("encoding", key) in (b"listpack", b"ziplist")
    assert set(fields) == set(map(str.encode, "vstunfokralcg"))
    assert (fields[b"v"], fields[b"s"], fields[b"o"]) == (b"1", b"in_progress", b"a")
    assert 129_000 < client.pttl(key) <= 130_000
    score = client.zscore(f"{prefix}:idempo:index", "k")
    assert score == int(fields[b"l"]) + 100_000


def test_finished_record_packs_its_head(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A finished record is version, status, payload as it came, and one field for the rest."""
    storage.claim_operation(make_request(ttl=100))
    payload = bytes(range(256))
    storage.complete_operation(make_request(ttl=100), 1, payload, failed=False)
    key = f"{prefix}:idempo:k"
    fields = client.hgetall(key)
    assert set(fields) == {b"v", b"s", b"h", b"p"}
    assert fields[b"p"] == payload
    assert fields[b"h"].startswith(b"t6:tenantf11:fingerprintu4:usern6:chargeo1:a")
    assert 99_000 < client.pttl(key) <= 100_000


def test_finished_record_is_replayed_however_its_head_is_ordered(
    storage: RedisStorage, client: Any, prefix: str
) -> None:
    """The order in the head only decides how soon a replay is known; a cut head is refused."""
    request = make_request(tenant_id="a\0b", fingerprint="f\0")
    storage.complete_operation(request, 1, b"x", failed=False)
    key = f"{prefix}:idempo:k"
    head = client.hget(key, "h")
    assert head.startswith(b"t3:a\0bf2:f\0u")
    for order in (head, head[6:] + head[:6], head[11:] + head[:11]):
        client.hset(key, "h", order)
        reply = storage.claim_operation(request._replace(owner="b"))
        assert reply == ClaimReply(ClaimOutcome.FINISHED, payload=b"x")
        foreign = storage.claim_operation(request._replace(tenant_id="a"))
        assert foreign.outcome is ClaimOutcome.FOREIGN
        mismatch = storage.claim_operation(request._replace(fingerprint="f"))
        assert mismatch.outcome is ClaimOutcome.MISMATCH
    client.hset(key, "h", head[:8])
    with pytest.raises(CorruptRecordError):
        storage.claim_operation(request)


def test_refusing_claim_never_expires(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A claim that must not run again stays, and is counted, until it is resolved."""
    storage.claim_operation(make_request(on_abandoned="refuse"))
    assert client.pttl(f"{prefix}:idempo:k") == -1
    assert client.zscore(f"{prefix}:idempo:index", "k") == float("inf")
    storage.renew_leases([Lease(LeaseKind.OPERATION, "k", "a", 60)])
    assert client.pttl(f"{prefix}:idempo:k") == -1
    storage.defer_operation(make_request(on_abandoned="refuse"), 60)
    assert storage.settle_operation("k", b"x", failed=False) is SettleOutcome.DONE
    assert client.pttl(f"{prefix}:idempo:k") > 0


def test_renewal_moves_the_expiry(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A renewed claim expires one retention after its new lease; a renewed lock with it."""
    storage.claim_operation(make_request(lease=1, ttl=10))
    storage.acquire_lock("n", "a", 1)
    leases = [
        Lease(LeaseKind.OPERATION, "k", "a", 100),
        Lease(LeaseKind.LOCK, "n", "a", 100),
    ]
    assert storage.renew_leases(leases) == [True, True]
    assert client.pttl(f"{prefix}:idempo:k") > 100_000
    assert client.pttl(f"{prefix}:lock:n") > 90_000


def test_released_claim_leaves_nothing(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A release removes the record and its index entry."""
    storage.claim_operation(make_request())
    storage.release_operation("k", "a")
    assert client.exists(f"{prefix}:idempo:k", f"{prefix}:idempo:index") == 0


def test_lock_is_a_string_that_expires(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A lock is its owner and fencing token, with a time to live."""
    grant = storage.acquire_lock("n", "a:b", 5)
    assert grant is not None
    assert client.get(f"{prefix}:lock:n") == b"a:b:%d" % grant.fencing_token
    assert 0 < client.pttl(f"{prefix}:lock:n") <= 5000
    assert storage.acquire_lock("n", "a:b", 5) == grant


def test_fence_outgrows_what_a_record_holds(
    storage: RedisStorage, client: Any, prefix: str
) -> None:
    """A counter that was lost starts above the token of the record that is taken over."""
    storage.claim_operation(make_request())
    client.hset(f"{prefix}:idempo:k", mapping={"k": 41, "l": 1})
    client.delete(f"{prefix}:fence")
    reply = storage.claim_operation(make_request(owner="b"))
    assert (reply.outcome, reply.fencing_token) == (ClaimOutcome.TAKEN_OVER, 42)
    assert client.get(f"{prefix}:fence") == b"42"


def test_fence_outgrows_a_completion(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A completion whose record is gone lifts the counter to its token, and never lowers it."""
    storage.complete_operation(make_request(), 7, b"x", failed=False)
    assert client.get(f"{prefix}:fence") == b"7"
    storage.complete_operation(make_request(key="k2"), 3, b"x", failed=False)
    assert client.get(f"{prefix}:fence") == b"7"


def test_damaged_fence_is_an_error(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A counter that is no number refuses the claim, and no record is written."""
    client.set(f"{prefix}:fence", "x")
    with pytest.raises(StorageError):
        storage.claim_operation(make_request())
    assert storage.find_operation("k") is None


DAMAGE: dict[str, dict[str, str | None]] = {
    "newer": {"v": "2"},
    "no version": {"v": None},
    "unknown status": {"s": "paused"},
    "no owner": {"o": None},
    "no fence": {"k": "x"},
    "no lease": {"l": ""},
    "no policy": {"a": None},
    "unknown policy": {"a": "ask"},
    "lease that is no number": {"l": "nan"},
    "lease without end": {"l": "inf"},
    "fence beyond numbers": {"k": "1e999"},
    "retention below zero": {"r": "-5"},
    "creation too large": {"c": "9" * 17},
    "no mode": {"g": None},
    "no tenant": {"t": None},
    "no user": {"u": None},
    "no type": {"n": None},
    "no fingerprint": {"f": None},
    "no creation": {"c": "x"},
    "no retention": {"r": None},
    "finished without payload": {"s": "completed", "e": "1"},
    "finished without an instant": {"s": "failed", "p": "x"},
    "finished with a head cut off": {"s": "completed", "p": "x", "h": "t5:tenan"},
    # Past what the server's numbers hold it would be read from the start again, for ever.
    "finished with an endless head": {"s": "completed", "p": "x", "h": f"t{'9' * 21}:tenant"},
}


def damage_record(client: Any, key: str, changes: dict[str, str | None]) -> None:
    for field, value in changes.items():
        if value is None:
            client.hdel(key, field)
        else:
            client.hset(key, field, value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_record_is_left_as_it_is(
    damage: str, storage: RedisStorage, client: Any, prefix: str
) -> None:
    """A record that lacks anything is refused, is not renewed, and keeps every byte."""
    storage.claim_operation(make_request())
    key = f"{prefix}:idempo:k"
    damage_record(client, key, DAMAGE[damage])
    before = client.dump(key), client.zscore(f"{prefix}:idempo:index", "k")
    for verb in (
        lambda: storage.claim_operation(make_request(owner="b")),
        lambda: storage.complete_operation(make_request(), 1, b"x", failed=False),
        lambda: storage.release_operation("k", "a"),
        lambda: storage.discard_operation("k", finished=True),
        lambda: storage.find_operation("k"),
    ):
        with pytest.raises(CorruptRecordError) as caught:
            verb()
        assert caught.value.key == "k"
    assert storage.renew_leases([Lease(LeaseKind.OPERATION, "k", "a", 5)]) == [False]
    assert (client.dump(key), client.zscore(f"{prefix}:idempo:index", "k")) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_record_is_listed_as_unreadable(
    damage: str, storage: RedisStorage, client: Any, prefix: str
) -> None:
    """What cannot be read is shown with the reason, costs no other its place, and is no match."""
    for key in ("a", "k", "z"):
        storage.claim_operation(make_request(key=key, on_abandoned="refuse"))
    damage_record(client, f"{prefix}:idempo:k", DAMAGE[damage])
    with pytest.raises(CorruptRecordError) as caught:
        storage.find_operation("k")
    page = storage.list_operations()
    assert [record.key for record in page.records] == ["z", "a"]
    assert page.unreadable == [("k", caught.value.reason)]
    assert page.cursor is None
    for filters in ({"tenant_id": "tenant"}, {"status": OperationStatus.IN_PROGRESS}):
        filtered = storage.list_operations(**filters)  # type: ignore[arg-type]
        assert [record.key for record in filtered.records] == ["z", "a"]
        assert filtered.unreadable == []


def test_everything_unreadable_is_listed(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A value of another type, a text or key that is no UTF-8, a strange hash: all are shown."""
    client.set(f"{prefix}:idempo:string", "x")
    client.hset(f"{prefix}:idempo:strange", "x", "1")
    storage.claim_operation(make_request(key="text"))
    client.hset(f"{prefix}:idempo:text", "u", b"\xff")
    client.zadd(
        f"{prefix}:idempo:index",
        {"string": "+inf", "strange": "+inf", b"\xff": "+inf", "gone": "+inf"},
    )
    client.hset(f"{prefix}:idempo:".encode() + b"\xff", "v", "1")
    for limit in (1, 10):
        found, cursor = [], None
        while True:
            page = storage.list_operations(limit=limit, cursor=cursor)
            assert page.records == []
            found += page.unreadable
            cursor = page.cursor
            if cursor is None:
                break
        assert [record.key for record in found] == ["\\xff", "string", "strange", "text"]
        assert [record.reason.rpartition(":")[2] for record in found] == [
            "its key is no UTF-8",
            "a value of another type is stored there",
            "strange is not of format 1",
            "a text in it is no UTF-8",
        ]


def test_page_looks_at_a_bounded_number_of_records(
    storage: RedisStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page whose filter leaves out what it looked at is empty and has a cursor."""
    monkeypatch.setattr(module, "_LOOKED_AT", 3)
    for number in range(7):
        storage.claim_operation(make_request(key=f"k{number}", on_abandoned="refuse"))
    storage.ensure_operation(make_request(key="last"))
    lengths, found, cursor = [], [], None
    while True:
        page = storage.list_operations(status=OperationStatus.PENDING, cursor=cursor)
        lengths.append(len(page.records))
        found += [record.key for record in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    assert (lengths, found) == ([0, 0, 1], ["last"])
    assert len(storage.list_operations(limit=100).records) == 3


def test_listing_reads_no_payload(storage: RedisStorage, redis_server: RedisServer) -> None:
    """A page over large outcomes asks for their sizes and moves none of their bytes."""
    for number in range(20):
        request = make_request(key=f"k{number}")
        storage.complete_operation(request, 1, b"x" * 1_000_000, failed=False)
    sent = redis_server.info("stats")["total_net_output_bytes"]
    page = storage.list_operations()
    moved = int(redis_server.info("stats")["total_net_output_bytes"]) - int(sent)
    assert [record.payload_size for record in page.records] == [1_000_000] * 20
    assert moved < 100_000


def test_listing_goes_by_the_index(storage: RedisStorage, client: Any, prefix: str) -> None:
    """An entry whose record is gone, or has expired by the index, is passed over."""
    storage.claim_operation(make_request())
    client.zadd(f"{prefix}:idempo:index", {"gone": "+inf", "expired": 1})
    page = storage.list_operations(limit=2)
    assert [record.key for record in page.records] == ["k"]
    assert page.cursor is None


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_record_is_discarded_only_if_asked(
    damage: str, storage: RedisStorage, client: Any, prefix: str
) -> None:
    """What cannot be read stays, and goes with its index entry where the caller says so."""
    storage.claim_operation(make_request())
    key = f"{prefix}:idempo:k"
    damage_record(client, key, DAMAGE[damage])
    before = client.dump(key)
    for asked in ({"finished": True}, {"unreadable": True, "tenant_id": "tenant"}):
        with pytest.raises(CorruptRecordError):
            storage.discard_operation("k", **asked)
        assert client.dump(key) == before
    assert storage.discard_operation("k", unreadable=True) is SettleOutcome.DONE
    assert client.exists(key, f"{prefix}:idempo:index") == 0
    assert storage.claim_operation(make_request()).outcome is ClaimOutcome.CLAIMED


def test_value_of_another_type_is_discarded(
    storage: RedisStorage, client: Any, prefix: str
) -> None:
    """A value that is no record at all goes as well, and only if asked."""
    client.rpush(f"{prefix}:idempo:k", "x")
    with pytest.raises(CorruptRecordError):
        storage.discard_operation("k")
    assert storage.discard_operation("k", unreadable=True) is SettleOutcome.DONE
    assert storage.discard_operation("k", unreadable=True) is SettleOutcome.ABSENT


def test_refusing_server_is_no_damage(prefix: str) -> None:
    """An error that is the server's own removes nothing and calls no record unreadable."""
    rule = "poor on >secret ~* +@all -hgetall -hmget"
    with RedisServer(acl_users=[rule]) as server:
        rich = RedisStorage(server.url(), prefix=prefix)
        poor = RedisStorage(server.url(user="poor", password="secret"), prefix=prefix)
        rich.claim_operation(make_request())
        with pytest.raises(StorageError) as caught:
            poor.discard_operation("k", unreadable=True)
        assert not isinstance(caught.value, CorruptRecordError)
        with pytest.raises(StorageError):
            poor.list_operations()
        assert rich.find_operation("k") is not None
        rich.close()
        poor.close()


def test_damaged_record_costs_no_other_lease(
    storage: RedisStorage, client: Any, prefix: str
) -> None:
    """One unreadable record among many leases is lost alone."""
    client.set(f"{prefix}:idempo:bad", "x")
    client.set(f"{prefix}:lock:bad", "x")
    storage.claim_operation(make_request())
    storage.acquire_lock("n", "a", 5)
    leases = [
        Lease(LeaseKind.OPERATION, "bad", "a", 5),
        Lease(LeaseKind.OPERATION, "k", "a", 5),
        Lease(LeaseKind.LOCK, "bad", "a", 5),
        Lease(LeaseKind.LOCK, "n", "a", 5),
    ]
    assert storage.renew_leases(leases) == [False, True, False, True]


def test_no_leases_need_no_trip(storage: RedisStorage) -> None:
    """Renewing nothing asks nobody."""
    storage.close()
    assert storage.renew_leases([]) == []
    assert storage._channel._pool.count == 0


def test_damaged_lock_is_refused(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A lock without owner and token is neither taken nor released."""
    client.set(f"{prefix}:lock:n", "x")
    with pytest.raises(CorruptRecordError):
        storage.acquire_lock("n", "a", 5)
    with pytest.raises(CorruptRecordError):
        storage.release_lock("n", "a")
    assert client.get(f"{prefix}:lock:n") == b"x"


@pytest.mark.parametrize("field", ["t", "s", "n", "c", "m", "x", "i", "q", "d"])
def test_damaged_operation_is_refused(
    field: str, storage: RedisStorage, client: Any, prefix: str
) -> None:
    """A background operation that lacks a field is refused by every verb, and named."""
    save(storage)
    client.hdel(f"{prefix}:operation:op", field)
    with pytest.raises(CorruptRecordError):
        storage.find_background("op")
    with pytest.raises(CorruptRecordError):
        save(storage, expected_revision=1, request_id="s")


@pytest.mark.parametrize(
    ("field", "value"), [("v", "2"), ("n", "x"), ("s", "paused"), ("t", b"\xff"), ("d", None)]
)
def test_damaged_operation_is_left_out_of_a_listing(
    field: str,
    value: str | bytes | None,
    storage: RedisStorage,
    client: Any,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What cannot be read costs no other operation its place in the page, and is logged."""
    for operation_id in ("first", "op", "last"):
        save(storage, operation_id=operation_id)
    if value is None:
        client.hdel(f"{prefix}:operation:op", field)
    else:
        client.hset(f"{prefix}:operation:op", field, value)
    with pytest.raises(CorruptRecordError):
        storage.find_background("op")
    page = storage.list_background("tenant")
    assert [record.operation_id for record in page.records] == ["last", "first"]
    assert [vars(message)["key_hash"] for message in caplog.records] == [key_hash("op")]


@pytest.mark.parametrize("field", ["t", "u", "n", "f"])
def test_text_that_is_no_utf8_is_damage(
    field: str, storage: RedisStorage, client: Any, prefix: str
) -> None:
    """A record whose text cannot be decoded is refused as any damaged one."""
    storage.claim_operation(make_request())
    client.hset(f"{prefix}:idempo:k", field, b"\xff")
    with pytest.raises(CorruptRecordError, match="UTF-8"):
        storage.find_operation("k")


def test_newer_operation_is_refused(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A background operation of another format, or with a number that is none, is refused."""
    save(storage)
    client.hset(f"{prefix}:operation:op", "n", "x")
    with pytest.raises(CorruptRecordError, match="no number"):
        storage.find_background("op")
    client.hset(f"{prefix}:operation:op", "v", "2")
    with pytest.raises(CorruptRecordError, match="format"):
        storage.find_background("op")


def test_key_of_the_index_is_refused(storage: RedisStorage) -> None:
    """No operation can be stored under the name of the index."""
    for verb in (
        lambda: storage.claim_operation(make_request(key="index")),
        lambda: storage.find_operation("index"),
        lambda: storage.release_operation("index", "a"),
    ):
        with pytest.raises(InvalidKeyError):
            verb()


def test_tenant_with_colons_shares_no_listing(storage: RedisStorage) -> None:
    """Tenants whose names look like parts of keys see their own operations only."""
    save(storage, "one", tenant="a")
    save(storage, "two", tenant="a:pending")
    save(storage, "three", tenant="pending:a")
    for tenant, expected in (("a", "one"), ("a:pending", "two"), ("pending:a", "three")):
        for status in (None, OperationStatus.PENDING):
            page = storage.list_background(tenant, status=status)
            assert [record.operation_id for record in page.records] == [expected]


def test_undecodable_text_comes_back(storage: RedisStorage) -> None:
    """Text with lone surrogates, as WSGI hands on odd bytes, is kept unchanged."""
    request = make_request(key="k\udce9", tenant_id="t\udc80", user_id="\ud800")
    storage.claim_operation(request)
    record = storage.find_operation("k\udce9")
    assert record is not None
    assert (record.tenant_id, record.user_id) == ("t\udc80", "\ud800")


def test_cursor_that_is_none_is_refused(storage: RedisStorage) -> None:
    """A cursor that no listing returned is the caller's mistake."""
    with pytest.raises(ValueError, match="invalid literal"):
        storage.list_background("tenant", cursor="x")


def test_operations_made_in_one_millisecond_keep_their_order(storage: RedisStorage) -> None:
    """Creations by many threads have distinct places, so that no page skips one."""
    names = iter(range(1000))
    run_together(8, lambda: [save(storage, f"op{next(names)}") for _ in range(5)])
    seen, cursor = [], None
    while True:
        page = storage.list_background("tenant", limit=7, cursor=cursor)
        seen += [record.operation_id for record in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(seen) == sorted(f"op{number}" for number in range(40))


def test_purge_removes_what_redis_has_removed(
    storage: RedisStorage, client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leftovers of both kinds go page by page, never more than asked for."""
    monkeypatch.setattr(module, "_PAGE", 2)
    for number in range(5):
        storage.claim_operation(make_request(key=f"k{number}", lease=0.001, ttl=0.001))
        save(storage, f"op{number}", retention=0.001)
    storage.claim_operation(make_request(key="alive"))
    wait_until(lambda: storage.purge_expired(1, dry_run=True).removed == 10)
    assert storage.purge_expired(3) == PurgeReport(3, True)
    assert storage.purge_expired(100) == PurgeReport(7, False)
    assert storage.get_stats() == StorageStats(1, 0)
    assert set(client.keys(f"{prefix}:*")) == {
        f"{prefix}:{name}".encode() for name in ("fence", "idempo:alive", "idempo:index")
    }


def test_purge_puts_wrong_entries_right(storage: RedisStorage, client: Any, prefix: str) -> None:
    """An entry that calls a live record expired is corrected, and the record stays."""
    storage.claim_operation(make_request())
    storage.claim_operation(make_request(key="stays", on_abandoned="refuse"))
    index = f"{prefix}:idempo:index"
    client.zadd(index, {"k": 1, "stays": 1})
    assert storage.purge_expired(10) == PurgeReport(0, False)
    assert storage.find_operation("k") is not None
    assert client.zscore(index, "k") > 1
    assert client.zscore(index, "stays") == float("inf")


def test_purge_ends_in_time(storage: RedisStorage, client: Any, prefix: str) -> None:
    """A purge that comes too late for a further page says that more are waiting."""
    client.zadd(f"{prefix}:idempo:index", {f"k{number}": 1 for number in range(3)})
    deadline = storage._channel.get_deadline()
    instants = iter([deadline - 1, deadline + 100])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAGE", 1)
        patch.setattr(module, "_monotonic", lambda: next(instants))
        assert storage.purge_expired(3) == PurgeReport(1, True)


def test_purges_beside_each_other_remove_each_entry_once(
    storage: RedisStorage, client: Any, prefix: str
) -> None:
    """Two cleanups share the work; none counts an entry that the other removed."""
    client.zadd(f"{prefix}:idempo:index", {f"k{number}": 1 for number in range(400)})
    reports = run_together(4, storage.purge_expired, 400)
    assert sum(report.removed for report in reports if isinstance(report, PurgeReport)) == 400


def test_braces_put_all_keys_of_a_script_in_one_slot(redis_server: RedisServer) -> None:
    """With a prefix in braces the keys hash alike."""
    storage = RedisStorage(redis_server.url(), prefix=f"{{{secrets.token_hex(8)}}}", timeout=10)
    storage.claim_operation(make_request())
    storage.acquire_lock("n", "a", 5)
    save(storage)
    prefix = storage._prefix
    keys = [storage._record_key(b"k"), storage._locks + b"n", storage._fence, storage._index]
    keys += [storage._operation_index, *storage._listings(b"t"), storage._operations + b"op"]
    assert all(key.startswith(prefix + b":") for key in keys)
    storage.close()


def test_memory_of_a_record_is_bounded() -> None:
    """A claim takes at most 600 bytes with its index entry, an outcome 900 and its body."""
    number, body = 4000, b"1h" + b"x" * 498
    with RedisServer() as server:
        storage = RedisStorage(server.url())
        request = make_request(
            tenant_id="tenant01",
            user_id="0b5f6a52-7d0c-4c39-9f0e-6f1f3c1d2e3f",
            operation_type="POST /orders/",
            fingerprint=secrets.token_hex(16),
            ttl=86400,
        )
        claims = [
            request._replace(key=secrets.token_hex(16), owner=secrets.token_hex(16))
            for _ in range(number)
        ]
        storage.complete_operation(request, 1, body, failed=False)

        def used() -> int:
            return int(server.info("memory")["used_memory"])

        empty = used()
        for each in claims:
            storage.claim_operation(each)
        running = used()
        for each in claims:
            assert storage.complete_operation(each, 1, body, failed=False) is WriteOutcome.DONE
        finished = used()
        storage.close()
    assert (running - empty) / number <= 600
    assert (finished - empty) / number <= 900 + len(body)


def claim_under_quota(storage: RedisStorage, key: str) -> ClaimOutcome:
    request = make_request(key=key, owner=key, quota=Quota("caller", 2, 60))
    return storage.claim_operation(request).outcome


def test_counter_of_a_quota_expires_with_its_window(
    storage: RedisStorage, client: Any, prefix: str
) -> None:
    """A counter is one key that expires by itself, and a second key does not put that off."""
    claim_under_quota(storage, "a")
    name = f"{prefix}:quota:caller"
    assert client.get(name) == b"1"
    client.pexpire(name, 30_000)
    claim_under_quota(storage, "b")
    assert client.get(name) == b"2"
    assert 20_000 < client.pttl(name) <= 30_000


def test_claim_without_quota_has_no_counter(
    storage: RedisStorage, client: Any, prefix: str
) -> None:
    """Where no quota is set, a claim writes its record, the index and the fence, and no more."""
    storage.claim_operation(make_request())
    names = {name.decode().removeprefix(f"{prefix}:") for name in client.keys(f"{prefix}:*")}
    assert names == {"idempo:k", "idempo:index", "fence"}


@pytest.mark.parametrize("damage", [b"7", b"many", b"nan", b"-1"])
def test_counter_that_never_expires_begins_anew(
    storage: RedisStorage, client: Any, prefix: str, damage: bytes
) -> None:
    """A counter without an expiry, as nothing here writes it, locks nobody out for good."""
    client.set(f"{prefix}:quota:caller", damage)
    assert [claim_under_quota(storage, key) for key in "abc"] == [
        ClaimOutcome.CLAIMED,
        ClaimOutcome.CLAIMED,
        ClaimOutcome.OVER_QUOTA,
    ]


def test_counter_of_another_type_is_refused(
    storage: RedisStorage, client: Any, prefix: str
) -> None:
    """A counter that is no string is damage: nothing is claimed without being counted."""
    client.rpush(f"{prefix}:quota:caller", "x")
    with pytest.raises(CorruptRecordError):
        claim_under_quota(storage, "a")
    assert storage.find_operation("a") is None
