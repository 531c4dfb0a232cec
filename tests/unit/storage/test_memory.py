from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from dotmac_tasks.errors import StorageUnavailableError
from dotmac_tasks.models import (
    ClaimOutcome,
    ClaimReply,
    Lease,
    LeaseKind,
    LockGrant,
    OperationStatus,
    Quota,
)
from dotmac_tasks.storage import MemoryStorage
from dotmac_tasks.storage.indexes import SortedNumbers
from dotmac_tasks.testing import FakeClock
from support.backends import make_request
from support.concurrency import run_together


@pytest.fixture
def storage(clock: FakeClock) -> MemoryStorage:
    """
    A storage with room for three records.
    """
    return MemoryStorage(max_records=3, clock=clock)


def finish(storage: MemoryStorage, key: str, ttl: float = 3600) -> None:
    """
    Record an outcome for a key.
    """
    storage.complete_operation(make_request(key=key, ttl=ttl), 1, b"x", failed=False)


def save(
    storage: MemoryStorage,
    operation_id: str,
    status: OperationStatus,
    *,
    revision: int = 0,
    retention: float | None = None,
) -> None:
    """
    Save a background operation.
    """
    storage.save_background(
        operation_id,
        "tenant",
        status,
        b"x",
        expected_revision=revision,
        request_id=f"{revision}",
        retention=retention,
    )


class TestCapacity:
    def test_expired_record_makes_room_first(
        self, storage: MemoryStorage, clock: FakeClock
    ) -> None:
        """A full storage forgets what expired before any outcome that still counts."""
        finish(storage, "old", ttl=100)
        finish(storage, "expired", ttl=10)
        finish(storage, "new", ttl=100)
        clock.advance(11)
        storage.claim_operation(make_request())
        assert storage.find_operation("old") is not None
        assert storage.find_operation("new") is not None
        assert storage.get_stats().idempotency_keys == 3

    def test_oldest_outcome_makes_room_next(self, storage: MemoryStorage) -> None:
        """A full storage forgets the outcome that was recorded first."""
        for key in ("first", "second", "third"):
            finish(storage, key)
        storage.claim_operation(make_request())
        assert storage.find_operation("first") is None
        assert storage.find_operation("second") is not None
        assert storage.find_operation("third") is not None

    def test_oldest_is_the_one_completed_first(self, storage: MemoryStorage) -> None:
        """The order is that of completion, not that of the claims."""
        slow = make_request(key="slow")
        token = storage.claim_operation(slow).fencing_token
        finish(storage, "quick")
        storage.complete_operation(slow, token, b"x", failed=False)
        storage.claim_operation(make_request(key="third"))
        storage.claim_operation(make_request(key="fourth"))
        assert storage.find_operation("quick") is None
        assert storage.find_operation("slow") is not None

    def test_work_in_progress_is_never_forgotten(self, storage: MemoryStorage) -> None:
        """A storage full of claims, pending records and locks refuses what is new."""
        storage.claim_operation(make_request(key="running"))
        storage.ensure_operation(make_request(key="pending"))
        storage.acquire_lock("l", "a", 30)
        refused: list[Callable[[], object]] = [
            lambda: storage.claim_operation(make_request()),
            lambda: storage.ensure_operation(make_request()),
            lambda: finish(storage, "k"),
            lambda: storage.defer_operation(make_request(), 60),
            lambda: storage.acquire_lock("other", "a", 30),
            lambda: save(storage, "op", OperationStatus.PENDING),
        ]
        for verb in refused:
            with pytest.raises(StorageUnavailableError):
                verb()
        assert storage.find_operation("running") is not None
        assert storage.find_operation("pending") is not None
        assert storage.acquire_lock("l", "b", 30) is None
        assert storage.get_stats() == (2, 0)

    def test_known_records_are_written_while_full(self, storage: MemoryStorage) -> None:
        """A full storage still completes, renews and releases what it holds."""
        for key in ("k1", "k2", "k3"):
            storage.claim_operation(make_request(key=key))
        lease = Lease(LeaseKind.OPERATION, "k1", "a", 30)
        assert storage.renew_leases([lease]) == [True]
        assert storage.release_operation("k2", "a") == "done"
        finish(storage, "k3")
        assert storage.claim_operation(make_request()).outcome is ClaimOutcome.CLAIMED

    def test_abandoned_claim_makes_room_once_it_expired(
        self, storage: MemoryStorage, clock: FakeClock
    ) -> None:
        """A claim whose lease is over still counts, until its retention is over too."""
        for key in ("k1", "k2", "k3"):
            storage.claim_operation(make_request(key=key, lease=10, ttl=100))
        clock.advance(109)
        with pytest.raises(StorageUnavailableError):
            storage.claim_operation(make_request())
        clock.advance(2)
        assert storage.claim_operation(make_request()).outcome is ClaimOutcome.CLAIMED

    def test_finished_operations_make_room(self, storage: MemoryStorage) -> None:
        """Finished background operations may be forgotten, unfinished ones may not."""
        save(storage, "running", OperationStatus.IN_PROGRESS)
        save(storage, "failed", OperationStatus.FAILED)
        save(storage, "reopened", OperationStatus.FAILED)
        save(storage, "reopened", OperationStatus.IN_PROGRESS, revision=1)
        storage.claim_operation(make_request())
        with pytest.raises(StorageUnavailableError):
            storage.claim_operation(make_request(key="other"))
        assert storage.find_background("failed") is None
        assert storage.find_background("reopened") is not None
        assert [record.operation_id for record in storage.list_background("tenant").records] == [
            "reopened",
            "running",
        ]

    def test_expired_namesake_makes_room(self, storage: MemoryStorage, clock: FakeClock) -> None:
        """A new record takes the place of its own expired namesake and of no other."""
        finish(storage, "k", ttl=10)
        storage.acquire_lock("l", "a", 10)
        save(storage, "op", OperationStatus.COMPLETED, retention=10)
        clock.advance(11)
        storage.claim_operation(make_request())
        storage.acquire_lock("l", "b", 10)
        save(storage, "op", OperationStatus.COMPLETED, retention=10)
        assert storage.get_stats() == (1, 1)
        assert storage.purge_expired(10).removed == 0


