from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from support.concurrency import run_together, wait_until
from support.proxy import RedisProxy
from support.proxy_controls import Counts
from support.redis_server import RedisServer, find_redis_server
from support.resp import Argument, Reply, ReplyError, call, encode_command, parse_reply

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(find_redis_server() is None, reason="redis-server is not installed"),
]

OOM = b"-OOM command not allowed\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[RedisProxy]:
    server.command("DEL", "key")
    with RedisProxy(server.port) as running:
        yield running


def send(proxy: RedisProxy, *commands: tuple[Argument, ...], timeout: float = 10.0) -> Reply:
    """Send commands in one burst on a connection of their own; return the last reply."""
    return call((proxy.host, proxy.port), *commands, timeout=timeout)


def read_replies(connection: socket.socket, n: int) -> list[object]:
    """Read `n` replies."""
    data, at, replies = b"", 0, list[object]()
    while len(replies) < n:
        while (parsed := parse_reply(data, at)) is None:
            received = connection.recv(65536)
            assert received, "the connection was closed"
            data += received
        replies.append(parsed[0])
        at = parsed[1]
    return replies


def test_proxy_passes_commands_and_errors_on(proxy: RedisProxy) -> None:
    """A client sees through the proxy what it would see without."""
    assert send(proxy, ("SET", "key", b"\r\n"), ("GET", "key")) == b"\r\n"
    with pytest.raises(ReplyError, match="ERR"):
        send(proxy, ("NONSENSE",))


def test_counts_tell_commands_from_round_trips(proxy: RedisProxy) -> None:
    """A pipeline is several commands and one round trip."""
    send(proxy, ("SET", "key", "1"))
    send(proxy, ("GET", "key"), ("GET", "key"), ("GET", "key"))
    assert proxy.counts == Counts(commands=4, round_trips=2, connections=2)
    assert proxy.labels == ("SET", "GET", "GET", "GET")


def test_counts_keep_the_handshake_apart(proxy: RedisProxy) -> None:
    """What clients send on their own account is no command and no round trip."""
    send(proxy, ("hello", 3), ("CLIENT", "SETNAME", "x"), ("SELECT", 0), ("PING",))
    assert proxy.counts == Counts(handshake=4, connections=1)
    assert proxy.labels == ("HELLO", "CLIENT SETNAME", "SELECT", "PING")


def test_counts_take_one_large_pipeline_for_one_round_trip(proxy: RedisProxy) -> None:
    """A burst that arrives in many pieces is counted once."""
    commands = [("SET", "key", b"x" * 300_000)] * 8
    assert send(proxy, *commands) == b"OK"
    assert proxy.counts == Counts(commands=8, round_trips=1, connections=1)


def test_counts_take_successive_commands_for_round_trips(proxy: RedisProxy) -> None:
    """Commands that each await a reply are a round trip each, on one connection."""
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as connection:
        for _ in range(3):
            connection.sendall(encode_command(["GET", "key"]))
            assert read_replies(connection, 1) == [None]
    assert proxy.counts == Counts(commands=3, round_trips=3, connections=1)


def test_counts_are_exact_over_threads(proxy: RedisProxy) -> None:
    """Connections that talk at once lose no count."""
    outcomes = run_together(8, send, proxy, ("INCR", "key"))
    assert sorted(map(int, map(str, outcomes))) == list(range(1, 9))
    assert proxy.counts == Counts(commands=8, round_trips=8, connections=8)


def test_reset_counts_starts_again(proxy: RedisProxy) -> None:
    """Nothing of what passed before is counted afterwards."""
    send(proxy, ("GET", "key"))
    proxy.reset_counts()
    assert (proxy.counts, proxy.labels) == (Counts(), ())


