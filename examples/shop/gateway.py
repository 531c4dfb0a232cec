"""
The payment gateway: a process of its own, with a ledger of its own.

It stands for the payment provider that every shop talks to, and it behaves as the good
ones do: a charge that is sent again under the same ``Idempotency-Key`` is not made again.
Like the real ones it can also be slow, fail, or take the money and hang up. What goes
wrong is drawn from a seed, so that two runs meet the same trouble.

    POST /charges   {"order": "A-0001", "amount_cents": 890}
                    201 the charge; the same charge for the same key and body
                    400 what was sent is no charge
                    422 the same key with another body
                    503 it failed before anything was charged
    POST /control   {"hold": "A-0001"}: charge this order, then hold the answer back
                    {"release": true}: let go of it; its caller sees the connection drop
    GET  /control   {"holding": "A-0001"}, or null

A request may name its own trouble: ``X-Gateway-Fault: fail``, ``drop`` or ``slow``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOLD_LIMIT = 20.0
MAX_BODY = 64 * 1024
SCHEMA = """
CREATE TABLE IF NOT EXISTS charges (
    id INTEGER PRIMARY KEY,
    idempotency_key TEXT UNIQUE,
    fingerprint TEXT NOT NULL,
    order_number TEXT NOT NULL,
    amount_cents INTEGER NOT NULL
)
"""


class KeyReusedError(Exception):
    """
    The same key came with another charge.
    """


@dataclass(frozen=True, kw_only=True)
class Charge:
    """
    One line of the ledger. Immutable, so it may be shared between threads.
    """

    charge_id: str
    order_number: str
    amount_cents: int

    def to_dict(self) -> dict[str, Any]:
        """
        Return the charge as the answer's JSON.
        """
        return {
            "id": self.charge_id,
            "order": self.order_number,
            "amount_cents": self.amount_cents,
        }


class Ledger:
    """
    The book of charges in SQLite. Instances may be shared between threads.

    ``_lock`` guards the one connection, and so makes look-up and insert one step.
    """

    def __init__(self, path: str | Path) -> None:
        """
        Open the ledger, and create it if it is not there.
        """
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(SCHEMA)

    def charge(self, key: str | None, order_number: str, amount_cents: int) -> Charge:
        """
        Make a charge, or return the one that was made under this key.

        The insert is one committed statement: a process that dies before it has charged
        nothing, and one that dies after it finds the charge again by its key. Without a key
        every call is a new charge, which is what shops learn the hard way.

        Raises:
            KeyReusedError: The key belongs to a charge of another order or amount.
        """
        text = json.dumps([order_number, amount_cents])
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        with self._lock:
            self._connection.execute(
                "INSERT INTO charges (idempotency_key, fingerprint, order_number, amount_cents)"
                " VALUES (?, ?, ?, ?) ON CONFLICT (idempotency_key) DO NOTHING",
                (key, fingerprint, order_number, amount_cents),
            )
            row_id, known = self._connection.execute(
                "SELECT id, fingerprint FROM charges WHERE idempotency_key = ?"
                " OR (? IS NULL AND id = last_insert_rowid())",
                (key, key),
            ).fetchone()
        if known != fingerprint:
            raise KeyReusedError
        return Charge(
            charge_id=f"ch_{row_id:05}", order_number=order_number, amount_cents=amount_cents
        )

    def close(self) -> None:
        """
        Close the file.
        """
        with self._lock:
            self._connection.close()


@dataclass(frozen=True, kw_only=True)
class Rates:
    """
    How often things go wrong, each a share between 0 and 1. Immutable.
    """

    fail: float = 0.0
    drop: float = 0.0
    slow: float = 0.0


class Faults:
    """
    Decides what goes wrong. Instances may be shared between threads.

    ``_lock`` guards ``_calls``, ``_to_hold`` and ``_holding``.
    """

    def __init__(self, rates: Rates, seed: int) -> None:
        """
        Draw from ``seed`` at these rates.
        """
        self._rates = rates
        self._seed = seed
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._to_hold: str | None = None
        self._holding: str | None = None
        self._released = threading.Event()

    def draw(self, order_number: str) -> str | None:
        """
        Return what happens to this call: ``fail``, ``drop``, ``slow`` or nothing.

        It depends on the seed, the order and how often the order was seen, and not on
        which thread came first.
        """
        with self._lock:
            self._calls[order_number] += 1
            call = self._calls[order_number]
        dice = random.Random(f"{self._seed}:{order_number}:{call}").random()
        for fault in ("fail", "drop", "slow"):
            share: float = getattr(self._rates, fault)
            if dice < share:
                return fault
            dice -= share
        return None

    def hold(self, order_number: str) -> None:
        """
        Hold back the answer to the next charge of this order.
        """
        with self._lock:
            self._released.clear()
            self._to_hold = order_number

    def release(self) -> None:
        """
        Let go of the call that is held, if there is one.
        """
        with self._lock:
            self._to_hold = None
            self._released.set()

    def holding(self) -> str | None:
        """
        Return the order whose answer is held back.
        """
        with self._lock:
            return self._holding

    def held(self, order_number: str) -> bool:
        """
        Wait here if this call is the one to hold back; answer whether it was.
        """
        with self._lock:
            if self._to_hold != order_number:
                return False
            self._to_hold = None
            self._holding = order_number
        self._released.wait(HOLD_LIMIT)
        with self._lock:
            self._holding = None
        return True


class Gateway(ThreadingHTTPServer):
    """
    The server: a thread per connection over one ledger. Shared between its threads.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, ledger: Ledger, faults: Faults, *, latency: float, port: int = 0) -> None:
        """
        Listen on loopback; port 0 takes a free one.
        """
        super().__init__(("127.0.0.1", port), Handler)
        self.ledger = ledger
        self.faults = faults
        self.latency = latency


