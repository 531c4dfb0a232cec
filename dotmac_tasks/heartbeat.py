"""
The one thread that renews what this process holds.

It also writes, again and again, the outcomes that the storage refused when they
came up, for as long as that can still prevent a second run.

A heartbeat serves one storage, so that a storage that stalls delays the
renewals of no other.
"""

from __future__ import annotations

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from dotmac_tasks.clock import SystemClock
from dotmac_tasks.errors import CorruptRecordError, StorageError
from dotmac_tasks.fork import reset_after_fork
from dotmac_tasks.keys import key_hash
from dotmac_tasks.models import Lease, WriteOutcome
from dotmac_tasks.retry import RetryPolicy
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.typing import Clock

__all__ = ["Heartbeat", "Held", "HeldClaim"]

logger = logging.getLogger(__name__)

THREAD_NAME = "dotmac-tasks.heartbeat"

# Leases in one command: enough for any process, small enough not to occupy a server for long.
_BATCH = 500
# After so many beats with nothing to do the thread ends; the next lease starts a new one.
_IDLE_BEATS = 6
# Seconds between two beats while nothing is held: a third of the usual lease.
_IDLE_INTERVAL = 10.0
# Unwritten outcomes that are kept; each may hold a whole response, and memory is finite.
_MAX_UNWRITTEN = 1000
# Seconds between two attempts at a storage that fails: at the least, and at the most.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 1.0
# Seconds between two messages that leases cannot be renewed.
_COMPLAINT_INTERVAL = 10.0
_REWRITING = RetryPolicy(base=_FIRST_PAUSE, cap=_LONGEST_PAUSE)


class Held(ABC):
    """
    A lease that this process holds.

    The owner makes it and hands it to the heartbeat; from then on the heartbeat
    writes `until` and `due`, anybody may read them.

    Attributes:
        lease: What is held, by which owner, and how far a renewal extends it.
        until: The monotonic instant at which the lease ends at the earliest,
            counted from before the command was sent, so that it is never later
            than what the storage says.
        renew_until: The monotonic instant after which it is not renewed any more.
        due: The monotonic instant of the next renewal.
        since: The monotonic instant at which it was taken.
    """

    __slots__ = ("due", "lease", "renew_until", "since", "until")

    def __init__(self, lease: Lease, since: float, max_hold: float) -> None:
        self.lease = lease
        self.since = since
        self.until = since + lease.seconds
        self.renew_until = since + max_hold
        self.due = since + lease.seconds / 3

    @abstractmethod
    def on_lost(self) -> None:
        """
        Learn that the storage refused to renew it; called once, by the thread.
        """

    def on_overdue(self) -> None:
        """
        Learn that it was held for too long and is not renewed any more.
        """
        logger.warning(
            "A %s has been held for longer than it may be; it is not renewed any more",
            self.lease.kind.value,
            extra={"name_hash": key_hash(self.lease.name)},
        )


class HeldClaim(Held):
    """
    A claim whose outcome may have to be written by the heartbeat.

    Shared with the heartbeat's thread, which alone calls these methods.
    """

    __slots__ = ()

    @abstractmethod
    def write_outcome(self) -> WriteOutcome:
        """
        Send the outcome to the storage.

        Raises:
            StorageError: It has to be sent again.
        """

    @abstractmethod
    def on_settled(self, outcome: WriteOutcome | None) -> None:
        """
        Learn what became of the outcome; None where the attempts were given up.
        """


class _Unwritten:
    """
    An outcome that waits to be written. The heartbeat's lock guards where it is listed.
    """

    __slots__ = ("claim", "give_up_at")

    def __init__(self, claim: HeldClaim, give_up_at: float) -> None:
        self.claim = claim
        self.give_up_at = give_up_at


