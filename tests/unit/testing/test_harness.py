from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dotmac_tasks import (
    BackgroundOperationsManager,
    BackgroundOperationsMiddleware,
    ConfigurationError,
    IdempotencyError,
    LockNotAcquiredError,
)
from dotmac_tasks.events import IdempotencyMiss
from dotmac_tasks.models import ClaimOutcome
from dotmac_tasks.testing import StorageHook, TasksHarness, VerbCall, WorkerDeath
from dotmac_tasks.testing.report import AttemptOutcome
from support.concurrency import Counter
from support.http_clients import Call, HttpClient, Reply, Response, make_wsgi_app

RAN = AttemptOutcome.RAN
REPLAYED = AttemptOutcome.REPLAYED
REFUSED = AttemptOutcome.REFUSED
UNPROTECTED = AttemptOutcome.UNPROTECTED
TURNED_AWAY = AttemptOutcome.TURNED_AWAY
DIED = AttemptOutcome.DIED


class Shop:
    """
    A WSGI application that counts its runs, and a client of it.
    """

    def __init__(self, manager: BackgroundOperationsManager | None, status: int = 201) -> None:
        self.counter = Counter()
        self.status = status
        app = make_wsgi_app(self.handle)
        self.client = HttpClient(
            app if manager is None else BackgroundOperationsMiddleware(app, manager),
            manager or BackgroundOperationsManager(),
        )

    @property
    def runs(self) -> int:
        return self.counter.value

    def handle(self, call: Call) -> Reply:
        return Reply(self.status, body=b'{"run": %d}' % self.counter.increment())

    def order(self, key: str | None = "key-1", **request: Any) -> Response:
        return self.client.send(key=key, **request)


@pytest.fixture
def shop(tasks_harness: TasksHarness) -> Shop:
    return Shop(tasks_harness.manager)


def outcomes_of(report: Any) -> list[AttemptOutcome]:
    return [attempt.outcome for attempt in report.attempts]


