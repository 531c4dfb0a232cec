from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.middleware.csrf import _mask_cipher_secret
from django.test import Client, RequestFactory, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from rest_framework.decorators import action
from rest_framework.mixins import CreateModelMixin
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.serializers import ModelSerializer
from rest_framework.test import APIClient
from rest_framework.views import APIView, set_rollback
from rest_framework.viewsets import GenericViewSet, ModelViewSet, ViewSet

from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.models import OperationStatus
from dotmac_tasks_django import idempotency_exempt, idempotent
from dotmac_tasks_django.checks import check_views
from dotmac_tasks_django.middleware import BackgroundOperationsMiddleware
from dotmac_tasks_django.protection import find_options, find_run
from dotmac_tasks_django.testing import TasksHarness, override_tasks_settings
from support.django_project.calls import get_calls
from support.django_project.records import get_statuses
from support.django_project.rest_ways import (
    DECORATED,
    EXEMPT,
    UNDECORATED,
    Amount,
    Class,
    Dispatch,
    Guarded,
    Method,
    MethodSet,
    MixedIn,
    Plain,
    Switch,
    Token,
    do_work,
    function,
)
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
    token: str | None = "alice-1",
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
    @pytest.mark.parametrize(
        ("dies", "runs"), [("before_view", 1), ("before_record", 2), ("after_record", 1)]
    )
    def test_retry_after_a_death(
        self, tasks_harness: TasksHarness, client: Client, way: str, dies: Any, runs: int
    ) -> None:
        """The framework lets a worker die, and the retry finds what it has left."""
        report = tasks_harness.send_dying(lambda: send(client, way), dies)
        assert report.died
        assert report.runs == get_calls("rest") == runs
        assert [response.status_code for response in report.responses] == [201]

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
        """What the handler cannot parse is its 400, and kept; so is a type that it refuses."""
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


class UserSerializer(ModelSerializer[User]):
    class Meta:
        model = User
        fields: ClassVar = ["id", "username"]


class Users(Guarded, ModelViewSet[User]):
    queryset = User.objects.order_by("id")
    serializer_class = UserSerializer


def test_model_is_created_once(client: Client) -> None:
    """The framework's own viewset, behind its router, creates and changes an object once."""
    router = DefaultRouter()
    router.register("users", Users)
    headers = {"Authorization": "Token alice-1", "Idempotency-Key": "key-1"}
    with routed(*router.urls):
        first, again = (
            client.post("/users/", {"username": "carol"}, JSON, headers=headers) for _ in range(2)
        )
        assert first.status_code == 201
        assert again.content == first.content
        url = f"/users/{first.json()['id']}/"
        headers["Idempotency-Key"] = "key-2"
        for _ in range(2):
            changed = client.patch(url, {"username": "dave"}, JSON, headers=headers)
            assert changed.json()["username"] == "dave"
        assert changed["X-Cache-Hit"] == "true"
        headers["Idempotency-Key"] = "key-3"
        for _ in range(2):
            refused = client.post("/users/", {"username": "dave"}, JSON, headers=headers)
            assert refused.status_code == 400
            User.objects.filter(username="dave").delete()
    assert list(User.objects.values_list("username", flat=True)) == ["alice", "bob"]


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


@each()
def test_custom_exception_handler_is_the_outcome(client: Client, way: str) -> None:
    """What a project's own handler makes of an exception is kept as any answer of its status."""
    handler = f"{__name__}.answer_plainly"
    with override_settings(REST_FRAMEWORK={"EXCEPTION_HANDLER": handler}):
        first, again = (send(client, f"{way}?answer=invalid") for _ in range(2))
        assert (first.status_code, first.content) == (418, b"ValidationError")
        assert (again.status_code, again.content) == (418, b"ValidationError")
        assert again["X-Cache-Hit"] == "true"
    assert get_calls("rest") == 1


