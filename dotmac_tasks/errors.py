"""
Every exception that the library raises.

::

    TasksError
    ├── ConfigurationError                  .option  .reason  .value
    ├── SerializationError                  .path  .type_name
    ├── IdempotencyError                    .key
    │   ├── InvalidKeyError
    │   ├── KeyReusedError                  same key, different request
    │   ├── OperationInProgressError        .retry_after
    │   ├── OperationFailedError            .error_message
    │   ├── OutcomeUnknownError             abandoned, waits for a decision
    │   └── ClaimLostError                  .result
    ├── OperationNotFoundError              .operation_id
    ├── InvalidTransitionError              .current  .requested
    ├── LockError                           .name
    │   ├── LockNotAcquiredError            .waited
    │   └── LockLostError
    └── StorageError                        .backend
        ├── StorageUnavailableError         try again
        ├── StorageTimeoutError             outcome unknown
        ├── StaleRecordError                someone else wrote first
        └── CorruptRecordError              never treated as an outage

Constructors take the facts, the message is computed from them and ends with
what to do next. "Lost the race", "the store is down" and "outcome unknown" are
three classes, because a caller does three different things. No message holds
a body, a credential or another tenant's data.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "ClaimLostError",
    "ConfigurationError",
    "CorruptRecordError",
    "IdempotencyError",
    "InvalidKeyError",
    "InvalidTransitionError",
    "KeyReusedError",
    "LockError",
    "LockLostError",
    "LockNotAcquiredError",
    "OperationFailedError",
    "OperationInProgressError",
    "OperationNotFoundError",
    "OutcomeUnknownError",
    "SerializationError",
    "StaleRecordError",
    "StorageError",
    "StorageTimeoutError",
    "StorageUnavailableError",
    "TasksError",
]


class TasksError(Exception):
    """
    Base of every error of this library; instances are not shared.

    Attributes:
        retryable: Whether the same call may succeed when it is made again.
    """

    retryable: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way would call the constructor with the computed message.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(
    cls: type[TasksError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> TasksError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigurationError(TasksError):
    """
    A setting is unknown, of the wrong type, or cannot work with another.

    Attributes:
        option: Name of the setting.
        reason: What is wrong with it; shows no secret.
        value: What it was set to; None where showing it could leak a secret.
    """

    def __init__(self, option: str, reason: str, *, value: object = None) -> None:
        self.option = option
        self.reason = reason
        self.value = value
        super().__init__(f"Setting {option}: {reason}")


class SerializationError(TasksError, ValueError, TypeError):
    """
    A value has no canonical or no JSON form.

    Attributes:
        path: Where in the value it is, such as ``$.items[2].price``.
        type_name: The type found there.
    """

    def __init__(self, path: str, type_name: str, reason: str) -> None:
        self.path = path
        self.type_name = type_name
        super().__init__(f"The {type_name} at {path} {reason}")


class IdempotencyError(TasksError):
    """
    Base of errors about one idempotency key.

    Attributes:
        key: The stored key that is concerned.
    """

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


class InvalidKeyError(IdempotencyError):
    """
    The key cannot be used: empty, too long, reserved or badly formed.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, f"This idempotency key cannot be used: {reason}")


class KeyReusedError(IdempotencyError):
    """
    The key already belongs to a different request.
    """

    def __init__(self, key: str) -> None:
        super().__init__(
            key,
            "This idempotency key was used for a different request. "
            "Use a new key for new work, or send the first request unchanged.",
        )


