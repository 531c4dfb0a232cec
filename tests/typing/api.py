"""
What users write, for the type checker: it is checked and never run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, assert_type

from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client

import dotmac_tasks_django as django_package
from dotmac_tasks import (
    AbandonedOperation,
    BackgroundOperation,
    BackgroundOperationsManager,
    BackgroundOperationsMiddleware,
    IdempotencyKey,
    MemoryStorage,
    MetricsHooks,
    OperationStatus,
    RedisStorage,
    Verdict,
    add_background_operations_middleware,
)
from dotmac_tasks.events import IdempotencyHit, OperationCompleted
from dotmac_tasks.models import KeySummary, SettleOutcome
from dotmac_tasks.testing import Attempt, SendReport, StorageHook, TasksHarness, VerbCall
from dotmac_tasks_django import downstream_key, idempotency_exempt, idempotent
from dotmac_tasks_django.testing import TasksHarness as DjangoHarness
from dotmac_tasks_django.testing import override_tasks_settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class Meter(MetricsHooks):
    def operation_completed(self, event: OperationCompleted) -> None:
        assert_type(event.duration, float)


manager = BackgroundOperationsManager(
    RedisStorage("redis://localhost", prefix="{shop}"), hooks=[Meter()], lease=10
)
assert_type(BackgroundOperationsManager.from_env(), BackgroundOperationsManager)


@manager.idempotent("charge", tenant_id=lambda order, amount: f"shop-{order}", wait=5)
def charge(order: int, amount: float = 1.0) -> dict[str, int]:
    return {"order": order}


# The decorator keeps the signature: names, types and the result.
assert_type(charge(7, amount=2.5), dict[str, int])
charge("7")  # type: ignore[arg-type]
charge(7, price=2.5)  # type: ignore[call-arg]
manager.idempotent("charge", retention=5)  # type: ignore[call-arg]

with manager.idempotent_operation("ship", {"order": 7}) as operation:
    if not operation.is_replay:
        operation.set_result({"parcel": 1})

record = manager.create_idempotency_key("shop", None, "ship", ttl=60, parameters={"order": 7})
assert_type(record, IdempotencyKey)
assert_type(record.status, OperationStatus)
assert_type(manager.check_idempotency(record.key), IdempotencyKey | None)

page = manager.list_idempotency_keys(abandoned=True)
assert_type(page.keys, list[KeySummary])
stored = manager.find_stored_key("shop", None, "8e03")
assert_type(
    manager.release_idempotency_key(stored, reason="never sent", by="Kim", fencing_token=7),
    SettleOutcome,
)
manager.release_idempotency_key(stored, by="Kim")  # type: ignore[call-arg]
manager.resolve_idempotency_key(stored, {"parcel": 1}, reason="sent by hand", by="Kim")
assert_type(manager.complete_idempotent_operation(record.key, {"parcel": 1}), bool)
assert_type(manager.get_operation_status("id"), BackgroundOperation)

with manager.lock("stock", ttl=10, wait=1) as lock:
    assert_type(lock.fencing_token, int)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b""]


wrapped = BackgroundOperationsMiddleware(app, manager, require_key=True)
wrapped(
    {},
    lambda status, headers, exc_info=None: lambda data: None,
)
assert_type(
    add_background_operations_middleware(app, BackgroundOperationsManager(MemoryStorage())),
    BackgroundOperationsManager,
)


def ask_provider(operation: AbandonedOperation) -> Verdict:
    if operation.downstream_key("charge") == operation.user_id:
        return operation.found({"charge": 1}, status=201)
    return operation.run_again()


@idempotent(required=True, ttl=60, on_abandoned="refuse", reconcile=ask_provider)
def pay(request: HttpRequest, order: int) -> HttpResponse:
    return JsonResponse({"charged": downstream_key(request, "charge")})


@idempotent
def book(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"key": django_package.get_idempotency_key(request)})


@idempotency_exempt
def search(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(django_package.is_idempotent_request(request)))


def views(request: HttpRequest) -> list[Any]:
    assert_type(pay(request, order=7), HttpResponse)
    assert_type(book(request), JsonResponse)
    assert_type(search(request), HttpResponse)
    assert_type(django_package.defer_operation(request, timeout=60), str | None)
    assert_type(django_package.get_manager(), BackgroundOperationsManager)
    pay(request, "7")  # type: ignore[arg-type]
    idempotent(required="yes")  # type: ignore[call-overload]
    return []


class Meanwhile(StorageHook):
    def before(self, call: VerbCall) -> None:
        assert_type(call.verb, str)


def check_charge(harness: TasksHarness) -> None:
    report = harness.send_twice(lambda: charge(7))
    assert_type(report, SendReport[dict[str, int]])
    assert_type(report.responses, list[dict[str, int]])
    assert_type(report.attempts[0], Attempt[dict[str, int]])
    assert_type(report.attempts[0].response, dict[str, int] | None)
    assert_type(report.runs, int)
    assert_type(report.problems, list[str])
    report.assert_replayed()
    harness.send_at_once(lambda: charge(7), 4).assert_ran_once()
    harness.send_dying(lambda: charge(7), "after_record").assert_ran_once()
    harness.send_dying(lambda: charge(7), "later")  # type: ignore[arg-type]
    harness.send_twice(charge(7))  # type: ignore[arg-type]
    assert_type(harness.events.of_type(IdempotencyHit), list[IdempotencyHit])
    with harness.outage(), harness.storage.hooked(Meanwhile()):
        harness.manager.health_check()


@override_tasks_settings(wait=3)
def check_view(client: Client) -> None:
    with DjangoHarness(lease=5) as harness:
        report = harness.send_at_once(
            lambda: client.post("/orders/", headers={"Idempotency-Key": "k"}),
            times=4,
            count=User.objects.count,
        )
        assert_type(report.responses[0].status_code, int)
        harness.clock.advance(60)
