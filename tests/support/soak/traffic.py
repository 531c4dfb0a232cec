"""
Clients that send everything that clients send, and note what they got.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from support.http_clients import Response

PATIENCE = 30.0
USERS = ("Token alice", "Token bob", "Token carol")

_UPLOAD = (
    b'--x\r\nContent-Disposition: form-data; name="note"\r\n\r\n%b\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n%b\r\n--x--\r\n"
)
# How often a client does what, in parts.
_MIX = {
    "new": 30,
    "retry": 30,
    "crowd": 6,
    "other body": 6,
    "other user": 6,
    "no key": 8,
    "hang up": 6,
}
_PATHS = {"/quick": 50, "/slow": 12, "/moody": 12, "/deferred": 12, "/upload": 14}
_REMEMBERED = 60


@dataclass(frozen=True)
class Order:
    """
    One piece of work that a client wants; immutable.
    """

    user: str
    key: str | None
    path: str
    body: bytes

    @property
    def account(self) -> tuple[str, str] | None:
        """
        Whose key it is; None without one.
        """
        return None if self.key is None else (self.user, self.key)


@dataclass(frozen=True)
class Exchange:
    """
    One request and what came of it; immutable.

    Attributes:
        order: What was wanted.
        pid: The worker that was asked.
        kind: One of `KINDS`, or what nobody expects.
        run: The run that its answer names, or an empty string.
        began: When it was sent, on the monotonic clock.
        ended: When it was over.
        detail: For what nobody expects.
    """

    order: Order
    pid: int
    kind: str
    run: str
    began: float
    ended: float
    detail: str = ""


KINDS = (
    "ran",
    "unprotected",
    "replayed",
    "still running",
    "key reused",
    "outcome unknown",
    "refused",
    "failed",
    "hung up",
    "cut off",
)
"""
The answers that clients may get. `hung up`: it did not wait; `cut off`: the worker was killed.
"""


def classify(order: Order, response: Response) -> tuple[str, str]:
    """
    Return the kind of an answer and the run that it names.
    """
    problem = response.problem
    known = {
        (409, "still-running"): "still running",
        (422, "key-reused"): "key reused",
        (409, "outcome-unknown"): "outcome unknown",
        (503, "storage-unavailable"): "refused",
    }
    if problem is not None:
        return known.get((response.status, problem), f"{response.status} {problem}"), ""
    told = response.json()
    if response.status == 202 and told.get("status") == "in_progress":
        return "still running", ""
    run = str(told.get("run", ""))
    if told.get("user", order.user) != order.user:
        return "somebody else's answer", run
    if response.status == 500:
        return "failed", run
    if not run or response.status not in (200, 201):
        return f"status {response.status}", run
    if response.is_replay:
        return "replayed", run
    unprotected = response.get("X-Idempotency-Status") == "unprotected"
    return "unprotected" if unprotected else "ran", run


class Worker:
    """
    Where requests go: one address at a time, which changes when a worker is replaced.

    Instances may be shared between threads: `place` is replaced as a whole.
    """

    def __init__(self, pid: int, port: int) -> None:
        self.place = (pid, port)


class Clients:
    """
    Some threads that send requests until they are told to stop.

    Instances may be shared between threads: `_lock` guards `exchanges`, `_orders` and `_made`.
    """

    def __init__(self, workers: Sequence[Worker], *, seed: int, count: int, name: str) -> None:
        self.exchanges: list[Exchange] = []
        self._workers = workers
        self._name = name
        self._lock = threading.Lock()
        self._orders: deque[Order] = deque(maxlen=_REMEMBERED)
        self._made = 0
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._work, args=(random.Random(f"{seed}-{name}-{number}"),), daemon=True
            )
            for number in range(count)
        ]
        # A thread for each of a crowd, so that nobody waits for anybody else's answer.
        self._crowds = ThreadPoolExecutor(3 * count, thread_name_prefix=f"crowd-{name}")

    def start(self) -> None:
        """
        Begin to send.
        """
        for thread in self._threads:
            thread.start()

    def stop(self) -> bool:
        """
        Send no more, and wait for all answers; False if one never came.
        """
        self._stopping.set()
        deadline = time.monotonic() + 3 * PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        self._crowds.shutdown(wait=ended)
        return ended

    def count(self) -> int:
        """
        Return how many requests have ended.
        """
        with self._lock:
            return len(self.exchanges)

    def send(self, order: Order, worker: Worker, *, hang_up: bool = False) -> Exchange:
        """
        Send one request and note what came of it.
        """
        pid, port = worker.place
        began = time.monotonic()
        run = detail = ""
        try:
            if hang_up:
                _send_and_leave(port, order)
                kind = "hung up"
            else:
                kind, run = classify(order, _ask(port, order))
        except TimeoutError:
            kind = "no answer"
        except (OSError, http.client.HTTPException) as error:
            kind, detail = "cut off", repr(error)
        except (ValueError, AssertionError, AttributeError) as error:
            kind, detail = "garbled", repr(error)
        exchange = Exchange(order, pid, kind, run, began, time.monotonic(), detail)
        with self._lock:
            self.exchanges.append(exchange)
        return exchange

    def _work(self, chance: random.Random) -> None:
        while not self._stopping.is_set():
            (what,) = chance.choices(list(_MIX), list(_MIX.values()))
            worker = chance.choice(self._workers)
            if what == "crowd":
                order = self._make_order(chance)
                others = [chance.choice(self._workers) for _ in range(3)]
                pending = [self._crowds.submit(self.send, order, other) for other in others]
                self.send(order, worker)
                for each in pending:
                    each.result(2 * PATIENCE)
            else:
                self.send(self._choose(what, chance), worker, hang_up=what == "hang up")
            self._stopping.wait(chance.random() / 25)

    def _choose(self, what: str, chance: random.Random) -> Order:
        if what == "no key":
            return Order(chance.choice(USERS), None, "/quick", b'{"n": 0}')
        if what in ("new", "hang up"):
            return self._make_order(chance)
        with self._lock:
            known = list(self._orders)
        if not known:
            return self._make_order(chance)
        order = chance.choice(known)
        if what == "other body":
            return Order(order.user, order.key, "/quick", b'{"other": true}')
        if what == "other user":
            return Order(chance.choice(USERS), order.key, order.path, order.body)
        return order

    def _make_order(self, chance: random.Random) -> Order:
        with self._lock:
            self._made += 1
            number = self._made
        (path,) = chance.choices(list(_PATHS), list(_PATHS.values()))
        body = b'{"n": %d}' % number
        if path == "/upload":
            body = _UPLOAD % (b"%d" % number, chance.randbytes(chance.choice((100, 200_000))))
        order = Order(chance.choice(USERS), f"{self._name}-{number}", path, body)
        with self._lock:
            self._orders.append(order)
        return order


def settle_all(clients: Clients, worker: Worker, limit: float) -> list[Order]:
    """
    Ask for every key once more, until none is running; return the orders that stay so.
    """
    first: dict[tuple[str, str], Order] = {}
    for exchange in list(clients.exchanges):
        account = exchange.order.account
        if account is not None and exchange.kind != "key reused":
            first.setdefault(account, exchange.order)
    left = list(first.values())
    deadline = time.monotonic() + limit
    with ThreadPoolExecutor(8) as pool:
        while left and time.monotonic() < deadline:
            answers = list(pool.map(lambda order: clients.send(order, worker), left))
            left = [each.order for each in answers if each.kind in ("still running", "refused")]
            if left:
                time.sleep(0.5)
    return left


def _ask(port: int, order: Order) -> Response:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", order.path, order.body, _headers(order))
        answer = connection.getresponse()
        return Response(answer.status, answer.getheaders(), answer.read())
    finally:
        connection.close()


def _send_and_leave(port: int, order: Order) -> None:
    headers = {**_headers(order), "Host": "127.0.0.1", "Content-Length": str(len(order.body))}
    lines = [f"POST {order.path} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + order.body)


def _headers(order: Order) -> dict[str, str]:
    is_form = order.path == "/upload" and order.body.startswith(b"--x")
    kind = "multipart/form-data; boundary=x" if is_form else "application/json"
    headers = {"Content-Type": kind, "Authorization": order.user}
    if order.key is not None:
        headers["Idempotency-Key"] = order.key
    return headers


def dump(exchange: Exchange) -> str:
    """
    Return a line about an exchange, for whoever looks into a finding.
    """
    return json.dumps(
        {
            "user": exchange.order.user,
            "key": exchange.order.key,
            "path": exchange.order.path,
            "pid": exchange.pid,
            "kind": exchange.kind,
            "run": exchange.run,
            "began": exchange.began,
            "ended": exchange.ended,
            "detail": exchange.detail,
        }
    )
