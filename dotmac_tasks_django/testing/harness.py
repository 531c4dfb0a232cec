"""
One test's manager, which the project's own middleware and decorators use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from django.core.handlers.base import BaseHandler
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.testing.harness import TasksHarness as CoreHarness
from dotmac_tasks.testing.report import SendReport
from dotmac_tasks_django.conf import MIDDLEWARE, get_manager, get_setting, managers_made_by

__all__ = ["TasksHarness"]

R = TypeVar("R")

_IN_A_TRANSACTION = (
    "This test runs inside a transaction, and threads have connections of their own, which "
    "see nothing of it: use a TransactionTestCase, or django_db(transaction=True)."
)


class TasksHarness(CoreHarness):
    """
    One test's storage, clock, events and manager, and ways to send a request again.

    Inside its block `get_manager()` returns its manager, whatever storage
    `DOTMAC_TASKS` names, so that the middleware, the decorators and the commands of
    the project use it. The other settings are the project's, but for its hooks, and
    what is passed here wins over them. Otherwise as `dotmac_tasks.testing.TasksHarness`;
    belongs to one test.

    Threads of `send_at_once` have database connections of their own, which are
    closed behind each sending; the test's transaction hides its rows from them, so
    it has to be a `TransactionTestCase`.

    Args:
        settings: Settings that differ, by their lower-case names.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._block: AbstractContextManager[None] | None = None

    @property
    def manager(self) -> BackgroundOperationsManager:
        """
        The manager of this test.

        Raises:
            RuntimeError: The harness is not open.
        """
        if self._block is None:
            raise RuntimeError("The harness is not open: use it in a `with` block.")
        return get_manager()

    def __enter__(self) -> Self:
        self._block = managers_made_by(self.make_manager)
        self._block.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """
        Stop the manager and give the project its own again.
        """
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(kind, error, traceback)

    def send_at_once(
        self,
        send: Callable[[], R],
        times: int = 8,
        *,
        count: Callable[[], int] | None = None,
        timeout: float = 30.0,
    ) -> SendReport[R]:
        """
        Send a request from several threads at the same instant, which may share a client.
        """
        with _middleware_is_loaded_once():
            return super().send_at_once(send, times, count=count, timeout=timeout)

    def wrap_for_threads(self, send: Callable[[], R]) -> Callable[[], R]:
        """
        Have each thread close its database connections.
        """
        hidden = any(
            connection.in_atomic_block for connection in connections.all(initialized_only=True)
        )

        def send_and_close() -> R:
            try:
                return send()
            except Exception as error:
                if hidden:
                    error.add_note(_IN_A_TRANSACTION)
                raise
            finally:
                for connection in connections.all(initialized_only=True):
                    # Past SQLite's own way, which leaves a database in memory open.
                    BaseDatabaseWrapper.close(connection)

        return send_and_close

    def explain_unprotected(self) -> str:
        """
        Say what to check where a request with a key went past the library.
        """
        if MIDDLEWARE not in (get_setting("MIDDLEWARE") or ()):
            return f"Put {MIDDLEWARE} into MIDDLEWARE, or @idempotent on the view."
        return (
            "The middleware is in MIDDLEWARE, so see whether the view is @idempotency_exempt, or "
            "whether a middleware before it answers by itself."
        )


@contextmanager
def _middleware_is_loaded_once() -> Iterator[None]:
    """
    Let one thread load the middleware of a test client that several threads use.

    Django's client does so with its first request, one thread over the other; then a request may
    pass that no middleware has seen. A real server loads it before it serves.
    """
    load = BaseHandler.load_middleware
    lock = threading.Lock()

    def load_once(handler: Any, is_async: bool = False) -> None:
        with lock:
            # Written last: a thread that has found none may have waited here for it.
            if handler._middleware_chain is None:  # noqa: SLF001 - no public way
                load(handler, is_async)

    # Of the base class, so that it holds for the clients of WSGI and of ASGI; put back below.
    BaseHandler.load_middleware = load_once  # type: ignore[method-assign, assignment] # as said
    try:
        yield
    finally:
        BaseHandler.load_middleware = load  # type: ignore[method-assign] # Django's own
