from __future__ import annotations

import pytest

from support.resp import (
    ProtocolError,
    Reply,
    ReplyError,
    encode_command,
    is_push,
    parse_command,
    parse_reply,
)


def test_parse_command_returns_what_was_encoded() -> None:
    """A command survives the way to the wire and back, binary arguments included."""
    data = encode_command(["SET", b"\r\n\x00", 1])
    assert parse_command(data) == ([b"SET", b"\r\n\x00", b"1"], len(data))


def test_parse_command_finds_the_second_of_two() -> None:
    """Parsing goes on where the previous command ended."""
    first, second = encode_command(["GET", "a"]), encode_command(["GET", "b"])
    assert parse_command(first + second, len(first)) == ([b"GET", b"b"], len(first + second))


def test_parse_command_waits_for_every_missing_byte() -> None:
    """No beginning of a command is taken for a whole one."""
    data = encode_command(["SET", "key", "value"])
    assert [parse_command(data[:end]) for end in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize("data", [b"PING\r\n", b"*1\r\n:1\r\n", b"*0\r\n", b"*x\r\n"])
def test_parse_command_refuses_other_bytes(data: bytes) -> None:
    """What is no array of bulk strings is refused."""
    with pytest.raises(ProtocolError):
        parse_command(data)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"+OK\r\n", b"OK"),
        (b":-7\r\n", -7),
        (b"$3\r\na\r\n\r\n", b"a\r\n"),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"_\r\n", None),
        (b"#t\r\n", b"t"),
        (b",1.5\r\n", b"1.5"),
        (b"=5\r\ntxt:x\r\n", b"txt:x"),
        (b"*2\r\n:1\r\n*1\r\n+a\r\n", [1, [b"a"]]),
        (b"~1\r\n:1\r\n", [1]),
        (b"%1\r\n+a\r\n:1\r\n", [b"a", 1]),
        (b"|1\r\n+a\r\n:1\r\n+OK\r\n", b"OK"),
    ],
)
def test_parse_reply_frames_every_type(data: bytes, value: Reply) -> None:
    """Each type of both protocols ends where it should, and not before."""
    assert parse_reply(data + b"+next\r\n") == (value, len(data))
    assert [parse_reply(data[:end]) for end in range(len(data))] == [None] * len(data)


@pytest.mark.parametrize("data", [b"-ERR no\r\n", b"!6\r\nERR no\r\n"])
def test_parse_reply_tells_errors(data: bytes) -> None:
    """An error comes as one, whichever protocol it is in."""
    parsed = parse_reply(data)
    assert parsed is not None
    assert isinstance(parsed[0], ReplyError)
    assert str(parsed[0]) == "ERR no"


def test_parse_reply_refuses_other_bytes() -> None:
    """An unknown type is an error, not an endless wait."""
    with pytest.raises(ProtocolError):
        parse_reply(b"?\r\n")


def test_is_push_tells_pushes_from_replies() -> None:
    """Only a push answers no command."""
    assert is_push(b">1\r\n+a\r\n")
    assert not is_push(b"*1\r\n+a\r\n")
