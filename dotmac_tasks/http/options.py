"""
What one view sets differently from its project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from dotmac_tasks.config import (
    InProgressAnswer,
    StorageErrorPolicy,
    TasksConfig,
    check_setting,
)
from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.models import AbandonedPolicy
from dotmac_tasks.reconciliation import Reconcile, find_reconcile

__all__ = ["Policy", "ViewOptions", "check_options", "resolve_policy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewOptions:
    """
    What one view sets differently from its project; None leaves the setting.

    Immutable; shared by all threads. The names are those of the settings.

    Attributes:
        required: Whether a request without a key is refused.
        ttl: Retention of a finished operation, in seconds.
        lease: Seconds that a claim lives without a heartbeat.
        in_progress: What a duplicate gets while the first runs.
        wait: Longest wait of a duplicate, in seconds, where `in_progress` is ``wait``.
        on_storage_error: Whether the view runs while the storage is down.
        on_abandoned: Whether abandoned work runs again.
        reconcile: Says what became of abandoned work that may not run again by
            itself; gets an `AbandonedOperation` and returns a `Verdict`.
        fingerprint: Picks what of the request identifies it; gets the
            framework's request and returns bytes, text or JSON data.
    """

    required: bool | None = None
    ttl: float | None = None
    lease: float | None = None
    in_progress: InProgressAnswer | None = None
    wait: float | None = None
    on_storage_error: StorageErrorPolicy | None = None
    on_abandoned: AbandonedPolicy | None = None
    reconcile: Reconcile | None = None
    fingerprint: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """
        Refuse what the settings would refuse; keep durations as seconds.
        """
        for option, setting in _SETTING_OF.items():
            value = getattr(self, option)
            if value is not None:
                checked = check_setting(setting, value, shown=option)
                object.__setattr__(self, option, checked)
        if self.ttl is not None and self.lease is not None:
            _check_lease(self.lease, self.ttl)
        for option in ("reconcile", "fingerprint"):
            value = getattr(self, option)
            if value is not None and not callable(value):
                raise ConfigurationError(option.upper(), f"must be a callable, not {value!r}.")


# The setting that each option of a view stands in for.
_SETTING_OF = {
    "required": "require_key",
    "ttl": "default_idempotency_ttl",
    "lease": "lease",
    "in_progress": "in_progress",
    "wait": "wait",
    "on_storage_error": "on_storage_error",
    "on_abandoned": "on_abandoned",
}


class Policy(NamedTuple):
    """
    The project's settings with one view's options laid over them.

    The attributes are those of `ViewOptions`, decided; `wait` is 0 where nobody waits.
    """

    required: bool
    ttl: float
    lease: float
    in_progress: InProgressAnswer
    wait: float
    on_storage_error: StorageErrorPolicy
    on_abandoned: AbandonedPolicy
    find_reconcile: Callable[[], Reconcile] | None
    fingerprint: Callable[[Any], Any] | None

    @property
    def is_strict(self) -> bool:
        """
        Whether the view may not run while the storage is down.
        """
        return self.on_storage_error == "reject"


def resolve_policy(config: TasksConfig, options: ViewOptions) -> Policy:
    """
    Lay a view's options over the settings.

    Raises:
        ConfigurationError: The lease is longer than the retention.
    """
    values: dict[str, Any] = {}
    for option, setting in _SETTING_OF.items():
        value = getattr(options, option)
        values[option] = getattr(config, setting) if value is None else value
    _check_lease(values["lease"], values["ttl"])
    if values["in_progress"] != "wait":
        values["wait"] = 0.0
    return Policy(
        **values,
        find_reconcile=find_reconcile(config, options.reconcile),
        fingerprint=options.fingerprint,
    )


def _check_lease(lease: float, ttl: float) -> None:
    if lease > ttl:
        raise ConfigurationError(
            "LEASE",
            f"{lease:g} s is longer than the retention ({ttl:g} s). Shorten the lease or keep "
            "outcomes longer.",
            value=lease,
        )


def check_options(config: TasksConfig, options: ViewOptions) -> None:
    """
    Refuse options of a view that cannot work with the settings.

    Raises:
        ConfigurationError: The lease is longer than the retention.
    """
    resolve_policy(config, options)
