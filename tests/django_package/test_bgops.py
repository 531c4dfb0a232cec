from __future__ import annotations

import getpass
import io
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from django.core.management import CommandError, call_command

from dotmac_tasks.errors import CorruptRecordError, StorageUnavailableError
from dotmac_tasks.events import KeyDecided
from dotmac_tasks.keys import http_storage_key, key_hash
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import StorageHealth, StoredPage, UnreadableRecord
from dotmac_tasks.serialization import SEALED, encode_response, encode_tombstone
from dotmac_tasks.testing import EventRecorder, FakeClock
from dotmac_tasks_django import conf
from dotmac_tasks_django.console import keys
from support.backends import make_request
from support.codecs import MaskingCodec
from support.faulty import FaultyStorage

WHY = ("--reason", "the card was not charged", "--by", "Kim")


class Printed(NamedTuple):
    """
    What one call of the command gave back.
    """

    out: str
    err: str
    status: int
    refusal: str

    @property
    def document(self) -> Any:
        (line,) = self.out.splitlines()
        return json.loads(line)


class Desk:
    """
    A manager over a storage that can fail, and a terminal; one per test.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.storage = FaultyStorage(clock=self.clock)
        self.recorder = EventRecorder()
        self.manager = BackgroundOperationsManager(
            self.storage, clock=self.clock, hooks=[self.recorder], enable_background_cleanup=False
        )
        self.width: int | None = None

    def run(self, *arguments: str) -> Printed:
        out, err = Screen(self.width is not None), io.StringIO()
        try:
            call_command("bgops", *arguments, stdout=out, stderr=err)
        except CommandError as error:
            return Printed(out.getvalue(), err.getvalue(), error.returncode, str(error))
        return Printed(out.getvalue(), err.getvalue(), 0, "")

    def abandon(self, key: str = "k", **changes: Any) -> int:
        request = make_request(key=key, **{"lease": 10, "on_abandoned": "refuse", **changes})
        token = self.storage.claim_operation(request).fencing_token
        self.clock.advance(11)
        return token

    def finish(self, key: str, payload: bytes, *, failed: bool = False) -> None:
        request = make_request(key=key)
        token = self.storage.claim_operation(request).fencing_token
        self.storage.complete_operation(request, token, payload, failed=failed)

    def damage(self, key: str, *verbs: str) -> None:
        """
        Let the next call of each verb find that a record cannot be read.
        """
        for verb in verbs:
            self.storage.refuse(verb, error=CorruptRecordError("faulty", key, f"p:{key} is odd"))


class Screen(io.StringIO):
    """
    A terminal, or none.
    """

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    made = Desk()
    monkeypatch.setattr(conf._current, "manager", made.manager)
    monkeypatch.setattr(keys, "SystemClock", lambda: made.clock)
    monkeypatch.setenv("COLUMNS", "80")
    yield made
    made.manager.stop()


# The service


def test_health_is_shown(desk: Desk) -> None:
    """A healthy storage is shown with its details, for people and as one document."""
    printed = desk.run("health")
    assert printed.out.splitlines()[:2] == ["healthy      yes", "storage      faulty"]
    assert printed.status == 0
    document = desk.run("health", "--json").document
    assert document["healthy"] is True
    assert document["storage"]["backend"] == "faulty"
    assert "leases_held" not in document


def test_unhealthy_storage_ends_with_status_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe learns by the status that the storage does not work, and people by the warnings."""
    sick = StorageHealth(False, "faulty", 0.5, ("It is on fire.", "It is cold."), {"breaker": None})
    monkeypatch.setattr(desk.storage, "check_health", lambda: sick)
    printed = desk.run("health")
    assert printed.status == 1
    assert "unprotected" in printed.refusal
    lines = printed.out.splitlines()
    assert lines[0].split() == ["healthy", "NO"]
    assert [line.strip() for line in lines[-2:]] == ["warnings  It is on fire.", "It is cold."]
    printed = desk.run("health", "--json")
    assert (printed.status, printed.document["healthy"]) == (1, False)


