"""
A proxy in front of Redis that counts what passes and breaks it on request.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from dataclasses import replace
from types import TracebackType
from typing import Self

from support.proxy_controls import (
    DisconnectError,
    FaultKind,
    ProxyControls,
    is_handshake,
    label_of,
)
from support.resp import ProtocolError, is_push, parse_command, parse_reply

_CHUNK = 65536
_CLOSE_TIMEOUT = 10.0


class RedisProxy(ProxyControls):
    """
    A TCP proxy in front of one Redis; a context manager, closed by `close` for good.

    Every connection has a thread, which hands over what the client sent in one go, awaits all the
    replies, and hands them back; subscriptions and MONITOR do not work through it. `host`, `port`
    and `url` are where it listens.

    Instances may be shared between threads: `_lock` guards `_sockets` and `_upstream` too; no
    socket is read or written under it.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        super().__init__()
        self._upstream = (host, port)
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.host: str
        self.port: int
        self.host, self.port = self._listener.getsockname()
        self._acceptor = threading.Thread(
            target=self._accept, name="redis-proxy.accept", daemon=True
        )
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def url(self, db: int = 0) -> str:
        """
        Return the URL of Redis through this proxy.
        """
        return f"redis://{self.host}:{self.port}/{db}"

    @property
    def open_count(self) -> int:
        """
        How many sockets are open, those to Redis included.
        """
        with self._lock:
            return len(self._sockets)

    def redirect(self, port: int) -> None:
        """
        Stand before the Redis on another port from now on; connections to the old one are cut.
        """
        with self._lock:
            self._upstream = (self._upstream[0], port)
        self.cut()

    def cut(self) -> None:
        """
        Close every connection there is.
        """
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            _shut(each)

    def close(self) -> None:
        """
        Stop listening and close every connection.
        """
        self._set(_closed=True)
        _shut(self._listener)
        self._listener.close()
        self._acceptor.join(_CLOSE_TIMEOUT)
        self.cut()
        with self._lock:
            self._changed.wait_for(lambda: not self._sockets, _CLOSE_TIMEOUT)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                if self._adopt(client, new=True):
                    threading.Thread(
                        target=self._serve,
                        args=(client,),
                        name="redis-proxy.connection",
                        daemon=True,
                    ).start()
                else:
                    client.close()

    def _adopt(self, each: socket.socket, *, new: bool = False) -> bool:
        with self._lock:
            if self._closed or (new and self._refusing):
                return False
            self._sockets.add(each)
            if new:
                self._counts = replace(self._counts, connections=self._counts.connections + 1)
            return True

    def _release(self, each: socket.socket) -> None:
        # Closed before it is forgotten: once `close` finds none left, none is open.
        each.close()
        with self._lock:
            self._sockets.discard(each)
            self._changed.notify_all()

    def _serve(self, client: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError, ProtocolError, DisconnectError):
                server = socket.create_connection(self._upstream)
                try:
                    if self._adopt(server):
                        _Exchange(self, client, server).run()
                finally:
                    self._release(server)
        finally:
            self._release(client)


class _Exchange:
    """
    One client's connection and the one to Redis that it stands for.

    Used by its own thread only.
    """

    def __init__(
        self, controls: ProxyControls, client: socket.socket, server: socket.socket
    ) -> None:
        self._controls = controls
        self._client = client
        self._server = server
        self._received = b""
        self._is_counted = False
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        """
        Answer burst after burst until either side is gone.

        Raises:
            DisconnectError: One side closed, or a fault says so.
            OSError: One side was cut.
            ProtocolError: One side does not speak Redis.
        """
        while True:
            self._await_client()
            self._answer(self._read_burst())

    def _await_client(self) -> None:
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        poll.register(self._server, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._server.fileno() in ready:  # Redis went away, and the client must see it
                self._received += _receive(self._server)
            if self._client.fileno() in ready:
                return

    def _read_burst(self) -> list[tuple[str, bytes]]:
        data, at = b"", 0
        burst: list[tuple[str, bytes]] = []
        while at < len(data) or not burst or self._has_more():
            data += _receive(self._client)
            while (parsed := parse_command(data, at)) is not None:
                args, end = parsed
                burst.append((label_of(args), data[at:end]))
                at = end
        return burst

    def _answer(self, burst: list[tuple[str, bytes]]) -> None:
        self._controls.note_commands([label for label, _ in burst])
        self._controls.pass_hang()
        to_forward: list[bytes] = []
        replies: list[bytes | None] = []  # None: Redis's own
        end = None
        for label, command in burst:
            fault = self._controls.take_fault(label) if end is None else None
            if fault is not None and fault.kind is FaultKind.REPLACE:
                replies.append(fault.reply)
                continue
            if fault is not None:
                end = len(replies)
                if fault.kind is FaultKind.DROP:
                    break
            to_forward.append(command)
            replies.append(None)
        self._server.sendall(b"".join(to_forward))
        answers = [self._read_reply() if reply is None else reply for reply in replies][:end]
        self._controls.pass_delay()
        self._controls.pass_hang()
        labels = [label for label, _ in burst[: len(answers)]]
        self._count(has_commands=not all(map(is_handshake, labels)))
        self._deliver(b"".join(answers))
        if end is not None:
            raise DisconnectError

    def _count(self, *, has_commands: bool) -> None:
        # A client that already sent more before it saw these replies is still on the same trip.
        if has_commands and not self._is_counted:
            self._controls.note_round_trip()
            self._is_counted = True
        if not self._has_more():
            self._is_counted = False

    def _read_reply(self) -> bytes:
        at = 0
        while True:
            parsed = parse_reply(self._received, at)
            if parsed is None:
                self._received += _receive(self._server)
                continue
            was_push = is_push(self._received, at)
            at = parsed[1]
            if not was_push:
                reply, self._received = self._received[:at], self._received[at:]
                return reply

    def _deliver(self, data: bytes) -> None:
        at = 0
        while at < len(data) and self._controls.pass_drip():
            self._client.sendall(data[at : at + 1])
            at += 1
        self._client.sendall(data[at:])

    def _has_more(self) -> bool:
        try:
            flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
            return self._client.recv(1, flags) != b""
        except BlockingIOError:
            return False


def _receive(each: socket.socket) -> bytes:
    data = each.recv(_CHUNK)
    if not data:
        raise DisconnectError
    return data


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is gone already
        each.shutdown(socket.SHUT_RDWR)
