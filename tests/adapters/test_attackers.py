"""
What somebody learns or achieves who should not: another caller, a reader of logs, a writer.
"""

from __future__ import annotations

import ast
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dotmac_tasks
from dotmac_tasks.errors import (
    CorruptRecordError,
    KeyReusedError,
    OperationNotFoundError,
    TasksError,
)
from dotmac_tasks.events import Event, MetricsHooks
from dotmac_tasks.keys import http_storage_key
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.storage import Storage
from dotmac_tasks.testing import EventRecorder
from support.backends import Backend, make_request
from support.codecs import FailingCodec, MaskingCodec
from support.concurrency import Counter, wait_until
from support.faulty import FaultyStorage
from support.http_clients import JSON, BrokenHandlerError, Call, HttpClient, Reply, Response

KEY = "5a1e2f"
UNUSED = "2f5a1e"


def read_header(name: str) -> Callable[[Any], str | None]:
    def read(request: Any) -> str | None:
        value: str | None = getattr(request, "META", request).get(f"HTTP_TEST_{name}")
        return value

    return read


class Work:
    """
    A handler that always answers the same, but does what the test says before that.
    """

    def __init__(self) -> None:
        self._runs = Counter()
        self.before: Callable[[Call], object] = lambda call: None
        self.reply = Reply(201, (*JSON, ("Location", "/orders/17")), b'{"order": 17}')

    @property
    def runs(self) -> int:
        return self._runs.value

    def __call__(self, call: Call) -> Reply:
        self._runs.increment()
        self.before(call)
        return self.reply


# Another user, another tenant


def fail(call: Call) -> None:
    raise BrokenHandlerError


HELD = {
    "finished": lambda call: None,
    "result": lambda call: call.set_result({"secret": 1}),
    "running": lambda call: call.defer(3600),
    "abandoned": lambda call: call.defer(0.001),
    "released": fail,
}


@pytest.mark.parametrize("state", HELD)
@pytest.mark.parametrize("scope", ["Test-User", "Test-Tenant"])
@pytest.mark.parametrize("body", [b'{"amount": 1}', b"[]"], ids=["same", "another"])
def test_foreign_key_is_answered_like_an_unused_one(
    serve: Any, backend: Backend, state: str, scope: str, body: bytes
) -> None:
    """
    Whatever another caller's key stands for, status, headers and body are those of an unused key.
    """
    work = Work()
    client = serve(
        work,
        backend.storage,
        principal=read_header("USER"),
        tenant=read_header("TENANT"),
        on_abandoned="refuse",
    )
    work.before = HELD[state]
    client.send(key=KEY, headers=[(scope, "alice")])
    work.before = lambda call: None
    known = client.send(key=KEY, body=body, headers=[(scope, "mallory")])
    unused = client.send(key=UNUSED, body=body, headers=[(scope, "mallory")])
    assert known.status == unused.status == 201
    assert known.body == unused.body
    assert [(name, value.replace(KEY, UNUSED)) for name, value in known.headers] == unused.headers


def outcome_of(call: Callable[[], Any], name: str) -> Any:
    """
    Return what a call returns or raises, without the name that it was asked about.
    """
    try:
        return call()
    except TasksError as error:
        return type(error), str(error).replace(name, "...")


def test_foreign_records_do_not_exist_for_the_methods(backend: Backend) -> None:
    """
    With the tenant that asks, a method treats another tenant's record as one that is not there.
    """
    with BackgroundOperationsManager(backend.storage, enable_background_cleanup=False) as manager:
        manager.create_idempotency_key("alice", None, "charge", key="held")
        manager.create_operation("alice", "charge", operation_id="held", parameters={"secret": 1})
        tenant: dict[str, Any] = {"tenant_id": "mallory"}
        methods: dict[str, Callable[[str], Any]] = {
            "check": lambda name: manager.check_idempotency(name, **tenant),
            "settle": lambda name: manager.complete_idempotent_operation(name, 1, **tenant),
            "status": lambda name: manager.get_operation_status(name, **tenant),
            "start": lambda name: manager.start_operation(name, **tenant),
            "complete": lambda name: manager.complete_operation(name, 1, **tenant),
            "fail": lambda name: manager.fail_operation(name, "no", **tenant),
        }
        for call in methods.values():
            held = outcome_of(lambda call=call: call("held"), "held")
            assert held == outcome_of(lambda call=call: call("unused"), "unused")
        assert manager.list_operations("mallory").operations == []
        with pytest.raises(OperationNotFoundError):
            manager.get_operation_status("held", "mallory")
        mine = manager.get_operation_status("held", "alice")
        assert (mine.status, mine.parameters) == ("pending", {"secret": 1})
        record = manager.check_idempotency("held", "alice")
        assert record is not None
        assert record.status == "pending"


