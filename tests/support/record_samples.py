"""
One sample of each kind of record, and of all that keys, fingerprints and payloads are made from.

What is written here is kept for each released version, so samples are added and never changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from io import BytesIO
from itertools import count
from typing import Any
from unittest.mock import patch
from uuid import UUID

from dotmac_tasks.canonical import canonical_json
from dotmac_tasks.fingerprint import (
    FilePart,
    body_digest,
    parts_digest,
    request_fingerprint,
    selected_digest,
)
from dotmac_tasks.keys import generate_idempotency_key, http_storage_key
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import ClaimOutcome, OperationStatus
from dotmac_tasks.serialization import (
    encode_error,
    encode_response,
    encode_result,
    encode_tombstone,
)
from dotmac_tasks.storage import Storage
from support.backends import make_request
from support.concurrency import wait_until
from support.http_clients import Call, HttpClient, Reply, open_wsgi

# Requests

REQUESTS: dict[str, dict[str, Any]] = {
    "response": {
        "path": "/orders/",
        "query": "dry=0&x=%C3%BC",
        "body": '{"amount": 1, "to": "ü"}'.encode(),
    },
    "empty": {"method": "PATCH", "path": "/empty", "body": b""},
    "result": {"path": "/result", "body": b"a=1&b=2", "content_type": "text/plain"},
    "stream": {"path": "/stream"},
    "deferred": {"path": "/deferred"},
    "settled": {"path": "/settled"},
    "failed": {"path": "/failed"},
}
"""
What a client sent; each is the key of its own idempotency key as well.
"""


def answer(call: Call) -> Reply:
    """
    Answer as the application does: each path in a way of its own.
    """
    path = call.environ["PATH_INFO"]
    if path == "/result":
        call.set_result({"order": 7, "text": "ü", "none": None, "list": [1, 2.5, True]})
    elif path == "/stream":
        return Reply(body=iter([b"a", b"b"]))
    elif path == "/empty":
        return Reply(204, [("ETag", '"7"')], b"")
    elif path == "/orders/":
        links = [("Link", "</a>; rel=next"), ("Link", "</b>; rel=prev")]
        headers = [("Content-Type", "image/png"), *links, ("Location", "/orders/7")]
        return Reply(201, [*headers, ("Set-Cookie", "a=b")], b"\x89PNG\r\n\x1a\n\x00\xff")
    else:
        call.defer(3600)
        return Reply(202)
    return Reply()


def send(client: HttpClient, name: str) -> dict[str, Any]:
    """
    Send one of the requests; return the answer as it is kept.
    """
    response = client.send(key=name, **REQUESTS[name])
    return {
        "status": response.status,
        "headers": [list(header) for header in response.headers],
        "body": response.body.decode("latin-1"),
    }


def write_records(storage: Storage) -> dict[str, Any]:
    """
    Write every kind of record into an empty storage; return what retries are answered.
    """
    numbers = count(1)
    with (
        patch("dotmac_tasks.http.decisions.new_token", lambda: f"owner-{next(numbers)}"),
        patch("dotmac_tasks.operations.new_token", lambda: f"request-{next(numbers)}"),
        open_wsgi(answer, storage, {"enable_background_cleanup": False}) as client,
    ):
        for name in REQUESTS:
            send(client, name)
        settle = client.manager.complete_idempotent_operation
        assert settle(http_storage_key("default", "", "settled"), {"done": True})
        assert settle(http_storage_key("default", "", "failed"), {}, error="card declined")
        _write_operations(storage)
        _write_background(client.manager)
        answers = {name: send(client, name) for name in REQUESTS}
    assert storage.acquire_lock("reports", "owner-a", 3600)
    return answers


def _write_operations(storage: Storage) -> None:
    def claim(key: str, outcome: ClaimOutcome = ClaimOutcome.CLAIMED, **changes: Any) -> int:
        request = make_request(key=key, **{"lease": 3600, **changes})
        reply = storage.claim_operation(request)
        assert reply.outcome is outcome, key
        return reply.fencing_token

    def finish(key: str, payload: bytes, *, failed: bool = False) -> None:
        token = claim(key)
        request = make_request(key=key)
        storage.complete_operation(request, token, payload, failed=failed)

    storage.ensure_operation(make_request(key="pending"))
    claim("running")
    claim("running-refuse", on_abandoned="refuse")
    claim("running-ünicode", tenant_id="tenänt", user_id="", operation_type="a\nb")
    claim("abandoned", lease=0.001)
    claim("abandoned-refuse", lease=0.001, on_abandoned="refuse")
    claim("taken-over", lease=0.001)
    taker = make_request(key="taken-over", owner="b", lease=3600)
    wait_until(lambda: storage.claim_operation(taker).outcome is ClaimOutcome.TAKEN_OVER)
    claim("handed-on")
    storage.defer_operation(make_request(key="handed-on"), 3600)
    finish("completed", encode_result({"total": 5}))
    finish("completed-response", encode_response(201, [("A", "1"), ("A", "2")], b"\xff\x00"))
    finish("completed-tombstone", encode_tombstone("stream"))
    finish("failed", encode_error("card declined"), failed=True)
    storage.ensure_operation(make_request(key="settled"))
    storage.settle_operation("settled", encode_result(None), failed=False)


def _write_background(manager: BackgroundOperationsManager) -> None:
    for name in ("pending", "started", "completed", "failed"):
        manager.create_operation(
            "tenant",
            "report",
            user_id="ada",
            operation_id=f"op-{name}",
            parameters={"year": 2026, "text": "ü"},
        )
    for name in ("started", "completed"):
        manager.start_operation(f"op-{name}")
    manager.complete_operation("op-completed", {"pages": 3})
    manager.fail_operation("op-failed", "no paper")
    manager.create_operation(
        "tenant", "charge", operation_id="op-linked", idempotency_key="completed"
    )


# What must never change without a new version of its own

_BOUNDARY = "multipart/form-data; boundary=b"
_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    b'--b\r\nContent-Disposition: form-data; name="f"; filename="f.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\nfile\r\n--b--\r\n"
)
BODIES: dict[str, tuple[str, bytes]] = {
    "nothing": ("", b""),
    "text": ("text/plain", b"hello"),
    "json": ("application/json", b'{"b": 1.50, "a": [1, "\\u00fc", null]}'),
    "json of a kind": ("application/problem+json; charset=utf-8", b"[]"),
    "json with duplicates": ("application/json", b'{"a": 1, "a": 2}'),
    "json that is none": ("application/json", b"{"),
    "form": ("application/x-www-form-urlencoded", b"a=1&b=2"),
    "multipart": (_BOUNDARY, _FORM),
    "binary": ("application/octet-stream", bytes(range(256))),
}
TARGETS: dict[str, tuple[str, str, str]] = {
    "plain": ("POST", "/orders", ""),
    "query": ("PATCH", "/orders/7/", "a=1&b=%20"),
    "unicode": ("POST", "/bestellungen/ü", "q=ü"),
}
SCOPES = [
    ("default", "", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ("shop", "user:7", "k"),
    ("a:b%", "user:ü", "a b"),
    ("shop", "credentials:" + "0f" * 32, "k" * 255),
]
# Of values that JSON lacks, too: each is the text of a Python expression.
PARAMETERS = [
    "None",
    "[True, False, 0, 1, -1, 1.0, 1e22, 0.1, -0.0]",
    "{'to': 'a@example.com', 'n': 1}",
    "{'ü': '\\u2713\\n', '': []}",
    "(1, (2,))",
    "{3, 1, 2}",
    "b'\\x00\\xff'",
    "Decimal('1.50')",
    "Decimal('0E+7')",
    "UUID('12345678-1234-5678-1234-567812345678')",
    "datetime(2026, 1, 31, 12, tzinfo=UTC)",
    "datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1)))",
    "datetime(2026, 1, 31, 12, 0, 0, 5)",
    "date(2026, 1, 31)",
    "time(12)",
    "time(12, tzinfo=UTC)",
    "OperationStatus.FAILED",
    "{'$set': [1]}",
]
PAYLOADS: dict[str, Callable[[], bytes]] = {
    "result": lambda: encode_result({"b": [1, 2.5, True, None], "a": "ü\n"}),
    "nothing": lambda: encode_result(None),
    "response": lambda: encode_response(
        201, [("Content-Type", "image/png"), ("Link", "<a>"), ("Link", "<ü>")], b"\x00\r\n\n\xff"
    ),
    "empty response": lambda: encode_response(204, [], b""),
    "tombstone": lambda: encode_tombstone("too-large"),
    "error": lambda: encode_error("ü\ud800"),
}
_NAMES = {
    "Decimal": Decimal,
    "OperationStatus": OperationStatus,
    "UTC": UTC,
    "UUID": UUID,
    "date": date,
    "datetime": datetime,
    "time": time,
    "timedelta": timedelta,
    "timezone": timezone,
}


def make_golden() -> dict[str, Any]:
    """
    Return each sample with what is made of it: what a later version must make of it as well.
    """
    digests = {name: body_digest(*body) for name, body in BODIES.items()}
    digests["parsed form"] = parts_digest(
        [("a", "1")], [FilePart("f", "f.txt", "text/plain", BytesIO(b"file"))]
    )
    digests["selected data"] = selected_digest({"order": 7})
    digests["selected text"] = selected_digest("order 7")
    digests["selected bytes"] = selected_digest(b"order 7")
    return {
        "body digests": {name: digest.hex() for name, digest in digests.items()},
        "fingerprints": {
            f"{target} {body}": request_fingerprint(
                *TARGETS[target], BODIES[body][0], digests[body]
            )
            for target in TARGETS
            for body in ("nothing", "json", "multipart")
        },
        "stored keys": {json.dumps(scope): http_storage_key(*scope) for scope in SCOPES},
        "generated keys": {
            text: {
                "canonical": canonical_json(evaluate(text)),
                "key": generate_idempotency_key("a:b", "ü%", "send_email", evaluate(text)),
            }
            for text in PARAMETERS
        },
        "payloads": {name: make().decode("latin-1") for name, make in PAYLOADS.items()},
    }


def evaluate(text: str) -> Any:
    """
    Return the value that a sample's text stands for.
    """
    return eval(text, {"__builtins__": {}, **_NAMES})


# What a version makes of them


def read_records(storage: Storage, keys: list[str]) -> dict[str, Any]:
    """
    Return what is read of these records and of all background operations, without instants.
    """
    operations = {}
    for key in keys:
        record = storage.find_operation(key)
        assert record is not None, key
        facts = record._asdict()
        # Whether a lease is over changes with the time, as an instant does.
        for name in ("created_ms", "expires_ms", "lease_ms", "abandoned"):
            del facts[name]
        operations[key] = {**facts, "payload": record.payload.decode("latin-1")}
    with BackgroundOperationsManager(storage, enable_background_cleanup=False) as manager:
        page = manager.list_operations("tenant")
    background = [operation.to_dict() for operation in page.operations]
    for item in background:
        for name in ("created_at", "updated_at", "expires_at"):
            del item[name]
    return {"operations": operations, "background": background}
