"""
The views that must not run twice.

Two lines make a view safe to send again: ``@idempotent`` around it, and ``downstream_key``
for what stands behind it. Read `checkout.py` for why a worker may also die in the middle,
and `partners.py` for the same with Django REST framework.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_POST

from dotmac_tasks_django import downstream_key, idempotent
from orders.answers import answer_order
from orders.claims import answer_claim
from orders.newsletter import answer_sign_up


# `required=True`: nobody can order without a key. The middleware claims the key before
# this body runs, and records the answer after it: a retry gets that answer, byte for byte.
# An answer of 409 or 5xx is not kept, it gives the key back and the retry runs again.
# `on_storage_error="reject"`: money moves here, so while the storage is down the customer
# is told 503 and when to come back, and nothing runs that a retry would not recognise.
@require_POST
@idempotent(required=True, on_storage_error="reject")
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


# An upload needs nothing more. Its parts are compared, not its bytes: a retry with a new
# boundary is the same request, another photo under the same key is refused with 422. The
# library never holds a file in memory, and the view finds its upload unread.
@require_POST
@idempotent(required=True, on_storage_error="reject")
def file_claim(request: HttpRequest) -> HttpResponse:
    """
    File a claim for something that came broken, with a photo of it.
    """
    return answer_claim(request, token=downstream_key(request, "claim"))


# No word about storage errors, so the default holds: while the storage is down this view
# runs unprotected, and its answers say so with `X-Idempotency-Status: unprotected`. A
# second welcome letter is a smaller evil than a visitor who is turned away.
@require_POST
@idempotent(required=True)
def sign_up(request: HttpRequest) -> HttpResponse:
    """
    Sign up for the newsletter, and send a welcome letter.
    """
    return answer_sign_up(request)
