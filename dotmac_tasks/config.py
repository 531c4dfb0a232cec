"""
The settings, their defaults and what is wrong with a bad one.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Literal, Self, cast, get_args

from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.events import MetricsHooks
from dotmac_tasks.models import AbandonedPolicy
from dotmac_tasks.typing import PayloadCodec

__all__ = [
    "AnonymousPolicy",
    "CallableSetting",
    "InProgressAnswer",
    "StorageErrorPolicy",
    "TasksConfig",
    "check_setting",
    "redact_url",
    "to_seconds",
]

InProgressAnswer = Literal["accepted", "conflict", "wait"]
StorageErrorPolicy = Literal["proceed", "reject"]
AnonymousPolicy = Literal["share", "ignore", "refuse"]
CallableSetting = Literal["tenant", "principal", "reconcile", "redactor"]

_DAY = 86_400.0
# Above it, milliseconds would no longer be exact in every storage.
_LONGEST = 100 * 365 * _DAY
_NEVER_COVERED = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PREFIX = re.compile(r"[!-~]{1,100}")
_DOTTED_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
_SHORT_SECRET = 32
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*", re.DOTALL)


@dataclass(frozen=True, kw_only=True, repr=False)
class TasksConfig:
    """
    All settings, checked; immutable and shared by all threads.

    Durations may be passed as numbers of seconds or as `timedelta`; they are kept as seconds.
    Names in errors are in upper case, as Django's settings have them.

    Attributes:
        storage: A URL, or ``{"BACKEND": "dotted.path", "OPTIONS": {...}}``.
        key_prefix: First part of every stored key.
        default_idempotency_ttl: Retention of a finished operation, in seconds.
        lease: Seconds that a claim lives without a heartbeat.
        max_execution: Seconds after which a claim is no longer renewed.
        storage_timeout: The most seconds that one storage call may take.
        methods: The HTTP methods that are covered, in upper case.
        require_key: Whether a covered request without a key is refused.
        exempt_paths: Paths that are never touched; see `is_exempt`.
        idempotency_header: The request header that holds the key.
        cache_hit_header: The response header that marks a replay.
        idempotency_response_header: The response header that repeats the key.
        in_progress: What a duplicate of a running request gets.
        wait: The longest wait of a duplicate, in seconds, with ``wait``.
        on_storage_error: Whether a request runs unprotected while the storage is down.
        on_abandoned: Whether work may run again whose executor died.
        reconcile: Says what became of work that may not run again by itself; see
            `AbandonedOperation`. None leaves it to a person.
        tenant: Resolves the tenant of a request; None for the built-in way.
        principal: Resolves the principal of a request; None for the built-in way.
        anonymous: What a key of a caller counts whom nobody has authenticated: ``share`` gives
            all of them one scope for each tenant, ``ignore`` runs their requests unprotected and
            records nothing, ``refuse`` refuses them.
        credential_headers: Request headers whose digest stands in for a principal
            that nobody resolved.
        replay_headers: Response headers that are replayed besides the built-in ones.
        max_response_bytes: Responses with larger bodies are not kept.
        redactor: Takes out of a response what may not be stored; see `RecordedResponse`.
        max_keys_per_caller: Most new keys of one caller in a window; 0 sets no limit.
        quota_window: How long such a window is, in seconds.
        key_secret: Keys are stored as digests under it, so that who reads the storage cannot
            test guesses of them; empty for plain digests. Never shown.
        payload_codec: Seals what is stored; None stores it as it is.
        require_sealed: Whether outcomes that are not sealed are refused as damaged.
        saga_timeout: Default deadline of a saga, in seconds.
        saga_retention: Seconds that a finished saga stays.
        operation_retention: Seconds that a finished background operation stays.
        history_limit: Most history entries per saga.
        cleanup_interval: Seconds between two runs of the manager's own cleanup.
        enable_background_cleanup: Whether the manager cleans up by itself.
        max_waiting: Most threads of this process that wait for a running duplicate.
        hooks: What receives events: instances of `MetricsHooks`, or dotted paths of such or of
            their classes.

    Raises:
        ConfigurationError: A value is of the wrong type, out of range, or cannot work with another.
    """

    storage: str | Mapping[str, Any] = "memory://"
    key_prefix: str = "bgops"
    default_idempotency_ttl: float = _DAY
    lease: float = 30.0
    max_execution: float = 300.0
    storage_timeout: float = 2.0
    methods: tuple[str, ...] = ("POST", "PATCH")
    require_key: bool = False
    exempt_paths: tuple[str, ...] = ("/health/", "/metrics", "/admin/", "/static/")
    idempotency_header: str = "Idempotency-Key"
    cache_hit_header: str = "X-Cache-Hit"
    idempotency_response_header: str = "X-Idempotency-Key"
    in_progress: InProgressAnswer = "accepted"
    wait: float = 10.0
    on_storage_error: StorageErrorPolicy = "proceed"
    on_abandoned: AbandonedPolicy = "rerun"
    reconcile: str | Callable[..., Any] | None = None
    tenant: str | Callable[..., str | None] | None = None
    principal: str | Callable[..., str | None] | None = None
    anonymous: AnonymousPolicy = "share"
    credential_headers: tuple[str, ...] = ("Authorization",)
    replay_headers: tuple[str, ...] = ()
    max_response_bytes: int = 1_048_576
    redactor: str | Callable[..., Any] | None = None
    max_keys_per_caller: int = 0
    quota_window: float = 3_600.0
    key_secret: str = ""
    payload_codec: str | PayloadCodec | None = None
    require_sealed: bool = False
    saga_timeout: float = 7_200.0
    saga_retention: float = 30 * _DAY
    operation_retention: float = 30 * _DAY
    history_limit: int = 1_000
    cleanup_interval: float = 3_600.0
    enable_background_cleanup: bool = True
    max_waiting: int = 4
    hooks: tuple[str | MetricsHooks, ...] = ()
    _exempt_exact: frozenset[str] = field(init=False, repr=False, compare=False)
    _exempt_prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """
        Normalise and check every value, then the combinations.
        """
        _check_storage(self.storage)
        _match("key_prefix", self.key_prefix, _PREFIX, "1 to 100 visible ASCII characters")
        for name in (*_DURATIONS, *_FLAGS, *_CHOICES):
            self._set(name, check_setting(name, getattr(self, name)))
        for name, least in _COUNTS.items():
            _check_count(name, getattr(self, name), least)
        for name in _HEADERS:
            _match(name, getattr(self, name), _TOKEN, "the name of a header")
        for name in _CALLABLES:
            _check_callable(name, getattr(self, name))
        _check_secret(self.key_secret)
        _check_codec(self.payload_codec)
        self._set("hooks", _to_hooks(self.hooks))
        self._set("methods", _to_methods(self.methods))
        self._set("exempt_paths", _to_paths(self.exempt_paths))
        for name in _HEADER_LISTS:
            self._set(name, _to_headers(name, getattr(self, name)))
        self._set("_exempt_exact", frozenset(self.exempt_paths))
        prefixes = (path.removesuffix("*") for path in self.exempt_paths if path[-1] in "/*")
        self._set("_exempt_prefixes", tuple(prefixes))
        self._check_combinations()

    def __repr__(self) -> str:
        """
        Show every setting, but nothing that could be a secret.
        """
        shown = []
        for name in _NAMES:
            value = getattr(self, name)
            if name == "storage":
                value = redact_url(value) if isinstance(value, str) else value["BACKEND"]
            elif name == "key_secret":
                value = value and "***"
            elif name == "payload_codec" and not isinstance(value, str | None):
                value = type(value).__name__  # what it shows of itself may be its keys
            shown.append(f"{name}={value!r}")
        return f"TasksConfig({', '.join(shown)})"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, base: Self | None = None) -> Self:
        """
        Build it from names in upper or lower case; what is missing comes from `base`.

        Raises:
            ConfigurationError: A name is unknown or given twice, or a value is wrong.
        """
        values: dict[str, Any] = {}
        for given, value in mapping.items():
            name = _known_name(given)
            if name in values:
                raise ConfigurationError(name.upper(), "is given twice. Remove one of them.")
            values[name] = value
        return cls(**values) if base is None else dataclasses.replace(base, **values)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """
        Build it from ``DOTMAC_TASKS_<NAME>``, and ``REDIS_URL`` for the storage.

        Lists are separated by commas. An empty variable counts as not set.

        Raises:
            ConfigurationError: A name is unknown, or a value is wrong.
        """
        values: dict[str, Any] = {}
        if environ.get("REDIS_URL"):
            values["storage"] = environ["REDIS_URL"]
        for variable, text in environ.items():
            if variable.startswith(_ENV_PREFIX) and text and variable != _ENV_LEGACY:
                name = _known_name(variable.removeprefix(_ENV_PREFIX), prefix=_ENV_PREFIX)
                values[name] = _parse(name, variable, text)
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """
        Return a checked copy with some settings changed.

        Raises:
            ConfigurationError: A name is unknown, or a value is wrong.
        """
        return type(self).from_mapping(changes, base=self)

    def is_exempt(self, path: str) -> bool:
        """
        Tell whether requests to this path are never touched.

        An entry matches its exact path; one that ends in ``/`` or ``*`` matches all that begins
        with what stands before the star. ``/health`` alone never matches ``/healthcare``.
        """
        return path in self._exempt_exact or path.startswith(self._exempt_prefixes)

    def resolve_callable(self, name: CallableSetting) -> Callable[..., Any] | None:
        """
        Return the callable behind a setting, imported where it is a dotted path.

        None where the built-in way applies. Not called at construction: the module may need
        settings or applications that are not there yet.

        Raises:
            ConfigurationError: It cannot be imported, or is not callable.
        """
        value: str | Callable[..., Any] | None = getattr(self, name)
        if not isinstance(value, str):
            return value
        found = _import(name, value)
        if not callable(found):
            raise ConfigurationError(
                name.upper(), f"{value} is not callable. Name a function.", value=value
            )
        return found

    def resolve_hooks(self) -> tuple[MetricsHooks, ...]:
        """
        Return the hooks of the settings; of a class, a new instance.

        Not called at construction, as `resolve_callable` is not.

        Raises:
            ConfigurationError: One cannot be imported, or receives no events.
        """
        return tuple(_make_hooks(item) for item in self.hooks)

    def resolve_codec(self) -> PayloadCodec | None:
        """
        Return what seals payloads, imported where it is a dotted path; None without one.

        Not called at construction, as `resolve_callable` is not.

        Raises:
            ConfigurationError: It cannot be imported, or cannot encode and decode.
        """
        value = self.payload_codec
        if not isinstance(value, str):
            return value
        found = _import("payload_codec", value)
        if isinstance(found, type) or not _is_codec(found):
            raise ConfigurationError(
                "PAYLOAD_CODEC",
                f"{value} is no object with encode() and decode(). Name an instance.",
                value=value,
            )
        return cast("PayloadCodec", found)

    def find_dead_paths(self) -> tuple[ConfigurationError, ...]:
        """
        Return what is wrong with the callables and hooks that are named by dotted paths.

        Imports them; makes nothing, since a hook may only be made once in a process.
        """
        checks: list[Callable[[], object]] = [
            *(partial(self.resolve_callable, name) for name in _CALLABLES),
            self.resolve_codec,
            *(partial(_find_hooks, item) for item in self.hooks),
        ]
        errors = []
        for check in checks:
            try:
                check()
            except ConfigurationError as error:
                errors.append(error)
        return tuple(errors)

    def find_risks(self) -> tuple[str, ...]:
        """
        Return what will work and yet may hurt, one sentence each.
        """
        risks = []
        if self.storage_timeout >= self.lease:
            risks.append(
                "One storage call may take as long as a lease lives (STORAGE_TIMEOUT >= LEASE), "
                "so that a slow storage costs a running request its claim."
            )
        if self.in_progress == "wait" and self.wait > self.max_execution:
            risks.append(
                "A duplicate may wait longer than a claim is renewed (WAIT > MAX_EXECUTION)."
            )
        if 0 < len(self.key_secret) < _SHORT_SECRET:
            risks.append(
                f"KEY_SECRET is shorter than {_SHORT_SECRET} characters, so that who reads the "
                "storage may find it by guessing."
            )
        return tuple(risks)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_combinations(self) -> None:
        if self.lease > self.default_idempotency_ttl:
            raise ConfigurationError(
                "LEASE",
                f"{self.lease:g} s is longer than DEFAULT_IDEMPOTENCY_TTL "
                f"({self.default_idempotency_ttl:g} s). Shorten the lease or keep outcomes longer.",
                value=self.lease,
            )
        if self.require_sealed and self.payload_codec is None:
            raise ConfigurationError(
                "REQUIRE_SEALED", "needs PAYLOAD_CODEC, which seals. Set it.", value=True
            )
        if self.in_progress == "wait" and not self.wait:
            raise ConfigurationError(
                "WAIT",
                'is 0 while IN_PROGRESS is "wait". Set how many seconds, or choose "conflict".',
                value=self.wait,
            )


_ENV_PREFIX = "DOTMAC_TASKS_"
# Read by the import paths of the earlier package, which are a distribution of their own.
_ENV_LEGACY = "DOTMAC_TASKS_LEGACY"
_NAMES = tuple(item.name for item in dataclasses.fields(TasksConfig) if item.init)
_DURATIONS = (
    "default_idempotency_ttl",
    "lease",
    "max_execution",
    "storage_timeout",
    "wait",
    "saga_timeout",
    "saga_retention",
    "operation_retention",
    "cleanup_interval",
    "quota_window",
)
_CALLABLES: tuple[CallableSetting, ...] = get_args(CallableSetting)
_FLAGS = ("require_key", "require_sealed", "enable_background_cleanup")
_COUNTS = {"max_response_bytes": 0, "history_limit": 1, "max_waiting": 0, "max_keys_per_caller": 0}
_HEADERS = ("idempotency_header", "cache_hit_header", "idempotency_response_header")
_HEADER_LISTS = ("credential_headers", "replay_headers")
_LISTS = ("methods", "exempt_paths", "hooks", *_HEADER_LISTS)
_CHOICES: dict[str, tuple[str, ...]] = {
    "in_progress": get_args(InProgressAnswer),
    "on_storage_error": get_args(StorageErrorPolicy),
    "on_abandoned": get_args(AbandonedPolicy),
    "anonymous": get_args(AnonymousPolicy),
}
_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def redact_url(url: str) -> str:
    """
    Return the URL without what may be secret: user, password and query.
    """
    scheme, found, rest = url.partition("://")
    if not found:
        return "***"
    _userinfo, at, place = rest.rpartition("@")  # an unescaped password may hold anything
    place = re.split(r"[?#]", place, maxsplit=1)[0]
    return f"{scheme}://{'***@' if at else ''}{place}"


def _known_name(given: object, *, prefix: str = "") -> str:
    unknown = f"{prefix}{given} is unknown" if prefix else "is unknown"
    if isinstance(given, str):
        name = given.lower()
        if name in _NAMES and given in (name, name.upper()):
            return name
        close = difflib.get_close_matches(name, _NAMES, n=1)
        if close:
            nearest = f"{prefix}{close[0].upper()}"
            raise ConfigurationError(given, f"{unknown}. Did you mean {nearest}?")
    names = ", ".join(sorted(_NAMES)).upper()
    raise ConfigurationError(str(given), f"{unknown}. Choose from {names}.")


def _wrong(name: str, wanted: str, value: object) -> ConfigurationError:
    return ConfigurationError(name.upper(), f"must be {wanted}, not {value!r}.", value=value)


def check_setting(name: str, value: object, *, shown: str | None = None) -> object:
    """
    Return the value of a duration, flag or choice as it is kept, checked by itself.

    Args:
        name: Which setting it is, in lower case.
        value: What it was set to.
        shown: Its name where it was set, if that is another one.

    Raises:
        ConfigurationError: The value is of the wrong type or out of range.
    """
    shown = shown or name
    if name in _DURATIONS:
        return to_seconds(shown, value, zero_allowed=name == "wait")
    if name in _CHOICES:
        _check_choice(shown, value, _CHOICES[name])
    elif not isinstance(value, bool):
        raise _wrong(shown, "True or False", value)
    return value


def _match(name: str, value: object, pattern: re.Pattern[str], wanted: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise _wrong(name, wanted, value)


def _check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise _wrong(name, "one of " + ", ".join(f'"{choice}"' for choice in choices), value)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(name, f"a whole number of at least {least}", value)


def to_seconds(name: str, value: object, *, zero_allowed: bool = False) -> float:
    """
    Return a duration as seconds, checked.

    Raises:
        ConfigurationError: It is no finite positive duration, or over a hundred years.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    least = "0 or more" if zero_allowed else "over 0"
    wanted = f"a number of seconds or a timedelta, {least}, at most a hundred years"
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        raise _wrong(name, wanted, value)
    if not 0 <= seconds <= _LONGEST or (seconds == 0 and not zero_allowed):  # NaN fails, too
        raise _wrong(name, wanted, value)
    return float(seconds)


