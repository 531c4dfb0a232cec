"""
Server processes that a test starts, asks, freezes and kills.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType, TracebackType
from typing import Any, Self

from support.http_clients import Response

_LIMIT = 60.0


def child_environment(**changes: str) -> dict[str, str]:
    """
    Return an environment in which a child imports what this process imports.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, **changes}


def post(
    port: int, key: str | None, path: str = "/orders", body: bytes = b'{"amount": 1}'
) -> Response:
    """
    Send one POST to a server on this machine and read its response.
    """
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIMIT)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return Response(answer.status, answer.getheaders(), answer.read())
    finally:
        connection.close()


class Worker:
    """
    One process of `support.worker_program`; a context manager.

    Requests may be sent from any thread; one thread starts, freezes and ends it. `_changed` guards
    `_lines` and `_ended`.

    Args:
        adapter: `wsgi` or `django`.
        clock_offset: Seconds by which the process's clock is wrong; WSGI only.
        program: The module to run instead, which speaks as that one does.
        environment: Variables of the process, beside ours.
        settings: Of the library, by their lower-case names.
    """

    def __init__(
        self,
        adapter: str,
        *,
        clock_offset: float = 0,
        program: str = "support.worker_program",
        environment: Mapping[str, str] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        options = {"adapter": adapter, "clock_offset": clock_offset, "settings": settings}
        self._changed = threading.Condition()
        self._lines: list[dict[str, Any]] = []
        self._ended = False
        self._commands = 0
        self._frozen = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", program, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(**environment),
            start_new_session=True,  # Ctrl-C ends the tests, which then end it
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"worker-{self.pid}", daemon=True)
        self._reader.start()
        self._requests = ThreadPoolExecutor(8, thread_name_prefix=f"client-{self.pid}")

    def __enter__(self) -> Self:
        try:
            self.await_ready()
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
    def port(self) -> int:
        """
        Where it listens, once it is ready.
        """
        return int(self.told("ready")[0]["port"])

    @property
    def runs(self) -> int:
        """
        How often the work was begun.
        """
        if self._process.poll() is None and not self._frozen:
            self.ask("sync")  # its reply comes behind all that was told before
        return len(self.told("run"))

    def told(self, what: str) -> list[dict[str, Any]]:
        """
        Return what it told of one kind, in order.
        """
        with self._changed:
            return [line for line in self._lines if line["what"] == what]

    def await_told(self, what: str, count: int = 1) -> list[dict[str, Any]]:
        """
        Wait until it has told so many of one kind.

        Raises:
            RuntimeError: It ended before.
            TimeoutError: It did not tell in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self.told(what)) >= count or self._ended, _LIMIT)
            told = self.told(what)
            if len(told) >= count:
                return told[:count]
            if self._ended:
                raise RuntimeError(f"the worker ended before it told {what!r}")
            raise TimeoutError(f"the worker did not tell {what!r}")

    def await_ready(self) -> None:
        """
        Wait until it listens.
        """
        self.await_told("ready")

    def post(
        self, key: str | None, path: str = "/orders", body: bytes = b'{"amount": 1}'
    ) -> Response:
        """
        Send one request and wait for its response.
        """
        return post(self.port, key, path, body)

    def begin_held(self, key: str) -> Future[Response]:
        """
        Send a request whose work goes on until `tell`; return when the work has begun.
        """
        runs = self.runs
        pending = self._requests.submit(self.post, key, "/held")
        self.await_told("run", runs + 1)
        return pending

    def tell(self, command: str) -> None:
        """
        Send a command and do not wait: a frozen process reads it when it goes on.
        """
        self._commands += 1
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def ask(self, command: str) -> Any:
        """
        Send a command and return its reply.
        """
        self.tell(command)
        return self.await_told("reply", self._commands)[-1]["value"]

    def freeze(self) -> None:
        """
        Stop every thread of it where it stands.
        """
        self._frozen = True
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """
        Let a frozen process go on.
        """
        self._process.send_signal(signal.SIGCONT)
        self._frozen = False

    def kill(self) -> None:
        """
        End it as a crash would, and wait until it is gone.
        """
        self._process.kill()
        self._process.wait()
        self._reader.join(_LIMIT)

    def close(self) -> None:
        """
        Let it end by itself, or kill it where it does not.
        """
        process = self._process
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            process.stdin.close()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(_LIMIT)
        assert process.stdout is not None
        process.stdout.close()
        self._requests.shutdown(cancel_futures=True)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._changed:
                self._lines.append(told)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
