from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dotmac_tasks.errors import (
    ClaimLostError,
    ConfigurationError,
    CorruptRecordError,
    IdempotencyError,
    InvalidKeyError,
    KeyReusedError,
    OperationFailedError,
    OperationInProgressError,
    OutcomeUnknownError,
    SerializationError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from dotmac_tasks.idempotency import (
    FunctionKey,
    IdempotentOperation,
    OperationSettings,
    decorate_function,
    fingerprint_of,
)
from dotmac_tasks.keys import generate_idempotency_key
from dotmac_tasks.models import ClaimOutcome
from dotmac_tasks.serialization import encode_error, encode_result
from dotmac_tasks.testing import FakeClock
from support.concurrency import Counter, run_together
from support.guards import LEASE, TTL, GuardBench


class Bench(GuardBench):
    """
    A guard's bench for functions and blocks.
    """

    def settings(self, **changes: Any) -> OperationSettings:
        return OperationSettings("charge", TTL, LEASE, 0.0, "rerun")._replace(**changes)

    def decorate(self, function: Any, *, how: FunctionKey | None = None, **changes: Any) -> Any:
        how = how or FunctionKey("t", None, None)
        return decorate_function(self.guard, self.settings(**changes), how, function)

    def block(self, key: str = "key", wait: float = 0.0) -> IdempotentOperation:
        return IdempotentOperation(self.guard, self.request(key), self.settings(wait=wait), None)


@pytest.fixture
def bench(clock: FakeClock) -> Iterator[Bench]:
    bench = Bench(clock)
    yield bench
    bench.events.close()


# Functions


def test_function_runs_once_for_equal_calls(bench: Bench) -> None:
    """Equal calls run once, however their arguments are passed; others run of their own."""
    calls: list[tuple[int, int]] = []

    def charge(a: int, b: int = 2) -> int:
        calls.append((a, b))
        return a + b

    protected = bench.decorate(charge)
    assert [protected(1), protected(1, b=2), protected(a=1, b=2), protected(2)] == [3, 3, 3, 4]
    assert calls == [(1, 2), (2, 2)]
    assert protected.__name__ == "charge"


@pytest.mark.parametrize("value", [None, 0, 0.0, False, "", [], {}, {"a": [1, None]}])
def test_function_replays_falsy_results_as_themselves(bench: Bench, value: Any) -> None:
    """A falsy result is replayed as itself, and the work is not run again."""
    runs = Counter()

    def work() -> Any:
        runs.increment()
        return value

    protected = bench.decorate(work)
    assert protected() == value
    replayed = protected()
    assert (replayed, type(replayed), runs.value) == (value, type(value), 1)


def test_function_key_is_the_one_that_is_generated(bench: Bench) -> None:
    """The key of a call is the generated key of its bound arguments."""
    bench.decorate(lambda a, *rest, b=2, **more: None)(1, 5, c=3)
    parameters = {"a": 1, "rest": (5,), "b": 2, "more": {"c": 3}}
    key = generate_idempotency_key("t", None, "charge", parameters)
    assert bench.status(key) == "completed"


def test_function_exception_releases_the_key_and_passes_through(bench: Bench) -> None:
    """The function's own exception arrives unchanged, and the next call runs."""
    error = ValueError("no")
    outcomes: list[Any] = [error, 7]

    def work() -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    protected = bench.decorate(work)
    with pytest.raises(ValueError, match="no") as caught:
        protected()
    assert caught.value is error
    assert protected() == 7


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_function_interrupt_leaves_the_lease_to_decide(
    bench: Bench, kind: type[BaseException]
) -> None:
    """An interrupt stops the renewals, records nothing, releases nothing and passes through."""

    def work() -> None:
        raise kind

    protected = bench.decorate(work)
    with pytest.raises(kind):
        protected()
    assert bench.heartbeat.held_count == 0
    with pytest.raises(OperationInProgressError) as caught:
        protected()
    assert 1 <= caught.value.retry_after <= LEASE


def test_function_that_lost_its_claim_hands_out_its_result(bench: Bench) -> None:
    """An executor whose claim was taken over gets an error with its own result on it."""

    def work() -> int:
        bench.clock.advance(LEASE + 1)
        fingerprint = fingerprint_of("charge", None, None)
        reply = bench.storage.claim_operation(bench.request(key(), fingerprint=fingerprint))
        assert reply.outcome is ClaimOutcome.TAKEN_OVER
        return 0

    def key() -> str:
        return "order-1"

    how = FunctionKey("t", None, key)
    with pytest.raises(ClaimLostError) as caught:
        bench.decorate(work, how=how)()
    assert caught.value.result == 0


def test_function_result_that_is_not_json_is_never_run_again(bench: Bench) -> None:
    """Such a result is an error that keeps the work from being repeated, also after the lease."""
    runs = Counter()

    def work() -> object:
        runs.increment()
        return {"when": object()}

    protected = bench.decorate(work)
    with pytest.raises(SerializationError) as caught:
        protected()
    assert caught.value.path == "$.when"
    bench.clock.advance(LEASE + 1)
    with pytest.raises(OutcomeUnknownError, match="could not be recorded"):
        protected()
    assert runs.value == 1


def test_function_does_not_run_beside_a_dead_storage(bench: Bench) -> None:
    """An outage before the work is an error, and nothing runs unprotected."""
    runs = Counter()
    bench.storage.refuse("claim_operation")
    with pytest.raises(StorageUnavailableError):
        bench.decorate(runs.increment)()
    assert runs.value == 0


def test_function_whose_claim_got_no_reply_does_not_block_the_next(bench: Bench) -> None:
    """A claim that may have been made, and whose work did not run, is given back."""
    runs = Counter()
    protected = bench.decorate(lambda: runs.increment())
    bench.storage.lose_reply("claim_operation")
    with pytest.raises(StorageTimeoutError):
        protected()
    assert protected() == 1


def test_function_result_survives_a_storage_that_blinks(bench: Bench) -> None:
    """The caller gets its result at once, and it is recorded in the background."""
    protected = bench.decorate(lambda: 5)
    bench.storage.refuse("complete_operation", times=2)
    assert protected() == 5
    bench.clock.advance(1)
    bench.heartbeat.beat()
    bench.clock.advance(1)
    bench.heartbeat.beat()
    bench.clock.advance(LEASE + 1)
    assert protected() == 5
    assert bench.storage.calls.count("claim_operation") == 2


def test_function_that_failed_on_record_raises_that(bench: Bench) -> None:
    """A recorded failure is replayed as an error with its text."""
    bench.claim("order-1").complete(encode_error("declined"), failed=True)
    how = FunctionKey("t", None, lambda: "order-1")
    with pytest.raises(OperationFailedError) as caught:
        bench.decorate(lambda: pytest.fail("ran"), how=how)()
    assert caught.value.error_message == "declined"


def test_function_with_an_unreadable_outcome_is_refused(bench: Bench) -> None:
    """An outcome of an unknown form is refused and never run again."""
    bench.claim().complete(b"9z")
    with pytest.raises(CorruptRecordError), bench.block():
        pytest.fail("the block ran")


def test_function_whose_executor_died_is_refused_by_policy(bench: Bench) -> None:
    """With the policy to refuse, an abandoned operation waits for a decision."""

    def work() -> None:
        raise KeyboardInterrupt

    protected = bench.decorate(work, on_abandoned="refuse")
    with pytest.raises(KeyboardInterrupt):
        protected()
    bench.clock.advance(LEASE + 1)
    with pytest.raises(OutcomeUnknownError, match="abandoned"):
        protected()


def test_function_waits_for_the_running_call(bench: Bench) -> None:
    """With a wait, a duplicate blocks until the first result is there."""
    protected = bench.decorate(lambda: 5, wait=10.0)
    key = generate_idempotency_key("t", None, "charge", {})
    claim = bench.claim(key)
    bench.storage.before = lambda verb: (
        claim.complete(encode_result(4)) and None if len(bench.clock.sleeps) == 2 else None
    )
    assert protected() == 4


def test_renamed_function_keeps_its_records(bench: Bench) -> None:
    """The operation type names the work: under another name, in another place, it is the same."""
    runs = Counter()

    def charge(order: int) -> int:
        return runs.increment()

    def bill(order: int) -> int:
        return runs.increment()

    assert bench.decorate(charge)(7) == bench.decorate(bill)(7) == 1
    assert bench.decorate(bill, operation_type="charge v2")(7) == 2


def test_function_key_callable_decides(bench: Bench) -> None:
    """A callable key sees the call; tenant and user may be callables too."""
    how = FunctionKey(lambda order: order["tenant"], lambda order: order["user"], _order_key)
    protected = bench.decorate(lambda order: order["number"], how=how)
    first = {"tenant": "a", "user": "u1", "number": 1, "x": object()}
    assert protected(first) == protected({**first, "x": object()}) == 1
    record = bench.record("order-1")
    assert (record.tenant_id, record.user_id) == ("a", "u1")


def _order_key(order: dict[str, Any]) -> str:
    return f"order-{order['number']}"


def test_function_key_of_another_operation_is_a_mistake(bench: Bench) -> None:
    """Two functions that return one key do not replay each other."""
    how = FunctionKey("t", None, lambda: "order-1")
    assert bench.decorate(lambda: 1, how=how)() == 1
    with pytest.raises(KeyReusedError):
        bench.decorate(lambda: 2, how=how, operation_type="refund")()


def test_function_key_of_another_tenant_tells_nothing(bench: Bench) -> None:
    """Another tenant's key looks like a reused one."""
    assert bench.decorate(lambda: 1, how=FunctionKey("a", None, lambda: "order-1"))() == 1
    with pytest.raises(KeyReusedError):
        bench.decorate(lambda: 2, how=FunctionKey("b", None, lambda: "order-1"))()


def test_function_key_of_another_user_tells_nothing(bench: Bench) -> None:
    """An explicit key replays its outcome to the user who made it, and to nobody else."""

    def protect(user: str | None) -> Callable[[], str]:
        how = FunctionKey("t", user, lambda: "order-1")
        return bench.decorate(lambda: f"of {user}", how=how)

    assert protect("alice")() == "of alice"
    assert protect("alice")() == "of alice"
    for other in ("bob", None):
        with pytest.raises(KeyReusedError):
            protect(other)()


def test_user_that_is_not_text_is_refused(bench: Bench) -> None:
    """A number for a user is an error before anything runs, whatever the storage."""
    how = FunctionKey("t", lambda: 5, lambda: "order-1")  # type: ignore[arg-type,return-value]
    with pytest.raises(SerializationError):
        bench.decorate(lambda: pytest.fail("ran"), how=how)()


@pytest.mark.parametrize("key", ["", "index", "a\nb", "x" * 256])
def test_function_key_that_cannot_be_stored_is_refused(bench: Bench, key: str) -> None:
    """A bad key is an error before anything runs."""
    with pytest.raises(InvalidKeyError):
        bench.decorate(lambda: pytest.fail("ran"), how=FunctionKey("t", None, lambda: key))()


def test_function_tenant_that_is_not_text_is_refused(bench: Bench) -> None:
    """A tenant callable that returns None is an error, not a shared tenant."""
    how = FunctionKey(lambda: None, None, lambda: "order-1")  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigurationError, match="tenant_id"):
        bench.decorate(lambda: pytest.fail("ran"), how=how)()


