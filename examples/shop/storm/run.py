"""
One storm from start to verdict, and the shop left open for visitors.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from storm import report
from storm.clients import Storm
from storm.processes import HERE, Stack, find_redis_server
from storm.proof import prove, read_books, read_executions

SHOP_THREADS = 4
CUSTOMERS = 16
GATEWAY_LATENCY = 0.02
TROUBLE = {"fail": 0.04, "drop": 0.04, "slow": 0.05}


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


class Saboteur(threading.Thread):
    """
    Kills a worker at the worst moment: it has charged the card and not yet said so.

    A thread of its own that is started once; what it did is read after it ended.
    """

    def __init__(self, stack: Stack, number: str) -> None:
        """
        Wait for the order with this number.
        """
        super().__init__(name="saboteur", daemon=True)
        self._stack = stack
        self._number = number
        self._over = threading.Event()
        self._killed: int | None = None
        stack.control_gateway(hold=number)

    def run(self) -> None:
        """
        Wait until the charge is made, find the worker that waits for it, kill it.
        """
        try:
            while self._killed is None and not self._over.wait(0.02):
                if self._stack.control_gateway() == self._number:
                    self._kill()
        finally:
            self._stack.control_gateway(release=True)

    def story(self) -> str:
        """
        Tell what was done. Call it after `finish`.
        """
        if self._killed is None:
            return "[yellow]No worker was killed: the storm was over too early.[/]"
        return (
            f"Worker {self._killed} was killed with signal 9"
            f" just after it had charged {self._number}."
        )

    def _kill(self) -> None:
        # The gateway holds its answer back, so the worker cannot get any further.
        for number, worker, outcome in reversed(read_executions(self._stack.database)):
            if number == self._number and outcome == "started":
                os.kill(worker, signal.SIGKILL)
                self._killed = worker
                return

    def finish(self) -> None:
        """
        Stop waiting for the order.
        """
        self._over.set()
        self.join(10)


def run_demo(console: Console, stack: Stack, options: Options) -> bool:
    """
    Send the storm and prove what it did; answer whether every order happened once.
    """
    orders = load_orders(options.orders)
    prices = {product["sku"]: product["price_cents"] for product in load_catalog()}
    # Exactly what was ordered: one item sold twice, and somebody goes away empty-handed.
    # Without the library there must be plenty, or nobody would see how much too much goes.
    ordered: Counter[str] = Counter()
    for order in orders:
        ordered[order["product"]] += order["quantity"]
    plenty = 1 if options.is_protected else 10 * options.attempts
    shelves = {sku: ordered[sku] * plenty for sku in prices}

    console.rule("[bold]A shop in a storm of retries", align="left")
    may_kill = start(console, stack, options, shelves)
    victim = orders[len(orders) // 2]["number"]
    sabotage = Saboteur(stack, victim) if may_kill else None
    storm = Storm(
        stack.shop_url, orders, copies=options.attempts, threads=CUSTOMERS, seed=options.seed
    )
    began = time.monotonic()
    storm.start()
    if sabotage is not None:
        sabotage.start()
    try:
        in_time = report.watch(console, storm, options.deadline)
    finally:
        storm.stop()
        if sabotage is not None:
            sabotage.finish()
    seconds = time.monotonic() - began
    tally = storm.tally()
    console.print(f"  The storm is over after {seconds:.1f} s.")
    if sabotage is not None:
        console.print(f"  {sabotage.story()}")
    # The answers that nobody waits for are still being made: end the shop, then read.
    stack.stop()
    books = read_books(stack.ledger, stack.database)
    console.print()
    report.show_tally(console, tally, books, len(orders))
    console.print()
    checks = prove(orders, prices, shelves, tally.answers, books)
    report.show_proof(console, checks)
    report.show_verdict(console, checks, in_time=in_time)
    return in_time and all(check.holds for check in checks)


def start(console: Console, stack: Stack, options: Options, shelves: dict[str, int]) -> bool:
    """
    Start everything and say what runs; answer whether its keys outlive a worker.
    """
    server = None if options.in_memory else find_redis_server()
    with console.status("starting"):
        redis_url = stack.start_redis(server) if server is not None else None
        stack.start_gateway(seed=options.seed, latency=GATEWAY_LATENCY, trouble=TROUBLE)
        workers = options.workers if redis_url is not None else 1
        stack.start_shop(
            workers=workers,
            threads=SHOP_THREADS,
            redis_url=redis_url,
            stock=shelves,
            is_protected=options.is_protected,
        )
    processes = "1 worker process" if workers == 1 else f"{workers} worker processes"
    console.print(f"  Shop      gunicorn, {processes} × {SHOP_THREADS} threads, {stack.shop_url}")
    console.print("  Gateway   a process of its own; it is slow, fails, or charges and hangs up")
    if not options.is_protected:
        console.print("  Library   [bold red]switched off[/]: every request is new to this shop")
    elif redis_url is not None:
        console.print(f"  Storage   a private Redis, {redis_url}")
    else:
        why = "as you asked" if options.in_memory else "for want of a redis-server"
        console.print(f"  Storage   the memory of the one process, {why}")
        console.print(
            "            [yellow]Left out[/]: several processes that share their keys, and the\n"
            "            kill of one of them. Memory dies with its process."
        )
    console.print(
        f"  Storm     {options.orders} orders, each sent {options.attempts} times,"
        f" {CUSTOMERS} customers at once\n"
    )
    return redis_url is not None


def serve(console: Console, stack: Stack, options: Options) -> None:
    """
    Leave shop and gateway running until Ctrl-C, and say what to try.
    """
    server = None if options.in_memory else find_redis_server()
    with console.status("starting"):
        redis_url = stack.start_redis(server) if server is not None else None
        stack.start_gateway(seed=options.seed, latency=GATEWAY_LATENCY, trouble={})
        stack.start_shop(
            workers=options.workers if redis_url is not None else 1,
            threads=SHOP_THREADS,
            redis_url=redis_url,
            stock={},
            default_stock=100,
        )
    storage = redis_url or "memory, one process"
    console.print(
        f"The shop is open: {stack.shop_url}/products/ (storage: {storage}).\n", soft_wrap=True
    )
    for what, quantity in (
        ("Order a mug:", 1),
        ("Send it again; the same answer comes back, marked Idempotent-Replayed:", 1),
        ("The same key for another order is refused with 422:", 2),
    ):
        console.print(f"[bold]{what}[/]")
        console.print(curl_line(stack.shop_url, quantity), soft_wrap=True, highlight=False)
        console.print()
    console.print("Ctrl-C closes the shop.")
    with suppress(KeyboardInterrupt):  # the one way in which this is meant to end
        threading.Event().wait()
    console.print("\nClosing the shop.")


def curl_line(url: str, quantity: int) -> str:
    """
    Return a command to paste into another terminal.
    """
    order = {"number": "B-1", "customer": "You", "product": "mug-blue", "quantity": quantity}
    return (
        f"curl -i {url}/orders/ -H 'Content-Type: application/json'"
        f" -H 'Idempotency-Key: my-first-order' -d '{json.dumps(order)}'; echo"
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
