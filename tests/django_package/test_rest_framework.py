from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings
from django.urls import path
from rest_framework.authentication import BaseAuthentication
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.exceptions import AuthenticationFailed, ValidationError
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from dotmac_tasks_django import get_idempotency_key, idempotency_exempt, idempotent
from dotmac_tasks_django.testing import override_tasks_settings
from support.django_project.calls import count_call, get_calls
from support.django_project.settings import MIDDLEWARE

JSON = "application/json"
# Which user a token stands for; a test revokes and rotates them.
TOKENS: dict[str, str] = {}
# How often each token was looked at.
LOOKED_AT: list[str] = []


class TokenAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, str] | None:
        token = request.headers.get("Authorization")
        if token is None:
            return None
        LOOKED_AT.append(token)
        if token not in TOKENS:
            raise AuthenticationFailed
        return User.objects.get(username=TOKENS[token]), token

    def authenticate_header(self, request: Request) -> str:
        return "Token"


class Throttle(BaseThrottle):
    is_closed = False

    def allow_request(self, request: Request, view: APIView) -> bool:
        return not self.is_closed


class Guarded:
    authentication_classes = (TokenAuthentication,)
    permission_classes = (IsAuthenticated,)
    throttle_classes = (Throttle,)


def do_work(request: Request) -> Response:
    number = count_call("rest")
    if request.data.get("amount") == "wrong":
        raise ValidationError({"run": number})
    if request.data.get("amount") == "bug":
        raise ValueError("a bug")
    key = get_idempotency_key(request)
    return Response({"number": number, "sent": request.data, "key": key}, status=201)


class Orders(Guarded, APIView):
    @idempotent(required=True)
    def post(self, request: Request) -> Response:
        return do_work(request)

    @idempotency_exempt
    def patch(self, request: Request) -> Response:
        return do_work(request)


class OrderSet(Guarded, ViewSet):
    @idempotent(required=True)
    def create(self, request: Request) -> Response:
        return do_work(request)


@api_view(["POST"])
@authentication_classes([TokenAuthentication])
@permission_classes([IsAuthenticated])
@idempotent(required=True)
def order(request: Request) -> Response:
    return do_work(request)


class Plain(Guarded, APIView):
    def post(self, request: Request) -> Response:
        return do_work(request)


urlpatterns = [
    path("class/", Orders.as_view()),
    path("set/", OrderSet.as_view({"post": "create"})),
    path("function/", order),
    path("plain/", Plain.as_view()),
]


@pytest.fixture(autouse=True)
def _tokens(db: None) -> Iterator[None]:
    """
    Alice has a token and its successor, Bob has one; nothing is throttled.
    """
    TOKENS.update({"alice-1": "alice", "alice-2": "alice", "bob-1": "bob"})
    for name in ("alice", "bob"):
        User.objects.create_user(name)
    with override_settings(ROOT_URLCONF=__name__):
        yield
    TOKENS.clear()
    LOOKED_AT.clear()


@pytest.fixture(params=["middleware", "decorator"])
def either(request: pytest.FixtureRequest) -> Iterator[str]:
    """
    The project with the middleware, and without it.
    """
    installed = MIDDLEWARE if request.param == "middleware" else MIDDLEWARE[:-1]
    with override_settings(MIDDLEWARE=installed):
        yield request.param


@pytest.fixture
def closed() -> Any:
    @contextmanager
    def close() -> Iterator[None]:
        Throttle.is_closed = True
        try:
            yield
        finally:
            Throttle.is_closed = False

    return close


def send(client: Client, url: str, token: str | None = "alice-1", amount: Any = 5) -> Any:
    headers = {"Idempotency-Key": "key-1"}
    if token is not None:
        headers["Authorization"] = token
    return client.post(url, {"amount": amount}, JSON, headers=headers)


VIEWS = pytest.mark.parametrize("url", ["/class/", "/set/", "/function/"])


