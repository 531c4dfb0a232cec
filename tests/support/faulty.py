"""
A storage in memory that fails where and how a test says.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from dotmac_tasks.errors import StorageTimeoutError, StorageUnavailableError
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.delegating import DelegatingStorage
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks.typing import Clock

P = ParamSpec("P")
R = TypeVar("R")

VERBS = Storage.__abstractmethods__ - {"check_health", "close"}


class _Memory(MemoryStorage):
    name = "faulty"


class FaultyStorage(DelegatingStorage):
    """
    Keeps the contract until it is told to fail; lists every call.

    Instances may be shared between threads: `_faults_lock` guards `_faults` and `_calls`.
    """

    is_refusing = False
    """
    Whether it says that it would refuse every call; it does not refuse one for that.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        super().__init__(_Memory(clock=clock))
        self._faults_lock = threading.Lock()
        self._faults: dict[str, list[tuple[bool, BaseException]]] = {}
        self._calls: list[str] = []
        self.before: Callable[[str], None] = lambda verb: None
        """
        Called with the verb before each call, outside of every lock.
        """

    @property
    def calls(self) -> list[str]:
        """
        The verbs that were called, in order; a copy.
        """
        with self._faults_lock:
            return list(self._calls)

    def refuse(self, verb: str, times: int = 1, error: BaseException | None = None) -> None:
        """
        Fail the next calls of a verb without doing anything.
        """
        self._plan(verb, times, False, error or StorageUnavailableError("faulty", "as planned"))

    def lose_reply(self, verb: str, times: int = 1) -> None:
        """
        Do the next calls of a verb, and lose their replies.
        """
        self._plan(verb, times, True, StorageTimeoutError("faulty", "the reply is lost"))

    def heal(self) -> None:
        """
        Fail no more.
        """
        with self._faults_lock:
            self._faults.clear()

    def _plan(self, verb: str, times: int, after: bool, error: BaseException) -> None:
        assert verb in VERBS
        with self._faults_lock:
            self._faults.setdefault(verb, []).extend([(after, error)] * times)

    def pass_on(self, verb: str, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Make the call, unless it is to fail.
        """
        if verb not in VERBS:
            return call(*args, **kwargs)
        self.before(verb)
        with self._faults_lock:
            self._calls.append(verb)
            planned = self._faults.get(verb)
            fault = planned.pop(0) if planned else None
        if fault is None:
            return call(*args, **kwargs)
        after, error = fault
        if after:
            call(*args, **kwargs)
        raise copy.copy(error)  # A fresh instance each time: errors are not shared.