class TestTwice:
    def test_retry_is_replayed(self, tasks_harness: TasksHarness, shop: Shop) -> None:
        """A protected request runs once, and its retry is seen to get the recorded answer."""
        report = tasks_harness.send_twice(shop.order)
        assert (report.runs, shop.runs) == (1, 1)
        assert outcomes_of(report) == [RAN, REPLAYED]
        assert [response.body for response in report.responses] == [b'{"run": 1}'] * 2
        assert (report.replayed, report.refused, report.unprotected) == (
            [report.attempts[1]],
            [],
            [],
        )
        assert [attempt.status for attempt in report.attempts] == [201, 201]
        report.assert_ran_once()
        report.assert_replayed()

    @pytest.mark.parametrize(
        "request_", [{"key": None}, {"method": "PUT"}, {"path": "/health/"}], ids=str
    )
    def test_request_that_is_not_covered_is_seen_to_run_twice(
        self, tasks_harness: TasksHarness, shop: Shop, request_: dict[str, Any]
    ) -> None:
        """Without a key, by another method or on an exempt path the report counts both runs."""
        report = tasks_harness.send_twice(lambda: shop.order(**request_))
        assert report.runs == shop.runs == 2
        assert outcomes_of(report) == [UNPROTECTED] * 2
        assert report.unprotected == list(report.attempts)
        with pytest.raises(AssertionError, match=r"ran 2 times instead of once[\s\S]*What to do"):
            report.assert_ran_once()

    def test_forgotten_middleware_is_told(self, tasks_harness: TasksHarness) -> None:
        """Where nothing protects the application the assertion says what to put around it."""
        shop = Shop(None)
        report = tasks_harness.send_twice(shop.order)
        assert report.runs == shop.runs == 2
        with pytest.raises(AssertionError, match="Wrap the application"):
            report.assert_ran_once()

    def test_other_manager_is_told(self, tasks_harness: TasksHarness) -> None:
        """Where another manager protects the application the report says so and counts right."""
        with BackgroundOperationsManager() as manager:
            report = tasks_harness.send_twice(Shop(manager).order)
        assert outcomes_of(report) == [RAN, REPLAYED]
        assert "another manager than this test's" in str(report)
        assert report.runs == 1

    def test_address_that_is_not_there_counts_no_run(self, tasks_harness: TasksHarness) -> None:
        """An answer such as 404 that the library had no part in counts as no run of the work."""
        report = tasks_harness.send_twice(Shop(None, status=404).order)
        assert report.runs == 0
        assert outcomes_of(report) == [TURNED_AWAY] * 2
        with pytest.raises(AssertionError, match=r"ran 0 times[\s\S]*Check the URL"):
            report.assert_ran_once()

    def test_outage_leaves_requests_unprotected(
        self, tasks_harness: TasksHarness, shop: Shop
    ) -> None:
        """While the storage is down both run, and the report says why."""
        with tasks_harness.outage():
            report = tasks_harness.send_twice(shop.order)
        assert report.runs == shop.runs == 2
        assert {attempt.reason for attempt in report.unprotected} == {"the storage was down"}
        tasks_harness.send_twice(shop.order).assert_ran_once()

    @pytest.mark.parametrize("tasks_settings", [{"on_storage_error": "reject"}])
    def test_outage_can_refuse_requests(self, tasks_harness: TasksHarness, shop: Shop) -> None:
        """Settings of the test hold: with strictness both are refused and none runs."""
        with tasks_harness.outage():
            report = tasks_harness.send_twice(shop.order)
        assert report.runs == shop.runs == 0
        assert report.problems == ["storage-unavailable"] * 2

    def test_key_of_its_own_for_each_sending_is_told(
        self, tasks_harness: TasksHarness, shop: Shop
    ) -> None:
        """A new key each time makes two runs, and the report says that the keys differ."""
        keys = iter(["key-1", "key-2"])
        report = tasks_harness.send_twice(lambda: shop.order(next(keys)))
        assert report.runs == shop.runs == 2
        assert "Send the same key each time" in str(report)
        assert "key-1" not in str(report) + repr(report) + repr(report.attempts)

    def test_same_key_of_another_user_is_told(
        self, tasks_harness: TasksHarness, shop: Shop
    ) -> None:
        """The same key of two users makes two runs, and the report says what a key counts for."""
        users = iter(["ann", "bob"])
        report = tasks_harness.send_twice(lambda: shop.order(REMOTE_USER=next(users)))
        assert report.runs == shop.runs == 2
        assert "the same user of the same tenant" in str(report)

    def test_key_that_was_given_back_is_told(self, tasks_harness: TasksHarness) -> None:
        """A server error gives the key back, so that both run, and the report says so."""
        shop = Shop(tasks_harness.manager, status=503)
        report = tasks_harness.send_twice(shop.order)
        assert report.runs == shop.runs == 2
        assert "gave the key back" in str(report)

    def test_refusal_is_told_with_its_type(self, tasks_harness: TasksHarness, shop: Shop) -> None:
        """Another body under the same key runs nothing; the refusal's type and advice are told."""
        bodies = iter([b"1", b"2"])
        report = tasks_harness.send_twice(lambda: shop.order(body=next(bodies)))
        assert (report.runs, shop.runs) == (1, 1)
        assert report.problems == ["key-reused"]
        report.assert_ran_once()
        with pytest.raises(AssertionError, match="Send the same method, path and body"):
            report.assert_replayed()

    def test_key_that_was_used_before_is_told(
        self, tasks_harness: TasksHarness, shop: Shop
    ) -> None:
        """Where an earlier request has used the key nothing runs, and the report says so."""
        shop.order()
        for report in (
            tasks_harness.send_twice(shop.order),
            tasks_harness.send_dying(shop.order),
        ):
            assert report.runs == 0
            assert "a key that was not used before" in str(report)
        assert shop.runs == 1

    def test_own_counter_decides(self, tasks_harness: TasksHarness) -> None:
        """With a counter the work's own count of this report's runs is what counts."""
        done = Counter()
        done.increment(5)
        report = tasks_harness.send_twice(done.increment, count=lambda: done.value)
        assert report.runs == 2
        assert tasks_harness.send_twice(lambda: 0, count=lambda: done.value).runs == 0

    @pytest.mark.parametrize("error", [ZeroDivisionError(), IdempotencyError("key", "misused")])
    def test_error_of_the_application_passes_through(
        self, tasks_harness: TasksHarness, error: Exception
    ) -> None:
        """What the sending raises is the test's business, unless a duplicate is refused by it."""

        def send() -> None:
            raise error

        with pytest.raises(type(error)):
            tasks_harness.send_twice(send)

    def test_coroutine_is_refused(self, tasks_harness: TasksHarness) -> None:
        """An asynchronous client's request that nobody awaits is refused with the way out."""

        async def send() -> int:
            return 1

        with pytest.raises(TypeError, match="async_to_sync"):
            tasks_harness.send_twice(send)


