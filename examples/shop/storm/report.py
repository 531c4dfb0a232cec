"""
What the demo shows: a bar while it runs, then the table and the proof.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from storm.clients import (
    CUT_OFF,
    FIRST,
    IN_PROGRESS,
    LOST,
    REFUSED,
    REPLAYED,
    TRY_AGAIN,
    Storm,
    Tally,
)
from storm.proof import Books, Check

SHOWN_CULPRITS = 3


def watch(console: Console, storm: Storm, seconds: float) -> bool:
    """
    Show how the storm goes on; answer whether it ended in time.
    """
    progress = Progress(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=40),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        # In a file or a pipe a moving bar would only be noise.
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task("orders are raining", total=storm.sendings)
        steps = max(1, int(seconds / 0.1))
        for _ in range(steps):
            is_over = storm.wait(0.1)
            progress.update(task, completed=storm.done())
            if is_over:
                return True
    return False


def show_tally(console: Console, tally: Tally, books: Books, orders: int) -> None:
    """
    Print the table.
    """
    executions = len(books.executions)
    cut_short = sum(outcome == "started" for _, _, outcome in books.executions)
    failed = sum(outcome == "refused 502" for _, _, outcome in books.executions)
    kinds = tally.kinds
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_column(style="dim")
    rows = [
        (orders, "orders", "what the customers wanted"),
        (tally.attempts, "attempts", "what they sent: HTTP requests"),
        (executions, "executions", executions_note(failed, cut_short)),
        (
            max(0, tally.attempts - executions - kinds[CUT_OFF]),
            "duplicates prevented",
            "attempts that did not run the order again",
        ),
        None,
        (kinds[FIRST], "first answers", "201, fresh from the view"),
        (kinds[REPLAYED], "replays", "the stored answer, marked Idempotent-Replayed"),
        (kinds[IN_PROGRESS], "in progress", "202: asked to come back a little later"),
        (kinds[LOST], "lost answers", "the customer hung up before the answer came"),
        (kinds[TRY_AGAIN], "gateway failures", "502, the same key may try again"),
        (kinds[CUT_OFF], "cut off", "the connection broke: the killed worker's customers"),
        (
            kinds[REFUSED],
            "refused",
            "; ".join(sorted(tally.refusals)[:1]) or "nothing was turned away",
        ),
    ]
    for row in rows:
        if row is None:
            table.add_section()
            table.add_row()
        else:
            count, name, note = row
            table.add_row(f"{count:,}", name, note)
    console.print(table)
    console.print()
    show_latency(console, tally)


def executions_note(failed: int, cut_short: int) -> str:
    """
    Say why there can be more executions than orders.
    """
    reasons = []
    if failed:
        reasons.append(f"{failed} met a failing gateway")
    if cut_short:
        reasons.append(f"{cut_short} died with the worker")
    return "times the view's body ran" + (f"; {' and '.join(reasons)}" if reasons else "")


def show_latency(console: Console, tally: Tally) -> None:
    """
    Print how long customers waited.
    """
    table = Table(box=None, padding=(0, 2))
    table.add_column("Latency", style="bold")
    table.add_column("median", justify="right")
    table.add_column("95 %", justify="right")
    for name, kind in (("first request", FIRST), ("replayed request", REPLAYED)):
        seconds = tally.seconds.get(kind, [])
        table.add_row(
            name, milliseconds(percentile(seconds, 50)), milliseconds(percentile(seconds, 95))
        )
    console.print(table)


def show_proof(console: Console, checks: Sequence[Check]) -> None:
    """
    Print the proof, and what speaks against it.
    """
    console.rule("[bold]The proof, from the gateway's ledger and the shop's database", align="left")
    table = Table(box=None, padding=(0, 2), show_header=False)
    for check in checks:
        mark = Text("✔", style="bold green") if check.holds else Text("✘", style="bold red")
        table.add_row(mark, check.claim, Text(check.found, style="dim"))
        if not check.holds:
            shown = ", ".join(check.culprits[:SHOWN_CULPRITS])
            more = len(check.culprits) - SHOWN_CULPRITS
            table.add_row(
                "", "", Text(shown + (f" and {more} more" if more > 0 else ""), style="red")
            )
    console.print(table)
    console.print()


def show_verdict(console: Console, checks: Sequence[Check], *, in_time: bool) -> None:
    """
    Print the last line.
    """
    if all(check.holds for check in checks):
        line = "[bold green]Every order happened exactly once."
    else:
        line = "[bold red]Not every order happened exactly once."
    if not in_time:
        line = "[bold red]The time was up before every order had its answer."
    console.print(Padding(line, (0, 2)))


def percentile(values: Sequence[float], percent: int) -> float | None:
    """
    Return a percentile, or nothing where there are no values.
    """
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def milliseconds(seconds: float | None) -> str:
    """
    Write a duration for people.
    """
    return "–" if seconds is None else f"{seconds * 1000:,.0f} ms"
