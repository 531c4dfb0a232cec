"""
The front door of the storage in memory; the whole contract is in `contract`, id "memory".
"""

from __future__ import annotations

import threading

import pytest

from dotmac_tasks.errors import ConfigurationError
from dotmac_tasks.models import ClaimOutcome, WriteOutcome
from dotmac_tasks.storage import MemoryStorage, Storage
from dotmac_tasks.storage.registry import storage_from_setting, storage_from_url
from support.backends import BACKENDS, make_request
from support.stories import tell_life_of_a_key, tell_life_of_a_lock, tell_life_of_an_operation


@pytest.fixture
def storage() -> Storage:
    """
    A storage as a user gets it.
    """
    return storage_from_url("memory://")


def test_contract_is_bound() -> None:
    """The table over which the contract runs has a row for this storage."""
    assert "memory" in [row.id for row in BACKENDS]


def test_key_lives_its_life(storage: Storage) -> None:
    """A key is claimed, completed and replayed, and refused to another request."""
    tell_life_of_a_key(storage)


def test_lock_lives_its_life(storage: Storage) -> None:
    """A lock is acquired, renewed, refused to others and released."""
    tell_life_of_a_lock(storage)


def test_operation_lives_its_life(storage: Storage) -> None:
    """A background operation is created, changed, listed and refused to a late writer."""
    tell_life_of_an_operation(storage)


def test_url_is_a_fresh_storage_each_time() -> None:
    """Two storages of the URL share nothing."""
    first, second = storage_from_url("memory://"), storage_from_url("memory://")
    first.claim_operation(make_request())
    assert second.find_operation("k") is None


def test_setting_takes_options() -> None:
    """The options of a setting reach the storage, which takes no prefix and no timeout."""
    setting = {"BACKEND": "dotmac_tasks.storage.MemoryStorage", "OPTIONS": {"max_records": 1}}
    storage = storage_from_setting(setting, prefix="p", timeout=1)
    request = make_request(key="first")
    storage.claim_operation(request)
    assert storage.complete_operation(request, 1, b"x", failed=False) is WriteOutcome.DONE
    assert storage.claim_operation(make_request()).outcome is ClaimOutcome.CLAIMED
    assert storage.find_operation("first") is None


def test_size_below_one_is_refused() -> None:
    """A storage that could hold nothing is refused."""
    with pytest.raises(ConfigurationError) as caught:
        MemoryStorage(max_records=0)
    assert caught.value.option == "max_records"


def test_construction_starts_no_thread() -> None:
    """Constructing and using it starts no thread."""
    before = threading.active_count()
    tell_life_of_a_key(MemoryStorage())
    assert threading.active_count() == before
