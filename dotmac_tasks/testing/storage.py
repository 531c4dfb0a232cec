"""
A storage whose every call can be looked at, refused, or be the last one of a worker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec, TypeVar

from dotmac_tasks.errors import StorageUnavailableError
from dotmac_tasks.models import ClaimOutcome, ClaimReply, ClaimRequest
from dotmac_tasks.storage.base import Storage
from dotmac_tasks.storage.delegating import DelegatingStorage

__all__ = [
    "GRANTED",
    "ClaimLog",
    "HookedStorage",
    "Outage",
    "SeenClaim",
    "StorageHook",
    "VerbCall",
]

GRANTED = frozenset({ClaimOutcome.CLAIMED, ClaimOutcome.TAKEN_OVER})
"""
The answers that make the caller of a claim its executor.
"""

P = ParamSpec("P")
R = TypeVar("R")


class VerbCall(NamedTuple):
    """
    One call of a storage.

    Attributes:
        verb: The method.
        args: Its arguments.
        kwargs: Its arguments by name.
    """

    verb: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class StorageHook:
    """
    Stands before and behind every call of a storage; override what is of interest.

    Called by the thread that calls the storage, so by several at once. What it raises
    reaches the caller: raised before, the call is not made; raised after, it was made
    and its reply is lost.
    """

    def before(self, call: VerbCall) -> None:
        """
        Look at a call that is about to be made.
        """

    def after(self, call: VerbCall, reply: Any) -> None:
        """
        Look at a call that was made, and at its reply.
        """


class HookedStorage(DelegatingStorage):
    """
    Passes every verb on to another storage, and calls hooks before and after it.

    Instances may be shared between threads: `_lock` guards writing `_hooks`, a tuple that is
    replaced and never changed, so that calls read it without the lock.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self._lock = threading.Lock()
        self._hooks: tuple[StorageHook, ...] = ()

    @contextmanager
    def hooked(self, hook: StorageHook) -> Iterator[None]:
        """
        Call a hook inside the block, behind those that are there.
        """
        with self._lock:
            self._hooks = (*self._hooks, hook)
        try:
            yield
        finally:
            with self._lock:
                self._hooks = tuple(other for other in self._hooks if other is not hook)

    def pass_on(self, verb: str, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Make the call between the hooks.
        """
        hooks = self._hooks
        seen = VerbCall(verb, args, kwargs)
        for hook in hooks:
            hook.before(seen)
        reply = call(*args, **kwargs)
        for hook in hooks:
            hook.after(seen, reply)
        return reply


class Outage(StorageHook):
    """
    Refuses every call, as a storage does that is down.

    Holds no state; instances may be shared between threads.
    """

    def before(self, call: VerbCall) -> None:
        """
        Refuse it.
        """
        # Closing is no call to the server.
        if call.verb != "close":
            raise StorageUnavailableError("outage", "a test has taken it down")


class SeenClaim(NamedTuple):
    """
    One claim and what it was answered.

    Attributes:
        thread: The thread that claimed.
        request: What it asked for.
        reply: What it got.
    """

    thread: int
    request: ClaimRequest
    reply: ClaimReply


class ClaimLog(StorageHook):
    """
    Keeps every claim and its reply.

    Instances may be shared between threads: `_lock` guards `_claims`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: list[SeenClaim] = []

    @property
    def claims(self) -> list[SeenClaim]:
        """
        All claims so far, in order; a copy.
        """
        with self._lock:
            return list(self._claims)

    def after(self, call: VerbCall, reply: Any) -> None:
        """
        Keep it, if it is a claim.
        """
        if call.verb == "claim_operation":
            with self._lock:
                self._claims.append(SeenClaim(threading.get_ident(), call.args[0], reply))
