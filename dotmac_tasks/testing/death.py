"""
A worker that dies at a chosen point of a request.
"""

from __future__ import annotations

import threading
from typing import Any, Literal, NoReturn, TypeAlias, get_args

from dotmac_tasks.testing.storage import GRANTED, StorageHook, VerbCall

__all__ = ["DEATHS", "Death", "DeathPoint", "WorkerDeath"]

DeathPoint: TypeAlias = Literal["before_view", "before_record", "after_record"]
"""
When a worker dies: with the claim but before the work; after the work but before
its outcome is recorded; after that but before the client has the answer.
"""

DEATHS: dict[DeathPoint, str] = {
    "before_view": "died before the work",
    "before_record": "died after the work, before its outcome was recorded",
    "after_record": "died after the outcome was recorded, before the answer went out",
}
"""
What became of a worker that died at each point, in words.
"""

# The verbs that say how a claimed operation ended; a claim that is handed on has ended here.
_ENDINGS = frozenset({"complete_operation", "defer_operation", "release_operation"})


class WorkerDeath(BaseException):
    """
    Stands for the end of the process, in a test; raised by the storage.

    No `Exception`, so that the code in between handles it as little as it
    could handle a kill. Immutable, so it may be shared between threads.
    """


class Death(StorageHook):
    """
    Kills the worker once, at a point of the first operation that it claims.

    From then on no call gets through, as from a dead process, until the hook is
    taken away. Instances may be shared between threads: `_lock` guards `_key` and `died`.

    Attributes:
        died: Whether the point was reached.
    """

    def __init__(self, point: DeathPoint) -> None:
        """
        Choose the point.

        Raises:
            ValueError: There is no such point.
        """
        if point not in get_args(DeathPoint):
            known = ", ".join(get_args(DeathPoint))
            raise ValueError(f"a worker cannot die {point!r}; choose one of {known}")
        self.died = False
        self._point = point
        self._lock = threading.Lock()
        self._key: str | None = None

    def before(self, call: VerbCall) -> None:
        """
        Let it through, unless the worker is dead or dies here.
        """
        with self._lock:
            if self.died or (self._point == "before_record" and self._is_ending(call)):
                self._die()

    def after(self, call: VerbCall, reply: Any) -> None:
        """
        Hand out the reply, unless the worker is dead or dies here.
        """
        with self._lock:
            if call.verb == "claim_operation" and reply.outcome in GRANTED and self._key is None:
                self._key = call.args[0].key
                if self._point == "before_view":
                    self._die()
            if self.died or (self._point == "after_record" and self._is_ending(call)):
                self._die()

    def _is_ending(self, call: VerbCall) -> bool:
        # Of the first claim only: an operation inside of it ends while the work goes on.
        if call.verb not in _ENDINGS:
            return False
        subject = call.args[0]
        key: str = getattr(subject, "key", subject)
        return key == self._key

    def _die(self) -> NoReturn:
        self.died = True
        raise WorkerDeath("the worker died here, as the test wants it")
