from __future__ import annotations

from dotmac_tasks.models import ClaimOutcome, OperationStatus, PurgeReport
from dotmac_tasks.storage import Storage
from support.backends import Backend, make_request


def fill(storage: Storage, *, finished: int = 0, background: int = 0) -> None:
    """
    Store records that expire after 100 seconds.
    """
    for number in range(finished):
        storage.complete_operation(
            make_request(key=f"finished{number}", ttl=100), 1, b"x", failed=False
        )
    for number in range(background):
        storage.save_background(
            f"op{number}",
            "tenant",
            OperationStatus.COMPLETED,
            b"x",
            expected_revision=0,
            request_id="r",
            retention=100,
        )


class TestPurge:
    def test_nothing_is_removed_before_its_time(self, backend: Backend) -> None:
        """A purge leaves alone what has not expired."""
        fill(backend.storage, finished=3, background=2)
        backend.age(98)
        assert backend.storage.purge_expired(100) == PurgeReport(0, False)
        assert backend.storage.get_stats() == (3, 2)

    def test_expired_records_are_removed(self, backend: Backend) -> None:
        """A purge removes expired records of both kinds and counts them."""
        fill(backend.storage, finished=3, background=2)
        backend.age(101)
        assert backend.storage.purge_expired(100) == PurgeReport(5, False)
        assert backend.storage.get_stats() == (0, 0)

    def test_batch_is_bounded(self, backend: Backend) -> None:
        """A purge removes no more than its limit and tells whether more are waiting."""
        fill(backend.storage, finished=5)
        backend.age(101)
        reports = [backend.storage.purge_expired(2) for _ in range(4)]
        assert [report.removed for report in reports] == [2, 2, 1, 0]
        assert [report.more for report in reports] == [True, True, False, False]

    def test_batches_end_over_all_kinds(self, backend: Backend) -> None:
        """Small batches remove everything that expired, each within its limit."""
        fill(backend.storage, finished=4, background=5)
        backend.age(101)
        removed, more = 0, True
        while more:
            report = backend.storage.purge_expired(2)
            assert report.removed <= 2
            removed, more = removed + report.removed, report.more
        assert removed == 9
        assert backend.storage.get_stats() == (0, 0)

    def test_dry_run_counts_all_and_removes_nothing(self, backend: Backend) -> None:
        """A dry run counts beyond its limit and leaves everything for the real one."""
        fill(backend.storage, finished=4, background=3)
        backend.age(101)
        backend.storage.claim_operation(make_request(key="live"))
        assert backend.storage.purge_expired(2, dry_run=True).removed == 7
        assert backend.storage.purge_expired(100).removed == 7
        assert backend.storage.purge_expired(2, dry_run=True).removed == 0

    def test_live_records_survive(self, backend: Backend) -> None:
        """Running, renewed, refused, deferred, pending and kept records outlive any purge."""
        storage = backend.storage
        fill(storage, finished=3)
        storage.claim_operation(make_request(key="refused", ttl=50, on_abandoned="refuse"))
        storage.claim_operation(make_request(key="abandoned", ttl=90, lease=30))
        deferred = make_request(key="deferred", ttl=50)
        storage.claim_operation(deferred)
        storage.defer_operation(deferred, 600)
        late = make_request(key="late", ttl=100, lease=60)
        token = storage.claim_operation(late).fencing_token
        storage.ensure_operation(make_request(key="pending", ttl=200))
        backend.age(50)
        storage.complete_operation(late, token, b"x", failed=False)
        backend.age(60)
        assert storage.purge_expired(100).removed == 3
        for key in ("refused", "abandoned", "deferred", "late", "pending"):
            assert storage.find_operation(key) is not None, key

    def test_purged_key_is_claimed_anew(self, backend: Backend) -> None:
        """After a purge the key is as good as never used."""
        fill(backend.storage, finished=1)
        backend.age(101)
        backend.storage.purge_expired(10)
        reply = backend.storage.claim_operation(make_request(key="finished0", fingerprint="new"))
        assert reply.outcome is ClaimOutcome.CLAIMED

    def test_reclaimed_key_is_not_purged(self, backend: Backend) -> None:
        """A key that expired and was claimed again before the purge is live."""
        fill(backend.storage, finished=1)
        backend.age(101)
        backend.storage.claim_operation(make_request(key="finished0"))
        assert backend.storage.purge_expired(10).removed == 0
        assert backend.storage.find_operation("finished0") is not None

    def test_recreated_operation_is_not_purged(self, backend: Backend) -> None:
        """An operation that expired and was created again before the purge is live and listed."""
        fill(backend.storage, background=1)
        backend.age(101)
        fill(backend.storage, background=1)
        assert backend.storage.purge_expired(10).removed == 0
        assert len(backend.storage.list_background("tenant").records) == 1

    def test_released_key_leaves_nothing(self, backend: Backend) -> None:
        """A released key has no entry that a later purge would have to remove."""
        storage = backend.storage
        storage.claim_operation(make_request(owner="a"))
        storage.release_operation("k", "a")
        assert storage.get_stats().idempotency_keys == 0
        backend.age(1_000_000)
        assert storage.purge_expired(10) == PurgeReport(0, False)

    def test_prolonged_and_shortened_records_expire_in_time(self, backend: Backend) -> None:
        """An expiry that moved either way is the one that counts for the purge."""
        storage = backend.storage
        storage.ensure_operation(make_request(key="shortened", ttl=1000))
        short = make_request(key="shortened", ttl=10)
        token = storage.claim_operation(short).fencing_token
        storage.complete_operation(short, token, b"x", failed=False)
        storage.ensure_operation(make_request(key="prolonged", ttl=10))
        long = make_request(key="prolonged", ttl=1000)
        token = storage.claim_operation(long).fencing_token
        storage.complete_operation(long, token, b"x", failed=False)
        backend.age(11)
        assert storage.purge_expired(10, dry_run=True).removed == 1
        assert storage.purge_expired(10) == PurgeReport(1, False)
        assert storage.find_operation("prolonged") is not None
        backend.age(1000)
        assert storage.purge_expired(10) == PurgeReport(1, False)

    def test_claim_shortens_the_life_of_a_pending_record(self, backend: Backend) -> None:
        """An abandoned claim expires by its own retention, not by the longer one before it."""
        storage = backend.storage
        storage.ensure_operation(make_request(ttl=1000))
        storage.claim_operation(make_request(ttl=10, lease=10))
        backend.age(21)
        assert storage.find_operation("k") is None
        assert storage.purge_expired(10) == PurgeReport(1, False)


