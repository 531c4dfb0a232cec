from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client, RequestFactory, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.http import ViewOptions
from dotmac_tasks.models import OperationStatus
from dotmac_tasks_django import get_manager, idempotency_exempt, idempotent
from dotmac_tasks_django.decorators import _Options
from dotmac_tasks_django.middleware import BackgroundOperationsMiddleware
from dotmac_tasks_django.protection import EXEMPT, find_options
from dotmac_tasks_django.testing import override_tasks_settings
from support.django_project.calls import count_call, get_calls
from support.django_project.records import get_statuses
from support.django_project.settings import MIDDLEWARE
from support.django_project.views import PayView, RequiredView

KEY = {"Idempotency-Key": "key-1"}
JSON = "application/json"


@pytest.fixture
def _alone() -> Iterator[None]:
    """
    The project without the middleware.
    """
    with override_settings(MIDDLEWARE=MIDDLEWARE[:-1]):
        yield


@pytest.mark.usefixtures("either")
class TestEither:
    def test_decorated_view_runs_once(self, client: Client) -> None:
        """A decorated view is claimed once and replayed, whoever protects it."""
        first, again = (client.post("/required/", headers=KEY) for _ in range(2))
        assert first.json() == again.json() == {"number": 1}
        assert "X-Cache-Hit" not in first
        assert again["X-Cache-Hit"] == "true"
        assert first["X-Idempotency-Key"] == "key-1"

    def test_required_key(self, client: Client) -> None:
        """A view that needs a key refuses requests without one."""
        refused = client.post("/required/")
        assert refused.status_code == 400
        assert refused.json()["type"].endswith("missing-key")
        assert get_calls("required") == 0

    def test_directive_is_not_sent_without_a_key(self, client: Client) -> None:
        """What a view says of the keeping of its answer stays inside, though nothing is kept."""

        @idempotent
        def view(request: HttpRequest) -> HttpResponse:
            return HttpResponse("done", headers={"X-Idempotency-Store": "no"})

        with override_settings(ROOT_URLCONF=(path("view/", view),)):
            answers = [client.post("/view/"), client.post("/view/", headers=KEY)]
        assert [answer.content for answer in answers] == [b"done", b"done"]
        assert [answer.get("X-Idempotency-Store") for answer in answers] == [None, None]

    def test_view_that_returns_nothing_is_told_by_django(self, client: Client) -> None:
        """A decorated view without a response fails with Django's own message."""

        @idempotent
        def view(request: HttpRequest) -> None:
            pass

        client.raise_request_exception = True
        with (
            override_settings(ROOT_URLCONF=(path("view/", view),)),
            pytest.raises(ValueError, match="didn't return an HttpResponse"),
        ):
            client.post("/view/")

    def test_other_methods_pass(self, client: Client) -> None:
        """A method that is not covered needs no key."""
        assert client.get("/required/").status_code == 200

    def test_selector_picks_what_counts(self, client: Client) -> None:
        """With a selector a volatile field does not make another request."""

        def send(order: int, sent_at: int) -> Any:
            data = {"order": order, "sent_at": sent_at}
            return client.post("/selected/", data, JSON, headers=KEY)

        assert send(1, 1).json() == send(1, 2).json() == {"number": 1}
        assert send(2, 2).status_code == 422

    def test_exempt_view_runs_each_time(self, client: Client) -> None:
        """An exempt view is left alone, whatever the project requires."""
        with override_tasks_settings(require_key=True):
            assert client.post("/exempt/").status_code == 200
            assert client.post("/exempt/", headers=KEY).json() == {"number": 2}
            assert client.post("/exempt/", headers=KEY).json() == {"number": 3}

    def test_method_of_a_class(self, client: Client) -> None:
        """A decorated method has its own options; its neighbours are not concerned."""
        assert client.post("/class/").status_code == 400
        first, again = (client.post("/class/", headers=KEY) for _ in range(2))
        assert first.json() == again.json() == {"number": 1}
        assert client.patch("/class/").status_code == 200

    def test_exempt_method_of_a_class(self, client: Client) -> None:
        """One method of a class can be left alone."""
        with override_tasks_settings(methods=["POST", "PATCH", "PUT"], require_key=True):
            assert client.put("/class/").json() == {"number": 1}

    def test_class(self, client: Client) -> None:
        """A decorated class protects all its methods."""
        assert client.post("/required-class/").status_code == 400
        first, again = (client.post("/required-class/", headers=KEY) for _ in range(2))
        assert first.json() == again.json() == {"number": 1}

    @pytest.mark.django_db
    def test_stored_answer_needs_the_permission(self) -> None:
        """Who has lost the permission gets no stored answer, and nothing runs again."""
        user = User.objects.create_user("alice")
        permission = Permission.objects.get(codename="add_user")
        user.user_permissions.add(permission)
        client = Client()
        client.force_login(user)
        answers = [client.post("/guarded/", {}, JSON, headers=KEY) for _ in range(2)]
        assert [answer.json() for answer in answers] == [{"number": 1}] * 2
        user.user_permissions.remove(permission)
        refused = client.post("/guarded/", {}, JSON, headers=KEY)
        assert refused.status_code == 403
        assert "X-Cache-Hit" not in refused
        user.user_permissions.add(permission)
        assert client.post("/guarded/", {}, JSON, headers=KEY)["X-Cache-Hit"] == "true"
        assert get_calls("guarded") == 1

    def test_subclass_says_it_anew(self) -> None:
        """A subclass may exempt what its base class protects, but one class says it once."""

        @idempotent(required=True)
        class Base(View):
            def post(self, request: HttpRequest) -> HttpResponse:
                return JsonResponse({"number": count_call("subclass")})

        @idempotency_exempt
        class Exempted(Base):
            pass

        view = Exempted.as_view()
        with pytest.raises(ConfigurationError, match="decorated already"):
            idempotent(Exempted)
        request = RequestFactory().post("/", {}, JSON)
        middleware = BackgroundOperationsMiddleware(view)
        assert middleware.process_view(request, view, (), {}) is None
        assert middleware(request).status_code == 200
        assert view(RequestFactory(headers=KEY).post("/", {}, JSON)).status_code == 200
        assert get_statuses() == []

    def test_nested_views_claim_once(self, client: Client) -> None:
        """A decorated view that calls another with the same request is one operation."""
        first, again = (client.post("/outer/", headers=KEY) for _ in range(2))
        assert first.json() == again.json() == {"number": 1}

    def test_broken_rendering_releases_the_key(self, client: Client) -> None:
        """A response that breaks while it is rendered is no outcome."""
        for number in (1, 2):
            assert client.post("/broken-receipt/", headers=KEY).status_code == 500
            assert get_calls("broken_receipt") == number
        assert get_statuses() == []