def test_explicit_key_of_another_tenant_shows_nothing(backend: Backend) -> None:
    """
    Who chooses a name that another tenant holds is refused in the words of any reused key.
    """
    with BackgroundOperationsManager(backend.storage, enable_background_cleanup=False) as manager:
        manager.create_idempotency_key("alice", "a", "charge", key="held")
        manager.create_idempotency_key("mallory", "a", "charge", key="mine")
        with pytest.raises(KeyReusedError) as foreign:
            manager.create_idempotency_key("mallory", "m", "charge", key="held")
        with pytest.raises(KeyReusedError) as own:
            manager.create_idempotency_key("mallory", "m", "charge", key="mine")
        assert str(foreign.value) == str(own.value)
        assert set(vars(foreign.value)) == {"key"}


# Who reads logs, events, errors and answers

# Each is what one kind of secret looks like here; none may be seen anywhere.
SECRETS = {
    "client key": "client-key-4f1c",
    "credentials": "Bearer authorization-4f1c",
    "cookie": "session-cookie-4f1c",
    "request body": "request-body-4f1c",
    "query": "query-string-4f1c",
    "response body": "response-body-4f1c",
    "result": "operation-result-4f1c",
    "redis password": "redis-password-4f1c",
    "key secret": "key-secret-4f1c",
    "codec key": "codec-key-4f1c",
}


class RaisingHooks(MetricsHooks):
    """
    Hooks that fail with all that they were given.
    """

    def receive(self, event: Event) -> None:
        raise RuntimeError(repr(event))


class Witness:
    """
    Collects every text that somebody might read; used by one test.
    """

    def __init__(self, recorder: EventRecorder, log: pytest.LogCaptureFixture) -> None:
        self._recorder = recorder
        self._log = log
        self._texts: list[str] = []

    def note(self, *values: object) -> None:
        """
        Keep what a value shows of itself.
        """
        for value in values:
            self._texts += [repr(value), str(value)]
            if isinstance(value, BaseException):
                self._texts += traceback.format_exception(value)

    def note_problem(self, response: Response) -> None:
        """
        Keep a refusal, but for the header that repeats the sender's own key.
        """
        assert response.problem is not None
        others = [pair for pair in response.headers if pair[0] != "X-Idempotency-Key"]
        self.note(response.body, others)

    def find_secrets(self) -> set[str]:
        """
        Return the kinds of secrets that were seen by anybody.
        """
        formatter = logging.Formatter()
        for record in self._log.records:
            self._texts += [formatter.format(record), repr(vars(record))]
        self._texts += [repr(event) for event in self._recorder.events]
        seen = "\n".join(self._texts)
        return {kind for kind, secret in SECRETS.items() if secret in seen}


def send_secrets(client: HttpClient, **changes: Any) -> Response:
    """
    Send a request in which everything that may be secret is.
    """
    request: dict[str, Any] = {
        "key": SECRETS["client key"],
        "body": b'{"card": "%s"}' % SECRETS["request body"].encode(),
        "query": f"token={SECRETS['query']}",
        "headers": [
            ("Authorization", SECRETS["credentials"]),
            ("Cookie", f"sessionid={SECRETS['cookie']}"),
        ],
    }
    return client.send(**{**request, **changes})


