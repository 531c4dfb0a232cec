from __future__ import annotations

import sys
from typing import Any
from unittest.mock import Mock, patch

import pytest
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, run_checks
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View

import dotmac_tasks.storage
from dotmac_tasks.testing import EventRecorder
from dotmac_tasks_django import idempotent
from dotmac_tasks_django.checks import CHECKS, check_middleware, check_settings, check_views
from dotmac_tasks_django.testing import override_tasks_settings
from support.django_project import views
from support.django_project.settings import MIDDLEWARE

OURS = MIDDLEWARE[-1]
SHARED = "redis://127.0.0.1:1/0"


def find_ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("dotmac_tasks.") for message in messages]


def check_with(**settings: Any) -> list[CheckMessage]:
    with override_settings(DOTMAC_TASKS={"STORAGE": SHARED, **settings}):
        return check_settings(None)


def test_good_project_has_no_message() -> None:
    """A shared storage and the right order give no message, and nothing is connected to."""
    with override_settings(DOTMAC_TASKS={"STORAGE": SHARED}):
        ours = [message for message in run_checks() if str(message.id).startswith("dotmac_tasks")]
    assert ours == []


def test_ids_are_unique_and_of_their_kind() -> None:
    """Each check has one id, which begins with E for errors and W for warnings."""
    for name, (kind, message, hint) in CHECKS.items():
        assert name[0] == ("E" if kind is Error else "W")
        assert message
        assert hint.endswith((".", "noise."))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"LAESE": 1}, "Did you mean LEASE"),
        ({"LEASE": "soon"}, "LEASE"),
        ({"DEFAULT_IDEMPOTENCY_TTL": 0}, "DEFAULT_IDEMPOTENCY_TTL"),
        ({"DEFAULT_IDEMPOTENCY_TTL": -1}, "DEFAULT_IDEMPOTENCY_TTL"),
        ({"LEASE": 100, "DEFAULT_IDEMPOTENCY_TTL": 10}, "longer than"),
    ],
)
def test_refused_settings_are_an_error(settings: dict[str, Any], text: str) -> None:
    """What the configuration refuses is E001, in its words and with a hint."""
    (message,) = check_with(**settings)
    assert find_ids([message]) == ["E001"]
    assert text in message.msg
    assert message.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"TENANT": "nowhere.tenant"},
        {"PRINCIPAL": "django.nothing"},
        {"HOOKS": ["nowhere.Hooks"]},
        {"HOOKS": ["django.utils.timezone.now"]},
        {"HOOKS": ["dotmac_tasks.errors.TasksError"]},
    ],
)
def test_dead_dotted_paths_are_an_error(settings: dict[str, Any]) -> None:
    """A dotted path that leads nowhere is E002; one that leads somewhere is none."""
    assert find_ids(check_with(**settings)) == ["E002"]
    assert find_ids(check_with(TENANT="django.utils.timezone.now")) == []
    assert find_ids(check_with(HOOKS=["dotmac_tasks.testing.EventRecorder"])) == []


def test_hooks_are_not_made_by_the_check() -> None:
    """A hook that may be made only once in a process is left to the manager."""
    with patch.object(EventRecorder, "__init__", side_effect=AssertionError):
        assert check_with(HOOKS=["dotmac_tasks.testing.EventRecorder"]) == []


@pytest.mark.parametrize(
    ("storage", "text"),
    [
        ("reddis://localhost", "Did you mean 'redis'"),
        ("redis://localhost:port/0", "port"),
        ("redis://:hunter/2@localhost/0", "percent-encoded"),
        ({"BACKEND": "nowhere.Storage"}, "cannot be imported"),
        ({"BACKEND": "dotmac_tasks.RedisStorage"}, "needs redis_url"),
        (
            {"BACKEND": "dotmac_tasks.RedisStorage", "OPTIONS": {"url": SHARED}},
            "url is no option of RedisStorage. Choose from redis_url",
        ),
    ],
    ids=str,
)
def test_storage_that_cannot_be_constructed_is_an_error(storage: Any, text: str) -> None:
    """What no storage can be made of is E004, in its words and without a password."""
    (message,) = check_with(STORAGE=storage)
    assert find_ids([message]) == ["E004"]
    assert text in message.msg
    assert "hunter" not in message.msg


