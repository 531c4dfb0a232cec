"""
Reads and writes data files that hold what a Redis held: text that a person can read.

Instants are written as ``{now+1500}``, in ms from when the file was made, and become instants
around the present when the file is loaded; so a lease that was alive is alive again. Text is
written as it is, bytes that are no text as ``{"hex": ...}`` behind what is.
"""

from __future__ import annotations

import re
from typing import Any

PREFIX = "bgops"
"""
The prefix that the keys have in a file.
"""

_INSTANT = re.compile(r"\{now([+-]\d+)\}")
# With the microseconds that may follow.
_FINE_INSTANT = re.compile(r"\{now[+-]\d+\}\d{0,3}")
# Of a finished record's head: the two fields that are instants, with the length of the value.
_PACKED = re.compile(r"(?<=[ce]13:)\d{13}")
_CENTURY = 100 * 365 * 86_400_000


def dump(client: Any, prefix: str = PREFIX) -> dict[str, Any]:
    """
    Return all that a Redis holds under a prefix, sorted by key.
    """
    now = read_clock(client)
    return {
        PREFIX + key.decode().removeprefix(prefix): _dump_key(client, key, now)
        for key in sorted(client.scan_iter(match=f"{prefix}:*", count=1000))
    }


def load(client: Any, data: dict[str, Any], prefix: str) -> None:
    """
    Write what `dump` returned under another prefix, as if it had been dumped just now.
    """
    now = read_clock(client)
    for name, entry in data.items():
        key = prefix + name.removeprefix(PREFIX)
        if "string" in entry:
            client.set(key, _to_bytes(entry["string"], now))
        elif "hash" in entry:
            fields = {field: _to_bytes(value, now) for field, value in entry["hash"].items()}
            client.hset(key, mapping=fields)
        else:
            scores = {
                member: float(_to_bytes(score, now)) for member, score in entry["zset"].items()
            }
            client.zadd(key, scores)
        if "expires" in entry:
            client.pexpireat(key, int(_to_bytes(entry["expires"], now)))


def names_of_records(data: dict[str, Any]) -> list[str]:
    """
    Return the stored keys of the idempotency records in a dump.
    """
    prefix = f"{PREFIX}:idempo:"
    return [
        name.removeprefix(prefix)
        for name in data
        if name.startswith(prefix) and "hash" in data[name]
    ]


def forget_instants(value: Any) -> Any:
    """
    Return a dump without what differs between two of them that were made of the same.
    """
    if isinstance(value, dict):
        return {name: forget_instants(item) for name, item in value.items()}
    if isinstance(value, list):
        return [forget_instants(item) for item in value]
    return _FINE_INSTANT.sub("{now}", value)


def read_clock(client: Any) -> int:
    """
    Return the server's time in ms.
    """
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def _dump_key(client: Any, key: bytes, now: int) -> dict[str, Any]:
    kind = client.type(key).decode()
    entry: dict[str, Any]
    if kind == "string":
        entry = {"string": _to_text(client.get(key), now)}
    elif kind == "hash":
        fields = client.hgetall(key)
        entry = {"hash": {name.decode(): _to_text(fields[name], now) for name in sorted(fields)}}
    else:
        assert kind == "zset", key
        members = client.zrange(key, 0, -1, withscores=True)
        entry = {"zset": {member.decode(): _score(score, now) for member, score in sorted(members)}}
    left = client.pttl(key)
    if left >= 0:
        entry["expires"] = _instant(now + left, now)
    return entry


def _instant(milliseconds: int, now: int) -> str:
    return f"{{now{milliseconds - now:+d}}}"


def _score(score: float, now: int) -> str:
    text = f"{score:.0f}"
    # An order of creation is an instant in microseconds.
    if len(text) == 16:
        return f"{_instant(int(score) // 1000, now)}{int(score) % 1000:03d}"
    return _to_text(text.encode(), now)


def _to_text(value: bytes, now: int) -> Any:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        return [value[: error.start].decode(), {"hex": value[error.start :].hex()}]
    if re.fullmatch(r"\d{16}", text):
        return _score(float(text), now)
    if re.fullmatch(r"\d{13}", text) and abs(int(text) - now) < _CENTURY:
        return _instant(int(text), now)
    return _PACKED.sub(lambda found: _instant(int(found[0]), now), text)


def _to_bytes(value: Any, now: int) -> bytes:
    if isinstance(value, list):
        text, rest = value
        return _to_bytes(text, now) + bytes.fromhex(rest["hex"])
    return _INSTANT.sub(lambda found: str(now + int(found[1])), value).encode()