class TestOptions:
    def test_signature_names_every_option(self) -> None:
        """The type of the decorator and the options it accepts are the same."""
        assert set(_Options.__annotations__) == set(ViewOptions.__dataclass_fields__)

    def test_method_beats_class(self, client: Client) -> None:
        """Under the middleware a method's own options win over those of its class."""
        assert client.patch("/required-class/").status_code == 200
        view = RequiredView.as_view()
        assert find_options(view, "PATCH") == ViewOptions(required=False)
        assert find_options(view, "POST") == ViewOptions(required=True)

    def test_options_of_a_class_based_view(self) -> None:
        """Options are found on the methods behind a class-based view."""
        view = PayView.as_view()
        assert find_options(view, "POST") == ViewOptions(required=True)
        assert find_options(view, "PATCH") is None
        assert find_options(view, "PUT") is EXEMPT

    def test_options_of_a_viewset(self) -> None:
        """Options are found on the action that a viewset maps a method to."""

        class Payments:
            @idempotent(ttl=60)
            def create(self, request: HttpRequest) -> HttpResponse:
                raise AssertionError

        def view(request: HttpRequest) -> HttpResponse:
            raise AssertionError

        view.cls = Payments  # type: ignore[attr-defined]
        view.actions = {"post": "create"}  # type: ignore[attr-defined]
        assert find_options(view, "POST") == ViewOptions(ttl=60)
        assert find_options(view, "PATCH") is None

    def test_options_of_a_partial(self) -> None:
        """A view with some arguments filled in keeps its options."""
        view = partial(partial(idempotent(ttl=60)(lambda request, a, b: None), a=1), b=2)
        assert find_options(view, "POST") == ViewOptions(ttl=60)

    def test_options_below_api_view(self) -> None:
        """The REST framework's `api_view` hides the function that it decorates; it is found."""

        def api_view(func: Any) -> Any:
            def handler(self: Any, *args: Any) -> Any:
                return func(*args)

            handler.__module__ = "rest_framework.decorators"

            def view(request: HttpRequest) -> None:
                raise AssertionError

            view.cls = type("WrappedAPIView", (), {"post": handler})  # type: ignore[attr-defined]
            return view

        decorated = idempotent(ttl=60)(lambda request: None)
        assert find_options(api_view(decorated), "POST") == ViewOptions(ttl=60)
        assert find_options(api_view(lambda request: None), "POST") is None

    def test_undecorated_view_has_none(self) -> None:
        """A plain view has no options."""
        assert find_options(lambda request: None) is None

    def test_decorated_view_keeps_its_name(self) -> None:
        """Name and documentation of the view stay."""

        @idempotent
        def documented(request: HttpRequest) -> HttpResponse:
            """Say something."""
            raise AssertionError

        assert documented.__name__ == "documented"
        assert documented.__doc__ == "Say something."

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"retention": 5}, "retention: is no option"),
            ({"ttl": -1}, "(?i)ttl"),
            ({"ttl": 0}, "(?i)ttl"),
            ({"in_progress": "later"}, "(?i)in_progress"),
            ({"fingerprint": "body"}, "(?i)fingerprint"),
        ],
    )
    def test_wrong_options_fail_at_import(self, options: dict[str, Any], text: str) -> None:
        """An unknown or wrong option is an error where the view is defined."""
        with pytest.raises(ConfigurationError, match=text):
            idempotent(**options)

    @pytest.mark.parametrize("decorate", [idempotent, idempotency_exempt])
    def test_wrong_views_fail_at_import(self, decorate: Callable[[Any], Any]) -> None:
        """What is no synchronous view, or is decorated already, is refused at once."""

        async def asynchronous(request: HttpRequest) -> HttpResponse:
            raise AssertionError

        class AsyncView(View):
            async def post(self, request: HttpRequest) -> HttpResponse:
                raise AssertionError

        @idempotency_exempt
        def decorated(request: HttpRequest) -> HttpResponse:
            raise AssertionError

        for view, text in (
            (asynchronous, "is asynchronous"),
            (AsyncView, "no class of synchronous views"),
            (int, "no class of synchronous views"),
            ("POST", "no view"),
            (decorated, "decorated already"),
        ):
            with pytest.raises(ConfigurationError, match=text):
                decorate(view)

    def test_view_without_a_request_is_an_error(self) -> None:
        """A decorated function that is called without a request says so."""

        @idempotent
        def view(number: int) -> int:
            return number

        with pytest.raises(TypeError, match="without a request"):
            view(1)

    def test_wrapped_request_is_found(self) -> None:
        """The request inside a REST framework's request is the one that counts."""

        class Wrapping:
            def __init__(self, request: HttpRequest) -> None:
                self._request = request

        @idempotent
        def view(request: Wrapping) -> HttpResponse:
            return JsonResponse({"number": count_call("wrapped")})

        for _ in range(2):
            request = RequestFactory(headers=KEY).post("/", {}, JSON)
            assert view(Wrapping(request)).content == b'{"number": 1}'


