"""
The shop of the examples: its gateway, its proof, and the whole demo as a user runs it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.concurrency import run_together
from support.redis_server import find_redis_server

SHOP = Path(__file__).resolve().parents[2] / "examples" / "shop"
LIMIT = 120

needs_server = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("django", "redis", "gunicorn", "rich")),
    reason="the demo needs django, redis, gunicorn and rich",
)
needs_redis = pytest.mark.skipif(find_redis_server() is None, reason="no redis-server here")


def load(name: str) -> ModuleType:
    path = SHOP / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"shop_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


gateway = load("gateway")
proof = load("storm/proof")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Any]:
    ledger = gateway.Ledger(tmp_path / "ledger.sqlite3")
    yield ledger
    ledger.close()


@contextlib.contextmanager
def serving(ledger: Any, **rates: float) -> Iterator[str]:
    faults = gateway.Faults(gateway.Rates(**rates), seed=1)
    with gateway.Gateway(ledger, faults, latency=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            faults.release()
            server.shutdown()
            thread.join()


def post(url: str, body: object, **headers: str) -> tuple[int, dict[str, str], Any]:
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"}
        | {name.replace("_", "-"): value for name, value in headers.items()},
    )
    try:
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), json.load(error)


CHARGE = {"order": "A-1", "amount_cents": 890}


def charges(ledger: Any) -> int:
    path = ledger._connection.execute("PRAGMA database_list").fetchone()[2]
    return len(proof.read(Path(path), "SELECT id FROM charges"))


def test_gateway_charges_once_for_one_key(ledger: Any) -> None:
    """
    The same key and body get the same charge, and the ledger holds one.
    """
    with serving(ledger) as url:
        first = post(f"{url}/charges", CHARGE, Idempotency_Key="k")
        again = post(f"{url}/charges", CHARGE, Idempotency_Key="k")
    assert (first[0], first[2]) == (again[0], again[2]) == (201, {"id": "ch_00001", **CHARGE})
    assert charges(ledger) == 1


def test_gateway_charges_each_time_without_a_key(ledger: Any) -> None:
    """
    Without a key, or with another one, every call is a charge of its own.
    """
    with serving(ledger) as url:
        answers = [post(f"{url}/charges", CHARGE) for _ in range(2)]
        answers.append(post(f"{url}/charges", CHARGE, Idempotency_Key="k"))
    assert [answer[2]["id"] for answer in answers] == ["ch_00001", "ch_00002", "ch_00003"]
    assert charges(ledger) == 3


def test_gateway_refuses_the_key_of_another_charge(ledger: Any) -> None:
    """
    A key that comes back with another amount is answered 422 and charges nothing.
    """
    with serving(ledger) as url:
        post(f"{url}/charges", CHARGE, Idempotency_Key="k")
        status, _, _ = post(f"{url}/charges", {**CHARGE, "amount_cents": 1}, Idempotency_Key="k")
    assert status == 422
    assert charges(ledger) == 1


@pytest.mark.parametrize("body", [[], {}, {"order": 1}, {"order": "A-1", "amount_cents": True}])
def test_gateway_refuses_what_is_no_charge(ledger: Any, body: object) -> None:
    """
    A body without an order and a positive amount is answered 400 and charges nothing.
    """
    with serving(ledger) as url:
        assert post(f"{url}/charges", body)[0] == 400
    assert charges(ledger) == 0


def test_gateway_charges_once_for_simultaneous_calls(ledger: Any) -> None:
    """
    Eight calls with one key at the same moment make one charge.
    """
    found = run_together(8, lambda: ledger.charge("k", "A-1", 890).charge_id)
    assert set(found) == {"ch_00001"}
    assert charges(ledger) == 1


def test_gateway_fails_before_it_charges(ledger: Any) -> None:
    """
    A failure is answered 503, with nothing in the ledger.
    """
    with serving(ledger, fail=1.0) as url:
        assert post(f"{url}/charges", CHARGE, Idempotency_Key="k")[0] == 503
    assert charges(ledger) == 0


def test_gateway_hangs_up_after_it_charged(ledger: Any) -> None:
    """
    A dropped connection leaves a charge behind, which the retry is told of.
    """
    with serving(ledger) as url:
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            post(f"{url}/charges", CHARGE, Idempotency_Key="k", X_Gateway_Fault="drop")
        assert charges(ledger) == 1
        assert post(f"{url}/charges", CHARGE, Idempotency_Key="k")[2]["id"] == "ch_00001"
    assert charges(ledger) == 1


def test_faults_depend_on_the_seed_alone() -> None:
    """
    The same orders meet the same faults in every run, and others under another seed.
    """
    rates = gateway.Rates(fail=0.3, drop=0.3, slow=0.3)

    def draws(seed: int) -> list[str | None]:
        faults = gateway.Faults(rates, seed)
        return [faults.draw(f"A-{count // 2}") for count in range(60)]

    assert draws(1) == draws(1) != draws(2)


ORDERS = [
    {"number": "A-1", "product": "tea", "quantity": 2},
    {"number": "A-2", "product": "mug", "quantity": 1},
]
PRICES = {"tea": 100, "mug": 500}
SHELVES = {"tea": 2, "mug": 3}
ANSWERS = {"A-1": {"x"}, "A-2": {"y"}}
BOOKS = {
    "charges": [("A-1", "ch_00001", 200), ("A-2", "ch_00002", 500)],
    "orders": [("A-1", "paid", "ch_00001", 200), ("A-2", "paid", "ch_00002", 500)],
    "stock": {"tea": 0, "mug": 2},
    "executions": [],
}
FIRST, SECOND = BOOKS["charges"]  # type: ignore[misc]
ROW, OTHER_ROW = BOOKS["orders"]  # type: ignore[misc]


def failing(answers: dict[str, set[str]] = ANSWERS, **changes: Any) -> set[str]:
    books = proof.Books(**{**BOOKS, **changes})
    checks = proof.prove(ORDERS, PRICES, SHELVES, answers, books)
    return {check.claim for check in checks if not check.holds}


def test_proof_accepts_books_that_are_right() -> None:
    """
    Nothing speaks against books in which every order happened once.
    """
    assert failing() == set()


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"charges": [FIRST, SECOND, ("A-2", "ch_00003", 500)]}, "No order charged twice"),
        ({"charges": [FIRST]}, "No order lost"),
        ({"charges": [FIRST, SECOND, ("A-9", "ch_00003", 1)]}, "No order lost"),
        (
            {"charges": [("A-1", "ch_00001", 201), ("A-2", "ch_00002", 499)]},
            "The right money taken",
        ),
        ({"orders": [ROW]}, "Shop and ledger agree"),
        ({"orders": [ROW, OTHER_ROW, OTHER_ROW]}, "Shop and ledger agree"),
        ({"orders": [ROW, ("A-2", "reserved", "", 500)]}, "Shop and ledger agree"),
        ({"orders": [ROW, ("A-2", "paid", "ch_00001", 500)]}, "Shop and ledger agree"),
        ({"stock": {"tea": 0, "mug": 1}}, "The stock adds up"),
        ({"answers": {"A-1": {"x"}}}, "Retries got the first answer"),
        ({"answers": {"A-1": {"x", "z"}, "A-2": {"y"}}}, "Retries got the first answer"),
    ],
)
def test_proof_finds_what_is_wrong(changes: dict[str, Any], claim: str) -> None:
    """
    Each kind of double, lost or wrong order fails the check that is about it.
    """
    assert claim in failing(**changes)


def test_orders_are_what_the_generator_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The checked-in orders are those of the checked-in script.
    """
    generator = load("make_orders")
    monkeypatch.setattr(generator, "HERE", tmp_path)
    for name in ("catalog.json",):
        (tmp_path / name).write_bytes((SHOP / name).read_bytes())
    generator.main()
    assert (tmp_path / "orders.jsonl").read_bytes() == (SHOP / "orders.jsonl").read_bytes()


