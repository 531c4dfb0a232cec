"""
Which status may follow which.

The engine, the storages and the pages that show statuses all ask this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dotmac_tasks.errors import InvalidTransitionError
from dotmac_tasks.models import OperationStatus

__all__ = ["OPERATION_TRANSITIONS", "ensure_transition", "is_final"]

_Status = OperationStatus

OPERATION_TRANSITIONS: Mapping[OperationStatus, frozenset[OperationStatus]] = MappingProxyType(
    {
        # Straight to the end: whoever holds the key may settle what nobody claimed.
        _Status.PENDING: frozenset({_Status.IN_PROGRESS, _Status.COMPLETED, _Status.FAILED}),
        # To itself: another executor takes over a lease that is over.
        _Status.IN_PROGRESS: frozenset({_Status.IN_PROGRESS, _Status.COMPLETED, _Status.FAILED}),
        _Status.COMPLETED: frozenset(),
        _Status.FAILED: frozenset(),
    }
)
"""
What each status of an operation may become; a final one leads nowhere.
"""


def is_final(status: OperationStatus) -> bool:
    """
    Tell whether nothing follows this status.
    """
    return not OPERATION_TRANSITIONS[status]


def ensure_transition(subject: str, current: OperationStatus, requested: OperationStatus) -> None:
    """
    Let an allowed change of status pass.

    Args:
        subject: What changes, for the message, such as ``Operation 4f2a``.
        current: The status that is recorded.
        requested: The status that is asked for.

    Raises:
        InvalidTransitionError: It may not change that way.
    """
    if requested not in OPERATION_TRANSITIONS[current]:
        raise InvalidTransitionError(subject, current.value, requested.value)