class Heartbeat:
    """
    Renews the leases of claims and locks, and retries unwritten outcomes.

    Instances may be shared between threads. `_lock` guards `_held`,
    `_unwritten`, `_wake_at`, `_shortest`, `_thread` and `_idle`; it is never held
    during a call to the storage. The child of a fork starts with nothing held.

    The thread starts with the first lease, is a daemon, ends by itself when it
    had nothing to do for a while, and starts again when it has.
    """

    era: int
    """Grows in the child of a fork: what was taken in an earlier era is not this process's."""

    def __init__(
        self,
        storage: Storage,
        *,
        clock: Clock | None = None,
        max_execution: float = 300.0,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        self.max_execution = max_execution
        self.era = 0
        self._storage = storage
        self._monotonic = (clock or SystemClock()).monotonic
        self._on_start = on_start
        self._reset()
        reset_after_fork(self)

    def _reset(self) -> None:
        # Reentrant: the garbage collector may run a finaliser that drops a lease right here.
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._held: dict[str, Held] = {}
        self._unwritten: dict[str, _Unwritten] = {}
        self._thread: threading.Thread | None = None
        self._wake_at = math.inf
        self._shortest = math.inf
        self._idle = 0
        # Of the attempts to write outcomes; only the one thread that beats touches these two.
        self._failures = 0
        self._resume_at = -math.inf
        # When it was last said that renewing fails; None while it works. That thread's, too.
        self._complained_at: float | None = None

    def after_fork(self) -> None:
        """
        Forget, in a new child, what the parent holds: its own thread renews that.
        """
        self.era += 1
        self._reset()

    @property
    def held_count(self) -> int:
        """
        How many leases this process is renewing.
        """
        with self._lock:
            return len(self._held)

    @property
    def unwritten_count(self) -> int:
        """
        How many outcomes wait to be written.
        """
        with self._lock:
            return len(self._unwritten)

    def hold(self, held: Held) -> None:
        """
        Renew this lease from now on, until it is dropped, lost or too old.

        Never raises: a lease that cannot be renewed still protects its time.
        """
        with self._lock:
            self._held[held.lease.owner] = held
            if held.lease.seconds < self._shortest:
                self._shortest = held.lease.seconds
            # Nearly always false: the thread sleeps no longer than a third of the shortest lease.
            if held.due < self._wake_at:
                self._rouse(held.due)

    def drop(self, held: Held) -> None:
        """
        Stop renewing this lease; harmless where it is not held.

        A renewal that is on its way may still reach the storage. It changes
        nothing there once the lease was given back, since it extends only what
        this owner holds.
        """
        with self._lock:
            self._held.pop(held.lease.owner, None)

    def retry_completion(self, claim: HeldClaim, *, renew: bool = True) -> bool:
        """
        Take over a claim whose outcome could not be written.

        It is sent again, with growing pauses, for as long as an execution may
        take, and the lease is renewed meanwhile unless `renew` is false. False
        where too many outcomes wait already; then nothing is done for this one.
        """
        now = self._monotonic()
        with self._lock:
            if len(self._unwritten) >= _MAX_UNWRITTEN:
                return False
            self._unwritten[claim.lease.owner] = _Unwritten(claim, now + self.max_execution)
            if renew:
                claim.renew_until = now + self.max_execution
                self._held[claim.lease.owner] = claim
            due = max(now + _FIRST_PAUSE, self._resume_at)
            if due < self._wake_at:
                self._rouse(due)
        return True

    def beat(self) -> None:
        """
        Do what is due now, once; the thread calls this, and tests may.
        """
        now = self._monotonic()
        # Renewals first: they are one command, and others wait for a second run not to happen.
        self._renew(now)
        self._write_outcomes(now, budget=_LONGEST_PAUSE, give_up_from=now)
        with self._lock:
            self._wake_at = self._next_beat(now)
            self._shortest = math.inf

    def stop(self, timeout: float = 5.0) -> None:
        """
        End the thread and forget all leases, which then run out by themselves.

        Outcomes that wait are sent once more. A later `hold` starts anew.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            self._wake_at = math.inf
            self._held.clear()
            self._wake.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        self._resume_at = -math.inf
        self._write_outcomes(self._monotonic(), budget=timeout, give_up_from=math.inf)

    def _rouse(self, due: float) -> None:
        """
        Have the thread beat at `due`; the caller holds the lock.
        """
        self._wake_at = due
        if self._thread is not None:
            self._wake.notify_all()
            return
        thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._idle = 0
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            # No thread to be had, or the interpreter is going down: the work goes on, protected
            # for one lease, and the next lease tries again.
            self._thread = None
            self._wake_at = math.inf
            logger.warning("The heartbeat thread cannot be started", exc_info=True)

    def _run(self) -> None:
        if self._on_start is not None:
            self._on_start()
        while self._wait():
            try:
                self.beat()
            except BaseException:
                # A storage of somebody else's may raise anything, and on this thread an exit or a
                # time limit is nobody's wish; the leases of all must go on.
                logger.exception("A beat of the heartbeat failed")
                with self._lock:
                    self._wake_at = self._monotonic() + _LONGEST_PAUSE

    def _wait(self) -> bool:
        """
        Sleep until the next beat; False if this thread is to end.
        """
        this = threading.current_thread()
        with self._lock:
            while self._thread is this:
                pause = self._wake_at - self._monotonic()
                if pause <= 0:
                    break
                self._wake.wait(min(pause, threading.TIMEOUT_MAX))
            if self._thread is not this:
                return False
            self._idle = 0 if self._held or self._unwritten else self._idle + 1
            if self._idle > _IDLE_BEATS:
                self._thread = None
                self._wake_at = math.inf
                return False
            return True

    def _next_beat(self, now: float) -> float:
        # What was held since the last beat is likely to come again: waking for each would cost
        # every request a switch of threads.
        due = now + min(_IDLE_INTERVAL, self._shortest / 3)
        for held in self._held.values():
            due = min(due, held.due)
        if self._unwritten:
            due = min(due, max(now + _FIRST_PAUSE, self._resume_at))
        return due

    def _renew(self, now: float) -> None:
        overdue: list[Held] = []
        batch: list[Held] = []
        with self._lock:
            for held in list(self._held.values()):
                if now >= held.renew_until:
                    del self._held[held.lease.owner]
                    overdue.append(held)
                # Half an interval ahead of time, so that staggered leases meet in one command.
                elif now >= held.due - held.lease.seconds / 6:
                    batch.append(held)
        for held in overdue:
            held.on_overdue()
        for start in range(0, len(batch), _BATCH):
            chunk = batch[start : start + _BATCH]
            sent = self._monotonic()
            try:
                kept = self._storage.renew_leases([held.lease for held in chunk])
            except StorageError as error:
                # Each further command would cost the same time in vain.
                self._postpone(batch[start:], error)
                return
            for held, renewed in zip(chunk, kept, strict=True):
                if renewed:
                    held.until = sent + held.lease.seconds
                    held.due = sent + held.lease.seconds / 3
                else:
                    self._lose(held)
        if batch and self._complained_at is not None:
            self._complained_at = None
            logger.info("Leases are renewed again")

    def _postpone(self, batch: list[Held], error: StorageError) -> None:
        now = self._monotonic()
        for held in batch:
            held.due = now + min(held.lease.seconds / 6, _LONGEST_PAUSE)
        # Short leases are tried several times a second, and an outage is one event.
        if self._complained_at is None or now >= self._complained_at + _COMPLAINT_INTERVAL:
            self._complained_at = now
            logger.warning("Leases could not be renewed (%d): %s", len(batch), error)

    def _lose(self, held: Held) -> None:
        owner = held.lease.owner
        with self._lock:
            if self._held.get(owner) is not held:
                return  # Given back while the renewal was on its way.
            del self._held[owner]
            if owner in self._unwritten:
                return  # Writing its outcome finds out what happened.
        held.on_lost()

    def _write_outcomes(self, now: float, *, budget: float, give_up_from: float) -> None:
        """
        Send the outcomes that wait, until one fails or the budget of seconds is used up.

        Those that need not wait any longer than until `give_up_from` are given up
        then.
        """
        if now < self._resume_at:
            return
        with self._lock:
            waiting = list(self._unwritten.values())
        failed = False
        for unwritten in waiting:
            # A storage that fails or is slow for one is so for all; the rest has its next turn.
            in_time = not failed and self._monotonic() <= now + budget
            if in_time and self._write_outcome(unwritten):
                self._failures = 0
                continue
            failed = failed or in_time
            if unwritten.give_up_at <= give_up_from:
                self._settle(unwritten.claim, None)
        if failed:
            self._failures += 1
            self._resume_at = self._monotonic() + _REWRITING.longest(self._failures)

    def _write_outcome(self, unwritten: _Unwritten) -> bool:
        """
        Send one outcome; False if it has to be sent again.
        """
        try:
            outcome = unwritten.claim.write_outcome()
        except CorruptRecordError:
            # No later attempt can do better.
            self._settle(unwritten.claim, None)
        except StorageError:
            # To the end, in case it is the only one that cannot be written.
            self._move_to_end(unwritten)
            return False
        else:
            self._settle(unwritten.claim, outcome)
        return True

    def _move_to_end(self, unwritten: _Unwritten) -> None:
        owner = unwritten.claim.lease.owner
        with self._lock:
            if self._unwritten.pop(owner, None) is not None:
                self._unwritten[owner] = unwritten

    def _settle(self, claim: HeldClaim, outcome: WriteOutcome | None) -> None:
        with self._lock:
            waited = self._unwritten.pop(claim.lease.owner, None) is not None
            self._held.pop(claim.lease.owner, None)
        # A stop that did not wait for the thread settles beside it.
        if waited:
            claim.on_settled(outcome)
