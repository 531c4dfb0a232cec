"""
What the WSGI adapter's helpers and shared objects do apart from any request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.wsgi import (
    BackgroundOperationsMiddleware,
    add_background_operations_middleware,
    defer_operation,
    get_idempotency_key,
    is_idempotent_request,
    set_operation_result,
)
from support.concurrency import Counter, run_together
from support.http_clients import HttpClient, Response


def test_helpers_know_nothing_of_a_foreign_environment() -> None:
    """
    In an environment that the middleware has not seen, the helpers do nothing.
    """
    environ: dict[str, Any] = {"HTTP_IDEMPOTENCY_KEY": "k"}
    assert get_idempotency_key(environ) is None
    assert not is_idempotent_request(environ)
    assert defer_operation(environ) is None
    set_operation_result(environ, object())
    assert environ == {"HTTP_IDEMPOTENCY_KEY": "k"}


def test_mistaken_arguments_are_refused_at_once() -> None:
    """
    What is no application or no manager is refused when it is wrapped, and not repeated.
    """

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return []

    mistaken: Any = "redis://:hunter@localhost"
    with pytest.raises(TypeError, match="BackgroundOperationsManager, not a str") as caught:
        BackgroundOperationsMiddleware(app, mistaken)
    assert "hunter" not in str(caught.value)
    with pytest.raises(TypeError, match="WSGI callable, not a int"):
        add_background_operations_middleware(3)
    with BackgroundOperationsManager() as manager:
        assert add_background_operations_middleware(app, manager) is manager


def test_threads_do_not_mix_their_requests() -> None:
    """
    One middleware serves many threads at once, and each gets its own answer and replay.
    """
    numbers = Counter()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body + environ["HTTP_IDEMPOTENCY_KEY"].encode()]

    def send() -> tuple[bytes, list[Response]]:
        text = str(numbers.increment())
        answers = [client.send(key=text, body=b"body of " + text.encode()) for _ in range(5)]
        return f"body of {text}{text}".encode(), answers

    with BackgroundOperationsManager() as manager:
        client = HttpClient(BackgroundOperationsMiddleware(app, manager), manager)
        for outcome in run_together(8, send):
            assert not isinstance(outcome, BaseException)
            expected, answers = outcome
            assert [answer.body for answer in answers] == [expected] * 5
            assert [answer.is_replay for answer in answers] == [False] + [True] * 4


def test_options_of_one_wrapping_leave_the_manager_alone() -> None:
    """
    Two applications over one manager may be wrapped with different settings.
    """

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"a"]

    with BackgroundOperationsManager() as manager:
        strict = BackgroundOperationsMiddleware(app, manager, require_key=True)
        lax = BackgroundOperationsMiddleware(app, manager)
        assert HttpClient(strict, manager).send().status == 400
        assert HttpClient(lax, manager).send().status == 200
        assert not manager.config.require_key
