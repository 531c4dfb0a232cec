from __future__ import annotations

import json
import threading
import time
import unittest
from sqlite3 import ProgrammingError
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.handlers.base import BaseHandler
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, TransactionTestCase, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from dotmac_tasks.testing import AttemptOutcome, EventRecorder
from dotmac_tasks.testing import TasksHarness as CoreHarness
from dotmac_tasks_django import downstream_key, get_manager, idempotency_exempt, idempotent
from dotmac_tasks_django.testing import TasksHarness, override_tasks_settings
from support.django_project.calls import count_call, get_calls
from support.django_project.settings import MIDDLEWARE

JSON = "application/json"
KEY = {"Idempotency-Key": "key-1"}
WITHOUT = [name for name in MIDDLEWARE if not name.startswith("dotmac_tasks_django")]
RAN = AttemptOutcome.RAN
REPLAYED = AttemptOutcome.REPLAYED
REFUSED = AttemptOutcome.REFUSED
UNPROTECTED = AttemptOutcome.UNPROTECTED
TURNED_AWAY = AttemptOutcome.TURNED_AWAY
DIED = AttemptOutcome.DIED


class Sender:
    """
    Sends one request as often as it is called.
    """

    def __init__(self, url: str, *, method: str = "post", client: Any = None, **facts: Any) -> None:
        self.url = url
        self.method = method
        self.client = client or Client(raise_request_exception=False)
        self.facts = {"headers": KEY, "content_type": JSON, **facts}

    def __call__(self) -> Any:
        return getattr(self.client, self.method)(self.url, {"amount": 1}, **self.facts)


def outcomes_of(report: Any) -> list[AttemptOutcome]:
    return [attempt.outcome for attempt in report.attempts]


class TestManager:
    def test_middleware_uses_the_manager_of_the_test(self, tasks_harness: TasksHarness) -> None:
        """The manager is the project's during the test, over the harness's storage and clock."""
        assert get_manager() is tasks_harness.manager
        Sender("/pay/")()
        assert tasks_harness.storage.get_stats().idempotency_keys == 1
        assert tasks_harness.events.events

    def test_project_for_redis_is_tested_without_one(self) -> None:
        """Whatever storage the settings name, nothing connects anywhere."""
        with override_tasks_settings(storage="redis://127.0.0.1:1/0"), TasksHarness() as harness:
            harness.send_twice(Sender("/pay/")).assert_replayed()

    @pytest.mark.parametrize("tasks_settings", [{"lease": 7}])
    def test_settings_are_the_projects_but_for_the_tests(self, tasks_harness: TasksHarness) -> None:
        """Settings of the test lie over the project's, also over those changed meanwhile."""
        with override_tasks_settings(wait=3, lease=5):
            config = get_manager().config
            assert (config.wait, config.lease) == (3, 7)
            assert get_manager() is tasks_harness.manager
            tasks_harness.send_twice(Sender("/pay/")).assert_ran_once()
        assert get_manager().config.wait == 10
        # The storage is the same one.
        assert tasks_harness.send_twice(Sender("/pay/")).runs == 0

    def test_hooks_of_the_project_are_left_out(self) -> None:
        """The project's hooks are made for no test, unless its settings name them."""
        recorder = EventRecorder()
        with override_tasks_settings(hooks=[recorder]):
            with TasksHarness() as harness:
                harness.send_twice(Sender("/pay/"))
                assert harness.events.events
            assert recorder.events == []
            with TasksHarness(hooks=[recorder]) as harness:
                harness.send_twice(Sender("/pay/"))
                assert harness.events.events == recorder.events != []

    def test_managers_before_and_behind_are_the_projects(self) -> None:
        """The block's manager is stopped at its end, and the one from before is not used again."""
        before = get_manager()
        others = set(threading.enumerate())
        with TasksHarness() as harness:
            during = harness.manager
            harness.send_twice(Sender("/pay/"))
            threads = set(threading.enumerate()) - others
            names = {thread.name for thread in threads}
            assert names == {"dotmac-tasks.heartbeat", "dotmac-tasks.events"}
        assert not any(thread.is_alive() for thread in threads)
        assert get_manager() not in (before, during)
        assert get_manager().storage is not harness.storage

    def test_blocks_nest(self) -> None:
        """Inside of another block the inner one's manager counts, then the outer's again."""
        with TasksHarness(lease=5) as outer:
            with TasksHarness(lease=6) as inner:
                assert get_manager().config.lease == inner.manager.config.lease == 6
            assert get_manager().config.lease == outer.manager.config.lease == 5
            outer.send_twice(Sender("/pay/")).assert_ran_once()
            assert inner.storage.get_stats().idempotency_keys == 0

    def test_harness_that_is_not_open_is_refused(self) -> None:
        """Outside of its block it has no manager, and leaving it twice does no harm."""
        harness = TasksHarness()
        with harness:
            assert isinstance(harness, CoreHarness)
        harness.__exit__(None, None, None)
        with pytest.raises(RuntimeError, match="`with` block"):
            _ = harness.manager


