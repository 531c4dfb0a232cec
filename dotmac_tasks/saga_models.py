"""
The records of sagas, and their statuses.

Everything here is immutable and may be shared between threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.models import dump_record, parse_instants

__all__ = [
    "SagaCause",
    "SagaHistoryEntry",
    "SagaStatus",
    "SagaStep",
    "SagaStepStatus",
    "SagaWorkflow",
]


class SagaStatus(StrEnum):
    """
    Where a saga is; the values are part of the stored format.

    Waiting for a retry, a timer or another saga is a due time, not a status.
    """

    PENDING = "pending"
    """Created; no step has started."""
    IN_PROGRESS = "in_progress"
    """Its steps run, one after the other or side by side."""
    COMPLETED = "completed"
    """Every step is done."""
    SUSPENDED = "suspended"
    """It needs a person or a deploy; it is never cleaned up."""
    COMPENSATING = "compensating"
    """What its steps did is being undone."""
    COMPENSATED = "compensated"
    """Everything that can be undone was."""
    FAILED = "failed"
    """At least one compensation failed: it needs a person."""


class SagaStepStatus(StrEnum):
    """
    Where one step of a saga is; the values are part of the stored format.
    """

    PENDING = "pending"
    """It has not started."""
    EXECUTING = "executing"
    """An attempt is under way, or the next one is due."""
    COMPLETED = "completed"
    """It is done; its result is recorded."""
    FAILED = "failed"
    """It failed for good."""
    SKIPPED = "skipped"
    """A person let the saga go on without it."""
    COMPENSATING = "compensating"
    """What it did is being undone."""
    COMPENSATED = "compensated"
    """What it did is undone."""
    COMPENSATION_FAILED = "compensation_failed"
    """Undoing it failed for good."""


class SagaCause(StrEnum):
    """
    Why a saga is undone; the values are part of the stored format.
    """

    STEP_FAILED = "step_failed"
    """A step failed for good."""
    DEADLINE = "deadline"
    """Its time was over."""
    CANCELLED = "cancelled"
    """Somebody cancelled it."""
    OPERATOR = "operator"
    """A person turned it round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SagaStep:
    """
    One step of a saga: what it is to do, and how far it is.

    Attributes:
        step_id: Its id, unique within the saga.
        name: What people call it.
        operation: The name under which its handler is registered.
        parameters: What the handler gets, as JSON data.
        compensation_operation: The name of the handler that undoes it, if one does.
        compensation_parameters: What that handler gets, as JSON data.
        max_retries: How often it is tried again; 3 means up to four attempts.
        compensation_max_retries: How often its undo is tried again.
        depends_on: The ids of the steps that it waits for; None for the one before it.
        status: Where it is.
        retry_count: How often it was tried again.
        compensation_retry_count: How often its undo was tried again.
        interruptions: How many attempts ended with their process; they are no retries.
        result: What the handler returned, once completed.
        compensation_data: What the handler kept for its undo.
        error: Why the last attempt failed.
        compensation_error: Why the last attempt to undo it failed.
        started_at: When its first attempt began.
        completed_at: When it was completed.
        compensated_at: When it was undone.
    """

    step_id: str
    name: str
    operation: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    compensation_operation: str | None = None
    compensation_parameters: Mapping[str, Any] = field(default_factory=dict)
    max_retries: int = 3
    compensation_max_retries: int = 3
    depends_on: tuple[str, ...] | None = None
    status: SagaStepStatus = SagaStepStatus.PENDING
    retry_count: int = 0
    compensation_retry_count: int = 0
    interruptions: int = 0
    result: Any = None
    compensation_data: Any = None
    error: str | None = None
    compensation_error: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    compensated_at: datetime | None = None

    def can_retry(self) -> bool:
        """
        Tell whether another attempt follows if the one at hand fails.

        A failed step has failed for good: it had used up its retries, or its
        error was one that no retry mends.
        """
        open_ = self.status in (SagaStepStatus.PENDING, SagaStepStatus.EXECUTING)
        return open_ and self.retry_count < self.max_retries

    def is_completed(self) -> bool:
        """
        Tell whether it is done and not undone.
        """
        return self.status is SagaStepStatus.COMPLETED

    def is_failed(self) -> bool:
        """
        Tell whether it failed for good; a failed undo is another status.
        """
        return self.status is SagaStepStatus.FAILED

    def can_compensate(self) -> bool:
        """
        Tell whether what it did still stands and a declared undo can take it back.
        """
        stands = self.status in (SagaStepStatus.COMPLETED, SagaStepStatus.COMPENSATION_FAILED)
        return stands and self.compensation_operation is not None

    def to_dict(self) -> dict[str, Any]:
        """
        Return it as plain JSON data; instants in ISO 8601.
        """
        return dump_record(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """
        Build it from what `to_dict` returned.
        """
        values = parse_instants(data, "started_at", "completed_at", "compensated_at")
        if values.get("depends_on") is not None:
            values["depends_on"] = tuple(values["depends_on"])
        if "status" in values:
            values["status"] = SagaStepStatus(values["status"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class SagaWorkflow:
    """
    One saga: steps that are completed together or undone.

    Attributes:
        saga_id: Its id.
        tenant_id: The tenant that it belongs to.
        workflow_type: What kind of saga it is.
        steps: Its steps, in the order in which they were declared.
        created_at: When it was made, by the storage's clock.
        updated_at: When it last changed.
        deadline: From when on no further step starts and it is undone.
        status: Where it is.
        current_step: The index of the step at hand; the number of steps once
            completed.
        cause: Why it is undone; None unless it is.
        error: What went wrong, or what a suspended one waits for.
        idempotency_key: The stored key it belongs to, if there is one.
        due_at: When it may be taken up; None where nobody needs to.
        completed_at: When it came to its end.
        expires_at: When a finished one vanishes; None while it is not finished.
        fencing_token: Number of the executor that holds it; 0 while nobody does.
        revision: Grows with every change, from 1.
    """

    saga_id: str
    tenant_id: str
    workflow_type: str
    steps: tuple[SagaStep, ...]
    created_at: datetime
    updated_at: datetime
    deadline: datetime
    status: SagaStatus = SagaStatus.PENDING
    current_step: int = 0
    cause: SagaCause | None = None
    error: str | None = None
    idempotency_key: str | None = None
    due_at: datetime | None = None
    completed_at: datetime | None = None
    expires_at: datetime | None = None
    fencing_token: int = 0
    revision: int = 1

    def get_current_step(self) -> SagaStep | None:
        """
        Return the step at hand; None once all are completed.
        """
        if 0 <= self.current_step < len(self.steps):
            return self.steps[self.current_step]
        return None

    def get_completed_steps(self) -> list[SagaStep]:
        """
        Return the steps that are done and not undone, in declared order.
        """
        return [step for step in self.steps if step.is_completed()]

    def needs_compensation(self) -> bool:
        """
        Tell whether it is to be undone and a declared undo is still to do.
        """
        doomed = self.cause is not None or any(step.is_failed() for step in self.steps)
        return doomed and any(step.can_compensate() for step in self.steps)

    def is_completed(self) -> bool:
        """
        Tell whether every step is done.
        """
        return self.status is SagaStatus.COMPLETED

    def is_failed(self) -> bool:
        """
        Tell whether an undo failed for good; one that was undone is `compensated`.
        """
        return self.status is SagaStatus.FAILED

    def is_timed_out(self, now: datetime | None = None) -> bool:
        """
        Tell whether its time was over before its end; without `now`, by the local clock.

        Once it is undone the cause decides: the deadline does not end an undo.
        """
        if self.cause is not None:
            return self.cause is SagaCause.DEADLINE
        return not self.is_completed() and (now or SystemClock().now()) >= self.deadline

    def to_dict(self) -> dict[str, Any]:
        """
        Return it as plain JSON data, its steps included; instants in ISO 8601.
        """
        return dump_record(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """
        Build it from what `to_dict` returned.
        """
        values = parse_instants(
            data, "created_at", "updated_at", "deadline", "due_at", "completed_at", "expires_at"
        )
        values["steps"] = tuple(SagaStep.from_dict(step) for step in values["steps"])
        if "status" in values:
            values["status"] = SagaStatus(values["status"])
        if values.get("cause") is not None:
            values["cause"] = SagaCause(values["cause"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class SagaHistoryEntry:
    """
    One thing that happened to a saga.

    Attributes:
        saga_id: The saga.
        revision: The revision that it made of the saga; orders the entries.
        occurred_at: When, by the storage's clock.
        event: What happened, noun and past participle, such as ``step.completed``.
        status: Where the saga was afterwards.
        step_id: The step, if it was about one.
        step_status: Where that step was afterwards.
        attempt: Which attempt it was, from 1; 0 where it was none.
        error: What went wrong, if something did.
        actor: The person who stepped in, if one did.
        reason: Why that person did.
    """

    saga_id: str
    revision: int
    occurred_at: datetime
    event: str
    status: SagaStatus
    step_id: str | None = None
    step_status: SagaStepStatus | None = None
    attempt: int = 0
    error: str | None = None
    actor: str | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """
        Return it as plain JSON data; the instant in ISO 8601.
        """
        return dump_record(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """
        Build it from what `to_dict` returned.
        """
        values = parse_instants(data, "occurred_at")
        values["status"] = SagaStatus(values["status"])
        if values.get("step_status") is not None:
            values["step_status"] = SagaStepStatus(values["step_status"])
        return cls(**values)
