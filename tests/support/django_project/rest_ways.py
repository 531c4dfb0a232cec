"""
The ways to write, and to decorate, a view of the REST framework; all do the same work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from django.contrib.auth.models import User
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied
from django.db import connection
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
)
from django.http.response import HttpResponseBase
from django.urls import path
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from rest_framework.authentication import SessionAuthentication, TokenAuthentication
from rest_framework.decorators import (
    action,
    api_view,
    authentication_classes,
    permission_classes,
    throttle_classes,
)
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.generics import GenericAPIView
from rest_framework.mixins import CreateModelMixin
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import IntegerField, Serializer
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet, ViewSet

from dotmac_tasks_django import get_idempotency_key, idempotency_exempt, idempotent
from support.django_project.calls import count_call


class Token:
    """
    Stands for the model behind the framework's token authentication.
    """

    DoesNotExist = ObjectDoesNotExist
    # Which user a token stands for; a test revokes and rotates them.
    names: ClassVar[dict[str, str]] = {}
    # How often each token was looked at.
    looked_at: ClassVar[list[str]] = []

    class objects:  # noqa: N801 - what the framework asks for
        @staticmethod
        def select_related(field: str) -> Any:
            return Token.objects

        @staticmethod
        def get(key: str) -> Token:
            Token.looked_at.append(key)
            if key not in Token.names:
                raise Token.DoesNotExist
            return Token(key)

    def __init__(self, key: str) -> None:
        self.user = User.objects.get(username=self.names[key])


class Tokens(TokenAuthentication):
    model = Token


class Switch:
    """
    What tests turn off and on again.
    """

    throttled = False
    forbidden = False
    checks_data = False


class Throttle(BaseThrottle):
    def allow_request(self, request: Request, view: APIView) -> bool:
        return not Switch.throttled


class Allowed(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        if Switch.checks_data:
            request.data.get("amount")
        return not Switch.forbidden


class Guarded:
    authentication_classes = (Tokens, SessionAuthentication)
    permission_classes = (IsAuthenticated, Allowed)
    throttle_classes = (Throttle,)


class Conflict(APIException):
    status_code = 409


ERRORS: dict[str, Callable[[int], Exception]] = {
    "invalid": lambda number: ValidationError({"run": number}),
    "missing": lambda number: Http404(f"run {number}"),
    "denied": lambda number: PermissionDenied(),
    "conflict": lambda number: Conflict(),
    "bug": lambda number: ValueError("a bug"),
}


def do_work(request: Request) -> HttpResponseBase:
    """
    Answer differently each time, or in the way that the query asks for.
    """
    number = count_call("rest")
    kind = request.query_params.get("answer", "")
    if "insert" in request.query_params:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO child (parent) VALUES (1)")
    if kind in ERRORS:
        raise ERRORS[kind](number)
    if kind == "exit":
        raise SystemExit(1)
    if kind == "json":
        return JsonResponse({"number": number})
    if kind == "plain":
        return HttpResponse(f"run {number}")
    if kind == "file":
        return FileResponse([b"run"], filename="a.txt")
    if kind == "stream":
        return StreamingHttpResponse(iter([b"run", b"%d" % number]))
    key = get_idempotency_key(request)
    return Response({"number": number, "sent": request.data, "key": key}, status=201)


class Plain(Guarded, APIView):
    def get(self, request: Request) -> HttpResponseBase:
        return do_work(request)

    def post(self, request: Request) -> HttpResponseBase:
        return do_work(request)


class Amount(Serializer[Any]):
    amount = IntegerField()

    def create(self, validated_data: Any) -> Any:
        count_call("rest")
        return validated_data


class PlainGeneric(Guarded, CreateModelMixin, GenericAPIView[Any]):
    serializer_class = Amount

    def post(self, request: Request) -> HttpResponseBase:
        return do_work(request)


class PlainSet(Guarded, ViewSet):
    def create(self, request: Request) -> HttpResponseBase:
        return do_work(request)

    @action(detail=False, methods=["post"])
    def pay(self, request: Request) -> HttpResponseBase:
        return do_work(request)


def function(decorate: Callable[[Any], Any]) -> Any:
    @authentication_classes(Guarded.authentication_classes)
    @permission_classes(Guarded.permission_classes)
    @throttle_classes(Guarded.throttle_classes)
    @decorate
    def order(request: Request) -> HttpResponseBase:
        return do_work(request)

    return api_view(["GET", "POST"])(order)


class Checked(Plain):
    """
    Checks once more behind the framework; its base class is a view as well.
    """

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if request.query_params.get("answer") == "closed":
            raise Conflict


class Method(Guarded, APIView):
    def get(self, request: Request) -> HttpResponseBase:
        return do_work(request)

    @idempotent(required=True)
    def post(self, request: Request) -> HttpResponseBase:
        return do_work(request)

    @idempotency_exempt
    def patch(self, request: Request) -> HttpResponseBase:
        return do_work(request)


class BetweenDecorators(Guarded, APIView):
    @method_decorator(never_cache)
    @idempotent(required=True)
    def post(self, request: Request) -> HttpResponseBase:
        return do_work(request)


class Inherited(Method):
    """
    Gets the decorated method from its base class.
    """


class MixedIn:
    @idempotent(required=True)
    def create(self, request: Request) -> HttpResponseBase:
        return do_work(request)


class GenericSet(MixedIn, Guarded, CreateModelMixin, GenericViewSet[Any]):
    serializer_class = Amount


class MethodSet(Guarded, ViewSet):
    @idempotent(required=True)
    def create(self, request: Request) -> HttpResponseBase:
        return do_work(request)

    @action(detail=False, methods=["post"])
    @idempotent(required=True)
    def above(self, request: Request) -> HttpResponseBase:
        return do_work(request)

    @idempotent(required=True)
    @action(detail=False, methods=["post"])
    def below(self, request: Request) -> HttpResponseBase:
        return do_work(request)


@idempotent(required=True)
class Class(Plain):
    pass


@idempotent(required=True)
class ClassSet(PlainSet):
    pass


@method_decorator(idempotent(required=True), name="dispatch")
class Dispatch(Plain):
    pass


@method_decorator(idempotent(required=True), name="post")
class NamedMethod(Plain):
    pass


@method_decorator(idempotent(required=True), name="dispatch")
class DispatchSet(PlainSet):
    pass


class OwnDispatch(Plain):
    @idempotent(required=True)
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(request, *args, **kwargs)


class Lazy(Plain):
    """
    Authenticates when it is asked who it is, which it never is.
    """

    permission_classes = ()

    def perform_authentication(self, request: Request) -> None:
        pass


class ExemptSet(PlainSet):
    @idempotency_exempt
    def create(self, request: Request) -> HttpResponseBase:
        return do_work(request)

    @action(detail=False, methods=["post"])
    @idempotency_exempt
    def pay(self, request: Request) -> HttpResponseBase:
        return do_work(request)


class ExemptMethod(Guarded, APIView):
    @idempotency_exempt
    def post(self, request: Request) -> HttpResponseBase:
        return do_work(request)


@idempotency_exempt
class ExemptClass(Plain):
    pass


class OwnOptions(PlainSet):
    """
    Two methods say what their class says, and differ.
    """

    @idempotent(required=False)
    def create(self, request: Request) -> HttpResponseBase:
        return do_work(request)

    @action(detail=False, methods=["post"])
    @idempotency_exempt
    def pay(self, request: Request) -> HttpResponseBase:
        return do_work(request)

    @action(detail=False, methods=["post"])
    def refund(self, request: Request) -> HttpResponseBase:
        return do_work(request)


UNDECORATED: dict[str, Any] = {
    "plain": Plain.as_view(),
    "plain-generic": PlainGeneric.as_view(),
    "plain-set": PlainSet.as_view({"post": "create"}),
    "plain-action": PlainSet.as_view({"post": "pay"}),
    "plain-function": function(lambda view: view),
    "checked": Checked.as_view(),
}
DECORATED: dict[str, Any] = {
    "method": Method.as_view(),
    "between": BetweenDecorators.as_view(),
    "inherited": Inherited.as_view(),
    "mixed-in": GenericSet.as_view({"post": "create"}),
    "set": MethodSet.as_view({"post": "create"}),
    "action-above": MethodSet.as_view({"post": "above"}),
    "action-below": MethodSet.as_view({"post": "below"}),
    "named-method": NamedMethod.as_view(),
    "function-below": function(idempotent(required=True)),
    "class": Class.as_view(),
    "class-set": ClassSet.as_view({"post": "create"}),
    "class-action": ClassSet.as_view({"post": "pay"}),
    "dispatch": Dispatch.as_view(),
    "dispatch-set": DispatchSet.as_view({"post": "create"}),
    "own-dispatch": OwnDispatch.as_view(),
    "function-above": idempotent(required=True)(function(lambda view: view)),
    "view": idempotent(required=True)(Plain.as_view()),
    "view-of-set": idempotent(required=True)(PlainSet.as_view({"post": "create"})),
}

EXEMPT: dict[str, Any] = {
    "exempt-method": ExemptMethod.as_view(),
    "exempt-create": ExemptSet.as_view({"post": "create"}),
    "exempt-action": ExemptSet.as_view({"post": "pay"}),
    "exempt-class": ExemptClass.as_view(),
    "exempt-below": function(idempotency_exempt),
    "exempt-above": idempotency_exempt(function(lambda view: view)),
    "exempt-view": idempotency_exempt(Plain.as_view()),
}


def own_options(name: str, decorate: Callable[[Any], Any]) -> dict[str, Any]:
    view_class = decorate(type("Own", (OwnOptions,), {}))
    return {
        f"own-{name}-{action}": view_class.as_view({"post": action})
        for action in ("create", "pay", "refund")
    }


OWN_OPTIONS: dict[str, Any] = {
    **own_options("class", idempotent(required=True)),
    **own_options("dispatch", method_decorator(idempotent(required=True), name="dispatch")),
}
VIEWS = {**UNDECORATED, **DECORATED, **EXEMPT, **OWN_OPTIONS, "lazy": Lazy.as_view()}

urlpatterns = [path(f"{name}/", view) for name, view in VIEWS.items()]
