from __future__ import annotations

import itertools
from collections import Counter

import pytest

from dotmac_tasks.errors import StaleRecordError
from dotmac_tasks.models import ClaimOutcome, OperationStatus, SettleOutcome, WriteOutcome
from dotmac_tasks.storage import Storage
from support.backends import Backend, claim_and_complete, make_request
from support.concurrency import run_together

THREADS = 8


def raced(outcomes: list[object]) -> list[object]:
    """
    Return the outcomes, after raising an error that is among them.
    """
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, StaleRecordError):
            raise outcome
    return outcomes


class TestOneWinner:
    def test_absent_key_is_claimed_once(self, storage: Storage) -> None:
        """Of many claims of a new key exactly one gets it."""
        numbers = itertools.count()

        def claim() -> object:
            return storage.claim_operation(make_request(owner=f"o{next(numbers)}")).outcome

        counts = Counter(raced(run_together(THREADS, claim)))
        assert counts == {ClaimOutcome.CLAIMED: 1, ClaimOutcome.IN_PROGRESS: THREADS - 1}

    def test_pending_key_is_claimed_once(self, storage: Storage) -> None:
        """Of many claims of a pending key exactly one gets it."""
        storage.ensure_operation(make_request())
        numbers = itertools.count()

        def claim() -> object:
            return storage.claim_operation(make_request(owner=f"o{next(numbers)}")).outcome

        counts = Counter(raced(run_together(THREADS, claim)))
        assert counts == {ClaimOutcome.CLAIMED: 1, ClaimOutcome.IN_PROGRESS: THREADS - 1}

    def test_abandoned_key_is_taken_over_once(self, backend: Backend) -> None:
        """Of many claims after a lease exactly one takes over."""
        backend.storage.claim_operation(make_request(owner="dead", lease=10))
        backend.age(11)
        numbers = itertools.count()

        def claim() -> object:
            request = make_request(owner=f"o{next(numbers)}")
            return backend.storage.claim_operation(request).outcome

        counts = Counter(raced(run_together(THREADS, claim)))
        assert counts == {ClaimOutcome.TAKEN_OVER: 1, ClaimOutcome.IN_PROGRESS: THREADS - 1}

    def test_refused_key_is_taken_over_once(self, backend: Backend) -> None:
        """Of many who name one abandoned claim, exactly one takes it over."""
        first = make_request(owner="dead", lease=10, on_abandoned="refuse")
        token = backend.storage.claim_operation(first).fencing_token
        backend.age(11)
        numbers = itertools.count()

        def claim() -> object:
            request = make_request(owner=f"o{next(numbers)}")._replace(takeover=token)
            return backend.storage.claim_operation(request).outcome

        counts = Counter(raced(run_together(THREADS, claim)))
        assert counts == {ClaimOutcome.TAKEN_OVER: 1, ClaimOutcome.IN_PROGRESS: THREADS - 1}

    def test_expired_key_is_claimed_once(self, backend: Backend) -> None:
        """Of many claims of an expired key exactly one gets it."""
        backend.storage.complete_operation(make_request(ttl=10), 1, b"x", failed=False)
        backend.age(11)
        numbers = itertools.count()

        def claim() -> object:
            request = make_request(owner=f"o{next(numbers)}")
            return backend.storage.claim_operation(request).outcome

        counts = Counter(raced(run_together(THREADS, claim)))
        assert counts == {ClaimOutcome.CLAIMED: 1, ClaimOutcome.IN_PROGRESS: THREADS - 1}

    def test_pending_record_is_created_once(self, storage: Storage) -> None:
        """Many creations of one record all return the same one."""
        numbers = itertools.count()

        def ensure() -> object:
            return storage.ensure_operation(make_request(user_id=f"u{next(numbers)}"))

        assert len(set(raced(run_together(THREADS, ensure)))) == 1

    def test_pending_record_is_settled_once(self, storage: Storage) -> None:
        """Of many settlements one outcome is recorded, and the others say that it was."""
        storage.ensure_operation(make_request())
        numbers = itertools.count()

        def settle() -> object:
            payload = b"%d" % next(numbers)
            return storage.settle_operation("k", payload, failed=False), payload

        outcomes = raced(run_together(THREADS, settle))
        winners = [outcome for outcome in outcomes if outcome[0] is SettleOutcome.DONE]  # type: ignore[index]
        assert len(winners) == 1
        record = storage.find_operation("k")
        assert record is not None
        assert winners == [(SettleOutcome.DONE, record.payload)]

    def test_abandoned_key_is_given_back_once(self, backend: Backend) -> None:
        """Of many operators who give one key back, one does, and the others find it gone."""
        backend.storage.claim_operation(make_request(lease=10, on_abandoned="refuse"))
        backend.age(11)
        outcomes = raced(run_together(THREADS, backend.storage.discard_operation, "k"))
        assert Counter(outcomes) == {SettleOutcome.DONE: 1, SettleOutcome.ABSENT: THREADS - 1}

    def test_operators_beside_retries_stop_nobody(self, backend: Backend) -> None:
        """Beside operators who give a key back exactly one retry gets it, and keeps it."""
        storage = backend.storage
        storage.claim_operation(make_request(lease=10, on_abandoned="refuse"))
        backend.age(11)
        numbers = itertools.count()

        def act() -> object:
            number = next(numbers)
            if number % 2:
                return storage.discard_operation("k")
            reply = storage.claim_operation(make_request(owner=f"o{number}"))
            while reply.outcome is ClaimOutcome.UNRESOLVED:
                reply = storage.claim_operation(make_request(owner=f"o{number}"))
            return reply.outcome

        counts = Counter(raced(run_together(THREADS, act)))
        assert counts[SettleOutcome.DONE] == 1
        assert counts[SettleOutcome.RUNNING] + counts[SettleOutcome.ABSENT] == THREADS // 2 - 1
        assert counts[ClaimOutcome.CLAIMED] == 1
        assert counts[ClaimOutcome.IN_PROGRESS] == THREADS // 2 - 1

    def test_decisions_of_two_operators_exclude_each_other(self, backend: Backend) -> None:
        """Of one who gives a key back and one who records its outcome, one does it."""
        storage = backend.storage
        numbers = itertools.count()

        def act() -> object:
            if next(numbers) % 2:
                return storage.discard_operation("k")
            return storage.settle_operation("k", b"x", failed=False)

        for _ in range(20):
            storage.claim_operation(make_request(lease=10, on_abandoned="refuse"))
            backend.age(11)
            counts = Counter(raced(run_together(2, act)))
            assert counts[SettleOutcome.DONE] == 1
            assert counts[SettleOutcome.ABSENT] + counts[SettleOutcome.FINISHED] == 1
            storage.discard_operation("k", finished=True)

    def test_absent_key_is_completed_by_one(self, storage: Storage) -> None:
        """Of many claims that were lost with their record one outcome is recorded."""
        numbers = itertools.count()

        def complete() -> object:
            request = make_request(owner=f"o{next(numbers)}")
            return storage.complete_operation(request, 1, b"x", failed=False)

        counts = Counter(raced(run_together(THREADS, complete)))
        assert counts == {WriteOutcome.DONE: 1, WriteOutcome.LOST: THREADS - 1}

    def test_absent_key_is_deferred_by_one(self, storage: Storage) -> None:
        """Of many deferrals of an absent key one is written."""
        numbers = itertools.count()

        def defer() -> object:
            return storage.defer_operation(make_request(owner=f"o{next(numbers)}"), 60)

        counts = Counter(raced(run_together(THREADS, defer)))
        assert counts == {WriteOutcome.DONE: 1, WriteOutcome.LOST: THREADS - 1}

    def test_free_lock_is_acquired_once(self, storage: Storage) -> None:
        """Of many acquisitions of a free lock exactly one succeeds."""
        numbers = itertools.count()

        def acquire() -> object:
            return storage.acquire_lock("l", f"o{next(numbers)}", 30) is not None

        counts = Counter(raced(run_together(THREADS, acquire)))
        assert counts == {True: 1, False: THREADS - 1}

    @pytest.mark.parametrize("revision", [0, 1])
    def test_revision_is_written_once(self, storage: Storage, revision: int) -> None:
        """Of many saves of one revision exactly one is written."""
        numbers = itertools.count()

        def save(expected: int = revision) -> object:
            return storage.save_background(
                "op",
                "tenant",
                OperationStatus.PENDING,
                b"x",
                expected_revision=expected,
                request_id=f"r{next(numbers)}",
                retention=None,
            )

        for expected in range(revision):
            save(expected)
        outcomes = raced(run_together(THREADS, save))
        saved = [each for each in outcomes if not isinstance(each, StaleRecordError)]
        assert saved == [storage.find_background("op")]
        assert len(storage.list_background("tenant").records) == 1