class TestStats:
    def test_empty_storage_counts_zero(self, storage: Storage) -> None:
        """A new storage holds nothing."""
        assert storage.get_stats() == (0, 0)

    def test_records_are_counted_once(self, storage: Storage) -> None:
        """Every record counts once, in whatever status; locks count as neither."""
        fill(storage, finished=2, background=3)
        storage.claim_operation(make_request(key="running"))
        storage.ensure_operation(make_request(key="pending"))
        storage.claim_operation(make_request(key="refused", on_abandoned="refuse"))
        storage.acquire_lock("l", "a", 30)
        assert storage.get_stats() == (5, 3)


class TestHealth:
    def test_working_storage_is_healthy(self, storage: Storage) -> None:
        """A storage that works says so, with its name and a latency."""
        health = storage.check_health()
        assert health.healthy
        assert health.backend == storage.name
        assert health.latency >= 0

    def test_health_changes_nothing(self, storage: Storage) -> None:
        """Asking for health stores nothing."""
        storage.check_health()
        assert storage.get_stats() == (0, 0)


class TestClose:
    def test_closed_storage_opens_anew(self, storage: Storage) -> None:
        """Closing twice is harmless, and the next call works and finds the records."""
        storage.claim_operation(make_request(owner="a"))
        storage.close()
        storage.close()
        assert storage.find_operation("k") is not None
        assert storage.claim_operation(make_request(owner="b")).outcome == "in_progress"
