"""
What goes wrong while the traffic flows, by a schedule that a seed decides.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.proxy import RedisProxy
from support.redis_server import RedisServer
from support.soak import traffic
from support.workers import Worker

LEASE = 8.0
STORAGE_TIMEOUT = 0.5
COOLDOWN = 0.5


@dataclass(frozen=True)
class Fault:
    """
    A time in which something was wrong; immutable. Instants are those of the monotonic clock.
    """

    name: str
    began: float
    ended: float
    loses_data: bool = False


@dataclass(frozen=True)
class Kill:
    """
    A worker that was killed, and when another stood in its place; immutable.
    """

    pid: int
    at: float
    replaced: float


class Site:
    """
    Some workers of one project behind a proxy in front of a Redis of their own.

    A context manager. Workers and servers are started and ended by one thread; `faults`, `kills`
    and `now` may be read by others.

    Args:
        name: For keys and the report.
        folder: Of the ledger.
        settings: Of the library.
    """

    def __init__(self, name: str, folder: Path, **settings: Any) -> None:
        self.name = name
        self.faults: list[Fault] = []
        self.kills: list[Kill] = []
        self.now = ""
        self.slots: list[traffic.Worker] = []
        self._ledger = folder / name
        self._temporary = folder / f"{name}-temporary"
        self._settings = settings
        self._stack = ExitStack()
        self._workers: list[tuple[str, Worker]] = []

    def __enter__(self) -> Self:
        self._ledger.mkdir()
        self._temporary.mkdir()
        with ExitStack() as stack:
            self.server = RedisServer(appendonly=True)
            stack.callback(lambda: self.server.close())
            self.server.start()
            self.proxy = stack.enter_context(RedisProxy(self.server.port))
            stack.callback(self._close_workers)
            for adapter in ("wsgi", "django"):
                worker = self._start(adapter)
                self._workers.append((adapter, worker))
                self.slots.append(traffic.Worker(worker.pid, worker.port))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def ledger(self) -> Path:
        """
        Where the workers write down what they ran.
        """
        return self._ledger

    def kill_worker(self, index: int) -> None:
        """
        Kill a worker as a crash would and put another in its place.
        """
        adapter, worker = self._workers[index]
        at = time.monotonic()
        worker.kill()
        worker.close()
        other = self._start(adapter)
        self._workers[index] = (adapter, other)
        self.slots[index].place = (other.pid, other.port)
        self.kills.append(Kill(worker.pid, at, time.monotonic()))

    def ask_vitals(self) -> list[dict[str, Any]]:
        """
        Return what each worker holds.
        """
        return [worker.ask("vitals") for _, worker in self._workers]

    def close_workers(self) -> int:
        """
        Let the workers end; return how many sockets of theirs the proxy still has.
        """
        self._close_workers()
        deadline = time.monotonic() + 10
        while self.proxy.open_count and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.proxy.open_count

    @contextmanager
    def fault(self, name: str, *, loses_data: bool = False) -> Iterator[None]:
        """
        Note the time of the block as one in which something was wrong.
        """
        began = time.monotonic()
        self.now = name
        try:
            yield
        finally:
            self.faults.append(Fault(name, began, time.monotonic(), loses_data))
            self.now = ""

    def _start(self, adapter: str) -> Worker:
        worker = Worker(
            adapter,
            program="support.soak.worker",
            environment={"SOAK_LEDGER": str(self._ledger), "TMPDIR": str(self._temporary)},
            storage={
                "BACKEND": "dotmac_tasks.storage.RedisStorage",
                "OPTIONS": {"redis_url": self.proxy.url(), "breaker_cooldown": COOLDOWN},
            },
            storage_timeout=STORAGE_TIMEOUT,
            lease=LEASE,
            **self._settings,
        )
        try:
            worker.await_ready()
        except BaseException:
            worker.close()
            raise
        return worker

    def _close_workers(self) -> None:
        workers, self._workers = self._workers, []
        for _, worker in workers:
            worker.close()


def _stop(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.server.stop()
    pause()
    site.server.start()


def _crash(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.server.kill()
    pause()
    site.server.start()


def _freeze(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.server.pause()
    try:
        pause()
    finally:
        site.server.resume()


def _restart(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.server.restart(keep_data=True)


def _restart_empty(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.server.restart(keep_data=False)


def _fail_over(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    old = site.server
    replica = RedisServer(appendonly=True, replica_of=old)
    replica.start()
    site.server = replica
    try:
        # From here on the old master alone gets what is written: the last writes are lost.
        replica.promote()
        pause()
        site.proxy.redirect(replica.port)
    finally:
        old.close()


def _fill(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.server.command("CONFIG", "SET", "maxmemory", "1")
    pause()
    site.server.command("CONFIG", "SET", "maxmemory", "0")


def _make_replica(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    # Of a master that is not there: it keeps its data, and refuses every write.
    site.server.command("REPLICAOF", "127.0.0.1", "1")
    pause()
    site.server.command("REPLICAOF", "NO", "ONE")


def _flush_scripts(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    for _ in range(5):
        site.server.command("SCRIPT", "FLUSH")
        time.sleep(0.1)


def _lose_replies(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.proxy.lose_next_reply(chance.randint(2, 30))
    pause()
    site.proxy.heal()


def _drop_commands(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.proxy.drop_next_command(chance.randint(2, 30))
    pause()
    site.proxy.heal()


def _reset(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    for _ in range(10):
        site.proxy.cut()
        time.sleep(0.05)


def _hang(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.proxy.hang()
    pause()
    site.proxy.heal()


def _refuse(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.proxy.refuse()
    site.proxy.cut()
    pause()
    site.proxy.heal()


def _slow_down(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.proxy.delay(STORAGE_TIMEOUT * chance.choice((0.3, 0.9, 1.5)))
    pause()
    site.proxy.heal()


def _drip(site: Site, pause: Callable[[], None], chance: random.Random) -> None:
    site.proxy.drip(0.05)
    pause()
    site.proxy.heal()


Break = Callable[[Site, Callable[[], None], random.Random], None]

FAULTS: dict[str, Break] = {
    "stopped": _stop,
    "crashed": _crash,
    "frozen": _freeze,
    "restarted": _restart,
    "full": _fill,
    "a read-only replica": _make_replica,
    "scripts flushed": _flush_scripts,
    "replies lost": _lose_replies,
    "commands lost": _drop_commands,
    "connections reset": _reset,
    "hung": _hang,
    "refusing": _refuse,
    "slow": _slow_down,
    "dripping": _drip,
}
"""
What keeps all data.
"""

LOSSES: dict[str, Break] = {"restarted empty": _restart_empty, "failed over": _fail_over}
"""
What loses some.
"""

KILL = "a worker killed"


class Trouble:
    """
    A thread that breaks one site again and again; started and stopped by one thread.

    Every fault comes once before any comes again.

    Attributes:
        error: What broke the trouble itself, or None.
    """

    def __init__(self, site: Site, *, seed: int, losing: bool) -> None:
        self.error: BaseException | None = None
        self._site = site
        self._chance = random.Random(f"{seed}-{site.name}")
        self._breaks = {**FAULTS, **(LOSSES if losing else {})}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"trouble-{site.name}", daemon=True)

    def start(self) -> None:
        """
        Begin.
        """
        self._thread.start()

    def stop(self) -> None:
        """
        Let the fault that is under way end, and begin no other.
        """
        self._stopping.set()
        self._thread.join(120)

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                names = [*self._breaks, KILL, KILL, KILL]
                self._chance.shuffle(names)
                for name in names:
                    # Now and then long enough for everything to have recovered.
                    if self._stopping.wait(self._chance.choice((0.5, 0.5, 1.0, 5.0))):
                        return
                    self._break(name)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the verdict tells of it
            self.error = error

    def _break(self, name: str) -> None:
        chance, site = self._chance, self._site
        if name == KILL:
            site.kill_worker(chance.randrange(len(site.slots)))
            return
        seconds = chance.uniform(0.5, 2.5)
        with site.fault(name, loses_data=name in LOSSES):
            self._breaks[name](site, lambda: self._stopping.wait(seconds) and None, chance)