def test_lose_next_reply_lets_the_command_take_effect(
    proxy: RedisProxy, server: RedisServer
) -> None:
    """The client gets no answer, yet the write is there; the next one is answered."""
    proxy.lose_next_reply()
    with pytest.raises(ConnectionError):
        send(proxy, ("INCR", "key"))
    assert server.command("GET", "key") == b"1"
    assert proxy.counts.round_trips == 0
    assert send(proxy, ("INCR", "key")) == 2


def test_lose_next_reply_counts_attempts(proxy: RedisProxy, server: RedisServer) -> None:
    """With a number, so many commands lose their replies and no more."""
    proxy.lose_next_reply(2)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            send(proxy, ("PING",), ("INCR", "key"))
    assert send(proxy, ("INCR", "key")) == 3
    assert server.command("GET", "key") == b"3"


def test_drop_next_command_prevents_the_effect(proxy: RedisProxy, server: RedisServer) -> None:
    """The client gets no answer, and nothing was written."""
    proxy.drop_next_command()
    with pytest.raises(ConnectionError):
        send(proxy, ("PING",), ("INCR", "key"))
    assert server.command("GET", "key") is None
    assert send(proxy, ("INCR", "key")) == 1


def test_replace_next_reply_answers_in_redis_place(proxy: RedisProxy, server: RedisServer) -> None:
    """One command of a pipeline is answered by the proxy and has no effect."""
    proxy.replace_next_reply(OOM, match="INCRBY")
    commands: list[list[Argument]] = [["INCR", "key"], ["INCRBY", "key", 5], ["INCR", "key"]]
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as connection:
        connection.sendall(b"".join(map(encode_command, commands)))
        first, second, third = read_replies(connection, 3)
    assert (first, third) == (1, 2)
    assert isinstance(second, ReplyError)
    assert server.command("GET", "key") == b"2"


def test_faults_spare_the_handshake_unless_asked(proxy: RedisProxy) -> None:
    """A fault waits for a real command; with `match` it hits a handshake one."""
    proxy.replace_next_reply(OOM)
    assert send(proxy, ("PING",)) == b"PONG"
    with pytest.raises(ReplyError, match="OOM"):
        send(proxy, ("GET", "key"))
    proxy.replace_next_reply(OOM, match="PING")
    assert send(proxy, ("GET", "key")) is None
    with pytest.raises(ReplyError, match="OOM"):
        send(proxy, ("PING",))


def test_match_tells_scripts_apart(proxy: RedisProxy) -> None:
    """A script is hit by its digest, other scripts are not."""
    proxy.replace_next_reply(OOM, match="EVALSHA bb")
    with pytest.raises(ReplyError, match="NOSCRIPT"):
        send(proxy, ("EVALSHA", "aa", 0))
    with pytest.raises(ReplyError, match="OOM"):
        send(proxy, ("EVALSHA", "bb", 0))
    assert proxy.labels == ("EVALSHA aa", "EVALSHA bb")


def test_hang_answers_and_passes_on_nothing(proxy: RedisProxy, server: RedisServer) -> None:
    """A hung proxy is silent; healed, it serves anew and forgets what came in meanwhile."""
    proxy.hang()
    with pytest.raises(TimeoutError):
        send(proxy, ("INCR", "key"), timeout=0.2)
    proxy.heal()
    assert send(proxy, ("INCR", "key")) == 1
    assert server.command("GET", "key") == b"1"


def test_refuse_closes_new_connections_only(proxy: RedisProxy) -> None:
    """New clients are turned away while the old ones go on."""
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as connection:
        connection.sendall(encode_command(["PING"]))
        assert read_replies(connection, 1) == [b"PONG"]
        proxy.refuse()
        with pytest.raises(ConnectionError):
            send(proxy, ("PING",))
        connection.sendall(encode_command(["PING"]))
        assert read_replies(connection, 1) == [b"PONG"]
    proxy.heal()
    assert send(proxy, ("PING",)) == b"PONG"


