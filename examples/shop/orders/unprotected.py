"""
The same view without the library, for `demo.py --unprotected`.
"""

from __future__ import annotations

from uuid import uuid4

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_POST

from orders.answers import answer_order


@require_POST
def place_order(request: HttpRequest) -> HttpResponse:
    """
    Place an order, every time: nothing here can tell a retry from a new order.
    """
    return answer_order(request, token=uuid4().hex, charge_key=uuid4().hex)
