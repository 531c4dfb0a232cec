from __future__ import annotations

from dotmac_tasks.models import Lease, LeaseKind
from dotmac_tasks.storage import Storage
from support.backends import Backend, make_request


class TestAcquire:
    def test_free_lock_is_acquired(self, storage: Storage) -> None:
        """A lock that nobody holds is granted with a positive fencing token."""
        grant = storage.acquire_lock("l", "a", 30)
        assert grant is not None
        assert grant.fencing_token >= 1

    def test_held_lock_is_not_acquired(self, backend: Backend) -> None:
        """Somebody else gets nothing, and the holder's time to live stays what it was."""
        storage = backend.storage
        storage.acquire_lock("l", "a", 30)
        backend.age(20)
        assert storage.acquire_lock("l", "b", 60) is None
        backend.age(11)
        assert storage.acquire_lock("l", "b", 60) is not None

    def test_failed_acquisition_leaves_the_holder(self, storage: Storage) -> None:
        """After a refused attempt the holder still holds it and the other does not."""
        storage.acquire_lock("l", "a", 30)
        storage.acquire_lock("l", "b", 30)
        assert storage.release_lock("l", "b") is False
        assert storage.renew_leases([lock_lease("a")]) == [True]

    def test_holder_gets_the_same_grant(self, storage: Storage) -> None:
        """An acquisition that is sent again answers with the same fencing token."""
        first = storage.acquire_lock("l", "a", 30)
        assert storage.acquire_lock("l", "a", 30) == first

    def test_acquisition_sent_again_starts_the_time_anew(self, backend: Backend) -> None:
        """The holder's second acquisition lasts for its whole time to live."""
        backend.storage.acquire_lock("l", "a", 30)
        backend.age(20)
        backend.storage.acquire_lock("l", "a", 30)
        backend.age(20)
        assert backend.storage.acquire_lock("l", "b", 30) is None

    def test_expired_lock_is_acquired_by_another(self, backend: Backend) -> None:
        """Past its time to live a lock is free, and the next token is larger."""
        first = backend.storage.acquire_lock("l", "a", 30)
        backend.age(31)
        second = backend.storage.acquire_lock("l", "b", 30)
        assert first is not None
        assert second is not None
        assert second.fencing_token > first.fencing_token

    def test_expired_lock_is_acquired_anew_by_its_holder(self, backend: Backend) -> None:
        """A holder that comes back too late gets a larger token: others may have held it."""
        first = backend.storage.acquire_lock("l", "a", 30)
        backend.age(31)
        second = backend.storage.acquire_lock("l", "a", 30)
        assert first is not None
        assert second is not None
        assert second.fencing_token > first.fencing_token

    def test_tokens_grow_over_locks_and_claims(self, storage: Storage) -> None:
        """Locks and claims draw from one counter, whatever was released in between."""
        tokens = []
        for number in range(3):
            grant = storage.acquire_lock(f"l{number % 2}", "a", 30)
            assert grant is not None
            tokens.append(grant.fencing_token)
            storage.release_lock(f"l{number % 2}", "a")
            tokens.append(storage.claim_operation(make_request(key=f"k{number}")).fencing_token)
        assert tokens == sorted(set(tokens))

    def test_locks_are_apart(self, storage: Storage) -> None:
        """Holding one lock refuses nobody another one."""
        names = ["l", "L", "l:1", "l{1}", "lé"]
        assert all(storage.acquire_lock(name, "a", 30) for name in names)

    def test_lock_and_key_of_one_name_are_apart(self, storage: Storage) -> None:
        """A lock and an idempotency key of the same name do not see each other."""
        storage.acquire_lock("k", "a", 30)
        storage.claim_operation(make_request(key="k", owner="a"))
        assert storage.release_lock("k", "a") is True
        assert storage.find_operation("k") is not None

    def test_lock_is_seen_by_another_instance(self, backend: Backend) -> None:
        """What one instance holds, another one over the same storage cannot take."""
        backend.storage.acquire_lock("l", "a", 30)
        assert backend.reopen().acquire_lock("l", "b", 30) is None