def test_function_argument_without_a_form_is_refused(bench: Bench) -> None:
    """An object as argument is an error that names it, before anything runs."""
    with pytest.raises(SerializationError) as caught:
        bench.decorate(lambda thing: pytest.fail("ran"))(object())
    assert caught.value.path == "$.thing"


def test_methods_of_all_kinds_are_protected(bench: Bench) -> None:
    """Methods, class methods and static methods work, in either order of decorators."""
    runs = Counter()

    class Till:
        def charge(self, amount: int) -> int:
            return amount + 0 * runs.increment()

        charge = bench.decorate(charge, operation_type="method")

        def inner(cls, amount: int) -> int:  # noqa: N805 - classmethod is applied below
            assert cls is Till
            return amount + 0 * runs.increment()

        outer_class = classmethod(bench.decorate(inner, operation_type="outer-class"))
        inner_class = bench.decorate(classmethod(inner), operation_type="inner-class")

        def plain(amount: int) -> int:  # noqa: N805 - staticmethod is applied below
            return amount + 0 * runs.increment()

        outer_static = staticmethod(bench.decorate(plain, operation_type="outer-static"))
        inner_static = bench.decorate(staticmethod(plain), operation_type="inner-static")

    for name in ("charge", "outer_class", "inner_class", "outer_static", "inner_static"):
        runs_before = runs.value
        assert [getattr(Till(), name)(5), getattr(Till(), name)(amount=5)] == [5, 5]
        assert runs.value == runs_before + 1
    key = generate_idempotency_key("t", None, "method", {"amount": 5})
    assert bench.status(key) == "completed"