def answer_plainly(error: Exception, context: Any) -> HttpResponse:
    set_rollback()
    return HttpResponse(type(error).__name__, status=418)


@pytest.mark.usefixtures("_atomic_requests")
@pytest.mark.django_db(transaction=True)
class TestTransactions:
    @each()
    def test_refusal_is_kept_though_its_work_is_rolled_back(self, client: Client, way: str) -> None:
        """The framework rolls back what a refused request did; the refusal itself is an outcome."""
        for key, handler in (("key-1", "rest_framework.views.exception_handler"), ("key-2", None)):
            handler = handler or f"{__name__}.answer_plainly"
            with override_settings(REST_FRAMEWORK={"EXCEPTION_HANDLER": handler}):
                url = f"{way}?insert&answer=invalid"
                first, again = (send(client, url, key=key) for _ in range(2))
            assert first.status_code in (400, 418)
            assert (again.status_code, again.content) == (first.status_code, first.content)
            assert again["X-Cache-Hit"] == "true"
        assert get_calls("rest") == 2
        assert count_rows() == 0

    @each()
    def test_committed_work_is_kept(self, client: Client, way: str) -> None:
        """Work whose transaction commits is done once, and its answer is recorded behind it."""
        for answer in ("", "json"):
            url = f"{way}?insert&answer={answer}"
            first, again = (send(client, url, key=f"key{answer}") for _ in range(2))
            assert again.content == first.content
            assert again["X-Cache-Hit"] == "true"
        assert count_rows() == 2


def count_rows() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM child")
        (count,) = cursor.fetchone()
        return int(count)


class TestSessions:
    @each()
    def test_csrf_comes_before_a_claim(self, way: str) -> None:
        """A form of a session's user without its token is refused and claims nothing."""
        client = Client(enforce_csrf_checks=True)
        client.force_login(User.objects.get(username="alice"))
        headers = {"Idempotency-Key": "key-1"}
        refused = client.post(way, {"amount": 5}, headers=headers)
        assert refused.status_code == 403
        assert get_statuses() == []
        answers = []
        for _ in range(2):
            # A page masks the token anew each time, and the form has it as one of its fields.
            client.cookies["csrftoken"] = "a" * 32
            data = {"amount": 5, "csrfmiddlewaretoken": _mask_cipher_secret("a" * 32)}
            answers.append(client.post(way, data, headers=headers))
        assert answers[0].status_code == 201
        assert answers[1].content == answers[0].content
        assert client.post(way, {"amount": 5}, headers=headers).status_code == 403
        assert get_calls("rest") == 1

    @each()
    def test_session_and_token_are_one_user(self, client: Client, way: str) -> None:
        """Who retries with another kind of credentials is still the same user."""
        first = send(client, way)
        client.force_login(User.objects.get(username="alice"))
        assert send(client, way, None).content == first.content
        client.force_login(User.objects.get(username="bob"))
        assert send(client, way, None).json()["number"] == 2


def test_view_that_authenticates_late_knows_its_users(client: Client) -> None:
    """Where nobody has asked yet who it is, the claim asks; credentials that fail claim nothing."""
    tokens = ("alice-1", "bob-1", "alice-2")
    assert [send(client, "/lazy/", token).json()["number"] for token in tokens] == [1, 2, 1]
    assert send(client, "/lazy/", "nobody's").status_code == 401
    assert send(client, "/lazy/", "nobody's", key=None).status_code == 201
    assert len(get_statuses()) == 2


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("name", EXEMPT)
def test_exempt_view_runs_each_time(client: Client, name: str) -> None:
    """An exempt view is left alone, whatever the project requires and the client sends."""
    with override_tasks_settings(require_key=True):
        for number, key in enumerate((None, "key-1", "key-1"), 1):
            assert send(client, f"/{name}/", key=key).json()["number"] == number
        assert get_statuses() == []


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("kind", ["class", "dispatch"])
def test_method_beats_class(client: Client, kind: str) -> None:
    """What stands on a method wins over what stands on its class; the others have that."""
    assert send(client, f"/own-{kind}-create/", key=None).status_code == 201
    assert send(client, f"/own-{kind}-refund/", key=None).status_code == 400
    for name, hit in (("create", True), ("refund", True), ("pay", False)):
        answers = [send(client, f"/own-{kind}-{name}/", key=name) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201]
        assert ("X-Cache-Hit" in answers[1]) is hit