class OperationInProgressError(IdempotencyError):
    """
    Another executor holds the key and has not finished.

    Attributes:
        retry_after: Seconds after which asking again makes sense.
    """

    retryable = True

    def __init__(self, key: str, *, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(
            key,
            f"Operation {key} is still running. Ask again in about {retry_after:.0f} s, "
            "or pass `wait` to block until it has finished.",
        )


class OperationFailedError(IdempotencyError):
    """
    The operation was recorded as failed; a replay reports that failure.

    Attributes:
        error_message: The text that was recorded.
    """

    def __init__(self, key: str, error_message: str) -> None:
        self.error_message = error_message
        super().__init__(
            key,
            f"Operation {key} was recorded as failed: {error_message}. "
            "The outcome stays until its retention is over; use a new key to try anew.",
        )


class OutcomeUnknownError(IdempotencyError):
    """
    The executor died and the policy is not to run again until a decision.

    Also raised, with a `reason`, for a replay of work that has been done and
    whose result could not be recorded.
    """

    def __init__(self, key: str, *, reason: str | None = None) -> None:
        if reason is None:
            message = (
                f"Operation {key} was abandoned in the middle and its outcome is unknown. "
                "Find out what happened, then record it with complete_idempotent_operation()."
            )
        else:
            message = (
                f"Operation {key} has run, but {reason}. It is not run again; "
                "look up its effects in another way."
            )
        super().__init__(key, message)


class ClaimLostError(IdempotencyError):
    """
    The work ran, but the claim had been lost, so its outcome was not recorded.

    Attributes:
        result: What this executor's own run returned.
    """

    def __init__(self, key: str, *, result: Any = None) -> None:
        self.result = result
        super().__init__(
            key,
            f"Operation {key} finished after its claim was lost; another executor may have "
            "run it too. This run's result is in `result`; check which effects are there twice.",
        )


class OperationNotFoundError(TasksError):
    """
    No background operation with this id is visible to the caller.

    Attributes:
        operation_id: The id that was asked for.
    """

    def __init__(self, operation_id: str) -> None:
        self.operation_id = operation_id
        super().__init__(
            f"There is no operation {operation_id} here. "
            "It may have expired, or belong to another tenant."
        )


class InvalidTransitionError(TasksError):
    """
    The status may not change that way.

    Attributes:
        current: The status that is recorded.
        requested: The status that was asked for.
    """

    def __init__(self, subject: str, current: str, requested: str) -> None:
        self.current = current
        self.requested = requested
        super().__init__(
            f"{subject} is {current} and cannot become {requested}. Read it again before acting."
        )


class LockError(TasksError):
    """
    Base of errors about one distributed lock.

    Attributes:
        name: The lock's name.
    """

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(message)


class LockNotAcquiredError(LockError):
    """
    Somebody else holds the lock.

    Attributes:
        waited: Seconds that the caller waited for it.
    """

    retryable = True

    def __init__(self, name: str, *, waited: float) -> None:
        self.waited = waited
        super().__init__(
            name,
            f"Lock {name!r} is held by somebody else (waited {waited:.1f} s). "
            "Try again later, or pass a longer `wait`.",
        )


class LockLostError(LockError):
    """
    The lock was held and no longer is.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            name,
            f"Lock {name!r} is no longer held: its lease ended before it could be renewed. "
            "Stop the protected work; another holder may be at it.",
        )


class StorageError(TasksError):
    """
    Base of errors of a storage backend.

    Attributes:
        backend: Short name of the backend, such as ``redis``.
    """

    def __init__(self, backend: str, message: str) -> None:
        self.backend = backend
        super().__init__(message)


class StorageUnavailableError(StorageError):
    """
    The storage cannot be used right now; nothing was changed.
    """

    retryable = True

    def __init__(self, backend: str, reason: str, *, advice: str = "Try again later.") -> None:
        super().__init__(backend, f"The {backend} storage is unavailable: {reason}. {advice}")


class StorageTimeoutError(StorageError):
    """
    No answer in time or the reply was lost; the write may have happened.
    """

    retryable = True

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(
            backend,
            f"The {backend} storage gave no answer: {reason}. "
            "What was asked may have happened; the same call can safely be made again.",
        )


class StaleRecordError(StorageError):
    """
    Somebody else wrote first; the caller's view is out of date.
    """

    retryable = True

    def __init__(self, backend: str, what: str) -> None:
        super().__init__(backend, f"{what} was changed by somebody else. Read it again.")


class CorruptRecordError(StorageError):
    """
    A stored record is damaged or of a format that this version cannot read.

    Attributes:
        key: The stored key of the record.
        reason: What is wrong with it.
    """

    def __init__(self, backend: str, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        super().__init__(
            backend,
            f"The record {key} cannot be read: {reason}. It is left as it is and its work is not "
            "run again; upgrade this process if a newer one wrote it, or remove it by hand.",
        )
