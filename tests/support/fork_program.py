"""
A process that uses the library, forks, and has its children use it; as gunicorn ``--preload`` does.

Started as ``python -m support.fork_program <options as JSON>``. Parent and children each write one
line of JSON: what they found.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import threading
from typing import Any

from dotmac_tasks.events import IdempotencyMiss, MetricsHooks
from dotmac_tasks.idempotency import Claim
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import ClaimRequest
from dotmac_tasks.storage import MemoryStorage, Storage
from dotmac_tasks.wsgi import BackgroundOperationsMiddleware
from support.concurrency import wait_until
from support.http_clients import Call, HttpClient, Reply, make_wsgi_app

_CHILDREN = 3
_LIMIT = 60
_LEASE = 3.0
_CLIENT_ID = b"*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n"


class Counting(MetricsHooks):
    """
    Counts executions; called by one thread at a time.
    """

    def __init__(self) -> None:
        self.misses = 0

    def idempotency_miss(self, event: IdempotencyMiss) -> None:
        self.misses += 1


def own_threads() -> list[str]:
    return sorted(
        thread.name for thread in threading.enumerate() if thread.name.startswith("dotmac-tasks.")
    )


def work(call: Call) -> Reply:
    return Reply(201, body=json.dumps({"by": os.getpid(), "threads": own_threads()}).encode())


def make_claim(manager: BackgroundOperationsManager, key: str) -> Claim:
    request = ClaimRequest(key, secrets.token_hex(16), "t", "", "hold", "f", 3600.0, _LEASE)
    claim = manager.guard.claim(request)
    assert isinstance(claim, Claim)
    return claim


def lease_of(storage: Storage, key: str) -> int:
    record = storage.find_operation(key)
    assert record is not None
    return record.lease_ms


def connection_id(storage: Storage) -> int | None:
    channel: Any = getattr(storage, "_channel", None)
    return None if channel is None else channel.call(_CLIENT_ID, "", channel.get_deadline())


def report(**facts: Any) -> None:
    os.write(1, (json.dumps({"pid": os.getpid(), **facts}) + "\n").encode())


class Program:
    """
    The parent and, copied, each child.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.storage: Storage
        if options["url"] is None:
            self.storage = MemoryStorage()
        else:
            from dotmac_tasks.storage import RedisStorage

            self.storage = RedisStorage(options["url"], prefix=options["prefix"], timeout=10)
        self.hooks = Counting()
        self.manager = BackgroundOperationsManager(
            self.storage, hooks=[self.hooks], lease=_LEASE, default_idempotency_ttl=3600
        )
        app = BackgroundOperationsMiddleware(make_wsgi_app(work), self.manager)
        self.client = HttpClient(app, self.manager)
        self.before = self.client.send(key="before")
        self.claim = make_claim(self.manager, "parent")

    def fork_children(self) -> None:
        """
        Fork quiet children, which wait until the parent no longer renews its claim.
        """
        started = connection_id(self.storage)
        reading, writing = os.pipe()
        pids = []
        for _ in range(_CHILDREN):
            pid = os.fork()
            if pid == 0:
                os.close(writing)
                run_child(lambda: self.be_child(reading))
            pids.append(pid)
        self.manager.heartbeat.drop(self.claim)
        os.close(writing)
        exits = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        after = self.client.send(key="after")
        report(
            role="parent",
            exits=exits,
            connection=started,
            connection_after=connection_id(self.storage),
            after=after.status,
            protected=after.get("X-Idempotency-Status") is None,
            threads=own_threads(),
            is_complete=self.claim.complete(b"1jnull"),
        )

    def be_child(self, reading: int) -> None:
        self.hooks.misses = 0
        inherited = own_threads()
        held = self.manager.heartbeat.held_count
        counts = self.manager.guard.counts
        key = f"child-{os.getpid()}"
        first, again = self.client.send(key=key), self.client.send(key=key)
        os.read(reading, 1)  # until the parent has closed its end
        own = make_claim(self.manager, f"own-{os.getpid()}")
        lease = lease_of(self.storage, own.request.key)
        parents_lease = lease_of(self.storage, "parent")
        # Two renewals of its own; a renewal of the parent's claim would have come with them.
        wait_until(
            lambda: lease_of(self.storage, own.request.key) >= lease + 1500 * _LEASE / 3, _LIMIT
        )
        unmoved = lease_of(self.storage, "parent") == parents_lease
        endings = [self.claim.complete(b"1jnull"), self.claim.release()]
        record = self.storage.find_operation("parent")
        self.manager.events.flush(_LIMIT)
        report(
            role="child",
            inherited=inherited,
            held=held,
            executions=counts.executions,
            first=first.status,
            threads=first.json()["threads"],
            is_replay=again.is_replay and again.body == first.body,
            knows_parents_outcome=self.client.send(key="before").body == self.before.body,
            connection=connection_id(self.storage),
            parents_claim_unmoved=unmoved,
            parents_claim_endings=endings,
            parents_claim_status=record and record.status.value,
            is_complete=own.complete(b"1jnull"),
            misses=self.hooks.misses,
        )

    def fork_under_load(self) -> None:
        """
        Fork while other threads are at work everywhere in the library.
        """
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                assert self.client.send(key=secrets.token_hex(8)).status == 201

        threads = [threading.Thread(target=load, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        pids = []
        for _ in range(4 * _CHILDREN):
            pid = os.fork()
            if pid == 0:
                run_child(self.be_child_of_load)
            pids.append(pid)
        exits = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        stop.set()
        for thread in threads:
            thread.join(_LIMIT)
        report(role="parent", exits=exits, after=self.client.send(key="after").status)

    def be_child_of_load(self) -> None:
        key = secrets.token_hex(8)
        first, again = self.client.send(key=key), self.client.send(key=key)
        with self.manager.lock(f"lock-{os.getpid()}", ttl=30) as lock:
            is_held = lock.is_held
        self.manager.events.flush(_LIMIT)
        report(
            role="child",
            first=first.status,
            threads=first.json()["threads"],
            is_replay=again.is_replay and again.body == first.body,
            is_held=is_held,
            held=self.manager.heartbeat.held_count,
        )


def run_child(be_child: Any) -> None:
    """
    Be a child and leave as servers do; one that hangs is ended by the alarm.
    """
    status = 1
    try:
        signal.alarm(_LIMIT)
        be_child()
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    options = json.loads(sys.argv[1])
    program = Program(options)
    if options["load"]:
        program.fork_under_load()
    else:
        program.fork_children()
    program.manager.stop()
    program.storage.close()


if __name__ == "__main__":
    main()
