"""
The front door of the Redis storage; the whole contract is in `contract`, id "redis".
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("redis")

from dotmac_tasks.models import ClaimOutcome
from dotmac_tasks.storage import RedisStorage, Storage
from dotmac_tasks.storage.registry import storage_from_setting, storage_from_url
from support.backends import BACKENDS, claim_in_process, make_request
from support.concurrency import run_processes
from support.redis_server import RedisServer
from support.stories import tell_life_of_a_key, tell_life_of_a_lock, tell_life_of_an_operation


@pytest.fixture
def storage(redis_server: RedisServer, random_prefix: str) -> Iterator[Storage]:
    """
    A storage as a user gets it.
    """
    storage = storage_from_url(redis_server.url(), prefix=random_prefix, timeout=10)
    yield storage
    storage.close()


def test_contract_is_bound() -> None:
    """The table over which the contract runs has this storage over a real and a fake server."""
    assert {"redis", "fakeredis"} <= {row.id for row in BACKENDS}


@pytest.mark.redis
def test_key_lives_its_life(storage: Storage) -> None:
    """A key is claimed, completed and replayed, and refused to another request."""
    tell_life_of_a_key(storage)


@pytest.mark.redis
def test_lock_lives_its_life(storage: Storage) -> None:
    """A lock is acquired, renewed, refused to others and released."""
    tell_life_of_a_lock(storage)


@pytest.mark.redis
def test_operation_lives_its_life(storage: Storage) -> None:
    """A background operation is created, changed, listed and refused to a late writer."""
    tell_life_of_an_operation(storage)


@pytest.mark.redis
def test_prefixes_are_apart(redis_server: RedisServer, random_prefix: str) -> None:
    """Two storages over one server with different prefixes do not see each other."""
    first, second = (
        storage_from_setting(redis_server.url(), prefix=f"{random_prefix}-{name}", timeout=10)
        for name in "ab"
    )
    first.claim_operation(make_request())
    assert second.claim_operation(make_request(owner="b")).outcome is ClaimOutcome.CLAIMED
    first.close()
    second.close()


@pytest.mark.redis
def test_setting_constructs_it(redis_server: RedisServer, random_prefix: str) -> None:
    """A setting with a dotted path gets the prefix and the timeout too."""
    setting = {
        "BACKEND": "dotmac_tasks.storage.RedisStorage",
        "OPTIONS": {"redis_url": redis_server.url()},
    }
    storage = storage_from_setting(setting, prefix=random_prefix, timeout=10)
    assert isinstance(storage, RedisStorage)
    storage.claim_operation(make_request())
    assert redis_server.command("EXISTS", f"{random_prefix}:idempo:k") == 1
    storage.close()


@pytest.mark.redis
@pytest.mark.slow
def test_processes_claim_one_key_once(redis_server: RedisServer, random_prefix: str) -> None:
    """Of many processes exactly one runs the work of a key."""
    runs = run_processes(4, claim_in_process, redis_server.url(), random_prefix)
    assert [run for run in runs if isinstance(run, BaseException)] == []
    assert sum(run is not None for run in runs) == 1
