from __future__ import annotations

import pytest
from django.test import Client

from dotmac_tasks.errors import ClaimLostError, IdempotencyError
from dotmac_tasks_django import defer_operation

KEY = {"Idempotency-Key": "key-1"}


def test_deferring_too_late_says_what_is_the_case(client: Client) -> None:
    """After the response, as in on_commit of a test case, nobody else is said to have the key."""
    response = client.post("/pay/", headers=KEY)
    with pytest.raises(IdempotencyError, match="TransactionTestCase") as caught:
        defer_operation(response.wsgi_request)
    assert not isinstance(caught.value, ClaimLostError)
    again = client.post("/pay/", headers=KEY)
    assert again["Idempotent-Replayed"] == "true"


def test_request_without_a_key_may_be_late(client: Client) -> None:
    """Without a key there is nothing to hand on, at any time."""
    assert defer_operation(client.post("/pay/").wsgi_request) is None
