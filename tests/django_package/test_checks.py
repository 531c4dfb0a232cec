from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import CheckMessage, Error, run_checks
from django.test import override_settings

from dotmac_tasks_django.checks import CHECKS, check_middleware, check_settings
from dotmac_tasks_django.testing import override_tasks_settings
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
        {"STORAGE": {"BACKEND": "nowhere.Storage"}},
    ],
)
def test_dead_dotted_paths_are_an_error(settings: dict[str, Any]) -> None:
    """A dotted path that leads nowhere is E002; one that leads somewhere is none."""
    assert find_ids(check_with(**settings)) == ["E002"]
    assert find_ids(check_with(TENANT="django.utils.timezone.now")) == []


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
    assert check_with(STORAGE={"BACKEND": "dotmac_tasks.storage.redis.RedisStorage"}) == []


def test_risks_are_warnings() -> None:
    """What works and may hurt is W005."""
    assert find_ids(check_with(LEASE=2, STORAGE_TIMEOUT=2)) == ["W005"]


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