@pytest.mark.usefixtures("either")
def test_function_beats_what_stands_above_api_view(client: Client) -> None:
    """Of two decorators, above and below `api_view`, the one on the function has the say."""
    view = idempotent(required=True)(function(idempotent(required=False)))
    with routed(view):
        assert send(client, "/view/", key=None).status_code == 201
        first, again = (send(client, "/view/") for _ in range(2))
        assert again.content == first.content
    assert get_calls("rest") == 2


@contextmanager
def routed(*patterns: Any) -> Iterator[None]:
    urls = ModuleType("urls")
    urls.urlpatterns = [
        path("view/", pattern) if callable(pattern) else pattern for pattern in patterns
    ]
    with override_settings(ROOT_URLCONF=urls):
        yield


def test_asynchronous_view_is_claimed_like_one_of_django(client: Client) -> None:
    """A class of another package whose methods are asynchronous takes no handler of ours."""

    class Asynchronous(APIView):
        async def post(self, request: Request) -> None:
            raise AssertionError

    request = RequestFactory(headers={"Idempotency-Key": "key-1"}).post("/", {}, JSON)
    middleware = BackgroundOperationsMiddleware(HttpResponse)
    assert middleware.process_view(request, Asynchronous.as_view(), (), {}) is None
    run = find_run(request)
    assert run is not None
    run.fail()


def test_framework_that_is_not_there_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decorating a view of Django needs no REST framework, nor a whole one."""
    for module in (None, ModuleType("rest_framework.views")):
        monkeypatch.setitem(sys.modules, "rest_framework.views", module)  # type: ignore[arg-type]
        assert find_options(idempotent(lambda request: None)) is not None


class TestWrongUse:
    @pytest.mark.parametrize("decorate", [idempotent, idempotency_exempt])
    def test_asynchronous_method_fails_at_import(self, decorate: Any) -> None:
        """The framework cannot serve an asynchronous method, and neither can the decorator."""
        with pytest.raises(ConfigurationError, match="is asynchronous"):

            class Asynchronous(ViewSet):
                @decorate
                async def create(self, request: Request) -> None:
                    raise AssertionError

    @pytest.mark.parametrize("decorate_again", [idempotent, idempotent(ttl=60), idempotency_exempt])
    def test_decorating_twice_fails_at_import(self, decorate_again: Any) -> None:
        """A method, a function or a class that is decorated already is refused."""
        for subject in (
            Method.post,
            action(detail=False, methods=["post"])(MethodSet.create),
            DECORATED["view"],
            Class,
            Dispatch,
        ):
            with pytest.raises(ConfigurationError, match="is decorated already"):
                decorate_again(subject)

    def test_dispatch_that_is_decorated_already_fails_at_its_first_request(
        self, client: Client
    ) -> None:
        """`method_decorator` meets its method only then; nothing runs unprotected."""
        view_class = method_decorator(idempotent, name="dispatch")(type("Twice", (Class,), {}))
        with routed(view_class.as_view()):
            assert send(client, "/view/").status_code == 500
        assert get_calls("rest") == 0

    def test_name_that_is_no_method_fails_at_import(self) -> None:
        """`method_decorator` refuses a name that its class does not have."""
        with pytest.raises(ValueError, match="nothing"):
            method_decorator(idempotent, name="nothing")(type("Named", (APIView,), {}))

    def test_mixin_without_dispatch_fails_at_import(self) -> None:
        """A class that serves nothing by itself cannot be decorated, only its methods."""
        with pytest.raises(ConfigurationError, match="no class of synchronous views"):
            idempotent(CreateModelMixin)

    def test_hidden_action_of_a_mixin_is_warned_of(self) -> None:
        """A decorated action behind the framework's own never runs: `manage.py check` says so."""
        names = {"first": (MixedIn, CreateModelMixin), "last": (CreateModelMixin, MixedIn)}
        for place, bases in names.items():
            view_class = type("Mixed", (*bases, Guarded, GenericViewSet), {})
            with routed(view_class.as_view({"post": "create"})):
                ids = [message.id for message in check_views(None)]
            assert ids == ([] if place == "first" else ["dotmac_tasks.W006"])

    def test_method_without_a_request_is_an_error(self, client: Client) -> None:
        """A decorator on a method that gets no request says so at its first use."""

        class Misplaced(Guarded, CreateModelMixin, GenericViewSet[Any]):
            serializer_class = Amount

            @idempotent
            def perform_create(self, serializer: Any) -> None:
                raise AssertionError

        client.raise_request_exception = True
        with (
            routed(Misplaced.as_view({"post": "create"})),
            pytest.raises(TypeError, match="without a request"),
        ):
            send(client, "/view/", key=None)


