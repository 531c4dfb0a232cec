"""
What the shop is asked after the storm, about keys that it has answered already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from storm.clients import REPLAYED, Answer, insist
from storm.errands import CLAIM, ORDER, PARTNERS, Errand, draw_photo
from storm.processes import Stack
from storm.proof import Check

# A worker whose storage was away looks for it again after two seconds at the latest, and a
# worker that died holds its keys for three.
PATIENCE = 15.0


class Questions:
    """
    Asks the shop one thing after the other. One owner thread.
    """

    def __init__(self, stack: Stack, tokens: Mapping[str, str], errands: Sequence[Errand]) -> None:
        """
        Ask about these errands, which the storm has seen to.
        """
        self._stack = stack
        self._tokens = dict(tokens)
        self._claim = next(errand for errand in errands if errand.kind == CLAIM)
        # One order of each partner; the first ones have the same key.
        self._orders = {errand.partner: errand for errand in reversed(errands) if errand.partner}

    def ask_all(self) -> list[Check]:
        """
        Ask everything; a new token and a lost permission come last, since they stay.
        """
        # In a very small storm the second one has ordered nothing.
        both = [self.ask_both_partners()] if len(self._orders) == len(PARTNERS) else []
        return [
            *both,
            self.send_another_photo(),
            self.send_nonsense_twice(),
            self.rotate_the_token(),
            self.revoke_the_permission(),
        ]

    def ask_both_partners(self) -> Check:
        """
        Send the key that both partners have used: each gets its own order.
        """
        pairs = [(errand, self._send(errand)) for errand in self._orders.values()]
        return Check(
            claim="Two partners, one key",
            found="each gets its own order",
            culprits=[
                f"{errand.partner}: {describe(answer)}"
                for errand, answer in pairs
                if not is_replay_of(errand, answer)
            ],
        )

    def send_another_photo(self) -> Check:
        """
        Send a claim again, with its own photo and with another one.
        """
        same = self._send(self._claim)
        other = self._send(replace(self._claim, photo=draw_photo("another")))
        return Check(
            claim="A photo again, and another",
            found="the same is replayed, the other gets 422",
            culprits=unexpected(same.kind == REPLAYED, same)
            + unexpected(other.status == 422, other),
        )

    def send_nonsense_twice(self) -> Check:
        """
        Send an order with mistakes twice: the answer is the same, and the second a replay.
        """
        nonsense = Errand(
            kind=ORDER,
            number="nonsense",
            path="/partners/orders/",
            key="nonsense",
            content={"number": "nonsense", "quantity": 0},
            partner=PARTNERS[0],
        )
        first, again = self._send(nonsense), self._send(nonsense)
        is_same = again.kind == REPLAYED and (again.status, again.body) == (400, first.body)
        return Check(
            claim="A wrong order, twice",
            found="400, and the same 400 replayed",
            culprits=unexpected(first.status == 400, first) + unexpected(is_same, again),
        )

    def rotate_the_token(self) -> Check:
        """
        Give a partner a new token: the old one is void, its keys are still its keys.
        """
        errand = self._orders[PARTNERS[0]]
        fresh = self._stack.manage("partner", PARTNERS[0]).strip()
        old = self._send(errand)
        self._tokens[PARTNERS[0]] = fresh
        new = self._send(errand)
        return Check(
            claim="A partner's new token",
            found="the old one 401, the new the stored order",
            culprits=unexpected(old.status == 401, old)
            + unexpected(is_replay_of(errand, new), new),
        )

    def revoke_the_permission(self) -> Check:
        """
        Take a partner's permission away: its stored orders are not for it any more.
        """
        self._stack.manage("partner", PARTNERS[0], "--revoke")
        answer = self._send(self._orders[PARTNERS[0]])
        return Check(
            claim="A partner shut out",
            found="403, and not the stored order",
            culprits=unexpected(answer.status == 403, answer),
        )

    def _send(self, errand: Errand) -> Answer:
        return insist(self._stack.shop_url, errand, self._tokens, seconds=PATIENCE)


def is_replay_of(errand: Errand, answer: Answer) -> bool:
    """
    Tell whether this is the stored answer to this order.
    """
    return answer.kind == REPLAYED and json.loads(answer.body).get("number") == errand.number


def unexpected(is_right: bool, answer: Answer) -> list[str]:
    """
    Return what speaks against an answer.
    """
    return [] if is_right else [describe(answer)]


def describe(answer: Answer) -> str:
    """
    Say in short what came.
    """
    return f"{answer.status} ({answer.kind})"
