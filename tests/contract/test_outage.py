from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dotmac_tasks.errors import StorageUnavailableError
from dotmac_tasks.models import Lease, LeaseKind, OperationStatus
from dotmac_tasks.storage import Storage
from support.backends import BACKENDS, Backend, RedisBackend, make_request, open_backend

VERBS: dict[str, Callable[[Storage], object]] = {
    "claim_operation": lambda storage: storage.claim_operation(make_request(owner="b")),
    "ensure_operation": lambda storage: storage.ensure_operation(make_request(key="new")),
    "find_operation": lambda storage: storage.find_operation("k"),
    "complete_operation": lambda storage: storage.complete_operation(
        make_request(), 1, b"x", failed=False
    ),
    "release_operation": lambda storage: storage.release_operation("k", "a"),
    "defer_operation": lambda storage: storage.defer_operation(make_request(), 60),
    "settle_operation": lambda storage: storage.settle_operation("k", b"x", failed=False),
    "list_operations": lambda storage: storage.list_operations(),
    "discard_operation": lambda storage: storage.discard_operation("k"),
    "renew_leases": lambda storage: storage.renew_leases(
        [Lease(LeaseKind.OPERATION, "k", "a", 30)]
    ),
    "acquire_lock": lambda storage: storage.acquire_lock("l", "a", 30),
    "release_lock": lambda storage: storage.release_lock("held", "a"),
    "save_background": lambda storage: storage.save_background(
        "op",
        "tenant",
        OperationStatus.PENDING,
        b"x",
        expected_revision=0,
        request_id="r",
        retention=None,
    ),
    "find_background": lambda storage: storage.find_background("op"),
    "list_background": lambda storage: storage.list_background("tenant"),
    "purge_expired": lambda storage: storage.purge_expired(10),
    "get_stats": lambda storage: storage.get_stats(),
}


@pytest.fixture(params=[row for row in BACKENDS if row.id != "memory"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """
    One storage of those that have a server which could fail.
    """
    with open_backend(request.param, request) as opened:
        yield opened


@pytest.mark.parametrize("verb", VERBS)
def test_unreachable_storage_says_that_nothing_changed(backend: RedisBackend, verb: str) -> None:
    """Every verb raises the error that means "nothing was changed", and nothing was."""
    storage = backend.storage
    storage.claim_operation(make_request(owner="a"))
    storage.acquire_lock("held", "a", 30)
    before = storage.find_operation("k")
    with backend.break_off() as broken, pytest.raises(StorageUnavailableError) as caught:
        VERBS[verb](broken)
    assert caught.value.backend == "redis"
    assert caught.value.__cause__ is not None
    assert storage.find_operation("k") == before
    assert storage.acquire_lock("held", "b", 30) is None
    assert storage.get_stats() == (1, 0)


@pytest.mark.parametrize("verb", VERBS)
def test_reachable_storage_answers(storage: Storage, verb: str) -> None:
    """The same verbs answer while the storage can be reached."""
    VERBS[verb](storage)


def test_unreachable_storage_is_unhealthy(backend: RedisBackend) -> None:
    """Asking an unreachable storage for its health answers instead of raising."""
    with backend.break_off() as broken:
        health = broken.check_health()
    assert not health.healthy
    assert backend.storage.check_health().healthy


def test_storage_that_failed_can_be_closed(backend: RedisBackend) -> None:
    """Closing a storage that is not reachable raises nothing."""
    with backend.break_off() as broken:
        broken.check_health()
        broken.close()