class TestBrowsableApi:
    HTML: ClassVar[dict[str, str]] = {"Accept": "text/html"}

    @pytest.fixture(autouse=True)
    def _templates(self) -> Iterator[None]:
        with override_settings(
            INSTALLED_APPS=[*settings.INSTALLED_APPS, "rest_framework"],
            TEMPLATES=[
                {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
            ],
            STATIC_URL="/static/",
        ):
            yield

    @pytest.mark.usefixtures("either")
    def test_pages_and_forms_work_without_a_key(self, client: Client) -> None:
        """A browser gets its pages, and its form runs each time that it is sent."""
        client.force_login(User.objects.get(username="alice"))
        page = client.get("/plain-generic/", headers=self.HTML)
        assert page["Content-Type"] == "text/html; charset=utf-8"
        assert b'name="amount"' in page.content
        for number in (1, 2):
            sent = client.post("/plain-generic/", {"amount": 5}, headers=self.HTML)
            assert sent.status_code == 201
            assert b"HTTP 201 Created" in sent.content
            assert get_calls("rest") == number
        assert get_statuses() == []

    @each()
    def test_replay_has_the_stored_rendering(self, client: Client, way: str) -> None:
        """A retry that accepts something else gets the stored bytes and their content type."""
        first = send(client, way, **self.HTML)
        assert b"HTTP 201 Created" in first.content
        for accepted in ("text/html", "application/json", "*/*"):
            again = send(client, way, Accept=accepted)
            assert (again.status_code, again.content) == (201, first.content)
            assert again["Content-Type"] == first["Content-Type"] == "text/html; charset=utf-8"
            assert again["Vary"].startswith("Accept")
        assert get_calls("rest") == 1


@idempotent
class Skips(Plain):
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return HttpResponse("done")


@pytest.mark.usefixtures("either")
def test_view_without_the_checks_is_warned_of(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A view whose own `dispatch` never comes to the claim is not protected, and a log says so."""
    with routed(Skips.as_view()):
        assert send(client, "/view/").content == b"done"
    assert "never came to its claim" in caplog.text
    assert "Skips" in caplog.text
    assert get_statuses() == []


class ChoosesItself(Plain):
    """
    Calls its handler by other means than the framework's, within its checks or behind them.
    """

    asks_for_responses = True

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs, self.headers = args, kwargs, {}
        self.request = wrapped = self.initialize_request(request, *args, **kwargs)
        try:
            self.initial(wrapped, *args, **kwargs)
            response: Any = Plain.post(self, wrapped)
        except Exception as error:
            if not self.asks_for_responses:
                raise
            response = self.handle_exception(error)
        self.response = self.finalize_response(wrapped, response, *args, **kwargs)
        return self.response


class AsksNobody(ChoosesItself):
    asks_for_responses = False


@pytest.mark.parametrize(("view", "status"), [(ChoosesItself, 201), (AsksNobody, 500)])
def test_view_that_chooses_its_handler_never_runs_twice(
    client: Client, view: type[ChoosesItself], status: int
) -> None:
    """However a view comes to its work, a retry gets the stored answer or an error, not a run."""
    client.raise_request_exception = False
    with routed(view.as_view()):
        assert send(client, "/view/").status_code == 201
        assert send(client, "/view/").status_code == status
    assert get_calls("rest") == 1


class Asked(APIView):
    """
    A view that others ask before their own checks.
    """

    authentication_classes = ()
    permission_classes = ()

    def post(self, request: Request) -> Response:
        return Response({"asked": True})


class AskedDecorated(Asked):
    @idempotent
    def post(self, request: Request) -> Response:
        return super().post(request)


class AskedExempt(Asked):
    @idempotency_exempt
    def post(self, request: Request) -> Response:
        return super().post(request)


@pytest.mark.parametrize("asked", [Asked, AskedDecorated, AskedExempt])
def test_view_that_asks_another_first_runs_once(client: Client, asked: type[Asked]) -> None:
    """A view that calls another one before its own checks claims for itself, and runs once."""

    class Asks(Plain):
        def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            asked.as_view()(request)
            return super().dispatch(request, *args, **kwargs)

    with routed(path("asked/", asked.as_view()), Asks.as_view()):
        assert send(client, "/asked/", key="key-of-the-other").status_code == 200
        first, again = send(client, "/view/"), send(client, "/view/")
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.content == first.content
        assert get_calls("rest") == 1
        # An own user for each, although the other view knows none.
        assert send(client, "/view/", "bob-1").json()["number"] == 2


class Envelope(Guarded, APIView):
    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response.data = {"ok": response.status_code < 400, "data": response.data}
        return response

    def post(self, request: Request) -> HttpResponseBase:
        return do_work(request)


class EnvelopeDecorated(Envelope):
    @idempotent
    def post(self, request: Request) -> HttpResponseBase:
        return do_work(request)


@pytest.mark.parametrize("view", [Envelope, EnvelopeDecorated])
def test_view_that_finalizes_data_sends_its_answers(client: Client, view: type[APIView]) -> None:
    """A stored answer or a refusal passes a `finalize_response` that knows the framework's only."""
    with routed(view.as_view()):
        first, again = send(client, "/view/"), send(client, "/view/")
        assert first.json()["ok"] is True
        assert (again.status_code, again.content) == (201, first.content)
        assert send(client, "/view/", amount=6).status_code == 422
    assert get_calls("rest") == 1


def test_error_of_a_view_that_finalizes_its_own_response_is_an_error(client: Client) -> None:
    """Only for answers is it overlooked what a view expects of the framework's responses."""

    class Broken(Envelope):
        def post(self, request: Request) -> HttpResponseBase:
            return HttpResponse(b"%d" % len(str(do_work(request))))

    with routed(Broken.as_view()):
        assert send(client, "/view/").status_code == 500
    assert get_statuses() == []


@pytest.mark.usefixtures("either")
def test_directive_of_a_method_is_not_sent_without_a_key(client: Client) -> None:
    """What a decorated method says of the keeping of its answer stays inside, key or not."""

    class Says(Plain):
        @idempotent
        def post(self, request: Request) -> Response:
            return Response({}, headers={"X-Idempotency-Store": "no"})

    with routed(Says.as_view()):
        answers = [send(client, "/view/", key=key) for key in (None, "key-1")]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.get("X-Idempotency-Store") for answer in answers] == [None, None]
