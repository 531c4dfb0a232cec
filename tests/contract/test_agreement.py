from __future__ import annotations

import random

import pytest

from dotmac_tasks.errors import StaleRecordError
from dotmac_tasks.models import Lease, LeaseKind, OperationStatus, Quota, StoredOperation
from dotmac_tasks.storage import Storage
from support.backends import Backend, MemoryBackend, make_request

STEPS = 120
VERBS = (
    "claim",
    "claim",
    "claim",
    "complete",
    "complete",
    "release",
    "defer",
    "settle",
    "ensure",
    "discard",
    "discard",
    "look",
    "renew",
    "lock",
    "unlock",
    "save",
    "list",
    "purge",
)


@pytest.mark.parametrize("seed", range(8))
def test_storages_agree_step_by_step(backend: Backend, seed: int) -> None:
    """Any sequence of verbs is answered alike by this storage and the one in memory."""
    # Time passes in hundreds of seconds, so that a slow run cannot reach the next expiry.
    dice = random.Random(seed)
    model = MemoryBackend()
    for step in range(STEPS):
        if dice.random() < 0.3:
            seconds = dice.randrange(1, 12) * 100
            backend.age(seconds)
            model.age(seconds)
            continue
        verb, state = dice.choice(VERBS), dice.getstate()
        expected = act(model.storage, verb, dice, step)
        dice.setstate(state)
        assert act(backend.storage, verb, dice, step) == expected, (step, verb)
        for key in ("k0", "k1"):
            found = backend.storage.find_operation(key)
            assert simplify(found) == simplify(model.storage.find_operation(key)), (step, verb)


def act(storage: Storage, verb: str, dice: random.Random, step: int) -> object:
    """
    Use one verb with arguments that the dice choose, and return what does not hold instants.
    """
    owner = dice.choice("ab")
    request = make_request(
        key=dice.choice(("k0", "k1")),
        owner=owner,
        tenant_id=dice.choices(("tenant", "other"), (9, 1))[0],
        user_id=dice.choice(("user", "")),
        fingerprint=dice.choices(("f", "g", ""), (8, 1, 1))[0],
        ttl=dice.choice((1000, 3000)),
        lease=dice.choice((500, 1000)),
        on_abandoned=dice.choices(("rerun", "refuse"), (3, 1))[0],
        takeover=dice.choices((0, 1, 2, 3, 4, 5), (5, 1, 1, 1, 1, 1))[0],
        quota=dice.choice((None, Quota("c0", 2, 1500), Quota("c1", 1, 700))),
    )
    payload, failed = b"%d" % step, dice.random() < 0.3
    if verb == "claim":
        reply = storage.claim_operation(request)
        return reply._replace(remaining=round(reply.remaining, -2))
    if verb == "complete":
        return storage.complete_operation(request, 5, payload, failed=failed)
    if verb == "release":
        return storage.release_operation(request.key, owner)
    if verb == "defer":
        return storage.defer_operation(request, dice.choice((500, 2000)))
    if verb == "settle":
        tenant = dice.choice((None, request.tenant_id))
        return storage.settle_operation(request.key, payload, failed=failed, tenant_id=tenant)
    if verb == "discard":
        return storage.discard_operation(
            request.key,
            tenant_id=dice.choice((None, request.tenant_id)),
            finished=failed,
            fencing_token=dice.choice((None, None, 0, 1, 2)),
            unreadable=dice.choice((False, True)),
        )
    if verb == "look":
        return look(storage, dice)
    if verb == "ensure":
        return simplify(storage.ensure_operation(request))
    if verb == "renew":
        kinds = ((LeaseKind.OPERATION, request.key), (LeaseKind.LOCK, "l"))
        return storage.renew_leases([Lease(kind, name, owner, 1000) for kind, name in kinds])
    if verb == "lock":
        return storage.acquire_lock("l", owner, 1000)
    if verb == "unlock":
        return storage.release_lock("l", owner)
    if verb == "save":
        return save(storage, dice, step)
    if verb == "list":
        status = dice.choice((None, OperationStatus.PENDING, OperationStatus.COMPLETED))
        records = storage.list_background("tenant", status=status).records
        return [(record.operation_id, record.revision, record.data) for record in records]
    while storage.purge_expired(3).more:
        pass
    return storage.purge_expired(3, dry_run=True)


def look(storage: Storage, dice: random.Random) -> list[str]:
    """
    Look through all pages; two records whose lives end in one instant may come in any order.
    """
    tenant = dice.choice((None, "tenant", "other"))
    status = dice.choice((None, *OperationStatus))
    limit, cursor, seen = dice.choice((1, 2)), None, []
    while True:
        page = storage.list_operations(tenant_id=tenant, status=status, limit=limit, cursor=cursor)
        assert len(page.records) <= limit
        seen += page.records
        cursor = page.cursor
        if cursor is None:
            return sorted(str(simplify(record)) for record in seen)


def save(storage: Storage, dice: random.Random, step: int) -> object:
    """
    Save a background operation, mostly with the right revision.
    """
    status = dice.choice((OperationStatus.PENDING, OperationStatus.COMPLETED))
    operation_id = dice.choice(("op0", "op1", "op2"))
    found = storage.find_background(operation_id)
    wrong = dice.random() < 0.2
    try:
        record = storage.save_background(
            operation_id,
            "tenant",
            status,
            b"%d" % step,
            expected_revision=(0 if found is None else found.revision) + wrong,
            request_id=f"r{step}",
            retention=1000 if status is OperationStatus.COMPLETED else None,
        )
    except StaleRecordError:
        return "stale"
    return record.revision, record.status, record.data


def simplify(record: StoredOperation | None) -> object:
    """
    Return a record with its instants as distances, in hundreds of seconds.
    """
    if record is None:
        return None
    expires, lease = record.expires_ms, record.lease_ms
    return record._replace(
        created_ms=0,
        expires_ms=expires and round((expires - record.created_ms) / 100_000),
        lease_ms=lease and round((lease - record.created_ms) / 100_000),
    )