class Stage:
    """
    One application with secrets everywhere, and all that can go wrong with it.
    """

    def __init__(self, serve: Any, witness: Witness, recorder: EventRecorder) -> None:
        self.witness = witness
        self.recorder = recorder
        self.work = Work()
        self.work.reply = Reply(200, JSON, SECRETS["response body"].encode())
        self._serve = serve
        self._settings: dict[str, Any] = {
            "hooks": [recorder, RaisingHooks()],
            "key_secret": SECRETS["key secret"],
            "lease": 1,
        }

    def open(self, storage: Storage, **changes: Any) -> HttpClient:
        client: HttpClient = self._serve(self.work, storage, **{**self._settings, **changes})
        self.witness.note(client.manager.config, client.manager, client.manager.storage)
        return client

    def close(self, client: HttpClient) -> None:
        manager = client.manager
        self.witness.note(manager.health_check().to_dict())
        try:
            self.witness.note(manager.get_stats().to_dict())
        except TasksError as error:
            self.witness.note(error)
        assert manager.events.flush(30)
        assert self.recorder.events


@pytest.fixture
def stage(serve: Any, caplog: pytest.LogCaptureFixture) -> Iterator[Stage]:
    """
    A stage on which nothing secret may have been seen at the end.
    """
    caplog.set_level(logging.DEBUG)
    recorder = EventRecorder()
    witness = Witness(recorder, caplog)
    yield Stage(serve, witness, recorder)
    assert witness.find_secrets() == set()


def test_witness_would_see_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    """
    A secret in a log record, a field of one or an error is found, so that silence means something.
    """
    witness = Witness(EventRecorder(), caplog)
    logging.getLogger("test").error("x", extra={"field": SECRETS["cookie"]})
    try:
        raise ValueError(SECRETS["result"])
    except ValueError as error:
        logging.getLogger("test").exception("failed")
        witness.note(KeyError(SECRETS["query"]), error)
    assert witness.find_secrets() == {"cookie", "result", "query"}


@pytest.mark.redis
def test_outage_shows_no_secret(stage: Stage) -> None:
    """
    While the storage is down nothing secret is said, its own address and password included.
    """
    redis_storage = pytest.importorskip("dotmac_tasks.storage.redis").RedisStorage
    storage = redis_storage(f"redis://user:{SECRETS['redis password']}@127.0.0.1:1/0", timeout=1)
    client = stage.open(storage)
    assert send_secrets(client).get("X-Idempotency-Status") == "unprotected"
    stage.close(client)
    client = stage.open(storage, on_storage_error="reject")
    stage.witness.note_problem(send_secrets(client))
    with pytest.raises(TasksError) as caught:
        client.manager.create_operation("t", "x", parameters={"a": SECRETS["request body"]})
    stage.witness.note(caught.value)
    stage.close(client)
    storage.close()


def test_refusals_show_no_secret(stage: Stage) -> None:
    """
    No refusal of a request holds anything of it, nor of the request that it was compared with.
    """
    storage = FaultyStorage()
    client = stage.open(storage, max_keys_per_caller=1)
    assert send_secrets(client).status == 200
    stage.witness.note_problem(send_secrets(client, body=b"[]"))
    stage.witness.note_problem(send_secrets(client, key=SECRETS["client key"] + "2"))
    stage.witness.note_problem(send_secrets(client, key='"' + SECRETS["client key"]))
    stage.witness.note_problem(send_secrets(client, key=SECRETS["client key"] * 99))
    storage.refuse("claim_operation", error=CorruptRecordError("faulty", "k", "newer format"))
    stage.witness.note_problem(send_secrets(client))
    stage.close(client)


def test_failing_work_shows_no_secret(stage: Stage) -> None:
    """
    Work that fails, and results and outcomes that cannot be written, are reported without them.
    """
    storage = FaultyStorage()
    client = stage.open(storage)

    def spoil(call: Call) -> None:
        with pytest.raises(TasksError) as caught:
            call.set_result({"a": {SECRETS["result"]}})
        stage.witness.note(caught.value)
        raise BrokenHandlerError

    for number, before in enumerate((fail, spoil, lambda call: call.defer(1))):
        stage.work.before = before
        storage.refuse("defer_operation")
        storage.refuse("release_operation")
        send_secrets(client, key=f"{SECRETS['client key']}{number}")
    storage.heal()
    stage.work.before = lambda call: call.set_result(SECRETS["result"])
    storage.refuse("complete_operation", times=2)
    send_secrets(client, key=f"{SECRETS['client key']}-last")
    wait_until(lambda: client.manager.heartbeat.held_count == 0, 30)
    stage.close(client)


