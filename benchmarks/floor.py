"""
The floor: the smallest correct idempotency middleware for Django.

Correct: the key is validated and scoped to tenant and user, a different request
under one key is refused, one executor holds a lease under a token of its own,
only that executor records, only answers that a retry should see again are kept,
and only headers that belong in a replay. And nothing else: no settings, no
events, no heartbeat (so the lease outlasts the longest request), no choice.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse

LEASE = 300
RETENTION = 86400
MAX_BODY = 1_048_576

_KEY = re.compile(
    r'"([\x20-\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]{1,255})'
)
_RELEASED = {401, 403, 407, 408, 409, 421, 423, 425, 429}
_KEPT_HEADERS = {
    "content-type", "content-language", "content-disposition", "content-encoding",
    "cache-control", "etag", "last-modified", "expires", "link", "location", "vary",
}  # fmt: skip
_UNKEPT = b"unkept"

_CLAIM = """
local found = redis.call('HMGET', KEYS[1], 'fingerprint', 'owner', 'response')
if not found[1] then
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'owner', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 'claimed'
end
if found[1] ~= ARGV[1] then return 'mismatch' end
if found[3] then return {found[3]} end
if found[2] == ARGV[2] then return 'claimed' end
return redis.call('PTTL', KEYS[1])
"""

_RECORD = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'response', ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""


class _Floor:
    # One per handler; shared by all threads, which share what `claim` and `record` guard.
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        held = request.__dict__.get("floor_claim")
        if held is not None:
            name, owner, key = held
            self.record(name, owner, _pack(response))
            response["X-Idempotency-Key"] = key
        return response

    def process_view(self, request: HttpRequest, *_: Any) -> HttpResponseBase | None:
        if request.method not in ("POST", "PATCH"):
            return None
        header = request.META.get("HTTP_IDEMPOTENCY_KEY")
        if header is None:
            return None
        match = _KEY.fullmatch(header)
        if match is None:
            return JsonResponse({"detail": "malformed key"}, status=400)
        key = match[1] or match[2]
        name = _scoped(request, key)
        owner = secrets.token_hex(16)
        found = self.claim(name, _fingerprint(request), owner)
        if found is None:
            request.floor_claim = (name, owner, key)  # type: ignore[attr-defined]
            return None
        if found == "mismatch":
            return JsonResponse({"detail": "key used for another request"}, status=422)
        if isinstance(found, int):
            headers = {"Retry-After": str(max(1, min(5, found)))}
            return JsonResponse({"status": "in_progress"}, status=202, headers=headers)
        return _replay(found, key)

    def claim(self, name: str, fingerprint: str, owner: str) -> int | str | bytes | None:
        # None: run it. Seconds: it runs. "mismatch". Bytes: the recorded response.
        raise NotImplementedError

    def record(self, name: str, owner: str, response: bytes) -> None:
        # Empty: give the key back.
        raise NotImplementedError


class RedisFloor(_Floor):
    """
    The floor over Redis: one script to claim, one to record.

    Shared by all threads; the client guards itself. While Redis is down requests
    run unprotected, after a bounded time.
    """

    client: redis.Redis

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        super().__init__(get_response)
        self._claim = self.client.register_script(_CLAIM)
        self._record = self.client.register_script(_RECORD)

    def claim(self, name: str, fingerprint: str, owner: str) -> int | str | bytes | None:
        """
        Claim in one round trip.
        """
        try:
            found = self._claim([name], [fingerprint, owner, LEASE * 1000])
        except redis.RedisError:
            return None
        if found == b"claimed":
            return None
        if found == b"mismatch":
            return "mismatch"
        return found[0] if isinstance(found, list) else found // 1000

    def record(self, name: str, owner: str, response: bytes) -> None:
        """
        Record in one round trip.
        """
        try:
            self._record([name], [owner, response, RETENTION * 1000])
        except redis.RedisError:
            return


class MemoryFloor(_Floor):
    """
    The floor over memory: one lock and a dictionary.

    Shared by all threads; `lock` guards `records`.
    """

    records: dict[str, tuple[str, str, float, bytes]]
    lock = threading.Lock()

    def claim(self, name: str, fingerprint: str, owner: str) -> int | str | bytes | None:
        """
        Claim under the lock.
        """
        now = time.monotonic()
        with self.lock:
            self._forget_expired(now)
            record = self.records.get(name)
            if record is None or record[2] <= now:
                self.records[name] = (fingerprint, owner, now + LEASE, b"")
                return None
        if record[0] != fingerprint:
            return "mismatch"
        return record[3] or int(record[2] - now)

    def record(self, name: str, owner: str, response: bytes) -> None:
        """
        Record under the lock.
        """
        with self.lock:
            record = self.records.get(name)
            if record is None or record[1] != owner:
                return
            # Finished ones stand in the order in which they expire.
            del self.records[name]
            if response:
                expiry = time.monotonic() + RETENTION
                self.records[name] = (record[0], owner, expiry, response)

    def _forget_expired(self, now: float) -> None:
        # Without this it would grow until the process dies.
        while self.records:
            name = next(iter(self.records))
            if self.records[name][2] > now:
                return
            del self.records[name]


def _scoped(request: HttpRequest, key: str) -> str:
    tenant = getattr(request, "tenant", "default")
    user = getattr(request, "user", None)
    if user is not None and user.is_authenticated:
        principal = f"user:{user.pk}"
    else:
        principal = f"header:{request.META.get('HTTP_AUTHORIZATION', '')}"
    return "floor:" + hashlib.sha256(repr((tenant, principal, key)).encode()).hexdigest()


def _fingerprint(request: HttpRequest) -> str:
    meta = request.META
    head = (request.method, request.path, meta["QUERY_STRING"], meta.get("CONTENT_TYPE", ""))
    digest = hashlib.sha256(repr(head).encode())
    digest.update(request.body)
    return digest.hexdigest()


def _pack(response: HttpResponseBase) -> bytes:
    status = response.status_code
    if status >= 500 or status in _RELEASED:
        return b""
    if response.streaming or len(response.content) > MAX_BODY:  # type: ignore[attr-defined]
        return _UNKEPT
    headers = [item for item in response.items() if item[0].lower() in _KEPT_HEADERS]
    return json.dumps([status, headers]).encode() + b"\n" + response.content  # type: ignore[attr-defined]


def _replay(packed: bytes, key: str) -> HttpResponseBase:
    if packed == _UNKEPT:
        return JsonResponse({"detail": "the response was not kept"}, status=409)
    head, _, body = packed.partition(b"\n")
    status, headers = json.loads(head)
    response = HttpResponse(body, status=status, headers=dict(headers))
    response["Idempotent-Replayed"] = "true"
    response["X-Cache-Hit"] = "true"
    response["X-Idempotency-Key"] = key
    return response