def _check_callable(name: str, value: object) -> None:
    if isinstance(value, str):
        _match(name, value, _DOTTED_PATH, "a callable or the dotted path of one")
    elif value is not None and not callable(value):
        raise _wrong(name, "a callable or the dotted path of one", value)


def _check_secret(value: object) -> None:
    # The value itself is never shown.
    if not isinstance(value, str):
        raise ConfigurationError("KEY_SECRET", f"must be text, not of type {type(value).__name__}.")


def _check_codec(value: object) -> None:
    wanted = "an object with encode() and decode(), or the dotted path of one"
    if isinstance(value, str):
        if not _DOTTED_PATH.fullmatch(value):
            # Not the text: it may be the key itself, set where its codec belongs.
            raise ConfigurationError("PAYLOAD_CODEC", f"must be {wanted}, not another text.")
    elif value is not None and (isinstance(value, type) or not _is_codec(value)):
        # Not the value: what it shows of itself may be its keys.
        raise ConfigurationError(
            "PAYLOAD_CODEC", f"must be {wanted}, not a {type(value).__name__}."
        )


def _is_codec(value: object) -> bool:
    return all(callable(getattr(value, name, None)) for name in ("encode", "decode"))


def _to_hooks(value: object) -> tuple[str | MetricsHooks, ...]:
    wanted = "a list of MetricsHooks or of dotted paths to them"
    if not isinstance(value, list | tuple):
        raise _wrong("hooks", wanted, value)
    for item in value:
        if not isinstance(item, MetricsHooks):
            _match("hooks", item, _DOTTED_PATH, wanted)
    return tuple(value)