def test_missing_driver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-py its URL is E004, which says what to install."""
    monkeypatch.setitem(sys.modules, "dotmac_tasks.storage.redis", None)
    monkeypatch.delitem(vars(dotmac_tasks.storage), "redis", raising=False)
    error = ImportError("needs redis-py", name="RedisStorage")
    monkeypatch.setattr(dotmac_tasks.storage, "__getattr__", Mock(side_effect=error))
    (message,) = check_with()
    assert find_ids([message]) == ["E004"]
    assert "needs redis-py" in message.msg


class Routes:
    """
    A URLconf of one test.
    """

    def __init__(self, *urlpatterns: Any) -> None:
        self.urlpatterns = list(urlpatterns)


class BothMethods(View):
    @method_decorator(idempotent(lease=500))
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    @method_decorator(idempotent(ttl=20))
    def patch(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


def test_options_that_do_not_fit_the_settings_are_an_error() -> None:
    """A view whose lease outlasts its retention is E005 once, by its name; others are none."""
    wrong = idempotent(lease=101)(views.PayView.as_view())
    right = idempotent(lease=100)(views.PayView.as_view())
    routes = Routes(
        path("a/", include(([path("b/", wrong)], "nested"))),
        path("c/", wrong),
        path("d/", right),
        path("e/", views.pay),
        path("f/", BothMethods.as_view()),
    )
    settings: Any = {"STORAGE": SHARED, "DEFAULT_IDEMPOTENCY_TTL": 100}
    with override_settings(ROOT_URLCONF=routes, DOTMAC_TASKS=settings):
        messages = check_views(None)
    assert find_ids(messages) == ["E005"] * 3
    texts = [message.msg for message in messages]
    assert "PayView" in texts[0]
    assert "101 s" in texts[0]
    assert "BothMethods" in texts[1]
    assert "500 s" in texts[1]
    assert "30 s" in texts[2]


def test_views_are_not_checked_without_settings() -> None:
    """Refused settings are said once, and a project without URLs has no views."""
    wrong = idempotent(lease=100_000)(views.PayView.as_view())
    routes = Routes(path("", wrong))
    with override_settings(ROOT_URLCONF=routes, DOTMAC_TASKS={}):
        assert find_ids(check_views(None)) == ["E005"]
    with override_settings(ROOT_URLCONF=routes, DOTMAC_TASKS={"LEASE": -1}):
        assert check_views(None) == []
    with override_settings(DOTMAC_TASKS={}):
        del django_settings.ROOT_URLCONF
        assert check_views(None) == []


class DecoratedMixin:
    @idempotent(required=True)
    def post(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError


class Posts(View):
    def post(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError


class MixedInLast(Posts, DecoratedMixin):
    pass


class MixedInFirst(DecoratedMixin, Posts):
    pass


class Overridden(DecoratedMixin, View):
    def post(self, request: HttpRequest) -> HttpResponse:
        return super().post(request)


@idempotent
class DecoratedView(View):
    pass


class OtherDispatch(View):
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        raise AssertionError


class DispatchedElsewhere(OtherDispatch, DecoratedView):
    pass


@pytest.mark.parametrize(
    ("view", "told"),
    [
        (MixedInLast.as_view(), "DecoratedMixin.post is decorated and does not run in MixedInLast"),
        (DispatchedElsewhere.as_view(), "OtherDispatch.dispatch comes before it"),
        (MixedInFirst.as_view(), None),
        (Overridden.as_view(), None),
        (DecoratedView.as_view(), None),
    ],
)
def test_decorated_method_that_never_runs_is_a_warning(view: Any, told: str | None) -> None:
    """A decorator on a mixin that another base hides is W006; a subclass may call its base."""
    routes = Routes(path("a/", view), path("b/", view))
    with override_settings(ROOT_URLCONF=routes, DOTMAC_TASKS={}):
        messages = check_views(None)
    assert find_ids(messages) == ([] if told is None else ["W006"])
    assert all(told in message.msg for message in messages if told is not None)


@pytest.mark.parametrize(
    "storage", ["memory://", {"BACKEND": "dotmac_tasks.storage.memory.MemoryStorage"}]
)
def test_memory_is_a_warning_in_production(storage: Any) -> None:
    """The memory storage is W001 unless DEBUG is on."""
    assert find_ids(check_with(STORAGE=storage)) == ["W001"]
    with override_settings(DEBUG=True):
        assert check_with(STORAGE=storage) == []


def test_other_backend_is_no_warning() -> None:
    """A backend of another name is not taken for the memory storage."""
    options = {"redis_url": SHARED}
    backend = {"BACKEND": "dotmac_tasks.storage.redis.RedisStorage", "OPTIONS": options}
    assert check_with(STORAGE=backend) == []


def test_risks_are_warnings() -> None:
    """What works and may hurt is W005."""
    assert find_ids(check_with(LEASE=2, STORAGE_TIMEOUT=2)) == ["W005"]
    (message,) = check_with(KEY_SECRET="short")
    assert message.hint == "Change it in DOTMAC_TASKS, or in the environment."


def test_missing_middleware_is_a_warning() -> None:
    """Without the middleware only decorated views are protected: W002."""
    with override_settings(MIDDLEWARE=MIDDLEWARE[:-1]):
        assert find_ids(check_middleware(None)) == ["W002"]


def test_middleware_listed_twice_is_an_error() -> None:
    """The same middleware twice is E003."""
    with override_settings(MIDDLEWARE=[*MIDDLEWARE, OURS]):
        (message,) = check_middleware(None)
    assert message.id == "dotmac_tasks.E003"
    assert "2 times" in message.msg


@pytest.mark.parametrize(
    "inner",
    [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ],
)
def test_middleware_before_the_checks_is_a_warning(inner: str) -> None:
    """A middleware that stands before sessions, CSRF or authentication is W003 and names it."""
    with override_settings(MIDDLEWARE=[OURS, inner]):
        (message,) = check_middleware(None)
    assert message.id == "dotmac_tasks.W003"
    assert inner.rpartition(".")[2] in message.msg
    with override_settings(MIDDLEWARE=[inner, OURS]):
        assert check_middleware(None) == []


def test_compression_inside_is_a_warning() -> None:
    """GZip between us and the view is W004, outside it is right."""
    gzip = "django.middleware.gzip.GZipMiddleware"
    with override_settings(MIDDLEWARE=[OURS, gzip]):
        assert find_ids(check_middleware(None)) == ["W004"]
    with override_settings(MIDDLEWARE=[gzip, OURS]):
        assert check_middleware(None) == []


def test_checks_read_single_settings() -> None:
    """The checks see what a test overrides."""
    with override_tasks_settings(lease=-1):
        assert find_ids(check_settings(None)) == ["E001"]