def test_stats_count_what_is_stored(desk: Desk) -> None:
    """What the storage holds is counted; what this process has done is nothing and not shown."""
    desk.abandon()
    assert desk.run("stats").out == "idempotency keys  1\noperations        0\n"
    assert desk.run("stats", "--json").document == {"idempotency_keys": 1, "operations": 0}


def test_memory_is_told_to_be_empty(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over memory the command says that it looks at its own process, beside the document."""
    monkeypatch.setattr(FaultyStorage, "name", "memory")
    printed = desk.run("stats", "--json")
    assert "its own process" in printed.err
    assert printed.document["idempotency_keys"] == 0
    monkeypatch.undo()


# Listing


def test_list_is_a_table(desk: Desk) -> None:
    """Keys are listed in columns, those that wait for a decision first."""
    desk.abandon("dead", tenant_id="acme", operation_type="POST /orders/")
    desk.storage.claim_operation(make_request(key="running"))
    request = make_request(key="handed-on", ttl=3000)
    desk.storage.claim_operation(request)
    desk.storage.defer_operation(request, 100)
    desk.storage.ensure_operation(make_request(key="pending", ttl=2000))
    printed = desk.run("list")
    assert printed.out.splitlines() == [
        "KEY        STATE      CREATED   TENANT  TYPE",
        "dead       abandoned  11 s ago  acme    POST /orders/",
        "running    running    0 s ago   tenant  charge",
        "handed-on  deferred   0 s ago   tenant  charge",
        "pending    pending    0 s ago   tenant  charge",
        "4 keys.",
    ]


def test_list_is_one_document(desk: Desk) -> None:
    """As JSON each key has its facts and its state, and never its outcome."""
    desk.finish("k", b'1j"secret"')
    printed = desk.run("list", "--json")
    (key,) = printed.document["keys"]
    assert (key["key"], key["state"], key["outcome_size"]) == ("k", "completed", 10)
    assert key["key_hash"] == key_hash("k")
    assert "secret" not in printed.out
    assert (printed.document["unreadable"], printed.document["cursor"]) == ([], None)


def test_list_is_filtered(desk: Desk) -> None:
    """Tenant, status and state narrow a list down."""
    desk.abandon("dead", tenant_id="acme")
    desk.finish("done", b"1j1")
    desk.storage.claim_operation(make_request(key="alive"))

    def names(*options: str) -> list[str]:
        return [key["key"] for key in desk.run("list", "--json", *options).document["keys"]]

    assert names("--abandoned") == ["dead"]
    assert sorted(names("--status", "in_progress")) == ["alive", "dead"]
    assert names("--tenant", "acme") == ["dead"]
    assert names("--status", "completed", "--tenant", "acme") == []
    assert desk.run("list", "--status", "failed").out == "No keys.\n"


def test_list_goes_on_where_it_ended(desk: Desk) -> None:
    """A list that is cut says how to see the rest, and that works."""
    for number in range(3):
        desk.abandon(f"k{number}")
    printed = desk.run("list", "--limit", "2")
    summary = printed.out.splitlines()[-1]
    assert summary.startswith("2 keys. More follow: --cursor ")
    rest = desk.run("list", "--cursor", summary.split()[-1])
    assert [line.split()[0] for line in rest.out.splitlines()] == ["KEY", "k0", "1"]


def test_list_walks_on_until_there_are_enough(desk: Desk) -> None:
    """Pages that a filter empties do not end a list."""
    for number in range(5):
        desk.storage.claim_operation(make_request(key=f"alive-{number}", on_abandoned="refuse"))
    desk.abandon("dead", on_abandoned="rerun", ttl=9)
    for number in range(5):
        request = make_request(key=f"alive-{number}", on_abandoned="refuse")
        desk.storage.claim_operation(request)
    printed = desk.run("list", "--abandoned", "--limit", "1", "--json")
    assert [key["key"] for key in printed.document["keys"]] == ["dead"]


def test_unreadable_keys_are_listed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is in the list with the reason, and can be listed alone."""
    desk.abandon("dead")
    listed = desk.storage.list_operations
    bad = UnreadableRecord("bad", "p:idempo:bad is not of format 1")

    def list_operations(**options: Any) -> StoredPage:
        return listed(**options)._replace(unreadable=[bad])

    monkeypatch.setattr(desk.storage, "list_operations", list_operations)
    lines = desk.run("list").out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [
        ["dead", "abandoned"],
        ["bad", "unreadable"],
    ]
    assert lines[2].endswith("is not of format 1")
    assert "p:idempo" not in lines[2]
    document = desk.run("list", "--unreadable", "--json").document
    assert document["keys"] == []
    assert document["unreadable"] == [bad._asdict()]


def test_list_fits_the_terminal(desk: Desk) -> None:
    """On a terminal long columns are cut and the key never is; in a pipe nothing is."""
    key = "0123456789abcdef0123456789abcdef"
    desk.abandon(key, tenant_id="t" * 40, operation_type="o" * 40)
    desk.width = 80
    lines = desk.run("list").out.splitlines()
    assert max(map(len, lines)) == 80
    assert lines[1].startswith(f"{key}  abandoned  ")
    assert lines[1].count("…") == 2
    desk.width = None
    assert "o" * 40 in desk.run("list").out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_list_fits_a_terminal_without_unicode(desk: Desk, encoding: str) -> None:
    """What a client put into its path keeps nobody from looking, whatever the terminal can show."""
    desk.abandon("k" * 90, operation_type="POST /\N{PILE OF POO}")
    shown = io.BytesIO()
    with io.TextIOWrapper(shown, encoding=encoding, write_through=True) as out:
        call_command("bgops", "list", stdout=out)
        assert b"POST /\\U0001f4a9" in shown.getvalue()


def test_list_takes_over_no_terminal(desk: Desk) -> None:
    """What clients made up is shown without control characters, however little room there is."""
    desk.abandon("k" * 90, tenant_id="\x1b[2J", operation_type="a\nb\udce9")
    desk.width = 80
    printed = desk.run("list")
    assert "\x1b" not in printed.out
    assert len(printed.out.splitlines()) == 3
    desk.width = None
    assert "\\x1b[2J" in desk.run("list").out
    assert "a\\nb\\udce9" in desk.run("list").out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("everything",),
        ("list", "--limit", "0"),
        ("list", "--limit", "many"),
        ("list", "--cursor", "x"),
        ("list", "--status", "lost"),
        ("list", "--abandoned", "--status", "pending"),
        ("list", "--unreadable", "--tenant", "t"),
        ("show",),
        ("show", "k", "--client-key", "k"),
        ("show", "k", "--principal", "17"),
        ("show", "--client-key", "a,b"),
        ("show", "index"),
        ("release", "k"),
        ("release", "k", "--reason", " "),
        ("resolve", "k", *WHY),
        ("resolve", "k", "--result", "1", "--error", "no", *WHY),
        ("resolve", "k", "--result", "{charged}", *WHY),
        ("resolve", "k", "--result", "NaN", *WHY),
        ("resolve", "k", "--result", "[" * 100_000, *WHY),
        ("resolve", "k", "--result", "1", "--reason", ""),
    ],
)
def test_call_that_makes_no_sense_is_refused(desk: Desk, arguments: tuple[str, ...]) -> None:
    """A wrong call says what is wrong, prints nothing else and changes nothing."""
    desk.abandon()
    before = desk.storage.find_operation("k")
    printed = desk.run(*arguments)
    # A parser's own errors have the status 2 on a command line only.
    assert printed.status == (1 if printed.refusal.startswith("Error: ") else 2)
    assert printed.out == ""
    assert desk.storage.find_operation("k") == before