@pytest.mark.django_db
@pytest.mark.usefixtures("either")
class TestEither:
    @VIEWS
    def test_retry_gets_the_stored_answer(self, client: Client, url: str) -> None:
        """A view of the framework runs once, reads its body, and its rendered answer is kept."""
        first, again = send(client, url), send(client, url)
        assert first.status_code == again.status_code == 201
        assert first.json() == {"number": 1, "sent": {"amount": 5}, "key": "key-1"}
        assert again.content == first.content
        assert "X-Cache-Hit" not in first
        assert again["X-Cache-Hit"] == "true"

    @VIEWS
    def test_other_body_is_refused(self, client: Client, url: str) -> None:
        """The same key with another body is answered 422 and runs nothing."""
        assert send(client, url, amount=5).status_code == 201
        assert send(client, url, amount=6).status_code == 422
        assert get_calls("rest") == 1

    @VIEWS
    def test_rotated_token_is_the_same_principal(self, client: Client, url: str) -> None:
        """A user who comes with a new token gets the answer to the old one's request."""
        first = send(client, url, "alice-1")
        assert send(client, url, "alice-2").content == first.content
        assert get_calls("rest") == 1

    @VIEWS
    def test_users_do_not_share_keys(self, client: Client, url: str) -> None:
        """Two users with one key and one request get two runs and two answers."""
        answers = [send(client, url, token) for token in ("alice-1", "bob-1") * 2]
        assert [answer.json()["number"] for answer in answers] == [1, 2, 1, 2]

    @VIEWS
    def test_revoked_token_gets_no_stored_answer(self, client: Client, url: str) -> None:
        """Authentication comes first: 401 with a revoked token or none, and nothing is claimed."""
        send(client, url)
        del TOKENS["alice-1"]
        for token in ("alice-1", None):
            refused = send(client, url, token)
            assert refused.status_code == 401
            assert "X-Cache-Hit" not in refused
        assert get_calls("rest") == 1

    def test_throttle_comes_before_a_stored_answer(self, client: Client, closed: Any) -> None:
        """Who is throttled gets 429, stored answer or not; later the retry gets its answer."""
        first = send(client, "/class/")
        with closed():
            assert send(client, "/class/").status_code == 429
        assert send(client, "/class/").content == first.content

    def test_request_is_authenticated_once(self, client: Client) -> None:
        """Nothing asks for the user a second time: a token may be good for one use."""
        send(client, "/class/")
        assert LOOKED_AT == ["alice-1"]

    def test_missing_key_is_refused(self, client: Client) -> None:
        """Without a key that is required nothing runs; an exempt method needs none."""
        headers = {"Authorization": "alice-1"}
        refused = client.post("/class/", {}, JSON, headers=headers)
        assert refused.status_code == 400
        assert refused.json()["type"].endswith("missing-key")
        for number in (1, 2):
            patched = client.patch("/class/", {}, JSON, headers=headers)
            assert patched.json()["number"] == number


@pytest.mark.django_db
@VIEWS
def test_refusal_of_the_framework_is_kept(client: Client, url: str) -> None:
    """Under the middleware an exception that the framework turns into a 400 is that answer."""
    first, again = (send(client, url, amount="wrong") for _ in range(2))
    assert first.status_code == again.status_code == 400
    assert again.content == first.content
    assert again["X-Cache-Hit"] == "true"


@pytest.mark.django_db
@pytest.mark.usefixtures("either")
def test_bug_releases_the_key(client: Client) -> None:
    """An exception that nobody understands gives the key back."""
    for number in (1, 2):
        assert send(client, "/class/", amount="bug").status_code == 500
        assert get_calls("rest") == number


@pytest.mark.django_db
def test_undecorated_view_is_scoped_by_its_credentials(client: Client) -> None:
    """Claimed before anybody authenticated: bearers are apart, and so are a user's tokens."""
    numbers = [send(client, "/plain/", token).json()["number"] for token in TOKENS]
    assert numbers == [1, 2, 3]
    assert send(client, "/plain/", "alice-1")["X-Cache-Hit"] == "true"


@pytest.mark.django_db
def test_strict_project_refuses_behind_the_checks(client: Client) -> None:
    """Where the framework refuses already, nobody needs the storage."""
    with override_tasks_settings(require_key=True):
        assert client.post("/plain/", {}, JSON).status_code == 400
        assert send(client, "/class/", None).status_code == 401
