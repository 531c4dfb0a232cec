"""
System checks: what cannot work (`E`), and what will hurt (`W`).

None of them connects to anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.urls import URLPattern, URLResolver, get_resolver

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.http import ViewOptions, check_options
from dotmac_tasks.storage.registry import storage_from_setting
from dotmac_tasks_django.conf import MIDDLEWARE, get_setting, load_config
from dotmac_tasks_django.protection import find_inner_view, find_options

__all__ = [
    "CHECKS",
    "CheckText",
    "check_middleware",
    "check_settings",
    "check_views",
    "register_checks",
]

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
        "A dotted path in the settings leads to nothing that can be used. {}",
        "Name something that exists, or pass it instead of its path.",
    ),
    "E003": CheckText(
        Error,
        "BackgroundOperationsMiddleware is listed {} times.",
        "Keep one of them in MIDDLEWARE.",
    ),
    "E004": CheckText(
        Error,
        "The storage cannot be constructed. {}",
        "Correct DOTMAC_TASKS['STORAGE'], or the environment.",
    ),
    "E005": CheckText(
        Error,
        "The options of {} cannot work with the settings. {}",
        "Correct the options of @idempotent, or DOTMAC_TASKS.",
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
        f"Add {MIDDLEWARE!r} to MIDDLEWARE. Without it only decorated views are protected.",
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
    "W005": CheckText(Warning, "{}", "Change it in DOTMAC_TASKS, or in the environment."),
    "W006": CheckText(
        Warning,
        "{0}.{1} is decorated and does not run in {2}: {3}.{1} comes before it.",
        "Name the class with the decorated method before the other among the bases.",
    ),
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
    register(check_views, Tags.urls)


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
    messages = [_say("E002", problem) for problem in config.find_dead_paths()]
    try:
        storage_from_setting(
            config.storage, prefix=config.key_prefix, timeout=config.storage_timeout
        ).close()
    except ConfigurationError as error:
        messages.append(_say("E004", error))
    if not get_setting("DEBUG") and _is_memory(config):
        messages.append(_say("W001"))
    messages += [_say("W005", risk) for risk in config.find_risks()]
    return messages


def _is_memory(config: TasksConfig) -> bool:
    if isinstance(config.storage, str):
        return config.storage.startswith("memory:")
    backend: str = config.storage["BACKEND"]
    return backend.endswith(".MemoryStorage")


def check_views(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """
    Check the options of the views that have a URL.
    """
    if not get_setting("ROOT_URLCONF"):
        return []
    try:
        config = load_config()
    except ConfigurationError:
        return []  # said by `check_settings`
    # Keyed by what they say: a view with two URLs is one view.
    messages: dict[str, CheckMessage] = {}
    for pattern in _find_patterns(get_resolver().url_patterns):
        for method in ("", *config.methods):
            for message in _check_view(pattern, method, config):
                messages[message.msg] = message
    return list(messages.values())


def _check_view(pattern: URLPattern, method: str, config: TasksConfig) -> Iterator[CheckMessage]:
    options = find_options(pattern.callback, method)
    if isinstance(options, ViewOptions):
        try:
            check_options(config, options)
        except ConfigurationError as error:
            yield _say("E005", pattern.lookup_str, error)
    hidden = _find_hidden(pattern.callback, method)
    if hidden is not None:
        yield _say("W006", *hidden)


def _find_hidden(view: Any, method: str) -> tuple[str, str, str, str] | None:
    """
    Return where a decorated method of a class-based view is hidden, and by what.

    Not by a subclass, which may well call it.
    """
    view = find_inner_view(view)
    owner = getattr(view, "view_class", None) or getattr(view, "cls", None)
    if owner is None:
        return None
    verb = method.lower()
    name = (getattr(view, "actions", None) or {}).get(verb, verb) if method else "dispatch"
    first, *others = [base for base in owner.__mro__ if name in vars(base)] or [object]
    if find_options(vars(first).get(name)) is not None:
        return None
    for base in others:
        if find_options(vars(base)[name]) is not None and not issubclass(first, base):
            return base.__qualname__, name, owner.__qualname__, first.__qualname__
    return None


def _find_patterns(patterns: Iterable[URLPattern | URLResolver]) -> Iterator[URLPattern]:
    for pattern in patterns:
        if isinstance(pattern, URLPattern):
            yield pattern
        else:
            yield from _find_patterns(pattern.url_patterns)


def check_middleware(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """
    Check where the middleware stands.
    """
    installed: Sequence[str] = get_setting("MIDDLEWARE")
    times = installed.count(MIDDLEWARE)
    if not times:
        return [_say("W002")]
    messages = [_say("E003", times)] if times > 1 else []
    place = installed.index(MIDDLEWARE)
    inside = installed[place + 1 :]
    messages += [_say("W003", path.rpartition(".")[2]) for path in _BEHIND if path in inside]
    if _GZIP in inside:
        messages.append(_say("W004"))
    return messages