# Showing


def test_abandoned_key_is_shown_with_its_ways_out(desk: Desk) -> None:
    """What is abandoned is shown with both decisions, about the very claim that is seen."""
    token = desk.abandon(user_id="17")
    text = desk.run("show", "k").out
    assert f"in the log   {key_hash('k')}\n" in text
    assert "state        abandoned\n" in text
    assert "user         17\n" in text
    assert "expires      not before its outcome is known\n" in text
    assert "until somebody decides" in text
    assert "  bgops resolve k --result JSON \\\n      --reason WHY\n" in text
    assert f"  bgops release k --token {token} \\\n      --reason WHY\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_every_state_is_shown_with_what_comes_next(desk: Desk) -> None:
    """Each state says what happens by itself, and what a person can do."""
    desk.storage.claim_operation(make_request(key="running", lease=100_000))
    request = make_request(key="deferred", user_id="")
    desk.storage.claim_operation(request)
    desk.storage.defer_operation(request, 500_000)
    desk.storage.ensure_operation(make_request(key="two words"))
    desk.abandon("rerun", on_abandoned="rerun")
    desk.finish("done", b"1j1")
    running = desk.run("show", "running").out
    assert "Wait until it ends" in running
    assert "in 27 h" in running
    deferred = desk.run("show", "deferred").out
    assert "to report by  " in deferred
    assert "in 5 days" in deferred
    assert "bgops resolve deferred" in deferred
    assert "user          none\n" in deferred
    pending = desk.run("show", "two words").out
    assert "bgops release 'two words' --token 0" in pending
    assert "The next retry runs the work again." in desk.run("show", "rerun").out
    done = desk.run("show", "done").out
    assert "  result, 3 bytes\n" in done
    assert "--finished" in done


