from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from dotmac_tasks.models import ClaimOutcome, ClaimReply, Quota, WriteOutcome
from dotmac_tasks.storage import Storage
from support.backends import Backend, make_request
from support.concurrency import run_together

LIMIT = 3
THREADS = 8


def claim(storage: Storage, key: str, caller: str = "c", **changes: Any) -> ClaimReply:
    """
    Claim a key under a quota, by an owner of its own.
    """
    quota = changes.pop("quota", Quota(caller, LIMIT, 60))
    request = make_request(key=key, owner=f"owner of {key}", quota=quota, **changes)
    return storage.claim_operation(request)


def use_up(storage: Storage, caller: str = "c") -> None:
    """
    Claim as many new keys as the caller may.
    """
    for number in range(LIMIT):
        assert claim(storage, f"{caller}{number}", caller).outcome is ClaimOutcome.CLAIMED


class TestLimit:
    def test_new_keys_up_to_the_limit_are_claimed(self, backend: Backend) -> None:
        """The limit is the number of keys that a caller gets; the next is told how long to wait."""
        use_up(backend.storage)
        backend.age(20)
        reply = claim(backend.storage, "next")
        assert reply.outcome is ClaimOutcome.OVER_QUOTA
        assert (reply.fencing_token, reply.payload) == (0, b"")
        assert 30 < reply.remaining <= 40

    def test_refused_key_leaves_nothing(self, storage: Storage) -> None:
        """A key that is refused has no record, and somebody else may claim it."""
        use_up(storage)
        claim(storage, "next")
        assert storage.find_operation("next") is None
        assert storage.get_stats().idempotency_keys == LIMIT
        assert claim(storage, "next", "other").outcome is ClaimOutcome.CLAIMED

    def test_refusal_is_not_counted(self, backend: Backend) -> None:
        """Asking again and again does not move the end of the window."""
        use_up(backend.storage)
        for _ in range(3):
            backend.age(15)
            assert claim(backend.storage, "next").outcome is ClaimOutcome.OVER_QUOTA
        backend.age(16)
        assert claim(backend.storage, "next").outcome is ClaimOutcome.CLAIMED

    def test_window_begins_anew(self, backend: Backend) -> None:
        """After the window the caller has the whole limit again, and no more."""
        use_up(backend.storage)
        backend.age(61)
        for number in range(LIMIT):
            reply = claim(backend.storage, f"second{number}")
            assert reply.outcome is ClaimOutcome.CLAIMED
        assert claim(backend.storage, "one more").outcome is ClaimOutcome.OVER_QUOTA

    def test_callers_are_counted_apart(self, storage: Storage) -> None:
        """What one caller uses up is not taken from another."""
        use_up(storage, "a")
        use_up(storage, "b")
        assert claim(storage, "next", "a").outcome is ClaimOutcome.OVER_QUOTA

    def test_claim_without_quota_is_neither_counted_nor_refused(self, storage: Storage) -> None:
        """A claim that carries no quota has no limit and takes nothing from one."""
        for number in range(LIMIT + 1):
            assert claim(storage, f"k{number}", quota=None).outcome is ClaimOutcome.CLAIMED
        use_up(storage)
        assert claim(storage, "free", quota=None).outcome is ClaimOutcome.CLAIMED

    def test_lower_limit_counts_at_once(self, storage: Storage) -> None:
        """A limit that was lowered meanwhile is compared with what is counted already."""
        claim(storage, "first")
        claim(storage, "second")
        reply = claim(storage, "third", quota=Quota("c", 2, 60))
        assert reply.outcome is ClaimOutcome.OVER_QUOTA


