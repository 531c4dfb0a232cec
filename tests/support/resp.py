"""
Just enough of the Redis protocol to frame commands and replies.

The server and proxy helpers speak it themselves, so that they work with every redis-py version and
never test that library with itself.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

Argument = str | bytes | float
Reply = bytes | int | list["Reply"] | None

_LINE_TYPES = b"+,(#"
_BULK_TYPES = b"$=!"
_COUNTED_TYPES = b"*~>"
_PAIRED_TYPES = b"%|"


class ReplyError(Exception):
    """
    Redis answered with an error; the text is the server's.

    Immutable, so it may be shared between threads.
    """


class ProtocolError(Exception):
    """
    The bytes are not the Redis protocol.

    Immutable, so it may be shared between threads.
    """


class _IncompleteError(Exception):
    """
    The frame goes on after the bytes received so far; never leaves this module.
    """


def encode_command(args: Sequence[Argument]) -> bytes:
    """
    Return one command as the array of bulk strings that Redis reads.
    """
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def parse_command(data: bytes, start: int = 0) -> tuple[list[bytes], int] | None:
    """
    Return the command at `start` and the offset after it, or None.

    None means that more bytes must come first.

    Raises:
        ProtocolError: It is no array of bulk strings (inline commands are not understood).
    """
    if start >= len(data):
        return None
    if data[start] != ord("*"):
        raise ProtocolError(f"no command starts with {data[start : start + 1]!r}")
    try:
        value, end = _parse(data, start)
    except _IncompleteError:
        return None
    if isinstance(value, list):
        args = [item for item in value if isinstance(item, bytes)]
        if args and len(args) == len(value):
            return args, end
    raise ProtocolError("a command is an array of bulk strings")


def parse_reply(data: bytes, start: int = 0) -> tuple[Reply | ReplyError, int] | None:
    """
    Return the reply at `start` and the offset after it, or None.

    None means that more bytes must come first. Strings, numbers of the newer protocol and errors
    inside arrays come as bytes; maps come flat.

    Raises:
        ProtocolError: The bytes are no reply.
    """
    try:
        value, end = _parse(data, start)
        while data[start] == ord("|"):  # attributes precede the reply that they describe
            start = end
            value, end = _parse(data, start)
    except _IncompleteError:
        return None
    if data[start] in b"-!" and isinstance(value, bytes):
        return ReplyError(value.decode(errors="replace")), end
    return value, end


def call(address: tuple[str, int], *commands: Sequence[Argument], timeout: float = 10.0) -> Reply:
    """
    Run commands on a connection of their own and return the last one's reply.

    Raises:
        ReplyError: Redis refused one; all were sent nevertheless.
        OSError: It is not reachable, or is silent for `timeout` seconds.
    """
    reply: Reply = None
    with socket.create_connection(address, timeout=timeout) as connection:
        connection.sendall(b"".join(map(encode_command, commands)))
        data, at = b"", 0
        for _ in commands:
            while (parsed := parse_reply(data, at)) is None:
                received = connection.recv(65536)
                if not received:
                    raise ConnectionError("Redis closed the connection")
                data += received
            if isinstance(parsed[0], ReplyError):
                raise parsed[0]
            reply, at = parsed[0], parsed[1]
    return reply


def is_push(data: bytes, start: int = 0) -> bool:
    """
    Tell whether the frame at `start` answers no command.
    """
    return data[start : start + 1] == b">"


def _parse(data: bytes, start: int) -> tuple[Reply, int]:
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        raise _IncompleteError
    kind, line, end = data[start], data[start + 1 : line_end], line_end + 2
    if kind in _LINE_TYPES or kind == ord("-"):
        return line, end
    if kind == ord("_"):
        return None, end
    if kind not in b":" + _BULK_TYPES + _COUNTED_TYPES + _PAIRED_TYPES:
        raise ProtocolError(f"no frame starts with {data[start : start + 1]!r}")
    try:
        number = int(line)
    except ValueError:
        raise ProtocolError(f"{line!r} is no number") from None
    if kind == ord(":"):
        return number, end
    if number < 0:
        return None, end
    if kind in _BULK_TYPES:
        return _parse_bulk(data, end, number)
    return _parse_items(data, end, number * 2 if kind in _PAIRED_TYPES else number)


def _parse_bulk(data: bytes, start: int, length: int) -> tuple[Reply, int]:
    end = start + length
    if len(data) < end + 2:
        raise _IncompleteError
    return data[start:end], end + 2


def _parse_items(data: bytes, start: int, count: int) -> tuple[Reply, int]:
    items: list[Reply] = []
    for _ in range(count):
        item, start = _parse(data, start)
        items.append(item)
    return items, start
