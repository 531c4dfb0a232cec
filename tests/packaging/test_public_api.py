from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pickle
from typing import Any

import pytest

import dotmac_tasks
from dotmac_tasks import errors

# The names that the design fixes.
PROMISED = {
    "AbandonedOperation",
    "BackgroundOperation",
    "BackgroundOperationsManager",
    "BackgroundOperationsMiddleware",
    "IdempotencyKey",
    "MemoryStorage",
    "MetricsHooks",
    "OperationStatus",
    "RedisStorage",
    "SagaHistoryEntry",
    "SagaStatus",
    "SagaStep",
    "SagaStepStatus",
    "SagaWorkflow",
    "Storage",
    "Verdict",
    "add_background_operations_middleware",
    "defer_operation",
    "get_idempotency_key",
    "is_idempotent_request",
    "set_operation_result",
}
# What callers may write, in this order; "*" begins what is passed by name. More may follow there.
SIGNATURES = {
    "BackgroundOperationsManager": "storage=None, *",
    "BackgroundOperationsManager.from_env": "*",
    "BackgroundOperationsManager.start": "",
    "BackgroundOperationsManager.stop": "timeout=5.0",
    "BackgroundOperationsManager.generate_idempotency_key": (
        "tenant_id, user_id, operation_type, parameters"
    ),
    "BackgroundOperationsManager.create_idempotency_key": (
        "tenant_id, user_id, operation_type, key=None, ttl=None, parameters=None"
    ),
    "BackgroundOperationsManager.check_idempotency": "key, tenant_id=None",
    "BackgroundOperationsManager.complete_idempotent_operation": (
        "key, result, error=None, *, tenant_id=None"
    ),
    "BackgroundOperationsManager.find_stored_key": "tenant_id, principal, client_key",
    "BackgroundOperationsManager.list_idempotency_keys": (
        "*, tenant_id=None, status=None, abandoned=False, limit=100, cursor=None"
    ),
    "BackgroundOperationsManager.release_idempotency_key": (
        "key, *, reason, by, tenant_id=None, finished=False, unreadable=False, fencing_token=None"
    ),
    "BackgroundOperationsManager.resolve_idempotency_key": (
        "key, result, error=None, *, reason, by, tenant_id=None"
    ),
    "BackgroundOperationsManager.idempotent": (
        "operation_type, *, tenant_id='default', user_id=None, key=None, ttl=None, wait=None"
    ),
    "BackgroundOperationsManager.create_operation": "tenant_id, operation_type, *",
    "BackgroundOperationsManager.get_operation_status": "operation_id, tenant_id=None",
    "BackgroundOperationsManager.list_operations": (
        "tenant_id, *, status=None, limit=100, cursor=None"
    ),
    "BackgroundOperationsManager.lock": "name, ttl=30, wait=0, *",
    "BackgroundOperationsManager.cleanup_now": "batch_size=1000, max_records=None, dry_run=False",
    "BackgroundOperationsManager.health_check": "",
    "BackgroundOperationsManager.get_stats": "",
    "BackgroundOperationsMiddleware": "app, manager, *",
    "add_background_operations_middleware": "app, manager=None",
    "get_idempotency_key": "environ",
    "is_idempotent_request": "environ",
    "set_operation_result": "environ, result",
    "defer_operation": "environ, timeout=3600",
    "RedisStorage": "redis_url=None, *, prefix='bgops'",
    "Storage.close": "",
    "IdempotencyKey.to_dict": "",
    "IdempotencyKey.is_expired": "",
    "IdempotencyKey.is_completed": "",
    "IdempotencyKey.is_failed": "",
    "IdempotencyKey.is_in_progress": "",
    "SagaStep.to_dict": "",
    "SagaStep.can_retry": "",
    "SagaStep.is_completed": "",
    "SagaStep.is_failed": "",
    "SagaStep.can_compensate": "",
    "SagaWorkflow.to_dict": "",
    "SagaWorkflow.get_current_step": "",
    "SagaWorkflow.get_completed_steps": "",
    "SagaWorkflow.needs_compensation": "",
    "SagaWorkflow.is_completed": "",
    "SagaWorkflow.is_failed": "",
    "SagaWorkflow.is_timed_out": "",
}
DJANGO_SIGNATURES = {
    "get_manager": "",
    "idempotent": "view=None, /, **options",
    "idempotency_exempt": "view, /",
    "get_idempotency_key": "request",
    "is_idempotent_request": "request",
    "set_operation_result": "request, result",
    "defer_operation": "request, timeout=3600",
    "downstream_key": "request, name",
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


def show_signature(value: Any) -> str:
    signature = inspect.signature(value)
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))[1:-1]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_the_promised_one(name: str) -> None:
    """Names, order and defaults of parameters are what callers write; new ones come behind."""
    if name == "RedisStorage":
        pytest.importorskip("redis")
    owner, _, method = name.partition(".")
    subject = getattr(dotmac_tasks, owner)
    shown = show_signature(getattr(subject, method) if method else subject)
    promised = SIGNATURES[name]
    assert f"{shown}, ".startswith(f"{promised}, " if promised else ""), shown


@pytest.mark.parametrize("name", DJANGO_SIGNATURES)
def test_signature_of_the_django_package_is_the_promised_one(name: str) -> None:
    """What a view calls and decorates with has the promised parameters and no others."""
    pytest.importorskip("django")
    package = importlib.import_module("dotmac_tasks_django")
    assert set(package.__all__) == set(DJANGO_SIGNATURES)
    assert show_signature(getattr(package, name)) == DJANGO_SIGNATURES[name]


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
