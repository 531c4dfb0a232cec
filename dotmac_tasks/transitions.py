"""
Which status may follow which.

The engine, the storages and the pages that show statuses all ask these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from dotmac_tasks.errors import InvalidTransitionError
from dotmac_tasks.models import OperationStatus
from dotmac_tasks.saga_models import SagaStatus, SagaStepStatus

__all__ = [
    "OPERATION_TRANSITIONS",
    "SAGA_STEP_TRANSITIONS",
    "SAGA_TRANSITIONS",
    "ensure_transition",
    "is_final",
]

_Status = OperationStatus
_Saga = SagaStatus
_Step = SagaStepStatus
_Any = TypeVar("_Any", OperationStatus, SagaStatus, SagaStepStatus)

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

SAGA_TRANSITIONS: Mapping[SagaStatus, frozenset[SagaStatus]] = MappingProxyType(
    {
        # Not only forward: it may be cancelled, or its time be over, before anything started.
        _Saga.PENDING: frozenset({_Saga.IN_PROGRESS, _Saga.SUSPENDED, _Saga.COMPENSATING}),
        # To itself: another executor takes over a lease that is over.
        _Saga.IN_PROGRESS: frozenset(
            {_Saga.IN_PROGRESS, _Saga.COMPLETED, _Saga.SUSPENDED, _Saga.COMPENSATING}
        ),
        _Saga.COMPLETED: frozenset(),
        # On in the direction that it had, or turned round; never from an undo to forward.
        _Saga.SUSPENDED: frozenset({_Saga.IN_PROGRESS, _Saga.COMPENSATING}),
        _Saga.COMPENSATING: frozenset(
            {_Saga.COMPENSATING, _Saga.COMPENSATED, _Saga.FAILED, _Saga.SUSPENDED}
        ),
        _Saga.COMPENSATED: frozenset(),
        # No program leads out of it: a person has the undo tried again.
        _Saga.FAILED: frozenset({_Saga.COMPENSATING}),
    }
)
"""
What each status of a saga may become; one write may pass through several.
"""

SAGA_STEP_TRANSITIONS: Mapping[SagaStepStatus, frozenset[SagaStepStatus]] = MappingProxyType(
    {
        _Step.PENDING: frozenset({_Step.EXECUTING, _Step.SKIPPED}),
        # To itself: the next attempt, or the same one by another executor.
        _Step.EXECUTING: frozenset({_Step.EXECUTING, _Step.COMPLETED, _Step.FAILED, _Step.SKIPPED}),
        _Step.COMPLETED: frozenset({_Step.COMPENSATING}),
        # A person retries or skips it; its own undo runs only where the step asks for that.
        _Step.FAILED: frozenset({_Step.EXECUTING, _Step.SKIPPED, _Step.COMPENSATING}),
        # Whoever skipped it said whether it is to be undone with the others.
        _Step.SKIPPED: frozenset({_Step.COMPENSATING}),
        _Step.COMPENSATING: frozenset(
            {_Step.COMPENSATING, _Step.COMPENSATED, _Step.COMPENSATION_FAILED}
        ),
        _Step.COMPENSATED: frozenset(),
        # A person has the undo tried again, or has done it by hand.
        _Step.COMPENSATION_FAILED: frozenset({_Step.COMPENSATING, _Step.COMPENSATED}),
    }
)
"""
What each status of a saga's step may become.
"""

# By class: members of different enums with the same word are equal.
_TABLES: Mapping[type, Mapping[Any, frozenset[Any]]] = {
    OperationStatus: OPERATION_TRANSITIONS,
    SagaStatus: SAGA_TRANSITIONS,
    SagaStepStatus: SAGA_STEP_TRANSITIONS,
}


def is_final(status: OperationStatus | SagaStatus | SagaStepStatus) -> bool:
    """
    Tell whether nothing follows this status.
    """
    return not _TABLES[type(status)][status]


def ensure_transition(subject: str, current: _Any, requested: _Any) -> None:
    """
    Let an allowed change of status pass.

    Args:
        subject: What changes, for the message, such as ``Operation 4f2a``.
        current: The status that is recorded.
        requested: The status that is asked for, of the same kind.

    Raises:
        InvalidTransitionError: It may not change that way.
    """
    if requested not in _TABLES[type(current)][current]:
        raise InvalidTransitionError(subject, current.value, requested.value)
