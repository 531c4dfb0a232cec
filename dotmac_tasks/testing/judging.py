"""
What became of one sending, by its answer and by what it claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import IdempotencyError
from dotmac_tasks.http.answers import PROBLEM_PREFIX, REPLAYED, STILL_RUNNING, UNPROTECTED
from dotmac_tasks.models import ClaimOutcome
from dotmac_tasks.reconciliation import Decision
from dotmac_tasks.testing.report import Attempt, AttemptOutcome
from dotmac_tasks.testing.responses import ResponseFacts, read_request, read_response
from dotmac_tasks.testing.storage import GRANTED, SeenClaim

__all__ = ["Evidence", "judge_error", "judge_result"]

R = TypeVar("R")

# Without a trace of the library, these say that the work was not begun.
_TURNED_AWAY = frozenset({401, 403, 404, 405, 429})

# The answer of 202; that of 409 is a problem document.
_RUNNING = {"status": "in_progress", "message": STILL_RUNNING}

# What it comes to for a retry that has asked what became of abandoned work.
_DECIDED: dict[str | None, ClaimOutcome] = {
    Decision.FOUND: ClaimOutcome.FINISHED,
    Decision.FAILED: ClaimOutcome.FINISHED,
    Decision.ASK_PERSON: ClaimOutcome.UNRESOLVED,
}

_PROBLEM_ADVICE = {
    "key-reused": (
        "Send the same method, path and body each time. What changes by itself, such as a time, "
        "is left out with @idempotent(fingerprint=...)."
    ),
    "unauthenticated": "Sign in before sending; ANONYMOUS says that only known callers have keys.",
    "invalid-key": "Send another key; the detail of the problem says what is wrong with it.",
    "missing-key": "Send a key; this view asks for one.",
    "not-replayable": (
        "The work is done and its answer is not kept: it is a stream, or larger than "
        "MAX_RESPONSE_BYTES."
    ),
}


class Evidence(NamedTuple):
    """
    What is known of one sending besides its answer.

    Attributes:
        claims: What it claimed, as far as that is known.
        is_ours: Whether this test's manager has seen any claim at all.
        config: The settings of this test's manager.
        where: What to check where a request with a key went past the library.
        decision: What a callback said of the abandoned work that it claimed, if it did.
    """

    claims: Sequence[SeenClaim]
    is_ours: bool
    config: TasksConfig
    where: str
    decision: str | None = None

    @property
    def reply(self) -> ClaimOutcome | None:
        """
        What its first operation was answered in the end; None where it claimed nothing.
        """
        if self.decision in _DECIDED:
            return _DECIDED[self.decision]
        replies = [
            claim.reply.outcome
            for claim in self.claims
            if claim.request.owner == self.claims[0].request.owner
        ]
        return replies[-1] if replies else None

    @property
    def stored_key(self) -> str | None:
        """
        The key of its first operation.
        """
        return self.claims[0].request.key if self.claims else None


def judge_error(number: int, error: IdempotencyError, evidence: Evidence) -> Attempt[Any]:
    """
    Judge a call of a function that ended with an error of the library.
    """
    ran = evidence.reply in GRANTED
    return Attempt(
        number=number,
        outcome=AttemptOutcome.RAN if ran else AttemptOutcome.REFUSED,
        ran=ran,
        problem=type(error).__name__,
        stored_key=evidence.stored_key,
    )


def judge_result(number: int, answer: R, evidence: Evidence) -> Attempt[R]:
    """
    Judge a response, or the result of a function.
    """
    facts = read_response(answer)
    status = key = None
    if facts is None:
        verdict = _judge_claims(evidence)
    else:
        status = facts.status
        key = facts.headers.get(evidence.config.idempotency_response_header.lower())
        verdict = _judge_response(facts, key, answer, evidence)
    return Attempt(
        number=number,
        outcome=verdict.outcome,
        ran=verdict.outcome in (AttemptOutcome.RAN, AttemptOutcome.UNPROTECTED),
        answered=True,
        response=answer,
        status=status,
        problem=verdict.problem,
        reason=verdict.reason,
        advice=verdict.advice,
        key=key,
        stored_key=evidence.stored_key,
    )


class _Verdict(NamedTuple):
    outcome: AttemptOutcome
    problem: str | None = None
    reason: str = ""
    advice: str = ""


def _judge_response(
    facts: ResponseFacts, key: str | None, answer: object, evidence: Evidence
) -> _Verdict:
    verdict = _judge_marks(facts, key, evidence)
    if verdict is not None:
        return verdict
    if not evidence.claims or _is_answer_missing(evidence):
        return _judge_unmarked(facts, answer, evidence)
    # A protected function that the view called, or marks that something has taken off.
    return _judge_claims(evidence)


def _is_answer_missing(evidence: Evidence) -> bool:
    """
    Tell whether the claim of a request, not that of a function, had an answer that did not come.
    """
    method, _, path = evidence.claims[0].request.operation_type.partition(" ")
    is_request = method in evidence.config.methods and path.startswith("/")
    return is_request and evidence.reply not in GRANTED


def _judge_claims(evidence: Evidence) -> _Verdict:
    if evidence.reply is None:
        return _Verdict(
            AttemptOutcome.UNPROTECTED,
            reason="it claimed no key of this test's manager",
            advice=evidence.where,
        )
    ran = evidence.reply in GRANTED
    return _Verdict(AttemptOutcome.RAN if ran else AttemptOutcome.REPLAYED)


def _judge_marks(facts: ResponseFacts, key: str | None, evidence: Evidence) -> _Verdict | None:
    """
    Judge by what the library puts on its answers; None where nothing is on this one.
    """
    kind = str(facts.document.get("type", ""))
    if kind.startswith(PROBLEM_PREFIX):
        problem = kind.removeprefix(PROBLEM_PREFIX)
        advice = _PROBLEM_ADVICE.get(problem, "")
        return _Verdict(AttemptOutcome.REFUSED, problem=problem, advice=advice)
    if key is None:
        return None
    if _is_marked(facts, REPLAYED):
        outcome = AttemptOutcome.REPLAYED
    elif facts.document == _RUNNING:
        return _Verdict(AttemptOutcome.REFUSED, problem="still-running")
    elif _is_marked(facts, UNPROTECTED):
        return _Verdict(
            AttemptOutcome.UNPROTECTED,
            reason="the storage was down",
            advice='To refuse requests during an outage, set on_storage_error="reject".',
        )
    else:
        outcome = AttemptOutcome.RAN
    if not evidence.is_ours:
        return _Verdict(
            outcome,
            reason="another manager than this test's protected it",
            advice=evidence.where,
        )
    return _Verdict(outcome)


def _is_marked(facts: ResponseFacts, mark: tuple[str, str]) -> bool:
    name, value = mark
    return facts.headers.get(name.lower()) == value


def _judge_unmarked(facts: ResponseFacts, answer: object, evidence: Evidence) -> _Verdict:
    if facts.status in _TURNED_AWAY:
        return _Verdict(
            AttemptOutcome.TURNED_AWAY,
            reason="before the library saw it",
            advice="Check the URL, the method, the login and the CSRF token of the request.",
        )
    reason, advice = _explain_unmarked(facts, answer, evidence)
    return _Verdict(AttemptOutcome.UNPROTECTED, reason=reason, advice=advice)


def _explain_unmarked(facts: ResponseFacts, answer: object, evidence: Evidence) -> tuple[str, str]:
    if evidence.claims:
        return (
            "its stored answer did not come from the library",
            "The view ran although its decorator had an answer to send, or something has taken the "
            "headers off. Have what is called for the method be what is decorated.",
        )
    config = evidence.config
    header, methods = config.idempotency_header, ", ".join(config.methods)
    request = read_request(answer)
    if request is None:
        return (
            "the library did not see it",
            f"Check that it has the {header} header, that its method is one of {methods}, and "
            f"that EXEMPT_PATHS leaves out its path. {evidence.where}",
        )
    if request.method.upper() not in config.methods:
        return (
            f"{request.method} is not covered",
            f"METHODS says which are: {methods}.",
        )
    if config.is_exempt(request.path):
        return f"{request.path} is exempt", "EXEMPT_PATHS says so; take it out there."
    if header.lower() not in request.headers:
        return f"it had no {header} header", f"Send a key in {header}, the same one each time."
    if config.anonymous == "ignore":
        return (
            "its key may be that of an unknown caller",
            f"Sign in before sending, since ANONYMOUS ignores such keys. {evidence.where}",
        )
    return "the library did not see it, although it had a key", _after_error(facts, evidence)


def _after_error(facts: ResponseFacts, evidence: Evidence) -> str:
    if facts.status < 500:
        return evidence.where
    return f"Find the server's error first: it may stand before the library. {evidence.where}"
