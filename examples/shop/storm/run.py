"""
One storm from start to verdict, and the shop left open for visitors.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from storm import report
from storm.clients import Storm
from storm.errands import (
    CLAIM,
    ORDER,
    PARTNERS,
    SIGN_UP,
    Errand,
    claim_errands,
    digest_of,
    order_errands,
    sign_up_errands,
)
from storm.processes import HERE, Stack, find_redis_server
from storm.proof import Check, Wanted, prove, read_books
from storm.questions import Questions
from storm.serve import receive_visitors
from storm.trouble import Outage, Saboteur

SHOP_THREADS = 4
CUSTOMERS = 16
GATEWAY_LATENCY = 0.02
TROUBLE = {"fail": 0.04, "drop": 0.04, "slow": 0.05}
# For so many orders there is one claim, and one sign-up.
ORDERS_PER_CLAIM = 50
ORDERS_PER_SIGN_UP = 5
# How much of the storm has passed when the storage goes away.
OUTAGE_AT = 0.2


@dataclass(frozen=True, kw_only=True)
class Options:
    """
    What the command line asks for. Immutable.
    """

    orders: int
    attempts: int
    workers: int
    seed: int
    deadline: float
    in_memory: bool
    is_protected: bool


@dataclass(frozen=True, kw_only=True)
class Opened:
    """
    A shop that is up. Immutable by convention; one owner thread.
    """

    tokens: Mapping[str, str]
    redis_url: str | None
    workers: int


def run_demo(console: Console, stack: Stack, options: Options) -> bool:
    """
    Send the storm and prove what it did; answer whether everything happened once.
    """
    errands = make_errands(options)
    wanted = want(options, errands)
    console.rule("[bold]A shop in a storm of retries", align="left")
    opened = start(console, stack, options, stock=wanted.shelves)
    show_setting(console, stack, options, opened)
    storm = Storm(
        stack.shop_url,
        errands,
        opened.tokens,
        copies=options.attempts,
        threads=CUSTOMERS,
        seed=options.seed,
    )
    saboteur, outage = prepare_trouble(stack, storm, wanted, opened, options)
    began = time.monotonic()
    in_time = rain(console, storm, saboteur, outage, options.deadline)
    report.show_events(console, began, saboteur, outage)
    questions: list[Check] = []
    if in_time and options.is_protected:
        with console.status("asking"):
            questions = Questions(stack, opened.tokens, errands).ask_all()
    # The answers that nobody waits for are still being made: end the shop, then read.
    stack.stop()
    books = read_books(stack.ledger, stack.database, stack.photos)
    tallies = storm.tallies()
    proof = prove(
        wanted,
        tallies[ORDER].answers | tallies[CLAIM].answers,
        books,
        letters_may_double=outage is not None,
    )
    report.show_tally(console, tallies, books, wanted)
    if outage is not None:
        report.show_outage(console, tallies, outage, unanswered=storm.sendings - storm.done())
    if questions:
        report.show_questions(console, questions)
    report.show_proof(console, proof)
    report.show_verdict(console, proof, questions, in_time=in_time)
    return in_time and all(check.holds for check in (*proof, *questions))


def prepare_trouble(
    stack: Stack, storm: Storm, wanted: Wanted, opened: Opened, options: Options
) -> tuple[Saboteur | None, Outage | None]:
    """
    Return who kills a worker and who takes the storage away, where the keys outlive that.
    """
    if opened.redis_url is None:
        return None, None
    saboteur = Saboteur(stack, wanted.orders[len(wanted.orders) // 2]["number"])
    if not options.is_protected:
        return saboteur, None
    return saboteur, Outage(stack, begins_at=max(1, int(storm.sendings * OUTAGE_AT)))


def show_setting(console: Console, stack: Stack, options: Options, opened: Opened) -> None:
    """
    Say what runs, and what has to be left out.
    """
    count = opened.workers
    processes = "1 worker process" if count == 1 else f"{count} worker processes"
    console.print(f"  Shop      gunicorn, {processes} × {SHOP_THREADS} threads, {stack.shop_url}")
    console.print("  Gateway   a process of its own; it is slow, fails, or charges and hangs up")
    if not options.is_protected:
        console.print("  Library   [bold red]switched off[/]: every request is new to this shop")
    elif opened.redis_url is not None:
        console.print(f"  Storage   a private Redis, {opened.redis_url}")
    else:
        why = "as you asked" if options.in_memory else "for want of a redis-server"
        console.print(f"  Storage   the memory of the one process, {why}")
        console.print(
            "            [yellow]Left out[/]: several processes that share their keys, the kill\n"
            "            of one of them, and an outage of what they share."
        )
    console.print(
        f"  Storm     {options.orders} orders, each sent {options.attempts} times,"
        f" {CUSTOMERS} customers at once;\n"
        "            a third by partners with tokens; uploads and sign-ups in between"
    )
    console.print()


def rain(
    console: Console,
    storm: Storm,
    saboteur: Saboteur | None,
    outage: Outage | None,
    seconds: float,
) -> bool:
    """
    Let the storm come and go, with what goes wrong in it; answer whether it ended in time.
    """
    storm.start()
    if saboteur is not None:
        saboteur.start()
    try:
        in_time = report.watch(console, storm, seconds, outage)
        if outage is not None:
            outage.finish()
    finally:
        storm.stop()
        if saboteur is not None:
            saboteur.finish()
    return in_time


def start(
    console: Console, stack: Stack, options: Options, *, stock: Mapping[str, int] | None = None
) -> Opened:
    """
    Start everything: for a storm with this stock, for visitors with plenty of everything.
    """
    server = None if options.in_memory else find_redis_server()
    with console.status("starting"):
        redis_url = stack.start_redis(server) if server is not None else None
        trouble = {} if stock is None else TROUBLE
        stack.start_gateway(seed=options.seed, latency=GATEWAY_LATENCY, trouble=trouble)
        workers = options.workers if redis_url is not None else 1
        stack.start_shop(
            workers=workers,
            threads=SHOP_THREADS,
            redis_url=redis_url,
            stock=stock or {},
            default_stock=100,
            is_protected=options.is_protected,
        )
        tokens = {name: stack.manage("partner", name).strip() for name in PARTNERS}
    return Opened(tokens=tokens, redis_url=redis_url, workers=workers)


def serve(console: Console, stack: Stack, options: Options) -> None:
    """
    Leave shop and gateway running until Ctrl-C, and say what to try.
    """
    opened = start(console, stack, options)
    storage = opened.redis_url or "memory, one process"
    receive_visitors(console, stack, opened.tokens[PARTNERS[0]], storage)


def make_errands(options: Options) -> list[Errand]:
    """
    Return all that customers are going to want, claims and sign-ups spread among orders.
    """
    kinds = (
        order_errands(load_orders(options.orders)),
        claim_errands(-(-options.orders // ORDERS_PER_CLAIM), options.seed),
        sign_up_errands(-(-options.orders // ORDERS_PER_SIGN_UP)),
    )
    places = [
        ((count + 0.5) / len(errands), errand)
        for errands in kinds
        for count, errand in enumerate(errands)
    ]
    return [errand for _, errand in sorted(places, key=lambda place: place[0])]


def want(options: Options, errands: Sequence[Errand]) -> Wanted:
    """
    Return what customers want, and shelves that hold exactly that.
    """
    orders = [errand.content for errand in errands if errand.kind == ORDER]
    prices = {product["sku"]: product["price_cents"] for product in load_catalog()}
    ordered: Counter[str] = Counter()
    for order in orders:
        ordered[order["product"]] += order["quantity"]
    # Exactly what was ordered: one item sold twice, and somebody goes away empty-handed.
    # Without the library there must be plenty, or nobody would see how much too much goes.
    plenty = 1 if options.is_protected else 10 * options.attempts
    return Wanted(
        orders=orders,
        prices=prices,
        shelves={sku: ordered[sku] * plenty for sku in prices},
        claims={
            errand.number: digest_of(errand.photo) for errand in errands if errand.kind == CLAIM
        },
        sign_ups=[errand.number for errand in errands if errand.kind == SIGN_UP],
    )


def load_orders(count: int) -> list[dict[str, Any]]:
    """
    Return the first ``count`` orders of ``orders.jsonl``.
    """
    lines = Path(HERE, "orders.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def load_catalog() -> Sequence[dict[str, Any]]:
    """
    Return the products.
    """
    catalog: list[dict[str, Any]] = json.loads(Path(HERE, "catalog.json").read_text("utf-8"))
    return catalog
