"""
A private Redis for tests: own port, own directory, gone when the test run is.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from support.concurrency import wait_until
from support.directory_guard import DirectoryGuard
from support.resp import Argument, Reply, ReplyError, call
from support.tls import TlsFiles

_HOST = "127.0.0.1"
_ADMIN = "support-admin"
_ATTEMPTS = 5
_START_TIMEOUT = 20.0


def find_redis_server() -> str | None:
    """
    Return the path of the `redis-server` (or `valkey-server`) program, or None.
    """
    return shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """
    One `redis-server` process of its own; a context manager.

    It keeps its port, directory and passwords over `stop`, `kill` and `restart`.
    `command`, `info` and the URLs may be used from any thread; one thread at a time starts, stops
    and pauses it.

    Args:
        appendonly: Whether what was answered survives `kill`.
        requirepass: The default user's password.
        acl_users: Rules of further users, as in an ACL file: `"app on >secret ~bgops:* +@all"`.
        unixsocket: Whether to listen on a Unix socket too.
        tls: Certificates with which to listen on a TLS port too.
        maxmemory: As in redis.conf: `"2mb"`.
        maxmemory_policy: What happens at `maxmemory`.
        replica_of: A running server whose read-only replica this one is to be.
        config: Further lines for redis.conf.
    """

    def __init__(
        self,
        *,
        appendonly: bool = False,
        requirepass: str | None = None,
        acl_users: Sequence[str] = (),
        unixsocket: bool = False,
        tls: TlsFiles | None = None,
        maxmemory: str | None = None,
        maxmemory_policy: str = "noeviction",
        replica_of: RedisServer | None = None,
        config: Sequence[str] = (),
    ) -> None:
        self.port = 0
        self.tls_port = 0
        self._appendonly = appendonly
        self._tls = tls
        self._replica_of = replica_of
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: DirectoryGuard | None = None
        self._admin_password = secrets.token_hex(16)
        # Redis reports its directory with symbolic links resolved, and the guard compares it.
        self.directory = Path(tempfile.gettempdir()).resolve() / f"redis-{secrets.token_hex(4)}"
        self.socket_path = self.directory / "redis.sock"
        self._log_path = self.directory / "redis.log"
        lines = [
            f"bind {_HOST}",
            f'dir "{self.directory}"',
            f'pidfile "{self.directory}/server.pid"',
            "repl-diskless-sync-delay 0",
            'save ""',
            f"appendonly {'yes' if appendonly else 'no'}",
            # Otherwise a write may wait, answered already, for an earlier one to reach a busy disk.
            "appendfsync always",
            f"maxmemory-policy {maxmemory_policy}",
            # This module's own user, so that `command` works whatever the test forbids to others.
            f"user {_ADMIN} on >{self._admin_password} ~* &* +@all",
            *(f"user {rules}" for rules in acl_users),
        ]
        if maxmemory is not None:
            lines.append(f"maxmemory {maxmemory}")
        if requirepass is not None:
            lines.append(f'requirepass "{requirepass}"')
        if unixsocket:
            lines.append(f'unixsocket "{self.socket_path}"')
        if tls is not None:
            lines += [
                f'tls-cert-file "{tls.certificate}"',
                f'tls-key-file "{tls.key}"',
                f'tls-ca-cert-file "{tls.ca}"',
                "tls-auth-clients no",
            ]
        self._lines = [*lines, *config]
        self._replica_lines: list[str] = []
        if replica_of is not None:
            self._replica_lines = [
                f"replicaof {_HOST} {replica_of.port}",
                f"masteruser {_ADMIN}",
                f"masterauth {replica_of._admin_password}",
            ]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """
        The running server's process id.
        """
        return None if self._process is None else self._process.pid

    def url(self, db: int = 0, user: str | None = None, password: str | None = None) -> str:
        """
        Return the TCP URL, with those credentials only that are given.
        """
        return f"redis://{_credentials(user, password)}{_HOST}:{self.port}/{db}"

    def unix_url(self, db: int = 0, user: str | None = None, password: str | None = None) -> str:
        """
        Return the URL of the Unix socket.
        """
        return f"unix://{_credentials(user, password)}{self.socket_path}?db={db}"

    def tls_url(
        self,
        db: int = 0,
        user: str | None = None,
        password: str | None = None,
        *,
        trusted: bool = True,
    ) -> str:
        """
        Return the TLS URL; it names the authority unless `trusted` is false.
        """
        url = f"rediss://{_credentials(user, password)}{_HOST}:{self.tls_port}/{db}"
        return f"{url}?ssl_ca_certs={self._tls.ca}" if trusted and self._tls else url

    def start(self) -> None:
        """
        Start the server and wait until it answers, or the replica until it is in step.

        Raises:
            RuntimeError: There is no program, or it ended at once; its log is in the message.
        """
        program = find_redis_server()
        if program is None:
            raise RuntimeError("redis-server is not installed")
        if self._process is not None:
            raise RuntimeError("the server runs already")
        if self._guard is None:
            self._guard = DirectoryGuard(self.directory)
        fixed = self.port != 0
        for _ in range(1 if fixed else _ATTEMPTS):  # another program may take a free port first
            if not fixed:
                self.port, self.tls_port = _free_ports()
            if self._try_to_start(program):
                return
        log = self._log_path.read_text(errors="replace")[-2000:]
        if not fixed:
            self.port = self.tls_port = 0
        raise RuntimeError(f"redis-server does not start:\n{log}")

    def stop(self) -> None:
        """
        Let the server shut down as a system would; does nothing when it is not running.
        """
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """
        Kill the server as a crash would; does nothing when it is not running.
        """
        self._end(signal.SIGKILL)

    def restart(self, *, keep_data: bool = True) -> None:
        """
        Stop the server if it runs, and start it on the same port.

        Args:
            keep_data: Whether all data is there again. Of a server that was stopped or killed
                before, only what `appendonly` had saved can be.
        """
        if keep_data and not self._appendonly and self._process is not None:
            self.resume()
            self.command("SAVE")
        self.stop()
        if not keep_data:
            (self.directory / "dump.rdb").unlink(missing_ok=True)
            shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
            (self.directory / "appendonly.aof").unlink(missing_ok=True)  # Redis 6
        self.start()

    def promote(self) -> None:
        """
        Turn a replica into a master, for good: what its old master gets from now on it never sees.
        """
        self.command("REPLICAOF", "NO", "ONE")
        self._replica_of = None
        self._replica_lines = []

    def pause(self) -> None:
        """
        Freeze the server: it accepts connections and answers nothing.
        """
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """
        Let a frozen server go on; it then runs what was sent meanwhile.
        """
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """
        Kill the server and remove its directory.
        """
        self.kill()
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def command(self, *args: Argument, db: int = 0) -> Reply:
        """
        Run one command as this module's own user, on a connection of its own.

        Strings come back as bytes.

        Raises:
            ReplyError: Redis refused it.
            OSError: The server is not reachable, or does not answer within 10 seconds.
        """
        setup = (("AUTH", _ADMIN, self._admin_password), ("SELECT", db))
        return call((_HOST, self.port), *setup, args)

    def info(self, section: str = "everything") -> dict[str, str]:
        """
        Return what `INFO` says of `section`.
        """
        text = self.command("INFO", section)
        assert isinstance(text, bytes)
        lines = (line.partition(":") for line in text.decode().splitlines() if ":" in line)
        return {name: value for name, _, value in lines}

    def _try_to_start(self, program: str) -> bool:
        ports = [f"port {self.port}"]
        if self._tls is not None:
            ports.append(f"tls-port {self.tls_port}")
        path = self.directory / "redis.conf"
        path.write_text("\n".join([*ports, *self._lines, *self._replica_lines, ""]))
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(
                [program, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C ends the tests, which then end the server
            )
        self._process = process
        try:
            wait_until(lambda: process.poll() is not None or self._is_ready(), _START_TIMEOUT)
        except BaseException:
            self.kill()
            raise
        if process.poll() is None:
            return True
        self._process = None
        return False

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, ReplyError):  # not listening yet, loading its data
            if self.command("PING") == b"PONG":
                in_step = self._replica_of is None
                return in_step or self.info("replication")["master_link_status"] == "up"
        return False

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # `send_signal` knows whether the process was waited for: its number cannot be another's.
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # a frozen process obeys SIGTERM only when it goes on
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _credentials(user: str | None, password: str | None) -> str:
    if user is None and password is None:
        return ""
    return f"{quote(user or '', safe='')}:{quote(password or '', safe='')}@"


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind((_HOST, 0))
        second.bind((_HOST, 0))
        return first.getsockname()[1], second.getsockname()[1]
