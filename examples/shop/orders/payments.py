"""
The shop's side of the payment gateway.
"""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

from django.conf import settings

from orders.models import Order

TIMEOUT = 20.0


class PaymentFailedError(Exception):
    """
    The gateway failed, or nobody knows whether it charged: ask again with the same key.
    """


def charge(order: Order, key: str) -> str:
    """
    Charge the order and return the id of the charge; the same one for the same key.

    Raises:
        PaymentFailedError: No answer that says "charged" came back.
    """
    gateway = urlsplit(settings.GATEWAY_URL)
    connection = http.client.HTTPConnection(gateway.netloc, timeout=TIMEOUT)
    body = json.dumps({"order": order.number, "amount_cents": order.total_cents})
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    try:
        connection.request("POST", "/charges", body, headers)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise PaymentFailedError("The payment gateway hung up.") from error
    finally:
        connection.close()
    if answer.status != 201:
        raise PaymentFailedError(f"The payment gateway answered {answer.status}.")
    charge_id: str = json.loads(content)["id"]
    return charge_id
