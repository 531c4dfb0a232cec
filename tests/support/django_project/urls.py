"""
Where the test project's views are.
"""

from __future__ import annotations

from django.urls import include, path

from support.django_project import views

urlpatterns = [
    path("health/", include("dotmac_tasks_django.urls")),
    path("health/pay/", views.pay),
    path("pay/", views.pay),
    path("pay/<str:tenant_id>/", views.pay),
    path("page/", views.form_page),
    path("form/", views.pay_form),
    path("upload/", views.upload),
    path("answer/<int:status>/", views.answer),
    path("broken/<str:error>/", views.broken),
    path("binary/", views.binary),
    path("empty/", views.empty),
    path("receipt/", views.receipt),
    path("broken-receipt/", views.broken_receipt),
    path("stream/", views.stream),
    path("async-stream/", views.async_stream),
    path("file/", views.file),
    path("async/", views.async_pay),
    path("exempt/", views.exempt),
    path("required/", views.required),
    path("selected/", views.selected),
    path("told/", views.told),
    path("result/", views.with_result),
    path("deferred/", views.deferred),
    path("who/", views.who),
    path("long/", views.long),
    path("insert/", views.insert),
    path("gate/", views.gated),
    path("async-gate/", views.async_gated),
    path("context/", views.set_context),
    path("decorated-insert/", views.decorated_insert),
    path("guarded/", views.guarded),
    path("outer/", views.outer_pay),
    path("class/", views.PayView.as_view()),
    path("required-class/", views.RequiredView.as_view()),
]
