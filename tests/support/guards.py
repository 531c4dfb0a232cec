"""
A guard whose storage fails on demand and whose clock stands still.
"""

from __future__ import annotations

import threading
from typing import Any

from dotmac_tasks.claims import Claim, IdempotencyGuard
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import StorageTimeoutError
from dotmac_tasks.events import EventDispatcher
from dotmac_tasks.heartbeat import Heartbeat
from dotmac_tasks.keys import new_token
from dotmac_tasks.models import ClaimOutcome, ClaimReply, ClaimRequest, StoredOperation
from dotmac_tasks.testing import EventRecorder, FakeClock
from support.faulty import FaultyStorage

LEASE = 30.0
TTL = 3600.0
IN_DOUBT = StorageTimeoutError("faulty", "the reply is lost")


class GuardBench:
    """
    A guard over a storage that fails on demand and a clock that stands still.
    """

    def __init__(self, clock: FakeClock, *, max_waiting: int = 4) -> None:
        self.clock = clock
        self.storage = FaultyStorage(clock=clock)
        self.heartbeat = Heartbeat(self.storage, clock=clock, max_execution=300.0)
        # As if it ran: tests beat themselves.
        self.heartbeat._thread = threading.Thread()
        self.recorder = EventRecorder()
        self.events = EventDispatcher((self.recorder,), clock)
        config = TasksConfig(max_waiting=max_waiting)
        self.guard = IdempotencyGuard(self.storage, self.heartbeat, self.events, config, clock)

    def request(self, key: str = "key", **changes: Any) -> ClaimRequest:
        request = ClaimRequest(key, new_token(), "t", "u", "charge", "", TTL, LEASE)
        return request._replace(**changes)

    def claim(self, key: str = "key", **changes: Any) -> Claim:
        claim = self.guard.claim(self.request(key, **changes))
        assert isinstance(claim, Claim)
        return claim

    def unconfirmed(self, request: ClaimRequest, waited: float = 0.0) -> Claim:
        """
        Stand in for a claim whose reply was lost after so many seconds of `STORAGE_TIMEOUT`'s two.
        """
        return self.guard.unconfirmed(request, IN_DOUBT, self.clock.monotonic() - waited)

    def reply(self, key: str = "key", wait: float = 0.0, **changes: Any) -> ClaimReply:
        reply = self.guard.claim(self.request(key, **changes), wait=wait)
        assert isinstance(reply, ClaimReply)
        return reply

    def status(self, key: str = "key") -> str | None:
        record = self.storage.find_operation(key)
        return None if record is None else record.status.value

    def record(self, key: str = "key") -> StoredOperation:
        record = self.storage.find_operation(key)
        assert record is not None
        return record

    def seen(self, kind: type[Any]) -> list[Any]:
        assert self.events.flush(30)
        return self.recorder.of_type(kind)

    def take_over(self, key: str = "key") -> None:
        """
        Let the lease end and somebody else claim the key.
        """
        self.clock.advance(LEASE + 1)
        reply = self.storage.claim_operation(self.request(key))
        assert reply.outcome is ClaimOutcome.TAKEN_OVER