class Watch(StorageHook):
    """
    Says when a duplicate was told that the first still runs.
    """

    def __init__(self) -> None:
        self.told = threading.Event()

    def after(self, call: VerbCall, reply: Any) -> None:
        if call.verb == "claim_operation" and reply.outcome is ClaimOutcome.IN_PROGRESS:
            self.told.set()


class SlowShop(Shop):
    """
    Works until a duplicate has come.
    """

    def __init__(self, harness: TasksHarness) -> None:
        super().__init__(harness.manager)
        self.watch = Watch()

    def handle(self, call: Call) -> Reply:
        assert self.watch.told.wait(30)
        return super().handle(call)


class TestAtOnce:
    def test_one_of_a_crowd_runs(self, tasks_harness: TasksHarness) -> None:
        """One of eight runs; at least one is told that it still runs, and all are accounted for."""
        shop = SlowShop(tasks_harness)
        with tasks_harness.storage.hooked(shop.watch):
            report = tasks_harness.send_at_once(shop.order)
        assert (report.runs, shop.runs) == (1, 1)
        assert len(report.attempts) == len(report.responses) == 8
        assert [attempt.number for attempt in report.attempts] == list(range(1, 9))
        assert set(report.problems) == {"still-running"}
        assert 1 + len(report.replayed) + len(report.refused) == 8
        report.assert_ran_once()

    @pytest.mark.parametrize("tasks_settings", [{"in_progress": "wait", "max_waiting": 8}])
    def test_crowd_waits_although_the_clock_stands_still(self, tasks_harness: TasksHarness) -> None:
        """Those who wait use up nobody's lease: all get the answer, and no time has passed."""
        shop = SlowShop(tasks_harness)
        before = tasks_harness.clock.now()
        with tasks_harness.storage.hooked(shop.watch):
            report = tasks_harness.send_at_once(shop.order, 5)
        report.assert_replayed()
        assert len(report.replayed) == 4
        assert tasks_harness.clock.now() == before

    def test_unprotected_crowd_runs_each_time(self, tasks_harness: TasksHarness) -> None:
        """Without protection every run is counted."""
        shop = Shop(None)
        report = tasks_harness.send_at_once(shop.order, 3)
        assert report.runs == shop.runs == 3

    def test_less_than_two_is_no_crowd(self, tasks_harness: TasksHarness) -> None:
        """One sending cannot be at once with another."""
        with pytest.raises(ValueError, match="2 times or more"):
            tasks_harness.send_at_once(int, 1)

    def test_error_in_a_thread_is_raised_where_the_test_runs(
        self, tasks_harness: TasksHarness
    ) -> None:
        """An exception of one sending is not lost with its thread."""
        with pytest.raises(ZeroDivisionError):
            tasks_harness.send_at_once(lambda: 1 / 0)


DYING: list[tuple[Any, str, int, AttemptOutcome, list[str]]] = [
    ("before_view", "rerun", 1, RAN, []),
    ("before_record", "rerun", 2, RAN, []),
    ("after_record", "rerun", 1, REPLAYED, []),
    ("before_view", "refuse", 0, REFUSED, ["outcome-unknown"]),
    ("before_record", "refuse", 1, REFUSED, ["outcome-unknown"]),
    ("after_record", "refuse", 1, REPLAYED, []),
]


