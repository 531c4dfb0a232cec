"""
A view of the REST framework that a test can stop while it authenticates.
"""

from __future__ import annotations

from django.urls import path
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from dotmac_tasks_django import idempotent
from support.django_project.calls import count_call
from support.django_project.gate import gate


class GatedAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> None:
        gate.pass_through()


class GatedView(APIView):
    authentication_classes = (GatedAuthentication,)
    permission_classes = ()

    @idempotent
    def post(self, request: Request) -> Response:
        return Response({"number": count_call("rest")})


urlpatterns = [path("gate/", GatedView.as_view())]
