"""
Starts Redis, the gateway and the shop, and leaves nothing of them behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
START_LIMIT = 30.0
STOP_LIMIT = 8.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StartError(Exception):
    """
    A process did not come up; the message holds the end of its log.
    """


class Child:
    """
    One process in a group of its own, with its output in a file. One owner thread.

    In its own group it is spared by Ctrl-C, so that it ends when the demo ends it, and
    whatever it has started ends with it.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        """
        Start the command.
        """
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env if env is not None else clean_environment()),
                cwd=folder,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """
        Return the process id.
        """
        return self._process.pid

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """
        Wait until the process is of use.

        Raises:
            StartError: It ended, or it took too long.
        """
        deadline = time.monotonic() + START_LIMIT
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise StartError(f"{self.name} did not start:\n{self.log()[-3000:]}")
            time.sleep(0.03)

    def log(self) -> str:
        """
        Return what the process has printed so far.
        """
        return self._log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """
        End the process and all of its group: politely, then for certain.
        """
        self._signal_group(signal.SIGTERM)
        self._signal_group(signal.SIGCONT)  # a frozen one hears nothing before it goes on
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT)
        # Also when the leader is gone: a worker of it may have stayed behind.
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def freeze(self) -> None:
        """
        Stop the process where it is: it keeps its port and its connections and is silent.
        """
        self._signal_group(signal.SIGSTOP)

    def kill(self) -> None:
        """
        End the process as a crash would.
        """
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Stack:
    """
    All the processes of one demo, in one folder. One owner thread.
    """

    def __init__(self, folder: Path) -> None:
        """
        Keep everything in ``folder``.
        """
        self.folder = folder
        self.ledger = folder / "ledger.sqlite3"
        self.database = folder / "shop.sqlite3"
        self.photos = folder / "photos"
        self.gateway_url = ""
        self.shop_url = ""
        self._children: list[Child] = []
        self._redis_command: list[str] = []
        self._redis_port = 0
        self._shop_env: dict[str, str] = {}

    def start_redis(self, server: str) -> str:
        """
        Start a private Redis and return its URL.

        Raises:
            StartError: It did not come up, also not on a second and third free port.
        """
        for is_last in (False, False, True):
            self._redis_port = port = free_port()
            self._redis_command = [
                *(server, "--port", str(port), "--bind", "127.0.0.1"),
                *("--dir", str(self.folder), "--save", ""),
                # What it has answered is in its file, so that it survives a signal 9.
                *("--appendonly", "yes", "--appendfsync", "always"),
            ]
            try:
                self._run_redis()
            except StartError:
                # Somebody may have taken the port between our look and its start.
                if is_last:
                    raise
            else:
                return f"redis://127.0.0.1:{port}/0"
        raise AssertionError

    def freeze_redis(self) -> None:
        """
        Make Redis hang: it accepts connections and answers nothing.
        """
        self._redis().freeze()

    def kill_redis(self) -> None:
        """
        Make Redis crash.
        """
        redis = self._redis()
        redis.kill()
        self._children.remove(redis)

    def restart_redis(self) -> None:
        """
        Start Redis again on its port, with the data that it had.

        Raises:
            StartError: It did not come up.
        """
        self._run_redis()

    @property
    def redis_pid(self) -> int | None:
        """
        Return the process id of Redis, if there is one.
        """
        return self._redis().pid if self._redis_command else None

    def _redis(self) -> Child:
        return next(child for child in self._children if child.name == "redis")

    def _run_redis(self) -> None:
        redis = self._start("redis", self._redis_command)
        try:
            redis.wait_until(lambda: answers_ping(self._redis_port))
        except StartError:
            redis.stop()
            self._children.remove(redis)
            raise

    def start_gateway(self, *, seed: int, latency: float, trouble: Mapping[str, float]) -> None:
        """
        Start the payment gateway; ``trouble`` holds its shares of failures.
        """
        options = {"latency": latency, "seed": seed, **trouble}
        gateway = self._start(
            "gateway",
            [sys.executable, str(HERE / "gateway.py"), "--ledger", str(self.ledger)]
            + [part for name, value in options.items() for part in (f"--{name}", str(value))],
        )
        gateway.wait_until(lambda: "\n" in gateway.log())
        self.gateway_url = gateway.log().split()[0]

    def start_shop(
        self,
        *,
        workers: int,
        threads: int,
        redis_url: str | None,
        stock: Mapping[str, int],
        default_stock: int = 0,
        is_protected: bool = True,
    ) -> None:
        """
        Fill the shelves and start the shop's workers under gunicorn.

        Raises:
            StartError: It did not come up.
        """
        self._shop_env = env = clean_environment()
        env["SHOP_DATA"] = str(self.folder)
        env["SHOP_GATEWAY"] = self.gateway_url
        # Uploads wait there, and those of a killed worker stay: let them go with the folder.
        env["TMPDIR"] = str(self.folder)
        if redis_url is not None:
            env["REDIS_URL"] = redis_url
        if not is_protected:
            env["SHOP_UNPROTECTED"] = "yes"
        self.manage(
            "open_shop", "--stock", json.dumps(dict(stock)), "--default", str(default_stock)
        )
        # The socket is bound here and handed over: nobody can take the port in between.
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
            self.shop_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            shop = self._start(
                "shop",
                [
                    *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"),
                    *("--config", str(HERE / "gunicorn_conf.py"), "--workers", str(workers)),
                    *("--threads", str(threads), "shop.wsgi"),
                ],
                env=env,
                pass_fds=(listener.fileno(),),
            )
        shop.wait_until(lambda: is_up(f"{self.shop_url}/health/"))

    def manage(self, *arguments: str) -> str:
        """
        Run a command of the shop's ``manage.py`` and return what it printed.

        Raises:
            StartError: It failed.
        """
        command = subprocess.run(
            [sys.executable, str(HERE / "manage.py"), *arguments],
            env=self._shop_env,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_LIMIT,
        )
        if command.returncode:
            raise StartError(f"manage.py {arguments[0]} failed:\n{command.stderr[-3000:]}")
        return command.stdout

    def control_gateway(self, **instruction: object) -> str | None:
        """
        Give the gateway an instruction; return the order whose answer it holds back.
        """
        return ask_gateway(self.gateway_url, instruction)

    def stop(self) -> None:
        """
        End all processes, the latest first.
        """
        while self._children:
            self._children[-1].stop()
            self._children.pop()

    def _start(
        self,
        name: str,
        command: list[str],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> Child:
        # A Ctrl-C between the start and the note of it would leave the process behind.
        with undisturbed():
            child = Child(name, command, self.folder, env=env, pass_fds=pass_fds)
            self._children.append(child)
        return child


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """
    Put off Ctrl-C and the signals to end until the block is over. For the main thread.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)


def find_redis_server() -> str | None:
    """
    Return the path of a Redis or Valkey server, if this machine has one.
    """
    return shutil.which("redis-server") or shutil.which("valkey-server")


def clean_environment() -> dict[str, str]:
    """
    Return the environment without what would change the shop behind our back.
    """
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DOTMAC_TASKS_", "SHOP_", "DJANGO_", "GUNICORN_"))
        and name != "REDIS_URL"
    }
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), env.get("PYTHONPATH")]))
    return env


def free_port() -> int:
    """
    Return a port that was free just now.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def answers_ping(port: int) -> bool:
    """
    Tell whether a Redis answers there.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def is_up(url: str) -> bool:
    """
    Tell whether this page answers 200.
    """
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask_gateway(url: str, instruction: Mapping[str, object]) -> str | None:
    """
    Send an instruction to the gateway's control page, or only look if it is empty.
    """
    request = urllib.request.Request(
        f"{url}/control",
        data=json.dumps(instruction).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        body: dict[str, Any] = json.load(answer)
    holding: str | None = body["holding"]
    return holding