class TestDying:
    @pytest.mark.parametrize(("dies", "policy", "runs", "second", "problems"), DYING)
    def test_retry_after_a_death(
        self, dies: Any, policy: str, runs: int, second: AttemptOutcome, problems: list[str]
    ) -> None:
        """The work runs as often as the point of the death and the policy have it."""
        with TasksHarness(on_abandoned=policy) as harness:
            shop = Shop(harness.manager)
            report = harness.send_dying(shop.order, dies)
            assert report.runs == shop.runs == runs
            assert outcomes_of(report) == [DIED, second]
            assert report.died
            assert report.problems == problems
            assert len(report.responses) == 1
            assert harness.manager.heartbeat.held_count == 0

    def test_second_run_is_explained(self, tasks_harness: TasksHarness, shop: Shop) -> None:
        """The assertion says why a death makes two runs, and what helps."""
        report = tasks_harness.send_dying(shop.order)
        with pytest.raises(AssertionError, match=r"ran 2 times[\s\S]*downstream_key"):
            report.assert_ran_once()

    def test_lease_of_the_claim_runs_out(self, tasks_harness: TasksHarness, shop: Shop) -> None:
        """The clock moves by the lease of the claim, and by no more."""
        before = tasks_harness.clock.monotonic()
        tasks_harness.send_dying(shop.order)
        assert tasks_harness.clock.monotonic() == before + 30

    def test_error_counts_as_a_death(self, tasks_harness: TasksHarness) -> None:
        """A server error gives the key back; a death right before that leaves it to the lease."""
        shop = Shop(tasks_harness.manager, status=503)
        report = tasks_harness.send_dying(shop.order)
        assert report.runs == shop.runs == 2
        (miss, again) = tasks_harness.events.of_type(IdempotencyMiss)
        assert (miss.taken_over, again.taken_over) == (False, True)

    def test_deferred_work_dies_where_it_is_handed_on(self, tasks_harness: TasksHarness) -> None:
        """A view that hands its work on dies before or after that is written."""
        shop = Shop(tasks_harness.manager)

        def defer(call: Call) -> Reply:
            shop.counter.increment()
            call.defer(3600)
            return Reply(202)

        shop.handle = defer  # type: ignore[method-assign]
        client = HttpClient(
            BackgroundOperationsMiddleware(make_wsgi_app(defer), tasks_harness.manager),
            tasks_harness.manager,
        )
        lost = tasks_harness.send_dying(lambda: client.send(key="key-1"))
        assert (lost.runs, shop.runs) == (2, 2)
        kept = tasks_harness.send_dying(lambda: client.send(key="key-2"), "after_record")
        assert (kept.runs, shop.runs) == (1, 3)
        assert kept.problems == ["still-running"]

    def test_server_that_answers_for_the_dead_is_seen_through(
        self, tasks_harness: TasksHarness, shop: Shop
    ) -> None:
        """An answer, or an error, that something in between makes of the death counts as none."""

        def as_answer() -> Response:
            try:
                return shop.order("key-1")
            except WorkerDeath:
                return Response(500, [], b"")

        def as_error() -> Response:
            try:
                return shop.order("key-2")
            except WorkerDeath:
                raise ConnectionError from None

        for send in (as_answer, as_error):
            report = tasks_harness.send_dying(send)
            assert outcomes_of(report) == [DIED, RAN]
            assert report.runs == 2

    def test_unprotected_worker_cannot_die(self, tasks_harness: TasksHarness) -> None:
        """Where no claim is made both run, and the report says that nobody died, and why."""
        shop = Shop(None)
        before = tasks_harness.clock.now()
        report = tasks_harness.send_dying(shop.order)
        assert report.runs == shop.runs == 2
        assert not report.died
        assert tasks_harness.clock.now() == before
        assert "did not reach the point 'before_record'" in str(report)
        assert "Wrap the application" in str(report)

    def test_error_of_the_application_passes_through(self, tasks_harness: TasksHarness) -> None:
        """An exception that is no death is the test's business."""
        with pytest.raises(ZeroDivisionError):
            tasks_harness.send_dying(lambda: 1 / 0)

    def test_unknown_point_is_refused(self, tasks_harness: TasksHarness) -> None:
        """A worker dies at the named points only."""
        with pytest.raises(ValueError, match="before_view, before_record, after_record"):
            tasks_harness.send_dying(int, "later")  # type: ignore[arg-type]

    def test_dead_worker_gives_no_lock_back(self, tasks_harness: TasksHarness) -> None:
        """What else the dead worker held stays held, and is renewed by nobody."""
        manager = tasks_harness.manager
        charge = manager.idempotent("charge")(lambda: 1)

        def send() -> int:
            with manager.lock("stock", ttl=45):
                return charge()

        with pytest.raises(LockNotAcquiredError):
            tasks_harness.send_dying(send)
        tasks_harness.clock.advance(15)
        assert send() == 1


