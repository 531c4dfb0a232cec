from __future__ import annotations

import inspect
from collections.abc import Iterator
from unittest.mock import create_autospec

import pytest

from dotmac_tasks.errors import StorageUnavailableError
from dotmac_tasks.events import EventDispatcher, StorageCall
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.delegating import DelegatingStorage
from dotmac_tasks.storage.observed import ObservedStorage
from dotmac_tasks.testing import EventRecorder, FakeClock
from support.verbs import CALLS


class Observed:
    """
    An observed storage whose calls take two seconds, and what it told; one per test.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.recorder = EventRecorder()
        self.dispatcher = EventDispatcher([self.recorder], self.clock)
        self.inner = create_autospec(Storage, instance=True)
        self.inner.name = "inner"
        self.inner.breaker_state = "open"
        self.inner.is_refusing = True
        self.storage = ObservedStorage(self.inner, self.dispatcher, self.clock)

    def answer(self, verb: str, outcome: object) -> None:
        def act(*args: object, **kwargs: object) -> object:
            self.clock.advance(2)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        getattr(self.inner, verb).side_effect = act

    def told(self) -> list[StorageCall]:
        assert self.dispatcher.flush(10)
        return self.recorder.of_type(StorageCall)


@pytest.fixture
def observed() -> Iterator[Observed]:
    """
    An observed storage over one that does nothing.
    """
    made = Observed()
    yield made
    made.dispatcher.close()


def test_every_verb_is_listed_here() -> None:
    """
    A verb that is added to the contract cannot be forgotten in this file.
    """
    verbs = {name for name, _ in inspect.getmembers(Storage, inspect.isfunction)}
    assert {verb for verb in verbs if not verb.startswith("_")} == set(CALLS)


def test_nothing_of_the_contract_is_answered_by_itself() -> None:
    """
    What stands around a storage inherits no answer, of a property either, that the storage has.
    """
    contract = {name for name in dir(Storage) if not name.startswith("_")}
    assert contract <= vars(DelegatingStorage).keys()


@pytest.mark.parametrize("verb", CALLS)
def test_verb_is_passed_on_and_told(observed: Observed, verb: str) -> None:
    """
    Arguments go in and the answer comes out unchanged, and one event tells of it.
    """
    args, kwargs = CALLS[verb]
    answer = None if verb == "close" else object()
    observed.answer(verb, answer)

    assert getattr(observed.storage, verb)(*args, **kwargs) is answer

    getattr(observed.inner, verb).assert_called_once_with(*args, **kwargs)
    assert observed.told() == [
        StorageCall(backend="inner", verb=verb, duration=2.0, error=None, breaker="open")
    ]


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("error", [StorageUnavailableError("inner", "refused"), SystemExit()])
def test_failing_verb_is_told_and_fails(
    observed: Observed, verb: str, error: BaseException
) -> None:
    """
    The very error passes through, whatever it is, and the event names it.
    """
    args, kwargs = CALLS[verb]
    observed.answer(verb, error)

    with pytest.raises(type(error)) as caught:
        getattr(observed.storage, verb)(*args, **kwargs)

    assert caught.value is error
    assert observed.told() == [
        StorageCall(
            backend="inner", verb=verb, duration=2.0, error=type(error).__name__, breaker="open"
        )
    ]


def test_name_is_the_one_of_the_wrapped_storage(observed: Observed) -> None:
    """
    Errors, health and metrics speak of the storage that does the work.
    """
    assert (observed.storage.name, observed.storage.breaker_state) == ("inner", "open")
    assert observed.storage.wrapped is observed.inner


def test_refusing_is_the_wrapped_storages(observed: Observed) -> None:
    """Whether calls would be refused is asked of the wrapped storage, and is no call to tell of."""
    assert observed.storage.is_refusing is True
    assert observed.told() == []