async def _coroutine() -> None: ...


async def _async_generator() -> Any:
    yield 1


def _generator() -> Iterator[int]:
    yield 1


class _AsyncCall:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (_coroutine, "asynchronous"),
        (_async_generator, "asynchronous"),
        (_AsyncCall(), "asynchronous"),
        (_generator, "generator"),
        (staticmethod(_generator), "generator"),
        (5, "not callable"),
        (dict, "it is a class"),
    ],
)
def test_function_that_is_not_done_when_it_returns_is_refused(
    bench: Bench, function: Any, what: str
) -> None:
    """Coroutines, generators, classes and what cannot be called are refused at decoration."""
    with pytest.raises(TypeError, match=what):
        bench.decorate(function)


def test_nested_and_overlapping_calls_complete_their_own_records(bench: Bench) -> None:
    """One guard serves two functions that nest with equal arguments, in many threads."""
    inner = bench.decorate(lambda n: f"inner-{n}", operation_type="inner")
    outer = bench.decorate(lambda n: f"outer of {inner(n)}", operation_type="outer")
    numbers = iter(range(8))
    lock = threading.Lock()

    def call() -> str:
        with lock:
            number = next(numbers)
        first = outer(number)
        assert outer(number) == first
        assert inner(number) == f"inner-{number}"
        return str(first)

    assert sorted(run_together(8, call), key=str) == [f"outer of inner-{n}" for n in range(8)]
    assert bench.heartbeat.held_count == 0