@pytest.mark.slow
@needs_server
def test_shop_has_a_migration_for_each_change_of_its_models(tmp_path: Path) -> None:
    """
    Django finds nothing in the shop's models that its migrations do not create.
    """
    check = subprocess.run(
        [sys.executable, str(SHOP / "manage.py"), "makemigrations", "--check", "--dry-run"],
        env={**os.environ, "SHOP_DATA": str(tmp_path), "DJANGO_SETTINGS_MODULE": "shop.settings"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert check.returncode == 0, check.stdout + check.stderr


@contextlib.contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(SHOP / "demo.py"), *arguments],
        env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "100", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()  # it cleans up after itself, and is waited for


def run_demo(folder: Path, *arguments: str) -> tuple[int, str]:
    with demo(folder, "--orders", "12", "--attempts", "3", *arguments) as process:
        output, _ = process.communicate(timeout=LIMIT)
        return process.returncode, output


def assert_nothing_is_left(folder: Path, output: str) -> None:
    assert list(folder.iterdir()) == []
    ports = re.findall(r"//127\.0\.0\.1:(\d+)", output)
    assert ports
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), timeout=5)


@pytest.mark.slow
@pytest.mark.redis
@needs_server
@needs_redis
def test_demo_charges_once_over_redis_while_a_worker_is_killed(tmp_path: Path) -> None:
    """
    Several processes, one of them killed after a charge: every order happens once.
    """
    status, output = run_demo(tmp_path, "--workers", "2")
    assert status == 0, output
    assert "Every order happened exactly once." in output
    assert "was killed with signal 9" in output
    assert "12 charges for 12 orders" in output
    assert_nothing_is_left(tmp_path, output)


