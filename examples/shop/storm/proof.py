"""
The proof: what the ledger, the shop's database and its photos say, read from their files.

Nothing here asks the shop or the library. The expected sums come from the orders and the
catalog alone; the gateway's ledger says what was charged, and the shop's tables say what
was sold and what is left.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Books:
    """
    What is written in the files. Immutable by convention; one owner thread.
    """

    charges: Sequence[tuple[str, str, int]]  # order number, charge id, cents
    orders: Sequence[tuple[str, str, str, int]]  # order number, status, charge id, cents
    stock: Mapping[str, int]
    executions: Sequence[tuple[str, int, str]]  # order number, worker, outcome
    claims: Sequence[tuple[str, str]]  # claim number, name of the photo
    photos: Mapping[str, str]  # name, digest
    letters: Sequence[str]  # addresses


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """
    What customers wanted. Immutable by convention; one owner thread.
    """

    orders: Sequence[Mapping[str, Any]]
    prices: Mapping[str, int]  # cents for each product
    shelves: Mapping[str, int]  # how many of each product there were at the start
    claims: Mapping[str, str]  # claim number, digest of the photo
    sign_ups: Sequence[str]  # addresses


@dataclass(frozen=True, kw_only=True)
class Check:
    """
    One line of the proof. Immutable.
    """

    claim: str
    found: str
    culprits: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        """
        Tell whether nothing speaks against it.
        """
        return not self.culprits


def read_books(ledger: Path, database: Path, photos: Path) -> Books:
    """
    Read both databases and the photos without being able to change them.
    """
    charges = [
        (number, f"ch_{row_id:05}", cents)
        for number, row_id, cents in read(
            ledger, "SELECT order_number, id, amount_cents FROM charges ORDER BY id"
        )
    ]
    orders = read(database, "SELECT number, status, charge_id, total_cents FROM orders_order")
    stock = read(
        database,
        "SELECT sku, quantity FROM orders_stock JOIN orders_product"
        " ON orders_product.id = product_id",
    )
    return Books(
        charges=charges,
        orders=orders,
        stock=dict(stock),
        executions=read_executions(database),
        claims=read(database, "SELECT number, photo FROM orders_claim"),
        photos={
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in photos.glob("*")
        },
        letters=[address for (address,) in read(database, "SELECT address FROM orders_letter")],
    )


def read_executions(database: Path) -> list[tuple[str, int, str]]:
    """
    Return order number, worker and outcome of each time the view's body ran, oldest first.
    """
    return read(database, "SELECT number, worker, outcome FROM orders_execution ORDER BY id")


def read(path: Path, query: str) -> list[Any]:
    """
    Return the rows of a query on a database that is opened for reading only.
    """
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(query).fetchall()


def prove(
    wanted: Wanted, answers: Mapping[str, set[str]], books: Books, *, letters_may_double: bool
) -> list[Check]:
    """
    Compare the books with what was wanted.

    Args:
        wanted: The orders, claims and sign-ups that were sent.
        answers: The digests of all answers that each order and each claim got.
        books: What is written in the files now.
        letters_may_double: Whether sign-ups had to run unprotected, or a worker was killed.

    Returns:
        One check for each thing that could be wrong, in the order of a bookkeeper.
    """
    due = {
        str(order["number"]): order["quantity"] * wanted.prices[order["product"]]
        for order in wanted.orders
    }
    return [
        *check_charges(due, books),
        check_orders(due, books),
        check_stock(wanted.orders, wanted.shelves, books),
        check_claims(wanted.claims, books),
        check_answers([*due, *wanted.claims], answers),
        check_letters(wanted.sign_ups, books, may_double=letters_may_double),
    ]


def check_charges(due: Mapping[str, int], books: Books) -> list[Check]:
    """
    Every order is charged, once, and with the right amount.
    """
    times = Counter(number for number, _, _ in books.charges)
    amounts: dict[str, int] = {number: cents for number, _, cents in books.charges}
    wrong = [number for number in due if amounts.get(number, due[number]) != due[number]]
    taken, owed = sum(cents for _, _, cents in books.charges), sum(due.values())
    # A right sum can hide two wrong charges, so each order is asked as well as the sum.
    if taken != owed:
        wrong.insert(0, f"{euros(abs(taken - owed))} too {'much' if taken > owed else 'little'}")
    charged = sum(times[number] > 0 for number in due)
    return [
        Check(
            claim="No order charged twice",
            found=f"{len(books.charges)} charges for {len(due)} orders",
            culprits=[f"{number} × {count}" for number, count in times.items() if count > 1],
        ),
        Check(
            claim="No order lost",
            found=f"{charged} of {len(due)} orders charged",
            culprits=[number for number in due if not times[number]]
            + [f"{number} was never ordered" for number in times if number not in due],
        ),
        Check(
            claim="The right money taken",
            found=f"{euros(taken)} taken, {euros(owed)} owed",
            culprits=wrong,
        ),
    ]


def check_orders(due: Mapping[str, int], books: Books) -> Check:
    """
    The shop has one paid order for each, and it names a charge of the ledger.
    """
    charge_of = {charge_id: (number, cents) for number, charge_id, cents in books.charges}
    rows: dict[str, int] = Counter(number for number, _, _, _ in books.orders)
    culprits = [f"{number} × {rows.get(number, 0)}" for number in due if rows.get(number, 0) != 1]
    culprits += [
        f"{number} is {status}"
        for number, status, charge_id, cents in books.orders
        if status != "paid" or charge_of.get(charge_id) != (number, cents)
    ]
    paid = sum(status == "paid" for _, status, _, _ in books.orders)
    return Check(
        claim="Shop and ledger agree",
        found=f"{len(books.orders)} orders in the shop, {paid} of them paid",
        culprits=culprits,
    )


def check_stock(
    orders: Iterable[Mapping[str, Any]], shelves: Mapping[str, int], books: Books
) -> Check:
    """
    What left the shelves is what was ordered.
    """
    sold: defaultdict[str, int] = defaultdict(int)
    for order in orders:
        sold[order["product"]] += order["quantity"]
    culprits = [
        f"{sku}: {books.stock.get(sku)} left instead of {shelves[sku] - sold[sku]}"
        for sku in shelves
        if books.stock.get(sku) != shelves[sku] - sold[sku]
    ]
    gone = sum(shelves.values()) - sum(books.stock.values())
    return Check(
        claim="The stock adds up",
        found=f"{sum(sold.values())} items ordered, {gone} gone from the shelves",
        culprits=culprits,
    )


def check_claims(claims: Mapping[str, str], books: Books) -> Check:
    """
    Every claim is written once, and its photo is there once and whole.
    """
    times = Counter(number for number, _ in books.claims)
    culprits = [f"{number} × {times[number]}" for number in claims if times[number] != 1]
    culprits += [
        f"{number} has another photo"
        for number, name in books.claims
        if books.photos.get(name) != claims.get(number)
    ]
    stray = set(books.photos) - {name for _, name in books.claims}
    culprits += [f"{len(stray)} photos that belong to no claim"] if stray else []
    return Check(
        claim="One photo for each claim",
        found=f"{count_of(books.photos, 'photo')} for {count_of(claims, 'claim')}",
        culprits=culprits,
    )


def check_answers(due: Sequence[str], answers: Mapping[str, set[str]]) -> Check:
    """
    Everything was answered, and all answers to one key are the same, byte for byte.
    """
    culprits = [f"{number}: no answer" for number in due if number not in answers]
    culprits += [
        f"{number}: {len(bodies)} different answers"
        for number, bodies in answers.items()
        if len(bodies) > 1
    ]
    return Check(
        claim="Retries got the first answer",
        found=f"{len(answers)} of {len(due)} orders and claims answered",
        culprits=culprits,
    )


def check_letters(sign_ups: Sequence[str], books: Books, *, may_double: bool) -> Check:
    """
    Every subscriber was sent a letter; a second one is for want of protection alone.
    """
    times = Counter(books.letters)
    culprits = [f"{address}: no letter" for address in sign_ups if not times[address]]
    if not may_double:
        culprits += [f"{address} × {count}" for address, count in times.items() if count > 1]
    return Check(
        claim="No sign-up lost",
        found=f"{count_of(books.letters, 'letter')} for {count_of(sign_ups, 'sign-up')}",
        culprits=culprits,
    )


def count_of(things: Sized, name: str) -> str:
    """
    Write a count for people.
    """
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def euros(cents: int) -> str:
    """
    Write an amount for people.
    """
    return f"€ {cents / 100:,.2f}"
