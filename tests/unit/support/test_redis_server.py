from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.concurrency import wait_until
from support.redis_server import RedisServer, find_redis_server
from support.resp import ReplyError, call
from support.tls import create_certificates, find_openssl

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(find_redis_server() is None, reason="redis-server is not installed"),
]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


def test_command_reads_what_it_wrote(server: RedisServer) -> None:
    """A started server runs commands, in the database they name."""
    assert server.command("SET", "key", b"\x00", db=3) == b"OK"
    assert server.command("GET", "key", db=3) == b"\x00"
    assert server.command("GET", "key") is None


def test_command_raises_what_redis_refuses(server: RedisServer) -> None:
    """An error reply is an exception."""
    with pytest.raises(ReplyError, match="ERR"):
        server.command("NONSENSE")


def test_info_reads_one_section(server: RedisServer) -> None:
    """INFO comes as a mapping."""
    assert server.info("server")["tcp_port"] == str(server.port)
    assert "tcp_port" not in server.info("memory")


def test_close_leaves_nothing() -> None:
    """Neither the process nor its directory outlives the context manager."""
    with RedisServer() as server:
        pid = server.pid
        assert pid is not None
        assert server.directory.is_dir()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not server.directory.exists()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_restart_keeps_what_appendonly_saved(how: str) -> None:
    """With persistence an answered write survives a crash, on the same port."""
    with RedisServer(appendonly=True) as server:
        server.command("SET", "key", "value")
        port = server.port
        getattr(server, how)()
        with pytest.raises(OSError, match="refused"):
            server.command("PING")
        server.restart(keep_data=True)
        assert (server.port, server.command("GET", "key")) == (port, b"value")


def test_restart_loses_what_was_never_saved(server: RedisServer) -> None:
    """Without persistence a crash empties the server."""
    server.command("SET", "key", "value")
    server.kill()
    server.restart(keep_data=True)
    assert server.command("GET", "key") is None


@pytest.mark.parametrize("appendonly", [False, True])
def test_restart_keeps_or_drops_data_as_asked(appendonly: bool) -> None:
    """A restart keeps the data of either kind of server, unless told not to."""
    with RedisServer(appendonly=appendonly) as server:
        server.command("SET", "key", "value")
        server.restart(keep_data=True)
        assert server.command("GET", "key") == b"value"
        server.restart(keep_data=False)
        assert server.command("GET", "key") is None


def test_pause_silences_the_server_until_resume(server: RedisServer) -> None:
    """A frozen server answers nobody, and everybody afterwards."""
    address = ("127.0.0.1", server.port)
    server.pause()
    with pytest.raises(TimeoutError):
        call(address, ("PING",), timeout=0.2)
    server.resume()
    assert call(address, ("PING",)) == b"PONG"


def test_stop_ends_a_frozen_server(server: RedisServer) -> None:
    """A frozen server can be stopped, and a stopped one not be frozen."""
    server.pause()
    server.stop()
    assert server.pid is None
    with pytest.raises(RuntimeError, match="not running"):
        server.pause()


def test_requirepass_refuses_who_has_no_password() -> None:
    """The default user needs the password; this module's own user does not."""
    with RedisServer(requirepass="secret") as server:
        address = ("127.0.0.1", server.port)
        assert call(address, ("AUTH", "secret"), ("PING",)) == b"PONG"
        with pytest.raises(ReplyError, match="NOAUTH"):
            call(address, ("PING",))
        assert server.command("PING") == b"PONG"


def test_acl_users_may_do_what_their_rules_say() -> None:
    """A user reaches its own keys and no others, even with the default user off."""
    rules = ["default off", "app on >secret ~bgops:* +@all"]
    with RedisServer(acl_users=rules) as server:
        address = ("127.0.0.1", server.port)
        login = ("AUTH", "app", "secret")
        assert call(address, login, ("SET", "bgops:key", "1")) == b"OK"
        with pytest.raises(ReplyError, match="NOPERM"):
            call(address, login, ("SET", "other", "1"))


def test_maxmemory_refuses_writes() -> None:
    """A full server answers OOM to writes and goes on reading."""
    with RedisServer(maxmemory="1") as server:
        assert server.info("memory")["maxmemory_policy"] == "noeviction"
        with pytest.raises(ReplyError, match="OOM"):
            server.command("SET", "key", "value")
        assert server.command("GET", "key") is None


def test_replica_follows_and_refuses_writes() -> None:
    """A replica has its master's data once started, and takes no writes."""
    with RedisServer(requirepass="secret") as master:
        master.command("SET", "key", "value")
        with RedisServer(replica_of=master) as replica:
            assert replica.command("GET", "key") == b"value"
            with pytest.raises(ReplyError, match="READONLY"):
                replica.command("SET", "key", "other")


def test_config_lines_reach_the_server() -> None:
    """Further configuration counts; nonsense does not start and says why."""
    with RedisServer(config=["databases 3"]) as server, pytest.raises(ReplyError, match="range"):
        server.command("PING", db=3)
    broken = RedisServer(config=["nonsense 1"])
    with pytest.raises(RuntimeError, match="nonsense"), broken:
        pass
    assert not broken.directory.exists()


def test_urls_carry_the_credentials_given() -> None:
    """Credentials are quoted, and only there when given."""
    server = RedisServer()
    server.port = 1234
    assert server.url() == "redis://127.0.0.1:1234/0"
    assert server.url(2, "app", "p@/s") == "redis://app:p%40%2Fs@127.0.0.1:1234/2"
    assert server.url(password="secret") == "redis://:secret@127.0.0.1:1234/0"


def test_every_url_is_understood_by_redis_py(tmp_path: Path) -> None:
    """TCP, Unix socket and TLS are reachable; TLS only for who trusts the authority."""
    redis = pytest.importorskip("redis")
    if find_openssl() is None:
        pytest.skip("openssl is not installed")
    certificates = create_certificates(tmp_path)
    rules = ["app on >p@/s ~* +@all"]
    with RedisServer(unixsocket=True, tls=certificates, acl_users=rules) as server:
        for make_url in (server.url, server.unix_url, server.tls_url):
            with redis.Redis.from_url(make_url(1, "app", "p@/s")) as client:
                assert client.acl_whoami() in {"app", b"app"}
                assert client.client_info()["db"] == 1
            with (
                redis.Redis.from_url(make_url(1, "app", "wrong")) as client,
                pytest.raises(redis.AuthenticationError),
            ):
                client.ping()
        with (
            redis.Redis.from_url(server.tls_url(trusted=False)) as client,
            pytest.raises(redis.ConnectionError, match="certificate"),
        ):
            client.ping()


def test_server_dies_with_a_test_process_that_is_killed() -> None:
    """Nothing is left behind even when no cleanup could run."""
    script = (
        "import sys; sys.path[:] = eval(sys.argv[1])\n"
        "from support.redis_server import RedisServer\n"
        "server = RedisServer(); server.start()\n"
        "print(server.port, server.directory, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, repr(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        port, directory = process.stdout.readline().split()
        assert call(("127.0.0.1", int(port)), ("PING",)) == b"PONG"
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(directory).exists())
    wait_until(lambda: is_refused(int(port)))


def is_refused(port: int) -> bool:
    # The socket of a server that is just going down may still reset what connects.
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
