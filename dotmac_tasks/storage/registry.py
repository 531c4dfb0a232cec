"""
From a setting to a storage: URL schemes, dotted paths and their options.

Messages never hold a URL, since it may carry a password.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeAlias, TypeVar

from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.memory import MemoryStorage

__all__ = ["StorageFactory", "register_storage", "storage_from_setting", "storage_from_url"]

StorageFactory: TypeAlias = Callable[..., Storage]
"""
Called as ``factory(url, **options)``; `prefix` and `timeout` are among the options.
"""

_T = TypeVar("_T")

_OPTION = "STORAGE"
_EXAMPLE = "redis://localhost:6379/0"
# Any of them says where the Redis is.
_PLACES = ("redis_url", "client", "host")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def register_storage(scheme: str, factory: StorageFactory) -> None:
    """
    Let URLs of this scheme be answered by `factory`, in place of any before.

    May be called from any thread: it is one write to a dictionary. Constructing
    a storage must open no connection.

    Args:
        scheme: Lower-case scheme without ``://``.
        factory: Called as ``factory(url, **options)``.

    Raises:
        ConfigurationError: It is not a lower-case URL scheme.
    """
    if not _SCHEME.fullmatch(scheme):
        raise ConfigurationError(_OPTION, f"{scheme!r} is not a lower-case URL scheme.")
    _factories[scheme] = factory


def storage_from_url(url: str, **options: Any) -> Storage:
    """
    Construct the storage that a URL names; opens no connection.

    Args:
        url: Such as ``redis://localhost:6379/0``; ``memory://`` is a fresh
            storage each time.
        options: Keyword arguments of that storage.

    Raises:
        ConfigurationError: The scheme is unknown, an option does not fit, or
            the library that the scheme needs is not installed.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ConfigurationError(_OPTION, f"is not a URL such as {_EXAMPLE}.")
    factory = _factories.get(scheme.lower())
    if factory is None:
        raise ConfigurationError(
            _OPTION,
            f"has the unknown scheme {scheme!r}.{_suggest(scheme)} "
            f"Known are {', '.join(sorted(_factories))}; a package may register more.",
        )
    return factory(url, **options)


def storage_from_setting(
    setting: str | Mapping[str, Any], *, prefix: str, timeout: float
) -> Storage:
    """
    Construct the storage of the setting ``STORAGE``; opens no connection.

    Args:
        setting: A URL, or ``{"BACKEND": "dotted.path", "OPTIONS": {...}}``, as
            `TasksConfig` has checked it.
        prefix: First part of every stored key. A backend that takes no such
            argument does without it; an equal name in ``OPTIONS`` wins.
        timeout: The most seconds that one call may take; likewise.

    Raises:
        ConfigurationError: It names nothing that can be constructed this way.
    """
    if isinstance(setting, str):
        return storage_from_url(setting, prefix=prefix, timeout=timeout)
    path = setting["BACKEND"]
    backend = _import_backend(path)
    options = dict(setting.get("OPTIONS", {}))
    for name, value in (("prefix", prefix), ("timeout", timeout)):
        if _takes(backend, name):
            options.setdefault(name, value)
    storage = _construct(backend, options)
    takes_url = "redis_url" in inspect.signature(backend).parameters
    if takes_url and not any(options.get(name) for name in _PLACES):
        # Without one it means the local server; in a setting it is rather one that is missing.
        raise ConfigurationError(
            _OPTION, f"BACKEND {path!r} needs redis_url in OPTIONS, such as {_EXAMPLE}."
        )
    if not isinstance(storage, Storage):
        raise ConfigurationError(_OPTION, f"BACKEND {path!r} does not construct a Storage.")
    return storage


def _import_backend(path: str) -> Callable[..., object]:
    module_name, _, name = path.rpartition(".")
    try:
        backend: object = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            _OPTION, f"BACKEND {path!r} cannot be imported: {error}."
        ) from error
    if not callable(backend):
        raise ConfigurationError(_OPTION, f"BACKEND {path!r} is not a class.")
    return backend


def _takes(backend: Callable[..., object], name: str) -> bool:
    parameters = inspect.signature(backend).parameters
    return name in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _suggest(word: str) -> str:
    nearest = get_close_matches(word.lower(), _factories, n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def _create_memory(
    url: str, *, prefix: str = "", timeout: float = 0, **options: Any
) -> MemoryStorage:
    # Nothing here is shared or waited for, so the prefix and the timeout have no use.
    if url.partition("://")[2]:
        raise ConfigurationError(_OPTION, "takes nothing behind memory://.")
    return _construct(MemoryStorage, options)


def _create_redis(url: str, **options: Any) -> Storage:
    try:
        from dotmac_tasks.storage import RedisStorage
    except ImportError as error:
        if error.name != "RedisStorage":
            raise
        raise ConfigurationError(_OPTION, error.msg) from error
    return _construct(RedisStorage, {"redis_url": url, **options})


def _construct(backend: Callable[..., _T], options: Mapping[str, Any]) -> _T:
    try:
        inspect.signature(backend).bind(**options)
    except TypeError as error:
        raise ConfigurationError(_OPTION, f"has an option that does not fit: {error}.") from error
    try:
        return backend(**options)
    except ConfigurationError as error:
        if error.option == _OPTION:
            raise
        subject = "the URL" if error.option == "redis_url" else error.option
        # Without its cause: the message says all of it.
        raise ConfigurationError(_OPTION, f"{subject} {error.reason}") from None


# Each use is one operation of a dictionary, which the interpreter keeps whole.
_factories: dict[str, StorageFactory] = {
    "memory": _create_memory,
    "redis": _create_redis,
    "rediss": _create_redis,
    "unix": _create_redis,
}
