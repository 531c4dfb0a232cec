from __future__ import annotations

from typing import Any

import pytest
from django.test import override_settings
from django.urls import include, path
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.settings import patched_settings
from drf_spectacular.utils import OpenApiParameter, extend_schema
from drf_spectacular.validation import validate_schema
from rest_framework.decorators import action, api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import CharField, ChoiceField, Serializer
from rest_framework.versioning import NamespaceVersioning, URLPathVersioning
from rest_framework.viewsets import GenericViewSet

from dotmac_tasks_django import idempotency_exempt, idempotent
from dotmac_tasks_django.testing import override_tasks_settings
from support.django_project.settings import MIDDLEWARE

HOOK = "dotmac_tasks_django.spectacular.add_idempotency"
ENUMS = "drf_spectacular.hooks.postprocess_schema_enums"


class OwnSchema(AutoSchema):
    """
    A project's own schema class.
    """

    def get_tags(self) -> list[str]:
        return ["own"]


class Item(Serializer[Any]):
    name = CharField()
    colour = ChoiceField(choices=["red", "blue"])


class Items(GenericViewSet[Any]):
    serializer_class = Item
    schema = OwnSchema()
    authentication_classes = ()

    def list(self, request: Request) -> Response:
        raise AssertionError

    @idempotent(required=True)
    def create(self, request: Request) -> Response:
        raise AssertionError

    def update(self, request: Request, pk: str) -> Response:
        raise AssertionError

    def partial_update(self, request: Request, pk: str) -> Response:
        raise AssertionError

    @extend_schema(responses={200: Item, 202: Item, 400: Item})
    @action(detail=True, methods=["post"])
    @idempotent(in_progress="conflict")
    def pay(self, request: Request, pk: str) -> Response:
        raise AssertionError

    @action(detail=True, methods=["post"])
    @idempotency_exempt
    def search(self, request: Request, pk: str) -> Response:
        raise AssertionError


class ByPath(Items):
    versioning_class = URLPathVersioning


class ByNamespace(Items):
    versioning_class = NamespaceVersioning


def function(**documented: Any) -> Any:
    def order(request: Request) -> Response:
        raise AssertionError

    view = api_view(["POST"])(order)
    return extend_schema(request=Item, responses=Item, **documented)(view)


actions = {"get": "list", "post": "create"}
urlpatterns = [
    path("api/items/", Items.as_view(actions)),
    path("api/items/<str:item_id>/", Items.as_view({"put": "update", "patch": "partial_update"})),
    path("api/items/<str:item_id>/pay/", Items.as_view({"post": "pay"})),
    path("api/items/<str:item_id>/search/", Items.as_view({"post": "search"})),
    path("api/plain/", function()),
    path("api/above/", idempotent(required=True)(function())),
    path("api/exempt/", idempotency_exempt(function())),
    path("api/health/", function()),
]


def generate(urls: Any = None, *, version: str | None = None, **settings: Any) -> dict[str, Any]:
    """
    Generate a schema, and have it validated.
    """
    settings.setdefault("POSTPROCESSING_HOOKS", [ENUMS, HOOK])
    with patched_settings(settings):
        generator = SchemaGenerator(patterns=urls or urlpatterns, api_version=version)
        schema: dict[str, Any] = generator.get_schema(request=None, public=True)
        validate_schema(schema)
    return schema


def find_header(operation: dict[str, Any]) -> dict[str, Any] | None:
    found = [item for item in operation.get("parameters", []) if item["in"] == "header"]
    assert len(found) <= 1
    return found[0] if found else None


def find_covered(schema: dict[str, Any]) -> dict[str, bool]:
    """
    Return which operations take a key, and whether they need it.
    """
    return {
        f"{method} {url}": header["required"]
        for url, operations in schema["paths"].items()
        for method, operation in operations.items()
        if (header := find_header(operation)) is not None
    }


COVERED = {
    "post /api/items/": True,
    "patch /api/items/{item_id}/": False,
    "post /api/items/{item_id}/pay/": False,
    "post /api/plain/": False,
    "post /api/above/": True,
    "post /api/health/": False,
}


def test_covered_operations_have_the_header() -> None:
    """Each operation that takes a key says so, and whether it must have one; no other does."""
    assert find_covered(generate()) == COVERED


def test_settings_decide() -> None:
    """The name of the header, the methods, exempt paths and whether a key is needed are set."""
    changed = {
        "require_key": True,
        "methods": ["POST", "PUT"],
        "exempt_paths": ["/api/health/"],
        "idempotency_header": "X-Key",
    }
    with override_tasks_settings(**changed):
        schema = generate()
    assert find_covered(schema) == {
        "post /api/items/": True,
        "put /api/items/{item_id}/": True,
        "post /api/items/{item_id}/pay/": True,
        "post /api/plain/": True,
        "post /api/above/": True,
    }
    header = find_header(schema["paths"]["/api/items/"]["post"])
    assert header is not None
    assert header["name"] == "X-Key"


def test_header_says_what_a_key_is() -> None:
    """The header has the bounds of a key, and a description."""
    header = find_header(generate()["paths"]["/api/items/"]["post"])
    assert header is not None
    assert header["name"] == "Idempotency-Key"
    assert header["schema"] == {"type": "string", "minLength": 1, "maxLength": 255}
    assert "retried" in header["description"]