class TestTwice:
    def test_retry_is_replayed(self, tasks_harness: TasksHarness, client: Client) -> None:
        """A retry of a protected view gets the recorded answer and runs nothing."""
        report = tasks_harness.send_twice(Sender("/pay/", client=client))
        report.assert_replayed()
        assert get_calls("pay") == 1
        assert [response.json() for response in report.responses] == [{"number": 1}] * 2

    @pytest.mark.parametrize(
        ("sender", "reason", "advice"),
        [
            (Sender("/pay/", headers={}), "it had no Idempotency-Key header", "Send a key"),
            (Sender("/pay/", method="get"), "GET is not covered", "METHODS"),
            (Sender("/health/pay/"), "/health/pay/ is exempt", "EXEMPT_PATHS"),
        ],
        ids=["no-key", "get", "exempt-path"],
    )
    def test_unprotected_request_is_told(
        self, tasks_harness: TasksHarness, sender: Sender, reason: str, advice: str
    ) -> None:
        """A request that nothing protects is seen to run twice, and why."""
        report = tasks_harness.send_twice(sender)
        assert report.runs == get_calls("pay") == 2
        assert outcomes_of(report) == [UNPROTECTED] * 2
        assert {attempt.reason for attempt in report.attempts} == {reason}
        with pytest.raises(AssertionError, match=f"ran 2 times instead of once[\\s\\S]*{advice}"):
            report.assert_ran_once()

    def test_forgotten_middleware_is_told(self, tasks_harness: TasksHarness) -> None:
        """Without the middleware both run, and the report names the line that is missing."""
        with override_settings(MIDDLEWARE=WITHOUT):
            report = tasks_harness.send_twice(Sender("/pay/"))
            assert report.runs == get_calls("pay") == 2
            with pytest.raises(AssertionError, match="into MIDDLEWARE, or @idempotent on the view"):
                report.assert_ran_once()

    def test_exempt_view_is_told(self, tasks_harness: TasksHarness) -> None:
        """Under the middleware an exempt view is seen to run twice, and where to look."""
        report = tasks_harness.send_twice(Sender("/exempt/"))
        assert report.runs == 2
        assert "whether the view is @idempotency_exempt" in str(report)

    def test_decorator_protects_without_the_middleware(self, tasks_harness: TasksHarness) -> None:
        """A decorated view uses the same manager where the middleware is not installed."""
        with override_settings(MIDDLEWARE=WITHOUT):
            report = tasks_harness.send_twice(Sender("/required/"))
        report.assert_replayed()
        assert get_calls("required") == 1

    def test_run_that_nothing_protected_is_not_once(self, tasks_harness: TasksHarness) -> None:
        """Whoever else turns a retry away, as a throttle does, makes no protected view."""

        @idempotency_exempt
        def view(request: HttpRequest) -> HttpResponse:
            return HttpResponse(status=201 if count_call("exempt") == 1 else 429)

        with override_settings(ROOT_URLCONF=(path("view/", view),)):
            report = tasks_harness.send_twice(Sender("/view/"))
        assert (outcomes_of(report), report.runs) == ([UNPROTECTED, TURNED_AWAY], 1)
        with pytest.raises(AssertionError, match="nothing protected it"):
            report.assert_ran_once()

    def test_answer_that_is_not_sent_is_told(self, tasks_harness: TasksHarness) -> None:
        """A retry that the view answers past its decorator has run, or was turned away."""

        class Overridden(View):
            def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
                count = count_call("patch")
                return HttpResponse(status=403 if count == 3 else 200)

            @method_decorator(idempotent)
            def post(self, request: HttpRequest) -> HttpResponse:
                return HttpResponse()

        with override_settings(ROOT_URLCONF=(path("patch/", Overridden.as_view()),)):
            report = tasks_harness.send_twice(Sender("/patch/"))
            assert (outcomes_of(report), report.runs) == ([RAN, UNPROTECTED], 2)
            assert "its stored answer did not come" in str(report)
            with pytest.raises(AssertionError, match="The work ran 2 times"):
                report.assert_ran_once()
            report = tasks_harness.send_twice(Sender("/patch/"))
        assert outcomes_of(report) == [TURNED_AWAY, UNPROTECTED]

    def test_address_that_is_not_there_is_told(self, tasks_harness: TasksHarness) -> None:
        """An address without a view counts no run."""
        report = tasks_harness.send_twice(Sender("/nowhere/"))
        assert report.runs == 0
        assert outcomes_of(report) == [TURNED_AWAY] * 2

    def test_missing_key_is_refused(self, tasks_harness: TasksHarness) -> None:
        """A view that requires a key refuses both, and the report has the type."""
        report = tasks_harness.send_twice(Sender("/required/", headers={}))
        assert report.runs == 0
        assert report.problems == ["missing-key"] * 2

    def test_asynchronous_client_is_served(self, tasks_harness: TasksHarness) -> None:
        """An asynchronous client is sent through async_to_sync."""
        post = async_to_sync(AsyncClient().post)
        report = tasks_harness.send_twice(
            lambda: post("/pay/", {"amount": 1}, content_type=JSON, headers=KEY)
        )
        report.assert_replayed()

    def test_stream_is_not_replayable(self, tasks_harness: TasksHarness) -> None:
        """A stream that is read to its end runs once, and its retry is refused."""

        def send() -> Any:
            response = Sender("/stream/")()
            b"".join(getattr(response, "streaming_content", ()))
            return response

        report = tasks_harness.send_twice(send)
        report.assert_ran_once()
        assert report.problems == ["not-replayable"]


