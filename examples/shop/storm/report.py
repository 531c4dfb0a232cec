"""
What the demo shows: a bar while it runs, then the table and the proof.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from shop.settings import DOTMAC_TASKS

from storm.clients import (
    CUT_OFF,
    FIRST,
    IN_PROGRESS,
    LOST,
    REFUSED,
    REPLAYED,
    TRY_AGAIN,
    TURNED_AWAY,
    UNPROTECTED,
    Storm,
    Tally,
)
from storm.errands import CLAIM, ORDER, PHOTO_BYTES, SIGN_UP
from storm.proof import Books, Check, Wanted
from storm.trouble import Outage, Saboteur

SHOWN_CULPRITS = 3
# Often enough that an outage comes in time in a short storm, too.
STEP = 0.02


def watch(console: Console, storm: Storm, seconds: float, outage: Outage | None) -> bool:
    """
    Show how the storm goes on, and take the outage along; answer whether it ended in time.
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
    deadline = time.monotonic() + seconds
    with progress:
        task = progress.add_task("orders are raining", total=storm.sendings)
        while time.monotonic() < deadline:
            is_over = storm.wait(STEP)
            done = storm.done()
            progress.update(task, completed=done)
            if is_over:
                return True
            if outage is not None:
                outage.step(done)
    return False


def show_events(
    console: Console, began: float, saboteur: Saboteur | None, outage: Outage | None
) -> None:
    """
    Print what went wrong on purpose, besides the gateway.
    """
    console.print(f"  The storm is over after {time.monotonic() - began:.1f} s.")
    if outage is not None:
        console.print(f"  {outage.story(began)}")
    if saboteur is not None:
        console.print(f"  {saboteur.story()}")


def show_tally(
    console: Console, tallies: Mapping[str, Tally], books: Books, wanted: Wanted
) -> None:
    """
    Print the table.
    """
    tally = tallies[ORDER]
    executions = len(books.executions)
    kinds = tally.kinds
    prevented = max(0, tally.attempts - executions - kinds[CUT_OFF] - kinds[TURNED_AWAY])
    refusal = next(iter(sorted(tally.refusals)), "")
    console.print()
    table = new_table()
    for count, name, note in (
        (len(wanted.orders), "orders", "what the customers wanted"),
        (tally.attempts, "attempts", "HTTP requests they sent"),
        (executions, "executions", executions_note(books)),
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
        (TURNED_AWAY, "503, the storage is away: come back later"),
        (CUT_OFF, "the connection broke with the killed worker"),
        (REFUSED, refusal),
    ):
        if kinds[kind]:
            table.add_row(f"{kinds[kind]:,}", kind, note)
    table.add_row()
    table.add_row(
        f"{len(wanted.claims):,}",
        "claims with a photo",
        claims_note(tallies[CLAIM]),
    )
    table.add_row(
        f"{len(wanted.sign_ups):,}",
        "newsletter sign-ups",
        letters_note(tallies[SIGN_UP], books),
    )
    console.print(table)
    console.print()
    show_latency(console, tally)
    console.print()


def new_table() -> Table:
    """
    Return a table of counts, names and notes.
    """
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(justify="right", style="bold", min_width=7)
    table.add_column(min_width=20)
    table.add_column(style="dim")
    return table


def executions_note(books: Books) -> str:
    """
    Say why there can be more executions than orders.
    """
    outcomes = Counter(outcome for _, _, outcome in books.executions)
    ordered = [number for number, _, outcome in books.executions if outcome == "ordered"]
    reasons = [
        f"{count:,} {what}"
        for count, what in (
            (outcomes["refused 502"], "answered 502"),
            (outcomes["started"], "killed"),
            (len(ordered) - len(set(ordered)), "ran again"),
        )
        if count
    ]
    return ", ".join(reasons) or "the view ran"


def claims_note(tally: Tally) -> str:
    """
    Say how large the photos are, and how often they were sent.
    """
    return f"{PHOTO_BYTES / 1e6:.0f} MB, sent {tally.attempts:,} times, a new boundary each time"


def letters_note(tally: Tally, books: Books) -> str:
    """
    Say how many letters went out, and how many of them again.
    """
    again = len(books.letters) - len(set(books.letters))
    note = f"sent {tally.attempts:,} times, {len(books.letters):,} letters"
    return f"{note}; {again:,} went out again" if again else note


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


def show_outage(
    console: Console, tallies: Mapping[str, Tally], outage: Outage, *, unanswered: int
) -> None:
    """
    Print what the outage of the storage did to customers.
    """
    if outage.window is None:
        return
    kinds = sum((tally.kinds for tally in tallies.values()), Counter())
    longest = max(tally.longest(*outage.window) for tally in tallies.values())
    timeout = DOTMAC_TASKS["STORAGE_TIMEOUT"]
    console.rule("[bold]The outage", align="left")
    table = new_table()
    for count, name, note in (
        (f"{kinds[TURNED_AWAY]:,}", "turned away", "orders and claims: 503 with Retry-After"),
        (f"{kinds[UNPROTECTED]:,}", "ran unprotected", "sign-ups: 201, and a header that says so"),
        (
            f"{longest:.1f} s",
            "the longest request",
            f"STORAGE_TIMEOUT is {timeout} s for each call",
        ),
        (f"{unanswered:,}", "without an answer", "whoever was turned away came back"),
    ):
        table.add_row(count, name, note)
    console.print(table)
    console.print()


def show_questions(console: Console, questions: Sequence[Check]) -> None:
    """
    Print what the shop was asked after the storm.
    """
    console.rule("[bold]Asked after the storm, about keys that have their answer", align="left")
    show_checks(console, questions)


def show_proof(console: Console, checks: Sequence[Check]) -> None:
    """
    Print the proof, and what speaks against it.
    """
    console.rule("[bold]The proof, from the gateway's ledger and the shop's files", align="left")
    show_checks(console, checks)


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """
    Print what holds, and what speaks against the rest.
    """
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


def show_verdict(
    console: Console, proof: Sequence[Check], questions: Sequence[Check], *, in_time: bool
) -> None:
    """
    Print the last line.
    """
    if not in_time:
        line = "[bold red]The time was up before every order had its answer."
    elif not all(check.holds for check in proof):
        line = "[bold red]Not every order happened exactly once."
    elif not all(check.holds for check in questions):
        line = "[bold red]Every order happened once, but the shop answered a question wrongly."
    else:
        line = "[bold green]Every order happened exactly once."
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
