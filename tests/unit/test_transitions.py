from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks.errors import InvalidTransitionError
from dotmac_tasks.models import OperationStatus
from dotmac_tasks.saga_models import SagaStatus, SagaStepStatus
from dotmac_tasks.transitions import (
    OPERATION_TRANSITIONS,
    SAGA_STEP_TRANSITIONS,
    SAGA_TRANSITIONS,
    ensure_transition,
    is_final,
)

STATUSES = st.sampled_from(OperationStatus)


@pytest.mark.parametrize(
    ("table", "statuses"),
    [
        (OPERATION_TRANSITIONS, OperationStatus),
        (SAGA_TRANSITIONS, SagaStatus),
        (SAGA_STEP_TRANSITIONS, SagaStepStatus),
    ],
)
def test_every_status_has_a_row(table: Any, statuses: type[StrEnum]) -> None:
    """
    No status is missing from a table, none of another kind is in it, and nobody can change it.
    """
    assert set(table) == set(statuses)
    members = {*table, *(following for allowed in table.values() for following in allowed)}
    assert {type(status) for status in members} == {statuses}
    with pytest.raises(TypeError):
        table[statuses("failed")] = frozenset()


@pytest.mark.parametrize(
    ("current", "requested"),
    [
        ("pending", "in_progress"),
        ("pending", "completed"),
        ("pending", "failed"),
        ("in_progress", "in_progress"),
        ("in_progress", "completed"),
        ("in_progress", "failed"),
    ],
)
def test_allowed_transition_passes(current: str, requested: str) -> None:
    """
    What the life of an operation needs is allowed.
    """
    ensure_transition("It", OperationStatus(current), OperationStatus(requested))


@pytest.mark.parametrize(
    ("current", "requested"), [("pending", "pending"), ("in_progress", "pending")]
)
def test_forbidden_transition_is_refused(current: str, requested: str) -> None:
    """
    The error names the subject and both statuses.
    """
    with pytest.raises(InvalidTransitionError, match=r"It is .* and cannot become") as caught:
        ensure_transition("It", OperationStatus(current), OperationStatus(requested))
    assert (caught.value.current, caught.value.requested) == (current, requested)


def test_exactly_the_outcomes_are_final() -> None:
    """
    Completed and failed are final, and the others are not.
    """
    finals = {status for status in OperationStatus if is_final(status)}
    assert finals == {OperationStatus.COMPLETED, OperationStatus.FAILED}


@given(st.lists(STATUSES, max_size=10))
def test_no_way_leads_out_of_a_final_status(requests: list[OperationStatus]) -> None:
    """
    Whatever is asked for in whatever order, the first final status stays.
    """
    current, outcome = OperationStatus.PENDING, None
    for requested in requests:
        try:
            ensure_transition("It", current, requested)
        except InvalidTransitionError:
            continue
        current = requested
        outcome = outcome or (current if is_final(current) else None)
    assert outcome is None or current is outcome


@pytest.mark.parametrize("status", ["compensating", "compensated", "failed"])
def test_no_way_leads_from_an_undo_to_forward(status: str) -> None:
    """
    A saga that is or was undone never goes on with its steps.
    """
    forward = {SagaStatus.PENDING, SagaStatus.IN_PROGRESS, SagaStatus.COMPLETED}
    assert not SAGA_TRANSITIONS[SagaStatus(status)] & forward


def test_exactly_these_ends_of_a_saga_are_final() -> None:
    """
    Only a failed undo can be taken up again, by a person.
    """
    assert {status for status in SagaStatus if is_final(status)} == {
        SagaStatus.COMPLETED,
        SagaStatus.COMPENSATED,
    }
    assert {status for status in SagaStepStatus if is_final(status)} == {SagaStepStatus.COMPENSATED}


def test_tables_are_not_mixed_up() -> None:
    """
    Equal words of different kinds of status have rules of their own.
    """
    ensure_transition("It", SagaStatus.FAILED, SagaStatus.COMPENSATING)
    with pytest.raises(InvalidTransitionError):
        ensure_transition("It", SagaStepStatus.PENDING, SagaStepStatus.COMPENSATING)
    ensure_transition("It", SagaStatus.PENDING, SagaStatus.COMPENSATING)
    with pytest.raises(InvalidTransitionError, match="is completed and cannot become pending"):
        ensure_transition("It", SagaStepStatus.COMPLETED, SagaStepStatus.PENDING)