def test_without_the_middleware_decorated_operations_have_the_header() -> None:
    """Only what is protected takes a key."""
    with override_settings(MIDDLEWARE=MIDDLEWARE[:-1]):
        covered = find_covered(generate())
    assert set(covered) == {
        "post /api/items/",
        "post /api/items/{item_id}/pay/",
        "post /api/above/",
    }


def test_refusals_share_one_schema() -> None:
    """The refusals are problem documents of one component; what was documented before stays."""
    schema = generate()
    problem = {"schema": {"$ref": "#/components/schemas/IdempotencyProblem"}}
    responses = schema["paths"]["/api/items/"]["post"]["responses"]
    for status in ("400", "409", "422"):
        assert responses[status]["content"] == {"application/problem+json": problem}
    running = {"schema": {"$ref": "#/components/schemas/IdempotencyInProgress"}}
    assert responses["202"]["content"] == {"application/json": running}
    assert set(schema["paths"]["/api/exempt/"]["post"]["responses"]) == {"200"}
    # A view that answers conflicts so, and documents a 202 and a 400 of its own.
    responses = schema["paths"]["/api/items/{item_id}/pay/"]["post"]["responses"]
    item = {"schema": {"$ref": "#/components/schemas/Item"}}
    assert responses["202"]["content"] == {"application/json": item}
    assert responses["400"]["content"] == {
        "application/json": item,
        "application/problem+json": problem,
    }
    with override_tasks_settings(in_progress="wait"):
        responses = generate()["paths"]["/api/plain/"]["post"]["responses"]
    assert set(responses) == {"200", "400", "409", "422"}


@pytest.mark.parametrize(
    ("changed", "added"),
    [
        ({"anonymous": "refuse"}, {"403"}),
        ({"anonymous": "ignore"}, set()),
        ({"anonymous": "ignore", "require_key": True}, {"403"}),
        ({"max_keys_per_caller": 5}, {"429"}),
        ({"on_storage_error": "reject"}, {"503"}),
    ],
    ids=str,
)
def test_refusals_that_the_project_asks_for_are_documented(
    changed: dict[str, Any], added: set[str]
) -> None:
    """What only some settings refuse is in the schema with those, and not without."""
    with override_tasks_settings(**changed):
        responses = generate()["paths"]["/api/plain/"]["post"]["responses"]
    assert set(responses) == {"200", "202", "400", "409", "422"} | added
    for status in added:
        assert set(responses[status]["content"]) == {"application/problem+json"}


@pytest.mark.parametrize("hooks", [[ENUMS, HOOK], [HOOK, ENUMS], [HOOK]])
def test_hook_goes_with_others(hooks: list[str]) -> None:
    """Whatever hooks stand before or behind, components and the project's own schema class stay."""
    schema = generate(POSTPROCESSING_HOOKS=hooks)
    assert {"IdempotencyProblem", "IdempotencyInProgress", "Item"} <= set(
        schema["components"]["schemas"]
    )
    assert schema["paths"]["/api/items/"]["post"]["tags"] == ["own"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"SCHEMA_PATH_PREFIX": "/api", "SCHEMA_PATH_PREFIX_TRIM": True}, "post /items/"),
        ({"SCHEMA_PATH_PREFIX_TRIM": True}, "post /items/"),
        ({"SCHEMA_PATH_PREFIX_INSERT": "/service"}, "post /service/api/items/"),
        ({"CAMELIZE_NAMES": True}, "patch /api/items/{itemId}/"),
        ({"OAS_VERSION": "3.1.0"}, "post /api/items/"),
    ],
)
def test_paths_are_found_as_they_are_shown(settings: dict[str, Any], expected: str) -> None:
    """However a project has its paths shown, the same operations have the header."""
    covered = find_covered(generate(**settings))
    assert expected in covered
    assert len(covered) == len(COVERED)


def test_prefix_of_one_view_is_no_prefix() -> None:
    """Where all paths belong to one view nothing is taken for their prefix."""
    covered = find_covered(generate(urlpatterns[:1], SCHEMA_PATH_PREFIX_TRIM=True))
    assert list(covered) == ["post /api/items/"]


def test_versions_are_found() -> None:
    """Operations of the version that is asked for have the header; there are no others."""
    urls = [
        path("api/<str:version>/items/", ByPath.as_view(actions)),
        path("v1/", include(([path("items/", ByNamespace.as_view(actions))], "v1"))),
        path("v2/", include(([path("items/", ByNamespace.as_view(actions))], "v2"))),
    ]
    assert find_covered(generate(urls, version="v1")) == {
        "post /api/v1/items/": True,
        "post /v1/items/": True,
    }
    assert find_covered(generate(urls)) == {}


def test_header_that_is_documented_already_stays() -> None:
    """A project that documents the header by itself keeps its words."""
    own = OpenApiParameter("idempotency-key", str, OpenApiParameter.HEADER, description="Ours.")
    schema = generate([path("orders/", function(parameters=[own]))])
    header = find_header(schema["paths"]["/orders/"]["post"])
    assert header is not None
    assert header["description"] == "Ours."
    assert "422" in schema["paths"]["/orders/"]["post"]["responses"]


def test_empty_schema_stays_valid() -> None:
    """A project without an operation has nothing to add to."""
    with patched_settings({"POSTPROCESSING_HOOKS": [HOOK]}):
        schema = SchemaGenerator(patterns=[path("", include([]))]).get_schema(public=True)
    assert schema["paths"] == {}
