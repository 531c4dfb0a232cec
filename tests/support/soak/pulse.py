"""
Whether the machine itself stood still for a while, which no schedule decides.
"""

from __future__ import annotations

import threading
import time

from support.soak.faults import STORAGE_TIMEOUT, Fault, Site

_PAUSE = 0.02
# Far from what a call to the storage may take, so that a stall which costs one is seen.
_STALL = STORAGE_TIMEOUT / 2


class Pulse:
    """
    Feels the pulse of the machine, and of one site's Redis past its proxy.

    What takes a beat much longer than it should, such as another program that has the processors
    or a disk that is full of work, is noted as a fault: within `STORAGE_TIMEOUT` nobody can answer
    then. Started and stopped by one thread.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._ended.wait(_PAUSE):
            began = time.monotonic()
            try:
                self._site.server.command("PING")
            except Exception:  # noqa: BLE001 - it is down or being replaced: a fault of the schedule
                continue
            time.sleep(_PAUSE)
            ended = time.monotonic()
            if ended - began - _PAUSE > _STALL:
                self._site.faults.append(Fault("stalled", began, ended))
