from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from dotmac_tasks.http.answers import STILL_RUNNING
from dotmac_tasks.testing import TasksHarness
from dotmac_tasks.testing.report import Attempt, AttemptOutcome
from dotmac_tasks.testing.responses import read_request, read_response

HEADERS = {"Content-Type": "application/json", "X-Own": "yes"}


def response(status: int = 200, **facts: Any) -> Any:
    return SimpleNamespace(**{"status_code": status, "headers": {}, **facts})


@pytest.mark.parametrize(
    "answer",
    [
        SimpleNamespace(status_code=201, headers=HEADERS, content=b'{"a": 1}'),
        SimpleNamespace(status_int=201, status="201 Created", headers=HEADERS, body=b'{"a": 1}'),
        SimpleNamespace(status="201 CREATED", headers=list(HEADERS.items()), data='{"a": 1}'),
        SimpleNamespace(status=201, headers=HEADERS, data={"a": 1}, body='{"a": 1}'),
    ],
    ids=["requests", "webtest", "pairs", "wrapped"],
)
def test_responses_of_many_clients_are_read(answer: Any) -> None:
    """Status, headers and a JSON object are found wherever a client keeps them."""
    facts = read_response(answer)
    assert facts is not None
    assert (facts.status, facts.headers["x-own"]) == (201, "yes")
    assert facts.document == {"a": 1}


@pytest.mark.parametrize(
    "answer",
    [None, {"status": 200}, SimpleNamespace(status=200), SimpleNamespace(status="new", headers={})],
    ids=str,
)
def test_result_of_a_function_is_no_response(answer: Any) -> None:
    """What lacks a status or headers is the result of a function."""
    assert read_response(answer) is None


@pytest.mark.parametrize("body", [b"[1]", b"{", None], ids=str)
def test_other_bodies_are_left_alone(body: bytes | None) -> None:
    """A body that is no JSON object, damaged or out of reach tells nothing and hurts nobody."""
    facts = read_response(response(headers=HEADERS, content=body))
    assert facts is not None
    assert facts.document == {}


def test_body_of_another_type_is_not_touched() -> None:
    """A body that is not said to be JSON is not read, since it may be a stream."""

    class Streaming:
        status_code = 200
        headers = {"Content-Type": "text/csv"}  # noqa: RUF012 - read only

        @property
        def content(self) -> bytes:
            raise AssertionError("the stream was read")

    facts = read_response(Streaming())
    assert facts is not None
    assert facts.document == {}


@pytest.mark.parametrize(
    "request_",
    [
        SimpleNamespace(method="POST", path="/pay/", headers={"A": "b"}),
        SimpleNamespace(method="POST", path_url="/pay/?a=b", headers={"A": "b"}),
        SimpleNamespace(method="POST", url=SimpleNamespace(path="/pay/"), headers={"A": "b"}),
    ],
    ids=["werkzeug", "requests", "httpx"],
)
def test_requests_of_many_clients_are_read(request_: Any) -> None:
    """Method, path and headers are found wherever a client keeps them."""
    found = read_request(response(request=request_))
    assert found == ("POST", "/pay/", {"a": "b"})


@pytest.mark.parametrize("request_", [None, {"PATH_INFO": "/"}, SimpleNamespace(method="POST")])
def test_request_that_is_not_known_is_none(request_: Any) -> None:
    """A client that keeps nothing of the request is no problem."""
    assert read_request(response(request=request_)) is None


def judge(harness: TasksHarness, answer: Any) -> Attempt[Any]:
    return harness.send_twice(lambda: answer).attempts[0]


def sent(method: str = "POST", path: str = "/pay/", *, status: int = 200, **headers: str) -> Any:
    request = SimpleNamespace(method=method, path=path, headers=headers)
    return response(status, request=request)


@pytest.mark.parametrize(
    ("answer", "reason", "advice"),
    [
        (sent(), "it had no Idempotency-Key header", "Send a key in Idempotency-Key"),
        (sent("get"), "get is not covered", "POST, PATCH"),
        (sent(path="/admin/x/"), "/admin/x/ is exempt", "EXEMPT_PATHS"),
        (sent(**{"idempotency-key": "k"}), "although it had a key", "Wrap the application"),
        (
            sent(status=500, **{"idempotency-key": "k"}),
            "although it had a key",
            "Find the server's error first",
        ),
        (response(), "the library did not see it", "EXEMPT_PATHS leaves out its path"),
    ],
    ids=["no-key", "method", "exempt", "forgotten", "failed", "unknown"],
)
def test_reason_of_an_unprotected_request_is_found(
    tasks_harness: TasksHarness, answer: Any, reason: str, advice: str
) -> None:
    """What kept a request from being protected is named, with what to do about it."""
    attempt = judge(tasks_harness, answer)
    assert (attempt.outcome, attempt.ran) == (AttemptOutcome.UNPROTECTED, True)
    assert reason in attempt.reason
    assert advice in attempt.advice


RUNNING = {"status": "in_progress", "message": STILL_RUNNING}


@pytest.mark.parametrize(
    ("headers", "document", "outcome"),
    [
        ({}, RUNNING, AttemptOutcome.REFUSED),
        ({}, RUNNING | {"job": 1}, AttemptOutcome.RAN),
        ({}, RUNNING | {"message": "..."}, AttemptOutcome.RAN),
        ({"Idempotent-Replayed": "true"}, RUNNING, AttemptOutcome.REPLAYED),
    ],
)
def test_answer_for_a_running_one_is_known_from_an_applications(
    tasks_harness: TasksHarness,
    headers: dict[str, str],
    document: dict[str, Any],
    outcome: AttemptOutcome,
) -> None:
    """Only the library's own 202 counts as a refusal; an application's like it is its answer."""
    marks = {"Content-Type": "application/json", "X-Idempotency-Key": "k", **headers}
    answer = response(202, headers=marks, content=json.dumps(document))
    assert judge(tasks_harness, answer).outcome is outcome


@pytest.mark.parametrize("tasks_settings", [{"anonymous": "ignore"}])
def test_key_of_an_unknown_caller_is_told(tasks_harness: TasksHarness) -> None:
    """Where such keys are ignored, a request with one may be of that kind, and so it is said."""
    attempt = judge(tasks_harness, sent(**{"idempotency-key": "k"}))
    assert "unknown caller" in attempt.reason
    assert "Sign in" in attempt.advice


@pytest.mark.parametrize("tasks_settings", [{"idempotency_response_header": "X-Key"}])
def test_renamed_header_is_known(tasks_harness: TasksHarness) -> None:
    """The mark of a protected answer is looked for under the name that the settings give it."""
    answer = response(headers={"x-key": "k"})
    assert judge(tasks_harness, answer).outcome is AttemptOutcome.RAN
