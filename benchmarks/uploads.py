"""
What a key costs a large upload: the worker's memory, and time.

Servers are gunicorn with one worker, reached over loopback. Each case has one to itself, so that
what one case has left in memory is not there for another.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks import stacks
from benchmarks.report import Check, Section, spread
from benchmarks.timing import Series, interleave
from support.workers import child_environment

_MEBI = 1024 * 1024
_MOST_MEMORY = 5.0
_MOST_TIME = 1.5
_LIMIT = 120.0

_COLUMNS = ("", "no key", "key", "", "target", "")


class Upload(NamedTuple):
    """
    One kind of request. Immutable, so it may be shared between threads.

    Attributes:
        path: Where it goes.
        content_type: Its content type.
        body: What is sent.
        size: How many bytes of content the endpoint finds in it.
    """

    path: str
    content_type: str
    body: bytes
    size: int


def build_uploads(size: int) -> dict[str, Upload]:
    """
    Return an upload of each kind with so many bytes of content that nothing can compress.
    """
    content = secrets.token_bytes(size)
    text = secrets.token_hex(size // 2).encode()
    return {
        "multipart": Upload(
            "/form", "multipart/form-data; boundary=b0undary", _form(content), size
        ),
        "octet-stream": Upload("/raw", "application/octet-stream", content, size),
        "JSON": Upload("/json", "application/json", b'{"content": "' + text + b'"}', size),
    }


def _form(content: bytes) -> bytes:
    return b"\r\n".join(
        (
            b"--b0undary",
            b'Content-Disposition: form-data; name="title"',
            b"",
            b"holiday",
            b"--b0undary",
            b'Content-Disposition: form-data; name="film"; filename="film.mp4"',
            b"Content-Type: video/mp4",
            b"",
            content,
            b"--b0undary--",
            b"",
        )
    )


class Server:
    """
    One gunicorn with one worker; used by one thread.

    Attributes:
        port: Where it listens.
        worker: The process that serves.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.worker = 0

    def send(self, upload: Upload, key: str | None) -> float:
        """
        Send one request; return the seconds until its answer was there.
        """
        headers = {"Content-Type": upload.content_type}
        if key is not None:
            headers["Idempotency-Key"] = key
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_LIMIT)
        start = perf_counter()
        try:
            connection.request("POST", upload.path, upload.body, headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        took = perf_counter() - start
        if answer.status != 200 or (answer.getheader("X-Idempotency-Key") is None) != (key is None):
            raise RuntimeError(f"{upload.path} answered {answer.status}: {body[:200]!r}")
        self.worker = json.loads(body)["process"]
        return took

    def read_memory(self, field: str) -> float:
        """
        Return a size from the worker's `/proc/<pid>/status`, in MiB.
        """
        for line in Path(f"/proc/{self.worker}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0]) / 1024
        raise LookupError(field)


@contextmanager
def serve(app: str) -> Iterator[Server]:
    """
    Start gunicorn for an application of `benchmarks.upload_site`; it ends with the block.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--workers=1", f"--timeout={_LIMIT:.0f}"),
                *(f"--bind=fd://{listener.fileno()}", "--log-level=error"),
                f"benchmarks.upload_site:{app}()",
            ],
            env=child_environment(),
            pass_fds=(listener.fileno(),),
        )
        try:
            yield Server(listener.getsockname()[1])
        finally:
            process.terminate()
            process.wait(30)


def measure_uploads(*, size: int, rounds: int) -> list[Section]:
    """
    Send the same uploads with and without a key to Django and to a plain WSGI application.
    """
    if not Path("/proc/self/status").exists():
        return [Section("Uploads", ("Not measured: the peak memory is read from /proc.",))]
    memory = Section(
        f"Memory of a {size / _MEBI:.0f} MiB upload",
        (
            "MiB by which a worker's peak (VmHWM) exceeds what it had when idle (VmRSS), in a",
            "fresh process for each number; gunicorn, one worker, over loopback. The target is",
            "about how much more it is with a key.",
        ),
        _COLUMNS,
    )
    times = Section(
        f"Time of a {size / _MEBI:.0f} MiB upload",
        (
            "Milliseconds; median [quartiles] over rounds. The ratio, which the target is about,",
            "is that of the fastest rounds of each: other work on the machine can only add time.",
        ),
        _COLUMNS,
    )
    uploads = build_uploads(size)
    for app, label in (("django_app", "Django"), ("wsgi_app", "WSGI")):
        for kind, upload in uploads.items():
            _measure(memory, times, f"{label}, {kind}", app, upload, rounds)
    return [memory, times]


def _measure(
    memory: Section, times: Section, label: str, app: str, upload: Upload, rounds: int
) -> None:
    with ExitStack() as stack:
        servers = {keyed: stack.enter_context(serve(app)) for keyed in (False, True)}
        peaks = {keyed: _measure_peak(server, upload, keyed) for keyed, server in servers.items()}
        more = peaks[True] - peaks[False]
        memory.data[label] = {"no key": peaks[False], "key": peaks[True]}
        memory.add(
            label,
            f"{peaks[False]:.1f}",
            f"{peaks[True]:.1f}",
            f"{more:+.1f}",
            check=Check(f"Memory: {label}, with a key", more, _MOST_MEMORY, unit=" MiB"),
        )
        _compare(times, label, _time(servers, upload, rounds))


def _measure_peak(server: Server, upload: Upload, keyed: bool) -> float:
    small = upload._replace(body=_shrink(upload), size=0)
    for _ in range(3):
        # What is loaded and made once is there before it counts; both ways, in both cases.
        server.send(small, None)
        server.send(small, stacks.new_key())
    idle = server.read_memory("VmRSS")
    server.send(upload, stacks.new_key() if keyed else None)
    return server.read_memory("VmHWM") - idle


def _shrink(upload: Upload) -> bytes:
    return {"/form": _form(b"film"), "/raw": b"film", "/json": b'{"content": "film"}'}[upload.path]


def _time(servers: Mapping[bool, Server], upload: Upload, rounds: int) -> dict[str, Series]:
    cases: dict[str, Any] = {
        "no key": lambda: [servers[False].send(upload, None)],
        "key": lambda: [servers[True].send(upload, stacks.new_key())],
    }
    return {name: series for name, (series,) in interleave(cases, rounds).items()}


def _compare(times: Section, label: str, found: Mapping[str, Series]) -> None:
    millis = {
        name: Series(tuple(1000 * value for value in series.values))
        for name, series in found.items()
    }
    for name, series in millis.items():
        times.keep(f"{label}, {name}", series)
    ratio = millis["key"].quick / millis["no key"].quick
    times.add(
        label,
        spread(millis["no key"], 0),
        spread(millis["key"], 0),
        f"{ratio:.2f}",
        check=Check(f"Time: {label}, with a key / without", ratio, _MOST_TIME),
    )
