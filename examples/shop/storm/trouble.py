"""
What goes wrong besides the gateway: a worker is killed, and the storage is away for a while.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from storm.processes import Stack
from storm.proof import read_executions

# First the worst that a server can do, which is to accept connections and answer nothing;
# then a crash, after which connections are refused at once.
SECONDS_FROZEN = 1.2
SECONDS_DEAD = 0.6


class Saboteur(threading.Thread):
    """
    Kills a worker at the worst moment: it has charged the card and not yet said so.

    A thread of its own that is started once; what it did is read after it ended.
    """

    def __init__(self, stack: Stack, number: str) -> None:
        """
        Wait for the order with this number.
        """
        super().__init__(name="saboteur", daemon=True)
        self._stack = stack
        self._number = number
        self._over = threading.Event()
        self._killed: int | None = None
        stack.control_gateway(hold=number)

    def run(self) -> None:
        """
        Wait until the charge is made, find the worker that waits for it, kill it.
        """
        try:
            while self._killed is None and not self._over.wait(0.02):
                if self._stack.control_gateway() == self._number:
                    self._kill()
        finally:
            self._stack.control_gateway(release=True)

    def story(self) -> str:
        """
        Tell what was done. Call it after `finish`.
        """
        if self._killed is None:
            return "[yellow]No worker was killed: the storm was over too early.[/]"
        return (
            f"Worker {self._killed} was killed with signal 9"
            f" just after it had charged {self._number}."
        )

    def _kill(self) -> None:
        # The gateway holds its answer back, so the worker cannot get any further.
        for number, worker, outcome in reversed(read_executions(self._stack.database)):
            if number == self._number and outcome == "started":
                os.kill(worker, signal.SIGKILL)
                self._killed = worker
                return

    def finish(self) -> None:
        """
        Stop waiting for the order.
        """
        self._over.set()
        self.join(10)


class Outage:
    """
    Takes Redis away in the middle of the storm and brings it back. One owner thread.

    It has no thread of its own, so that Redis cannot be started behind the back of whoever
    closes everything down.
    """

    def __init__(self, stack: Stack, *, begins_at: int) -> None:
        """
        Begin once so many copies are done with.
        """
        self._stack = stack
        self._begins_at = begins_at
        self._began: float | None = None
        self._died: float | None = None
        self._ended: float | None = None

    @property
    def window(self) -> tuple[float, float] | None:
        """
        Return when it began and ended, on the monotonic clock; nothing if it did not happen.
        """
        if self._began is None or self._ended is None:
            return None
        return self._began, self._ended

    def step(self, done: int) -> None:
        """
        Do what is due now. Call it often, with how many copies are done with.

        Raises:
            StartError: Redis did not come back.
        """
        now = time.monotonic()
        if self._began is None:
            if done >= self._begins_at:
                self._began = now
                self._stack.freeze_redis()
        elif self._died is None:
            if now - self._began >= SECONDS_FROZEN:
                self._died = now
                self._stack.kill_redis()
        elif self._ended is None and now - self._died >= SECONDS_DEAD:
            self._end()

    def finish(self) -> None:
        """
        Bring Redis back now if it is away.

        Raises:
            StartError: It did not come back.
        """
        if self._began is None or self._ended is not None:
            return
        if self._died is None:
            self._died = time.monotonic()
            self._stack.kill_redis()
        self._end()

    def story(self, storm_began: float) -> str:
        """
        Tell what was done. Call it after `finish`.
        """
        if self._began is None or self._died is None or self._ended is None:
            return "[yellow]Redis was not taken away: the storm was over too early.[/]"
        frozen, dead = self._died - self._began, self._ended - self._died
        return (
            f"Redis froze after {self._began - storm_began:.1f} s, crashed {frozen:.1f} s later,"
            f" and was back {dead:.1f} s after that."
        )

    def _end(self) -> None:
        self._stack.restart_redis()
        self._ended = time.monotonic()