def test_key_is_found_by_what_the_client_sent(desk: Desk) -> None:
    """Tenant, principal and the client's key lead to the record; without them to another."""
    stored = http_storage_key("acme", "user:17", "8e03")
    desk.abandon(stored, tenant_id="acme")
    asked = ("--client-key", "8e03", "--principal", "17")
    document = desk.run("show", "--json", "--tenant", "acme", *asked).document
    assert (document["key"], document["state"]) == (stored, "abandoned")
    printed = desk.run("show", *asked)
    assert (printed.status, printed.out) == (1, "")
    assert "check --tenant and --principal" in printed.refusal
    anonymous = http_storage_key("default", "", "8e03")
    assert desk.run("show", "--json", "--client-key", "8e03").document["key"] == anonymous


def test_absent_key_is_told(desk: Desk) -> None:
    """What is not there, or is another tenant's, ends with status 1 and says so."""
    desk.abandon()
    for arguments in (("nothing",), ("k", "--tenant", "other")):
        printed = desk.run("show", *arguments, "--json")
        assert (printed.status, printed.document["outcome"]) == (1, "absent")
    assert "for this tenant" in desk.run("show", "k", "--tenant", "other").refusal
    assert desk.run("show", "k", "--tenant", "tenant").status == 0


def test_outcome_is_shown_only_if_asked(desk: Desk) -> None:
    """A body is nowhere unless `--body` asks for it, and then as it was recorded."""
    response = encode_response(201, [("Content-Type", "text/plain")], b"se\x1bcret\n")
    outcomes = {
        "response": (response, "201\nContent-Type: text/plain\n\nse\\x1bcret"),
        "binary": (encode_response(200, [], b"\xff"), "200\n\n/w=="),
        "result": (b'1j{"a":"secret"}', '{\n  "a": "secret"\n}'),
        "failure": (b"1esecret", "secret"),
        "lost": (encode_tombstone("too-large"), "too-large"),
    }
    for key, (payload, shown) in outcomes.items():
        desk.finish(key, payload, failed=key == "failure")
        for options in ((), ("--json",)):
            assert "secret" not in desk.run("show", key, *options).out
        printed = desk.run("show", key, "--body")
        assert printed.out.rstrip("\n").endswith(f"\n\n{shown}")

    def read(key: str) -> Any:
        return desk.run("show", key, "--body", "--json").document["outcome"]

    assert read("response")["body"] == "se\x1bcret\n"
    assert read("binary") == {"status": 200, "headers": [], "body_base64": "/w=="}
    assert read("result") == {"result": {"a": "secret"}}
    assert read("failure")["error"] == "secret"
    assert read("lost")["not_kept_reason"] == "too-large"
    lost = desk.run("show", "lost").out
    assert "its response was not kept (too-large)" in lost
    assert "retries get 409 not-replayable" in lost
    assert "response 201, " in desk.run("show", "response").out
    desk.abandon()
    assert "outcome" not in desk.run("show", "k", "--body", "--json").document


