"""
How answers look on a terminal: tables, facts, instants and durations.

Whatever a client or an application has stored is shown without its control
characters, so that it cannot take over the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

__all__ = [
    "Answer",
    "UsageError",
    "as_json",
    "clean",
    "count",
    "fit_encoding",
    "show_facts",
    "show_instant",
    "show_table",
    "since",
]

_GAP = "  "
_CUT = "…"
# A column is not cut below this; rather the lines are too long.
_NARROWEST = 8


class Answer(NamedTuple):
    """
    What a subcommand has found or done.

    Attributes:
        document: It as JSON data.
        text: It for people; empty where the refusal says all there is.
        refusal: Why what was asked was not done or is not well, and what to do next.
    """

    document: dict[str, Any]
    text: str
    refusal: str | None = None


class UsageError(Exception):
    """
    The command was called in a way that makes no sense; instances are not shared.
    """


def as_json(document: dict[str, Any]) -> str:
    """
    Return a document on one line.
    """
    return json.dumps(document)


def clean(text: str, *, keep: str = "") -> str:
    """
    Return a text with everything escaped that is not printable, but for what is in `keep`.
    """
    return "".join(
        letter
        if letter.isprintable() or letter in keep
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def fit_encoding(text: str, encoding: str | None) -> str:
    """
    Return a text with everything escaped that a screen or a file of this encoding cannot hold.
    """
    if encoding is None:
        return text
    return text.encode(encoding, "backslashreplace").decode(encoding)


def count(number: int, one: str, many: str) -> str:
    """
    Return a number of things, of one in the singular.
    """
    return f"{number:,} {one if number == 1 else many}"


def show_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None
) -> str:
    """
    Return rows under headings, aligned.

    Where they do not fit into a width, the widest columns are cut, but never the
    first, which is there to be copied.
    """
    lines = [list(headings), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if width is not None:
        _narrow(widths, width - len(_GAP) * (len(widths) - 1))
    shown = []
    for line in lines:
        cells = (_fit(cell, wide) for cell, wide in zip(line, widths, strict=True))
        shown.append(_GAP.join(cells).rstrip())
    return "\n".join(shown)


def _narrow(widths: list[int], room: int) -> None:
    while sum(widths) > room:
        widest = max(range(1, len(widths)), key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1


def _fit(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + _CUT


def show_facts(facts: Sequence[tuple[str, str]]) -> str:
    """
    Return names and what is to be said of them; a name that is empty goes on with the one above.
    """
    wide = max(len(name) for name, _ in facts)
    return "\n".join(f"{name.ljust(wide)}{_GAP}{text}".rstrip() for name, text in facts)


def show_instant(instant: datetime, now: datetime) -> str:
    """
    Return an instant in UTC, and how far from now it is.
    """
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ} ({since(instant, now)})"


def since(instant: datetime, now: datetime) -> str:
    """
    Return how far an instant is from now: "in 3 min", "3 min ago".
    """
    distance = instant - now
    text = _show_duration(abs(distance))
    return f"in {text}" if distance > timedelta(0) else f"{text} ago"


def _show_duration(duration: timedelta) -> str:
    seconds = int(duration.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 2 * 3600:
        return f"{seconds // 60} min"
    if seconds < 2 * 86_400:
        return f"{seconds // 3600} h"
    return f"{seconds // 86_400} days"
