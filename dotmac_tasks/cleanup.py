"""
Removing what has expired: once, in batches, or from time to time on a thread.
"""

from __future__ import annotations

import logging
import random
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple, Protocol

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import StorageError
from dotmac_tasks.fork import reset_after_fork
from dotmac_tasks.storage.base import Storage

__all__ = ["CLEANUP_THREAD_NAME", "CleanupReport", "CleanupThread", "clean_up"]

logger = logging.getLogger(__name__)

CLEANUP_THREAD_NAME = "dotmac-tasks.cleanup"
"""
Name of the thread, in lists of threads.
"""

# Most records that one command of the thread removes.
_BATCH = 1000


class CleanupReport(NamedTuple):
    """
    What a cleanup did.

    Attributes:
        removed: Expired entries that were removed, or would have been.
        batches: Commands that it took.
        more: Whether expired ones are left.
        dry_run: Whether it only counted.
    """

    removed: int
    batches: int
    more: bool
    dry_run: bool


def clean_up(
    storage: Storage,
    *,
    batch_size: int,
    max_records: int | None,
    dry_run: bool,
    go_on: Callable[[], bool] = lambda: True,
) -> CleanupReport:
    """
    Remove expired records batch by batch, while `go_on` says so.

    Two at once share the work; neither removes anything that is live.

    Raises:
        StorageError: The storage failed; what was removed before stays removed.
    """
    if dry_run:
        counted = storage.purge_expired(batch_size, dry_run=True).removed
        return CleanupReport(counted, 0, more=counted > 0, dry_run=True)
    removed = batches = 0
    more = True
    while more and (max_records is None or removed < max_records) and go_on():
        limit = batch_size if max_records is None else min(batch_size, max_records - removed)
        batch = storage.purge_expired(limit)
        removed += batch.removed
        batches += 1
        # One that removed nothing would be repeated without end.
        more = batch.more and batch.removed > 0
    return CleanupReport(removed, batches, more, dry_run=False)


class _HasStorage(Protocol):
    # What is asked of a manager.
    storage: Storage


class CleanupThread:
    """
    Removes expired records of one manager's storage from time to time.

    Shared by all threads: `_lock` guards `_thread` and `_stop`. Forgotten in the
    child of a fork, where the next use starts it anew. Holds the manager by a
    weak reference and ends with it.
    """

    def __init__(self, manager: _HasStorage, config: TasksConfig) -> None:
        self._manager = weakref.ref(manager)
        self._interval = config.cleanup_interval
        self._enabled = config.enable_background_cleanup
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """
        Forget the parent's thread.
        """
        # Reentrant: a signal handler may stop the manager right here.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def start(self) -> None:
        """
        Start it unless it runs or is disabled; never raises.
        """
        if not self._enabled:
            return
        with self._lock:
            if self._thread is not None:
                return
            stop = threading.Event()
            thread = threading.Thread(
                target=self._run, args=(stop,), name=CLEANUP_THREAD_NAME, daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                logger.warning("The cleanup thread cannot be started", exc_info=True)
                return
            self._thread = thread
            self._stop = stop

    def stop(self, timeout: float) -> None:
        """
        End it after the batch at hand.
        """
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None:
            thread.join(timeout)

    def _run(self, stop: threading.Event) -> None:
        # Processes that were started together spread out; no secret depends on it.
        pause = self._interval * random.uniform(0.5, 1.0)  # nosec B311 # noqa: S311 - jitter
        while not stop.wait(min(pause, threading.TIMEOUT_MAX)):
            manager = self._manager()
            if manager is None:
                return
            self._clean(manager.storage, stop)
            del manager
            pause = self._interval

    def _clean(self, storage: Storage, stop: threading.Event) -> None:
        try:
            report = clean_up(
                storage,
                batch_size=_BATCH,
                max_records=None,
                dry_run=False,
                go_on=lambda: not stop.is_set(),
            )
        except StorageError as error:
            logger.warning("The cleanup failed and is tried again later: %s", error)
        except Exception:
            logger.exception("The cleanup failed and is tried again later")
        else:
            logger.info("Expired records were removed", extra={"removed": report.removed})
