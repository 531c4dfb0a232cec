"""
A server process of the soak: work that writes down each of its runs.

Started and spoken to as `support.worker_program` is; `SOAK_LEDGER` names the folder of the ledger.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from dotmac_tasks.claims import Claim
from dotmac_tasks.errors import StorageError
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.wsgi import BackgroundOperationsMiddleware
from support.http_clients import Call, Reply, make_wsgi_app
from support.soak.ledger import Fences, LedgerFile
from support.worker_program import QuietHandler, Reporter, Server, build_django, make_server

DEFER_TIMEOUT = 6.0
_SETTLE_AFTER = 0.3
_SETTLE_PAUSE = 0.2


class Shop:
    """
    The work. Instances may be shared between threads; `manager` is set before the first request.
    """

    manager: BackgroundOperationsManager

    def __init__(self, ledger: LedgerFile) -> None:
        self._ledger = ledger
        self._numbers = itertools.count(1)
        self._fences = Fences()

    def watch(self, manager: BackgroundOperationsManager) -> None:
        """
        Learn of the fencing token of each claim that becomes a run.
        """
        self.manager = manager
        guard = manager.guard
        claim = guard.claim

        def claim_and_note(*args: Any, **kwargs: Any) -> Any:
            self._fences.latest = 0
            reply = claim(*args, **kwargs)
            if isinstance(reply, Claim):
                self._fences.latest = reply.fencing_token
            return reply

        guard.claim = claim_and_note  # type: ignore[method-assign] # only listens

    def __call__(self, call: Call) -> Reply:
        path = call.environ["PATH_INFO"]
        run = f"{os.getpid()}-{next(self._numbers)}"
        user = call.environ.get("HTTP_AUTHORIZATION", "")
        self._ledger.write("begin", run=run, key=call.key, user=user, fence=self._fences.take())
        status = self._work(path, run, call)
        body = json.dumps({"run": run, "user": user}).encode()
        self._ledger.write("end", run=run, status=status)
        return Reply(status, body=body)

    def _work(self, path: str, run: str, call: Call) -> int:
        if path == "/slow":
            time.sleep(0.2 + len(call.body) % 10 / 10)
        elif path == "/moody":  # half of its runs fail
            return 500 if int(run.rpartition("-")[2]) % 2 else 201
        elif path == "/deferred":
            try:
                stored = call.defer(DEFER_TIMEOUT)
            except StorageError:
                return 500
            if stored is not None:
                deadline = time.monotonic() + DEFER_TIMEOUT
                threading.Thread(
                    target=self._settle, args=(run, stored, deadline), name="settler", daemon=True
                ).start()
        return 201

    def _settle(self, run: str, stored: str, deadline: float) -> None:
        time.sleep(_SETTLE_AFTER)
        while time.monotonic() < deadline:
            try:
                if self.manager.complete_idempotent_operation(stored, {"run": run}):
                    self._ledger.write("settled", run=run)
                    return
            except StorageError:
                pass
            time.sleep(_SETTLE_PAUSE)
        self._ledger.write("unsettled", run=run)

    def vitals(self) -> dict[str, Any]:
        """
        Tell what this process holds, so that a leak would show.
        """
        return {
            "held": self.manager.heartbeat.held_count,
            "unwritten": self.manager.heartbeat.unwritten_count,
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "temporary": sorted(os.listdir(tempfile.gettempdir())),
        }


def build(shop: Shop, options: dict[str, Any]) -> Any:
    """
    Return the application of the adapter that the options name.
    """
    if options["adapter"] == "django":
        application, manager = build_django(shop, options["settings"])
    else:
        manager = BackgroundOperationsManager(
            enable_background_cleanup=False, **options["settings"]
        )
        application = BackgroundOperationsMiddleware(make_wsgi_app(shop), manager)
    shop.watch(manager)
    return application


def main() -> None:
    options = json.loads(sys.argv[1])
    folder = Path(os.environ["SOAK_LEDGER"])
    # Outages are loud, and clients that hang up are, too: kept for whoever looks into a failure.
    sys.stderr = (folder / f"{os.getpid()}.log").open("a", buffering=1)
    logging.basicConfig(level=logging.WARNING)
    report = Reporter()
    shop = Shop(LedgerFile(folder))
    application = build(shop, options)
    with make_server("127.0.0.1", 0, application, Server, QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="server")
        thread.start()
        report("ready", port=server.server_port)
        try:
            for line in sys.stdin:
                report("reply", value=shop.vitals() if line.strip() == "vitals" else None)
        finally:
            server.shutdown()
            thread.join()
    shop.manager.stop()


if __name__ == "__main__":
    main()