@pytest.mark.parametrize("number", ["abc", "0", "-1", "1.5"])
def test_number_that_is_none_is_refused_by_name(number: str, tmp_path: Path) -> None:
    """
    A count that cannot be is refused in words, and nothing is started.
    """
    status, output = run_demo(tmp_path, f"--orders={number}")
    assert status == 2
    assert f"must be a whole number of at least 1, not '{number}'" in output


@pytest.mark.slow
@needs_server
def test_demo_charges_once_over_memory(tmp_path: Path) -> None:
    """
    One process over memory: every order happens once, and the output says what is left out.
    """
    status, output = run_demo(tmp_path, "--memory")
    assert status == 0, output
    assert "Every order happened exactly once." in output
    assert "Left out" in output
    assert_nothing_is_left(tmp_path, output)


@pytest.mark.slow
@needs_server
def test_demo_fails_without_the_library(tmp_path: Path) -> None:
    """
    The same storm without the library charges twice, and the proof says so.
    """
    status, output = run_demo(tmp_path, "--memory", "--unprotected")
    assert status == 1, output
    assert "Not every order happened exactly once." in output
    assert_nothing_is_left(tmp_path, output)


@pytest.mark.slow
@needs_server
def test_serve_answers_as_its_curl_lines_promise_until_ctrl_c(tmp_path: Path) -> None:
    """
    The three printed requests get 201, the replay and 422; Ctrl-C leaves nothing behind.
    """
    with demo(tmp_path, "serve", "--memory") as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        output = "".join(lines)
        commands = [line for line in lines if line.startswith("curl")]
        answers = []
        for command in commands:
            url = re.search(r"http://\S+", command)
            key = re.search(r"Idempotency-Key: ([\w-]+)", command)
            body = re.search(r"-d '(.*)'", command)
            assert url is not None
            assert key is not None
            assert body is not None
            answers.append(post(url[0], json.loads(body[1]), Idempotency_Key=key[1]))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=LIMIT)
    first, replay, reused = answers
    assert (first[0], replay[0], reused[0]) == (201, 201, 422), output
    assert first[2] == replay[2]
    assert "Idempotent-Replayed" not in first[1]
    assert replay[1]["Idempotent-Replayed"] == "true"
    assert process.returncode == 0, rest
    assert "Closing the shop." in rest
    assert_nothing_is_left(tmp_path, output)