@pytest.mark.parametrize("codec", [FailingCodec, MaskingCodec])
def test_failing_codec_shows_no_secret(stage: Stage, codec: type[MaskingCodec]) -> None:
    """
    A codec that fails with everything in its message is reported without the message.
    """
    storage = FaultyStorage()
    client = stage.open(storage, payload_codec=codec(SECRETS["codec key"]))
    send_secrets(client)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskingCodec, "decode", FailingCodec.encode)
        again = send_secrets(client)
        stage.witness.note_problem(again)
        manager = client.manager
        for call in (
            lambda: manager.create_operation("t", "x", parameters={"a": SECRETS["request body"]}),
            lambda: manager.list_operations("t"),
        ):
            try:
                stage.witness.note([item.operation_id for item in call().operations])
            except TasksError as error:
                stage.witness.note(error)
    stage.close(client)


def test_wrong_settings_show_no_secret() -> None:
    """
    A setting that is refused is named, and one that is secret is not shown.
    """
    for wrong in (
        {"key_secret": SECRETS["key secret"].encode()},
        {"payload_codec": {"key": SECRETS["codec key"]}},
        {"storage": f"redis-{SECRETS['redis password']}"},
        {"storage": f"redis://:{SECRETS['redis password']}@h/0?no_such_option=1"},
        {"storage": f"nothing://:{SECRETS['redis password']}@h/0"},
    ):
        with pytest.raises(TasksError) as caught:
            BackgroundOperationsManager(**wrong)  # type: ignore[arg-type]
        shown = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
        assert not [kind for kind, secret in SECRETS.items() if secret in shown]


# Who reads the storage


def read_everything(client: Any, prefix: str) -> dict[bytes, list[bytes]]:
    """
    Return every key under a prefix with all that is in it.
    """
    found: dict[bytes, list[bytes]] = {}
    for name in client.scan_iter(match=f"{prefix}:*", count=1000):
        kind = client.type(name)
        if kind == b"hash":
            found[name] = [part for pair in client.hgetall(name).items() for part in pair]
        elif kind == b"zset":
            found[name] = client.zrange(name, 0, -1)
        else:
            found[name] = [client.get(name)]
    return found


@pytest.mark.redis
def test_storage_holds_no_pickle_and_names_no_type(
    serve: Any, request: pytest.FixtureRequest, random_prefix: str
) -> None:
    """
    What is stored is text, JSON and bodies: nothing that a reader would have to run.
    """
    redis = pytest.importorskip("redis")
    from dotmac_tasks.storage.redis import RedisStorage

    url = request.getfixturevalue("redis_server").url()
    storage = RedisStorage(url, prefix=random_prefix)
    work = Work()
    client = serve(work, storage, max_keys_per_caller=9)
    for number, before in enumerate(HELD.values()):
        work.before = before
        client.send(key=f"{KEY}{number}")
    client.manager.create_operation("t", "x", parameters={"a": [1, None]})
    with client.manager.lock("name"), redis.Redis.from_url(url) as reader:
        everything = read_everything(reader, random_prefix)
    storage.close()
    assert len(everything) > 8
    for name, parts in everything.items():
        for part in (name, *parts):
            assert not part.startswith(b"\x80")
            assert not re.search(rb"dotmac_tasks|builtins|__\w+__|copyreg", part)


def test_nothing_in_the_library_runs_what_it_reads() -> None:
    """
    No module unpickles, evaluates or compiles; the imports by name are those of settings.
    """
    forbidden = {"pickle", "marshal", "shelve", "dill", "eval", "exec", "compile", "__import__"}
    importing = set()
    for path in Path(dotmac_tasks.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.partition(".")[0] for alias in node.names}
                assert not forbidden & {*names, getattr(node, "module", "")}, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in forbidden, path
            if isinstance(node, ast.Name | ast.Attribute):
                used = node.id if isinstance(node, ast.Name) else node.attr
                if used == "import_module":
                    importing.add(path.name)
    assert importing == {"config.py", "registry.py"}


