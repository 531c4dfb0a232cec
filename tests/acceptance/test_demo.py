"""
The shop of the examples: its gateway, its proof, and the whole demo as a user runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.concurrency import run_together, wait_until
from support.redis_server import find_redis_server

SHOP = Path(__file__).resolve().parents[2] / "examples" / "shop"
LIMIT = 120

needs_server = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("django", "rest_framework", "redis", "gunicorn", "rich")
    ),
    reason="the demo needs django, djangorestframework, redis, gunicorn and rich",
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
errands = load("storm/errands")


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
ANSWERS = {"A-1": {"x"}, "A-2": {"y"}, "C-1": {"z"}}
BOOKS = {
    "charges": [("A-1", "ch_00001", 200), ("A-2", "ch_00002", 500)],
    "orders": [("A-1", "paid", "ch_00001", 200), ("A-2", "paid", "ch_00002", 500)],
    "stock": {"tea": 0, "mug": 2},
    "executions": [],
    "claims": [("C-1", "one.jpg")],
    "photos": {"one.jpg": "photo"},
    "letters": ["a@example.com", "b@example.com"],
}
FIRST, SECOND = BOOKS["charges"]  # type: ignore[misc]
ROW, OTHER_ROW = BOOKS["orders"]  # type: ignore[misc]


WANTED = proof.Wanted(
    orders=ORDERS,
    prices=PRICES,
    shelves=SHELVES,
    claims={"C-1": "photo"},
    sign_ups=["a@example.com", "b@example.com"],
)


def failing(
    answers: dict[str, set[str]] = ANSWERS, *, letters_may_double: bool = False, **changes: Any
) -> set[str]:
    books = proof.Books(**{**BOOKS, **changes})
    checks = proof.prove(WANTED, answers, books, letters_may_double=letters_may_double)
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
        ({"claims": []}, "One photo for each claim"),
        ({"claims": [("C-1", "one.jpg"), ("C-1", "two.jpg")]}, "One photo for each claim"),
        ({"photos": {}}, "One photo for each claim"),
        ({"photos": {"one.jpg": "another"}}, "One photo for each claim"),
        ({"photos": {"one.jpg": "photo", "two.jpg": "photo"}}, "One photo for each claim"),
        ({"answers": {"A-1": {"x"}, "C-1": {"z"}}}, "Retries got the first answer"),
        ({"answers": {**ANSWERS, "A-1": {"x", "z"}}}, "Retries got the first answer"),
        ({"answers": {**ANSWERS, "C-1": {"y", "z"}}}, "Retries got the first answer"),
        ({"letters": ["a@example.com"]}, "No sign-up lost"),
        ({"letters": [*BOOKS["letters"], "a@example.com"]}, "No sign-up lost"),
    ],
)
def test_proof_finds_what_is_wrong(changes: dict[str, Any], claim: str) -> None:
    """
    Each kind of double, lost or wrong order fails the check that is about it.
    """
    assert claim in failing(**changes)


def test_proof_allows_a_second_letter_where_sign_ups_ran_unprotected() -> None:
    """
    After an outage a letter may have gone out twice, but none may be missing.
    """
    twice = [*BOOKS["letters"], "a@example.com"]
    assert failing(letters=twice, letters_may_double=True) == set()
    assert failing(letters=["a@example.com"] * 2, letters_may_double=True) == {"No sign-up lost"}


def test_upload_has_a_new_boundary_each_time_and_the_same_key() -> None:
    """
    Two attempts for one claim differ in their bytes, and in nothing that a key stands for.
    """
    claim = errands.claim_errand("C-1", seed=1)
    (headers, body), (other_headers, other_body) = claim.request({}), claim.request({})
    assert headers["Idempotency-Key"] == other_headers["Idempotency-Key"]
    assert headers["Content-Type"] != other_headers["Content-Type"]
    boundary, other_boundary = (
        found["Content-Type"].rpartition("=")[2].encode() for found in (headers, other_headers)
    )
    assert body != other_body == body.replace(boundary, other_boundary)
    assert claim.photo in body


def test_partners_send_the_same_keys_for_different_orders() -> None:
    """
    A third of the orders are the partners', and both count their keys from 1.
    """
    found = errands.order_errands([{"number": f"A-{count}"} for count in range(60)])
    keys = {
        partner: [errand.key for errand in found if errand.partner == partner]
        for partner in errands.PARTNERS
    }
    assert keys["north"] == keys["south"] == [str(count) for count in range(1, 11)]
    assert len({errand.number for errand in found}) == 60


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
def demo(folder: Path, *arguments: str, shop: Path = SHOP) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(shop / "demo.py"), *arguments],
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


def run_demo(folder: Path, *arguments: str, shop: Path = SHOP) -> tuple[int, str]:
    with demo(folder, "--orders", "12", "--attempts", "3", *arguments, shop=shop) as process:
        output, _ = process.communicate(timeout=LIMIT)
        return process.returncode, output


def assert_questions_are_answered(output: str) -> None:
    for claim in (
        "Two partners, one key",
        "A photo again, and another",
        "A wrong order, twice",
        "A partner's new token",
        "A partner shut out",
    ):
        assert f"✔  {claim}" in output


def assert_nothing_is_left(folder: Path, output: str) -> None:
    assert list(folder.iterdir()) == []
    ports = re.findall(r"//127\.0\.0\.1:(\d+)", output)
    assert ports
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), timeout=5)


@pytest.fixture(scope="module")
def output_over_redis(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("demo")
    status, output = run_demo(folder, "--workers", "2")
    assert status == 0, output
    assert_nothing_is_left(folder, output)
    return output


@pytest.mark.slow
@pytest.mark.redis
@needs_server
@needs_redis
def test_demo_charges_once_over_redis_while_a_worker_is_killed(output_over_redis: str) -> None:
    """
    Several processes, one of them killed after a charge: every order happens once.
    """
    assert "Every order happened exactly once." in output_over_redis
    assert "was killed with signal 9" in output_over_redis
    assert "12 charges for 12 orders" in output_over_redis
    assert "1 photo for 1 claim" in output_over_redis
    assert_questions_are_answered(output_over_redis)


@pytest.mark.slow
@pytest.mark.redis
@needs_server
@needs_redis
@pytest.mark.parametrize(
    "line",
    [
        r"Redis froze after .* s, crashed .* s later, and was back",
        r" [1-9]\d* +turned away +orders and claims",
        r" [1-9]\d* +ran unprotected +sign-ups",
        r"\d s +the longest request +STORAGE_TIMEOUT is 1 s",
        r" 0 +without an answer",
    ],
)
def test_demo_answers_everybody_over_an_outage_of_redis(output_over_redis: str, line: str) -> None:
    """
    While Redis is away orders are refused and sign-ups run unprotected; then all are answered.
    """
    assert re.search(line, output_over_redis), output_over_redis


@pytest.mark.slow
@pytest.mark.redis
@needs_server
@needs_redis
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_ctrl_c_while_redis_is_frozen_leaves_nothing_behind(tmp_path: Path) -> None:
    """
    Ctrl-C in the middle of the outage ends a frozen Redis as well as everything else.
    """
    with demo(tmp_path, "--orders", "60", "--workers", "2") as process:
        found: list[int] = []

        def is_frozen() -> bool:
            found[:] = frozen_processes_in(tmp_path)
            return bool(found)

        wait_until(is_frozen, LIMIT)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, output
    assert "everything that was started is gone again" in output
    assert not Path(f"/proc/{found[0]}").exists()
    assert_nothing_is_left(tmp_path, output)


def frozen_processes_in(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state == "T" and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


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
    assert "an outage of what they share" in output
    assert "The outage" not in output
    assert_questions_are_answered(output)
    assert_nothing_is_left(tmp_path, output)


@pytest.mark.slow
@needs_server
def test_demo_fails_where_a_question_is_answered_wrongly(tmp_path: Path) -> None:
    """
    A partners' view that has forgotten its permissions is found out by its stored answer.
    """
    shop = tmp_path / "shop"
    shutil.copytree(SHOP, shop, ignore=shutil.ignore_patterns("__pycache__"))
    view = shop / "orders" / "partners.py"
    text = view.read_text()
    careless = text.replace(
        "permission_classes = (DjangoModelPermissions,)", "permission_classes = ()"
    )
    assert careless != text
    view.write_text(careless)
    folder = tmp_path / "run"
    folder.mkdir()
    status, output = run_demo(folder, "--memory", shop=shop)
    assert status == 1, output
    assert "✘  A partner shut out" in output
    assert "201 (replays)" in output
    assert "the shop answered a question wrongly" in output
    assert_nothing_is_left(folder, output)


@pytest.mark.slow
@needs_server
def test_demo_fails_without_the_library(tmp_path: Path) -> None:
    """
    The same storm without the library charges twice, and the proof says so.
    """
    status, output = run_demo(tmp_path, "--memory", "--unprotected")
    assert status == 1, output
    assert "Not every order happened exactly once." in output
    for claim in ("No order charged twice", "One photo for each claim", "No sign-up lost"):
        assert f"✘  {claim}" in output
    assert_nothing_is_left(tmp_path, output)


@pytest.mark.slow
@pytest.mark.redis
@needs_server
@needs_redis
def test_serve_answers_as_promised_while_its_storage_is_frozen(tmp_path: Path) -> None:
    """
    The printed signal leaves an order with 503 and a sign-up unprotected; Ctrl-C works then, too.
    """
    with demo(tmp_path, "serve", "--workers", "1") as process:
        output = read_what_to_try(process)
        stop, go_on = re.findall(r"^kill -(STOP|CONT) (\d+)$", output, re.MULTILINE)
        assert (stop[0], go_on[0]) == ("STOP", "CONT")
        assert stop[1] == go_on[1]
        lines = [line for line in output.splitlines() if line.startswith("curl")]
        os.kill(int(stop[1]), signal.SIGSTOP)
        status, headers, _ = send_curl(lines[0])
        assert status == 503
        assert headers["Retry-After"] == "1"
        status, headers, _ = send_curl(lines[-1])
        assert status == 201
        assert headers["X-Idempotency-Status"] == "unprotected"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, rest
    assert_nothing_is_left(tmp_path, output)


def read_what_to_try(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    return "".join(lines)


def curl(command: str) -> tuple[int, bool, bytes]:
    status, headers, body = send_curl(command)
    return status, "Idempotent-Replayed" in headers, body


def send_curl(command: str) -> tuple[int, Mapping[str, str], bytes]:
    # What curl does with such a line, so that nobody needs it to test.
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-i", action="store_true")
    parser.add_argument("-H", action="append")
    parser.add_argument("-F", action="append")
    parser.add_argument("-d")
    line, _, echo = command.rpartition("; ")
    assert echo == "echo"
    options = parser.parse_args(shlex.split(line)[1:])
    headers = dict(header.split(": ", 1) for header in options.H)
    body = options.d.encode() if options.d is not None else form(options.F, headers)
    request = urllib.request.Request(options.url, data=body, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=LIMIT)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read()


def form(fields: list[str], headers: dict[str, str]) -> bytes:
    boundary = uuid.uuid4().hex
    headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
    body = b""
    for field in fields:
        name, _, value = field.partition("=")
        content, more = value.encode(), ""
        if value.startswith("@"):
            content, more = Path(value[1:]).read_bytes(), f'; filename="{Path(value).name}"'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


@pytest.mark.slow
@needs_server
def test_serve_answers_as_its_curl_lines_promise_until_ctrl_c(tmp_path: Path) -> None:
    """
    Each printed request gets what is said above it; Ctrl-C leaves nothing behind.
    """
    with demo(tmp_path, "serve", "--memory") as process:
        output = read_what_to_try(process)
        answers = [curl(line) for line in output.splitlines() if line.startswith("curl")]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=LIMIT)
    assert [(status, replayed) for status, replayed, _ in answers] == [
        *((201, False), (201, True), (422, False)),  # orders
        *((201, False), (201, True), (401, False)),  # a partner's orders
        *((201, False), (201, True), (422, False)),  # claims
        (201, False),  # the newsletter
    ], output
    for first in (0, 3, 6):
        assert answers[first][2] == answers[first + 1][2]
    assert process.returncode == 0, rest
    assert "Closing the shop." in rest
    assert_nothing_is_left(tmp_path, output)
