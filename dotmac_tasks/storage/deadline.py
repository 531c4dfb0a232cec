"""
Sockets that keep to a deadline: looking up, connecting, sending and receiving.
"""

from __future__ import annotations

import socket
import threading
from typing import Any, Protocol

from dotmac_tasks.clock import SystemClock

__all__ = ["BoundedSocket", "HasDeadline", "connect_tcp", "connect_unix"]

# The real clock, whatever clock the storage was given: sockets wait in real time.
_monotonic = SystemClock().monotonic
# How much longer than the deadline a socket may wait, to spare a system call for each read.
_SLACK = 0.01


class HasDeadline(Protocol):
    """
    Says when what is under way must have ended, on the monotonic clock.

    Used by one thread at a time.
    """

    deadline: float


class BoundedSocket:
    """
    A socket whose every use ends at its connection's deadline.

    Used by one thread at a time, as its connection is.
    """

    __slots__ = ("_armed", "_connection", "_socket")

    def __init__(self, connected: socket.socket, connection: HasDeadline) -> None:
        self._socket = connected
        self._connection = connection
        self._armed = -1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendall(self, data: bytes) -> None:
        """
        Send all of it, or raise `TimeoutError` at the deadline.
        """
        self._arm()
        self._socket.sendall(data)

    def recv(self, size: int) -> bytes:
        """
        Return what is there next, or raise `TimeoutError` at the deadline.
        """
        self._arm()
        return self._socket.recv(size)

    def recv_into(self, buffer: bytearray) -> int:
        """
        Do as `recv` does, into a buffer; return how much it was.
        """
        self._arm()
        return self._socket.recv_into(buffer)

    def _arm(self) -> None:
        left = _time_left(self._connection.deadline)
        if not left <= self._armed <= left + _SLACK:
            self._socket.settimeout(left)
            self._armed = left


def connect_tcp(host: str, port: int, deadline: float) -> socket.socket:
    """
    Connect to each address of a host in turn, until one accepts.

    Raises:
        OSError: None did, or it took until the deadline.
    """
    trouble: OSError = OSError("the name has no address")
    addresses = _resolve(host, port, deadline)
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        connected = socket.socket(family, kind, protocol)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # One address that answers nothing leaves time for the others.
            connected.settimeout(_time_left(deadline) / (len(addresses) - index))
            connected.connect(address)
            connected.settimeout(_time_left(deadline))  # for a TLS handshake
        except OSError as error:
            connected.close()
            trouble = error
        else:
            return connected
    raise trouble


def connect_unix(path: str, deadline: float) -> socket.socket:
    """
    Connect to a Unix socket.

    Raises:
        OSError: It is not there, or it took until the deadline.
    """
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(_time_left(deadline))
        connected.connect(path)
    except OSError:
        connected.close()
        raise
    return connected


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
            trouble.append(OSError(f"the name cannot be resolved: {error}"))

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
        raise TimeoutError("the name was not resolved in time")
    return list(found)
