"""
Connections to one Redis: bounded in time, shared by threads, safe over a fork.

redis-py speaks the protocol and shakes hands. Its clients and pools are not
used, because a call through them has no bound as a whole: every attempt, every
address and every read has a timeout of its own.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from typing import Any, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.errors import (
    ConfigurationError,
    CorruptRecordError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from dotmac_tasks.fork import reset_after_fork
from dotmac_tasks.storage.breaker import CircuitBreaker

__all__ = ["Channel", "create_channel"]

Reply: TypeAlias = Any
"""
What Redis answered: bytes, int, None, or a list of such.
"""

_BACKEND = "redis"
# The real clock, whatever clock the storage was given: sockets wait in real time.
_monotonic = SystemClock().monotonic
# How much longer than the deadline a socket may wait, to spare a system call for each read.
_SLACK = 0.01
# What a server says that works but cannot serve; redis-py 5 has no class for each, and Redis 6
# wraps what a script met into another error.
_REFUSAL = re.compile(
    r"\b(READONLY|OOM|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|LOADING|BUSY|NOPERM"
    r"|ACL failure|The user executing the script)\b"
)
_REFUSALS = (
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
_CORRUPT = re.compile(r"CORRUPT\[(.*)\]", re.DOTALL)


class _BoundedSocket:
    """
    A socket whose every use ends at its connection's deadline.

    Used by one thread at a time, as its connection is.
    """

    __slots__ = ("_armed", "_connection", "_socket")

    def __init__(self, connected: socket.socket, connection: _Bounded) -> None:
        self._socket = connected
        self._connection = connection
        self._armed = -1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendall(self, data: bytes) -> None:
        self._arm()
        self._socket.sendall(data)

    def recv(self, size: int) -> bytes:
        self._arm()
        return self._socket.recv(size)

    def recv_into(self, buffer: bytearray) -> int:
        self._arm()
        return self._socket.recv_into(buffer)

    def _arm(self) -> None:
        left = _time_left(self._connection.deadline)
        if not left <= self._armed <= left + _SLACK:
            self._socket.settimeout(left)
            self._armed = left


class _Bounded:
    """
    A redis-py connection that keeps to `deadline`; used by one thread at a time.
    """

    deadline: float

    def _connect(self) -> _BoundedSocket:
        return _BoundedSocket(super()._connect(), self)  # type: ignore[misc]


class _Tcp(Connection):
    """
    Connects to each address of a host in turn, together within the deadline.

    Used by one thread at a time.
    """

    deadline: float

    def _connect(self) -> socket.socket:
        trouble: OSError = OSError("the name has no address")
        addresses = _resolve(self.host, self.port, self.deadline)
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            connected = socket.socket(family, kind, protocol)
            try:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                # One address that answers nothing leaves time for the others.
                connected.settimeout(_time_left(self.deadline) / (len(addresses) - index))
                connected.connect(address)
                connected.settimeout(_time_left(self.deadline))  # for a TLS handshake
            except OSError as error:
                connected.close()
                trouble = error
            else:
                return connected
        raise trouble


class _TcpConnection(_Bounded, _Tcp):  # type: ignore[misc]
    """
    Over TCP; used by one thread at a time.
    """


class _TlsConnection(_Bounded, SSLConnection, _Tcp):  # type: ignore[misc]
    """
    Over TLS; used by one thread at a time.
    """


class _UnixConnection(_Bounded, UnixDomainSocketConnection):
    """
    Over a Unix socket; used by one thread at a time.
    """

    def _connect(self) -> _BoundedSocket:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(_time_left(self.deadline))
            connected.connect(self.path)
        except OSError:
            connected.close()
            raise
        return _BoundedSocket(connected, self)


_OURS = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


def _time_left(deadline: float) -> float:
    left = deadline - _monotonic()
    if left <= 0:
        raise TimeoutError("the time for this call is over")
    return left


def _resolve(host: str, port: int, deadline: float) -> list[tuple[Any, ...]]:
    """
    Look up a host's addresses within the time that is left.

    The system's look-up cannot be interrupted, so it runs in a thread, which is
    left behind where it takes too long. Addresses in figures need no look-up.
    """
    found: list[tuple[Any, ...]] = []
    trouble: list[OSError] = []

    def look_up(flags: int = 0) -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))
        except (OSError, UnicodeError) as error:  # a name that cannot be one is a UnicodeError
            trouble.append(OSError(f"{host} cannot be resolved: {error}"))

    look_up(socket.AI_NUMERICHOST)
    if not found:
        trouble.clear()
        thread = threading.Thread(target=look_up, name="dotmac-tasks.resolver", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is about to exit
            look_up()
        else:
            thread.join(_time_left(deadline))
    if trouble:
        raise trouble[0]
    if not found:
        raise TimeoutError(f"{host} was not resolved in time")
    return list(found)


class _Pool:
    """
    Idle connections, the last used first, and how many there may be.

    Instances may be shared between threads: `_freed` and its lock guard `_idle`,
    `_count` and `_closed`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._freed = threading.Condition(threading.Lock())
        self._idle: list[Any] = []
        self._count = 0
        self._closed = False

    def take(self, deadline: float) -> Any | None:
        """
        Return an idle connection, or None for leave to open one.

        Raises:
            StorageUnavailableError: All are in use until the deadline.
        """
        with self._freed:
            while not self._idle:
                if self._count < self._limit:
                    self._count += 1
                    return None
                if not self._freed.wait(max(0.0, deadline - _monotonic())):
                    raise StorageUnavailableError(
                        _BACKEND,
                        f"all {self._limit} connections were in use; raise max_connections",
                    )
            return self._idle.pop()

    def give_back(self, connection: Any) -> None:
        with self._freed:
            if not self._closed:
                self._idle.append(connection)
                self._freed.notify()
                return
        connection.disconnect()

    def forget(self) -> None:
        """
        Note that a connection that was taken is gone.
        """
        with self._freed:
            self._count -= 1
            self._freed.notify()

    def drop_idle(self, *, close: bool = False) -> None:
        """
        Close the idle connections; with `close` later ones too, when given back.
        """
        with self._freed:
            self._closed = self._closed or close
            idle, self._idle = self._idle, []
            self._count -= len(idle)
            self._freed.notify_all()
        for connection in idle:
            connection.disconnect()


