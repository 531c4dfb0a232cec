"""
From a request to an order, and from an order to an answer.
"""

from __future__ import annotations

import json
import os

from django.http import HttpRequest, HttpResponse, JsonResponse

from orders import checkout
from orders.models import Execution
from orders.payments import PaymentFailedError

MAX_QUANTITY = 1000


class BadOrderError(Exception):
    """
    The body is no order; the message says why.
    """


def answer_order(request: HttpRequest, *, token: str, charge_key: str) -> HttpResponse:
    """
    Place the order in the request's body.
    """
    try:
        wish = read_wish(request.body)
    except BadOrderError as error:
        return refuse(400, str(error))
    return answer_wish(wish, token=token, charge_key=charge_key)


def answer_wish(wish: checkout.Wish, *, token: str, charge_key: str) -> HttpResponse:
    """
    Place the order, and count this execution.
    """
    execution = Execution.objects.create(number=wish.number, worker=os.getpid())
    answer = place_wish(wish, token, charge_key)
    execution.outcome = "ordered" if answer.status_code == 201 else f"refused {answer.status_code}"
    execution.save(update_fields=["outcome"])
    return answer


def place_wish(wish: checkout.Wish, token: str, charge_key: str) -> HttpResponse:
    """
    Place the order, and put what went wrong into HTTP.
    """
    try:
        order = checkout.place(wish, token=token, charge_key=charge_key)
    except checkout.UnknownProductError:
        return refuse(400, f"There is no product {wish.product!r}. See /products/.")
    except checkout.OutOfStockError:
        return refuse(409, f"There are fewer than {wish.quantity} of {wish.product!r} left.")
    except checkout.OrderConflictError:
        return refuse(409, "This key began an order with other contents. Send a new key.")
    except PaymentFailedError as error:
        return refuse(502, f"{error} Send the same request with the same key again.")
    return JsonResponse(order.to_dict(), status=201, headers={"Location": order.get_absolute_url()})


def read_wish(body: bytes) -> checkout.Wish:
    """
    Read an order from JSON.

    Raises:
        BadOrderError: It is none.
    """
    try:
        data = json.loads(body)
    except ValueError:
        raise BadOrderError("The body is not JSON.") from None
    if not isinstance(data, dict):
        raise BadOrderError("The body is not a JSON object.")
    for name in ("number", "customer", "product"):
        text = data.get(name)
        if not isinstance(text, str) or not 0 < len(text) <= 40 or not text.isprintable():
            raise BadOrderError(f"{name!r} is a printable text of 1 to 40 characters.")
    quantity = data.get("quantity")
    if type(quantity) is not int or not 0 < quantity <= MAX_QUANTITY:
        raise BadOrderError(f"'quantity' is a number from 1 to {MAX_QUANTITY}.")
    return checkout.Wish(
        number=data["number"],
        customer=data["customer"],
        product=data["product"],
        quantity=quantity,
    )


def refuse(status: int, error: str) -> JsonResponse:
    """
    Return an error as JSON.
    """
    return JsonResponse({"error": error}, status=status)
