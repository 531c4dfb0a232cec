"""
The one view that must not run twice.

Two lines make it safe to send again: ``@idempotent`` around it, and ``downstream_key``
for the system behind it. Read `checkout.py` for why a worker may also die in the middle.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_POST

from dotmac_tasks_django import downstream_key, idempotent
from orders.answers import answer_order


# `required=True`: nobody can order without a key. The middleware claims the key before
# this body runs, and records the answer after it: a retry gets that answer, byte for byte.
# An answer of 409 or 5xx is not kept, it gives the key back and the retry runs again.
@require_POST
@idempotent(required=True)
def place_order(request: HttpRequest) -> HttpResponse:
    """
    Place an order: 201 and where it is, or an error that says what to do.
    """
    return answer_order(
        request,
        # Both are the same whenever this request is sent again, also in another worker.
        token=downstream_key(request, "order"),
        charge_key=downstream_key(request, "charge"),
    )