# Blocks


def test_block_runs_once_and_replays(bench: Bench) -> None:
    """The first block sets the result, the second one finds it."""
    with bench.block() as first:
        assert not first.is_replay
        assert first.fencing_token == 1
        first.set_result([1])
    with bench.block() as second:
        assert second.is_replay
        assert second.fencing_token == 0
    assert first.result == second.result == [1]


def test_block_without_a_result_records_none(bench: Bench) -> None:
    """A block that ends without a result is done, with None."""
    with bench.block():
        pass
    with bench.block() as second:
        assert (second.is_replay, second.result) == (True, None)


def test_block_exception_releases_the_key(bench: Bench) -> None:
    """An exception passes through and the next block runs."""
    with pytest.raises(ValueError, match="no"), bench.block():
        raise ValueError("no")
    with bench.block() as second:
        assert not second.is_replay


def test_block_exception_in_a_replay_changes_nothing(bench: Bench) -> None:
    """What happens in the block of a replay leaves the record as it is."""
    with bench.block():
        pass
    with pytest.raises(ValueError, match="no"), bench.block():
        raise ValueError("no")
    assert bench.status() == "completed"


def test_block_interrupt_leaves_the_lease_to_decide(bench: Bench) -> None:
    """An interrupt in the block releases nothing and stops the renewals."""
    with pytest.raises(KeyboardInterrupt), bench.block():
        raise KeyboardInterrupt
    assert (bench.status(), bench.heartbeat.held_count) == ("in_progress", 0)


def test_block_result_that_is_not_json_is_never_run_again(bench: Bench) -> None:
    """The error comes when the block ends, and its work is not repeated."""
    with pytest.raises(SerializationError), bench.block() as operation:
        operation.set_result(object())
    with pytest.raises(OutcomeUnknownError), bench.block():
        pytest.fail("the block ran")


def test_block_that_lost_its_claim_says_so(bench: Bench) -> None:
    """A block whose claim was taken over ends with an error that holds its result."""
    operation = bench.block()
    operation.__enter__()
    operation.set_result(5)
    bench.take_over()
    with pytest.raises(ClaimLostError) as caught:
        operation.__exit__(None, None, None)
    assert caught.value.result == 5


def test_block_does_not_run_while_another_does(bench: Bench) -> None:
    """A duplicate block is refused before it runs, and the first one ends well."""
    with bench.block() as first:
        with pytest.raises(OperationInProgressError), bench.block():
            pytest.fail("the block ran")
        first.set_result(1)
    assert bench.status() == "completed"


def test_block_is_entered_once(bench: Bench) -> None:
    """A block object stands for one execution."""
    block = bench.block()
    with block:
        pass
    with pytest.raises(IdempotencyError, match="entered before"), block:
        pytest.fail("the block ran")


def test_block_result_of_a_replay_cannot_be_set(bench: Bench) -> None:
    """The recorded outcome stands."""
    with bench.block():
        pass
    with bench.block() as replay, pytest.raises(IdempotencyError, match="is_replay"):
        replay.set_result(5)


def test_fingerprint_tells_uses_of_one_key_apart() -> None:
    """Operation type, parameters and user all count."""
    uses = [("a", None, None), ("b", None, None), ("a", {}, None), ("a", None, "u")]
    assert fingerprint_of(*uses[0]) == fingerprint_of(*uses[0])
    assert len({fingerprint_of(*use) for use in uses}) == len(uses)
