"""
Locks between processes, kept alive by the heartbeat.

A lock keeps two honest executors apart. It cannot stop one that stands still
for longer than its lease and then goes on: only the system that it writes to
can, by refusing a smaller `fencing_token`.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.config import to_seconds
from dotmac_tasks.errors import (
    LockError,
    LockLostError,
    LockNotAcquiredError,
    StorageError,
    StorageTimeoutError,
)
from dotmac_tasks.events import EventDispatcher, LockAcquired, LockFailed
from dotmac_tasks.heartbeat import Heartbeat, Held
from dotmac_tasks.keys import MAX_KEY_LENGTH, key_hash, new_token
from dotmac_tasks.models import Lease, LeaseKind, LockGrant
from dotmac_tasks.retry import POLLING
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.typing import Clock

__all__ = ["DistributedLock"]

logger = logging.getLogger(__name__)

# Names of the engine's own locks begin so.
_RESERVED_PREFIX = "saga:"
# This part of the time to live is left as a margin for clocks that run at different speeds.
_MARGIN = 0.05


class _HeldLock(Held):
    """
    One acquisition; the heartbeat's thread renews it, and may set `refused`.
    """

    __slots__ = ("_lock", "fencing_token", "refused")

    def __init__(
        self, lock: DistributedLock, lease: Lease, since: float, max_hold: float, token: int
    ) -> None:
        super().__init__(lease, since, max_hold)
        self._lock = lock
        self.fencing_token = token
        self.refused = False

    def on_lost(self) -> None:
        self.refused = True
        self._lock.note_lost()


class DistributedLock:
    """
    A lock that one executor of all threads, processes and hosts holds at a time.

    One per execution: it may be used again after a release, but not while it is
    held, and only by the thread that took it. As a context manager::

        with manager.lock("nightly-report", wait=5) as lock:
            ...
            lock.check()

    Renewed in the background while it is held, for `max_hold` seconds at most.
    If the process dies, the lock is free when its time to live is over.

    Args:
        name: What is locked; names that begin with ``saga:`` are reserved.
        ttl: Seconds that it lives without a renewal.
        wait: Seconds that acquiring may wait for another holder.
        max_hold: Seconds after which it is not renewed any more.

    Raises:
        ConfigurationError: A duration cannot work.
        LockError: The name cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        storage: Storage,
        heartbeat: Heartbeat,
        events: EventDispatcher,
        clock: Clock | None = None,
        ttl: float = 30.0,
        wait: float = 0.0,
        max_hold: float | None = None,
    ) -> None:
        _check_name(name)
        clock = clock or SystemClock()
        self.name = name
        self.ttl = to_seconds("ttl", ttl)
        self.wait = to_seconds("wait", wait, zero_allowed=True)
        self._max_hold = (
            heartbeat.max_execution if max_hold is None else to_seconds("max_hold", max_hold)
        )
        self._storage = storage
        self._heartbeat = heartbeat
        self._events = events
        self._monotonic = clock.monotonic
        self._sleep = clock.sleep
        # Taken while the lock is held or being acquired, so that a second use is refused.
        self._busy = threading.Lock()
        self._held: _HeldLock | None = None
        self._era = heartbeat.era

    @property
    def fencing_token(self) -> int:
        """
        Number of the acquisition, larger than that of every earlier one.

        Raises:
            LockError: The lock was not acquired.
        """
        return self._require_held().fencing_token

    @property
    def is_held(self) -> bool:
        """
        Whether it is held, as far as this process can know.
        """
        held = self._held
        return held is not None and self._era == self._heartbeat.era and self._is_live(held)

    def acquire(self) -> None:
        """
        Take the lock, waiting for another holder where `wait` says so.

        A lost reply is asked for again under the same owner. If the process dies
        on the way, the lock is free after its time to live.

        Raises:
            LockNotAcquiredError: Somebody else holds it.
            LockError: This object holds it already.
            StorageError: The storage failed; the lock is not held.
        """
        if not self._busy.acquire(blocking=False):
            raise LockError(
                self.name,
                f"Lock {self.name!r} is in use by this very object. "
                "Make a new lock object for every execution.",
            )
        try:
            self._held = self._acquire()
        except BaseException:
            self._busy.release()
            raise

    def release(self) -> bool:
        """
        Give the lock back; harmless where it is not held.

        Returns:
            True if it was held until now. False if it had been lost or was never
            held; another holder's lock stays as it is.
        """
        held, self._held = self._held, None
        if held is None or self._era != self._heartbeat.era:
            return False
        # Out of the heartbeat first. A renewal that is on its way extends nothing that is gone.
        self._heartbeat.drop(held)
        try:
            # Before the storage is asked: what it takes to answer is no time under the lock. It
            # says True, too, where the lock expired and nobody took it since.
            live = not held.refused and self._monotonic() < held.until
            try:
                released = self._storage.release_lock(self.name, held.lease.owner)
            except StorageError as error:
                logger.warning(
                    "A lock could not be released; it ends by itself: %s",
                    error,
                    extra=self._log_fields(),
                )
                released = True
            return released and live
        finally:
            self._busy.release()

    def check(self) -> None:
        """
        Make sure, without asking the storage, that the lock is still held.

        Raises:
            LockLostError: It was lost, or could not be renewed in time; raised
                before the storage lets it expire.
            LockError: It was not acquired.
        """
        held = self._require_held()
        if not self._is_live(held):
            # Once it was reported lost it stays lost, even if a renewal gets through late.
            held.refused = True
            raise LockLostError(self.name)

    def note_lost(self) -> None:
        """
        Report that the storage refused a renewal; the heartbeat's thread calls it.
        """
        logger.warning("A lock was lost", extra=self._log_fields())
        if self._events.active:
            self._events.emit(LockFailed(name_hash=key_hash(self.name), waited=0.0, reason="lost"))

    def __enter__(self) -> Self:
        """
        Acquire it; the block does not run without the lock.
        """
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held = self.release()
        # The block's own error says more than the loss that may have followed from it.
        if not held and kind is None:
            raise LockLostError(self.name)

    def _acquire(self) -> _HeldLock:
        # A new owner each time: a renewal of an earlier acquisition cannot extend this one.
        owner = new_token()
        started = self._monotonic()
        deadline = started + self.wait
        pauses = POLLING.delays()
        while True:
            since = self._monotonic()
            grant = self._ask(owner)
            if grant is not None:
                return self._take(owner, grant, started, since)
            left = deadline - self._monotonic()
            if left <= 0:
                self._fail(self._monotonic() - started)
            self._sleep(min(left, next(pauses)))

    def _ask(self, owner: str) -> LockGrant | None:
        try:
            return self._storage.acquire_lock(self.name, owner, self.ttl)
        except StorageTimeoutError:
            # It may have been granted. Asked again by the same owner, the storage says so.
            return self._ask_again(owner)

    def _ask_again(self, owner: str) -> LockGrant | None:
        try:
            return self._storage.acquire_lock(self.name, owner, self.ttl)
        except StorageError:
            self._forget(owner)
            raise

    def _forget(self, owner: str) -> None:
        try:
            self._storage.release_lock(self.name, owner)
        except StorageError as error:
            logger.warning(
                "A lock that may be held could not be given back; it ends by itself: %s",
                error,
                extra=self._log_fields(),
            )

    def _take(self, owner: str, grant: LockGrant, started: float, since: float) -> _HeldLock:
        lease = Lease(LeaseKind.LOCK, self.name, owner, self.ttl)
        held = _HeldLock(self, lease, since, self._max_hold, grant.fencing_token)
        self._era = self._heartbeat.era
        self._heartbeat.hold(held)
        if self._events.active:
            waited = self._monotonic() - started
            self._events.emit(LockAcquired(name_hash=key_hash(self.name), waited=waited))
        return held

    def _fail(self, waited: float) -> None:
        if self._events.active:
            self._events.emit(
                LockFailed(name_hash=key_hash(self.name), waited=waited, reason="busy")
            )
        raise LockNotAcquiredError(self.name, waited=waited)

    def _is_live(self, held: _HeldLock) -> bool:
        margin = held.lease.seconds * _MARGIN
        return not held.refused and self._monotonic() < held.until - margin

    def _require_held(self) -> _HeldLock:
        held = self._held
        if held is None or self._era != self._heartbeat.era:
            raise LockError(
                self.name, f"Lock {self.name!r} is not held by this object. Acquire it first."
            )
        return held

    def _log_fields(self) -> dict[str, str]:
        return {"name_hash": key_hash(self.name)}


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise LockError(str(name), "A lock's name cannot be empty. Name what is locked.")
    if len(name) > MAX_KEY_LENGTH:
        raise LockError(
            name, f"A lock's name cannot be longer than {MAX_KEY_LENGTH} characters. Shorten it."
        )
    if name.startswith(_RESERVED_PREFIX):
        raise LockError(
            name, f"Lock names that begin with {_RESERVED_PREFIX!r} are reserved. Choose another."
        )
