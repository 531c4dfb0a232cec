"""
How the Redis storage connects, and what becomes of calls when Redis misbehaves.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dotmac_tasks.errors import (
    ConfigurationError,
    CorruptRecordError,
    StorageError,
    StorageTimeoutError,
    StorageUnavailableError,
)
from dotmac_tasks.models import (
    AbandonedPolicy,
    ClaimOutcome,
    Lease,
    LeaseKind,
    OperationStatus,
    SettleOutcome,
    WriteOutcome,
)
from dotmac_tasks.testing import FakeClock
from support.backends import make_request
from support.concurrency import run_together, wait_until
from support.proxy import RedisProxy
from support.redis_server import RedisServer
from support.tls import create_certificates, find_openssl

pytest.importorskip("redis")
from dotmac_tasks.storage import redis_connection
from dotmac_tasks.storage.deadline import BoundedSocket
from dotmac_tasks.storage.redis import RedisStorage

pytestmark = pytest.mark.redis

# A bound that only a hung call exceeds.
LONG = 20.0

Opener = Callable[..., RedisStorage]


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[RedisProxy]:
    with RedisProxy(redis_server.port) as running:
        yield running


@pytest.fixture
def open_storage(random_prefix: str) -> Iterator[Opener]:
    opened = []

    def open_one(url: str, **settings: Any) -> RedisStorage:
        settings.setdefault("timeout", 10)
        settings.setdefault("prefix", random_prefix)
        opened.append(RedisStorage(url, **settings))
        return opened[-1]

    yield open_one
    for storage in opened:
        storage.close()


@pytest.fixture
def storage(proxy: RedisProxy, open_storage: Opener) -> RedisStorage:
    """
    A storage behind the proxy, with a connection that was used before.
    """
    opened = open_storage(proxy.url())
    opened.find_operation("warm")
    return opened


@pytest.fixture
def private_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def claim(storage: RedisStorage, **changes: Any) -> ClaimOutcome:
    return storage.claim_operation(make_request(**changes)).outcome


def save(storage: RedisStorage, **changes: Any) -> int:
    values: dict[str, Any] = {"expected_revision": 0, "request_id": "r", "retention": None}
    values.update(changes)
    record = storage.save_background("op", "tenant", OperationStatus.PENDING, b"d", **values)
    return record.revision


VERBS: dict[str, Callable[[RedisStorage], Any]] = {
    "claim": claim,
    "ensure": lambda s: s.ensure_operation(make_request()).status,
    "find": lambda s: s.find_operation("k"),
    "complete": lambda s: s.complete_operation(make_request(), 1, b"x", failed=False),
    "release": lambda s: s.release_operation("k", "a"),
    "defer": lambda s: s.defer_operation(make_request(), 60),
    "settle": lambda s: s.settle_operation("k", b"x", failed=False),
    "discard": lambda s: s.discard_operation("k"),
    "renew": lambda s: s.renew_leases([Lease(LeaseKind.LOCK, "n", "a", 5)]),
    "acquire_lock": lambda s: s.acquire_lock("n", "a", 5) is not None,
    "release_lock": lambda s: s.release_lock("n", "a"),
    "save_background": save,
    "find_background": lambda s: s.find_background("op"),
    "stats": lambda s: s.get_stats(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verb_costs_one_round_trip(verb: str, storage: RedisStorage, proxy: RedisProxy) -> None:
    """Once Redis knows its script, a verb is one command and one round trip."""
    VERBS[verb](storage)
    proxy.reset_counts()
    VERBS[verb](storage)
    counts = proxy.counts
    assert (counts.commands, counts.round_trips, counts.handshake) == (1, 1, 0)


def test_list_costs_two_round_trips(storage: RedisStorage, proxy: RedisProxy) -> None:
    """A page of a listing is one look at the index and one at all its records."""
    save(storage)
    storage.list_background("tenant")
    proxy.reset_counts()
    assert len(storage.list_background("tenant").records) == 1
    assert proxy.counts.round_trips == 2


def test_health_costs_one_round_trip(storage: RedisStorage, proxy: RedisProxy) -> None:
    """The health check asks once."""
    proxy.reset_counts()
    assert storage.check_health().healthy
    assert proxy.counts.round_trips == 1


@pytest.mark.parametrize("verb", VERBS)
def test_lost_reply_on_a_used_connection_is_asked_for_again(
    verb: str, storage: RedisStorage, proxy: RedisProxy, redis_server: RedisServer
) -> None:
    """Every verb whose reply is lost answers as it does when none is lost."""
    with RedisServer() as other:
        expected = VERBS[verb](RedisStorage(other.url(), prefix="p"))
    VERBS["stats"](storage)
    proxy.lose_next_reply()
    assert VERBS[verb](storage) == expected


def test_lost_reply_on_a_fresh_connection_is_in_doubt(
    proxy: RedisProxy, open_storage: Opener
) -> None:
    """Without a second attempt the claim may have happened, and it is recognised later."""
    storage = open_storage(proxy.url())
    proxy.lose_next_reply()
    with pytest.raises(StorageTimeoutError, match=f"127.0.0.1:{proxy.port}"):
        claim(storage)
    assert claim(storage) is ClaimOutcome.CLAIMED
    assert claim(storage, owner="b") is ClaimOutcome.IN_PROGRESS


REFUSALS_OF_THE_SECOND = {
    "no connection": None,
    "no access": b"-NOAUTH Authentication required.\r\n",
    "read-only": b"-READONLY You can't write against a read only replica.\r\n",
    "odd": b"-ERR something else\r\n",
}


@pytest.mark.parametrize("refusal", REFUSALS_OF_THE_SECOND)
def test_doubt_outlives_a_second_attempt_that_fails(
    refusal: str, storage: RedisStorage, proxy: RedisProxy
) -> None:
    """What the first sending may have done is not denied because the second one was refused."""
    assert claim(storage, key="warm") is ClaimOutcome.CLAIMED
    proxy.lose_next_reply()
    answer = REFUSALS_OF_THE_SECOND[refusal]
    if answer is None:
        proxy.refuse()
    else:
        proxy.replace_next_reply(answer)
    with pytest.raises(StorageTimeoutError):
        claim(storage)
    proxy.heal()
    assert claim(storage, owner="b") is ClaimOutcome.IN_PROGRESS


def test_doubt_outlives_a_forgotten_script(storage: RedisStorage, proxy: RedisProxy) -> None:
    """A server that lost its scripts but maybe not the record leaves doubt if it then refuses."""
    assert claim(storage, key="warm") is ClaimOutcome.CLAIMED
    proxy.lose_next_reply()
    proxy.replace_next_reply(b"-NOSCRIPT No matching script.\r\n")
    proxy.replace_next_reply(b"-OOM command not allowed\r\n")
    with pytest.raises(StorageTimeoutError):
        claim(storage)
    assert claim(storage, owner="b") is ClaimOutcome.IN_PROGRESS


def test_command_that_never_arrived_is_sent_again(storage: RedisStorage, proxy: RedisProxy) -> None:
    """A connection that breaks before the command took effect costs nothing but a second one."""
    proxy.drop_next_command()
    assert claim(storage) is ClaimOutcome.CLAIMED


def test_stale_connections_are_dropped_together(storage: RedisStorage, proxy: RedisProxy) -> None:
    """After Redis closed all connections the first call finds out for the others."""
    barrier = threading.Barrier(4)

    def overlap() -> None:
        barrier.wait(LONG)
        storage.find_operation("k")

    run_together(4, overlap)
    proxy.cut()
    proxy.reset_counts()
    assert claim(storage) is ClaimOutcome.CLAIMED
    assert proxy.counts.connections == 1


def test_forgotten_scripts_are_sent_again(
    storage: RedisStorage, proxy: RedisProxy, private_server: RedisServer, open_storage: Opener
) -> None:
    """After SCRIPT FLUSH a verb is sent once more with its text, and then by its digest."""
    other = open_storage(private_server.url())
    assert claim(other) is ClaimOutcome.CLAIMED
    private_server.command("SCRIPT", "FLUSH")
    assert claim(other) is ClaimOutcome.CLAIMED
    assert claim(other, owner="b") is ClaimOutcome.IN_PROGRESS


def test_refused_connection_is_unavailable(open_storage: Opener) -> None:
    """Where nobody listens nothing was changed; the error names the server, not the password."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    storage = open_storage(f"redis://:secret@127.0.0.1:{port}/0")
    with pytest.raises(StorageUnavailableError, match=f"127.0.0.1:{port}") as caught:
        claim(storage)
    assert "secret" not in str(caught.value)