@pytest.mark.usefixtures("_alone")
class TestAlone:
    def test_undecorated_view_is_not_protected(self, client: Client) -> None:
        """Without the middleware an undecorated view runs each time."""
        for _ in range(2):
            client.post("/pay/", headers=KEY)
        assert get_calls("pay") == 2

    def test_exception_releases_the_key(self) -> None:
        """An exception of the view gives the key back and passes unchanged."""

        @idempotent
        def view(request: HttpRequest) -> HttpResponse:
            if count_call("view") == 1:
                raise ValueError("first")
            return HttpResponse("second")

        def send() -> HttpResponse:
            return view(RequestFactory(headers=KEY).post("/", {}, JSON))

        with pytest.raises(ValueError, match="first"):
            send()
        assert send().content == send().content == b"second"

    def test_exception_without_a_key_passes(self) -> None:
        """An exception of a view whose request is not protected passes unchanged, too."""

        @idempotent
        def view(request: HttpRequest) -> HttpResponse:
            raise ValueError("a bug")

        with pytest.raises(ValueError, match="a bug"):
            view(RequestFactory().post("/", {}, JSON))
        assert get_statuses() == []

    def test_exit_leaves_the_outcome_unknown(self) -> None:
        """A worker that is stopped in the view records nothing."""

        @idempotent
        def view(request: HttpRequest) -> HttpResponse:
            raise SystemExit

        with pytest.raises(SystemExit):
            view(RequestFactory(headers=KEY).post("/", {}, JSON))
        assert get_statuses() == [OperationStatus.IN_PROGRESS]
        assert get_manager().heartbeat.held_count == 0

    def test_template_response_is_captured_rendered(self, client: Client) -> None:
        """A response that renders behind the view is stored as it went out."""
        from django.template.response import TemplateResponse

        @idempotent
        def view(request: HttpRequest) -> HttpResponse:
            return TemplateResponse(request, "receipt.html", {"number": count_call("view")})

        first = view(RequestFactory(headers=KEY).post("/", {}, JSON))
        assert isinstance(first, TemplateResponse)
        assert get_statuses() == [OperationStatus.IN_PROGRESS]
        assert first.render().content == b"Receipt 1"
        again = view(RequestFactory(headers=KEY).post("/", {}, JSON))
        assert (again.content, again["X-Cache-Hit"]) == (b"Receipt 1", "true")

    def test_response_that_is_never_rendered_releases_the_key(self) -> None:
        """If Django drops the response, closing the request gives the key back."""
        from django.template.response import TemplateResponse

        @idempotent
        def view(request: HttpRequest) -> HttpResponse:
            return TemplateResponse(request, "receipt.html")

        request = RequestFactory(headers=KEY).post("/", {}, JSON)
        view(request)
        request.close()
        assert get_statuses() == []