class TestRelease:
    def test_holder_releases(self, storage: Storage) -> None:
        """A released lock is free at once."""
        storage.acquire_lock("l", "a", 30)
        assert storage.release_lock("l", "a") is True
        assert storage.acquire_lock("l", "b", 30) is not None

    def test_other_owner_cannot_release(self, storage: Storage) -> None:
        """Somebody else's release is refused and the holder keeps the lock."""
        storage.acquire_lock("l", "a", 30)
        assert storage.release_lock("l", "b") is False
        assert storage.acquire_lock("l", "b", 30) is None

    def test_late_holder_cannot_release_its_successor(self, backend: Backend) -> None:
        """A holder whose time ran out leaves the next one's lock alone."""
        backend.storage.acquire_lock("l", "a", 30)
        backend.age(31)
        backend.storage.acquire_lock("l", "b", 30)
        assert backend.storage.release_lock("l", "a") is False
        assert backend.storage.acquire_lock("l", "c", 30) is None

    def test_absent_lock_counts_as_released(self, storage: Storage) -> None:
        """A release that is sent again finds nothing and is True."""
        storage.acquire_lock("l", "a", 30)
        assert [storage.release_lock("l", "a") for _ in range(2)] == [True, True]

    def test_expired_lock_counts_as_released(self, backend: Backend) -> None:
        """A lock past its time to live is absent."""
        backend.storage.acquire_lock("l", "a", 30)
        backend.age(31)
        assert backend.storage.release_lock("l", "a") is True


