"""
Everything that happens to a service, at once: traffic of all kinds through every outage.

`make soak` does the same for as long as it is told to. The audit is tested here as well, since one
that finds nothing whatever happens would make the soak worthless.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.http_clients import Response
from support.soak.audit import Verdict, audit
from support.soak.faults import Fault, Kill
from support.soak.ledger import WorkRun, build_runs
from support.soak.pulse import Pulse
from support.soak.traffic import Exchange, Order, classify

ALICE = ("Token alice", "k")
ORDER = Order(*ALICE, "/quick", b"{}")

SECONDS = 60
SEED = 7


@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_counts_add_up_through_every_outage(tmp_path: Path) -> None:
    """
    After a minute of traffic and faults every run and every answer is one that is promised.
    """
    from support.redis_server import find_redis_server

    pytest.importorskip("redis")
    pytest.importorskip("django")
    if find_redis_server() is None:
        pytest.skip("redis-server is not installed")
    from support.soak.__main__ import describe
    from support.soak.run import run_soak

    outcomes = run_soak(SECONDS, SEED, tmp_path, lambda line: None)
    told = "\n".join(line for outcome in outcomes for line in describe(outcome))
    assert all(outcome.verdict.is_clean for outcome in outcomes), told
    for outcome in outcomes:
        verdict = outcome.verdict
        assert outcome.faults, told
        assert outcome.kills, told
        assert min(verdict.answers[kind] for kind in ("ran", "replayed", "failed")) > 0, told
    lenient, strict = outcomes
    assert lenient.verdict.excess["unprotected"] + lenient.verdict.excess["unprotected before"] > 0
    assert set(strict.verdict.excess) <= {"released by a failure"}, told


# The audit


def make_run(name: str, at: float, **facts: Any) -> WorkRun:
    facts = {"pid": 1, "account": ALICE, "fence": int(at), "ended": at, "status": 201, **facts}
    return WorkRun(name, at=at, **facts)


def make_exchange(kind: str, run: str, at: float, **facts: Any) -> Exchange:
    facts = {"order": ORDER, "pid": 1, "began": at, "ended": at, **facts}
    return Exchange(kind=kind, run=run, **facts)


def judge(
    runs: list[WorkRun],
    exchanges: list[Exchange] | None = None,
    *,
    faults: tuple[Fault, ...] = (),
    kills: tuple[Kill, ...] = (),
    strict: bool = False,
) -> Verdict:
    return audit(runs, exchanges or [], faults, kills, strict=strict)


def test_audit_allows_one_run() -> None:
    """One run of a key, its answer and its replay are nothing to speak of."""
    answers = [make_exchange("ran", "1-1", 1), make_exchange("replayed", "1-1", 2)]
    verdict = judge([make_run("1-1", 1)], answers)
    assert verdict.is_clean
    assert (verdict.runs, verdict.accounts, verdict.excess.total()) == (1, 1, 0)
    assert verdict.answers == {"ran": 1, "replayed": 1}


def test_audit_finds_a_second_run() -> None:
    """A key that ran twice without a reason is found."""
    verdict = judge([make_run("1-1", 1), make_run("1-2", 2)])
    assert verdict.findings == [f"{ALICE}: 1-2 ran although 1-1 had run"]


OUTAGE = Fault("hung", 0, 9)
LOSS = Fault("restarted empty", 1.5, 1.6, loses_data=True)

# What allows a second run: the first, the second, the faults, the kills, and in a strict project.
CAUSES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[Fault, ...], tuple[Kill, ...], bool]]
CAUSES = {
    "released by a failure": ({"status": 500}, {}, (), (), True),
    "data lost": ({}, {}, (LOSS,), (), True),
    "unprotected": ({}, {"fence": 0}, (OUTAGE,), (), False),
    "unprotected before": ({"fence": 0}, {}, (OUTAGE,), (), False),
    "abandoned by a kill": ({"ended": None}, {}, (), (Kill(1, 1.5, 1.7),), False),
    "handed on and not settled in time": ({"settled": False}, {}, (), (), False),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("cause", CAUSES)
def test_audit_knows_what_allows_a_second_run(cause: str, strict: bool) -> None:
    """Each cause counts where the guarantees name it, and for a strict project only two do."""
    first, second, faults, kills, is_allowed_in_strict = CAUSES[cause]
    verdict = judge(
        [make_run("1-1", 1, **first), make_run("1-2", 2, **second)],
        faults=faults,
        kills=kills,
        strict=strict,
    )
    if strict and not is_allowed_in_strict:
        assert verdict.findings == [f"{ALICE}: 1-2 ran although 1-1 had run"]
    else:
        assert verdict.is_clean
        assert verdict.excess == {cause: 1}


@pytest.mark.parametrize(
    ("kills", "faults"),
    [
        ((Kill(2, 1.5, 1.7),), ()),
        ((Kill(1, 2.5, 2.7),), ()),
        ((Kill(1, 0.5, 0.7),), ()),
        ((), (Fault("failed over", 2.5, 3, loses_data=True),)),
        ((), (Fault("hung", 1, 2),)),
    ],
)
def test_audit_takes_no_excuse_of_another_time(
    kills: tuple[Kill, ...], faults: tuple[Fault, ...]
) -> None:
    """A kill of another worker or at another time, or an outage beside it, explains nothing."""
    verdict = judge([make_run("1-1", 1), make_run("1-2", 2)], faults=faults, kills=kills)
    assert not verdict.is_clean


FORBIDDEN = {
    "no answer": make_exchange("no answer", "", 1),
    "cut off by nobody": make_exchange("cut off", "", 1),
    "refused in calm": make_exchange("refused", "", 1),
    "another's run": make_exchange("ran", "1-1", 1, order=Order("Token bob", "k", "/quick", b"")),
    "a run that nobody wrote down": make_exchange("ran", "9-9", 1),
    "protected by no claim": make_exchange("unprotected", "1-1", 1),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_audit_finds_an_answer_that_is_not_promised(case: str) -> None:
    """An answer that no row of the guarantees gives is found."""
    assert not judge([make_run("1-1", 1)], [FORBIDDEN[case]]).is_clean


def test_audit_finds_two_outcomes_of_one_key() -> None:
    """Two replays of one key that name different runs are found, unless data was lost between."""
    runs = [make_run("1-1", 1, status=500), make_run("1-2", 2)]
    answers = [make_exchange("replayed", "1-1", 1.4), make_exchange("replayed", "1-2", 3)]
    assert judge(runs, answers).findings == [f"{ALICE} was told of 1-1 and of 1-2"]
    assert judge(runs, answers, faults=(LOSS,)).is_clean


def test_audit_finds_a_fencing_token_that_was_given_twice() -> None:
    """Two claims with one fencing token are found, unless the counter was lost between them."""
    runs = [make_run("1-1", 1), make_run("1-2", 2, account=("Token bob", "k"), fence=1)]
    assert judge(runs).findings == ["1-1 and 1-2 have one fencing token"]
    assert judge(runs, faults=(LOSS,)).is_clean


def test_audit_finds_an_unprotected_run_in_calm_times() -> None:
    """Work that ran without a claim though nothing was wrong is found."""
    runs = [make_run("1-1", 100, fence=0)]
    assert not judge(runs, faults=(OUTAGE,)).is_clean
    assert judge(runs, faults=(Fault("hung", 98, 99),)).is_clean


def test_run_is_put_together_from_its_lines() -> None:
    """The lines of the ledger become runs, of which one that was killed has no end."""
    begin = {"what": "begin", "pid": 1, "user": "u", "key": "k", "fence": 3}
    runs = build_runs(
        [
            {"what": "end", "pid": 1, "at": 2.0, "run": "1-1", "status": 201},
            {**begin, "at": 1.0, "run": "1-1"},
            {**begin, "at": 1.5, "run": "1-2", "key": None},
            {"what": "unsettled", "pid": 1, "at": 3.0, "run": "1-1"},
        ]
    )
    assert runs == [
        WorkRun("1-1", 1, ("u", "k"), 1.0, 3, 2.0, 201, settled=False),
        WorkRun("1-2", 1, None, 1.5, 3),
    ]


def test_answer_of_somebody_else_is_recognised() -> None:
    """A response that names another user is never taken for an ordinary one."""
    stolen = Response(201, [], b'{"run": "1-1", "user": "Token bob"}')
    assert classify(ORDER, stolen) == ("somebody else's answer", "1-1")


class Machine:
    """
    A site whose Redis answers at once, late or not at all.
    """

    def __init__(self, answer: Callable[[], None]) -> None:
        self.faults: list[Fault] = []
        self.server = self
        self.asked = threading.Event()
        self._answer = answer

    def command(self, name: str) -> None:
        try:
            self._answer()
        finally:
            self.asked.set()


def refuse() -> None:
    raise ConnectionRefusedError


@pytest.mark.parametrize(
    ("answer", "noted"),
    [(lambda: time.sleep(0.4), True), (lambda: None, False), (refuse, False)],
    ids=["late", "at once", "refused"],
)
def test_pulse_notes_what_stood_still(answer: Callable[[], None], noted: bool) -> None:
    """
    A stall is a fault of its own; a Redis that refuses is one of the schedule, and no stall.
    """
    machine = Machine(answer)
    pulse = Pulse(machine)  # type: ignore[arg-type] # no more of a site is asked for
    pulse.start()
    assert machine.asked.wait(30)
    pulse.stop()
    # Where the machine really stands still in between, that is noted, too, and rightly so.
    if noted:
        assert {fault.name for fault in machine.faults} == {"stalled"}
        assert machine.faults[0].ended - machine.faults[0].began >= 0.4
    else:
        assert all(fault.ended - fault.began > 0.25 for fault in machine.faults)