def test_unknown_host_is_unavailable(open_storage: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that cannot be resolved is an outage like any other."""
    monkeypatch.setattr(socket, "getaddrinfo", _raise(socket.gaierror(-2, "unknown")))
    with pytest.raises(StorageUnavailableError) as caught:
        claim(open_storage("redis://redis.example:6379/0"))
    assert str(caught.value).count("redis.example") == 1


def test_impossible_host_is_unavailable(open_storage: Opener) -> None:
    """A name that is none does not escape as an error of its encoding."""
    with pytest.raises(StorageUnavailableError):
        claim(open_storage(f"redis://{'x' * 70}.example:6379/0"))


def test_slow_resolver_ends_with_the_timeout(
    open_storage: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up that hangs is left behind."""
    over = threading.Event()
    look_up = socket.getaddrinfo

    def hang(host: str, *args: Any, flags: int = 0, **kwargs: Any) -> Any:
        if not flags & socket.AI_NUMERICHOST:
            over.wait(LONG)
        return look_up(host, *args, flags=flags, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with pytest.raises(StorageUnavailableError, match=r"did not answer within 0\.1 s"):
            claim(open_storage("redis://localhost:6379/0", timeout=0.1))
    finally:
        over.set()


def test_second_address_is_tried(
    open_storage: Opener, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host with one dead address is reached at the next one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = listener.getsockname()
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    alive = ("127.0.0.1", redis_server.port)
    found = [(*kind, dead), (*kind, alive)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert claim(open_storage("redis://two.example:6379/0")) is ClaimOutcome.CLAIMED


def test_hung_server_ends_with_the_timeout(proxy: RedisProxy, open_storage: Opener) -> None:
    """On a fresh connection nobody answered, so nothing was changed."""
    proxy.hang()
    with pytest.raises(StorageUnavailableError, match=r"did not answer within 0\.2 s"):
        claim(open_storage(proxy.url(), timeout=0.2))


def test_server_that_hangs_later_leaves_doubt(
    private_server: RedisServer, open_storage: Opener
) -> None:
    """On a connection that worked the command was sent, so it may have happened."""
    storage = open_storage(private_server.url(), timeout=0.2)
    storage.find_operation("k")
    private_server.pause()
    try:
        started = time.monotonic()
        with pytest.raises(StorageTimeoutError):
            claim(storage)
        assert time.monotonic() - started < LONG
    finally:
        private_server.resume()


def test_dripping_server_ends_with_the_timeout(
    storage: RedisStorage, proxy: RedisProxy, open_storage: Opener
) -> None:
    """A reply that comes in byte by byte does not start the time anew with each."""
    slow = open_storage(proxy.url(), timeout=0.3)
    slow.find_operation("k")
    proxy.drip(0.1)
    try:
        with pytest.raises(StorageTimeoutError):
            slow.find_operation("k")
    finally:
        proxy.heal()


def test_full_accept_queue_ends_with_the_timeout(open_storage: Opener, tmp_path: Path) -> None:
    """A Unix socket whose server accepts nothing holds a call no longer than its timeout."""
    path = tmp_path / "full.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        with pytest.raises(StorageUnavailableError):
            claim(open_storage(f"unix://{path}", timeout=0.2))


def test_breaker_opens_and_closes_with_the_server(
    proxy: RedisProxy, open_storage: Opener, clock: FakeClock
) -> None:
    """After three failures calls end at once; after the rest one that succeeds closes it."""
    storage = open_storage(proxy.url(), clock=clock, breaker_cooldown=5)
    proxy.refuse()
    for _ in range(3):
        with pytest.raises(StorageUnavailableError):
            storage.find_operation("k")
    proxy.heal()
    with pytest.raises(StorageUnavailableError, match="left alone"):
        storage.find_operation("k")
    clock.advance(5)
    assert storage.find_operation("k") is None
    assert storage.check_health().details["breaker"] == "closed"


def test_breaker_shows_in_the_health(
    proxy: RedisProxy, open_storage: Opener, clock: FakeClock
) -> None:
    """The health check asks though it is open, and tells, as metrics do; an answer closes it."""
    storage = open_storage(proxy.url(), clock=clock, breaker_threshold=1)
    assert storage.breaker_state == "closed"
    proxy.refuse()
    health = storage.check_health()
    assert not health.healthy
    assert health.details["breaker"] == storage.breaker_state == "open"
    assert "127.0.0.1" in health.warnings[0]
    proxy.heal()
    health = storage.check_health()
    assert health.healthy
    assert health.details["breaker"] == "closed"


def test_breaker_learns_nothing_from_busy_connections(
    proxy: RedisProxy, open_storage: Opener
) -> None:
    """A call that finds no free connection says so and does not count as a failure."""
    storage = open_storage(proxy.url(), max_connections=1, breaker_threshold=1, timeout=0.1)
    pool = storage._channel._pool
    place = pool.take(0.0)
    with pytest.raises(StorageUnavailableError, match="max_connections"):
        storage.find_operation("k")
    assert storage._channel.breaker.state == "closed"
    pool.forget(place)
    assert storage.find_operation("k") is None


def test_waiting_calls_share_few_connections(proxy: RedisProxy, open_storage: Opener) -> None:
    """More threads than connections wait for one another, and all get their answer."""
    storage = open_storage(proxy.url(), max_connections=2)
    assert run_together(8, storage.find_operation, "k") == [None] * 8
    assert proxy.counts.connections <= 2


ANSWERS = {
    b"-LOADING Redis is loading the dataset in memory\r\n": StorageUnavailableError,
    b"-OOM command not allowed when used memory > 'maxmemory'.\r\n": StorageUnavailableError,
    b"-READONLY You can't write against a read only replica.\r\n": StorageUnavailableError,
    b"-MISCONF Redis is configured to save RDB snapshots\r\n": StorageUnavailableError,
    b"-NOREPLICAS Not enough good replicas to write.\r\n": StorageUnavailableError,
    b"-MASTERDOWN Link with MASTER is down\r\n": StorageUnavailableError,
    b"-CLUSTERDOWN The cluster is down\r\n": StorageUnavailableError,
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n": StorageUnavailableError,
    b"-NOPERM this user has no permissions\r\n": StorageUnavailableError,
    b"-NOAUTH Authentication required.\r\n": StorageUnavailableError,
    b"-BUSY Redis is busy running a script.\r\n": StorageUnavailableError,
    b"-ERR max number of clients reached\r\n": StorageUnavailableError,
    b"-ERR Error running script: -OOM command not allowed\r\n": StorageUnavailableError,
    b"-WRONGTYPE Operation against a key\r\n": CorruptRecordError,
    b"-ERR user_script:1: CORRUPT[bgops:x is odd] script: f\r\n": CorruptRecordError,
    b"-ERR something else\r\n": StorageError,
    b"?no protocol\r\n": StorageTimeoutError,
}


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.split()[0].decode())
def test_answer_becomes_an_error_of_ours(
    answer: bytes, storage: RedisStorage, proxy: RedisProxy
) -> None:
    """What Redis answers instead of a reply has one class here, and the driver's as its cause."""
    proxy.replace_next_reply(answer, 2)
    with pytest.raises(StorageError) as caught:
        claim(storage)
    assert type(caught.value) is ANSWERS[answer]
    assert caught.value.__cause__ is not None
    proxy.heal()
    assert claim(storage) is ClaimOutcome.CLAIMED


def test_loading_opens_the_breaker_and_a_refusal_does_not(
    proxy: RedisProxy, open_storage: Opener
) -> None:
    """A server that loads its data is left alone; one that refuses at once is not."""
    storage = open_storage(proxy.url(), breaker_threshold=1)
    proxy.replace_next_reply(b"-OOM command not allowed\r\n")
    with pytest.raises(StorageUnavailableError):
        claim(storage)
    assert claim(storage) is ClaimOutcome.CLAIMED
    proxy.replace_next_reply(b"-LOADING loading\r\n", 2)
    for _ in range(2):
        with pytest.raises(StorageUnavailableError):
            claim(storage)
    assert storage._channel.breaker.state == "open"


def test_refused_greeting_is_unavailable(proxy: RedisProxy, open_storage: Opener) -> None:
    """A server that refuses the first word is left without the second."""
    proxy.replace_next_reply(b"-MASTERDOWN down\r\n", match="PING")
    with pytest.raises(StorageUnavailableError, match="down"):
        claim(open_storage(proxy.url()))


def test_interrupt_leaves_no_connection_behind(
    storage: RedisStorage, proxy: RedisProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that Ctrl-C ends gives its place up, and the next one works."""
    with monkeypatch.context() as patch:
        patch.setattr(redis_connection, "_ask", _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            claim(storage)
    assert storage._channel._pool.count == 0
    assert claim(storage) is ClaimOutcome.CLAIMED


def test_closed_storage_opens_anew(storage: RedisStorage, proxy: RedisProxy) -> None:
    """Closing twice is harmless, and a later call connects again."""
    storage.close()
    storage.close()
    proxy.reset_counts()
    assert claim(storage) is ClaimOutcome.CLAIMED
    assert proxy.counts.connections == 1


def test_connection_in_use_is_closed_when_its_call_ends(
    storage: RedisStorage, proxy: RedisProxy
) -> None:
    """A storage that is closed during a call lets the call end, and keeps nothing open."""
    pool = storage._channel._pool
    proxy.delay(0.3)

    def close_during_call() -> None:
        wait_until(lambda: not pool._idle)
        storage.close()

    closer = threading.Thread(target=close_during_call)
    closer.start()
    assert claim(storage) is ClaimOutcome.CLAIMED
    closer.join(LONG)
    assert pool._idle == []
    assert storage._channel._pool._idle == []


def test_forked_child_leaves_the_parents_connections_alone(
    storage: RedisStorage, proxy: RedisProxy
) -> None:
    """A child works on connections of its own, and the parent goes on with its one."""
    assert claim(storage) is ClaimOutcome.CLAIMED
    proxy.reset_counts()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child's lines are not counted on every platform
        ok = claim(storage, owner="b") is ClaimOutcome.IN_PROGRESS
        storage.close()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert proxy.counts.connections == 1
    assert storage.release_operation("k", "a") is WriteOutcome.DONE
    assert proxy.counts.connections == 1


def test_restarted_server_is_found_again(private_server: RedisServer, open_storage: Opener) -> None:
    """After a restart the next call works; what Redis lost is absent."""
    storage = open_storage(private_server.url())
    assert claim(storage) is ClaimOutcome.CLAIMED
    private_server.stop()
    private_server.start()
    assert claim(storage, owner="b") is ClaimOutcome.CLAIMED


def test_restarted_server_keeps_what_it_wrote(open_storage: Opener) -> None:
    """With an append-only file the claim is still there after a crash."""
    with RedisServer(appendonly=True, config=["appendfsync always"]) as server:
        storage = open_storage(server.url())
        assert claim(storage) is ClaimOutcome.CLAIMED
        server.kill()
        server.start()
        assert claim(storage, owner="b") is ClaimOutcome.IN_PROGRESS


ADVICE = "in STORAGE, and what this user may do there."


def test_password_opens(open_storage: Opener) -> None:
    """The password in the URL is used; a wrong one, or none, is an outage that names none."""
    with RedisServer(requirepass="right") as server:
        assert claim(open_storage(server.url(password="right"))) is ClaimOutcome.CLAIMED
        for password in ("wrong", None):
            with pytest.raises(StorageUnavailableError) as caught:
                claim(open_storage(server.url(password=password)))
            assert "wrong" not in str(caught.value)
            assert str(caught.value).endswith(ADVICE)


def test_database_that_is_not_there_is_a_matter_of_settings(
    open_storage: Opener, private_server: RedisServer
) -> None:
    """A number of a database that this server does not have is worth no second attempt."""
    with pytest.raises(StorageUnavailableError, match="DB index") as caught:
        claim(open_storage(private_server.url(db=99)))
    assert str(caught.value).endswith(ADVICE)


def test_advice_fits_the_refusal(storage: RedisStorage, proxy: RedisProxy) -> None:
    """A missing permission is a matter of settings; a disk that is full may not be later."""
    proxy.replace_next_reply(b"-NOPERM this user has no permissions\r\n", 1)
    with pytest.raises(StorageUnavailableError) as caught:
        claim(storage)
    assert str(caught.value).endswith(ADVICE)
    proxy.replace_next_reply(b"-MISCONF it cannot save\r\n", 1)
    with pytest.raises(StorageUnavailableError, match=r"Try again later\.$"):
        claim(storage)


def minimal_user() -> str:
    """
    Return the access rule that the class documents, as in an ACL file.
    """
    text = RedisStorage.__doc__ or ""
    rule = text[text.index("ACL SETUSER") : text.index("Args:")]
    return " ".join(rule.split()).removeprefix("ACL SETUSER ")


def test_documented_user_may_do_everything(open_storage: Opener) -> None:
    """The access rule of the documentation is enough for every verb, and for the health."""
    with RedisServer(acl_users=[minimal_user()]) as server:
        storage = open_storage(server.url(db=1, user="app", password="secret"), prefix="bgops")
        for verb in VERBS.values():
            verb(storage)
        storage.list_background("tenant", status=OperationStatus.PENDING)
        save(storage, expected_revision=1, request_id="s", retention=0.001)
        storage.acquire_lock("n", "a", 5)
        for key in ("x", "y"):
            claim(storage, key=key)
        first = storage.list_operations(limit=1)
        assert storage.list_operations(cursor=first.cursor).records
        claim(storage, key="z", lease=0.001, ttl=0.001)
        wait_until(lambda: storage.purge_expired(10).removed == 0)
        health = storage.check_health()
        assert health.healthy
        assert health.warnings == ()


def test_user_without_info_is_still_healthy(open_storage: Opener) -> None:
    """Where access rules forbid INFO and PING the rest works, and the health check says so."""
    rule = minimal_user().replace("+info ", "").replace("+ping ", "")
    with RedisServer(acl_users=[rule]) as server:
        storage = open_storage(server.url(user="app", password="secret"), prefix="bgops")
        assert claim(storage) is ClaimOutcome.CLAIMED
        health = storage.check_health()
        assert health.healthy
        assert "info" in health.warnings[0].lower()


def test_user_without_a_command_or_key_is_refused(open_storage: Opener) -> None:
    """A missing permission is unavailability, whether of a command or of a key."""
    rule = minimal_user()
    users = [rule.replace("+zadd ", ""), rule.replace("app on", "other on")]
    with RedisServer(acl_users=users) as server:
        without_command = open_storage(server.url(user="app", password="secret"), prefix="bgops")
        with pytest.raises(StorageUnavailableError):
            claim(without_command)
        without_key = open_storage(server.url(user="other", password="secret"), prefix="else")
        with pytest.raises(StorageUnavailableError):
            claim(without_key)


def test_tls_opens(open_storage: Opener, tmp_path: Path) -> None:
    """A trusted certificate connects, by the URL or an argument; an unknown one is refused."""
    if find_openssl() is None:
        pytest.skip("openssl is not installed")
    files = create_certificates(tmp_path)
    with RedisServer(tls=files) as server:
        assert claim(open_storage(server.tls_url())) is ClaimOutcome.CLAIMED
        bare = server.tls_url(trusted=False)
        by_argument = open_storage(bare, ssl_ca_certs=str(files.ca))
        assert by_argument.find_operation("k") is not None
        with pytest.raises(StorageUnavailableError, match=r"(?i)certificate"):
            claim(open_storage(bare))


def test_tls_handshake_ends_with_the_timeout(open_storage: Opener) -> None:
    """A server that accepts and never shakes hands holds a call no longer than its timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StorageUnavailableError):
            claim(open_storage(f"rediss://127.0.0.1:{port}/0", timeout=0.2))


def test_unix_socket_opens(open_storage: Opener) -> None:
    """A Unix socket works; one that is not there is an outage."""
    with RedisServer(unixsocket=True) as server:
        url = server.unix_url()
        assert claim(open_storage(url)) is ClaimOutcome.CLAIMED
    with pytest.raises(StorageUnavailableError, match=r"redis\.sock"):
        claim(open_storage(url))


def test_full_memory_refuses_claims_only(open_storage: Opener) -> None:
    """At its limit Redis refuses a claim whole, and still renews and completes a running one."""
    with RedisServer() as server:
        storage = open_storage(server.url())
        token = storage.claim_operation(make_request()).fencing_token
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StorageUnavailableError, match="raise its maxmemory"):
            claim(storage, key="other")
        assert storage.find_operation("other") is None
        lease = Lease(LeaseKind.OPERATION, "k", make_request().owner, 30.0)
        assert storage.renew_leases([lease]) == [True]
        done = storage.complete_operation(make_request(), token, b"x", failed=False)
        assert done is WriteOutcome.DONE
        health = storage.check_health()
        assert health.healthy
        assert "memory" in health.warnings[0]


@pytest.mark.parametrize("policy", ["rerun", "refuse"])
def test_full_memory_takes_a_deferral(open_storage: Opener, policy: AbandonedPolicy) -> None:
    """At its limit Redis still hands a running claim on to a worker, and takes what it reports."""
    with RedisServer() as server:
        storage = open_storage(server.url())
        request = make_request(on_abandoned=policy)
        storage.claim_operation(request)
        server.command("CONFIG", "SET", "maxmemory", "1")
        assert storage.defer_operation(request, 600) is WriteOutcome.DONE
        found = storage.find_operation("k")
        assert found is not None
        assert found.deferred
        assert found.lease_ms - found.created_ms >= 600_000
        assert (found.expires_ms is None) is (policy == "refuse")
        assert storage.settle_operation("k", b"x", failed=False) is SettleOutcome.DONE


def test_renewal_that_the_server_refuses_loses_no_lease(
    open_storage: Opener, random_prefix: str
) -> None:
    """A server that cannot write has not lost a claim; an unreadable record has lost its own."""
    held = Lease(LeaseKind.OPERATION, "k", make_request().owner, 30.0)
    with RedisServer() as master, RedisServer(replica_of=master) as replica:
        claim(open_storage(master.url()))
        storage = open_storage(replica.url())
        wait_until(lambda: storage.find_operation("k") is not None)
        with pytest.raises(StorageUnavailableError):
            storage.renew_leases([held])
        master.command("SET", f"{random_prefix}:idempo:text", "not a hash")
        master.command("HSET", f"{random_prefix}:idempo:newer", "v", "7")
        unreadable = [held._replace(name=name) for name in ("text", "newer")]
        assert open_storage(master.url()).renew_leases([held, *unreadable]) == [True, False, False]


def test_replica_cannot_be_written_to(open_storage: Opener) -> None:
    """A replica refuses claims, lets records be found, and is unhealthy."""
    with RedisServer() as master, RedisServer(replica_of=master) as replica:
        claim(open_storage(master.url()))
        storage = open_storage(replica.url())
        wait_until(lambda: storage.find_operation("k") is not None)
        with pytest.raises(StorageUnavailableError, match="name its master in STORAGE"):
            claim(storage, key="other")
        health = storage.check_health()
        assert not health.healthy
        assert "replica" in health.warnings[0]


def test_eviction_policy_is_warned_of(open_storage: Opener) -> None:
    """A policy under which Redis may drop claims is a warning of the health check."""
    with RedisServer(maxmemory="100mb", maxmemory_policy="allkeys-lru") as server:
        health = open_storage(server.url()).check_health()
        assert health.healthy
        assert "allkeys-lru" in health.warnings[0]


def test_loading_server_is_unhealthy(storage: RedisStorage, proxy: RedisProxy) -> None:
    """A server that answers INFO while it loads its data serves nothing yet."""
    info = b"# Server\r\nrole:master\r\nloading:1\r\n"
    proxy.replace_next_reply(b"$%d\r\n%b\r\n" % (len(info), info), match="INFO")
    health = storage.check_health()
    assert not health.healthy
    assert "loading" in health.warnings[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"redis_url": "http://localhost"},
        {"redis_url": "redis://localhost?db=secret"},
        {"redis_url": "redis://localhost?nonsense=1"},
        {"redis_url": "rediss://localhost?ssl_cert_reqs=nonsense"},
        {"timeout": 0},
        {"max_connections": 0},
        {"breaker_threshold": 0},
        {"breaker_cooldown": -1},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    """What cannot work is an error at construction."""
    with pytest.raises(ConfigurationError):
        RedisStorage(**settings)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://localhost:port/0", "port"),
        ("redis://localhost:0/0", "port"),
        ("redis://:hunter/2@localhost/0", "percent-encoded"),
        ("redis://:12/hunter@localhost/0", "percent-encoded"),
        ("redis://:hunter#2@localhost/0", "percent-encoded"),
        ("redis://localhost/hunter", "database"),
        ("rediss://localhost/0/1", "database"),
        ("redis://[hunter/0", "is no URL"),
        ("redis://localhost?db=hunter", "'db'"),
        ("redis://localhost?hunter=1", "hunter is no option of RedisStorage"),
        ("http://hunter", "is no URL"),
        ("", "is no URL"),
        (5, "must be text, not a int"),
    ],
)
def test_wrong_url_is_refused_with_its_cause(url: Any, reason: str) -> None:
    """The message names what is wrong with a URL and repeats no value of it."""
    with pytest.raises(ConfigurationError) as caught:
        RedisStorage(url)
    error = caught.value
    shown = f"{error.option} {error.reason}"
    assert reason in shown
    assert "hunter" not in shown.removeprefix("hunter")
    assert "hunter" not in str(error.__cause__ or "").replace("argument 'hunter'", "")


