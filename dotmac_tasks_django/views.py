"""
Two pages for whatever watches the service: does it live, and can it work?

Neither asks who is asking, and neither shows a secret.
"""

from __future__ import annotations

import logging

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from dotmac_tasks_django.conf import get_manager
from dotmac_tasks_django.decorators import idempotency_exempt

__all__ = ["liveness", "readiness"]

logger = logging.getLogger(__name__)


@never_cache
@require_safe
@idempotency_exempt
def liveness(request: HttpRequest) -> HttpResponse:
    """
    Answer 200 while the process serves, whatever the storage does.
    """
    return JsonResponse({"status": "alive"})


@never_cache
@require_safe
@idempotency_exempt
def readiness(request: HttpRequest) -> HttpResponse:
    """
    Answer 200 if the storage works and 503 if it does not.
    """
    report = get_manager().health_check()
    status = "ready" if report.healthy else "unavailable"
    return JsonResponse({"status": status}, status=200 if report.healthy else 503)
