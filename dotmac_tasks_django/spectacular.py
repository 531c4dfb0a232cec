"""
The key and the refusals in the OpenAPI schema that drf-spectacular generates.

Named in `SPECTACULAR_SETTINGS["POSTPROCESSING_HOOKS"]`; needs drf-spectacular, which nothing else
here imports. A schema class of the project's own goes on doing what it does.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from drf_spectacular.plumbing import ResolvedComponent, camelize_operation, modify_for_versioning
from drf_spectacular.settings import spectacular_settings

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.http import PROBLEM_PREFIX, ViewOptions
from dotmac_tasks.keys import MAX_KEY_LENGTH
from dotmac_tasks_django.conf import MIDDLEWARE, get_setting
from dotmac_tasks_django.protection import Exempt, find_options
from dotmac_tasks_django.requests import current_adapter

__all__ = ["add_idempotency"]

_PROBLEM: Final = "IdempotencyProblem"
_IN_PROGRESS: Final = "IdempotencyInProgress"

_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    _PROBLEM: {
        "type": "object",
        "description": "Why a request with an idempotency key is refused (RFC 9457).",
        "properties": {
            "type": {"type": "string", "format": "uri", "example": f"{PROBLEM_PREFIX}key-reused"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
        },
        "required": ["type", "title", "status", "detail"],
    },
    _IN_PROGRESS: {
        "type": "object",
        "description": "The first request with this key is still running.",
        "properties": {
            "status": {"type": "string", "enum": ["in_progress"]},
            "message": {"type": "string"},
        },
        "required": ["status", "message"],
    },
}
_REFUSALS: Final = {
    "400": "The idempotency key is missing or malformed.",
    "409": (
        "The first request with this key is still running, or it was carried out and its outcome "
        "cannot be told."
    ),
    "422": "The idempotency key was used for a different request.",
}
_UNKNOWN_CALLER: Final = "Idempotency keys are only taken from callers who are known."
_OVER_QUOTA: Final = "This caller has sent too many new idempotency keys; nothing was carried out."
_UNAVAILABLE: Final = "Repeats cannot be recognised right now; nothing was carried out."
_ACCEPTED: Final = "The first request with this key is still running."
_DESCRIPTION: Final = (
    "A unique value for each new piece of work, and the same value when the request is retried: "
    "the work is done once and retries get its answer."
)


class _Endpoint(NamedTuple):
    path: str
    method: str
    callback: Any
    view: Any


def add_idempotency(
    result: dict[str, Any], generator: Any, request: Any, public: bool
) -> dict[str, Any]:
    """
    Add the key's header and the refusals to each operation that takes a key.

    A hook of drf-spectacular, to stand before or behind others.
    """
    config = current_adapter().manager.config
    is_installed = MIDDLEWARE in get_setting("MIDDLEWARE")
    for endpoint, operation in _find_operations(result, generator, request):
        options = find_options(endpoint.callback, endpoint.method)
        is_protected = options is not None or is_installed
        if is_protected and not isinstance(options, Exempt) and _covers(endpoint):
            _add_to_operation(operation, options or ViewOptions(), config)
    for name, schema in _SCHEMAS.items():
        # Hooks behind this one may build the components anew.
        generator.registry.register_on_missing(
            ResolvedComponent(name, ResolvedComponent.SCHEMA, schema, object=name)
        )
        result.setdefault("components", {}).setdefault("schemas", {}).setdefault(name, schema)
    return result


def _covers(endpoint: _Endpoint) -> bool:
    return current_adapter().http.covers(endpoint.method, endpoint.path)


def _add_to_operation(operation: dict[str, Any], options: ViewOptions, config: TasksConfig) -> None:
    header = config.idempotency_header
    is_required = config.require_key if options.required is None else options.required
    parameters = operation.setdefault("parameters", [])
    known = {
        parameter.get("name", "").lower()
        for parameter in parameters
        if parameter.get("in") == "header"
    }
    if header.lower() not in known:
        parameters.append(
            {
                "in": "header",
                "name": header,
                "required": is_required,
                "description": _DESCRIPTION,
                "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
            }
        )
    responses = operation.setdefault("responses", {})
    for status, description in _find_refusals(options, config, is_required=is_required).items():
        response = responses.setdefault(status, {"description": description})
        response.setdefault("content", {})["application/problem+json"] = _refer_to(_PROBLEM)
    if (options.in_progress or config.in_progress) == "accepted":
        content = {"application/json": _refer_to(_IN_PROGRESS)}
        responses.setdefault("202", {"description": _ACCEPTED, "content": content})


def _find_refusals(
    options: ViewOptions, config: TasksConfig, *, is_required: bool
) -> dict[str, str]:
    """
    Return what each refusal says: those that every key may meet, and those that are asked for.
    """
    found = dict(_REFUSALS)
    if config.anonymous == "refuse" or (config.anonymous == "ignore" and is_required):
        found["403"] = _UNKNOWN_CALLER
    if config.max_keys_per_caller:
        found["429"] = _OVER_QUOTA
    if (options.on_storage_error or config.on_storage_error) == "reject":
        found["503"] = _UNAVAILABLE
    return found


def _refer_to(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _find_operations(
    result: dict[str, Any], generator: Any, request: Any
) -> Iterator[tuple[_Endpoint, dict[str, Any]]]:
    """
    Yield what serves each operation of a schema, which no longer tells it, with the operation.
    """
    endpoints = []
    for raw_path, _, method, callback in generator.endpoints:
        view = generator.create_view(callback, method)
        path = generator.coerce_path(raw_path, method, view)
        endpoints.append(_Endpoint(path, method, callback, view))
    prefix = _find_prefix(endpoints)
    for endpoint in endpoints:
        path = _add_version(endpoint, generator, request)
        operation = result["paths"].get(_show(path, prefix), {}).get(endpoint.method.lower())
        if operation is not None:
            yield endpoint._replace(path=path), operation


# As in `SchemaGenerator.parse` of drf-spectacular, which keeps nothing of it.


def _find_prefix(endpoints: list[_Endpoint]) -> str:
    prefix: str | None = spectacular_settings.SCHEMA_PATH_PREFIX
    if prefix is None:
        views = {type(endpoint.view) for endpoint in endpoints}
        paths = [endpoint.path for endpoint in endpoints]
        prefix = re.escape(posixpath.commonpath(paths)) if len(views) > 1 else "/"
    return prefix if prefix.startswith("^") else f"^{prefix}"


def _add_version(endpoint: _Endpoint, generator: Any, request: Any) -> str:
    path, method, _, view = endpoint
    if not view.versioning_class:
        return path
    view.request = spectacular_settings.GET_MOCK_REQUEST(method, path, view, request)
    version = generator.api_version or view.versioning_class.default_version
    if not version:
        return path
    patterns = generator.inspector.patterns
    versioned: str = modify_for_versioning(patterns, method, path, view, version)
    return versioned


def _show(path: str, prefix: str) -> str:
    if spectacular_settings.SCHEMA_PATH_PREFIX_TRIM:
        path = re.sub(prefix, "", path, flags=re.IGNORECASE)
    path = f"{spectacular_settings.SCHEMA_PATH_PREFIX_INSERT or ''}{path}"
    if not path.startswith("/"):
        path = f"/{path}"
    if spectacular_settings.CAMELIZE_NAMES:
        path, _ = camelize_operation(path, {"operationId": "any"})
    return path