class _BrokenError(Exception):
    """
    The server is not reachable or the connection broke; its cause is redis-py's.

    Never leaves this module.

    Attributes:
        sent: Whether the command may have reached the server.
    """

    def __init__(self, *, sent: bool) -> None:
        super().__init__()
        self.sent = sent


class _RefusedError(Exception):
    """
    The server answered the handshake, with a refusal; its cause is redis-py's.

    Never leaves this module.
    """


class Channel:
    """
    Sends commands to one Redis and returns what it answers, or raises.

    A call ends within `timeout` seconds in all. It is sent a second time, on a
    fresh connection, where the first one had been idle and turned out to be
    broken; so every command must bear being sent again.

    Instances may be shared between threads; in the child of a fork they start
    without connections and leave the parent's alone.

    Args:
        connection_class: How to connect.
        options: Arguments of `connection_class`.
        timeout: Seconds that a call may take in all.
        max_connections: How many calls may be under way at once; others wait.
        breaker: Refuses calls while the server keeps failing.
    """

    def __init__(
        self,
        connection_class: Any,
        options: dict[str, Any],
        *,
        timeout: float,
        max_connections: int,
        breaker: CircuitBreaker,
    ) -> None:
        self.breaker = breaker
        self.target = _name_target(options)
        self._connection_class = connection_class
        self._options = options
        self._timeout = timeout
        self._max_connections = max_connections
        self._pool = _Pool(max_connections)
        reset_after_fork(self)

    def after_fork(self) -> None:
        """
        Leave the parent's connections to the parent.
        """
        # Letting go of them closes the child's copies without a word to the server.
        self._pool = _Pool(self._max_connections)
        self.breaker.reset()

    def get_deadline(self) -> float:
        """
        Return when a call that starts now must have ended.
        """
        return _monotonic() + self._timeout

    def call(self, command: bytes, about: str, deadline: float) -> Reply:
        """
        Send a packed command and return the reply.

        Args:
            command: In the protocol's form.
            about: The record that it is about, for errors.
            deadline: When it must have ended; from `get_deadline`.

        Raises:
            NoScriptError: Redis does not know the script.
            StorageError: As the contract of storages says.
        """
        if not self.breaker.lets_through():
            raise StorageUnavailableError(
                _BACKEND, f"{self.target} failed repeatedly, so it is left alone for a moment"
            )
        return self.probe(command, about, deadline)

    def probe(self, command: bytes, about: str, deadline: float) -> Reply:
        """
        Do as `call` does, whatever the breaker says; it learns of the outcome.
        """
        breaker = self.breaker
        try:
            reply = self._exchange(command, deadline)
        except _BrokenError as error:
            breaker.record_failure()
            reason = self._describe(error.__cause__)
            if error.sent:
                raise StorageTimeoutError(_BACKEND, reason) from error.__cause__
            raise StorageUnavailableError(_BACKEND, reason) from error.__cause__
        except _RefusedError as error:
            # An answer, if not a welcome one: it came at once, so nobody waits for the next.
            breaker.record_success()
            reason = self._describe(error.__cause__)
            raise StorageUnavailableError(_BACKEND, reason) from error.__cause__
        except ResponseError as error:
            breaker.record_success()
            if isinstance(error, NoScriptError):
                raise
            raise self._translate(error, about) from error
        except BaseException:
            breaker.record_nothing()
            raise
        breaker.record_success()
        return reply

    def close(self) -> None:
        """
        Close all connections; those in use when their call ends.
        """
        pool, self._pool = self._pool, _Pool(self._max_connections)
        pool.drop_idle(close=True)

    def _exchange(self, command: bytes, deadline: float) -> Reply:
        pool = self._pool
        connection = pool.take(deadline)
        intact = False
        try:
            if connection is not None:
                try:
                    reply = _ask(connection, command, deadline)
                    intact = True
                    return reply
                except _BrokenError as error:
                    if isinstance(error.__cause__, redis.TimeoutError):
                        raise
                    # It was idle and broke at once, so the others that are idle will have, too.
                    pool.drop_idle()
            connection = self._open(deadline)
            reply = _ask(connection, command, deadline)
            intact = True
            return reply
        except ResponseError:
            intact = True
            raise
        finally:
            if intact:
                pool.give_back(connection)
            else:
                pool.forget()
                if connection is not None:
                    connection.disconnect()

    def _open(self, deadline: float) -> Any:
        connection = self._connection_class(**self._options)
        # Two commands of the handshake that tell the server nothing it needs; the names differ
        # from version to version of redis-py.
        connection.lib_name = connection.lib_version = connection.driver_info = None
        connection.deadline = deadline
        try:
            connection.connect()
            _greet(connection)
        except (AuthenticationError, ResponseError) as error:
            connection.disconnect()
            raise _RefusedError from error
        except (RedisError, ValueError) as error:  # ValueError: TLS options that contradict
            raise _BrokenError(sent=False) from error
        return connection

    def _describe(self, error: BaseException | None) -> str:
        if isinstance(error, redis.TimeoutError):
            return f"{self.target} did not answer within {self._timeout:g} s"
        return f"{self.target}: {str(error).rstrip('.')}"

    def _translate(self, error: ResponseError, about: str) -> StorageError:
        text = str(error)
        corrupt = _CORRUPT.search(text)
        if corrupt is not None:
            return CorruptRecordError(_BACKEND, about, corrupt.group(1))
        if "WRONGTYPE" in text:
            return CorruptRecordError(_BACKEND, about, "a value of another type is stored there")
        if isinstance(error, _REFUSALS) or _REFUSAL.search(text):
            return StorageUnavailableError(_BACKEND, self._describe(error))
        return StorageError(_BACKEND, f"The redis storage failed: {self._describe(error)}.")


