from __future__ import annotations

import importlib.metadata
import inspect
import pickle

import pytest

import dotmac_tasks
from dotmac_tasks import errors

# The names that the design fixes; saga names join with the sagas.
PROMISED = {
    "BackgroundOperation",
    "BackgroundOperationsManager",
    "BackgroundOperationsMiddleware",
    "IdempotencyKey",
    "MemoryStorage",
    "MetricsHooks",
    "OperationStatus",
    "RedisStorage",
    "Storage",
    "add_background_operations_middleware",
    "defer_operation",
    "get_idempotency_key",
    "is_idempotent_request",
    "set_operation_result",
}
ERRORS = {
    name
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.TasksError)
}


def test_public_names_are_sorted_and_complete() -> None:
    """The package exports what the design names and every error, sorted, and nothing else."""
    assert dotmac_tasks.__all__ == sorted(dotmac_tasks.__all__)
    assert set(dotmac_tasks.__all__) == PROMISED | ERRORS


@pytest.mark.parametrize("name", sorted((PROMISED | ERRORS) - {"RedisStorage"}))
def test_public_name_has_a_docstring(name: str) -> None:
    """Every public name says what it is."""
    assert inspect.getdoc(getattr(dotmac_tasks, name))


def test_redis_storage_is_imported_on_demand() -> None:
    """Where redis-py is installed the Redis storage is a public name as well."""
    pytest.importorskip("redis")
    assert issubclass(dotmac_tasks.RedisStorage, dotmac_tasks.Storage)


def test_version_is_the_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is read from the installed metadata, when it is asked for."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"version of {name}")
    assert dotmac_tasks.__version__ == "version of dotmac-tasks"


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that does not exist is missed as anywhere else."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dotmac_tasks.nothing


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_error_is_exported_by_its_module(name: str) -> None:
    """Every error is a public name of its module and survives pickling."""
    assert name in errors.__all__
    cls = getattr(errors, name)
    error = cls.__new__(cls)
    error.args = ("message",)
    error.fact = 5
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, copy.fact) == (cls, ("message",), 5)
