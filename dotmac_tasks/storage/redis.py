"""
Keeps everything in Redis: each verb is one script and one round trip.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import ceil, inf
from typing import Any, ClassVar

import redis
from redis.exceptions import NoPermissionError

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.errors import (
    ConfigurationError,
    CorruptRecordError,
    InvalidKeyError,
    StaleRecordError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from dotmac_tasks.keys import RESERVED_KEY, key_hash, validate_operation_id
from dotmac_tasks.models import (
    BackgroundPage,
    BackgroundRecord,
    ClaimOutcome,
    ClaimReply,
    ClaimRequest,
    Lease,
    LeaseKind,
    LockGrant,
    OperationStatus,
    PurgeReport,
    SettleOutcome,
    StorageHealth,
    StorageStats,
    StoredOperation,
    StoredPage,
    UnreadableRecord,
    WriteOutcome,
)
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.breaker import CircuitBreaker
from dotmac_tasks.storage.cursors import format_cursor, parse_cursor
from dotmac_tasks.storage.lua import Script, load_script
from dotmac_tasks.storage.redis_connection import (
    Channel,
    Reply,
    UnknownScriptError,
    create_channel,
    find_damage,
)
from dotmac_tasks.typing import Clock

__all__ = ["RedisStorage"]

logger = logging.getLogger(__name__)

_PAGE = 500
# Most records that one page of a listing looks at, whatever it leaves out.
_LOOKED_AT = 250
# What the health check shows of INFO.
_SHOWN = ("redis_version", "role", "maxmemory_policy")
_SHOWN_NUMBERS = ("used_memory", "maxmemory", "connected_clients")
_NEARLY_FULL = 0.9
_monotonic = SystemClock().monotonic

_CLAIM = load_script("claim_operation")
_ENSURE = load_script("ensure_operation")
_FIND = load_script("find_operation")
_COMPLETE = load_script("complete_operation")
_RELEASE = load_script("release_operation")
_DEFER = load_script("defer_operation")
_SETTLE = load_script("settle_operation")
_LIST_OPERATIONS = load_script("list_operations")
_SUMMARISE = load_script("summarise_operations")
_DISCARD = load_script("discard_operation")
_RENEW = load_script("renew_leases")
_ACQUIRE_LOCK = load_script("acquire_lock")
_RELEASE_LOCK = load_script("release_lock")
_SAVE_BACKGROUND = load_script("save_background")
_FIND_BACKGROUND = load_script("find_background")
_LIST = load_script("list_background")
_FIND_EXPIRED = load_script("find_expired")
_REMOVE_EXPIRED = load_script("remove_expired")
_COUNT = load_script("count_records")

_STATUSES = tuple(OperationStatus)
_CLAIM_OUTCOMES = {outcome.encode(): outcome for outcome in ClaimOutcome}
_WRITE_OUTCOMES = {outcome.encode(): outcome for outcome in WriteOutcome}
_SETTLE_OUTCOMES = {outcome.encode(): outcome for outcome in SettleOutcome}
_STATUS_OF = {status.encode(): status for status in OperationStatus}
# What stands before each part of a command; nearly all parts are as short.
_LENGTHS = tuple(b"$%d" % length for length in range(256))
_HAS_TOKEN = (ClaimOutcome.CLAIMED, ClaimOutcome.TAKEN_OVER, ClaimOutcome.UNRESOLVED)


class RedisStorage(Storage):
    """
    Keeps everything in one Redis, for any number of processes and hosts.

    Instances are shared by all threads and usable in the child of a fork.
    Opens its connections when it is first called, as many as calls are under
    way at once.

    After `breaker_threshold` calls in a row to which Redis did not answer, the
    next ones raise `StorageUnavailableError` at once; every `breaker_cooldown`
    seconds one of them tries again. Answers that refuse a call, such as a full
    memory or a missing permission, come at once and do not count as failures.

    A user of Redis with access control needs no more than::

        ACL SETUSER app on >secret ~bgops:* resetchannels -@all +evalsha +eval
            +ping +info +select +time +get +set +incr +del +hgetall +hmget +hset
            +hstrlen +pexpire +pexpireat +persist +pttl +zadd +zrem +zcard +zcount
            +zrangebyscore +zrevrange +zrevrangebyscore

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``, with user,
            password and database where needed; the query takes redis-py's
            options, such as ``?ssl_ca_certs=/path``. The local server by default.
        prefix: First part of every key; in braces for one slot of a cluster.
        timeout: The most seconds that one call may take, everything included.
        client: A redis-py client whose settings to use in place of a URL; its
            connections are not used, except for their class. Of a class that is
            not redis-py's own, the connections bound each wait by `timeout`,
            not the call as a whole.
        max_connections: How many calls may be under way at once; others wait.
        breaker_threshold: Calls in a row without an answer, see above.
        breaker_cooldown: Seconds of rest, see above.
        clock: Measures the rest; the system's by default.
        options: Further arguments of redis-py's connections, `ssl_ca_certs`.

    Raises:
        ConfigurationError: The arguments cannot work.
    """

    name: ClassVar[str] = "redis"

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        prefix: str = "bgops",
        timeout: float = 2.0,
        client: redis.Redis | None = None,
        max_connections: int = 50,
        breaker_threshold: int = 3,
        breaker_cooldown: float = 2.0,
        clock: Clock | None = None,
        **options: Any,
    ) -> None:
        _check_positive(
            timeout=timeout,
            max_connections=max_connections,
            breaker_threshold=breaker_threshold,
            breaker_cooldown=breaker_cooldown,
        )
        if redis_url is not None and client is not None:
            raise ConfigurationError("client", "cannot be given together with redis_url.")
        breaker = CircuitBreaker(
            threshold=breaker_threshold, cooldown=breaker_cooldown, clock=clock or SystemClock()
        )
        self._channel: Channel = create_channel(
            redis_url,
            client,
            timeout=timeout,
            max_connections=max_connections,
            breaker=breaker,
            **options,
        )
        self._prefix = _encode(prefix)
        self._records = self._prefix + b":idempo:"
        self._locks = self._prefix + b":lock:"
        self._operations = self._prefix + b":operation:"
        self._fence = self._prefix + b":fence"
        self._quotas = self._prefix + b":quota:"
        self._index = self._records + RESERVED_KEY.encode()
        # Ids of operations hold no colon, so no operation can have one of these names.
        self._operation_index = self._operations + b"index:expiry"

    @property
    def breaker_state(self) -> str:
        """
        ``closed``, ``open`` or ``half-open``.
        """
        return self._channel.breaker.state

    @property
    def is_refusing(self) -> bool:
        """
        Whether the breaker is open.
        """
        return self._channel.breaker.is_refusing

    # Idempotency records

    def claim_operation(self, request: ClaimRequest) -> ClaimReply:
        """
        Claim a key, take over a lease that is over, or report what is there.
        """
        key = _encode(request.key)
        quota = request.quota
        keys: tuple[bytes, ...] = (self._index, self._fence, self._record_key(key))
        arguments: tuple[bytes, ...] = (
            *_describe_request(request, key),
            _ms(request.lease),
            request.on_abandoned.encode(),
            b"%d" % request.takeover,
        )
        if quota is not None:
            keys = (*keys, self._quotas + _encode(quota.caller))
            arguments = (*arguments, b"%d" % quota.limit, _ms(quota.window))
        reply = self._run(_CLAIM, keys, arguments, request.key)
        outcome = _CLAIM_OUTCOMES[reply[0]]
        if len(reply) == 1:
            return ClaimReply(outcome)
        _, fencing_token, payload, left = reply
        return ClaimReply(
            outcome,
            fencing_token if outcome in _HAS_TOKEN else 0,
            payload,
            left / 1000,
        )

    def ensure_operation(self, request: ClaimRequest) -> StoredOperation:
        """
        Create the record pending if it is absent, otherwise return it as it is.
        """
        key = _encode(request.key)
        parts = _describe_request(request, key)
        reply = self._run(
            _ENSURE, (self._index, self._record_key(key)), (key, *parts[2:]), request.key
        )
        return _build_operation(request.key, reply)

    def find_operation(self, key: str) -> StoredOperation | None:
        """
        Return the record, or None where it is absent or expired.
        """
        reply = self._run(_FIND, (self._record_key(_encode(key)),), (), key)
        return None if reply is None else _build_operation(key, reply)

    def complete_operation(
        self, request: ClaimRequest, fencing_token: int, payload: bytes, *, failed: bool
    ) -> WriteOutcome:
        """
        Record the outcome of a claim.
        """
        key = _encode(request.key)
        reply = self._run(
            _COMPLETE,
            (self._index, self._fence, self._record_key(key)),
            (
                *_describe_request(request, key),
                b"%d" % fencing_token,
                b"failed" if failed else b"completed",
                payload,
            ),
            request.key,
        )
        return _WRITE_OUTCOMES[reply]

    def release_operation(self, key: str, owner: str) -> WriteOutcome:
        """
        Give a claimed key back, so that the next claim runs the work.
        """
        name = _encode(key)
        reply = self._run(
            _RELEASE, (self._index, self._record_key(name)), (name, _encode(owner)), key
        )
        return _WRITE_OUTCOMES[reply]

    def defer_operation(self, request: ClaimRequest, seconds: float) -> WriteOutcome:
        """
        Turn a claim into one that anybody may settle within so many seconds.
        """
        key = _encode(request.key)
        reply = self._run(
            _DEFER,
            (self._index, self._fence, self._record_key(key)),
            (*_describe_request(request, key), _ms(seconds), request.on_abandoned.encode()),
            request.key,
        )
        return _WRITE_OUTCOMES[reply]

    def settle_operation(
        self, key: str, payload: bytes, *, failed: bool, tenant_id: str | None = None
    ) -> SettleOutcome:
        """
        Record an outcome without holding the claim.
        """
        name = _encode(key)
        arguments = [name, b"failed" if failed else b"completed", payload]
        if tenant_id is not None:
            arguments.append(_encode(tenant_id))
        reply = self._run(_SETTLE, (self._index, self._record_key(name)), arguments, key)
        return _SETTLE_OUTCOMES[reply]

    # Idempotency records, for operators

    def list_operations(
        self,
        *,
        tenant_id: str | None = None,
        status: OperationStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> StoredPage:
        """
        Return one page of the records, without their payloads.

        Two round trips: the index, then at most some hundreds of records, of
        which the filters may leave out any number.

        Raises:
            ValueError: The cursor is none that this method returned.
            StorageError: As the contract says.
        """
        deadline = self._channel.get_deadline()
        filtered = tenant_id is not None or status is not None
        size = _LOOKED_AT if filtered else min(limit, _LOOKED_AT)
        arguments = [b"%d" % (size + 1)]
        if cursor is not None:
            score, name = parse_cursor(cursor)
            arguments += [b"+inf" if score == inf else b"%.0f" % score, name]
        found = self._run(_LIST_OPERATIONS, (self._index,), arguments, "index", deadline)
        names = found[: 2 * size : 2]
        page = StoredPage([], [], None)
        if not names:
            return page
        keys = [self._records + name for name in names]
        replies = self._run(_SUMMARISE, keys, (), "index", deadline)
        seen = 0
        for name, reply in zip(names, replies, strict=True):
            if len(page.records) + len(page.unreadable) == limit:
                break
            seen += 1
            record = _build_listed(name, reply)
            if isinstance(record, UnreadableRecord):
                if not filtered:
                    page.unreadable.append(record)
            elif record is not None and _matches(record, tenant_id, status):
                page.records.append(record)
        if len(found) == 2 * seen:
            return page
        name, expiry = found[2 * seen - 2 : 2 * seen]
        return page._replace(cursor=format_cursor(float(expiry), name))

    def discard_operation(
        self,
        key: str,
        *,
        tenant_id: str | None = None,
        finished: bool = False,
        fencing_token: int | None = None,
        unreadable: bool = False,
    ) -> SettleOutcome:
        """
        Give a key back without holding its claim, so that the next claim runs the work.
        """
        name = _encode(key)
        token = b"" if fencing_token is None else b"%d" % fencing_token
        arguments = [name, b"%d" % finished, b"%d" % unreadable, token]
        if tenant_id is not None:
            arguments.append(_encode(tenant_id))
        reply = self._run(_DISCARD, (self._index, self._record_key(name)), arguments, key)
        return _SETTLE_OUTCOMES[reply]

    # Leases

    def renew_leases(self, leases: Sequence[Lease]) -> list[bool]:
        """
        Extend leases of claims and locks, in one round trip for hundreds.

        A record that cannot be read loses its own lease, nobody else's.
        """
        if not leases:
            return []
        keys = [self._index]
        arguments = []
        for kind, name, owner, seconds in leases:
            encoded = _encode(name)
            of_lock = kind is LeaseKind.LOCK
            keys.append(self._locks + encoded if of_lock else self._record_key(encoded))
            arguments += [kind.encode(), encoded, _encode(owner), _ms(seconds)]
        return [held == 1 for held in self._run(_RENEW, keys, arguments, "leases")]

    # Locks

    def acquire_lock(self, name: str, owner: str, ttl: float) -> LockGrant | None:
        """
        Take a lock, or return None while somebody else holds it.
        """
        keys = (self._fence, self._locks + _encode(name))
        fence = self._run(_ACQUIRE_LOCK, keys, (_encode(owner), _ms(ttl)), name)
        return LockGrant(fence) if fence else None

    def release_lock(self, name: str, owner: str) -> bool:
        """
        Give a lock back; True if nobody holds it by this owner afterwards.
        """
        keys = (self._locks + _encode(name),)
        return bool(self._run(_RELEASE_LOCK, keys, (_encode(owner),), name))

    # Background operations

    def save_background(
        self,
        operation_id: str,
        tenant_id: str,
        status: OperationStatus,
        data: bytes,
        *,
        expected_revision: int,
        request_id: str,
        retention: float | None,
    ) -> BackgroundRecord:
        """
        Write a background operation if its revision is the expected one.
        """
        validate_operation_id(operation_id)
        name, tenant = _encode(operation_id), _encode(tenant_id)
        reply = self._run(
            _SAVE_BACKGROUND,
            (self._operations + name, self._operation_index, *self._listings(tenant)),
            (
                name,
                tenant,
                data,
                b"%d" % expected_revision,
                _encode(request_id),
                b"" if retention is None else _ms(retention),
                status.encode(),
                *_STATUS_OF,
            ),
            operation_id,
        )
        if reply is None:
            raise StaleRecordError(self.name, f"Operation {operation_id}")
        return _build_background(operation_id, reply)

    def find_background(self, operation_id: str) -> BackgroundRecord | None:
        """
        Return the background operation, or None where absent or expired.
        """
        try:
            validate_operation_id(operation_id)
        except InvalidKeyError:
            return None
        keys = (self._operations + _encode(operation_id),)
        (reply,) = self._run(_FIND_BACKGROUND, keys, (), operation_id)
        return _build_background(operation_id, reply) if reply else None

    def list_background(
        self,
        tenant_id: str,
        *,
        status: OperationStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> BackgroundPage:
        """
        Return one page of a tenant's operations, newest first.

        Two round trips: the index, then the records; some more for each one that
        cannot be read. A page from which records had to be left out is shorter
        than `limit`.

        Raises:
            ValueError: The cursor is none that this method returned.
            StorageError: As the contract says.
        """
        deadline = self._channel.get_deadline()
        listings = self._listings(_encode(tenant_id))
        listing = listings[0] if status is None else listings[1 + _STATUSES.index(status)]
        below = b"+inf" if cursor is None else b"(%d" % int(cursor)
        found = self._run(_LIST, (listing,), (below, b"%d" % (limit + 1)), tenant_id, deadline)
        names, orders = found[: 2 * limit : 2], found[1 : 2 * limit : 2]
        following = str(int(float(orders[-1]))) if len(found) > 2 * limit else None
        if not names:
            return BackgroundPage([], None)
        records = self._find_listed(names, deadline)
        # An index may still name what expired, though its id is another tenant's by now.
        records = [
            record
            for record in records
            if record.tenant_id == tenant_id and status in (None, record.status)
        ]
        return BackgroundPage(records, following)

    def _find_listed(self, names: list[bytes], deadline: float) -> list[BackgroundRecord]:
        """
        Return those of the named operations that are there and can be read.
        """
        about = _decode(names[0])
        try:
            keys = [self._operations + name for name in names]
            replies = self._run(_FIND_BACKGROUND, keys, (), about, deadline)
            return [
                _build_background(_decode(name), reply)
                for name, reply in zip(names, replies, strict=True)
                if reply
            ]
        except CorruptRecordError:
            if len(names) == 1:
                logger.exception(
                    "A background operation cannot be read and is left out",
                    extra={"key_hash": key_hash(about)},
                )
                return []
        # One that is damaged costs no other its place: the halves are asked for by themselves.
        half = len(names) // 2
        return [
            *self._find_listed(names[:half], deadline),
            *self._find_listed(names[half:], deadline),
        ]

    # Housekeeping

    def purge_expired(self, limit: int, *, dry_run: bool = False) -> PurgeReport:
        """
        Remove at most `limit` leftovers in the indexes; Redis removes the records.

        Two round trips for each page of some hundreds; stops early when the
        timeout of a call is over, and then says that more are waiting.
        """
        deadline = self._channel.get_deadline()
        removed = 0
        while True:
            size = 0 if dry_run else min(_PAGE, limit - removed)
            records, operations = self._run(
                _FIND_EXPIRED,
                (self._index, self._operation_index),
                (b"%d" % size,),
                "index",
                deadline,
            )
            waiting = records[0] + operations[0]
            if dry_run:
                return PurgeReport(waiting, False)
            if not size or not waiting or _monotonic() > deadline:
                return PurgeReport(removed, waiting > 0)
            if records[1]:
                removed += self._remove_records(records[1], deadline)
            else:
                removed += self._remove_operations(operations[1], deadline)

    def _remove_records(self, names: list[bytes], deadline: float) -> int:
        keys = [self._index]
        arguments = [b"1"]
        for name in names:
            keys.append(self._records + name)
            arguments += [name, b""]
        removed: int = self._run(_REMOVE_EXPIRED, keys, arguments, "index", deadline)
        return removed

    def _remove_operations(self, entries: list[bytes], deadline: float) -> int:
        keys = [self._operation_index]
        arguments = [b"%d" % (2 + len(_STATUSES))]
        for entry in entries:
            name, _, tenant = entry.partition(b":")
            keys += [self._operations + name, *self._listings(tenant)]
            arguments += [entry, name]
        removed: int = self._run(_REMOVE_EXPIRED, keys, arguments, "index", deadline)
        return removed

    def check_health(self) -> StorageHealth:
        """
        Ask Redis how it is; answers unhealthy instead of raising.

        Asks whatever the circuit breaker says, which closes when Redis answers.
        """
        channel = self._channel
        started = _monotonic()
        details: dict[str, str | int | float | bool | None] = {"server": channel.target}
        try:
            reply = channel.probe(_pack((b"INFO",)), "INFO", channel.get_deadline())
        except StorageError as error:
            # Access rules often forbid INFO; being told so is an answer, too.
            silent = isinstance(error, StorageUnavailableError | StorageTimeoutError)
            healthy = not silent or isinstance(error.__cause__, NoPermissionError)
            warnings = [str(error)]
        else:
            info = _parse_info(reply)
            healthy = info.get("role") != "slave" and info.get("loading", "0") == "0"
            warnings = _find_warnings(info)
            details.update({name: info[name] for name in _SHOWN if name in info})
            details.update({name: int(info[name]) for name in _SHOWN_NUMBERS if name in info})
        latency = _monotonic() - started
        details["breaker"] = channel.breaker.state
        return StorageHealth(healthy, self.name, latency, tuple(warnings), details)

    def get_stats(self) -> StorageStats:
        """
        Count what is stored, from the indexes.
        """
        counts = self._run(_COUNT, (self._index, self._operation_index), (), "index")
        return StorageStats(*counts)

    def close(self) -> None:
        """
        Close the connections; those in use when their call ends.
        """
        self._channel.close()

    def _record_key(self, key: bytes) -> bytes:
        name = self._records + key
        if name == self._index:
            raise InvalidKeyError(RESERVED_KEY, "the name is reserved. Choose another one.")
        return name

    def _listings(self, tenant: bytes) -> list[bytes]:
        """
        Return the keys of a tenant's listing and of those of each status.
        """
        by_status = [self._operations + b"status:%b:%b" % (name, tenant) for name in _STATUS_OF]
        return [self._operations + b"tenant:" + tenant, *by_status]

    def _run(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[bytes],
        about: str,
        deadline: float | None = None,
    ) -> Reply:
        """
        Run a script; where Redis has forgotten it, send its text once more.
        """
        if deadline is None:
            deadline = self._channel.get_deadline()
        parts = (b"%d" % len(keys), *keys, *arguments)
        try:
            command = _pack((b"EVALSHA", script.digest, *parts))
            return self._channel.call(command, about, deadline)
        except UnknownScriptError as error:
            command = _pack((b"EVAL", script.text, *parts))
            return self._channel.call(command, about, deadline, sent=error.sent)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigurationError(name, "must be above 0.", value=value)


def _pack(parts: tuple[bytes, ...]) -> bytes:
    lines = [b"*%d" % len(parts)]
    for part in parts:
        length = len(part)
        lines.append(_LENGTHS[length] if length < len(_LENGTHS) else b"$%d" % length)
        lines.append(part)
    lines.append(b"")
    return b"\r\n".join(lines)


def _encode(text: str) -> bytes:
    # WSGI hands on bytes that are no UTF-8 as lone surrogates; they come back as they were.
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _ms(seconds: float) -> bytes:
    return b"%d" % max(1, ceil(seconds * 1000))


def _describe_request(request: ClaimRequest, key: bytes) -> tuple[bytes, ...]:
    _, owner, tenant_id, user_id, operation_type, fingerprint, ttl, *_ = request
    return (
        key,
        _encode(owner),
        _encode(tenant_id),
        _encode(user_id),
        _encode(operation_type),
        _encode(fingerprint),
        _ms(ttl),
    )


def _build_operation(key: str, reply: list[Any]) -> StoredOperation:
    tenant, user, kind, status, fingerprint, created, expires, fence, lease, *rest = reply
    payload, size, deferred, abandoned = rest
    try:
        return StoredOperation(
            key=key,
            tenant_id=_decode(tenant),
            user_id=_decode(user),
            operation_type=_decode(kind),
            status=_STATUS_OF[status],
            fingerprint=_decode(fingerprint),
            created_ms=created,
            expires_ms=expires or None,
            fencing_token=fence,
            lease_ms=lease,
            payload=payload,
            payload_size=size,
            deferred=deferred == 1,
            abandoned=abandoned == 1,
        )
    except UnicodeDecodeError as error:
        raise CorruptRecordError(RedisStorage.name, key, "a text in it is no UTF-8") from error


def _build_listed(name: bytes, reply: list[Any]) -> StoredOperation | UnreadableRecord | None:
    """
    Return a record of a listing; None for one that is not there any more.
    """
    try:
        key = _decode(name)
        if len(reply) == 1:
            # Otherwise the reply would have been an error, as that of every other verb.
            return UnreadableRecord(key, str(find_damage(reply[0].decode(errors="replace"))))
        return _build_operation(key, reply) if reply else None
    except UnicodeDecodeError:
        key = name.decode("utf-8", "backslashreplace")
        return UnreadableRecord(key, "its key is no UTF-8")
    except CorruptRecordError as error:
        return UnreadableRecord(error.key, error.reason)


def _matches(
    record: StoredOperation, tenant_id: str | None, status: OperationStatus | None
) -> bool:
    return tenant_id in (None, record.tenant_id) and status in (None, record.status)


def _build_background(operation_id: str, reply: list[Any]) -> BackgroundRecord:
    tenant, status, revision, created, updated, expires, data = reply
    try:
        return BackgroundRecord(
            operation_id,
            _decode(tenant),
            _STATUS_OF[status],
            revision,
            created,
            updated,
            expires or None,
            data,
        )
    except (KeyError, UnicodeDecodeError) as error:
        reason = "its status is unknown, or its tenant no UTF-8"
        raise CorruptRecordError(RedisStorage.name, operation_id, reason) from error


def _parse_info(reply: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, separator, value in lines if separator}


def _find_warnings(info: dict[str, str]) -> list[str]:
    warnings = []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        warnings.append(
            f"maxmemory-policy is {policy}, so Redis may drop records that protect against "
            "running twice. Set it to noeviction."
        )
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if limit and used >= limit * _NEARLY_FULL:
        warnings.append(
            f"{used} of {limit} bytes of memory are in use; when it is full, Redis refuses claims."
        )
    if info.get("role") == "slave":
        warnings.append("This is a replica, which cannot be written to. Connect to its master.")
    if info.get("loading", "0") != "0":
        warnings.append("Redis is loading its data and serves nothing meanwhile.")
    return warnings
