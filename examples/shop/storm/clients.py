"""
Impatient customers: every errand is sent several times at once, until it has an answer.
"""

from __future__ import annotations

import hashlib
import heapq
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from storm.errands import Errand

FIRST = "first answers"
REPLAYED = "replays"
UNPROTECTED = "unprotected"
IN_PROGRESS = "in progress"
LOST = "lost answers"
TRY_AGAIN = "try again"
TURNED_AWAY = "turned away"
CUT_OFF = "cut off"
REFUSED = "refused"
FINAL = (FIRST, REPLAYED, UNPROTECTED, REFUSED)

# How long a customer waits before trying again, in seconds, if the shop does not say.
PATIENCE = {IN_PROGRESS: 0.5, TRY_AGAIN: 0.3, TURNED_AWAY: 1.0, CUT_OFF: 0.3}
ANSWER_LIMIT = 30.0
LOST_SHARE = 0.25
# So many errands arrive in a second, each in all its copies at once.
ARRIVALS = 40


@dataclass(frozen=True, kw_only=True)
class Sending:
    """
    One of the copies in which an errand is sent. Immutable.
    """

    errand: Errand
    is_lost: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """
    What became of one attempt. Immutable.
    """

    kind: str
    began: float
    ended: float
    status: int = 0
    body: bytes = b""
    retry_after: float | None = None

    @property
    def seconds(self) -> float:
        """
        Return how long it took.
        """
        return self.ended - self.began


@dataclass(kw_only=True)
class Tally:
    """
    What customers saw of one kind of errand.

    Belongs to the storm, under its lock, until it is over.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    spans: list[tuple[float, float]] = field(default_factory=list)
    answers: dict[str, set[str]] = field(default_factory=dict)
    refusals: set[str] = field(default_factory=set)

    @property
    def attempts(self) -> int:
        """
        Return how many requests were sent.
        """
        return self.kinds.total()

    def longest(self, since: float, until: float) -> float:
        """
        Return the longest that an attempt took which was under way between two instants.
        """
        return max(
            (ended - began for began, ended in self.spans if began < until and ended > since),
            default=0.0,
        )

    def add(self, errand: Errand, answer: Answer) -> None:
        """
        Count one attempt.
        """
        self.kinds[answer.kind] += 1
        self.seconds.setdefault(answer.kind, []).append(answer.seconds)
        self.spans.append((answer.began, answer.ended))
        if answer.kind in (FIRST, REPLAYED, UNPROTECTED):
            digest = hashlib.sha256(answer.body).hexdigest()
            self.answers.setdefault(errand.number, set()).add(digest)
        elif answer.kind == REFUSED:
            self.refusals.add(answer.body.decode(errors="replace"))


class Storm:
    """
    Sends errands from many threads. Instances may be shared between threads.

    ``_changed`` guards ``_due``, ``_open``, ``_tallies``, ``_sequence`` and ``_is_stopped``.
    A copy that has to wait does so in the queue and not in a thread.
    """

    def __init__(
        self,
        url: str,
        errands: Sequence[Errand],
        tokens: Mapping[str, str],
        *,
        copies: int,
        threads: int,
        seed: int,
    ) -> None:
        """
        Prepare to send every errand in ``copies`` copies; partners use their tokens.
        """
        self._url = url
        self._tokens = tokens
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Sending]] = []
        self._sequence = 0
        self._is_stopped = False
        self._tallies = {errand.kind: Tally() for errand in errands}
        draw = random.Random(seed)
        now = time.monotonic()
        for place, errand in enumerate(errands):
            for copy in range(copies):
                is_last = copy == copies - 1
                is_lost = not is_last and draw.random() < LOST_SHARE
                self._put(now + place / ARRIVALS, Sending(errand=errand, is_lost=is_lost))
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

    def tallies(self) -> dict[str, Tally]:
        """
        Return what was seen of each kind of errand. Call it when the storm is over.
        """
        with self._changed:
            return self._tallies

    def _put(self, due: float, sending: Sending) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (due, self._sequence, sending))

    def _work(self) -> None:
        while (sending := self._next()) is not None:
            answer = send(self._url, sending.errand, self._tokens, is_lost=sending.is_lost)
            with self._changed:
                self._tallies[sending.errand.kind].add(sending.errand, answer)
                if answer.kind in FINAL or answer.kind == LOST:
                    self._open -= 1
                else:
                    self._put(time.monotonic() + pause_after(answer), sending)
                self._changed.notify_all()

    def _next(self) -> Sending | None:
        with self._changed:
            while self._open and not self._is_stopped:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(wait)
            return None


def send(url: str, errand: Errand, tokens: Mapping[str, str], *, is_lost: bool = False) -> Answer:
    """
    Send a request once; a customer whose answer is lost hangs up before it comes.
    """
    headers, body = errand.request(tokens)
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=ANSWER_LIMIT)
    began = time.monotonic()
    try:
        connection.request("POST", errand.path, body, headers)
        if is_lost:
            return Answer(kind=LOST, began=began, ended=time.monotonic())
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException):
        return Answer(kind=CUT_OFF, began=began, ended=time.monotonic())
    finally:
        connection.close()
    retry_after = response.getheader("Retry-After")
    return Answer(
        kind=kind_of(response),
        began=began,
        ended=time.monotonic(),
        status=response.status,
        body=content,
        retry_after=float(retry_after) if retry_after else None,
    )


def insist(url: str, errand: Errand, tokens: Mapping[str, str], *, seconds: float) -> Answer:
    """
    Send a request as often as the shop says "come back", for at most so long.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = send(url, errand, tokens)
        if answer.kind in FINAL or time.monotonic() > deadline:
            return answer
        time.sleep(pause_after(answer))


def pause_after(answer: Answer) -> float:
    """
    Return how long to wait before the next attempt.
    """
    return answer.retry_after or PATIENCE[answer.kind]


def kind_of(response: http.client.HTTPResponse) -> str:
    """
    Put an answer of the shop into its drawer.
    """
    if response.getheader("Idempotent-Replayed") == "true":
        return REPLAYED
    if response.getheader("X-Idempotency-Status") == "unprotected":
        return UNPROTECTED
    if response.status == 201:
        return FIRST
    if response.status == 202:
        return IN_PROGRESS
    if response.status == 503:
        return TURNED_AWAY
    if response.status >= 500:
        return TRY_AGAIN
    return REFUSED