class TestKeysThatAreThere:
    def test_duplicates_are_answered(self, storage: Storage) -> None:
        """Whoever is over the quota still gets replays, conflicts and mismatches."""
        finished = make_request(key="c0", owner="owner of c0", quota=Quota("c", LIMIT, 60))
        token = storage.claim_operation(finished).fencing_token
        storage.complete_operation(finished, token, b"1jnull", failed=False)
        claim(storage, "c1")
        claim(storage, "c2")
        quota = Quota("c", LIMIT, 60)
        replay = storage.claim_operation(make_request(key="c0", owner="x", quota=quota))
        assert replay.payload == b"1jnull"
        running = storage.claim_operation(make_request(key="c1", owner="x", quota=quota))
        assert running.outcome is ClaimOutcome.IN_PROGRESS
        other = make_request(key="c1", owner="x", fingerprint="another", quota=quota)
        assert storage.claim_operation(other).outcome is ClaimOutcome.MISMATCH
        foreign = make_request(key="c1", owner="x", tenant_id="another", quota=quota)
        assert storage.claim_operation(foreign).outcome is ClaimOutcome.FOREIGN
        assert claim(storage, "next").outcome is ClaimOutcome.OVER_QUOTA

    def test_takeover_is_neither_counted_nor_refused(self, backend: Backend) -> None:
        """An abandoned key is taken over by whoever is over the quota."""
        claim(backend.storage, "c0", lease=10)
        backend.age(11)
        for number in range(1, LIMIT):
            claim(backend.storage, f"c{number}")
        request = make_request(key="c0", owner="x", quota=Quota("c", LIMIT, 60))
        assert backend.storage.claim_operation(request).outcome is ClaimOutcome.TAKEN_OVER

    def test_pending_key_is_neither_counted_nor_refused(self, storage: Storage) -> None:
        """A key that the project has made pending costs its caller nothing."""
        storage.ensure_operation(make_request(key="made"))
        use_up(storage)
        assert claim(storage, "made").outcome is ClaimOutcome.CLAIMED

    def test_claim_sent_again_counts_once(self, storage: Storage) -> None:
        """A claim whose reply was lost and that is sent again is one key, not two."""
        for number in range(LIMIT):
            first = claim(storage, f"c{number}")
            assert claim(storage, f"c{number}") == first
        assert claim(storage, "next").outcome is ClaimOutcome.OVER_QUOTA

    def test_expired_key_is_new(self, backend: Backend) -> None:
        """A key whose retention is over counts as a new one."""
        claim(backend.storage, "old", ttl=5, lease=5, quota=Quota("c", LIMIT, 1000))
        backend.age(11)
        for number in range(LIMIT - 1):
            claim(backend.storage, f"c{number}", quota=Quota("c", LIMIT, 1000))
        assert claim(backend.storage, "old").outcome is ClaimOutcome.OVER_QUOTA

    def test_released_key_stays_counted(self, storage: Storage) -> None:
        """What was counted is not given back when the key is."""
        for number in range(LIMIT):
            key = f"c{number}"
            claim(storage, key)
            assert storage.release_operation(key, f"owner of {key}") is WriteOutcome.DONE
        assert storage.get_stats().idempotency_keys == 0
        assert claim(storage, "c0").outcome is ClaimOutcome.OVER_QUOTA


@pytest.mark.parametrize("times", range(3))
class TestConcurrency:
    def test_exactly_the_limit_is_claimed(self, storage: Storage, times: int) -> None:
        """Of many new keys at once exactly as many are claimed as the limit says."""
        numbers = itertools.count()

        def attempt() -> object:
            return claim(storage, f"k{next(numbers)}").outcome

        counts = Counter(run_together(THREADS, attempt))
        assert counts == {ClaimOutcome.CLAIMED: LIMIT, ClaimOutcome.OVER_QUOTA: THREADS - LIMIT}
        assert storage.get_stats().idempotency_keys == LIMIT

    def test_one_key_counts_once(self, storage: Storage, times: int) -> None:
        """Of many claims of one new key one is counted."""
        numbers = itertools.count()
        quota = Quota("c", LIMIT, 60)

        def attempt() -> object:
            request = make_request(owner=f"o{next(numbers)}", quota=quota)
            return storage.claim_operation(request).outcome

        counts = Counter(run_together(THREADS, attempt))
        assert counts == {ClaimOutcome.CLAIMED: 1, ClaimOutcome.IN_PROGRESS: THREADS - 1}
        for number in range(LIMIT - 1):
            assert claim(storage, f"k{number}").outcome is ClaimOutcome.CLAIMED
        assert claim(storage, "next").outcome is ClaimOutcome.OVER_QUOTA