@pytest.mark.parametrize(
    "url", ["redis://localhost", "redis://localhost/", "redis://a:b%2Fc@localhost:1/15/"]
)
def test_right_url_is_accepted(url: str) -> None:
    """A database may be left out, and what is percent-encoded may be anything."""
    RedisStorage(url).close()


def test_client_and_url_exclude_each_other(redis_server: RedisServer) -> None:
    """A client's settings are used alone; together with a URL they are refused."""
    import redis

    with redis.Redis.from_url(redis_server.url(), decode_responses=True) as client:
        storage = RedisStorage(client=client, prefix="both")
        assert storage.check_health().healthy
        storage.close()
        with pytest.raises(ConfigurationError):
            RedisStorage(redis_server.url(), client=client)


def test_pool_options_in_a_url_are_no_concern_of_connections(
    open_storage: Opener, redis_server: RedisServer
) -> None:
    """A URL that sizes redis-py's own pool, or lets it retry, works here too."""
    url = f"{redis_server.url()}?max_connections=9&retry_on_timeout=yes&socket_timeout=60"
    assert claim(open_storage(url)) is ClaimOutcome.CLAIMED


class FakeConnection:
    """
    Stands for the connection whose deadline a socket keeps to; used by one thread.
    """

    deadline = 0.0