class TestHealth:
    def test_nearly_full_storage_warns(self, storage: MemoryStorage) -> None:
        """A storage that is about to forget outcomes says so and is healthy."""
        for key in ("k1", "k2", "k3"):
            finish(storage, key)
        health = storage.check_health()
        assert health.healthy
        assert "3 of at most 3" in health.warnings[0]
        assert health.details == {"records": 3, "max_records": 3}

    def test_storage_with_room_does_not_warn(self, storage: MemoryStorage) -> None:
        """A storage with room has nothing to warn about."""
        finish(storage, "k")
        assert storage.check_health().warnings == ()

    def test_storage_without_room_is_unhealthy(
        self, storage: MemoryStorage, clock: FakeClock
    ) -> None:
        """A storage that would refuse a claim is unhealthy, until something expires."""
        for key in ("k1", "k2", "k3"):
            storage.claim_operation(make_request(key=key, lease=10, ttl=10))
        assert not storage.check_health().healthy
        clock.advance(21)
        assert storage.check_health().healthy


class TestTime:
    def test_step_of_the_wall_clock_changes_no_lease(self) -> None:
        """Leases and expiry follow the monotonic clock, whatever the wall clock does."""
        clock = SteppingClock()
        storage = MemoryStorage(clock=clock)
        storage.claim_operation(make_request(owner="a", lease=10))
        clock.step(timedelta(days=365))
        assert storage.claim_operation(make_request(owner="b")).outcome == "in_progress"
        clock.advance(11)
        clock.step(timedelta(days=-730))
        assert storage.claim_operation(make_request(owner="b")).outcome == "taken_over"

    def test_instants_of_one_record_stay_together(self) -> None:
        """A step of the wall clock pulls the instants of one record not apart."""
        clock = SteppingClock()
        storage = MemoryStorage(clock=clock)
        storage.claim_operation(make_request(lease=10, ttl=100))
        clock.step(timedelta(hours=1))
        record = storage.find_operation("k")
        assert record is not None
        assert record.lease_ms == record.created_ms + 10_000
        assert record.expires_ms == record.created_ms + 110_000

    def test_new_record_shows_the_new_wall_clock(self) -> None:
        """A step of the wall clock shows in what is created a second later."""
        clock = SteppingClock()
        storage = MemoryStorage(clock=clock)
        before = storage.ensure_operation(make_request(key="before"))
        clock.step(timedelta(hours=1))
        clock.advance(1)
        after = storage.ensure_operation(make_request(key="after"))
        assert after.created_ms == before.created_ms + 3_601_000
        assert after.created_ms == clock.now().timestamp() * 1000

    def test_system_clock_is_the_default(self) -> None:
        """Without a clock the instants are those of the system."""
        record = MemoryStorage().ensure_operation(make_request())
        shown = datetime.fromtimestamp(record.created_ms / 1000, UTC)
        assert abs(datetime.now(UTC) - shown) < timedelta(minutes=1)


class SteppingClock(FakeClock):
    """
    A clock whose wall clock can be set.
    """

    def __init__(self) -> None:
        super().__init__()
        self._offset = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self._offset

    def step(self, by: timedelta) -> None:
        self._offset += by


