from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from dotmac_tasks.cleanup import CLEANUP_THREAD_NAME
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import (
    ConfigurationError,
    InvalidKeyError,
    KeyReusedError,
    LockNotAcquiredError,
    OperationInProgressError,
    OperationNotFoundError,
    SerializationError,
)
from dotmac_tasks.events import OperationCompleted, StorageCall
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import ClaimRequest, OperationStatus
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks.testing import EventRecorder, FakeClock
from support.concurrency import Counter, find_threads, wait_until
from support.faulty import FaultyStorage


@pytest.fixture
def manager(clock: FakeClock) -> Iterator[BackgroundOperationsManager]:
    with BackgroundOperationsManager(clock=clock, enable_background_cleanup=False) as manager:
        yield manager


# Construction and life


def test_manager_without_a_storage_has_one_of_its_own() -> None:
    """Two managers without a storage share nothing."""
    first, second = BackgroundOperationsManager(), BackgroundOperationsManager()
    first.create_idempotency_key("t", "u", "mail", key="k")
    assert isinstance(first.storage, MemoryStorage)
    assert second.check_idempotency("k") is None
    first.stop()


@pytest.mark.parametrize(
    "storage", ["memory://", {"BACKEND": "dotmac_tasks.storage.memory.MemoryStorage"}]
)
def test_manager_takes_a_url_or_a_mapping(storage: Any) -> None:
    """A storage may be named instead of handed in."""
    assert isinstance(BackgroundOperationsManager(storage).storage, MemoryStorage)


def test_manager_uses_the_storage_that_it_is_given() -> None:
    """A storage that is handed in is used as it is, and left open by `stop`."""

    class Closing(MemoryStorage):
        closed = 0

        def close(self) -> None:
            type(self).closed += 1

    storage = Closing()
    manager = BackgroundOperationsManager(storage)
    assert manager.storage is storage
    manager.stop()
    assert Closing.closed == 0


def test_manager_closes_its_own_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that the manager made is closed with it."""
    manager = BackgroundOperationsManager()
    closed = Counter()
    monkeypatch.setattr(manager.storage, "close", closed.increment)
    manager.stop()
    assert closed.value == 1


def test_manager_settings_win_over_its_config() -> None:
    """A single setting wins over the config it starts from."""
    config = TasksConfig(lease=5, storage_timeout=1)
    manager = BackgroundOperationsManager(config=config, lease=7)
    assert (manager.config.lease, manager.config.storage_timeout) == (7, 1)


@pytest.mark.parametrize("settings", [{"leese": 3}, {"lease": 0}, {"storage": "nope://"}])
def test_manager_with_a_bad_setting_is_refused(settings: Any) -> None:
    """Unknown names, bad values and unknown storages are errors at once."""
    with pytest.raises(ConfigurationError):
        BackgroundOperationsManager(**settings)


def test_manager_from_the_environment() -> None:
    """`from_env` takes defaults from the environment, and explicit settings win."""
    manager = BackgroundOperationsManager.from_env(lease=7)
    assert manager.config == TasksConfig(lease=7)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_manager_works_in_the_child_of_a_fork() -> None:
    """A manager that was used before a fork works in the child, with threads of its own."""
    manager = BackgroundOperationsManager()
    protected = manager.idempotent("work")(lambda n: n)
    protected(1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ok = protected(2) == 2 and protected(1) == 1
            wait_until(lambda: len(find_threads(CLEANUP_THREAD_NAME)) == 1)
            status = 0 if ok else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    manager.stop()


# Idempotency keys


def test_generated_key_is_the_documented_one(manager: BackgroundOperationsManager) -> None:
    """The manager hands out the key of the documented text."""
    key = manager.generate_idempotency_key(
        "tenant1", "user1", "send_email", {"to": "a@example.com", "n": 1}
    )
    created = manager.create_idempotency_key(
        "tenant1", "user1", "send_email", parameters={"n": 1, "to": "a@example.com"}
    )
    assert created.key == key
    assert len(key) == 32


def test_created_key_is_pending_and_stays_as_it_is(
    manager: BackgroundOperationsManager, clock: FakeClock
) -> None:
    """A key is created once; creating it again returns what is there, finished or not."""
    first = manager.create_idempotency_key("t", "u", "mail", key="k", ttl=60)
    assert (first.status, first.user_id) == (OperationStatus.PENDING, "u")
    assert first.expires_at is not None
    assert first.expires_at - first.created_at == timedelta(seconds=60)
    assert manager.create_idempotency_key("t", "u", "mail", key="k") == first
    assert manager.complete_idempotent_operation("k", {"sent": True})
    again = manager.create_idempotency_key("t", "u", "mail", key="k")
    assert (again.status, again.result) == (OperationStatus.COMPLETED, {"sent": True})
    clock.advance(61)
    assert manager.check_idempotency("k") is None


def test_key_of_another_user_shows_nothing(manager: BackgroundOperationsManager) -> None:
    """A user who creates another's key is refused; nobody's key is anybody's."""
    manager.create_idempotency_key("t", "alice", "mail", key="k")
    manager.create_idempotency_key("t", None, "mail", key="shared")
    with pytest.raises(KeyReusedError):
        manager.create_idempotency_key("t", "bob", "mail", key="k")
    for user, key in (("alice", "k"), (None, "k"), ("bob", "shared")):
        assert manager.create_idempotency_key("t", user, "mail", key=key).key == key
    with pytest.raises(ConfigurationError, match="user_id"):
        manager.create_idempotency_key("t", 5, "mail", key="new")  # type: ignore[arg-type]


