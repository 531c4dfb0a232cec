"""
Connections to one Redis: bounded in time, shared by threads, safe over a fork.

redis-py speaks the protocol and shakes hands. Its clients and pools are not
used, because a call through them has no bound as a whole: every attempt, every
address and every read has a timeout of its own.
"""

from __future__ import annotations

import inspect
import re
import socket
from contextlib import suppress
from typing import Any, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

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
from dotmac_tasks.storage.deadline import BoundedSocket, connect_tcp, connect_unix
from dotmac_tasks.storage.pool import NoConnectionFreeError, Pool

__all__ = ["Channel", "UnknownScriptError", "create_channel", "find_damage"]

Reply: TypeAlias = Any
"""
What Redis answered: bytes, int, None, or a list of such.
"""

_BACKEND = "redis"
# The real clock, as that of the sockets.
_monotonic = SystemClock().monotonic
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
# What stays so until somebody changes the settings, or the rights of the user.
_MISCONFIGURED = re.compile(r"\b(NOPERM|ACL failure|The user executing the script|DB index)\b")
_CHECK_SETTINGS = (
    "Check the user, the password and the number of the database in STORAGE, and what this user "
    "may do there."
)
# What may pass by itself and mostly does not.
_ADVICE: dict[type[Exception], str] = {
    OutOfMemoryError: "Try again later; raise its maxmemory or keep outcomes for a shorter time.",
    ReadOnlyError: "Try again later; unless it becomes the master, name its master in STORAGE.",
}
_CORRUPT = re.compile(r"CORRUPT\[(.*)\]", re.DOTALL)


class _Bounded:
    """
    A redis-py connection that keeps to `deadline`; used by one thread at a time.
    """

    deadline: float

    def _connect(self) -> BoundedSocket:
        return BoundedSocket(super()._connect(), self)  # type: ignore[misc]  # untyped base


class _Tcp(Connection):
    """
    Looks the host up and connects within the deadline; used by one thread at a time.
    """

    deadline: float

    def _connect(self) -> socket.socket:
        return connect_tcp(self.host, self.port, self.deadline)


class _Unix(UnixDomainSocketConnection):
    """
    Connects within the deadline; used by one thread at a time.
    """

    deadline: float

    def _connect(self) -> socket.socket:
        return connect_unix(self.path, self.deadline)


class _TcpConnection(_Bounded, _Tcp):  # type: ignore[misc]  # untyped base
    """
    Over TCP; used by one thread at a time.
    """


class _TlsConnection(_Bounded, SSLConnection, _Tcp):  # type: ignore[misc]  # untyped base
    """
    Over TLS; used by one thread at a time.
    """


class _UnixConnection(_Bounded, _Unix):  # type: ignore[misc]  # untyped base
    """
    Over a Unix socket; used by one thread at a time.
    """


_OURS = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class UnknownScriptError(Exception):
    """
    The server does not know the script of a command; its cause is redis-py's.

    Attributes:
        sent: Whether an earlier sending may have taken effect, before the server
            forgot the script.
    """

    def __init__(self, *, sent: bool) -> None:
        super().__init__()
        self.sent = sent


class _FailedError(Exception):
    """
    A command got no reply that is one; its cause is redis-py's.

    Never leaves this module.

    Attributes:
        sent: Whether the command may have taken effect, at the first or the last
            sending.
    """

    def __init__(self, *, sent: bool = False) -> None:
        super().__init__()
        self.sent = sent


class _BrokenError(_FailedError):
    """
    The server is not reachable or the connection broke.
    """


class _RefusedError(_FailedError):
    """
    The server does not let the caller in.
    """


