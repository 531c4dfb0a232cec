from __future__ import annotations

from typing import Any
from unittest.mock import create_autospec

import pytest

from dotmac_tasks.errors import StorageUnavailableError
from dotmac_tasks.keys import new_token
from dotmac_tasks.models import ClaimOutcome, ClaimRequest, WriteOutcome
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks.testing import HookedStorage, StorageHook, VerbCall, WorkerDeath
from dotmac_tasks.testing.death import Death
from dotmac_tasks.testing.storage import Outage
from support.concurrency import run_together
from support.verbs import CALLS


class Notes(StorageHook):
    """
    Notes what it sees, and under which name.
    """

    def __init__(self, name: str, notes: list[Any]) -> None:
        self.name = name
        self.notes = notes

    def before(self, call: VerbCall) -> None:
        self.notes.append((self.name, "before", call))

    def after(self, call: VerbCall, reply: Any) -> None:
        self.notes.append((self.name, "after", call, reply))


@pytest.mark.parametrize("verb", CALLS)
def test_hooks_stand_around_every_verb(verb: str) -> None:
    """Each hook sees each call before and after, with its reply, and changes nothing of it."""
    args, kwargs = CALLS[verb]
    inner = create_autospec(Storage, instance=True)
    answer = None if verb == "close" else object()
    getattr(inner, verb).return_value = answer
    storage = HookedStorage(inner)
    notes: list[Any] = []
    call = VerbCall(verb, args, kwargs)
    with storage.hooked(Notes("a", notes)), storage.hooked(Notes("b", notes)):
        assert getattr(storage, verb)(*args, **kwargs) is answer
    assert notes == [
        ("a", "before", call),
        ("b", "before", call),
        ("a", "after", call, answer),
        ("b", "after", call, answer),
    ]
    getattr(inner, verb).assert_called_once_with(*args, **kwargs)


def test_hook_is_gone_behind_its_block() -> None:
    """Outside of its block a hook sees nothing, whatever order the blocks end in."""
    storage = HookedStorage(MemoryStorage())
    notes: list[Any] = []
    first, second = storage.hooked(Notes("a", notes)), storage.hooked(Notes("b", notes))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    storage.find_operation("key")
    second.__exit__(None, None, None)
    storage.find_operation("key")
    assert [note[0] for note in notes] == ["b", "b"]


def test_hooks_of_threads_do_not_push_each_other_out() -> None:
    """Hooks that come and go at once leave none behind, and each sees its own calls."""
    storage = HookedStorage(MemoryStorage())

    def use() -> bool:
        notes: list[Any] = []
        for _ in range(50):
            with storage.hooked(Notes("a", notes)):
                storage.find_operation("key")
        return len(notes) >= 100

    assert run_together(8, use) == [True] * 8
    assert storage._hooks == ()


@pytest.mark.parametrize("verb", sorted(set(CALLS) - {"close"}))
def test_outage_refuses_every_call(verb: str) -> None:
    """Nothing gets through but closing."""
    args, kwargs = CALLS[verb]
    inner = create_autospec(Storage, instance=True)
    storage = HookedStorage(inner)
    with storage.hooked(Outage()):
        with pytest.raises(StorageUnavailableError, match="a test has taken it down"):
            getattr(storage, verb)(*args, **kwargs)
        storage.close()
    assert [call[0] for call in inner.method_calls] == ["close"]


def make_request(key: str = "key") -> ClaimRequest:
    return ClaimRequest(key, new_token(), "t", "u", "charge", "", 3600, 30)


@pytest.fixture
def storage() -> HookedStorage:
    return HookedStorage(MemoryStorage())


def test_dead_worker_reaches_nothing(storage: HookedStorage) -> None:
    """Behind its death no call gets through, not even of another key, until the hook is gone."""
    request = make_request()
    death = Death("before_record")
    with storage.hooked(death):
        token = storage.claim_operation(request).fencing_token
        assert not death.died
        with pytest.raises(WorkerDeath):
            storage.complete_operation(request, token, b"", failed=False)
        with pytest.raises(WorkerDeath):
            storage.release_operation(request.key, request.owner)
        with pytest.raises(WorkerDeath):
            storage.release_lock("other", "owner")
    assert death.died
    assert storage.claim_operation(make_request()).outcome is ClaimOutcome.IN_PROGRESS
    done = storage.complete_operation(request, token, b"", failed=False)
    assert done is WriteOutcome.DONE


def test_call_on_its_way_loses_its_reply(storage: HookedStorage) -> None:
    """A call that another thread had begun when the worker died brings nothing back."""
    death = Death("before_view")

    class Meanwhile(StorageHook):
        def after(self, call: VerbCall, reply: Any) -> None:
            death.died = True

    with storage.hooked(Meanwhile()), storage.hooked(death), pytest.raises(WorkerDeath):
        storage.find_operation("key")


def test_only_what_was_claimed_first_matters(storage: HookedStorage) -> None:
    """The end of another operation, and a claim that was not granted, kill nobody."""
    outer, inner = make_request("outer"), make_request("inner")
    storage.claim_operation(make_request("taken"))
    death = Death("after_record")
    with storage.hooked(death):
        assert storage.claim_operation(make_request("taken")).fencing_token == 0
        storage.claim_operation(outer)
        token = storage.claim_operation(inner).fencing_token
        storage.complete_operation(inner, token, b"", failed=False)
        assert not death.died
        with pytest.raises(WorkerDeath):
            storage.release_operation("outer", outer.owner)
    assert storage.find_operation("outer") is None


def test_death_before_the_work_needs_a_claim(storage: HookedStorage) -> None:
    """Whoever gets no claim does not die; whoever gets one dies with it in hand."""
    storage.claim_operation(make_request("taken"))
    death = Death("before_view")
    with storage.hooked(death):
        storage.claim_operation(make_request("taken"))
        assert not death.died
        with pytest.raises(WorkerDeath):
            storage.claim_operation(make_request())
    assert storage.find_operation("key") is not None
