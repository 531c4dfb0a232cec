from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks.errors import InvalidTransitionError
from dotmac_tasks.models import OperationStatus
from dotmac_tasks.transitions import OPERATION_TRANSITIONS, ensure_transition, is_final

STATUSES = st.sampled_from(OperationStatus)


def test_every_status_has_a_row() -> None:
    """
    No status is missing from the table, and nobody can change it.
    """
    assert set(OPERATION_TRANSITIONS) == set(OperationStatus)
    with pytest.raises(TypeError):
        OPERATION_TRANSITIONS[OperationStatus.FAILED] = frozenset()  # type: ignore[index]


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
