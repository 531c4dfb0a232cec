from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings
from rest_framework.test import APIClient

from dotmac_tasks.models import OperationStatus
from dotmac_tasks_django.testing import override_tasks_settings
from support.django_project.calls import get_calls
from support.django_project.records import get_statuses
from support.django_project.rest_ways import DECORATED, UNDECORATED, Switch, Token
from support.django_project.settings import MIDDLEWARE

JSON = "application/json"


@pytest.fixture(autouse=True)
def _tokens(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """
    Alice has a token and its successor, Bob has one; nothing is throttled.
    """
    monkeypatch.setattr(Token, "names", {"alice-1": "alice", "alice-2": "alice", "bob-1": "bob"})
    monkeypatch.setattr(Token, "looked_at", [])
    for switch in ("throttled", "forbidden", "checks_data"):
        monkeypatch.setattr(Switch, switch, False)
    for name in ("alice", "bob"):
        User.objects.create_user(name)
    with override_settings(ROOT_URLCONF="support.django_project.rest_ways"):
        yield


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """
    A view, with the middleware or without it.
    """
    name, has_middleware = request.param
    with override_settings(MIDDLEWARE=MIDDLEWARE if has_middleware else MIDDLEWARE[:-1]):
        yield f"/{name}/"


def each(*, undecorated: bool = True) -> Any:
    """
    Run a test for each way: undecorated and decorated under the middleware, decorated alone.
    """
    names = [*(UNDECORATED if undecorated else ()), *DECORATED]
    ways = [(name, True) for name in names] + [(name, False) for name in DECORATED]
    ids = [f"{name}-{'middleware' if installed else 'alone'}" for name, installed in ways]
    return pytest.mark.parametrize("way", ways, ids=ids, indirect=True)


def send(
    client: Client,
    url: str,
    token: str | None = "alice-1",  # noqa: S107 - made up
    *,
    amount: Any = 5,
    key: str | None = "key-1",
    **headers: str,
) -> Any:
    if key is not None:
        headers["Idempotency-Key"] = key
    if token is not None:
        headers["Authorization"] = f"Token {token}"
    return client.post(url, {"amount": amount}, content_type=JSON, headers=headers)


class TestEachWay:
    @each()
    def test_retry_gets_the_stored_answer(self, client: Client, way: str) -> None:
        """A view runs once, reads its body, knows its key, and its rendered answer is kept."""
        first, again = send(client, way), send(client, way)
        assert first.status_code == again.status_code == 201
        assert first.json() == {"number": 1, "sent": {"amount": 5}, "key": "key-1"}
        assert (again.content, again["Content-Type"]) == (first.content, first["Content-Type"])
        assert "X-Cache-Hit" not in first
        assert first["X-Idempotency-Key"] == "key-1"
        assert again["X-Cache-Hit"] == "true"
        assert again["Allow"] == first["Allow"]
        assert get_calls("rest") == 1

    @each()
    def test_other_body_is_refused(self, client: Client, way: str) -> None:
        """The same key with another body is answered 422 and runs nothing."""
        assert send(client, way, amount=5).status_code == 201
        refused = send(client, way, amount=6)
        assert refused.status_code == 422
        assert refused["Content-Type"] == "application/problem+json"
        assert get_calls("rest") == 1

    @each()
    def test_users_have_keys_of_their_own(self, client: Client, way: str) -> None:
        """Two users with one key get two runs; a new token of one user is the same user."""
        tokens = ("alice-1", "bob-1", "alice-2", "bob-1")
        answers = [send(client, way, token) for token in tokens]
        assert [answer.json()["number"] for answer in answers] == [1, 2, 1, 2]

    @each()
    def test_checks_come_before_a_stored_answer(
        self, client: Client, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who is refused or throttled by now does not see what was stored; later the retry does."""
        first = send(client, way)

        def refuse(status: int) -> None:
            refused = send(client, way)
            assert refused.status_code == status
            assert "X-Cache-Hit" not in refused
            assert "X-Idempotency-Key" not in refused

        monkeypatch.setattr(Switch, "throttled", True)
        refuse(429)
        monkeypatch.setattr(Switch, "throttled", False)
        monkeypatch.setattr(Switch, "forbidden", True)
        refuse(403)
        monkeypatch.setattr(Switch, "forbidden", False)
        assert send(client, way, None).status_code == 401
        User.objects.filter(username="alice").update(is_active=False)
        refuse(401)
        User.objects.filter(username="alice").update(is_active=True)
        del Token.names["alice-1"]
        refuse(401)
        assert send(client, way, "alice-2").content == first.content
        assert get_calls("rest") == 1

    @each()
    def test_checks_come_before_a_claim(
        self, client: Client, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A request that the framework refuses before its handler claims nothing."""
        assert send(client, way, None).status_code == 401
        assert send(client, way, "nobody's").status_code == 401
        assert send(client, way, Accept="image/png").status_code == 406
        for switch, status in (("throttled", 429), ("forbidden", 403)):
            with monkeypatch.context() as patch:
                patch.setattr(Switch, switch, True)
                assert send(client, way).status_code == status
        assert get_statuses() == []
        assert get_calls("rest") == 0

    @each()
    def test_request_is_authenticated_once(self, client: Client, way: str) -> None:
        """Nothing asks for the user a second time: a token may be good for one use."""
        send(client, way)
        assert Token.looked_at == ["alice-1"]

    @each()
    @pytest.mark.parametrize(
        ("answer", "status"), [("invalid", 400), ("missing", 404), ("json", 200), ("plain", 200)]
    )
    def test_answer_is_kept(self, client: Client, way: str, answer: str, status: int) -> None:
        """An exception that the framework answers 4xx, and a response of Django, are kept."""
        first, again = (send(client, f"{way}?answer={answer}") for _ in range(2))
        assert first.status_code == again.status_code == status
        assert again.content == first.content
        assert again["X-Cache-Hit"] == "true"
        assert get_calls("rest") == 1

    @each()
    @pytest.mark.parametrize("answer", ["file", "stream"])
    def test_stream_is_not_kept(self, client: Client, way: str, answer: str) -> None:
        """A stream arrives whole; its retry is refused and nothing runs again."""
        first = send(client, f"{way}?answer={answer}")
        assert first.getvalue().startswith(b"run")
        again = send(client, f"{way}?answer={answer}")
        assert again.status_code == 409
        assert again.json()["type"].endswith("not-replayable")
        assert get_calls("rest") == 1

    @each()
    @pytest.mark.parametrize(
        ("answer", "status"), [("denied", 403), ("conflict", 409), ("bug", 500)]
    )
    def test_answer_releases_the_key(
        self, client: Client, way: str, answer: str, status: int
    ) -> None:
        """A passing refusal of the handler, and an exception that nobody knows, are no outcome."""
        for number in (1, 2):
            assert send(client, f"{way}?answer={answer}").status_code == status
            assert get_calls("rest") == number
        assert get_statuses() == []

    @each()
    def test_exit_leaves_the_outcome_unknown(self, client: Client, way: str) -> None:
        """A worker that is stopped in the handler records nothing."""
        with pytest.raises(SystemExit):
            send(client, f"{way}?answer=exit")
        assert get_statuses() == [OperationStatus.IN_PROGRESS]

    @each()
    def test_malformed_body_is_an_outcome_of_the_handler(self, client: Client, way: str) -> None:
        """What the handler cannot parse is its 400, and kept; so is a type that it does not take."""
        headers = {"Authorization": "Token alice-1", "Idempotency-Key": "key-1"}
        for content_type, status in ((JSON, 400), ("image/png", 415)):
            headers["Idempotency-Key"] = f"key-{status}"
            first, again = (client.post(way, b"{", content_type, headers=headers) for _ in range(2))
            assert first.status_code == again.status_code == status
            assert again.content == first.content
            assert again["X-Cache-Hit"] == "true"
        assert get_calls("rest") == 2

    @each()
    def test_method_that_is_not_served_claims_nothing(self, client: Client, way: str) -> None:
        """405 is the framework's answer, and no outcome."""
        headers = {"Authorization": "Token alice-1", "Idempotency-Key": "key-1"}
        with override_tasks_settings(methods=["POST", "PATCH", "PUT"]):
            assert client.put(way, {}, JSON, headers=headers).status_code == 405
        assert get_statuses() == []

    @each()
    def test_safe_methods_pass(self, client: Client, way: str) -> None:
        """GET, HEAD and OPTIONS are never claimed, whatever key they carry."""
        headers = {"Authorization": "Token alice-1", "Idempotency-Key": "key-1"}
        for method in (client.get, client.head, client.options):
            for _ in range(2):
                assert "X-Idempotency-Key" not in method(way, headers=headers)
        assert get_statuses() == []

    @each(undecorated=False)
    def test_missing_key_is_refused_behind_the_checks(self, client: Client, way: str) -> None:
        """Without a key that is required nothing runs; who may not ask is told only that."""
        assert send(client, way, None, key=None).status_code == 401
        refused = send(client, way, key=None)
        assert refused.status_code == 400
        assert refused.json()["type"].endswith("missing-key")
        assert get_calls("rest") == 0

    @each()
    def test_forced_user_is_the_principal(self, way: str) -> None:
        """The framework's own test client works: who is forced upon a request is who asks."""
        numbers = []
        for name in ("alice", "bob", "alice"):
            client = APIClient()
            client.force_authenticate(User.objects.get(username=name))
            numbers.append(send(client, way, None).json()["number"])
        assert numbers == [1, 2, 1]

    @each()
    def test_data_that_a_permission_reads_counts_the_same(
        self, client: Client, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whether a permission looks at the data first or not, a request is the same request."""
        for checks_data in (True, False, True):
            monkeypatch.setattr(Switch, "checks_data", checks_data)
            assert send(client, way).json()["number"] == 1
            assert send(client, way, amount=6).status_code == 422


def test_checks_behind_initial_come_first(client: Client) -> None:
    """What a subclass checks behind the framework's checks comes before the claim, too."""
    assert send(client, "/checked/?answer=closed").status_code == 409
    assert get_statuses() == []
    # The class and its base class are hooked both, in either order.
    for url in ("/plain/", "/checked/", "/plain/", "/checked/"):
        assert send(client, url, key=url).status_code == 201
    assert send(client, "/checked/?answer=closed").status_code == 409
    assert get_calls("rest") == 2


def test_strict_project_refuses_behind_the_checks(client: Client) -> None:
    """Where every request needs a key, who may not ask is told only that."""
    with override_tasks_settings(require_key=True):
        assert send(client, "/plain/", None, key=None).status_code == 401
        assert send(client, "/plain/", key=None).status_code == 400
        assert send(client, "/plain/").status_code == 201