class TestHeap:
    def test_released_claims_do_not_pile_up(self, clock: FakeClock) -> None:
        """However often keys are claimed and released, what is left behind is bounded."""
        storage = MemoryStorage(clock=clock)
        finish(storage, "kept")
        for _ in range(1000):
            storage.claim_operation(make_request())
            storage.release_operation("k", "a")
        assert len(storage._expiry) < 100
        clock.advance(3601)
        assert storage.purge_expired(10).removed == 1
        assert len(storage._expiry) == 0

    def test_renewals_do_not_pile_up(self, clock: FakeClock) -> None:
        """However often a lease is renewed, it has one entry."""
        storage = MemoryStorage(clock=clock)
        storage.claim_operation(make_request(ttl=10))
        storage.acquire_lock("l", "a", 30)
        leases = [
            Lease(LeaseKind.OPERATION, "k", "a", 30),
            Lease(LeaseKind.LOCK, "l", "a", 30),
        ]
        for _ in range(1000):
            clock.advance(10)
            storage.purge_expired(10)
            assert storage.renew_leases(leases) == [True, True]
        assert len(storage._expiry) == 2

    def test_expired_locks_are_purged(self, clock: FakeClock) -> None:
        """Locks whose holders died do not pile up."""
        storage = MemoryStorage(clock=clock)
        for number in range(5):
            storage.acquire_lock(f"l{number}", "a", 30)
        clock.advance(31)
        assert storage.purge_expired(10).removed == 5
        assert storage._locks == {}

    def test_resolved_refusal_is_scheduled_again(self, clock: FakeClock) -> None:
        """A claim that never expired leaves the heap, and enters it when it is resolved."""
        storage = MemoryStorage(clock=clock)
        storage.claim_operation(make_request(ttl=10, lease=10, on_abandoned="refuse"))
        clock.advance(1000)
        assert storage.purge_expired(10).removed == 0
        assert len(storage._expiry) == 0
        storage.settle_operation("k", b"x", failed=False)
        clock.advance(11)
        assert storage.purge_expired(10).removed == 1

    def test_dry_run_passes_over_prolonged_and_stale_entries(self, clock: FakeClock) -> None:
        """A dry run counts neither what was kept longer nor what is gone."""
        storage = MemoryStorage(clock=clock)
        for number in range(20):
            storage.claim_operation(make_request(key=f"k{number}", ttl=10, lease=10))
        storage.release_operation("k0", "a")
        storage.renew_leases([Lease(LeaseKind.OPERATION, "k1", "a", 1000)])
        clock.advance(21)
        assert storage.purge_expired(1, dry_run=True).removed == 18
        assert storage.purge_expired(100).removed == 18


class TestListing:
    def test_cursor_of_another_kind_is_refused(self, storage: MemoryStorage) -> None:
        """A cursor that no listing returned is a ValueError that does not repeat it."""
        with pytest.raises(ValueError, match="cursor") as caught:
            storage.list_background("tenant", cursor="<script>")
        assert "script" not in str(caught.value)

    def test_tenant_without_operations_leaves_nothing(
        self, storage: MemoryStorage, clock: FakeClock
    ) -> None:
        """A tenant whose operations are gone costs nothing any more."""
        save(storage, "op", OperationStatus.COMPLETED, retention=10)
        clock.advance(11)
        assert storage.list_background("tenant").records == []
        assert (storage._listings, storage._by_order) == ({}, {})
        assert storage.get_stats().operations == 0

    def test_numbers_are_sorted_over_many_chunks(self) -> None:
        """Thousands of numbers added in any order come back largest first, without the removed."""
        numbers = SortedNumbers()
        added = [number * 7919 % 5000 for number in range(5000)]
        for number in added:
            numbers.add(number)
        assert list(numbers.below(5000)) == list(range(4999, -1, -1))
        assert list(numbers.below(1234)) == list(range(1233, -1, -1))
        for number in range(0, 5000, 2):
            numbers.remove(number)
        assert list(numbers.below(10)) == [9, 7, 5, 3, 1]
        for number in range(1, 5000, 2):
            numbers.remove(number)
        assert not numbers
        assert list(numbers.below(5000)) == []


@pytest.mark.parametrize("others", [[], ["p"]])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_removal_can_be_made_again(
    after: int,
    others: list[str],
    storage: MemoryStorage,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interrupt in the middle of a removal costs no later listing, removal or write anything."""
    save(storage, "o", OperationStatus.COMPLETED, retention=10)
    for other in others:
        save(storage, other, OperationStatus.PENDING)
    clock.advance(11)
    remove, calls = SortedNumbers.remove, []

    def interrupt(numbers: SortedNumbers, number: int) -> None:
        calls.append(number)
        if len(calls) <= after:
            remove(numbers, number)
        if len(calls) == max(1, after):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SortedNumbers, "remove", interrupt)
        with pytest.raises(KeyboardInterrupt):
            storage.purge_expired(10)
    for status in (None, OperationStatus.COMPLETED):
        page = storage.list_background("tenant", status=status)
        assert [each.operation_id for each in page.records] == ([] if status else others)
    save(storage, "o", OperationStatus.PENDING)
    page = storage.list_background("tenant", status=OperationStatus.PENDING)
    assert [each.operation_id for each in page.records] == ["o", *others]


def test_signal_handler_may_use_a_storage_that_it_interrupts() -> None:
    """A thread that is stopped inside of a verb can call another one, as a handler may."""

    class Interrupted(FakeClock):
        def monotonic(self) -> float:
            if not interrupted:
                interrupted.append("now")
                interrupted.append(storage.acquire_lock("l", "a", 30))
            return super().monotonic()

    interrupted: list[object] = []
    storage = MemoryStorage(clock=Interrupted())
    (reply,) = run_together(1, storage.claim_operation, make_request())
    assert isinstance(reply, ClaimReply)
    assert reply.outcome is ClaimOutcome.CLAIMED
    assert interrupted == ["now", LockGrant(1)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
class TestFork:
    def test_child_starts_with_a_copy(self) -> None:
        """A child finds what was recorded before, and the parent sees nothing of the child's."""
        storage = MemoryStorage()
        finish(storage, "before")

        def child() -> bool:
            finish(storage, "in-child")
            return storage.find_operation("before") is not None

        assert ask_child(child)
        assert storage.find_operation("in-child") is None

    def test_child_of_a_busy_parent_starts_empty(self) -> None:
        """A fork in the middle of another thread's write gives a usable, empty storage."""
        storage = MemoryStorage()
        finish(storage, "before")
        held, done = threading.Event(), threading.Event()

        def write() -> None:
            with storage._lock:
                held.set()
                done.wait(30)

        thread = threading.Thread(target=write)
        thread.start()
        held.wait(30)

        def child() -> bool:
            empty = storage.find_operation("before") is None
            finish(storage, "in-child")
            return empty and storage.find_operation("in-child") is not None

        try:
            assert ask_child(child)
        finally:
            done.set()
            thread.join(30)
        assert storage.find_operation("before") is not None


def ask_child(question: Callable[[], bool]) -> bool:
    """
    Answer a question in a forked child.
    """
    child = os.fork()
    if child == 0:
        answer = False
        try:
            answer = question()
        finally:
            os._exit(0 if answer else 1)
    return os.waitpid(child, 0)[1] == 0


def claim_under_quota(storage: MemoryStorage, key: str, caller: str = "c") -> ClaimReply:
    quota = Quota(caller, 2, 60)
    return storage.claim_operation(make_request(key=key, owner=key, ttl=5, lease=5, quota=quota))


def test_counters_of_quotas_are_bounded(storage: MemoryStorage) -> None:
    """Callers that are made up at will cannot fill the memory: each counter takes a place."""
    assert claim_under_quota(storage, "a", "first").outcome is ClaimOutcome.CLAIMED
    with pytest.raises(StorageUnavailableError):
        claim_under_quota(storage, "b", "second")
    assert storage.check_health().details["records"] == 3


def test_counter_outlives_what_makes_room(storage: MemoryStorage, clock: FakeClock) -> None:
    """A full storage forgets outcomes before it forgets what a caller has used."""
    claim_under_quota(storage, "a")
    clock.advance(11)
    claim_under_quota(storage, "b")
    finish(storage, "done")
    assert claim_under_quota(storage, "c").outcome is ClaimOutcome.OVER_QUOTA
    storage.acquire_lock("lock", "owner", 60)
    assert storage.find_operation("done") is None
    assert claim_under_quota(storage, "c").outcome is ClaimOutcome.OVER_QUOTA


def test_counter_goes_with_its_window(storage: MemoryStorage, clock: FakeClock) -> None:
    """A counter whose window is over is removed by a cleanup, or by its caller's next key."""
    claim_under_quota(storage, "a")
    clock.advance(61)
    assert storage.purge_expired(10).removed == 2
    assert storage.check_health().details["records"] == 0
    claim_under_quota(storage, "b")
    clock.advance(61)
    claim_under_quota(storage, "c")
    assert storage.check_health().details["records"] == 3


def test_key_without_room_is_not_counted(storage: MemoryStorage) -> None:
    """A claim that the full storage refuses takes nothing from its caller's quota."""
    claim_under_quota(storage, "a")
    storage.acquire_lock("lock", "owner", 60)
    with pytest.raises(StorageUnavailableError):
        claim_under_quota(storage, "b")
    storage.release_lock("lock", "owner")
    assert claim_under_quota(storage, "b").outcome is ClaimOutcome.CLAIMED