DYING: list[tuple[Any, str, int, AttemptOutcome]] = [
    ("before_view", "rerun", 1, RAN),
    ("before_record", "rerun", 2, RAN),
    ("after_record", "rerun", 1, REPLAYED),
    ("before_view", "refuse", 0, REFUSED),
    ("before_record", "refuse", 1, REFUSED),
    ("after_record", "refuse", 1, REPLAYED),
]


@pytest.mark.parametrize("middleware", [MIDDLEWARE, WITHOUT], ids=["middleware", "decorator"])
@pytest.mark.parametrize(("dies", "policy", "runs", "second"), DYING)
def test_retry_after_a_death(
    middleware: list[str], dies: Any, policy: Any, runs: int, second: AttemptOutcome
) -> None:
    """The view runs as often as the point of the death and the policy have it."""

    @idempotent(on_abandoned=policy, lease=5)
    def pay(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{count_call('mortal')}")

    overrides = override_settings(MIDDLEWARE=middleware, ROOT_URLCONF=(path("mortal/", pay),))
    sender = Sender("/mortal/", client=Client(enforce_csrf_checks=False))
    with overrides, TasksHarness() as harness:
        report = harness.send_dying(sender, dies)
        assert report.runs == get_calls("mortal") == runs
        assert outcomes_of(report) == [DIED, second]
        assert harness.manager.heartbeat.held_count == 0


def test_downstream_key_is_the_same_in_both_runs(tasks_harness: TasksHarness) -> None:
    """The key that the provider gets is the same when a death makes the view run twice."""
    sent: list[str] = []

    def pay(request: HttpRequest) -> HttpResponse:
        sent.append(downstream_key(request, "charge"))
        return HttpResponse("paid")

    with override_settings(ROOT_URLCONF=(path("charge/", pay),)):
        report = tasks_harness.send_dying(Sender("/charge/"))
    assert report.runs == len(sent) == 2
    assert len(set(sent)) == 1


def test_unprotected_view_cannot_die(tasks_harness: TasksHarness) -> None:
    """Without a key nobody dies, both run, and the report says so."""
    report = tasks_harness.send_dying(Sender("/pay/", headers={}))
    assert report.runs == get_calls("pay") == 2
    assert not report.died
    assert "it had no Idempotency-Key header" in str(report)


def test_crowd_runs_once(tasks_harness: TasksHarness) -> None:
    """Of many at once one runs."""
    report = tasks_harness.send_at_once(Sender("/pay/"), 6)
    report.assert_ran_once()
    assert get_calls("pay") == 1
    assert set(report.problems) <= {"still-running"}


class SlowToLoad:
    """
    A middleware that others overtake while it is made.
    """

    made = 0

    def __init__(self, get_response: Any) -> None:
        type(self).made += 1
        time.sleep(0.05)
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)