class TestFunctions:
    @pytest.fixture
    def runs(self) -> list[int]:
        return []

    @pytest.fixture
    def charge(self, tasks_harness: TasksHarness, runs: list[int]) -> Callable[[int], None]:
        @tasks_harness.manager.idempotent("charge")
        def charge(order: int) -> None:
            runs.append(order)

        return charge

    def test_second_call_is_replayed(
        self, tasks_harness: TasksHarness, charge: Callable[[int], None], runs: list[int]
    ) -> None:
        """A protected function runs once, also where its result is None."""
        report = tasks_harness.send_twice(lambda: charge(7))
        report.assert_replayed()
        assert report.responses == [None, None]
        assert runs == [7]

    def test_calls_at_once_run_once(
        self, tasks_harness: TasksHarness, charge: Callable[[int], None], runs: list[int]
    ) -> None:
        """Of a crowd of calls one runs; the others are replayed or refused with an error."""
        report = tasks_harness.send_at_once(lambda: charge(7))
        report.assert_ran_once()
        assert runs == [7]
        assert set(report.problems) <= {"OperationInProgressError"}

    @pytest.mark.parametrize(("dies", "policy", "runs_", "second", "problems"), DYING)
    def test_call_after_a_death(
        self,
        dies: Any,
        policy: Any,
        runs_: int,
        second: AttemptOutcome,
        problems: list[str],
        tasks_harness: TasksHarness,
        runs: list[int],
    ) -> None:
        """The function runs as often as the point of the death and the policy have it."""

        @tasks_harness.manager.idempotent("charge", on_abandoned=policy, lease=5)
        def charge(order: int) -> int:
            runs.append(order)
            return order

        report = tasks_harness.send_dying(lambda: charge(7), dies)
        assert report.runs == len(runs) == runs_
        assert outcomes_of(report) == [DIED, second]
        assert report.problems == ["OutcomeUnknownError" for _ in problems]

    def test_forgotten_decorator_is_told(self, tasks_harness: TasksHarness) -> None:
        """A plain function is seen to run each time."""
        report = tasks_harness.send_twice(lambda: [1])
        assert report.runs == 2
        assert report.responses == [[1], [1]]
        assert "it claimed no key of this test's manager" in str(report)

    def test_other_arguments_are_told(
        self, tasks_harness: TasksHarness, charge: Callable[[int], None]
    ) -> None:
        """Calls with different arguments are two operations, and the report says so."""
        orders = iter([7, 8])
        report = tasks_harness.send_twice(lambda: charge(next(orders)))
        assert report.runs == 2
        assert "with the same arguments" in str(report)

    def test_outer_function_counts(self, tasks_harness: TasksHarness, runs: list[int]) -> None:
        """A protected function inside of another neither counts nor dies for it."""
        manager = tasks_harness.manager
        inner = manager.idempotent("inner")(lambda: 1)

        @manager.idempotent("outer")
        def outer() -> int:
            inner()
            runs.append(1)
            return 1

        report = tasks_harness.send_dying(outer)
        assert report.runs == len(runs) == 2

    def test_lost_claim_counts_as_a_run(self, tasks_harness: TasksHarness) -> None:
        """A call whose claim was lost has run, although it ends with an error."""

        @tasks_harness.manager.idempotent("charge", lease=5)
        def charge() -> int:
            if tasks_harness.manager.guard.counts.executions == 1:
                tasks_harness.manager.heartbeat.stop()
                tasks_harness.clock.advance(6)
                charge()
            return 1

        report = tasks_harness.send_twice(charge)
        assert (report.attempts[0].problem, report.attempts[0].ran) == ("ClaimLostError", True)
        assert outcomes_of(report) == [RAN, REPLAYED]

    def test_view_that_calls_a_protected_function_is_judged_by_it(
        self, tasks_harness: TasksHarness, charge: Callable[[int], None], runs: list[int]
    ) -> None:
        """Behind a view without protection the function's claims tell what ran."""

        def send() -> Response:
            charge(7)
            return Response(200, [], b"")

        report = tasks_harness.send_twice(send)
        report.assert_replayed()
        assert runs == [7]


