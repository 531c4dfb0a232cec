"""
What a storage's own calls cost, beside bare EVALSHA of the same size.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from time import perf_counter
from typing import Any

import redis

from benchmarks import stacks
from benchmarks.report import Check, Section, micro, spread
from benchmarks.timing import Series, interleave
from dotmac_tasks.keys import http_storage_key, new_token
from dotmac_tasks.models import ClaimRequest
from dotmac_tasks.serialization import encode_response
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks.storage.redis import RedisStorage

PAYLOAD = encode_response(
    201,
    [("Content-Type", "application/json"), ("Location", "/orders/1042/")],
    b'{"order": 1042, "status": "accepted", "quantity": 2}',
)

_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(rb"\\(?:x([0-9a-f]{2})|(.))")
_NAMED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


def new_request(**changes: Any) -> ClaimRequest:
    """
    Return a claim as the Django middleware makes it for an order.
    """
    key = http_storage_key("default", "user:42", stacks.new_key())
    request = ClaimRequest(
        key,
        new_token(),
        "default",
        "user:42",
        "POST /orders/",
        "1:" + new_token() + new_token(),
        86400.0,
        30.0,
    )
    return request._replace(**changes)


def measure_storage(url: str, port: int, *, rounds: int, size: int) -> Section:
    """
    Compare claim and complete with two bare EVALSHA of the same size.
    """
    section = Section(
        "Storage: claim + complete on one thread",
        (
            "Microseconds per pair. Bare: two EVALSHA on one redis-py client, of scripts that only",
            "return; arguments and replies are those that the storage was seen to send and get.",
        ),
        ("", "per pair", "pairs per second", "of bare", "target", ""),
    )
    storage = RedisStorage(url)
    with redis.Redis.from_url(url, socket_timeout=2) as client:
        bare = _bare_pair(storage, client, port)
        memory = MemoryStorage(max_records=10 * rounds * size)
        times = interleave(
            {
                "bare": lambda: [_time(bare, size)],
                "redis": lambda: [_time(_storage_pair(storage), size)],
                "memory": lambda: [_time(_storage_pair(memory), size)],
            },
            rounds,
        )
    storage.close()
    (baseline,), (ours,), (in_memory,) = times["bare"], times["redis"], times["memory"]
    share = baseline.over(ours)
    for name, series in (("bare", baseline), ("redis", ours), ("memory", in_memory)):
        section.keep(f"{name}, µs per pair", Series(tuple(value * 1e6 for value in series.values)))
    section.keep("rate of ours / rate of bare", share)
    section.add("two bare EVALSHA", micro(baseline), _rate(baseline), "1")
    section.add(
        "RedisStorage",
        micro(ours),
        _rate(ours),
        spread(share),
        check=Check("Storage: rate beside two bare EVALSHA", share.median, 0.8, ">="),
    )
    section.add("MemoryStorage", micro(in_memory), _rate(in_memory))
    return section


def _rate(series: Series) -> str:
    return f"{1 / series.median:,.0f}"


def _time(pair: Callable[[], object], size: int) -> float:
    start = perf_counter()
    for _ in range(size):
        pair()
    return (perf_counter() - start) / size


def _storage_pair(storage: Storage) -> Callable[[], object]:
    template = new_request()
    prefix = stacks.new_key()
    count = iter(range(10**9))

    def pair() -> object:
        request = template._replace(key=f"{prefix}{next(count):0>12}")
        reply = storage.claim_operation(request)
        return storage.complete_operation(request, reply.fencing_token, PAYLOAD, failed=False)

    return pair


def _bare_pair(storage: Storage, client: redis.Redis, port: int) -> Callable[[], object]:
    storage.find_operation("warm-up")
    commands = _watch(port, _storage_pair(storage), scripts=2)
    # Sent once more behind the storage's back, to see the shape of the answers.
    record_key = commands[0][2 + int(commands[0][2])]
    client.delete(record_key)
    calls = []
    for name, _, keys, *args in commands:
        reply = client.execute_command(name, _, keys, *args)
        digest = client.script_load(f"return {_lua(reply)}")
        # Text where a caller would have text.
        calls.append((digest, int(keys), [arg if arg == PAYLOAD else arg.decode() for arg in args]))
    (first, first_keys, first_args), (second, second_keys, second_args) = calls
    evalsha = client.evalsha

    def pair() -> object:
        evalsha(first, first_keys, *first_args)
        return evalsha(second, second_keys, *second_args)

    return pair


def _watch(port: int, work: Callable[[], object], scripts: int) -> list[list[bytes]]:
    # What MONITOR shows of the scripts that run meanwhile, without what they call.
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        stream = connection.makefile("rb")
        connection.sendall(b"MONITOR\r\n")
        stream.readline()
        work()
        seen: list[list[bytes]] = []
        while len(seen) < scripts:
            line = stream.readline()
            if b" lua] " in line:
                continue
            words = [_unescape(each) for each in _QUOTED.findall(line)]
            if words[0].upper() in (b"EVALSHA", b"EVAL"):
                seen.append(words)
        return seen


def _unescape(text: bytes) -> bytes:
    def plain(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes.fromhex(match[1].decode())
        return _NAMED.get(match[2], match[2])

    return _ESCAPED.sub(plain, text)


def _lua(reply: Any) -> str:
    if isinstance(reply, list):
        return "{" + ",".join(map(_lua, reply)) + "}"
    if reply is None:
        return "false"
    if isinstance(reply, int):
        return str(reply)
    escaped = "".join(f"\\{byte:03d}" for byte in reply)
    return f"'{escaped}'"
