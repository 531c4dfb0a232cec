"""
An application for gunicorn ``--preload``, which has used the library before the server forks.

Settings come from the environment. The work is held until the file named in `PRELOADED_GO` exists.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.wsgi import BackgroundOperationsMiddleware
from support.concurrency import wait_until
from support.http_clients import Call, HttpClient, Reply, make_wsgi_app


def work(call: Call) -> Reply:
    if call.environ["PATH_INFO"] == "/held":
        go = Path(os.environ["PRELOADED_GO"])
        with go.with_name("runs").open("a") as runs:
            runs.write("run\n")
        wait_until(go.exists, 60)
    alive = any(thread.name == "dotmac-tasks.heartbeat" for thread in threading.enumerate())
    return Reply(201, body=json.dumps({"by": os.getpid(), "heartbeat": alive}).encode())


manager = BackgroundOperationsManager.from_env()
application = BackgroundOperationsMiddleware(make_wsgi_app(work), manager)
preloaded = HttpClient(application, manager).send(key="preloaded")
assert preloaded.json() == {"by": os.getpid(), "heartbeat": True}
