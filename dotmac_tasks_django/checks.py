"""
System checks: what cannot work (`E`), and what will hurt (`W`).

None of them connects to anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from django.core.checks import CheckMessage, Error, Warning, register
from django.utils.module_loading import import_string

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks_django.conf import get_setting, load_config

__all__ = ["CHECKS", "CheckText", "check_middleware", "check_settings", "register_checks"]

_OURS: Final = "dotmac_tasks_django.middleware.BackgroundOperationsMiddleware"
_AUTHENTICATION: Final = "django.contrib.auth.middleware.AuthenticationMiddleware"
_LOGIN_REQUIRED: Final = "django.contrib.auth.middleware.LoginRequiredMiddleware"
_CSRF: Final = "django.middleware.csrf.CsrfViewMiddleware"
_GZIP: Final = "django.middleware.gzip.GZipMiddleware"
_SESSION: Final = "django.contrib.sessions.middleware.SessionMiddleware"


class CheckText(NamedTuple):
    """
    What one check says.

    Attributes:
        kind: Django's class of the message.
        message: What is wrong; may hold one placeholder.
        hint: What to do about it.
    """

    kind: Callable[..., CheckMessage]
    message: str
    hint: str


CHECKS: Final[dict[str, CheckText]] = {
    "E001": CheckText(
        Error, "The settings are refused. {}", "Correct DOTMAC_TASKS, or the environment."
    ),
    "E002": CheckText(
        Error,
        "A dotted path in the settings leads nowhere. {}",
        "Name something that exists, or pass it instead of its path.",
    ),
    "E003": CheckText(
        Error,
        "BackgroundOperationsMiddleware is listed {} times.",
        "Keep one of them in MIDDLEWARE.",
    ),
    "W001": CheckText(
        Warning,
        "Idempotency keys are kept in the memory of each process.",
        "Set DOTMAC_TASKS['STORAGE'] to a storage that all processes share, such as "
        "redis://localhost:6379/0. A retry that reaches another worker runs again.",
    ),
    "W002": CheckText(
        Warning,
        "BackgroundOperationsMiddleware is not installed.",
        f"Add {_OURS!r} to MIDDLEWARE. Without it only decorated views are protected.",
    ),
    "W003": CheckText(
        Warning,
        "BackgroundOperationsMiddleware stands before {}.",
        "Put it behind in MIDDLEWARE: a stored answer may only be sent after sessions, CSRF and "
        "authentication were checked, and a key belongs to the user who sent it.",
    ),
    "W004": CheckText(
        Warning,
        "GZipMiddleware stands behind BackgroundOperationsMiddleware.",
        "Put it before in MIDDLEWARE: otherwise answers are stored compressed, and a retry by a "
        "client that cannot unpack them gets noise.",
    ),
    "W005": CheckText(Warning, "{}", "Change DOTMAC_TASKS so that the two fit together."),
}
"""
All checks by the last part of their id, which is `dotmac_tasks.<name>`.
"""

_BEHIND: Final = (_SESSION, _CSRF, _AUTHENTICATION, _LOGIN_REQUIRED)


def register_checks() -> None:
    """
    Have Django run the checks.
    """
    register(check_settings)
    register(check_middleware)


def _say(name: str, *facts: object) -> CheckMessage:
    kind, message, hint = CHECKS[name]
    return kind(message.format(*facts), hint=hint, id=f"dotmac_tasks.{name}")


def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """
    Check `DOTMAC_TASKS`.
    """
    try:
        config = load_config()
    except ConfigurationError as error:
        return [_say("E001", error)]
    messages = [_say("E002", problem) for problem in _find_dead_paths(config)]
    if not get_setting("DEBUG") and _is_memory(config):
        messages.append(_say("W001"))
    messages += [_say("W005", risk) for risk in config.find_risks()]
    return messages


def _find_dead_paths(config: TasksConfig) -> Iterator[Exception]:
    names: tuple[Literal["tenant", "principal"], ...] = ("tenant", "principal")
    for name in names:
        try:
            config.resolve_callable(name)
        except ConfigurationError as error:
            yield error
    if not isinstance(config.storage, str):
        try:
            import_string(config.storage["BACKEND"])
        except ImportError as error:
            yield error


def _is_memory(config: TasksConfig) -> bool:
    if isinstance(config.storage, str):
        return config.storage.startswith("memory:")
    backend: str = config.storage["BACKEND"]
    return backend.endswith(".MemoryStorage")


def check_middleware(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """
    Check where the middleware stands.
    """
    installed: Sequence[str] = get_setting("MIDDLEWARE")
    times = installed.count(_OURS)
    if not times:
        return [_say("W002")]
    messages = [_say("E003", times)] if times > 1 else []
    place = installed.index(_OURS)
    inside = installed[place + 1 :]
    messages += [_say("W003", path.rpartition(".")[2]) for path in _BEHIND if path in inside]
    if _GZIP in inside:
        messages.append(_say("W004"))
    return messages