class _AnsweredError(_FailedError):
    """
    The server answered with an error; the connection is intact.
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
        self._pool = Pool(max_connections)
        reset_after_fork(self)

    def after_fork(self) -> None:
        """
        Leave the parent's connections to the parent.
        """
        # Letting go of them closes the child's copies without a word to the server.
        self._pool = Pool(self._max_connections)
        self.breaker.reset()

    def get_deadline(self) -> float:
        """
        Return when a call that starts now must have ended.
        """
        return _monotonic() + self._timeout

    def call(self, command: bytes, about: str, deadline: float, *, sent: bool = False) -> Reply:
        """
        Send a packed command and return the reply.

        Args:
            command: In the protocol's form.
            about: The record that it is about, for errors.
            deadline: When it must have ended; from `get_deadline`.
            sent: Whether another form of it was sent before and may have taken effect.

        Raises:
            UnknownScriptError: Redis does not know the script.
            StorageError: As the contract of storages says.
        """
        if not self.breaker.lets_through():
            reason = f"{self.target} failed repeatedly, so it is left alone for a moment"
            raise _to_storage_error(reason, sent=sent)
        return self.probe(command, about, deadline, sent=sent)

    def probe(self, command: bytes, about: str, deadline: float, *, sent: bool = False) -> Reply:
        """
        Do as `call` does, whatever the breaker says; it learns of the outcome.
        """
        breaker = self.breaker
        try:
            reply = self._exchange(command, deadline)
        except _AnsweredError as error:
            breaker.record_success()
            raise self._translate(error.__cause__, about, sent or error.sent) from error.__cause__
        except _FailedError as error:
            if isinstance(error, _RefusedError):
                # An answer, if not a welcome one: it came at once, so nobody waits for the next.
                breaker.record_success()
            else:
                breaker.record_failure()
            raise self._to_error(error.__cause__, sent or error.sent) from error.__cause__
        except NoConnectionFreeError as error:
            breaker.record_nothing()
            reason = f"all {self._max_connections} connections were in use; raise max_connections"
            raise _to_storage_error(reason, sent=sent) from error
        except BaseException:
            breaker.record_nothing()
            raise
        breaker.record_success()
        return reply

    def close(self) -> None:
        """
        Close all connections; those in use when their call ends.
        """
        pool, self._pool = self._pool, Pool(self._max_connections)
        pool.drop_idle(close=True)

    def _exchange(self, command: bytes, deadline: float) -> Reply:
        pool = self._pool
        place = pool.take(deadline)
        connection = place.connection
        intact = sent = False
        try:
            if connection is not None:
                try:
                    reply = _ask(connection, command, deadline)
                    intact = True
                    return reply
                except _BrokenError as error:
                    if isinstance(error.__cause__, redis.TimeoutError):
                        raise
                    # Whatever comes of the second attempt, the first may have taken effect.
                    sent = error.sent
                    # It was idle and broke at once, so the others that are idle will have, too.
                    pool.drop_idle()
            connection = self._open(deadline)
            reply = _ask(connection, command, deadline)
            intact = True
            return reply
        except _FailedError as error:
            intact = isinstance(error, _AnsweredError)
            error.sent = error.sent or sent
            raise
        finally:
            if intact:
                place.connection = connection
                pool.give_back(place)
            else:
                pool.forget(place)
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
            raise _BrokenError from error
        return connection

    def _to_error(self, error: BaseException | None, sent: bool) -> StorageError:
        reason = self._describe(error)
        if not sent and _is_misconfigured(error):
            return StorageUnavailableError(_BACKEND, reason, advice=_CHECK_SETTINGS)
        for kind, advice in _ADVICE.items():
            if not sent and isinstance(error, kind):
                return StorageUnavailableError(_BACKEND, reason, advice=advice)
        return _to_storage_error(reason, sent=sent)

    def _describe(self, error: BaseException | None) -> str:
        if isinstance(error, redis.TimeoutError):
            return f"{self.target} did not answer within {self._timeout:g} s"
        # What redis-py makes of an error of the system repeats the address.
        cause = error.__context__ if isinstance(error, redis.ConnectionError) else None
        shown = cause if isinstance(cause, OSError) else error
        return f"{self.target}: {str(shown).rstrip('.')}"

    def _translate(self, error: BaseException | None, about: str, sent: bool) -> Exception:
        if isinstance(error, NoScriptError):
            return UnknownScriptError(sent=sent)
        text = str(error)
        damage = find_damage(text)
        if damage is not None:
            return CorruptRecordError(_BACKEND, about, damage)
        if sent or isinstance(error, _REFUSALS) or _REFUSAL.search(text):
            return self._to_error(error, sent)
        return StorageError(_BACKEND, f"The redis storage failed: {self._describe(error)}.")


def find_damage(text: str) -> str | None:
    """
    Return why a record cannot be read by what Redis says, or None where that is something else.
    """
    corrupt = _CORRUPT.search(text)
    if corrupt is not None:
        return corrupt.group(1)
    return "a value of another type is stored there" if "WRONGTYPE" in text else None


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
        settings = _read_url(_DEFAULT_URL if redis_url is None else redis_url)
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
        unknown = _find_unknown(connection_class, settings)
        if unknown is not None:
            raise ConfigurationError(unknown, _UNKNOWN_OPTION) from error
        raise ConfigurationError("redis_url", f"has options that do not fit: {error}") from error
    return Channel(
        connection_class,
        settings,
        timeout=timeout,
        max_connections=max_connections,
        breaker=breaker,
    )


_DEFAULT_URL = "redis://localhost:6379/0"
_DATABASE = re.compile(r"/?[0-9]*/?")
_NO_URL = f"is no URL such as {_DEFAULT_URL}, with redis://, rediss:// or unix://."
_ENCODE = (
    "If the user or the password holds one of / ? # @ : % [ ], write it percent-encoded, such "
    "as %2F for a slash."
)
_UNKNOWN_OPTION = (
    "is no option of RedisStorage. Choose from redis_url, prefix, timeout, max_connections, "
    "breaker_threshold, breaker_cooldown, and what redis-py's connections take, such as "
    "ssl_ca_certs."
)
# What redis-py's pools take, or hand to connections for their own ends.
_POOL_OPTIONS = (
    "max_connections",
    "timeout",
    "event_dispatcher",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "oss_cluster_maint_notifications_handler",
)


def _read_url(url: str) -> dict[str, Any]:
    """
    Return what a URL says; no message repeats any of it, since a wrong one may say a secret.
    """
    if not isinstance(url, str):
        raise ConfigurationError("redis_url", f"must be text, not a {type(url).__name__}.")
    try:
        _check_place(urlsplit(url))
        return dict(parse_url(url))  # type: ignore[no-untyped-call]  # redis-py
    except ConfigurationError:
        raise
    except ValueError as error:
        # Of an option redis-py repeats the name only.
        known = str(error).startswith("Invalid value for ")
        reason = f"has an option that cannot be read: {error}" if known else _NO_URL
        # The cause would be shown below it, and may repeat a part of the password.
        raise ConfigurationError("redis_url", reason) from None


def _check_place(parts: SplitResult) -> None:
    """
    Refuse a port and a database that redis-py would not understand, or pass over.
    """
    if parts.scheme == "unix":
        return
    try:
        is_port = parts.port != 0
    except ValueError:
        is_port = False
    if not is_port:
        raise ConfigurationError(
            "redis_url", f"has a port that is no number from 1 to 65535. {_ENCODE}"
        )
    if not _DATABASE.fullmatch(unquote(parts.path)):
        raise ConfigurationError(
            "redis_url",
            f"has a database that is no number, behind the last slash, as in {_DEFAULT_URL}. "
            f"{_ENCODE}",
        )


def _find_unknown(connection_class: Any, settings: dict[str, Any]) -> str | None:
    """
    Return the first setting that no constructor of this class takes.
    """
    known = {
        name
        for base in connection_class.__mro__
        if "__init__" in vars(base)
        for name in inspect.signature(base.__init__).parameters
    }
    return next((name for name in settings if name not in known), None)


def _is_misconfigured(error: BaseException | None) -> bool:
    """
    Tell whether trying again is of no use before somebody has changed something.
    """
    refused = isinstance(error, AuthenticationError | NoPermissionError)
    return refused or _MISCONFIGURED.search(str(error)) is not None


def _to_storage_error(reason: str, *, sent: bool) -> StorageError:
    """
    Return the error that says whether something may have been changed.
    """
    return (StorageTimeoutError if sent else StorageUnavailableError)(_BACKEND, reason)


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
        _AnsweredError: The server answered with an error; the connection is intact.
        _BrokenError: It is not.
        _RefusedError: It is not, either: the server knows the caller no more.
    """
    connection.deadline = deadline
    try:
        connection.send_packed_command((command,), check_health=False)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        # The server runs no command of which it got only a part.
        raise _BrokenError from error
    try:
        return connection.read_response()
    except AuthenticationError as error:
        raise _RefusedError from error
    except BusyLoadingError as error:
        raise _BrokenError from error
    except ResponseError as error:
        raise _AnsweredError from error
    except (redis.ConnectionError, redis.TimeoutError, InvalidResponse) as error:
        # The one refusal that redis-py takes for a broken connection.
        raise _BrokenError(sent="max number of clients" not in str(error)) from error
