"""
Impatient customers: every order is sent several times at once, until it has an answer.
"""

from __future__ import annotations

import hashlib
import heapq
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

FIRST = "first answers"
REPLAYED = "replays"
IN_PROGRESS = "in progress"
LOST = "lost answers"
TRY_AGAIN = "try again"
CUT_OFF = "cut off"
REFUSED = "refused"
FINAL = (FIRST, REPLAYED, REFUSED)

# How long a customer waits before trying again, in seconds, if the shop does not say.
PATIENCE = {IN_PROGRESS: 0.5, TRY_AGAIN: 0.3, CUT_OFF: 0.3}
ANSWER_LIMIT = 30.0
LOST_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Sending:
    """
    One of the copies in which an order is sent. Immutable.
    """

    order: dict[str, Any]
    copy: int
    is_lost: bool

    @property
    def number(self) -> str:
        """
        Return the number of the order.
        """
        return str(self.order["number"])


@dataclass(frozen=True, kw_only=True)
class Answer:
    """
    What became of one attempt. Immutable.
    """

    kind: str
    seconds: float
    body: bytes = b""
    retry_after: float | None = None


@dataclass(kw_only=True)
class Tally:
    """
    What the customers saw. Belongs to the storm, under its lock, until it is over.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, set[str]] = field(default_factory=dict)
    refusals: set[str] = field(default_factory=set)

    @property
    def attempts(self) -> int:
        """
        Return how many requests were sent.
        """
        return self.kinds.total()

    def add(self, sending: Sending, answer: Answer) -> None:
        """
        Count one attempt.
        """
        self.kinds[answer.kind] += 1
        self.seconds.setdefault(answer.kind, []).append(answer.seconds)
        if answer.kind in (FIRST, REPLAYED):
            digest = hashlib.sha256(answer.body).hexdigest()
            self.answers.setdefault(sending.number, set()).add(digest)
        elif answer.kind == REFUSED:
            self.refusals.add(answer.body.decode(errors="replace"))


class Storm:
    """
    Sends orders from many threads. Instances may be shared between threads.

    ``_changed`` guards ``_due``, ``_open``, ``_tally``, ``_sequence`` and ``_is_stopped``.
    A copy that has to wait does so in the queue and not in a thread.
    """

    def __init__(
        self, url: str, orders: Sequence[dict[str, Any]], *, copies: int, threads: int, seed: int
    ) -> None:
        """
        Prepare to send every order in ``copies`` copies.
        """
        self._netloc = urlsplit(url).netloc
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Sending]] = []
        self._sequence = 0
        self._is_stopped = False
        self._tally = Tally()
        draw = random.Random(seed)
        now = time.monotonic()
        for order in orders:
            for copy in range(copies):
                is_last = copy == copies - 1
                is_lost = not is_last and draw.random() < LOST_SHARE
                self._put(now, Sending(order=order, copy=copy, is_lost=is_lost))
        self.sendings = self._open = len(self._due)
        self._threads = [
            threading.Thread(target=self._work, name=f"customer-{count}", daemon=True)
            for count in range(threads)
        ]

    def start(self) -> None:
        """
        Let it rain.
        """
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """
        Send nothing more; what is under way is not waited for.
        """
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def done(self) -> int:
        """
        Return how many copies need not be sent again.
        """
        with self._changed:
            return self.sendings - self._open

    def wait(self, seconds: float) -> bool:
        """
        Wait for the end of the storm; answer whether it has come.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, seconds)

    def tally(self) -> Tally:
        """
        Return what was seen. Call it when the storm is over.
        """
        with self._changed:
            return self._tally

    def _put(self, due: float, sending: Sending) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (due, self._sequence, sending))

    def _work(self) -> None:
        while (sending := self._next()) is not None:
            answer = self._attempt(sending)
            with self._changed:
                self._tally.add(sending, answer)
                if answer.kind in FINAL or answer.kind == LOST:
                    self._open -= 1
                else:
                    pause = answer.retry_after or PATIENCE[answer.kind]
                    self._put(time.monotonic() + pause, sending)
                self._changed.notify_all()

    def _next(self) -> Sending | None:
        with self._changed:
            while self._open and not self._is_stopped:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait)
            return None

    def _attempt(self, sending: Sending) -> Answer:
        connection = http.client.HTTPConnection(self._netloc, timeout=ANSWER_LIMIT)
        began = time.monotonic()
        try:
            connection.request(
                "POST",
                "/orders/",
                json.dumps(sending.order),
                # One key per order, the same in each copy: that is all a client has to do.
                {"Content-Type": "application/json", "Idempotency-Key": f"order-{sending.number}"},
            )
            if sending.is_lost:
                return Answer(kind=LOST, seconds=time.monotonic() - began)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            return Answer(kind=CUT_OFF, seconds=time.monotonic() - began)
        finally:
            connection.close()
        retry_after = response.getheader("Retry-After")
        return Answer(
            kind=kind_of(response),
            seconds=time.monotonic() - began,
            body=body,
            retry_after=float(retry_after) if retry_after else None,
        )


def kind_of(response: http.client.HTTPResponse) -> str:
    """
    Put an answer of the shop into its drawer.
    """
    if response.getheader("Idempotent-Replayed") == "true":
        return REPLAYED
    if response.status == 201:
        return FIRST
    if response.status == 202:
        return IN_PROGRESS
    if response.status >= 500:
        return TRY_AGAIN
    return REFUSED
