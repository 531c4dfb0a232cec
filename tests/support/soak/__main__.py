"""
The command line: `python -m support.soak [--minutes M] [--seed N] [--keep FOLDER]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from support.redis_server import find_redis_server
from support.soak.run import Outcome, run_soak

_MOST_MINUTES = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the soak and tell what came of it; the exit status is 1 where something was found.
    """
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long traffic flows")
    parser.add_argument("--seed", type=int, default=1, help="decides what is sent and what breaks")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave the ledgers, answers and logs there"
    )
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= _MOST_MINUTES:
        parser.error(f"--minutes must be above 0 and at most {_MOST_MINUTES:g}")
    if find_redis_server() is None:
        parser.error("there is no redis-server on the PATH")
    say(f"soak: {options.minutes:g} minutes, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = run_soak(options.minutes * 60, options.seed, folder, say)
    for outcome in outcomes:
        say("\n".join(describe(outcome)))
    is_clean = all(outcome.verdict.is_clean for outcome in outcomes)
    say("\nThe counts add up." if is_clean else "\nFOUND: see above.")
    return 0 if is_clean else 1


def say(line: str) -> None:
    """
    Tell the person at the terminal, at once.
    """
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def describe(outcome: Outcome) -> list[str]:
    """
    Return the lines about one project.
    """
    verdict = outcome.verdict
    excess = verdict.excess.total()
    unkeyed = verdict.runs - verdict.accounts - excess
    return [
        "",
        outcome.name,
        f"  {verdict.answers.total():,} requests"
        + "".join(f"\n    {count:8,} {kind}" for kind, count in verdict.answers.most_common()),
        f"  {verdict.runs:,} runs",
        f"    {verdict.accounts:8,} first runs of a key",
        f"    {excess:8,} further runs of a key",
        *(f"      {count:8,} {cause}" for cause, count in verdict.excess.most_common()),
        f"    {unkeyed:8,} without a key",
        f"  {outcome.kills} workers killed; faults: "
        + ", ".join(f"{name} {count}" for name, count in outcome.faults.items()),
        f"  the slowest request for quick work took {outcome.worst:.2f} s",
        *(f"  FOUND {finding}" for finding in verdict.findings[:20]),
        f"  {len(verdict.findings)} findings",
    ]


if __name__ == "__main__":
    sys.exit(main())