class TestReconciled:
    @pytest.mark.parametrize(
        ("answer", "outcome", "runs", "problems"),
        [
            (lambda operation: operation.found(7), REPLAYED, 1, []),
            (lambda operation: operation.run_again(), RAN, 2, []),
            (lambda operation: operation.failed("no"), REFUSED, 1, ["OperationFailedError"]),
            (lambda operation: operation.ask_person(), REFUSED, 1, ["OutcomeUnknownError"]),
        ],
        ids=["found", "run_again", "failed", "ask_person"],
    )
    def test_call_after_a_death_asks(
        self,
        tasks_harness: TasksHarness,
        answer: Any,
        outcome: AttemptOutcome,
        runs: int,
        problems: list[str],
    ) -> None:
        """A retry that asks what became of the work is judged by what it was told."""
        done = Counter()
        charge = tasks_harness.manager.idempotent(
            "charge", on_abandoned="refuse", reconcile=answer
        )(done.increment)
        report = tasks_harness.send_dying(charge)
        assert outcomes_of(report) == [DIED, outcome]
        assert report.runs == done.value == runs
        assert report.problems == problems

    def test_request_after_a_death_asks(self) -> None:
        """Over HTTP the answer that the callback has found counts as a replay."""
        settings: dict[str, Any] = {
            "on_abandoned": "refuse",
            "reconcile": lambda operation: operation.found({"charged": True}, status=201),
        }
        with TasksHarness(**settings) as harness:
            shop = Shop(harness.manager)
            report = harness.send_dying(shop.order)
            report.assert_ran_once()
            assert outcomes_of(report) == [DIED, REPLAYED]
            assert report.responses[0].json() == {"charged": True}

    def test_callback_that_dies_leaves_the_call_without_an_outcome(
        self, tasks_harness: TasksHarness
    ) -> None:
        """A retry whose callback is stopped has not run the work, and its end passes through."""

        def stop(operation: object) -> Any:
            raise KeyboardInterrupt

        charge = tasks_harness.manager.idempotent("charge", on_abandoned="refuse", reconcile=stop)(
            lambda: 1
        )
        with pytest.raises(KeyboardInterrupt):
            tasks_harness.send_dying(charge)


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("dotmac-tasks.")}


class TestLife:
    def test_nothing_is_left_behind(self) -> None:
        """Its threads, which do start, have ended with the block."""
        before = our_threads()
        with TasksHarness(enable_background_cleanup=True) as harness:
            harness.send_twice(Shop(harness.manager).order).assert_ran_once()
            during = our_threads() - before
            assert {thread.name for thread in during} == {
                "dotmac-tasks.cleanup",
                "dotmac-tasks.events",
                "dotmac-tasks.heartbeat",
            }
        assert not any(thread.is_alive() for thread in during)
        assert our_threads() == before

    def test_manager_is_made_when_it_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A harness that nobody uses makes no manager; one that is used makes one."""
        made = []
        original = TasksHarness.make_manager
        monkeypatch.setattr(
            TasksHarness,
            "make_manager",
            lambda self, config: made.append(config) or original(self, config),
        )
        with TasksHarness():
            pass
        assert made == []
        with TasksHarness(lease=7) as harness:
            assert harness.manager is harness.manager
        assert [config.lease for config in made] == [7]

    def test_settings_are_those_of_the_test(self, tasks_harness: TasksHarness) -> None:
        """Without settings it has the defaults, but for the cleanup, and its own storage."""
        config = tasks_harness.manager.config
        assert (config.lease, config.enable_background_cleanup) == (30, False)
        assert tasks_harness.storage.get_stats().idempotency_keys == 0

    def test_storage_cannot_be_chosen(self) -> None:
        """A storage among the settings is refused, and a wrong setting before its first use."""
        with pytest.raises(ConfigurationError, match="harness's own"):
            TasksHarness(storage="redis://localhost")
        with pytest.raises(ConfigurationError, match="LEASE"):
            TasksHarness(lease=-1)

    def test_events_are_up_to_date(self, tasks_harness: TasksHarness, shop: Shop) -> None:
        """What has just happened is among the events, without a wait in the test."""
        shop.order()
        assert len(tasks_harness.events.of_type(IdempotencyMiss)) == 1

    def test_tests_share_nothing(self) -> None:
        """Two at once know nothing of each other's keys."""
        with TasksHarness() as one, TasksHarness() as other:
            for harness in (one, other):
                harness.send_twice(Shop(harness.manager).order).assert_ran_once()


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_stuck_crowd_ends_the_test(tasks_harness: TasksHarness, stuck: threading.Event) -> None:
    """A sending that does not come back fails the test instead of stopping it."""
    with pytest.raises(TimeoutError, match=r"3 of 3 were not done within 0\.01 s"):
        tasks_harness.send_at_once(lambda: stuck.wait(60), 3, timeout=0.01)
