"""
How much memory of Redis a record takes.
"""

from __future__ import annotations

import redis

from benchmarks import stacks
from benchmarks.report import Check, Section
from benchmarks.storage import new_request
from dotmac_tasks.models import ClaimRequest
from dotmac_tasks.serialization import decode_payload
from dotmac_tasks.storage.redis import RedisStorage


def measure_sizes(url: str, *, count: int) -> Section:
    """
    Compare `used_memory` before and after writing so many records.
    """
    section = Section(
        "Memory in Redis",
        (
            f"Bytes per record: growth of used_memory over {count:,} records, index included.",
            "Records of the Django middleware: what it stored for an order is copied to new keys.",
        ),
        ("", "bytes", "of these body", "target", ""),
    )
    template, payload = _what_is_stored(url)
    storage = RedisStorage(url)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        storage.find_operation("warm-up")
        _write(storage, template, payload, 100)
        client.flushdb()
        empty = _used(client)
        requests = [(each, token) for each, token in _claims(storage, template, count)]
        running = (_used(client) - empty) / count
        for request, token in requests:
            storage.complete_operation(request, token, payload, failed=False)
        finished = (_used(client) - empty) / count
        client.flushdb()
    storage.close()
    body = len(decode_payload(payload).body)  # type: ignore[union-attr]
    section.data = {"running": running, "finished": finished, "body": body, "records": count}
    section.add(
        "running",
        f"{running:,.0f}",
        "",
        check=Check("Redis: a running record", running, 600, unit=" bytes"),
    )
    section.add(
        "finished",
        f"{finished:,.0f}",
        str(body),
        check=Check("Redis: a finished record, less its body", finished - body, 900, unit=" bytes"),
    )
    return section


def _what_is_stored(url: str) -> tuple[ClaimRequest, bytes]:
    # One order through Django; everything a record depends on is taken from there.
    with redis.Redis.from_url(url) as client, stacks.our_storage(url):
        client.flushdb()
        handler = stacks.build_handler(stacks.OUR_MIDDLEWARE)
        stacks.send(handler, stacks.build_environ(stacks.new_key()))
        keys = [key.decode() for key in client.keys("bgops:idempo:*")]
    (key,) = (key.rpartition(":")[2] for key in keys if not key.endswith(":index"))
    storage = RedisStorage(url)
    stored = storage.find_operation(key)
    storage.close()
    assert stored is not None
    return (
        new_request(
            tenant_id=stored.tenant_id,
            user_id=stored.user_id,
            operation_type=stored.operation_type,
            fingerprint=stored.fingerprint,
        ),
        stored.payload,
    )


def _claims(
    storage: RedisStorage, template: ClaimRequest, count: int
) -> list[tuple[ClaimRequest, int]]:
    made = []
    for _ in range(count):
        fresh = new_request()
        request = template._replace(key=fresh.key, owner=fresh.owner)
        made.append((request, storage.claim_operation(request).fencing_token))
    return made


def _write(storage: RedisStorage, template: ClaimRequest, payload: bytes, count: int) -> None:
    for request, token in _claims(storage, template, count):
        storage.complete_operation(request, token, payload, failed=False)


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])