@pytest.mark.usefixtures("_alone", "_atomic_requests")
@pytest.mark.django_db(transaction=True)
class TestAloneInTransactions:
    def test_recorded_behind_the_commit(self, client: Client) -> None:
        """The decorator records the outcome once the request's transaction is committed."""
        first, again = (client.post("/decorated-insert/", headers=KEY) for _ in range(2))
        assert first.json() == again.json() == {"number": 1}
        assert first["X-Idempotency-Key"] == "key-1"

    def test_failed_commit_releases_the_key(self, client: Client) -> None:
        """Where COMMIT fails the key is given back."""
        for number in (1, 2):
            assert client.post("/decorated-insert/?orphan", headers=KEY).status_code == 500
            assert get_calls("insert") == number
        assert get_statuses() == []


def test_method_decorator_on_a_class(client: Client) -> None:
    """`method_decorator` on `dispatch` does the same as decorating the class."""

    @method_decorator(idempotent(required=True), name="dispatch")
    class Decorated(View):
        def post(self, request: HttpRequest) -> HttpResponse:
            return JsonResponse({"number": count_call("dispatch")})

    view = Decorated.as_view()
    assert find_options(view, "POST") == ViewOptions(required=True)
    assert view(RequestFactory().post("/", {}, JSON)).status_code == 400
    for _ in range(2):
        response = view(RequestFactory(headers=KEY).post("/", {}, JSON))
        assert response.content == b'{"number": 1}'  # type: ignore[attr-defined]


class Overridden(View):
    """
    Serves POST by another method than the decorated one, as pages that spell out PATCH do.
    """

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if "status" in request.GET:
            return HttpResponse(status=int(request.GET["status"]))
        return self.patch(request)

    @method_decorator(idempotent)
    def post(self, request: HttpRequest) -> HttpResponse:
        return self.patch(request)

    def patch(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"run {count_call('patch')}")


def test_answer_that_is_not_sent_is_warned_of(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A view that goes past its decorator runs again, and a log says so; a refusal is none."""
    headers = {"Idempotency-Key": "key-1"}
    with override_settings(ROOT_URLCONF=(path("patch/", Overridden.as_view()),)):
        assert client.post("/patch/", headers=headers).content == b"run 1"
        assert "by itself" not in caplog.text
        assert client.post("/patch/", headers=headers).content == b"run 2"
        assert "Overridden answered a retry by itself" in caplog.text
        caplog.clear()
        for _ in range(2):
            redirected = client.post("/patch/?status=302", headers={"Idempotency-Key": "key-2"})
            assert redirected.status_code == 302
        assert caplog.records == []