def test_socket_keeps_to_the_deadline() -> None:
    """Whatever is done with a socket ends at the deadline of its connection."""
    ours, theirs = socket.socketpair()
    connection = FakeConnection()
    connection.deadline = time.monotonic() + LONG
    with ours, theirs:
        bounded = BoundedSocket(ours, connection)
        bounded.sendall(b"ping")
        assert theirs.recv(4) == b"ping"
        theirs.sendall(b"pong")
        assert bounded.recv(2) == b"po"
        buffer = bytearray(2)
        assert bounded.recv_into(buffer) == 2
        assert bytes(buffer) == b"ng"
        assert bounded.fileno() == ours.fileno()
        connection.deadline = time.monotonic() + 0.05
        with pytest.raises(TimeoutError):
            bounded.recv(1)
        with pytest.raises(TimeoutError, match="over"):
            bounded.sendall(b"late")


def test_command_that_cannot_be_sent_changed_nothing(
    open_storage: Opener, redis_server: RedisServer
) -> None:
    """A call that has no time left when it comes to sending says that nothing happened."""
    storage = open_storage(redis_server.url())
    storage.find_operation("k")
    with pytest.raises(StorageUnavailableError, match="did not answer"):
        storage._channel.call(b"*1\r\n$4\r\nPING\r\n", "k", time.monotonic() - 1)
    assert claim(storage) is ClaimOutcome.CLAIMED


def test_interpreter_that_starts_no_threads_looks_up_itself(
    open_storage: Opener, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the interpreter's exit, when no thread can start, a name is still resolved."""
    monkeypatch.setattr(threading.Thread, "start", _raise(RuntimeError("can't start new thread")))
    storage = open_storage(f"redis://localhost:{redis_server.port}/0")
    assert claim(storage) is ClaimOutcome.CLAIMED


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail
