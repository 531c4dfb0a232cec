from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest

from dotmac_tasks.saga_models import (
    SagaCause,
    SagaHistoryEntry,
    SagaStatus,
    SagaStep,
    SagaStepStatus,
    SagaWorkflow,
)
from dotmac_tasks.testing import FakeClock

NOW = FakeClock().now()


def make_step(status: str = "pending", **changes: Any) -> SagaStep:
    values: dict[str, Any] = {
        "step_id": "step_0",
        "name": "Charge",
        "operation": "payments.charge",
        "compensation_operation": "payments.refund",
        "status": SagaStepStatus(status),
    }
    return SagaStep(**{**values, **changes})


def make_saga(*statuses: str, **changes: Any) -> SagaWorkflow:
    values: dict[str, Any] = {
        "saga_id": "s",
        "tenant_id": "t",
        "workflow_type": "order",
        "steps": tuple(
            make_step(status, step_id=f"step_{index}") for index, status in enumerate(statuses)
        ),
        "created_at": NOW,
        "updated_at": NOW,
        "deadline": NOW + timedelta(hours=2),
    }
    return SagaWorkflow(**{**values, **changes})


RECORDS = {
    "new step": make_step(),
    "full step": make_step(
        "compensation_failed",
        parameters={"amount": 5},
        compensation_parameters={"why": "undone"},
        max_retries=0,
        compensation_max_retries=9,
        depends_on=("reserve", "check"),
        retry_count=1,
        compensation_retry_count=9,
        interruptions=2,
        result=[None, 0.5],
        compensation_data={"charge": "ch_1"},
        error="declined",
        compensation_error="gone",
        started_at=NOW,
        completed_at=NOW,
        compensated_at=NOW,
    ),
    "step that waits for nothing": make_step(depends_on=()),
    "new saga": make_saga("pending", "pending"),
    "saga without steps": make_saga(),
    "full saga": make_saga(
        "compensated",
        "failed",
        status=SagaStatus.COMPENSATED,
        current_step=1,
        cause=SagaCause.STEP_FAILED,
        error="declined",
        idempotency_key="k",
        due_at=NOW,
        completed_at=NOW,
        expires_at=NOW + timedelta(days=30),
        fencing_token=4,
        revision=7,
    ),
    "entry": SagaHistoryEntry(
        saga_id="s",
        revision=1,
        occurred_at=NOW,
        event="saga.created",
        status=SagaStatus.PENDING,
    ),
    "full entry": SagaHistoryEntry(
        saga_id="s",
        revision=9,
        occurred_at=NOW,
        event="step.skipped",
        status=SagaStatus.IN_PROGRESS,
        step_id="step_1",
        step_status=SagaStepStatus.SKIPPED,
        attempt=4,
        error="declined",
        actor="ada",
        reason="paid by hand",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_record_survives_the_round_trip_as_json(name: str) -> None:
    """
    What to_dict gives is JSON, and from_dict builds an equal record from it.
    """
    record: Any = RECORDS[name]
    data = json.loads(json.dumps(record.to_dict()))
    assert set(data) == {field.name for field in dataclasses.fields(record)}
    assert type(record).from_dict(data) == record
    assert type(record).from_dict(record.to_dict()) == record


def test_round_trip_gives_back_the_types() -> None:
    """
    Statuses, causes, instants and steps come back as what they were, not as equal text.
    """
    saga = SagaWorkflow.from_dict(json.loads(json.dumps(RECORDS["full saga"].to_dict())))
    assert type(saga.status) is SagaStatus
    assert type(saga.cause) is SagaCause
    assert type(saga.steps) is tuple
    assert [type(step.status) for step in saga.steps] == [SagaStepStatus, SagaStepStatus]
    entry = SagaHistoryEntry.from_dict(RECORDS["full entry"].to_dict())
    assert (type(entry.status), type(entry.step_status)) == (SagaStatus, SagaStepStatus)


def test_what_is_left_out_has_its_default() -> None:
    """
    A record is also built from the few facts that have no default.
    """
    step = SagaStep.from_dict({"step_id": "a", "name": "A", "operation": "do"})
    assert step == SagaStep(step_id="a", name="A", operation="do")
    assert (step.status, step.max_retries) == (SagaStepStatus.PENDING, 3)
    few = ("saga_id", "tenant_id", "workflow_type", "created_at", "updated_at", "deadline")
    full = make_saga().to_dict()
    saga = SagaWorkflow.from_dict({"steps": [], **{name: full[name] for name in few}})
    assert saga == make_saga()


@pytest.mark.parametrize(
    ("name", "field"),
    [("new step", "status"), ("new saga", "status"), ("full saga", "cause"), ("entry", "status")],
)
def test_from_dict_refuses_an_unknown_word(name: str, field: str) -> None:
    """
    A status or a cause that does not exist is an error, not a record.
    """
    record: Any = RECORDS[name]
    with pytest.raises(ValueError, match="lost"):
        type(record).from_dict({**record.to_dict(), field: "lost"})


@pytest.mark.parametrize("name", ["new step", "new saga", "entry"])
def test_record_cannot_be_changed(name: str) -> None:
    """
    A record handed out is a fact.
    """
    record: Any = RECORDS[name]
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.status = SagaStatus.COMPLETED


def test_status_values_are_the_stored_words() -> None:
    """
    These words are part of the data format.
    """
    assert [str(status) for status in SagaStatus] == [
        "pending",
        "in_progress",
        "completed",
        "suspended",
        "compensating",
        "compensated",
        "failed",
    ]
    assert [str(status) for status in SagaStepStatus] == [
        "pending",
        "executing",
        "completed",
        "failed",
        "skipped",
        "compensating",
        "compensated",
        "compensation_failed",
    ]
    assert [str(cause) for cause in SagaCause] == [
        "step_failed",
        "deadline",
        "cancelled",
        "operator",
    ]


@pytest.mark.parametrize("status", SagaStepStatus)
def test_step_answers_for_its_status_only(status: SagaStepStatus) -> None:
    """
    A step is completed or failed in exactly the status of that name.
    """
    step = make_step(status)
    assert step.is_completed() is (status is SagaStepStatus.COMPLETED)
    assert step.is_failed() is (status is SagaStepStatus.FAILED)


@pytest.mark.parametrize("status", SagaStepStatus)
@pytest.mark.parametrize(("used", "allowed", "left"), [(0, 3, True), (2, 3, True), (3, 3, False)])
def test_step_can_retry_while_it_is_open(
    status: SagaStepStatus, used: int, allowed: int, left: bool
) -> None:
    """
    As many retries as max_retries says follow the first attempt, and none in any other status.
    """
    step = make_step(status, retry_count=used, max_retries=allowed)
    is_open = status in (SagaStepStatus.PENDING, SagaStepStatus.EXECUTING)
    assert step.can_retry() is (is_open and left)


def test_step_without_retries_has_one_attempt() -> None:
    """
    With max_retries 0 nothing follows the first attempt, and an interruption is no retry.
    """
    assert not make_step("executing", max_retries=0).can_retry()
    assert make_step("executing", max_retries=1, interruptions=5).can_retry()


@pytest.mark.parametrize("status", SagaStepStatus)
def test_step_can_compensate_what_stands(status: SagaStepStatus) -> None:
    """
    What a step did can be taken back while it stands and where an undo is declared.
    """
    stands = status in (SagaStepStatus.COMPLETED, SagaStepStatus.COMPENSATION_FAILED)
    assert make_step(status).can_compensate() is stands
    assert not make_step(status, compensation_operation=None).can_compensate()


@pytest.mark.parametrize("status", SagaStatus)
def test_saga_answers_for_its_status_only(status: SagaStatus) -> None:
    """
    A saga is completed or failed in exactly the status of that name.
    """
    saga = make_saga(status=status)
    assert saga.is_completed() is (status is SagaStatus.COMPLETED)
    assert saga.is_failed() is (status is SagaStatus.FAILED)


@pytest.mark.parametrize(("index", "step_id"), [(0, "step_0"), (1, "step_1"), (2, None)])
def test_current_step_is_the_one_at_hand(index: int, step_id: str | None) -> None:
    """
    The index names the step at hand; the number of steps names none.
    """
    step = make_saga("completed", "executing", current_step=index).get_current_step()
    assert (step and step.step_id) == step_id


def test_current_step_never_counts_from_the_end() -> None:
    """
    An index below zero names no step.
    """
    assert make_saga("pending", current_step=-1).get_current_step() is None


def test_completed_steps_are_in_declared_order() -> None:
    """
    Those that are done and stand are returned, whatever lies between them.
    """
    saga = make_saga("completed", "skipped", "compensated", "completed", "executing")
    assert [step.step_id for step in saga.get_completed_steps()] == ["step_0", "step_3"]


@pytest.mark.parametrize(
    ("statuses", "cause", "needed"),
    [
        (["completed", "executing"], None, False),
        (["completed", "failed"], None, True),
        (["completed", "failed"], SagaCause.STEP_FAILED, True),
        (["completed", "pending"], SagaCause.CANCELLED, True),
        (["compensated", "compensation_failed"], SagaCause.DEADLINE, True),
        (["compensated", "failed"], SagaCause.STEP_FAILED, False),
        (["failed"], SagaCause.STEP_FAILED, False),
        ([], SagaCause.CANCELLED, False),
    ],
)
def test_saga_needs_compensation_while_an_undo_is_left(
    statuses: list[str], cause: SagaCause | None, needed: bool
) -> None:
    """
    It needs compensation if it is to be undone and something that stands can be.
    """
    assert make_saga(*statuses, cause=cause).needs_compensation() is needed


def test_step_without_undo_needs_no_compensation() -> None:
    """
    Where no undo is declared there is nothing to call.
    """
    lasting = make_step("completed", compensation_operation=None)
    saga = make_saga(steps=(lasting, make_step("failed")), cause=SagaCause.STEP_FAILED)
    assert not saga.needs_compensation()


@pytest.mark.parametrize("status", ["pending", "in_progress", "suspended", "completed"])
def test_saga_is_timed_out_from_its_deadline_on(status: str) -> None:
    """
    Up to the deadline it is in time, from then on it is not, unless it is completed.
    """
    saga = make_saga(status=SagaStatus(status))
    assert not saga.is_timed_out(saga.deadline - timedelta(milliseconds=1))
    assert saga.is_timed_out(saga.deadline) is (status != "completed")


@pytest.mark.parametrize("cause", SagaCause)
def test_saga_that_is_undone_is_timed_out_by_its_cause(cause: SagaCause) -> None:
    """
    A deadline that passes during an undo is not what the undo is for.
    """
    saga = make_saga(status=SagaStatus.COMPENSATING, cause=cause)
    assert saga.is_timed_out(NOW) is (cause is SagaCause.DEADLINE)
    assert saga.is_timed_out(saga.deadline) is (cause is SagaCause.DEADLINE)


def test_saga_is_timed_out_by_the_local_clock_unless_told() -> None:
    """
    Without an instant the system's clock decides.
    """
    assert make_saga(deadline=NOW - timedelta(days=36500)).is_timed_out()
    assert not make_saga(deadline=NOW + timedelta(days=36500)).is_timed_out()