def _find_hooks(item: str | MetricsHooks) -> MetricsHooks | type[MetricsHooks]:
    if isinstance(item, MetricsHooks):
        return item
    found = _import("hooks", item)
    if isinstance(found, MetricsHooks):
        return found
    if not isinstance(found, type) or not issubclass(found, MetricsHooks):
        raise ConfigurationError(
            "HOOKS", f"{item} is no MetricsHooks. Derive its class from that.", value=item
        )
    try:
        inspect.signature(found).bind()
    except TypeError:
        raise ConfigurationError(
            "HOOKS", f"{item} needs arguments. Name an instance instead of the class.", value=item
        ) from None
    return found


def _make_hooks(item: str | MetricsHooks) -> MetricsHooks:
    found = _find_hooks(item)
    return found() if isinstance(found, type) else found


def _import(name: str, path: str) -> object:
    module, _, attribute = path.rpartition(".")
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        reason = str(error).removesuffix(".")
        raise ConfigurationError(
            name.upper(), f"{path} cannot be imported: {reason}. Correct it.", value=path
        ) from error
    return found


def _to_strings(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, "a list of texts", value)
    return tuple(value)


def _to_methods(value: object) -> tuple[str, ...]:
    methods = tuple(method.upper() for method in _to_strings("methods", value))
    for method in methods:
        _match("methods", method, _TOKEN, "a list of HTTP methods")
        if method in _NEVER_COVERED:
            raise ConfigurationError(
                "METHODS", f"{method} is never covered. Remove it.", value=value
            )
    return methods


