"""
One test's manager, and ways to send a request again.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    ClaimLostError,
    ConfigurationError,
    KeyReusedError,
    OperationFailedError,
    OperationInProgressError,
    OutcomeUnknownError,
)
from dotmac_tasks.events import OperationReconciled
from dotmac_tasks.keys import key_hash
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks.testing.clock import FakeClock
from dotmac_tasks.testing.crowd import run_crowd
from dotmac_tasks.testing.death import DEATHS, Death, DeathPoint, WorkerDeath
from dotmac_tasks.testing.judging import Evidence, judge_error, judge_result
from dotmac_tasks.testing.recorder import EventRecorder
from dotmac_tasks.testing.report import Attempt, AttemptOutcome, SendReport
from dotmac_tasks.testing.storage import GRANTED, ClaimLog, HookedStorage, Outage, SeenClaim

__all__ = ["TasksHarness"]

R = TypeVar("R")

# Seconds for the hooks' thread to catch up.
_FLUSH = 10.0
# What a protected function answers a duplicate with; any other error is the test's business.
_REFUSALS = (
    ClaimLostError,
    KeyReusedError,
    OperationFailedError,
    OperationInProgressError,
    OutcomeUnknownError,
)


class TasksHarness:
    """
    One test's storage, clock, events and manager, and ways to send a request again.

    A context manager; the manager is made when it is first asked for, and stopped at
    the end. Belongs to one test, whose threads may share it: `_lock` guards
    `_manager`. Sendings do not overlap.

    A `send` takes nothing and returns a response: of Django's or Werkzeug's test
    client, of requests, or anything with a status and headers. Anything else that it
    returns is taken for the result of a function that `manager.idempotent` protects.
    What it raises passes through, but for the refusals of such a function.

    Args:
        settings: Settings of the manager, by their lower-case names. Without them it
            has neither a background cleanup nor other hooks than its recorder.

    Attributes:
        clock: Stands still until it is moved.
        storage: Fresh, in memory, on that clock; takes a `StorageHook`.

    Raises:
        ConfigurationError: A setting is unknown or wrong, or names a storage.
    """

    def __init__(self, **settings: Any) -> None:
        if "storage" in settings:
            raise ConfigurationError(
                "storage", "is the harness's own, in memory. Leave it out here.", value=None
            )
        self._settings = settings
        self._config = TasksConfig.from_mapping(settings)
        self.clock = FakeClock()
        self.storage = HookedStorage(MemoryStorage(clock=self.clock))
        self._recorder = EventRecorder()
        self._lock = threading.Lock()
        self._manager: BackgroundOperationsManager | None = None

    @property
    def manager(self) -> BackgroundOperationsManager:
        """
        The manager of this test.
        """
        with self._lock:
            if self._manager is None:
                self._manager = self.make_manager(self._config).start()
            return self._manager

    @property
    def events(self) -> EventRecorder:
        """
        What has happened so far, everything up to now included.
        """
        self.manager.events.flush(_FLUSH)
        return self._recorder

    def make_manager(self, config: TasksConfig) -> BackgroundOperationsManager:
        """
        Make a manager with this harness's storage, clock and settings laid over others.
        """
        # A hook that registers its metrics can be made only once in a process.
        defaults = {"enable_background_cleanup": False, "hooks": ()}
        changes = {**defaults, **self._settings, "storage": "memory://"}
        return BackgroundOperationsManager(
            self.storage,
            clock=self.clock,
            hooks=[self._recorder],
            config=config.replace(**changes),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """
        Stop the manager.
        """
        with self._lock:
            manager = self._manager
        if manager is not None:
            manager.stop()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """
        Have the storage down inside the block.
        """
        with self.storage.hooked(Outage()):
            yield

    # Sending

    def send_twice(
        self, send: Callable[[], R], *, count: Callable[[], int] | None = None
    ) -> SendReport[R]:
        """
        Send a request, and send it again.

        Args:
            send: Sends it.
            count: Tells how often the work has been done so far, such as
                `Order.objects.count`; then it decides how often it ran.
        """
        counter = _Counter(count)
        log = ClaimLog()
        with self.storage.hooked(log):
            attempts = [self._attempt_next(number, send, log) for number in (1, 2)]
        return counter.report(attempts)

    def send_at_once(
        self,
        send: Callable[[], R],
        times: int = 8,
        *,
        count: Callable[[], int] | None = None,
        timeout: float = 30.0,
    ) -> SendReport[R]:
        """
        Send a request from several threads at the same instant.

        Whoever waits for the running one (`in_progress="wait"`) really waits: the
        clock stands still meanwhile.

        Args:
            send: Sends it; called by all threads at once.
            times: How often.
            count: As for `send_twice`.
            timeout: Real seconds after which a thread counts as stuck.

        Raises:
            ValueError: That is not several times.
            TimeoutError: A thread was not done in time; it is left behind.
        """
        if times < 2:
            raise ValueError(f"{times} cannot be at once; send it 2 times or more")
        counter = _Counter(count)
        log = ClaimLog()
        send = self.wrap_for_threads(send)

        def attempt(number: int) -> Attempt[R]:
            this = threading.get_ident()
            return self._attempt(
                number, send, log, lambda: [seen for seen in log.claims if seen.thread == this]
            )

        with self.storage.hooked(log), self.clock.standing_still():
            attempts = run_crowd(attempt, times, timeout)
        return counter.report(attempts)

    def send_dying(
        self,
        send: Callable[[], R],
        dies: DeathPoint = "before_record",
        *,
        count: Callable[[], int] | None = None,
    ) -> SendReport[R]:
        """
        Send a request whose worker dies, let its lease run out, and send it again.

        The process only seems to die: the storage raises a `WorkerDeath` there and
        takes no further call, so that nothing is recorded, released or renewed. The
        clock moves by the lease.

        Args:
            send: Sends it.
            dies: ``before_view``, with the claim but before the work;
                ``before_record``, after the work but before its outcome is
                recorded, or the operation is handed on; ``after_record``, before
                the answer goes out.
            count: As for `send_twice`.

        Raises:
            ValueError: There is no such point.
        """
        death = Death(dies)
        counter = _Counter(count)
        log = ClaimLog()
        with self.storage.hooked(log):
            with self.storage.hooked(death):
                first = self._attempt_dying(send, log, death, dies)
            # What the dead process held is renewed by nobody.
            self.manager.heartbeat.stop()
            if log.claims:
                self.clock.advance(log.claims[0].request.lease)
            attempts = [first, self._attempt_next(2, send, log)]
        return counter.report(attempts, dies)

    def wrap_for_threads(self, send: Callable[[], R]) -> Callable[[], R]:
        """
        Prepare a `send` for threads that end behind it; for subclasses.
        """
        return send

    def explain_unprotected(self) -> str:
        """
        Say what to check where a request with a key went past the library.
        """
        return (
            "Wrap the application with BackgroundOperationsMiddleware(app, harness.manager), or "
            "the function with harness.manager.idempotent(...), with the manager of this harness."
        )

    def _attempt_dying(
        self, send: Callable[[], R], log: ClaimLog, death: Death, dies: DeathPoint
    ) -> Attempt[R]:
        try:
            attempt = self._attempt_next(1, send, log)
        except (Exception, WorkerDeath):
            if not death.died:
                raise
        else:
            if not death.died:
                return attempt
            # A server in between made an answer of it, and a dead process sends none.
        return Attempt(
            number=1,
            outcome=AttemptOutcome.DIED,
            ran=dies != "before_view",
            reason=f"the worker {DEATHS[dies]}",
        )

    def _attempt_next(self, number: int, send: Callable[[], R], log: ClaimLog) -> Attempt[R]:
        before = len(log.claims)
        return self._attempt(number, send, log, lambda: log.claims[before:])

    def _attempt(
        self,
        number: int,
        send: Callable[[], R],
        log: ClaimLog,
        find_claims: Callable[[], Sequence[SeenClaim]],
    ) -> Attempt[R]:
        try:
            answer = send()
        except _REFUSALS as error:
            return judge_error(number, error, self._gather(log, find_claims()))
        if inspect.iscoroutine(answer):
            answer.close()
            raise TypeError(
                "send() returned a coroutine; wrap it: async_to_sync(client.post)(...)."
            )
        return judge_result(number, answer, self._gather(log, find_claims()))

    def _gather(self, log: ClaimLog, claims: Sequence[SeenClaim]) -> Evidence:
        return Evidence(
            claims,
            is_ours=bool(log.claims),
            config=self.manager.config,
            where=self.explain_unprotected(),
            decision=self._find_decision(claims),
        )

    def _find_decision(self, claims: Sequence[SeenClaim]) -> str | None:
        taken = [
            seen.request
            for seen in claims
            if seen.request.takeover and seen.reply.outcome in GRANTED
        ]
        if not taken:
            return None
        hashed = key_hash(taken[-1].key)
        told = [
            event.decision
            for event in self.events.of_type(OperationReconciled)
            if event.key_hash == hashed
        ]
        return told[-1] if told else None


class _Counter:
    """
    Finds out how often the work ran; one per report.
    """

    def __init__(self, count: Callable[[], int] | None) -> None:
        self._count = count
        self._before = 0 if count is None else count()

    def report(
        self, attempts: Sequence[Attempt[R]], death: DeathPoint | None = None
    ) -> SendReport[R]:
        if self._count is None:
            runs = sum(attempt.ran for attempt in attempts)
        else:
            runs = self._count() - self._before
        return SendReport(attempts=tuple(attempts), runs=runs, death=death)
