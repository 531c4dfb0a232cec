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
    prevented = max(0, tally.attempts - executions - kinds[CUT_OFF])
    refusal = next(iter(sorted(tally.refusals)), "")
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(justify="right", style="bold", min_width=7)
    table.add_column(min_width=20)
    table.add_column(style="dim")
    for count, name, note in (
        (orders, "orders", "what the customers wanted"),
        (tally.attempts, "attempts", "HTTP requests they sent"),
        (executions, "executions", executions_note(failed, cut_short)),
        (prevented, "duplicates prevented", "attempts that did not run the order again"),
    ):
        table.add_row(f"{count:,}", name, note)
    table.add_row()
    for kind, note in (
        (FIRST, "201, fresh from the view"),
        (REPLAYED, "the stored answer, marked Idempotent-Replayed"),
        (IN_PROGRESS, "202, come back a little later"),
        (LOST, "the customer hung up before the answer came"),
        (TRY_AGAIN, "502, the gateway failed: try again"),
        (CUT_OFF, "the connection broke with the killed worker"),
        (REFUSED, refusal),
    ):
        if kinds[kind]:
            table.add_row(f"{kinds[kind]:,}", kind, note)
    console.print(table)
    console.print()
    show_latency(console, tally)


def executions_note(failed: int, cut_short: int) -> str:
    """
    Say why there can be more executions than orders.
    """
    reasons = []
    if failed:
        reasons.append(f"{failed} charges failed")
    if cut_short:
        reasons.append(f"{cut_short} were killed")
    return "the view ran" + ("; " + ", ".join(reasons) if reasons else "")


def show_latency(console: Console, tally: Tally) -> None:
    """
    Print how long customers waited.
    """
    table = Table(box=None, padding=(0, 1), header_style="")
    table.add_column(min_width=7)
    table.add_column("latency", min_width=20, header_style="bold")
    table.add_column("median", justify="right")
    table.add_column("95 %", justify="right")
    for name, kind in (("first request", FIRST), ("replayed request", REPLAYED)):
        seconds = tally.seconds.get(kind, [])
        median, slow = (milliseconds(percentile(seconds, percent)) for percent in (50, 95))
        table.add_row("", name, median, slow)
    console.print(table)


def show_proof(console: Console, checks: Sequence[Check]) -> None:
    """
    Print the proof, and what speaks against it.
    """
    console.rule("[bold]The proof, from the gateway's ledger and the shop's database", align="left")
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(justify="right", min_width=2)
    table.add_column(min_width=28)
    table.add_column()
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