@pytest.mark.redis
def test_reader_without_the_secret_cannot_test_a_guess(
    serve: Any, request: pytest.FixtureRequest, random_prefix: str
) -> None:
    """
    With `KEY_SECRET` and a codec, neither the key nor the answer of a request is to be found.
    """
    redis = pytest.importorskip("redis")
    from dotmac_tasks.storage.redis import RedisStorage

    url = request.getfixturevalue("redis_server").url()
    storage = RedisStorage(url, prefix=random_prefix)
    settings_of_project = {"key_secret": "s" * 40, "payload_codec": MaskingCodec()}
    serve(Work(), storage, **settings_of_project).send(key="1")
    with redis.Redis.from_url(url) as reader:
        everything = repr(read_everything(reader, random_prefix))
    storage.close()
    assert http_storage_key("default", "", "1", "s" * 40) in everything
    assert http_storage_key("default", "", "1") not in everything
    assert "/orders/17" not in everything


# Who writes to the storage

FINISHED_FIELDS = ("v", "s", "h", "p")
RUNNING_FIELDS = ("v", "s", "t", "u", "n", "f", "o", "k", "r", "c", "a", "g")
# What a record says by its numbers is believed, so a writer could as well delete it.
NO_NUMBER = st.binary(max_size=60).filter(lambda value: not value.isdigit())


class Writer:
    """
    Changes the records of one application in Redis, as somebody who has got hold of it may.
    """

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix

    def name(self, tenant: str) -> str:
        return f"{self._prefix}:idempo:{http_storage_key(tenant, '', KEY)}"

    def read(self, tenant: str) -> dict[bytes, bytes]:
        fields: dict[bytes, bytes] = self._client.hgetall(self.name(tenant))
        return fields

    def write(self, tenant: str, fields: dict[bytes, bytes]) -> None:
        left = self._client.pttl(self.name(tenant))
        self._client.delete(self.name(tenant))
        self._client.hset(self.name(tenant), mapping=fields)
        if left > 0:
            self._client.pexpire(self.name(tenant), left)


@pytest.fixture
def writer(request: pytest.FixtureRequest, random_prefix: str) -> Iterator[tuple[Writer, Storage]]:
    """
    Somebody who writes to Redis, and the storage of the application there.
    """
    redis = pytest.importorskip("redis")
    from dotmac_tasks.storage.redis import RedisStorage

    url = request.getfixturevalue("redis_server").url()
    storage = RedisStorage(url, prefix=random_prefix, timeout=10)
    with redis.Redis.from_url(url) as client:
        yield Writer(client, random_prefix), storage
    storage.close()


def mutate(data: Any, value: bytes) -> bytes:
    """
    Draw another value: bits flipped, a part cut out, something put in, or all of it replaced.
    """
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "replace"]))
    if how == "replace" or not value:
        return bytes(data.draw(NO_NUMBER))
    at = data.draw(st.integers(0, len(value) - 1))
    if how == "flip":
        flipped = value[at] ^ (1 << data.draw(st.integers(0, 7)))
        changed = value[:at] + bytes([flipped]) + value[at + 1 :]
    elif how == "cut":
        changed = value[:at] + value[at + data.draw(st.integers(1, 9)) :]
    else:
        changed = value[:at] + data.draw(st.binary(min_size=1, max_size=9)) + value[at:]
    return changed if not changed.isdigit() else b"x"


def assert_harmless(response: Response) -> None:
    """
    An answer may be wrong by now, but it is one answer that HTTP can carry.
    """
    assert 100 <= response.status <= 599
    assert response.status not in (500, 501)
    for name, value in response.headers:
        assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name), name
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value), value


PATIENT = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.mark.redis
@pytest.mark.parametrize("held", ["finished", "result", "running"])
def test_record_that_was_changed_never_runs_again(
    serve: Any, writer: tuple[Writer, Storage], held: str
) -> None:
    """
    Whatever bytes are put into a record: a refusal or one plain answer, and never a second run.
    """
    forger, storage = writer
    work = Work()
    work.before = HELD[held]
    client = serve(work, storage)
    client.send(key=KEY)
    client.stop_validating()
    original = forger.read("default")
    fields = RUNNING_FIELDS if held == "running" else FINISHED_FIELDS

    @PATIENT
    @given(st.data())
    def attack(data: Any) -> None:
        changed = dict(original)
        for field in data.draw(st.sets(st.sampled_from(fields), min_size=1, max_size=3)):
            changed[field.encode()] = mutate(data, original[field.encode()])
        forger.write("default", changed)
        assert_harmless(client.send(key=KEY))

    attack()
    assert work.runs == 1