def test_unreadable_record_is_shown(desk: Desk) -> None:
    """What cannot be read is shown with the reason and the way to remove it."""
    desk.damage("k", "find_operation", "find_operation")
    printed = desk.run("show", "k")
    assert printed.status == 0
    assert "reason      is odd\n" in printed.out
    assert "bgops release k --unreadable" in printed.out
    assert f"in the log  {key_hash('k')}\n" in printed.out
    assert "upgrade this one" in printed.out
    desk.damage("k", "find_operation", "find_operation")
    assert desk.run("show", "k", "--json").document["state"] == "unreadable"


@pytest.mark.parametrize(
    ("codec", "flag"), [(None, "--finished"), (MaskingCodec("new"), "--unreadable")]
)
def test_sealed_outcome_that_nobody_can_open_is_shown(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, codec: MaskingCodec | None, flag: str
) -> None:
    """Where the key of a sealed outcome is gone, the first advice is to give it back."""
    desk.finish("k", SEALED + MaskingCodec("old").encode(b"payload", "idempo:k"))
    manager = BackgroundOperationsManager(
        desk.storage, clock=desk.clock, payload_codec=codec, enable_background_cleanup=False
    )
    monkeypatch.setattr(conf._current, "manager", manager)
    printed = desk.run("show", "k")
    assert "give it\nback to PAYLOAD_CODEC" in printed.out
    assert "upgrade" not in printed.out
    assert f"bgops release k {flag}" in printed.out
    assert max(map(len, printed.out.splitlines())) <= 80


def test_unreadable_outcome_is_shown(desk: Desk) -> None:
    """Where the outcome alone is damaged, the way out is that of a finished one."""
    desk.finish("k", b"9?")
    printed = desk.run("show", "k")
    assert "unknown kind" in printed.out
    assert "bgops release k --finished" in printed.out
    assert desk.run("release", "k", "--finished", *WHY).status == 0


# Deciding


