"""
A server process of the acceptance tests: a keyed application over real HTTP.

Started as ``python -m support.worker_program <settings as JSON>``. What happens is written to the
standard output, a line of JSON each; commands come in on the standard input, whose end ends it.
The work of `/held` ends when a command says so, that of every other path at once.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.events import ClaimLost, CompletionDelayed, MetricsHooks, StorageUnprotected
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.wsgi import BackgroundOperationsMiddleware
from support.http_clients import (
    BrokenHandlerError,
    Call,
    Handler,
    Reply,
    make_django_view,
    make_wsgi_app,
)

# How long held work waits for its command before the test is taken for broken.
_LIMIT = 120.0


class Reporter:
    """
    Writes lines for the test; shared between threads: `_lock` guards the output.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, what: str, **facts: Any) -> None:
        line = json.dumps({"what": what, **facts}) + "\n"
        with self._lock:
            sys.stdout.write(line)
            sys.stdout.flush()


class Application:
    """
    Does the work; shared between threads: `_lock` guards `_runs`.
    """

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._runs = 0
        # One entry ends one piece of held work: whether it succeeds.
        self.endings: queue.Queue[bool] = queue.Queue()

    def __call__(self, call: Call) -> Reply:
        with self._lock:
            self._runs += 1
            number = self._runs
        self._report("run", key=call.key)
        if call.environ["PATH_INFO"] == "/held" and not self.endings.get(timeout=_LIMIT):
            raise BrokenHandlerError
        return Reply(201, body=json.dumps({"by": os.getpid(), "run": number}).encode())


class ReportingHooks(MetricsHooks):
    """
    Tells the test of what went wrong; called by one thread at a time.
    """

    def __init__(self, report: Reporter) -> None:
        self._report = report

    def claim_lost(self, event: ClaimLost) -> None:
        self._report("claim_lost", reason=event.reason)

    def completion_delayed(self, event: CompletionDelayed) -> None:
        self._report("completion_delayed", error=event.error)

    def storage_unprotected(self, event: StorageUnprotected) -> None:
        self._report("storage_unprotected", error=event.error)


class SkewedClock:
    """
    The clock of a host that is wrong by so many seconds and booted at another time; immutable.
    """

    def __init__(self, offset: float) -> None:
        self._offset = offset
        self._system = SystemClock()

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._offset)

    def monotonic(self) -> float:
        return self._system.monotonic() + 1_000 * self._offset

    def sleep(self, seconds: float) -> None:
        self._system.sleep(seconds)


def build_wsgi(
    handler: Handler, settings: dict[str, Any], report: Reporter, offset: float
) -> tuple[Any, BackgroundOperationsManager]:
    manager = BackgroundOperationsManager(
        hooks=[ReportingHooks(report)],
        clock=SkewedClock(offset) if offset else None,
        enable_background_cleanup=False,
        **settings,
    )
    return BackgroundOperationsMiddleware(make_wsgi_app(handler), manager), manager


def build_django(
    handler: Handler, settings: dict[str, Any]
) -> tuple[Any, BackgroundOperationsManager]:
    import django.conf
    from django.core.wsgi import get_wsgi_application
    from django.urls import re_path

    django.conf.settings.configure(
        SECRET_KEY="only-for-tests",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=(re_path("", make_django_view(handler)),),
        INSTALLED_APPS=["dotmac_tasks_django"],
        MIDDLEWARE=["dotmac_tasks_django.middleware.BackgroundOperationsMiddleware"],
        DOTMAC_TASKS={name.upper(): value for name, value in settings.items()},
        LOGGING_CONFIG=None,
    )
    application = get_wsgi_application()
    from dotmac_tasks_django import get_manager

    return application, get_manager()


class Server(ThreadingMixIn, WSGIServer):
    """
    A thread per request, and room for a crowd at the door; shut down by one thread.
    """

    daemon_threads = True
    request_queue_size = 128


class QuietHandler(WSGIRequestHandler):
    """
    Serves one request and logs nothing.
    """

    def log_message(self, format: str, *args: Any) -> None:
        pass


def obey(manager: BackgroundOperationsManager, application: Application, report: Reporter) -> None:
    """
    Follow commands until there are no more.
    """
    commands: dict[str, Callable[[], Any]] = {
        "sync": lambda: None,
        "counts": lambda: manager.guard.counts._asdict(),
        "held": lambda: manager.heartbeat.held_count,
        "unwritten": lambda: manager.heartbeat.unwritten_count,
        "health": lambda: manager.health_check().to_dict(),
        "succeed": lambda: application.endings.put(True),
        "fail": lambda: application.endings.put(False),
    }
    for line in sys.stdin:
        report("reply", value=commands[line.strip()]())


def main() -> None:
    options = json.loads(sys.argv[1])
    report = Reporter()
    work = Application(report)
    if options["adapter"] == "django":
        application, manager = build_django(work, options["settings"])
    else:
        application, manager = build_wsgi(
            work, options["settings"], report, options["clock_offset"]
        )
    with make_server("127.0.0.1", 0, application, Server, QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        report("ready", port=server.server_port)
        try:
            obey(manager, work, report)
        finally:
            server.shutdown()
            thread.join()
    manager.stop()


if __name__ == "__main__":
    main()