class TestRenew:
    def test_live_lock_is_extended(self, backend: Backend) -> None:
        """A renewed lock ends so many seconds from the renewal."""
        storage = backend.storage
        storage.acquire_lock("l", "a", 30)
        backend.age(20)
        assert storage.renew_leases([lock_lease("a", seconds=30)]) == [True]
        backend.age(20)
        assert storage.acquire_lock("l", "b", 30) is None
        backend.age(11)
        assert storage.acquire_lock("l", "b", 30) is not None

    def test_expired_lock_is_not_taken_anew(self, backend: Backend) -> None:
        """A renewal that comes too late does not make the lock live again."""
        backend.storage.acquire_lock("l", "a", 30)
        backend.age(31)
        assert backend.storage.renew_leases([lock_lease("a")]) == [False]
        assert backend.storage.acquire_lock("l", "b", 30) is not None

    def test_lost_lock_is_not_extended(self, backend: Backend) -> None:
        """A renewal of what somebody else holds now changes nothing of it."""
        storage = backend.storage
        storage.acquire_lock("l", "b", 30)
        assert storage.renew_leases([lock_lease("a", seconds=600)]) == [False]
        backend.age(31)
        assert storage.acquire_lock("l", "c", 30) is not None

    def test_absent_lock_is_not_renewed(self, storage: Storage) -> None:
        """A renewal does not create a lock."""
        assert storage.renew_leases([lock_lease("a")]) == [False]
        assert storage.acquire_lock("l", "b", 30) is not None

    def test_live_claim_is_extended(self, backend: Backend) -> None:
        """A renewed claim stays its owner's beyond its first lease."""
        storage = backend.storage
        storage.claim_operation(make_request(owner="a", lease=30))
        backend.age(20)
        assert storage.renew_leases([claim_lease("a", seconds=30)]) == [True]
        backend.age(20)
        reply = storage.claim_operation(make_request(owner="b"))
        assert reply.outcome == "in_progress"
        assert 0 < reply.remaining <= 10

    def test_renewal_moves_the_expiry(self, backend: Backend) -> None:
        """A claim that is renewed expires one retention after its new lease."""
        storage = backend.storage
        storage.claim_operation(make_request(lease=30, ttl=100))
        backend.age(20)
        storage.renew_leases([claim_lease("a", seconds=30)])
        backend.age(129)
        assert storage.find_operation("k") is not None
        backend.age(2)
        assert storage.find_operation("k") is None

    def test_renewal_leaves_a_refuse_claim_without_expiry(self, backend: Backend) -> None:
        """A claim that never expires does not begin to by being renewed."""
        storage = backend.storage
        storage.claim_operation(make_request(ttl=100, on_abandoned="refuse"))
        assert storage.renew_leases([claim_lease("a")]) == [True]
        backend.age(100_000)
        assert storage.find_operation("k") is not None

    def test_claim_past_its_lease_is_extended(self, backend: Backend) -> None:
        """A claim whose lease is over, and which nobody took, is its owner's again."""
        storage = backend.storage
        storage.claim_operation(make_request(owner="a", lease=30))
        backend.age(31)
        assert storage.renew_leases([claim_lease("a")]) == [True]
        assert storage.claim_operation(make_request(owner="b")).outcome == "in_progress"

    def test_lost_claim_is_not_extended(self, backend: Backend) -> None:
        """A claim that was taken over is not renewed, and the new one is left as it is."""
        storage = backend.storage
        storage.claim_operation(make_request(owner="a", lease=30))
        backend.age(31)
        storage.claim_operation(make_request(owner="b", lease=30))
        before = storage.find_operation("k")
        assert storage.renew_leases([claim_lease("a", seconds=600)]) == [False]
        assert storage.find_operation("k") == before

    def test_finished_claim_is_not_extended(self, storage: Storage) -> None:
        """A finished record is not renewed and its expiry stays."""
        request = make_request(owner="a")
        token = storage.claim_operation(request).fencing_token
        storage.complete_operation(request, token, b"x", failed=False)
        before = storage.find_operation("k")
        assert storage.renew_leases([claim_lease("a", seconds=600)]) == [False]
        assert storage.find_operation("k") == before

    def test_pending_record_is_not_extended(self, storage: Storage) -> None:
        """A record that nobody claimed has no lease."""
        before = storage.ensure_operation(make_request(owner="a"))
        assert storage.renew_leases([claim_lease("a"), claim_lease("")]) == [False, False]
        assert storage.find_operation("k") == before

    def test_absent_claim_is_not_renewed(self, storage: Storage) -> None:
        """A renewal does not create a record."""
        assert storage.renew_leases([claim_lease("a")]) == [False]
        assert storage.find_operation("k") is None

    def test_expired_claim_is_not_renewed(self, backend: Backend) -> None:
        """A claim past its expiry is absent."""
        backend.storage.claim_operation(make_request(lease=10, ttl=10))
        backend.age(21)
        assert backend.storage.renew_leases([claim_lease("a")]) == [False]

    def test_each_lease_is_answered_in_its_place(self, storage: Storage) -> None:
        """Hundreds of leases of both kinds, lost ones among them, are answered in order."""
        leases, expected = [], []
        for number in range(300):
            mine = number % 3 != 0
            owner = "a" if mine else "somebody"
            if number % 2:
                storage.acquire_lock(f"n{number}", owner, 30)
            else:
                storage.claim_operation(make_request(key=f"n{number}", owner=owner))
            kind = LeaseKind.LOCK if number % 2 else LeaseKind.OPERATION
            leases.append(Lease(kind, f"n{number}", "a", 30))
            expected.append(mine)
        assert storage.renew_leases(leases) == expected

    def test_nothing_to_renew_is_answered(self, storage: Storage) -> None:
        """No leases, no answers."""
        assert storage.renew_leases([]) == []


def lock_lease(owner: str, seconds: float = 30) -> Lease:
    """
    Describe the lease of the lock "l".
    """
    return Lease(LeaseKind.LOCK, "l", owner, seconds)


def claim_lease(owner: str, seconds: float = 30) -> Lease:
    """
    Describe the lease of the key "k".
    """
    return Lease(LeaseKind.OPERATION, "k", owner, seconds)
