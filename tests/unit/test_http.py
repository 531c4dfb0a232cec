"""
The decisions of `dotmac_tasks.http`, without any framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from dotmac_tasks.errors import ClaimLostError, ConfigurationError, IdempotencyError
from dotmac_tasks.events import StorageUnprotected
from dotmac_tasks.fingerprint import body_digest, selected_digest
from dotmac_tasks.http import (
    PROBLEM_PREFIX,
    Answer,
    HttpIdempotency,
    Run,
    ViewOptions,
    check_options,
    principal_scope,
)
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import ClaimOutcome, ClaimReply, ClaimRequest
from dotmac_tasks.testing import EventRecorder, FakeClock
from support.faulty import FaultyStorage


class Request:
    """
    A request as an adapter describes it; used by one thread.
    """

    def __init__(self, key: str | None = "k", body: bytes = b"{}", **facts: Any) -> None:
        self.method: str = facts.get("method", "POST")
        self.path: str = facts.get("path", "/orders")
        self.query = ""
        self.content_type = "application/json"
        self.asked: list[str] = []
        self._key = key
        self._body = body
        self._scope = facts.get("scope", ("default", ""))

    def key_header(self) -> str | None:
        return self._key

    def scope(self) -> tuple[str, str]:
        self.asked.append("scope")
        return self._scope  # type: ignore[no-any-return]

    def body_digest(self, selector: Callable[[Any], Any] | None) -> bytes:
        self.asked.append("body")
        if selector is not None:
            return selected_digest(selector(self))
        return body_digest(self.content_type, self._body)


@pytest.fixture
def faulty(clock: FakeClock) -> FaultyStorage:
    """
    A storage whose clock the test moves.
    """
    return FaultyStorage(clock=clock)


@pytest.fixture
def recorder() -> EventRecorder:
    """
    What the hooks were told.
    """
    return EventRecorder()


@pytest.fixture
def manager(
    faulty: FaultyStorage, clock: FakeClock, recorder: EventRecorder
) -> Iterator[BackgroundOperationsManager]:
    """
    A manager with hooks over that storage.
    """
    with BackgroundOperationsManager(
        faulty, clock=clock, hooks=[recorder], enable_background_cleanup=False
    ) as opened:
        yield opened
        assert opened.heartbeat.held_count == 0


@pytest.fixture
def http(manager: BackgroundOperationsManager) -> HttpIdempotency:
    """
    What decides.
    """
    return manager.http


def run(http: HttpIdempotency, options: ViewOptions | None = None, **facts: Any) -> Run:
    decision = http.begin(Request(**facts), options)
    assert isinstance(decision, Run), decision
    return decision


def answer(http: HttpIdempotency, options: ViewOptions | None = None, **facts: Any) -> Answer:
    decision = http.begin(Request(**facts), options)
    assert isinstance(decision, Answer), decision
    return decision


def problem(reply: Answer) -> bytes:
    assert (("Content-Type", "application/problem+json")) in reply.headers
    assert (("Cache-Control", "no-store")) in reply.headers
    return reply.body.partition(PROBLEM_PREFIX.encode())[2].partition(b'"')[0]


# What is looked at


def test_covers_asks_method_and_path(http: HttpIdempotency) -> None:
    """
    Covered are the methods of the settings, but for exempt paths.
    """
    assert http.covers("POST", "/orders")
    assert not http.covers("GET", "/orders")
    assert not http.covers("post", "/orders")
    assert not http.covers("POST", "/health/live")


def test_request_without_key_is_asked_for_nothing_else(http: HttpIdempotency) -> None:
    """
    Without a key neither the scope nor the body is looked at, also where one is required.
    """
    request = Request(key=None)
    assert http.begin(request) is None
    assert isinstance(http.begin(request, ViewOptions(required=True)), Answer)
    assert isinstance(http.begin(Request(key="")), Answer)
    assert request.asked == []


def test_request_with_key_costs_one_storage_call(
    http: HttpIdempotency, faulty: FaultyStorage
) -> None:
    """
    One call claims, one records, one replays.
    """
    run(http).finish(200, [], b"")
    answer(http)
    assert faulty.calls == ["claim_operation", "complete_operation", "claim_operation"]


# Options of a view


def test_required_key_of_a_view(http: HttpIdempotency) -> None:
    """
    A view can require the key that the project leaves optional.
    """
    assert http.begin(Request(key=None), ViewOptions(required=False)) is None
    assert problem(answer(http, ViewOptions(required=True), key=None)) == b"missing-key"


def test_options_made_anew_are_not_kept_for_ever(http: HttpIdempotency) -> None:
    """
    Options that are made for each request fill no memory, and count all the same.
    """
    for _ in range(3_000):
        assert http.begin(Request(key=None), ViewOptions(required=False)) is None
    assert len(http._resolved) <= 1_000
    assert problem(answer(http, ViewOptions(required=True), key=None)) == b"missing-key"


def test_retention_of_a_view(http: HttpIdempotency, clock: FakeClock) -> None:
    """
    A view's retention counts for its outcomes.
    """
    options = ViewOptions(ttl=timedelta(minutes=1))
    run(http, options).finish(200, [], b"")
    clock.advance(59)
    assert answer(http, options).status == 200
    clock.advance(2)
    run(http, options).fail()


def test_lease_and_abandoned_policy_of_a_view(http: HttpIdempotency, clock: FakeClock) -> None:
    """
    A view's lease ends when it says, and its policy decides what then happens.
    """
    options = ViewOptions(lease=5, on_abandoned="refuse")
    run(http, options).abandon()
    clock.advance(4)
    assert answer(http, options).status == 202
    clock.advance(2)
    assert problem(answer(http, options)) == b"outcome-unknown"


def test_answer_to_duplicates_of_a_view(http: HttpIdempotency, clock: FakeClock) -> None:
    """
    A view chooses what duplicates get, and how long they wait.
    """
    first = run(http)
    assert answer(http, ViewOptions(in_progress="conflict")).status == 409
    assert clock.sleeps == []
    assert answer(http, ViewOptions(in_progress="wait", wait=3)).status == 409
    assert sum(clock.sleeps) == pytest.approx(3)
    assert answer(http, ViewOptions(wait=3)).status == 202
    first.fail()


def test_waiting_duplicate_never_runs_unprotected(
    http: HttpIdempotency, faulty: FaultyStorage
) -> None:
    """
    A duplicate that has seen the first one run is a conflict, though the storage fails meanwhile.
    """
    first = run(http)

    def fail_while_waiting(verb: str) -> None:
        if faulty.calls.count("claim_operation") == 2:
            faulty.refuse("claim_operation", 1000)

    faulty.before = fail_while_waiting
    assert answer(http, ViewOptions(in_progress="wait", wait=3)).status == 409
    first.fail()


def test_storage_error_policy_of_a_view(http: HttpIdempotency, faulty: FaultyStorage) -> None:
    """
    A view can insist on protection that the project does without.
    """
    faulty.refuse("claim_operation", 9)
    strict = answer(http, ViewOptions(on_storage_error="reject"))
    assert problem(strict) == b"storage-unavailable"
    assert not run(http, ViewOptions(on_storage_error="proceed")).protected


def test_fingerprint_of_a_view(http: HttpIdempotency) -> None:
    """
    A view's selector replaces the body in the fingerprint; without it the body counts.
    """
    options = ViewOptions(fingerprint=lambda request: {"path": request.path})
    run(http, options, key="a", body=b"[1]").finish(200, [], b"")
    assert answer(http, options, key="a", body=b"[2]").status == 200
    run(http, key="b", body=b"[1]").finish(200, [], b"")
    assert answer(http, key="b", body=b"[2]").status == 422


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"required": 1}, "REQUIRED"),
        ({"ttl": 0}, "TTL"),
        ({"ttl": "60"}, "TTL"),
        ({"lease": -1}, "LEASE"),
        ({"lease": True}, "LEASE"),
        ({"wait": float("nan")}, "WAIT"),
        ({"in_progress": "queue"}, "IN_PROGRESS"),
        ({"on_storage_error": "ignore"}, "ON_STORAGE_ERROR"),
        ({"on_abandoned": "retry"}, "ON_ABANDONED"),
        ({"fingerprint": "amount"}, "FINGERPRINT"),
        ({"reconcile": "ask"}, "RECONCILE"),
        ({"lease": 61, "ttl": 60}, "LEASE"),
    ],
    ids=str,
)
def test_bad_option_is_refused(options: dict[str, Any], name: str) -> None:
    """
    An option that cannot work is refused where it is written, by its own name.
    """
    with pytest.raises(ConfigurationError) as caught:
        ViewOptions(**options)
    assert caught.value.option == name


def test_lease_longer_than_the_retention_is_refused(
    http: HttpIdempotency, manager: BackgroundOperationsManager
) -> None:
    """
    A combination with the project's settings that cannot work is refused before the view runs.
    """
    with pytest.raises(ConfigurationError, match="retention"):
        http.begin(Request(), ViewOptions(ttl=manager.config.lease - 1))


def test_options_can_be_checked_beforehand(manager: BackgroundOperationsManager) -> None:
    """
    What would be refused in a request can be found at start, and nothing else is.
    """
    check_options(manager.config, ViewOptions(lease=manager.config.default_idempotency_ttl))
    with pytest.raises(ConfigurationError, match="retention"):
        check_options(manager.config, ViewOptions(lease=manager.config.default_idempotency_ttl + 1))


# Scopes


@pytest.mark.parametrize(
    ("user", "credentials", "scope"),
    [
        ("alice", "Bearer x", "user:alice"),
        (0, None, "user:0"),
        (None, None, ""),
        ("", "", ""),
    ],
)
def test_principal_scope_prefers_the_user(
    user: object, credentials: str | None, scope: str
) -> None:
    """
    A resolved user is the principal whatever the credentials; nobody is the empty text.
    """
    assert principal_scope(user, credentials) == scope


def test_principal_scope_hides_credentials() -> None:
    """
    Unresolved credentials count by their digest, and never look like a user.
    """
    one, two = principal_scope(None, "Bearer \udc80"), principal_scope("", "Bearer 2")
    assert one != two
    assert one.startswith("credentials:")
    assert "Bearer" not in one + two


def test_record_of_another_tenant_looks_reused(
    http: HttpIdempotency, monkeypatch: pytest.MonkeyPatch, faulty: FaultyStorage
) -> None:
    """
    A stored key that another tenant holds is answered like a key for another request.
    """
    replies = iter([ClaimReply(ClaimOutcome.FOREIGN), ClaimReply(ClaimOutcome.MISMATCH)])

    def claim(request: ClaimRequest) -> ClaimReply:
        return next(replies)

    monkeypatch.setattr(faulty, "claim_operation", claim)
    assert answer(http) == answer(http)


def test_operation_type_is_method_and_path(
    http: HttpIdempotency, manager: BackgroundOperationsManager
) -> None:
    """
    What kind of work a record stands for is its method and path, of bounded length.
    """
    first = run(http, path="/" + "x" * 5000, scope=("tenant", "user:7"))
    record = manager.check_idempotency(first.storage_key)
    assert record is not None
    assert record.operation_type == "POST /" + "x" * 194
    assert (record.tenant_id, record.user_id) == ("tenant", "7")
    first.fail()


# Answers


@pytest.mark.parametrize(("lease", "seconds"), [(0.5, "1"), (3, "3"), (30, "5")])
def test_retry_after_is_soon(http: HttpIdempotency, lease: float, seconds: str) -> None:
    """
    A duplicate is told to come back within the lease, at least in a second and never late.
    """
    options = ViewOptions(lease=lease)
    first = run(http, options)
    assert ("Retry-After", seconds) in answer(http, options).headers
    first.fail()


def test_unexpected_replay_headers_cannot_be_configured(faulty: FaultyStorage) -> None:
    """
    Cookies, challenges, CORS and lengths stay out of replays whatever the settings say.
    """
    names = ["Set-Cookie", "WWW-Authenticate", "Access-Control-Max-Age", "Content-Length", "X-A"]
    with BackgroundOperationsManager(faulty, replay_headers=names) as manager:
        run(manager.http).finish(200, [(name, "1") for name in names], b"")
        replay = answer(manager.http)
    assert [header for header in replay.headers if header[0] in names] == [("X-A", "1")]


def test_headers_that_belong_to_the_body_are_replayed(http: HttpIdempotency) -> None:
    """
    What protects or describes a body goes with it; what belongs to one exchange does not.
    """
    headers = [
        ("Content-Security-Policy", "script-src 'nonce-1'"),
        ("x-frame-options", "DENY"),
        ("Retry-After", "5"),
    ]
    personal = [("Date", "today"), ("Server", "x"), ("X-Request-Id", "1"), ("Age", "3")]
    run(http).finish(202, [*headers, *personal], b"")
    assert answer(http).headers[: len(headers) + 1] == [*headers, ("X-Cache-Hit", "true")]


# Runs


def test_long_run_keeps_its_claim(
    http: HttpIdempotency, manager: BackgroundOperationsManager, clock: FakeClock
) -> None:
    """
    Work that outlasts its lease in a healthy process is not run a second time.
    """
    first = run(http)
    for _ in range(3):
        clock.advance(20)
        manager.heartbeat.beat()
    assert answer(http).status == 202
    first.finish(200, [], b"done")
    assert answer(http).body == b"done"


@pytest.mark.parametrize(
    "end",
    [
        lambda it: it.finish(200, [], b"other"),
        lambda it: it.finish_unkept("stream"),
        lambda it: it.fail(),
        lambda it: it.abandon(),
    ],
    ids=["finish", "unkept", "fail", "abandon"],
)
@pytest.mark.parametrize("kind", ["plain", "result", "deferred"])
def test_first_end_counts(
    http: HttpIdempotency, faulty: FaultyStorage, end: Callable[[Run], None], kind: str
) -> None:
    """
    A run that has ended is not changed by a second end.
    """
    first = run(http)
    if kind == "result":
        first.set_result("kept")
    if kind == "deferred":
        first.defer(60)
    first.finish(200, [], b"kept")
    calls = list(faulty.calls)
    end(first)
    assert faulty.calls == calls


def test_header_that_cannot_be_stored_leaves_a_tombstone(http: HttpIdempotency) -> None:
    """
    A response that cannot be encoded is not kept, and its work is not run again.
    """
    broken: Any = [("Location", b"/bytes")]
    run(http).finish(201, broken, b"")
    assert problem(answer(http)) == b"not-replayable"


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_response_that_cannot_be_encoded_is_held_by_nobody(
    http: HttpIdempotency, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """
    Whatever breaks while a response is encoded, the work is not repeated and renewal stops.
    """

    def encode(*args: object) -> bytes:
        raise error

    monkeypatch.setattr("dotmac_tasks.http.keeping.encode_response", encode)
    first = run(http)
    if error is MemoryError:
        first.finish(200, [], b"")
        assert problem(answer(http)) == b"not-replayable"
    else:
        with pytest.raises(error):
            first.finish(200, [], b"")
        first.abandon()
        assert answer(http).status == 202


@pytest.mark.parametrize("directive", ["no", "yes", "60", "maybe", "-1", "9" * 400, "\u0665"])
def test_directive_counts_until_the_next_one(http: HttpIdempotency, directive: str) -> None:
    """
    A later response without a directive takes an earlier one back.
    """
    first = run(http)
    first.follow(directive)
    first.follow(None)
    first.finish(200, [], b"")
    assert answer(http).status == 200
    second = run(http, key="other")
    second.follow(directive)
    second.follow(None)
    second.finish(503, [], b"")
    run(http, key="other").fail()


def test_directive_releases_a_stream(http: HttpIdempotency) -> None:
    """
    A stream that says no is run again by the next retry.
    """
    first = run(http)
    first.follow(" No ")
    first.finish_unkept("stream")
    run(http).fail()


def test_ended_run_cannot_be_deferred(http: HttpIdempotency) -> None:
    """
    Handing on comes too late behind the end, and is not blamed on another executor.
    """
    first = run(http)
    assert not first.ended
    first.finish(200, [], b"")
    assert first.ended
    with pytest.raises(IdempotencyError, match="has ended") as caught:
        first.defer(60)
    assert not isinstance(caught.value, ClaimLostError)
    assert answer(http).status == 200


def test_deferring_for_no_time_is_refused_without_a_storage(
    http: HttpIdempotency, faulty: FaultyStorage
) -> None:
    """
    A worker without time is a mistake, also while the request runs unprotected.
    """
    faulty.refuse("claim_operation")
    first = run(http)
    assert not first.protected
    with pytest.raises(ConfigurationError, match="TIMEOUT"):
        first.defer(0)
    assert first.defer(1) == first.storage_key


def test_deferred_run_survives_a_refusing_status(
    http: HttpIdempotency, manager: BackgroundOperationsManager
) -> None:
    """
    Work that was handed on stays so when the view answers with a 4xx.
    """
    first = run(http)
    key = first.defer(60)
    first.finish(409, [], b"")
    assert manager.complete_idempotent_operation(key, "done")
    assert answer(http).body == b'"done"'


def test_hooks_learn_of_unprotected_work(
    http: HttpIdempotency,
    manager: BackgroundOperationsManager,
    faulty: FaultyStorage,
    recorder: EventRecorder,
) -> None:
    """
    Work that a retry would not recognise is an event with the hashed key; other work is none.
    """
    first = run(http, key="a")
    first.defer(60)
    first.finish(202, [], b"")
    assert manager.events.flush(10)
    assert recorder.of_type(StorageUnprotected) == []
    faulty.refuse("claim_operation", 9)
    run(http, key="b").finish(200, [], b"")
    faulty.heal()
    faulty.lose_reply("defer_operation")
    second = run(http, key="c")
    second.defer(60)
    second.finish(202, [], b"")
    assert manager.events.flush(10)
    events = recorder.of_type(StorageUnprotected)
    assert [event.error for event in events] == ["StorageUnavailableError", "StorageTimeoutError"]
    assert all(len(event.key_hash) == 12 for event in events)


def test_doubtful_run_gives_its_claim_back(http: HttpIdempotency, faulty: FaultyStorage) -> None:
    """
    Work that ran after a lost reply and failed releases what may have been claimed.
    """
    faulty.lose_reply("claim_operation", 9)
    first = run(http)
    faulty.heal()
    assert not first.protected
    assert answer(http).status == 202
    first.fail()
    run(http).abandon()


def test_unprotected_run_without_hooks_is_quiet(faulty: FaultyStorage) -> None:
    """
    Without hooks an unprotected run costs no event, and without a claim it ends without a call.
    """
    faulty.refuse("claim_operation", 9)
    with BackgroundOperationsManager(faulty) as manager:
        run(manager.http).abandon()
        run(manager.http).finish_unkept("stream")
    assert faulty.calls == ["claim_operation", "claim_operation"]
