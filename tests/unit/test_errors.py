from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from dotmac_tasks import errors
from dotmac_tasks.errors import (
    ClaimLostError,
    ConfigurationError,
    CorruptRecordError,
    InvalidKeyError,
    InvalidTransitionError,
    KeyReusedError,
    LockLostError,
    LockNotAcquiredError,
    OperationFailedError,
    OperationInProgressError,
    OperationNotFoundError,
    OutcomeUnknownError,
    SerializationError,
    StaleRecordError,
    StorageTimeoutError,
    StorageUnavailableError,
    TasksError,
)

EXAMPLES: list[tuple[TasksError, dict[str, Any], bool]] = [
    (
        ConfigurationError("LEASE", "is unknown. Did you mean WAIT?", value=3),
        {"option": "LEASE", "value": 3},
        False,
    ),
    (
        SerializationError("$.a", "set", "has no JSON form. Convert it."),
        {"path": "$.a", "type_name": "set"},
        False,
    ),
    (InvalidKeyError("k", "it is empty. Send one."), {"key": "k"}, False),
    (KeyReusedError("k"), {"key": "k"}, False),
    (OperationInProgressError("k", retry_after=1.5), {"key": "k", "retry_after": 1.5}, True),
    (OperationFailedError("k", "declined"), {"key": "k", "error_message": "declined"}, False),
    (OutcomeUnknownError("k"), {"key": "k"}, False),
    (OutcomeUnknownError("k", reason="its result was no JSON"), {"key": "k"}, False),
    (ClaimLostError("k", result=[1]), {"key": "k", "result": [1]}, False),
    (OperationNotFoundError("op"), {"operation_id": "op"}, False),
    (
        InvalidTransitionError("It", "failed", "pending"),
        {"current": "failed", "requested": "pending"},
        False,
    ),
    (LockNotAcquiredError("l", waited=2.0), {"name": "l", "waited": 2.0}, True),
    (LockLostError("l"), {"name": "l"}, False),
    (StorageUnavailableError("redis", "refused"), {"backend": "redis"}, True),
    (StorageTimeoutError("redis", "silence"), {"backend": "redis"}, True),
    (StaleRecordError("redis", "Operation op"), {"backend": "redis"}, True),
    (CorruptRecordError("redis", "k", "too new"), {"backend": "redis", "key": "k"}, False),
]


def all_subclasses(cls: type[TasksError]) -> set[type[TasksError]]:
    return {cls}.union(*(all_subclasses(child) for child in cls.__subclasses__()))


OURS = {cls for cls in all_subclasses(TasksError) if cls.__module__ == errors.__name__}


def test_every_concrete_error_has_an_example_here() -> None:
    """
    A new error class cannot be added without its tests.
    """
    leaves = {cls for cls in OURS if not cls.__subclasses__()}
    assert leaves == {type(error) for error, _, _ in EXAMPLES}


@pytest.mark.parametrize("cls", sorted(OURS, key=lambda cls: cls.__name__))
def test_error_is_documented_public_and_says_whether_to_retry(cls: type[TasksError]) -> None:
    """
    Each class is exported, has a docstring, ends in Error and knows if a retry makes sense.
    """
    assert cls.__name__ in errors.__all__
    assert cls.__name__.endswith("Error")
    assert (cls.__doc__ or "").strip()
    assert isinstance(cls.retryable, bool)
    assert cls.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("error", "facts", "retryable"), EXAMPLES, ids=lambda it: type(it).__name__
)
def test_error_holds_its_facts_and_survives_pickling(
    error: TasksError, facts: dict[str, Any], retryable: bool
) -> None:
    """
    Facts are attributes, the message is whole, and copies in other processes equal it.
    """
    for twin in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert {name: getattr(twin, name) for name in facts} == facts
        assert str(twin) == str(error)
        assert twin.retryable is retryable


@pytest.mark.parametrize(
    "error", [error for error, _, _ in EXAMPLES], ids=lambda it: type(it).__name__
)
def test_message_is_a_sentence_with_a_next_step(error: TasksError) -> None:
    """
    A message says what happened and then what to do: more than one clause, no placeholder.
    """
    message = str(error)
    assert message.rstrip(".?") != message
    assert any(mark in message.rstrip(".?") for mark in (". ", "; "))
    assert "{" not in message


def test_serialization_error_is_what_python_raises_for_bad_values() -> None:
    """
    Code that catches ValueError or TypeError around a codec catches ours.
    """
    assert issubclass(SerializationError, ValueError)
    assert issubclass(SerializationError, TypeError)