def _to_headers(name: str, value: object) -> tuple[str, ...]:
    headers = _to_strings(name, value)
    for header in headers:
        _match(name, header, _TOKEN, "a list of names of headers")
    return headers


def _to_paths(value: object) -> tuple[str, ...]:
    paths = _to_strings("exempt_paths", value)
    for path in paths:
        if not path.startswith("/") or "*" in path[:-1]:
            raise _wrong(
                "exempt_paths", 'paths that begin with "/" and hold "*" only at the end', path
            )
    return paths


def _check_storage(value: object) -> None:
    # The value itself is never shown: it may hold a password.
    if isinstance(value, str):
        if not _URL.fullmatch(value):
            raise ConfigurationError("STORAGE", "must be a URL such as redis://localhost:6379/0.")
        return
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            "STORAGE", f"must be a URL or a mapping with BACKEND, not a {type(value).__name__}."
        )
    backend = value.get("BACKEND")
    if not isinstance(backend, str) or not _DOTTED_PATH.fullmatch(backend):
        raise ConfigurationError("STORAGE", "needs BACKEND, the dotted path of a storage class.")
    if not isinstance(value.get("OPTIONS", {}), Mapping):
        raise ConfigurationError("STORAGE", "has OPTIONS that are not a mapping.")
    unknown = sorted(str(key) for key in value if key not in ("BACKEND", "OPTIONS"))
    if unknown:
        raise ConfigurationError(
            "STORAGE", f"knows BACKEND and OPTIONS, not {', '.join(unknown)}. Move it to OPTIONS."
        )


def _parse(name: str, variable: str, text: str) -> object:
    if name in _FLAGS:
        if text.strip().lower() not in _WORDS:
            raise _unparsed(name, variable, "true or false", text)
        return _WORDS[text.strip().lower()]
    if name in _LISTS:
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        if name in _DURATIONS:
            return float(text)
        if name in _COUNTS:
            return int(text)
    except ValueError:
        raise _unparsed(name, variable, "a number", text) from None
    return text


def _unparsed(name: str, variable: str, wanted: str, text: str) -> ConfigurationError:
    return ConfigurationError(
        name.upper(), f"{variable} must be {wanted}, not {text!r}.", value=text
    )
