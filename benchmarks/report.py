"""
What was measured, how it is printed, and whether it meets its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.timing import Series

WIDTH = 98


@dataclass(frozen=True)
class Check:
    """
    One target. Immutable, so it may be shared between threads.

    Attributes:
        what: What is compared.
        value: What was measured.
        limit: The target.
        comparison: `<=`, `>=` or `==`.
        unit: Stands behind both numbers.
    """

    what: str
    value: float
    limit: float
    comparison: str = "<="
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """
        Tell whether the target is met.
        """
        if self.comparison == "==":
            return self.value == self.limit
        return self.value <= self.limit if self.comparison == "<=" else self.value >= self.limit

    @property
    def target(self) -> str:
        """
        The target as it is printed.
        """
        sign = {"<=": "≤ ", ">=": "≥ ", "==": "= "}[self.comparison]
        return f"{sign}{number(self.limit)}{self.unit}"

    @property
    def mark(self) -> str:
        """
        The outcome as it is printed.
        """
        return "pass" if self.is_met else "FAIL"


@dataclass
class Section:
    """
    One table with its targets; filled by one thread.

    Attributes:
        title: Its heading.
        notes: Sentences that say what the numbers are.
        columns: Column headings.
        rows: The cells, as text.
        checks: Its targets, for the summary.
        data: The numbers behind it, for `--json`.
    """

    title: str
    notes: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def add(self, *cells: str, check: Check | None = None) -> None:
        """
        Add a row; a target's own cells come behind the given ones.
        """
        if check is None:
            self.rows.append(cells)
            return
        self.checks.append(check)
        self.rows.append((*cells, check.target, check.mark))

    def keep(self, name: str, series: Series) -> None:
        """
        Keep a measured series for `--json`, in the unit that is printed.
        """
        self.data[name] = {
            "median": series.median,
            "quartiles": [series.low, series.high],
            "best": min(series.values),
            "rounds": len(series.values),
        }

    def to_dict(self) -> dict[str, Any]:
        """
        Return it as JSON data.
        """
        return {
            "title": self.title,
            "checks": [
                {
                    "what": check.what,
                    "value": check.value,
                    "comparison": check.comparison,
                    "target": check.limit,
                    "met": check.is_met,
                }
                for check in self.checks
            ],
            "numbers": self.data,
        }


def number(value: float) -> str:
    """
    Return a number with as many digits as a person reads.
    """
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.0f}"


def micro(series: Series) -> str:
    """
    Return a series of seconds as microseconds: median and quartiles.
    """
    median, low, high = (each * 1e6 for each in (series.median, series.low, series.high))
    return f"{median:,.1f} [{low:,.1f}, {high:,.1f}]"


def spread(series: Series, digits: int = 2) -> str:
    """
    Return a series of plain numbers: median and quartiles.
    """
    return f"{series.median:.{digits}f} [{series.low:.{digits}f}, {series.high:.{digits}f}]"


def render(section: Section) -> str:
    """
    Return a section as the lines that are printed.
    """
    lines = ["", section.title, "─" * WIDTH, *section.notes]
    if section.notes:
        lines.append("")
    return "\n".join([*lines, *_align([section.columns, *section.rows])])


def render_summary(sections: Sequence[Section]) -> str:
    """
    Return all targets, and how many of them are met.
    """
    checks = [check for section in sections for check in section.checks]
    rows: list[Sequence[str]] = [("", "measured", "target", "")]
    rows += [
        (check.what, number(check.value) + check.unit, check.target, check.mark) for check in checks
    ]
    met = sum(check.is_met for check in checks)
    verdict = f"{met} of {len(checks)} targets met"
    return "\n".join(["", "Summary", "─" * WIDTH, *_align(rows), "", verdict])


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    # The first column starts at the left, numbers end at the right.
    count = max(len(row) for row in rows)
    full = [[*row, *[""] * (count - len(row))] for row in rows]
    widths = [max(len(row[index]) for row in full) for index in range(count)]
    lines = []
    for row in full:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append("  ".join(cells).rstrip())
    return lines