class TestManyAtOnce:
    def test_fencing_tokens_are_never_given_twice(self, storage: Storage) -> None:
        """Claims and locks of many threads all get different tokens."""
        numbers = itertools.count()

        def draw() -> list[int]:
            tokens = []
            for _ in range(10):
                number = next(numbers)
                request = make_request(key=f"k{number}")
                tokens.append(storage.claim_operation(request).fencing_token)
                grant = storage.acquire_lock(f"l{number}", "a", 30)
                tokens.append(grant.fencing_token if grant else 0)
            return tokens

        tokens: list[int] = []
        for each in raced(run_together(THREADS, draw)):
            tokens += each  # type: ignore[arg-type]
        assert 0 not in tokens
        assert len(set(tokens)) == THREADS * 20

    def test_each_expired_record_is_removed_once(self, backend: Backend) -> None:
        """Purges beside each other remove everything once and count it once."""
        for number in range(40):
            request = make_request(key=f"k{number}", ttl=10)
            backend.storage.complete_operation(request, 1, b"x", failed=False)
        backend.age(11)

        def purge() -> int:
            removed, more = 0, True
            while more:
                report = backend.storage.purge_expired(3)
                removed, more = removed + report.removed, report.more
            return removed

        assert sum(raced(run_together(4, purge))) == 40  # type: ignore[arg-type]
        assert backend.storage.get_stats().idempotency_keys == 0

    def test_purge_beside_claims_removes_nothing_live(self, backend: Backend) -> None:
        """Keys that are claimed while they are purged are claimed afterwards."""
        for number in range(40):
            request = make_request(key=f"k{number}", ttl=10)
            backend.storage.complete_operation(request, 1, b"x", failed=False)
        backend.age(11)
        numbers = itertools.count()

        def claim_or_purge() -> None:
            if next(numbers) % 2:
                for _ in range(20):
                    backend.storage.purge_expired(2)
            else:
                for number in range(40):
                    backend.storage.claim_operation(make_request(key=f"k{number}"))

        raced(run_together(4, claim_or_purge))
        backend.storage.purge_expired(100)
        for number in range(40):
            assert backend.storage.find_operation(f"k{number}") is not None
        assert backend.storage.get_stats().idempotency_keys == 40

    def test_one_outcome_is_recorded_and_replayed(self, storage: Storage) -> None:
        """Whoever claims, completes and reads meanwhile: one outcome, one executor."""
        numbers = itertools.count()

        def work() -> object:
            return claim_and_complete(storage, f"o{next(numbers)}")

        runs = raced(run_together(THREADS, work))
        assert sum(run is not None for run in runs) == 1
        record = storage.find_operation("k")
        assert record is not None
        assert record.payload in runs
