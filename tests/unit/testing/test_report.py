from __future__ import annotations

from typing import Any

import pytest

from dotmac_tasks.testing import Attempt, AttemptOutcome, SendReport


def attempt(number: int, outcome: AttemptOutcome, *, ran: bool = False, **facts: Any) -> Any:
    return Attempt[str](
        number=number, outcome=outcome, ran=ran, answered="response" in facts, **facts
    )


FIRST = attempt(1, AttemptOutcome.RAN, ran=True, status=201, response="a", key="k")
REPLAY = attempt(2, AttemptOutcome.REPLAYED, status=201, response="b", key="k")
REFUSAL = attempt(2, AttemptOutcome.REFUSED, status=422, problem="key-reused", response="c")
PLAIN = attempt(
    2, AttemptOutcome.UNPROTECTED, ran=True, response="d", reason="no key", advice="Send one."
)


def report(*attempts: Any, runs: int = 1) -> SendReport[str]:
    return SendReport(attempts=attempts, runs=runs)


def test_report_reads_well() -> None:
    """It says what happened, a line for each sending, and each piece of advice once."""
    shown = report(FIRST, PLAIN, PLAIN, REFUSAL, runs=3)
    assert str(shown) == (
        "Sent 4 times; the work ran 3 times:\n"
        "  1. ran (201)\n"
        "  2. ran unprotected: no key\n"
        "  2. ran unprotected: no key\n"
        "  2. was refused (422 key-reused)\n"
        "What to do: Send one."
    )
    assert repr(report(FIRST, REPLAY)) == (
        "<SendReport: 1 runs: 1. ran (201); 2. got the recorded answer (201)>"
    )


def test_keys_are_not_shown() -> None:
    """Neither the client's key nor a response is in the text of an attempt."""
    shown = repr(attempt(1, AttemptOutcome.RAN, ran=True, key="s3cret", response="s3cret"))
    assert "s3cret" not in shown


def test_parts_are_found() -> None:
    """Replays, refusals, problems and answers are had by themselves."""
    both = report(FIRST, REPLAY, REFUSAL, PLAIN)
    assert both.replayed == [REPLAY]
    assert both.refused == [REFUSAL]
    assert both.problems == ["key-reused"]
    assert both.unprotected == [PLAIN]
    assert both.responses == ["a", "b", "c", "d"]
    assert not both.died
    none = attempt(1, AttemptOutcome.RAN, ran=True, response=None)
    silent = attempt(2, AttemptOutcome.DIED)
    assert report(none, silent).responses == [None]
    assert report(none, silent).died


@pytest.mark.parametrize("runs", [0, 2])
def test_other_than_one_run_fails(runs: int) -> None:
    """Not once is as wrong as twice."""
    with pytest.raises(AssertionError, match=f"The work ran {runs} times instead of once"):
        report(FIRST, REPLAY, runs=runs).assert_ran_once()


def test_replay_is_asked_of_everybody_else() -> None:
    """A refusal, or nobody else at all, is no replay; nor is a second run."""
    report(FIRST, REPLAY).assert_replayed()
    for wrong in (report(FIRST, REPLAY, REFUSAL), report(FIRST)):
        with pytest.raises(AssertionError, match="Not everybody got the recorded answer"):
            wrong.assert_replayed()
    with pytest.raises(AssertionError, match="instead of once"):
        report(FIRST, REPLAY, runs=2).assert_replayed()