class Handler(BaseHTTPRequestHandler):
    """
    Answers one connection. One per thread.
    """

    protocol_version = "HTTP/1.1"
    timeout = 30
    server: Gateway

    def do_GET(self) -> None:
        """
        Tell what is held back.
        """
        if self.path != "/control":
            self._answer(404, {"error": "Only /charges and /control live here."})
            return
        self._answer(200, {"holding": self.server.faults.holding()})

    def do_POST(self) -> None:
        """
        Make a charge, or take an instruction.
        """
        body = self._read_json()
        if body is None:
            self._answer(400, {"error": "Send one JSON object."})
        elif self.path == "/control":
            self._control(body)
        elif self.path == "/charges":
            self._charge(body)
        else:
            self._answer(404, {"error": "Only /charges and /control live here."})

    def _control(self, body: dict[str, Any]) -> None:
        if isinstance(body.get("hold"), str):
            self.server.faults.hold(body["hold"])
        if body.get("release"):
            self.server.faults.release()
        self._answer(200, {"holding": self.server.faults.holding()})

    def _charge(self, body: dict[str, Any]) -> None:
        order_number, amount_cents = body.get("order"), body.get("amount_cents")
        if not isinstance(order_number, str) or type(amount_cents) is not int or amount_cents < 1:
            self._answer(400, {"error": "A charge has an order and a positive amount_cents."})
            return
        fault = self.headers.get("X-Gateway-Fault") or self.server.faults.draw(order_number)
        time.sleep(self.server.latency * (10 if fault == "slow" else 1))
        if fault == "fail":
            self._answer(503, {"error": "The bank does not answer. Nothing was charged."})
            return
        key = self.headers.get("Idempotency-Key")
        try:
            charge = self.server.ledger.charge(key, order_number, amount_cents)
        except KeyReusedError:
            self._answer(422, {"error": "This Idempotency-Key belongs to another charge."})
            return
        # From here on the money has moved, whatever becomes of the answer.
        if self.server.faults.held(order_number) or fault == "drop":
            self.close_connection = True
            return
        self._answer(201, charge.to_dict())

    def _read_json(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True
            return None
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """
        Keep quiet: the ledger is the record.
        """


def main() -> None:
    """
    Run the gateway until it is stopped, and print its address first.
    """
    parser = argparse.ArgumentParser(description="A payment gateway that can misbehave.")
    parser.add_argument("--ledger", required=True, help="SQLite file of the charges")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--latency", type=float, default=0.01, help="seconds per charge")
    parser.add_argument("--fail", type=float, default=0.0, help="share that fails uncharged")
    parser.add_argument("--drop", type=float, default=0.0, help="share charged without an answer")
    parser.add_argument("--slow", type=float, default=0.0, help="share that takes ten times longer")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rates = Rates(fail=options.fail, drop=options.drop, slow=options.slow)
    ledger = Ledger(options.ledger)
    server = Gateway(
        ledger, Faults(rates, options.seed), latency=options.latency, port=options.port
    )
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        ledger.close()


if __name__ == "__main__":
    main()
