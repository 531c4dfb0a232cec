"""
Each thing that happens to a Redis, against each policy: what the client gets, and how often it ran.

`test_redis_outages` and `test_lost_replies` look at single cases in real worker processes; here
every fault meets every policy, set for the project and for one view, in one process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest

from dotmac_tasks.storage import Storage
from support.concurrency import wait_until
from support.http_clients import ADAPTERS, Call, HttpClient, Reply, Response
from support.proxy import RedisProxy
from support.redis_server import RedisServer

pytestmark = [pytest.mark.redis, pytest.mark.slow]

TIMEOUT = 0.3
# For a machine that is busy; whoever exceeds it waits for something that does not come.
SLACK = 10.0
LIMIT = 60.0
MANY = 10_000


class Scene:
    """
    A Redis behind a proxy, which a test may break; used by one thread at a time.
    """

    def __init__(self, server: RedisServer, proxy: RedisProxy, stack: ExitStack) -> None:
        self.server = server
        self.proxy = proxy
        self._stack = stack

    def start_replica(self) -> RedisServer:
        """
        Return a replica that is in step.
        """
        return self._stack.enter_context(RedisServer(appendonly=True, replica_of=self.server))

    def turn_to(self, server: RedisServer) -> None:
        """
        Send everybody to another server, whatever the old one got last.
        """
        self.proxy.redirect(server.port)
        self.server = server


@contextmanager
def stop(scene: Scene) -> Iterator[None]:
    scene.server.stop()
    yield
    scene.server.start()


@contextmanager
def freeze(scene: Scene) -> Iterator[None]:
    scene.server.pause()
    try:
        yield
    finally:
        scene.server.resume()


@contextmanager
def restart(scene: Scene) -> Iterator[None]:
    scene.server.restart(keep_data=True)
    yield


@contextmanager
def restart_empty(scene: Scene) -> Iterator[None]:
    scene.server.restart(keep_data=False)
    yield


@contextmanager
def fail_over(scene: Scene) -> Iterator[None]:
    replica = scene.start_replica()
    replica.promote()
    scene.turn_to(replica)
    yield


@contextmanager
def fill(scene: Scene) -> Iterator[None]:
    scene.server.command("CONFIG", "SET", "maxmemory", "1")
    yield
    scene.server.command("CONFIG", "SET", "maxmemory", "0")


@contextmanager
def make_replica(scene: Scene) -> Iterator[None]:
    # Of a master that is not there: it keeps its data and refuses every write.
    scene.server.command("REPLICAOF", "127.0.0.1", "1")
    yield
    scene.server.command("REPLICAOF", "NO", "ONE")


@contextmanager
def flush_scripts(scene: Scene) -> Iterator[None]:
    scene.server.command("SCRIPT", "FLUSH")
    yield


def through_proxy(
    break_it: Callable[[RedisProxy], None],
) -> Callable[[Scene], AbstractContextManager[None]]:
    @contextmanager
    def fault(scene: Scene) -> Iterator[None]:
        break_it(scene.proxy)
        yield
        scene.proxy.heal()

    return fault


class Fault(NamedTuple):
    """
    What happens, and what follows by the guarantees.

    Attributes:
        happen: Breaks the scene for as long as its block lasts.
        fails: Whether nothing can be claimed meanwhile.
        doubtful: Whether the first claim that fails may have been made all the same.
        refuses: Whether Redis answers, and refuses writes: what is recorded is replayed.
        records: Whether work that was claimed before is recorded at once.
        loses_data: Whether what was recorded before is gone.
    """

    happen: Callable[[Scene], AbstractContextManager[None]]
    fails: bool = False
    doubtful: bool = False
    refuses: bool = False
    records: bool = False
    loses_data: bool = False


FAULTS = {
    "down": Fault(stop, fails=True, doubtful=True),
    "frozen": Fault(freeze, fails=True, doubtful=True),
    "hung": Fault(through_proxy(RedisProxy.hang), fails=True, doubtful=True),
    "slow": Fault(through_proxy(lambda proxy: proxy.delay(3 * TIMEOUT)), fails=True, doubtful=True),
    "replies lost": Fault(
        through_proxy(lambda proxy: proxy.lose_next_reply(MANY)), fails=True, doubtful=True
    ),
    "reset in the middle": Fault(
        through_proxy(lambda proxy: proxy.drop_next_command(MANY)), fails=True, doubtful=True
    ),
    # A full Redis refuses what would need more memory, and an outcome comes with a deletion.
    "full": Fault(fill, fails=True, refuses=True, records=True),
    "read-only": Fault(make_replica, fails=True, refuses=True),
    "restarted": Fault(restart, records=True),
    "restarted empty": Fault(restart_empty, records=True, loses_data=True),
    "failed over": Fault(fail_over, records=True),
    "scripts flushed": Fault(flush_scripts, records=True),
}

through_each_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
with_each_policy = pytest.mark.parametrize("policy", ["proceed", "reject"])


class Service:
    """
    A client, the work behind it, and what the storage was asked; one per test.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.client: HttpClient
        self.inside: Callable[[], object] = lambda: None
        self._keys: list[str | None] = []
        # What the threads of requests, not the heartbeat, asked of the storage.
        self.waited_for: list[tuple[str, float]] = []

    def __call__(self, call: Call) -> Reply:
        self._keys.append(call.key)
        number = len(self._keys)
        inside, self.inside = self.inside, lambda: None
        inside()
        return Reply(201, body=b'{"number": %d}' % number)

    def runs(self, key: str) -> int:
        return self._keys.count(key)

    def watch(self, storage: Storage) -> None:
        """
        Note which calls a request waits for, and how long.
        """
        this = threading.current_thread()

        def listen(verb: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def note(*args: Any, **kwargs: Any) -> Any:
                began = time.monotonic()
                try:
                    return call(*args, **kwargs)
                finally:
                    if threading.current_thread() is this:
                        self.waited_for.append((verb, time.monotonic() - began))

            return note

        for verb in ("claim_operation", "complete_operation", "release_operation"):
            setattr(storage, verb, listen(verb, getattr(storage, verb)))

    def await_recovery(self) -> None:
        """
        Wait until keys can be claimed again and nothing waits to be written.
        """
        tried = 0

        def is_back() -> bool:
            nonlocal tried
            tried += 1
            return is_protected(self.client.send(key=f"again{tried}"))

        wait_until(is_back, LIMIT)
        wait_until(lambda: self.client.manager.heartbeat.unwritten_count == 0, LIMIT)


def is_protected(response: Response) -> bool:
    return response.status == 201 and response.get("X-Idempotency-Status") is None


def is_replay_of(response: Response, first: Response) -> bool:
    return (response.status, response.body, response.is_replay) == (201, first.body, True)


@pytest.fixture
def scene(private_server: RedisServer) -> Iterator[Scene]:
    with ExitStack() as stack:
        proxy = stack.enter_context(RedisProxy(private_server.port))
        yield Scene(private_server, proxy, stack)


@pytest.fixture(params=[("wsgi", "project"), ("django", "view")], ids="-".join)
def service(request: pytest.FixtureRequest, scene: Scene, policy: str) -> Iterator[Service]:
    """
    A service whose policy is set for the project, or for one view against the project.
    """
    adapter, place = request.param
    pytest.importorskip("redis")
    if adapter == "django":
        pytest.importorskip("django")
    from dotmac_tasks.storage import RedisStorage

    service = Service(scene)
    options: dict[str, Any] = {"on_storage_error": policy}
    settings: dict[str, Any] = {"storage_timeout": TIMEOUT}
    if place == "project":
        settings |= options
        options = {}
    else:
        settings["on_storage_error"] = "reject" if policy == "proceed" else "proceed"
    storage = RedisStorage(scene.proxy.url(), timeout=TIMEOUT, breaker_cooldown=0.05)
    service.watch(storage)
    with ADAPTERS[adapter](service, storage, settings, **options) as service.client:
        assert is_protected(service.client.send(key="before"))
        yield service
    storage.close()


@with_each_policy
@through_each_fault
def test_request_that_meets_a_fault(service: Service, fault: Fault, policy: str) -> None:
    """
    A new key runs once where it can be claimed; else it runs marked, or not at all, as is set.
    """
    client = service.client
    with fault.happen(service.scene):
        answers = [client.send(key=f"k{number}") for number in range(5)]
        unkeyed = client.send()
    assert unkeyed.status == 201
    if not fault.fails:
        assert all(is_protected(each) for each in answers)
    elif policy == "proceed":
        assert [each.status for each in answers] == [201] * 5
        assert {each.get("X-Idempotency-Status") for each in answers} == {"unprotected"}
    else:
        assert {(each.status, each.problem) for each in answers} == {(503, "storage-unavailable")}
        assert [service.runs(f"k{number}") for number in range(5)] == [0] * 5
    service.await_recovery()
    retries = [client.send(key=f"k{number}") for number in range(5)]
    assert all(is_protected(each) for each in retries)
    runs = [service.runs(f"k{number}") for number in range(5)]
    if policy == "reject" or not fault.fails:
        assert runs == [1] * 5
    else:
        assert set(runs) <= {1, 2}
        # A claim in doubt has its outcome recorded when the storage is back.
        assert runs[0] == (1 if fault.doubtful else 2)
    for number, retry in enumerate(retries):
        assert is_replay_of(client.send(key=f"k{number}"), retry)
    assert [service.runs(f"k{number}") for number in range(5)] == runs


@with_each_policy
@through_each_fault
def test_work_that_ends_in_a_fault(service: Service, fault: Fault, policy: str) -> None:
    """
    Work that was claimed gets its real answer to the client, and is recorded, and never runs again.
    """
    client = service.client
    with ExitStack() as stack:
        service.inside = lambda: stack.enter_context(fault.happen(service.scene))
        answer = client.send(key="k")
        assert is_protected(answer)
        assert client.manager.heartbeat.unwritten_count == (0 if fault.records else 1)
    service.await_recovery()
    assert is_replay_of(client.send(key="k"), answer)
    assert service.runs("k") == 1
    assert client.manager.guard.counts.lost == 0
    assert client.manager.heartbeat.held_count == 0
    assert client.send(key="k", body=b"other").problem == "key-reused"


@with_each_policy
@through_each_fault
def test_retry_that_meets_a_fault(service: Service, fault: Fault, policy: str) -> None:
    """
    What was recorded is replayed again after the fault, unless it was lost; the runs are as told.
    """
    client = service.client
    first = client.send(key="k")
    with fault.happen(service.scene):
        during = client.send(key="k")
    if fault.refuses or not (fault.fails or fault.loses_data):
        assert is_replay_of(during, first)
    elif fault.fails and policy == "reject":
        assert during.problem == "storage-unavailable"
    elif fault.fails:
        assert (during.status, during.is_replay) == (201, False)
        assert during.get("X-Idempotency-Status") == "unprotected"
    else:
        assert is_protected(during)
        assert not during.is_replay
    service.await_recovery()
    assert is_replay_of(client.send(key="k"), during if fault.loses_data else first)
    again = fault.loses_data or (fault.fails and not fault.refuses and policy == "proceed")
    assert service.runs("k") == (2 if again else 1)


@with_each_policy
@through_each_fault
def test_fault_costs_a_request_its_timeout_once(
    service: Service, fault: Fault, policy: str
) -> None:
    """
    A request waits for two calls at most, each within its time, and for none behind a timeout.
    """
    client = service.client
    with fault.happen(service.scene):
        for number in range(9):
            service.waited_for.clear()
            client.send(key=f"k{number}")
            waited = list(service.waited_for)
            assert [verb for verb, _ in waited[:1]] in ([], ["claim_operation"])
            assert len(waited) <= 2
            assert all(seconds < TIMEOUT + SLACK for _, seconds in waited)
            if waited and waited[0][1] >= TIMEOUT:
                assert len(waited) == 1
    service.await_recovery()


@with_each_policy
def test_failover_loses_the_last_writes_only(service: Service, scene: Scene, policy: str) -> None:
    """
    What the replica had is replayed after a failover; what it lacks runs once more, as documented.
    """
    client = service.client
    replica = scene.start_replica()
    early = client.send(key="early")
    wait_until(lambda: replica.info("replication")["master_link_status"] == "up", LIMIT)
    wait_until(lambda: replica.command("DBSIZE") == scene.server.command("DBSIZE"), LIMIT)
    replica.promote()
    late = client.send(key="late")
    scene.turn_to(replica)
    assert is_replay_of(client.send(key="early"), early)
    again = client.send(key="late")
    assert is_protected(again)
    assert again.body != late.body
    assert is_replay_of(client.send(key="late"), again)
    assert (service.runs("early"), service.runs("late")) == (1, 2)


@with_each_policy
def test_failover_in_the_middle_of_the_work(service: Service, scene: Scene, policy: str) -> None:
    """
    A claim that the new master never saw does not keep the outcome from being recorded there.
    """
    client = service.client
    replica = scene.start_replica()
    replica.promote()
    service.inside = lambda: scene.turn_to(replica)
    answer = client.send(key="k")
    assert is_protected(answer)
    service.await_recovery()
    assert is_replay_of(client.send(key="k"), answer)
    assert service.runs("k") == 1
