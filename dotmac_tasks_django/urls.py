"""
Where the health pages are; include it under `/health/`, which is exempt by default.
"""

from __future__ import annotations

from django.urls import path

from dotmac_tasks_django.views import liveness, readiness

app_name = "dotmac_tasks"

urlpatterns = [
    path("live/", liveness, name="liveness"),
    path("ready/", readiness, name="readiness"),
]
