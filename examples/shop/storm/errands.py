"""
What customers want of the shop, and how a request for it looks each time it is sent.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

ORDER = "order"
CLAIM = "claim"
SIGN_UP = "sign-up"

PARTNERS = ("north", "south")
# Over the 2.5 MB up to which Django keeps an upload in memory.
PHOTO_BYTES = 3_000_000


@dataclass(frozen=True, kw_only=True)
class Errand:
    """
    One thing that a customer wants, whatever the number of requests for it. Immutable.
    """

    kind: str
    number: str
    path: str
    key: str
    content: Mapping[str, Any]
    photo: bytes = field(default=b"", repr=False)
    partner: str | None = None

    def request(self, tokens: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
        """
        Return headers and body of one attempt.

        The key is the same in each of them: that is all that a client has to do. The rest
        is made anew, as client libraries do it: an upload gets another boundary.
        """
        content_type, body = self._encode()
        headers = {"Content-Type": content_type, "Idempotency-Key": self.key}
        if self.partner is not None:
            headers["Authorization"] = f"Token {tokens[self.partner]}"
        return headers, body

    def _encode(self) -> tuple[str, bytes]:
        if self.kind == ORDER:
            return "application/json", json.dumps(self.content).encode()
        if self.kind == SIGN_UP:
            return "application/x-www-form-urlencoded", urlencode(self.content).encode()
        boundary = uuid4().hex
        return f"multipart/form-data; boundary={boundary}", b"".join(self._parts(boundary))

    def _parts(self, boundary: str) -> Iterator[bytes]:
        start = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        for name, value in self.content.items():
            yield f'{start}{name}"\r\n\r\n{value}\r\n'.encode()
        yield f'{start}photo"; filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'.encode()
        yield self.photo
        yield f"\r\n--{boundary}--\r\n".encode()


def order_errands(orders: Sequence[Mapping[str, Any]]) -> list[Errand]:
    """
    Let a third of the orders come from the two partners, and the rest from the web.

    Each partner counts its keys from 1, so that both send the same keys.
    """
    errands = []
    for count, order in enumerate(orders):
        partner = {0: PARTNERS[0], 3: PARTNERS[1]}.get(count % 6)
        errands.append(order_errand(order, partner=partner, key=str(count // 6 + 1)))
    return errands


def order_errand(order: Mapping[str, Any], *, partner: str | None, key: str) -> Errand:
    """
    Return one order; from the web the key is made of its number.
    """
    if partner is None:
        key = f"order-{order['number']}"
    return Errand(
        kind=ORDER,
        number=order["number"],
        path="/orders/" if partner is None else "/partners/orders/",
        key=key,
        content=order,
        partner=partner,
    )


def claim_errands(count: int, seed: int) -> list[Errand]:
    """
    Return claims, each with a photo of its own.
    """
    return [claim_errand(f"C-{number:03}", seed) for number in range(1, count + 1)]


def claim_errand(number: str, seed: int) -> Errand:
    """
    Return a claim with a photo that is drawn from the seed.
    """
    return Errand(
        kind=CLAIM,
        number=number,
        path="/claims/",
        key=f"claim-{number}",
        content={"number": number},
        photo=draw_photo(f"{seed}:{number}"),
    )


def sign_up_errands(count: int) -> list[Errand]:
    """
    Return sign-ups for the newsletter.
    """
    return [
        Errand(
            kind=SIGN_UP,
            number=f"visitor-{number}@example.com",
            path="/newsletter/",
            key=f"sign-up-{number}",
            content={"address": f"visitor-{number}@example.com"},
        )
        for number in range(1, count + 1)
    ]


def draw_photo(seed: str) -> bytes:
    """
    Return as many bytes as a photo has; nobody looks at it.
    """
    return random.Random(seed).randbytes(PHOTO_BYTES)


def digest_of(content: bytes) -> str:
    """
    Return by what a photo is known again.
    """
    return hashlib.sha256(content).hexdigest()
