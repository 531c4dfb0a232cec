from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest

from dotmac_tasks.models import (
    BackgroundOperation,
    IdempotencyKey,
    OperationStatus,
)
from dotmac_tasks.testing import FakeClock

NOW = FakeClock().now()


def make_key(**changes: Any) -> IdempotencyKey:
    values: dict[str, Any] = {
        "key": "k",
        "tenant_id": "t",
        "user_id": None,
        "operation_type": "send",
        "status": OperationStatus.COMPLETED,
        "created_at": NOW,
        "expires_at": NOW + timedelta(days=1),
        "result": {"a": [1]},
    }
    return IdempotencyKey(**{**values, **changes})


def make_operation(**changes: Any) -> BackgroundOperation:
    values: dict[str, Any] = {
        "operation_id": "op",
        "tenant_id": "t",
        "user_id": "u",
        "operation_type": "send",
        "status": OperationStatus.FAILED,
        "created_at": NOW,
        "updated_at": NOW,
        "error": "declined",
        "parameters": {"n": 1},
    }
    return BackgroundOperation(**{**values, **changes})


@pytest.mark.parametrize(
    "record",
    [
        make_key(),
        make_key(
            status=OperationStatus.IN_PROGRESS, expires_at=None, lease_until=NOW, fencing_token=7
        ),
        make_key(abandoned=True, deferred=True),
        make_key(outcome_kind="response", outcome_size=7, response_status=201),
        make_operation(),
        make_operation(expires_at=NOW, saga_id="s", idempotency_key="k", revision=3),
    ],
    ids=["key", "running key", "abandoned key", "response", "operation", "finished operation"],
)
def test_record_survives_the_round_trip_as_json(record: Any) -> None:
    """
    What to_dict gives is JSON, and from_dict builds an equal record from it.
    """
    data = json.loads(json.dumps(record.to_dict()))
    assert type(record).from_dict(data) == record
    assert type(record).from_dict(record.to_dict()) == record


def test_from_dict_takes_instants_as_they_are() -> None:
    """
    Instants that were never text stay what they are.
    """
    data = {**make_key().to_dict(), "created_at": NOW}
    assert IdempotencyKey.from_dict(data) == make_key()


def test_key_of_an_earlier_version_is_built() -> None:
    """
    What an earlier version wrote lacks the newer facts, and is read all the same.
    """
    names = ("key", "tenant_id", "user_id", "operation_type", "status", "created_at")
    names += ("expires_at", "result", "error", "fencing_token", "lease_until")
    data = make_key().to_dict()
    assert IdempotencyKey.from_dict({name: data[name] for name in names}) == make_key()


def test_from_dict_refuses_an_unknown_status() -> None:
    """
    A status that does not exist is an error, not a record.
    """
    with pytest.raises(ValueError, match="lost"):
        IdempotencyKey.from_dict({**make_key().to_dict(), "status": "lost"})


@pytest.mark.parametrize("record", [make_key(), make_operation()], ids=["key", "operation"])
def test_record_cannot_be_changed(record: Any) -> None:
    """
    A record handed out is a fact.
    """
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.status = OperationStatus.PENDING


@pytest.mark.parametrize("status", OperationStatus)
def test_key_answers_for_its_status_only(status: OperationStatus) -> None:
    """
    Of the three questions, exactly the one for the status is answered with yes.
    """
    key = make_key(status=status)
    answers = {
        OperationStatus.COMPLETED: key.is_completed(),
        OperationStatus.FAILED: key.is_failed(),
        OperationStatus.IN_PROGRESS: key.is_in_progress(),
        OperationStatus.PENDING: False,
    }
    assert answers == {it: it is status and it is not OperationStatus.PENDING for it in answers}


def test_key_expires_at_its_instant() -> None:
    """
    Up to its expiry it lives, from then on it does not; without one it always does.
    """
    key = make_key(expires_at=NOW)
    assert key.is_expired(NOW)
    assert not key.is_expired(NOW - timedelta(milliseconds=1))
    assert not make_key(expires_at=None).is_expired(NOW)


def test_key_expires_by_the_local_clock_unless_told() -> None:
    """
    Without an instant the system's clock decides.
    """
    assert make_key(expires_at=NOW - timedelta(days=36500)).is_expired()
    assert not make_key(expires_at=NOW + timedelta(days=36500)).is_expired()


def test_status_values_are_the_stored_words() -> None:
    """
    These words are part of the data format.
    """
    assert [str(status) for status in OperationStatus] == [
        "pending",
        "in_progress",
        "completed",
        "failed",
    ]
