"""
What became of a request that was sent several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar, cast

from dotmac_tasks.testing.death import DeathPoint

__all__ = ["Attempt", "AttemptOutcome", "SendReport"]

R = TypeVar("R")


class AttemptOutcome(StrEnum):
    """
    What became of one sending.
    """

    RAN = "ran"
    """The key was claimed, and the work ran."""
    REPLAYED = "replayed"
    """It got the recorded outcome."""
    REFUSED = "refused"
    """The library answered, and the work did not run; `problem` says why."""
    UNPROTECTED = "unprotected"
    """The work ran, and no retry will be recognised; `reason` says why."""
    TURNED_AWAY = "turned_away"
    """Somebody else answered that it may not be, before the library saw it."""
    DIED = "died"
    """The worker died over it."""


@dataclass(frozen=True, kw_only=True)
class Attempt(Generic[R]):
    """
    One sending of a request, or one call of a function; immutable.

    Attributes:
        number: Its place in the report, from 1.
        outcome: What became of it.
        ran: Whether the work ran.
        answered: Whether there is a response: a worker that died sends none, and a
            function may raise instead.
        response: The response, or the function's result.
        status: The status code of a response.
        problem: Why it was refused: the last part of the problem's type, such as
            ``key-reused``, or the name of the error that a function raised.
        reason: What else is to be said of it.
        advice: What to do about it.
        key: The client's key, as the response repeats it.
        stored_key: The key that was claimed, where that is known.
    """

    number: int
    outcome: AttemptOutcome
    ran: bool
    answered: bool = False
    response: R | None = field(default=None, repr=False)
    status: int | None = None
    problem: str | None = None
    reason: str = ""
    advice: str = ""
    key: str | None = field(default=None, repr=False)
    stored_key: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """
        Say it in a line.
        """
        parts = [f"{self.number}. {_WORDS[self.outcome]}"]
        shown = [str(item) for item in (self.status, self.problem) if item is not None]
        if shown:
            parts.append(f"({' '.join(shown)})")
        return " ".join(parts) + (f": {self.reason}" if self.reason else "")


_WORDS = {
    AttemptOutcome.RAN: "ran",
    AttemptOutcome.REPLAYED: "got the recorded answer",
    AttemptOutcome.REFUSED: "was refused",
    AttemptOutcome.UNPROTECTED: "ran unprotected",
    AttemptOutcome.TURNED_AWAY: "was turned away",
    AttemptOutcome.DIED: "got no answer",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class SendReport(Generic[R]):
    """
    What became of a request that was sent several times; immutable.

    Attributes:
        attempts: Each sending, in the order in which they were sent; of those that
            were sent at once, in no order that means anything.
        runs: How often the work ran: by the test's own counter where it gave
            one, else by what the storage and the answers show.
        death: Where the worker was to die.
    """

    attempts: Sequence[Attempt[R]]
    runs: int
    death: DeathPoint | None = None

    @property
    def responses(self) -> list[R]:
        """
        What was answered, without those who got no answer.
        """
        return [cast("R", item.response) for item in self.attempts if item.answered]

    @property
    def replayed(self) -> list[Attempt[R]]:
        """
        Those who got the recorded outcome.
        """
        return self._of(AttemptOutcome.REPLAYED)

    @property
    def refused(self) -> list[Attempt[R]]:
        """
        Those whom the library refused.
        """
        return self._of(AttemptOutcome.REFUSED)

    @property
    def problems(self) -> list[str]:
        """
        Why they were refused, in the order of `refused`.
        """
        return [item.problem or "" for item in self.refused]

    @property
    def unprotected(self) -> list[Attempt[R]]:
        """
        Those whose retries nobody would recognise, run or turned away.
        """
        return [*self._of(AttemptOutcome.UNPROTECTED), *self._of(AttemptOutcome.TURNED_AWAY)]

    @property
    def died(self) -> bool:
        """
        Whether the worker died where it was to.
        """
        return bool(self._of(AttemptOutcome.DIED))

    def assert_ran_once(self) -> None:
        """
        Check that the work ran once, and that the library saw at least one of them.

        Raises:
            AssertionError: It did not; the message says what happened, and what to do.
        """
        __tracebackhide__ = True
        if self.runs != 1:
            raise AssertionError(f"The work ran {_times(self.runs)} instead of once.\n{self}")
        if len(self.unprotected) == len(self.attempts):
            # Whoever turned the others away will not do so for ever.
            raise AssertionError(f"The work ran once, but nothing protected it.\n{self}")

    def assert_replayed(self) -> None:
        """
        Check that the work ran once, and that everybody else got its recorded outcome.

        Raises:
            AssertionError: That is not so; the message says what happened, and what to do.
        """
        __tracebackhide__ = True
        self.assert_ran_once()
        others = [item for item in self.attempts if not item.ran]
        if len(others) != len(self.replayed) or not others:
            raise AssertionError(f"Not everybody got the recorded answer.\n{self}")

    def __str__(self) -> str:
        """
        Say what happened and what to do, on several lines.
        """
        lines = [f"Sent {_times(len(self.attempts))}; the work ran {_times(self.runs)}:"]
        lines += [f"  {item}" for item in self.attempts]
        lines += [f"What to do: {advice}" for advice in self._advise()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """
        Say what happened in a line.
        """
        told = "; ".join(str(item) for item in self.attempts)
        return f"<SendReport: {self.runs} runs: {told}>"

    def _of(self, outcome: AttemptOutcome) -> list[Attempt[R]]:
        return [item for item in self.attempts if item.outcome is outcome]

    def _advise(self) -> list[str]:
        found = [item.advice for item in self.attempts]
        if self.death is not None and not self.died:
            found.append(
                f"The worker did not reach the point {self.death!r}, where it was to die: no "
                "claim of this test's manager came by there."
            )
        if self.runs == 0 and self.replayed:
            found.append(
                "Send a key that was not used before in this test, or call it with other "
                "arguments: this was the retry of something earlier."
            )
        if self.runs > 1:
            found += self._explain_second_run()
        return [advice for advice in dict.fromkeys(found) if advice]

    def _explain_second_run(self) -> list[str]:
        protected = [
            item for item in self.attempts if item.ran and item.outcome is AttemptOutcome.RAN
        ]
        if self.died and protected:
            return [
                "A worker that dies between the work and the record leaves no trace of the work, "
                "so that its retry runs it again. Hand downstream_key() to the system downstream, "
                'which then does it once, or refuse the retry with on_abandoned="refuse".'
            ]
        if len(protected) < 2:
            return []
        if len({item.key for item in protected}) > 1:
            return ["Send the same key each time; each of these had one of its own."]
        if len({item.stored_key for item in protected}) > 1:
            return [
                "Send it as the same user of the same tenant, or call it with the same arguments: "
                "a key counts for those only."
            ]
        return [
            "The first answer gave the key back, as a server error, an exception or "
            "'X-Idempotency-Store: no' do, so that the next one ran the work again."
        ]


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
