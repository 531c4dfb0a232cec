"""
The same views without the library, for `demo.py --unprotected`.

Nothing here can tell a retry from something new, so each run gets tokens of its own.
"""

from __future__ import annotations

from uuid import uuid4

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_POST
from rest_framework.request import Request

from orders import partners
from orders.answers import answer_order, answer_wish
from orders.checkout import Wish
from orders.claims import answer_claim
from orders.newsletter import answer_sign_up

sign_up = require_POST(answer_sign_up)


@require_POST
def place_order(request: HttpRequest) -> HttpResponse:
    """
    Place an order, every time.
    """
    return answer_order(request, token=uuid4().hex, charge_key=uuid4().hex)


@require_POST
def file_claim(request: HttpRequest) -> HttpResponse:
    """
    File a claim, every time.
    """
    return answer_claim(request, token=uuid4().hex)


class PartnerOrders(partners.PartnerOrders):
    """
    Takes the orders of partners, every time. One per request.
    """

    def post(self, request: Request) -> HttpResponse:
        """
        Place an order.
        """
        sent = self.get_serializer(data=request.data)
        sent.is_valid(raise_exception=True)
        return answer_wish(Wish(**sent.validated_data), token=uuid4().hex, charge_key=uuid4().hex)
