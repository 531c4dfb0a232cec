"""
Whether what happened is what the guarantees allow, run for run and answer for answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from support.soak.faults import COOLDOWN, STORAGE_TIMEOUT, Fault, Kill
from support.soak.ledger import WorkRun
from support.soak.traffic import KINDS, Exchange

# How long after a fault a request may still feel it: the breaker's rest, a call that was under
# way, a machine that is busy.
_AFTERMATH = COOLDOWN + 2 * STORAGE_TIMEOUT + 1.0

Account = tuple[str, str]


@dataclass
class Verdict:
    """
    What an audit found; filled by one thread.

    Attributes:
        answers: How many requests got what.
        runs: How often the work ran.
        accounts: How many keys there were.
        excess: Second and later runs of a key, by the cause that the guarantees allow.
        findings: What they do not allow, in words.
    """

    answers: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    accounts: int = 0
    excess: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """
        Tell whether nothing was found.
        """
        return not self.findings


def audit(
    runs: Sequence[WorkRun],
    exchanges: Sequence[Exchange],
    faults: Sequence[Fault],
    kills: Sequence[Kill],
    *,
    strict: bool,
) -> Verdict:
    """
    Judge all that happened on one site.

    Args:
        runs: What the work wrote down.
        exchanges: What the clients got.
        faults: When something was wrong.
        kills: Which workers were killed.
        strict: Whether the project rejects without a storage and refuses what was abandoned; then
            a second run is allowed only behind a failure of the work and a loss of data.
    """
    verdict = Verdict(runs=len(runs))
    by_account = _group(runs)
    verdict.accounts = len(by_account)
    verdict.answers.update(exchange.kind for exchange in exchanges)
    for account, of_key in by_account.items():
        _judge_runs(verdict, account, of_key, faults, kills, strict=strict)
    _judge_fences(verdict, runs, faults)
    _judge_answers(verdict, exchanges, {run.id: run for run in runs}, faults, kills)
    _judge_replays(verdict, exchanges, faults)
    if strict and verdict.answers["unprotected"]:
        verdict.findings.append("a strict project ran something unprotected")
    return verdict


def find_cause(
    earlier: WorkRun,
    later: WorkRun,
    faults: Iterable[Fault],
    kills: Iterable[Kill],
    *,
    strict: bool,
) -> str | None:
    """
    Return why a key may have run again, or None where it may not.
    """
    if earlier.status >= 500:
        return "released by a failure"
    if any(
        fault.loses_data and fault.began <= later.at and fault.ended >= earlier.at
        for fault in faults
    ):
        return "data lost"
    if strict:
        return None
    if later.fence == 0:
        return "unprotected"
    if earlier.fence == 0:
        return "unprotected before"
    if any(kill.pid == earlier.pid and earlier.at <= kill.at <= later.at for kill in kills):
        return "abandoned by a kill"
    if earlier.settled is False:
        return "handed on and not settled in time"
    return None


def _group(runs: Iterable[WorkRun]) -> Mapping[Account, list[WorkRun]]:
    groups: dict[Account, list[WorkRun]] = defaultdict(list)
    for run in runs:
        if run.account is not None:
            groups[run.account].append(run)
    return groups


def _judge_runs(
    verdict: Verdict,
    account: Account,
    runs: Sequence[WorkRun],
    faults: Sequence[Fault],
    kills: Sequence[Kill],
    *,
    strict: bool,
) -> None:
    for run in runs:
        if run.fence == 0 and not _is_troubled(run.at, run.at, faults):
            verdict.findings.append(f"{run.id} ran unprotected, and nothing was wrong")
    for earlier, later in pairwise(runs):
        cause = find_cause(earlier, later, faults, kills, strict=strict)
        if cause is None:
            verdict.findings.append(f"{account}: {later.id} ran although {earlier.id} had run")
        else:
            verdict.excess[cause] += 1


def _judge_fences(verdict: Verdict, runs: Iterable[WorkRun], faults: Sequence[Fault]) -> None:
    """
    No two claims have one fencing token, unless the counter was lost between them.
    """
    seen: dict[int, WorkRun] = {}
    for run in runs:
        if run.fence == 0:
            continue
        other = seen.get(run.fence)
        if other is not None and not _has_lost(other.at, run.at, faults):
            verdict.findings.append(f"{other.id} and {run.id} have one fencing token")
        seen[run.fence] = run


def _judge_answers(
    verdict: Verdict,
    exchanges: Iterable[Exchange],
    runs: Mapping[str, WorkRun],
    faults: Sequence[Fault],
    kills: Sequence[Kill],
) -> None:
    for exchange in exchanges:
        kind, run = exchange.kind, runs.get(exchange.run)
        what = f"{exchange.order.account} got {kind!r} {exchange.detail}"
        if kind not in KINDS:
            verdict.findings.append(f"{what}, which nobody may get")
        elif exchange.run and (run is None or run.account != exchange.order.account):
            verdict.findings.append(f"{what} of {exchange.run}, which is not its own")
        elif kind == "cut off" and not _was_killed(exchange, kills):
            verdict.findings.append(f"{what}, and its worker lived")
        elif kind in ("unprotected", "refused") and not _is_troubled(
            exchange.began, exchange.ended, faults
        ):
            verdict.findings.append(f"{what}, and nothing was wrong")
        elif kind in ("ran", "unprotected") and exchange.order.key is not None:
            assert run is not None
            if (run.fence == 0) != (kind == "unprotected"):
                verdict.findings.append(f"{what}, and its run {run.id} says otherwise")


def _judge_replays(
    verdict: Verdict, exchanges: Iterable[Exchange], faults: Sequence[Fault]
) -> None:
    """
    What was recorded once is what everybody gets, until the record is lost.
    """
    replays: dict[Account, list[Exchange]] = defaultdict(list)
    for exchange in exchanges:
        if exchange.kind == "replayed" and exchange.order.account is not None:
            replays[exchange.order.account].append(exchange)
    for account, got in replays.items():
        for one, other in pairwise(sorted(got, key=lambda each: each.ended)):
            began = min(one.began, other.began)
            if one.run != other.run and not _has_lost(began, other.ended, faults):
                verdict.findings.append(f"{account} was told of {one.run} and of {other.run}")


def _is_troubled(began: float, ended: float, faults: Iterable[Fault]) -> bool:
    return any(fault.began <= ended and began <= fault.ended + _AFTERMATH for fault in faults)


def _has_lost(began: float, ended: float, faults: Iterable[Fault]) -> bool:
    return any(
        fault.loses_data and fault.began <= ended and began <= fault.ended for fault in faults
    )


def _was_killed(exchange: Exchange, kills: Iterable[Kill]) -> bool:
    return any(
        kill.pid == exchange.pid and exchange.began <= kill.replaced and kill.at <= exchange.ended
        for kill in kills
    )