def test_release_frees_the_key(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A release says what comes next, leaves who and why in the log, and tells the hooks."""
    token = desk.abandon()
    printed = desk.run("release", "k", "--token", str(token), *WHY)
    assert printed.out == (
        "Released. The next request under this key runs the work.\nTo check: bgops show k\n"
    )
    assert desk.storage.find_operation("k") is None
    assert caplog.messages == ["A key was released by Kim: the card was not charged"]
    assert [event.by for event in desk.recorder.of_type(KeyDecided)] == ["Kim"]
    printed = desk.run("release", "k", "--json", *WHY)
    assert (printed.status, printed.document["outcome"]) == (1, "absent")


def test_refused_release_says_what_to_do(desk: Desk) -> None:
    """Each refusal names the reason and the next step, and is a document as well."""
    desk.abandon("again")
    desk.storage.claim_operation(make_request(key="running", lease=100))
    request = make_request(key="deferred")
    desk.storage.claim_operation(request)
    desk.storage.defer_operation(request, 100_000)
    desk.finish("done", b"1j1")
    expected = {
        "running": ("running", "An executor holds it until 20"),
        "deferred": ("running", "handed on to a worker"),
        "done": ("finished", "bgops show done --body"),
        "again": ("changed", "Look again: bgops show again"),
    }
    for key, (outcome, words) in expected.items():
        options = ("--token", "99") if key == "again" else ()
        printed = desk.run("release", key, *options, *WHY)
        assert (printed.status, printed.out) == (1, "")
        assert words in printed.refusal
        printed = desk.run("release", key, "--json", *options, *WHY)
        assert (printed.status, printed.document["outcome"]) == (1, outcome)
        assert printed.document["message"] == printed.refusal
    assert desk.run("release", "done", "--finished", *WHY).status == 0


def test_executor_that_ends_meanwhile_is_told(desk: Desk) -> None:
    """A key that is free again by the time the refusal is explained is looked at again."""
    desk.storage.claim_operation(make_request())

    def free(verb: str) -> None:
        if desk.storage.calls[-1:] == ["discard_operation"]:
            desk.storage.before = lambda verb: None
            desk.storage.release_operation("k", "a")

    desk.storage.before = free
    printed = desk.run("release", "k", *WHY)
    assert "has ended by now" in printed.refusal


def test_unreadable_record_is_released_only_if_asked(desk: Desk) -> None:
    """What cannot be read stays, with the way to remove it; with that it goes."""
    desk.abandon()
    desk.damage("k", "find_operation", "find_operation")
    printed = desk.run("release", "k", *WHY)
    assert (printed.status, printed.refusal) == (1, "Nothing was changed.")
    assert "--unreadable" in printed.out
    desk.damage("k", "find_operation")
    assert desk.run("release", "k", "--unreadable", *WHY).status == 0


def test_resolve_records_what_came_of_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result, from the line or from standard input, or an error is what retries get."""
    for key in ("line", "input", "error"):
        desk.abandon(key)
    assert desk.run("resolve", "line", "--result", '{"charged": true}', *WHY).status == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 2]\n"))
    assert desk.run("resolve", "input", "--result", "-", *WHY).status == 0
    printed = desk.run("resolve", "error", "--error", "not charged", "--json", *WHY)
    assert printed.document["outcome"] == "done"
    seen = [desk.manager.check_idempotency(key) for key in ("line", "input", "error")]
    assert [key and key.result for key in seen] == [{"charged": True}, [1, 2], None]
    assert [key and key.error for key in seen] == [None, None, "not charged"]


def test_refused_resolution_says_what_to_do(desk: Desk) -> None:
    """What is finished, running, unknown or unreadable is not resolved, and says why."""
    desk.finish("done", b"1j1")
    desk.storage.claim_operation(make_request(key="running"))
    for key, outcome in (("done", "finished"), ("running", "running"), ("none", "absent")):
        printed = desk.run("resolve", key, "--result", "1", "--json", *WHY)
        assert (printed.status, printed.document["outcome"]) == (1, outcome)
    desk.damage("k", "find_operation", "find_operation")
    printed = desk.run("resolve", "k", "--result", "1", *WHY)
    assert (printed.status, printed.refusal) == (1, "Nothing was changed.")


def test_user_of_the_system_decides(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without `--by` the system's user is named, or the number where there is no name."""
    monkeypatch.setattr(getpass, "getuser", lambda: "alex")
    desk.abandon("a")
    desk.run("release", "a", "--reason", "why")

    def fail() -> str:
        raise KeyError("no name")

    monkeypatch.setattr(getpass, "getuser", fail)
    desk.abandon("b")
    desk.run("release", "b", "--reason", "why")
    assert caplog.messages[0] == "A key was released by alex: why"
    assert caplog.messages[1].startswith("A key was released by uid ")


def test_failing_storage_is_told(desk: Desk) -> None:
    """If the storage fails, the command ends with status 1, and the document says why."""
    desk.storage.refuse("find_operation", 2, StorageUnavailableError("faulty", "switched off"))
    printed = desk.run("show", "k", "--json")
    assert (printed.status, printed.document["error"]["type"]) == (1, "StorageUnavailableError")
    printed = desk.run("show", "k")
    assert (printed.out, printed.status) == ("", 1)
    assert "switched off" in printed.refusal