def test_delay_holds_the_reply_not_the_effect(proxy: RedisProxy, server: RedisServer) -> None:
    """A client that gave up has its write done all the same."""
    proxy.delay(600)
    with pytest.raises(TimeoutError):
        send(proxy, ("INCR", "key"), timeout=0.2)
    wait_until(lambda: server.command("GET", "key") == b"1")
    proxy.heal()
    assert send(proxy, ("INCR", "key")) == 2


def test_heal_releases_a_delayed_reply(proxy: RedisProxy) -> None:
    """A reply that is held back arrives at once when the proxy heals."""
    proxy.delay(600)
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as connection:
        connection.sendall(encode_command(["INCR", "key"]))
        wait_until(lambda: proxy.counts.commands == 1)
        proxy.heal()
        assert read_replies(connection, 1) == [1]


def test_drip_delivers_byte_by_byte(proxy: RedisProxy) -> None:
    """A dripping reply arrives whole in the end; healed, the rest comes at once."""
    proxy.drip(0.001)
    assert send(proxy, ("PING",)) == b"PONG"
    proxy.drip(600)
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as connection:
        connection.sendall(encode_command(["PING"]))
        wait_until(lambda: proxy.counts.handshake == 2)
        proxy.heal()
        assert read_replies(connection, 1) == [b"PONG"]


def test_heal_forgets_faults_not_used(proxy: RedisProxy) -> None:
    """What was armed before does not hit afterwards."""
    proxy.drop_next_command(3)
    proxy.heal()
    assert send(proxy, ("INCR", "key")) == 1


def test_cut_closes_the_connections_there_are(proxy: RedisProxy) -> None:
    """Old clients see their connection closed, new ones are served."""
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as connection:
        connection.sendall(encode_command(["PING"]))
        assert read_replies(connection, 1) == [b"PONG"]
        proxy.cut()
        assert connection.recv(1) == b""
    assert send(proxy, ("PING",)) == b"PONG"


def test_idle_client_sees_redis_go_away() -> None:
    """The end of Redis reaches a client that is not asking anything."""
    with RedisServer() as server, RedisProxy(server.port) as proxy:
        with socket.create_connection((proxy.host, proxy.port), timeout=10) as connection:
            connection.sendall(encode_command(["PING"]))
            assert read_replies(connection, 1) == [b"PONG"]
            server.kill()
            assert connection.recv(1) == b""
        with pytest.raises(ConnectionError):
            send(proxy, ("PING",))


def test_command_of_a_client_that_left_takes_effect(proxy: RedisProxy, server: RedisServer) -> None:
    """A client that sends and dies has its command passed on, as without a proxy."""
    with socket.create_connection((proxy.host, proxy.port)) as connection:
        connection.sendall(encode_command(["INCR", "key"]))
    wait_until(lambda: server.command("GET", "key") == b"1")


def test_close_releases_who_hangs(server: RedisServer) -> None:
    """A closed proxy is reachable no more and has closed what it had open."""
    proxy = RedisProxy(server.port)
    proxy.hang()
    with socket.create_connection((proxy.host, proxy.port), timeout=10) as connection:
        connection.sendall(encode_command(["PING"]))
        wait_until(lambda: proxy.counts.handshake == 1)
        proxy.close()
        assert connection.recv(1) == b""
    with pytest.raises(OSError, match="refused"):
        send(proxy, ("PING",))


def test_redis_py_works_through_the_proxy(proxy: RedisProxy) -> None:
    """A pipeline and a script of the real client are counted as one round trip each."""
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(proxy.url()) as client:
        script = client.register_script("return redis.call('INCR', KEYS[1])")
        assert script(keys=["key"]) == 1  # loads the script first
        proxy.reset_counts()
        assert script(keys=["key"]) == 2
        assert proxy.labels == (f"EVALSHA {script.sha}",)
        with client.pipeline() as pipeline:
            assert pipeline.incr("key").incr("key").execute() == [3, 4]
        assert proxy.counts == Counts(commands=5, round_trips=2)
        client.get("key")
        assert proxy.counts == Counts(commands=6, round_trips=3)