def test_crowd_shares_a_client_that_is_still_to_load(tasks_harness: TasksHarness) -> None:
    """Of threads that use one new client, one loads its middleware and the others wait for it."""
    SlowToLoad.made = 0
    # In front, so that it is made last, when the others' hooks are listed already.
    with override_settings(MIDDLEWARE=[f"{__name__}.SlowToLoad", *MIDDLEWARE]):
        report = tasks_harness.send_at_once(Sender("/pay/"), 6)
    report.assert_ran_once()
    assert SlowToLoad.made == 1
    assert BaseHandler.load_middleware.__qualname__ == "BaseHandler.load_middleware"


def add_user(request: HttpRequest) -> HttpResponse:
    """
    Writes to the database.
    """
    number = User.objects.count()
    User.objects.create(username=f"user-{number}")
    return HttpResponse(json.dumps(number))


class Crowd(TransactionTestCase):
    """
    Requests at once that write to the database.
    """

    __test__ = False  # for pytest, which would run it by itself

    def test_crowd_writes_once(self) -> None:
        """One row is written, the test sees it, and no thread leaves a connection open."""
        opened: list[Any] = []

        def add(request: HttpRequest) -> HttpResponse:
            response = add_user(request)
            opened.append(connection.connection)
            return response

        with override_settings(ROOT_URLCONF=(path("add/", add),)):
            harness = self.enterContext(TasksHarness())
            report = harness.send_at_once(Sender("/add/"), 4, count=User.objects.count)
        report.assert_ran_once()
        assert User.objects.count() == 1
        with pytest.raises(ProgrammingError, match="closed"):
            opened[0].execute("SELECT 1")


@pytest.mark.django_db(transaction=True)
def test_crowd_writes_to_the_database_once() -> None:
    """In a TransactionTestCase rows of the threads are seen, and their connections closed."""
    result = unittest.TestResult()
    unittest.TestSuite([Crowd("test_crowd_writes_once")]).run(result)
    assert result.wasSuccessful(), result.errors + result.failures


@pytest.mark.django_db
def test_error_of_a_thread_inside_a_transaction_says_why(tasks_harness: TasksHarness) -> None:
    """In a test that is a transaction the error of a thread says which kind of test it takes."""
    User.objects.create(username="unseen")
    with pytest.raises(ZeroDivisionError) as caught:
        tasks_harness.send_at_once(lambda: 1 / 0, 2)
    assert "TransactionTestCase" in caught.value.__notes__[0]


def test_error_of_a_thread_outside_a_transaction_is_left_alone(
    tasks_harness: TasksHarness,
) -> None:
    """Elsewhere the error is what it is."""
    with pytest.raises(ZeroDivisionError) as caught:
        tasks_harness.send_at_once(lambda: 1 / 0, 2)
    assert not hasattr(caught.value, "__notes__")