@pytest.mark.redis
def test_field_that_was_removed_never_runs_again(
    serve: Any, writer: tuple[Writer, Storage]
) -> None:
    """
    A record that lacks a field is damaged, not new.
    """
    forger, storage = writer
    work = Work()
    client = serve(work, storage)
    client.send(key=KEY)
    original = forger.read("default")
    for field in original:
        forger.write("default", {name: original[name] for name in original if name != field})
        assert client.send(key=KEY).problem == "unreadable-record"
    assert work.runs == 1


@pytest.mark.redis
@pytest.mark.parametrize("part", ["record", "payload"])
def test_record_that_was_moved_answers_no_other_tenant(
    serve: Any, writer: tuple[Writer, Storage], part: str
) -> None:
    """
    A whole record is its tenant's wherever it lies; a sealed outcome alone opens in its place only.
    """
    forger, storage = writer
    work = Work()
    client = serve(
        work, storage, tenant=read_header("TENANT"), payload_codec=MaskingCodec("project")
    )
    client.send(key=KEY, headers=[("Test-Tenant", "alice")])
    work.reply = Reply(200, JSON, b"{}")
    client.send(key=KEY, headers=[("Test-Tenant", "mallory")])
    stolen = forger.read("alice")
    if part == "payload":
        stolen = {**forger.read("mallory"), b"p": stolen[b"p"]}
    forger.write("mallory", stolen)
    answer = client.send(key=KEY, headers=[("Test-Tenant", "mallory")])
    wanted = {"record": "key-reused", "payload": "unreadable-record"}[part]
    assert answer.problem == wanted
    assert b"17" not in answer.body
    assert work.runs == 2


@pytest.mark.redis
def test_sealed_record_that_was_changed_gives_no_other_answer(
    serve: Any, writer: tuple[Writer, Storage]
) -> None:
    """
    Of a sealed outcome every change is noticed: 503, and the work is not run again.
    """
    forger, storage = writer
    work = Work()
    client = serve(work, storage, payload_codec=MaskingCodec("project"))
    client.send(key=KEY)
    original = forger.read("default")

    @PATIENT
    @given(st.data())
    def attack(data: Any) -> None:
        changed = b"1s" + mutate(data, original[b"p"][2:])
        if changed == original[b"p"]:
            return
        forger.write("default", {**original, b"p": changed})
        assert client.send(key=KEY).problem == "unreadable-record"

    attack()
    assert work.runs == 1


@pytest.mark.redis
@pytest.mark.parametrize("required", [True, False])
def test_forged_answer_is_refused_where_sealing_is_required(
    serve: Any, writer: tuple[Writer, Storage], required: bool
) -> None:
    """
    A wellformed answer that a writer made up is given only as long as unsealed ones are read.
    """
    forger, storage = writer
    work = Work()
    client = serve(work, storage, payload_codec=MaskingCodec("project"), require_sealed=required)
    assert client.send(key=KEY).status == 201
    forged = {**forger.read("default"), b"p": b"1h200\nContent-Type: text/html\n\nforged"}
    forger.write("default", forged)
    answer = client.send(key=KEY)
    assert (answer.problem == "unreadable-record") == required
    assert (answer.body == b"forged") != required
    assert work.runs == 1


def test_operation_that_was_changed_is_refused(backend: Backend) -> None:
    """
    Data of an operation that somebody has written is read as JSON or refused, in any place.
    """
    with BackgroundOperationsManager(backend.storage, enable_background_cleanup=False) as manager:

        @PATIENT
        @given(st.integers(), st.binary(max_size=80))
        def attack(number: int, data: bytes) -> None:
            name = make_request().key + str(number)
            found = backend.storage.find_background(name)
            backend.storage.save_background(
                name,
                "tenant",
                dotmac_tasks.OperationStatus.PENDING,
                data,
                expected_revision=0 if found is None else found.revision,
                request_id=repr((number, data, found)),
                retention=None,
            )
            with pytest.raises(CorruptRecordError):
                manager.get_operation_status(name, "tenant")

        attack()
        assert manager.list_operations("tenant").operations == []