def test_key_of_another_tenant_shows_nothing(manager: BackgroundOperationsManager) -> None:
    """Another tenant's key cannot be created, seen or completed; one's own can."""
    manager.create_idempotency_key("a", None, "mail", key="k")
    with pytest.raises(KeyReusedError):
        manager.create_idempotency_key("b", None, "mail", key="k")
    assert manager.check_idempotency("k", tenant_id="b") is None
    assert not manager.complete_idempotent_operation("k", 1, tenant_id="b")
    assert manager.complete_idempotent_operation("k", 1, tenant_id="a")
    seen = manager.check_idempotency("k", "a")
    assert seen is not None
    assert (seen.result, seen.user_id) == (1, None)


@pytest.mark.parametrize("key", ["index", "", "x" * 256])
def test_key_that_cannot_be_stored_is_refused(
    manager: BackgroundOperationsManager, key: str
) -> None:
    """The reserved key and malformed ones are errors of every call."""
    with pytest.raises(InvalidKeyError):
        manager.create_idempotency_key("t", "u", "mail", key=key)
    with pytest.raises(InvalidKeyError):
        manager.check_idempotency(key)
    with pytest.raises(InvalidKeyError):
        manager.complete_idempotent_operation(key, 1)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), "60"])
def test_retention_that_is_not_positive_is_refused(
    manager: BackgroundOperationsManager, ttl: Any
) -> None:
    """A retention of zero or less is an error wherever one is given, and stores nothing."""
    with pytest.raises(ConfigurationError, match="TTL"):
        manager.create_idempotency_key("t", "u", "mail", key="k", ttl=ttl)
    with pytest.raises(ConfigurationError, match="TTL"):
        manager.idempotent("mail", ttl=ttl)
    with pytest.raises(ConfigurationError, match="TTL"):
        manager.idempotent_operation("mail", key="k", ttl=ttl)
    with pytest.raises(ConfigurationError, match="TTL"):
        manager.lock("l", ttl=ttl)
    for name in ("default_idempotency_ttl", "operation_retention"):
        with pytest.raises(ConfigurationError, match=name.upper()):
            BackgroundOperationsManager(**{name: ttl})
    assert manager.get_stats().idempotency_keys == 0


def test_first_outcome_stays(manager: BackgroundOperationsManager) -> None:
    """Completing again says that it is finished, and changes nothing."""
    manager.create_idempotency_key("t", "u", "mail", key="k")
    assert manager.complete_idempotent_operation("k", None, error="declined")
    assert manager.complete_idempotent_operation("k", 1)
    seen = manager.check_idempotency("k")
    assert seen is not None
    assert (seen.is_failed(), seen.error, seen.result) == (True, "declined", None)


def test_unknown_or_running_operation_is_not_completed(
    manager: BackgroundOperationsManager,
) -> None:
    """Nobody can complete what does not exist or what a live executor holds."""
    assert not manager.complete_idempotent_operation("unknown", 1)
    with manager.idempotent_operation("mail", key="k"):
        assert not manager.complete_idempotent_operation("k", 1)
    assert manager.complete_idempotent_operation("k", 1)
    seen = manager.check_idempotency("k")
    assert seen is not None
    assert seen.result is None


def test_outcome_that_is_not_json_is_refused(manager: BackgroundOperationsManager) -> None:
    """A bad result is an error and writes nothing."""
    manager.create_idempotency_key("t", "u", "mail", key="k")
    with pytest.raises(SerializationError):
        manager.complete_idempotent_operation("k", object())
    seen = manager.check_idempotency("k")
    assert seen is not None
    assert seen.status is OperationStatus.PENDING


def test_abandoned_operation_is_decided_by_hand(
    manager: BackgroundOperationsManager, clock: FakeClock
) -> None:
    """What waits for a decision is replayed after it."""

    def die() -> None:
        raise KeyboardInterrupt

    protected = manager.idempotent("pay", key=lambda: "k", on_abandoned="refuse")(die)
    with pytest.raises(KeyboardInterrupt):
        protected()
    clock.advance(31)
    assert manager.complete_idempotent_operation("k", {"charged": True})
    assert protected() == {"charged": True}  # type: ignore[func-returns-value]


# Functions and blocks


def test_decorator_carries_its_settings(
    manager: BackgroundOperationsManager, clock: FakeClock
) -> None:
    """Retention and lease are those of the decorator, and the record follows them."""

    @manager.idempotent("mail", tenant_id="a", user_id="u", key=lambda: "k", ttl=100, lease=10)
    def work() -> int:
        with pytest.raises(OperationInProgressError) as caught:
            work()
        assert caught.value.retry_after == pytest.approx(10)
        return 1

    assert work() == 1
    clock.advance(99)
    assert manager.check_idempotency("k", "a") is not None
    clock.advance(2)
    assert manager.check_idempotency("k", "a") is None


def test_short_retention_shortens_the_lease(manager: BackgroundOperationsManager) -> None:
    """A retention below the default lease works without naming a lease."""
    assert manager.idempotent("mail", ttl=5)(lambda: 1)() == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"ttl": 5, "lease": 6},
        {"lease": 0},
        {"wait": -1},
        {"on_abandoned": "ignore"},
    ],
)
def test_decorator_with_a_bad_setting_is_refused(
    manager: BackgroundOperationsManager, settings: Any
) -> None:
    """What cannot work is an error at decoration, not at the first call."""
    with pytest.raises(ConfigurationError):
        manager.idempotent("mail", **settings)


def test_block_and_function_share_generated_keys(manager: BackgroundOperationsManager) -> None:
    """A block with the parameters of a call replays that call."""
    assert manager.idempotent("mail")(lambda to: f"sent to {to}")("a") == "sent to a"
    with manager.idempotent_operation("mail", {"to": "a"}) as operation:
        assert (operation.is_replay, operation.result) == (True, "sent to a")


def test_block_with_a_key_and_other_parameters_is_refused(
    manager: BackgroundOperationsManager,
) -> None:
    """One key for two different requests is a mistake."""
    with manager.idempotent_operation("mail", {"to": "a"}, key="k"):
        pass
    with manager.idempotent_operation("mail", {"to": "a"}, key="k") as again:
        assert again.is_replay
    with (
        pytest.raises(KeyReusedError),
        manager.idempotent_operation("mail", {"to": "b"}, key="k"),
    ):
        pytest.fail("the block ran")


def test_block_with_the_key_of_another_user_is_refused(
    manager: BackgroundOperationsManager,
) -> None:
    """A user who sends another's key gets neither the outcome nor a second run."""

    def enter(user: str) -> bool:
        with manager.idempotent_operation("mail", {}, key="k", user_id=user) as operation:
            return operation.is_replay

    assert [enter("alice"), enter("alice")] == [False, True]
    with pytest.raises(KeyReusedError):
        enter("bob")


def test_block_without_key_or_parameters_is_refused(
    manager: BackgroundOperationsManager,
) -> None:
    """Something has to say which operation it is."""
    with pytest.raises(ConfigurationError, match="key"):
        manager.idempotent_operation("mail")


# Background operations, locks, housekeeping


def test_operation_is_moved_along(manager: BackgroundOperationsManager) -> None:
    """Create, start, complete or fail, look and list."""
    first = manager.create_operation("t", "export", parameters={"n": 1})
    second = manager.create_operation("t", "export")
    manager.start_operation(first.operation_id, tenant_id="t")
    manager.complete_operation(first.operation_id, {"rows": 1}, tenant_id="t")
    manager.fail_operation(second.operation_id, "disk full")
    assert manager.get_operation_status(first.operation_id, "t").result == {"rows": 1}
    assert len(manager.list_operations("t").operations) == 2
    listed = manager.list_operations("t", status="failed", limit=1).operations
    assert [(each.operation_id, each.error) for each in listed] == [
        (second.operation_id, "disk full")
    ]
    with pytest.raises(OperationNotFoundError):
        manager.get_operation_status(first.operation_id, tenant_id="other")


@pytest.mark.parametrize(
    "options", [{"status": "finished"}, {"limit": 0}, {"limit": True}, {"limit": "5"}]
)
def test_listing_with_a_bad_option_is_refused(
    manager: BackgroundOperationsManager, options: Any
) -> None:
    """Unknown statuses and impossible limits are errors."""
    with pytest.raises(ConfigurationError):
        manager.list_operations("t", **options)


def test_lock_is_wired(manager: BackgroundOperationsManager) -> None:
    """The manager's lock excludes, and gives way afterwards."""
    with manager.lock("report", ttl=10) as lock:
        assert lock.fencing_token > 0
        with pytest.raises(LockNotAcquiredError):
            manager.lock("report", wait=1).acquire()
        assert manager.get_stats().leases_held == 1
    with manager.lock("report", max_hold=60):
        pass


def test_cleanup_now_reports(manager: BackgroundOperationsManager, clock: FakeClock) -> None:
    """Cleaning up removes what expired; a dry run counts it first."""
    for number in range(3):
        manager.create_idempotency_key("t", "u", "mail", key=f"k{number}", ttl=10)
    clock.advance(11)
    assert manager.cleanup_now(dry_run=True).removed == 3
    assert manager.cleanup_now(batch_size=1, max_records=2) == (2, 2, True, False)
    assert manager.cleanup_now().removed == 1


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_records": 0}, {"max_records": -1}])
def test_cleanup_with_a_bad_number_is_refused(
    manager: BackgroundOperationsManager, options: Any
) -> None:
    """Numbers that are not positive are errors."""
    with pytest.raises(ConfigurationError):
        manager.cleanup_now(**options)


def test_health_and_stats_tell_of_this_process(manager: BackgroundOperationsManager) -> None:
    """Statistics count what this process did and what the storage holds."""
    protected = manager.idempotent("mail")(lambda: 1)
    protected()
    protected()
    manager.create_operation("t", "export")
    stats = manager.get_stats().to_dict()
    assert {name: number for name, number in stats.items() if number} == {
        "idempotency_keys": 1,
        "operations": 1,
        "executions": 1,
        "replays": 1,
    }
    assert manager.health_check().healthy


def test_hooks_learn_of_keys_and_calls(clock: FakeClock) -> None:
    """With hooks the storage is observed, and completions are told once."""
    recorder = EventRecorder()
    storage = FaultyStorage(clock=clock)
    manager = BackgroundOperationsManager(
        storage, hooks=[recorder], clock=clock, enable_background_cleanup=False
    )
    manager.create_idempotency_key("t", "u", "mail", key="k")
    manager.complete_idempotent_operation("k", 1)
    manager.create_idempotency_key("t", "u", "mail", key="k")
    manager.create_idempotency_key("t", "u", "mail", key="l")
    storage.refuse("find_operation")
    manager.complete_idempotent_operation("l", 1)
    assert manager.events.flush(30)
    completed = recorder.of_type(OperationCompleted)
    assert [(each.tenant_id, each.operation_type, each.status) for each in completed] == [
        ("t", "mail", "completed")
    ]
    assert len(recorder.of_type(StorageCall)) == len(storage.calls)
    manager.stop()


def test_completion_whose_record_vanished_is_not_told(clock: FakeClock) -> None:
    """A record that is gone when the hooks would learn of it is passed over."""
    recorder = EventRecorder()
    storage = FaultyStorage(clock=clock)
    manager = BackgroundOperationsManager(
        storage, hooks=[recorder], clock=clock, enable_background_cleanup=False
    )
    manager.create_idempotency_key("t", "u", "mail", key="k", ttl=10)
    storage.before = lambda verb: clock.advance(11) if verb == "find_operation" else None
    assert manager.complete_idempotent_operation("k", 1)
    assert manager.events.flush(30)
    assert recorder.of_type(OperationCompleted) == []
    manager.stop()


def test_outcome_that_waits_is_written_by_stop(clock: FakeClock) -> None:
    """Stopping the manager writes the outcomes that the storage refused before."""
    storage = FaultyStorage(clock=clock)
    manager = BackgroundOperationsManager(storage, clock=clock, enable_background_cleanup=False)
    storage.refuse("complete_operation")
    manager.idempotent("mail", key=lambda: "k")(lambda: 1)()
    manager.stop()
    record = storage.find_operation("k")
    assert record is not None
    assert record.status is OperationStatus.COMPLETED


def test_request_of_the_http_layer_works_with_the_guard(
    manager: BackgroundOperationsManager,
) -> None:
    """The guard of a manager serves requests that were built elsewhere."""
    request = ClaimRequest("k", "owner", "t", "", "POST /", "f", 60.0, 30.0)
    claim = manager.guard.claim(request)
    assert manager.heartbeat.held_count == 1
    claim.release()  # type: ignore[union-attr]
    assert manager.heartbeat.held_count == 0


def test_bare_decorator_is_refused() -> None:
    """Without a name of the work the decorator says what is missing, before anything runs."""
    with BackgroundOperationsManager(enable_background_cleanup=False) as manager:
        bare: Any = manager.idempotent
        with pytest.raises(TypeError, match=r'@manager\.idempotent\("charge"\)'):
            bare(lambda: 1)
        assert manager.idempotent("charge")(lambda: 1)() == 1


@pytest.mark.parametrize("wrong", [3, None, b"charge"], ids=str)
def test_operation_type_that_is_no_text_is_refused(wrong: Any) -> None:
    """The decorator, the block and an explicit key take text as the operation type only."""
    manager = BackgroundOperationsManager()
    for call in (
        lambda: manager.idempotent(wrong),
        lambda: manager.idempotent_operation(wrong, {}),
        lambda: manager.create_idempotency_key("t", None, wrong, "k"),
    ):
        with pytest.raises(TypeError, match="must be text"):
            call()