def create_channel(
    redis_url: str | None,
    client: redis.Redis | None,
    *,
    timeout: float,
    max_connections: int,
    breaker: CircuitBreaker,
    **options: Any,
) -> Channel:
    """
    Prepare connections to what a URL names, or to where a client connects.

    Opens none. Of a client only its settings are used, never its connections.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://``.
        client: Used where there is no URL.
        timeout: Seconds that a call may take in all.
        max_connections: How many calls may be under way at once.
        breaker: Refuses calls while the server keeps failing.
        options: Arguments of redis-py's connections, such as ``ssl_ca_certs``.

    Raises:
        ConfigurationError: They cannot work; shows no secret.
    """
    if client is not None:
        connection_class: Any = client.connection_pool.connection_class
        settings = dict(client.connection_pool.connection_kwargs)
    else:
        try:
            settings = dict(parse_url(redis_url or _DEFAULT_URL))  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigurationError(
                "redis_url", "is not a redis://, rediss:// or unix:// URL."
            ) from error
        connection_class = settings.pop("connection_class", Connection)
    for name in _POOL_OPTIONS:
        settings.pop(name, None)
    settings.update(options)
    settings.update(
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry_on_timeout=False,
        retry_on_error=[],
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        decode_responses=False,
        protocol=2,
    )
    connection_class = _OURS.get(connection_class, connection_class)
    try:
        connection_class(**settings)
    except (RedisError, TypeError, ValueError) as error:
        raise ConfigurationError("redis_url", f"has options that do not fit: {error}") from error
    return Channel(
        connection_class,
        settings,
        timeout=timeout,
        max_connections=max_connections,
        breaker=breaker,
    )


_DEFAULT_URL = "redis://localhost:6379/0"
# What redis-py's pools take, or hand to connections for their own ends.
_POOL_OPTIONS = (
    "max_connections",
    "timeout",
    "event_dispatcher",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler",
)


def _name_target(options: dict[str, Any]) -> str:
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def _greet(connection: Any) -> None:
    """
    Make sure that somebody answers before anything is sent that matters.

    A balancer without a server behind it, or one that hangs, accepts connections
    too; without this it could not be told whether the first command took effect.
    """
    connection.send_command("PING", check_health=False)
    with suppress(NoPermissionError):  # that is an answer, too
        connection.read_response()


def _ask(connection: Any, command: bytes, deadline: float) -> Reply:
    """
    Send a command and read the reply.

    redis-py disconnects whenever it cannot tell what comes next.

    Raises:
        ResponseError: The server answered with an error; the connection is intact.
        _BrokenError: It is not.
        _RefusedError: It is not, either: the server knows the caller no more.
    """
    connection.deadline = deadline
    try:
        connection.send_packed_command((command,), check_health=False)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        # The server runs no command of which it got only a part.
        raise _BrokenError(sent=False) from error
    try:
        return connection.read_response()
    except AuthenticationError as error:
        raise _RefusedError from error
    except BusyLoadingError as error:
        raise _BrokenError(sent=False) from error
    except (redis.ConnectionError, redis.TimeoutError, InvalidResponse) as error:
        # The one refusal that redis-py takes for a broken connection.
        raise _BrokenError(sent="max number of clients" not in str(error)) from error
