"""
From a visitor to a subscriber, who is sent a welcome letter.
"""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.http import HttpRequest, HttpResponse, JsonResponse

from orders.answers import refuse
from orders.models import Letter


def answer_sign_up(request: HttpRequest) -> HttpResponse:
    """
    Send a welcome letter, each time that this runs.
    """
    address = request.POST.get("address", "")
    try:
        validate_email(address)
    except ValidationError:
        return refuse(400, "'address' is no e-mail address.")
    Letter.objects.create(address=address)
    return JsonResponse({"subscribed": address}, status=201)
