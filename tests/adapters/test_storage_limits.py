"""
What a caller may leave in the storage: how many keys, how much, and under which names.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from dotmac_tasks.keys import derive_downstream_key, http_storage_key
from dotmac_tasks.reconciliation import AbandonedOperation, Verdict
from support.backends import Backend
from support.codecs import FailingCodec, MaskingCodec
from support.concurrency import Counter, run_together
from support.faulty import FaultyStorage
from support.http_clients import JSON, Call, HttpClient, Reply, Response

LIMIT = 3
SECRET = "a secret of more than thirty-two characters"


class Work:
    """
    A handler that answers how often it ran, and remembers the stored keys of what it deferred.
    """

    def __init__(self, **reply: Any) -> None:
        self._runs = Counter()
        self._reply = reply
        self.result: Any = None
        self.deferred: list[str] = []

    @property
    def runs(self) -> int:
        return self._runs.value

    def __call__(self, call: Call) -> Reply:
        run = self._runs.increment()
        if self.result == "defer":
            self.deferred.append(call.defer() or "")
        elif self.result is not None:
            call.set_result(self.result)
        return Reply(**{"body": b'{"run": %d}' % run, **self._reply})


def read_user(request: Any) -> str | None:
    user: str | None = getattr(request, "META", request).get("HTTP_TEST_USER")
    return user


def read_tenant(request: Any) -> str | None:
    tenant: str | None = getattr(request, "META", request).get("HTTP_TEST_TENANT")
    return tenant


def use_up(client: HttpClient, *headers: tuple[str, str]) -> None:
    """
    Send as many new keys as one caller may.
    """
    for number in range(LIMIT):
        assert client.send(key=f"k{number}", headers=headers).status == 200


def limited(serve: Any, handler: Any, storage: Any = None, **settings: Any) -> HttpClient:
    client: HttpClient = serve(
        handler, storage, max_keys_per_caller=LIMIT, principal=read_user, **settings
    )
    return client


# The quota


def test_caller_over_the_quota_is_refused_before_the_work(serve: Any, backend: Backend) -> None:
    """
    One key too many is answered with 429 and when to come back; the view does not run.
    """
    work = Work()
    client = limited(serve, work, backend.storage, quota_window=100)
    use_up(client)
    backend.age(60)
    answer = client.send(key="next")
    assert (answer.status, answer.problem) == (429, "quota-exceeded")
    assert 35 <= int(answer.get("Retry-After") or 0) <= 40
    assert answer.get("X-Idempotency-Key") == "next"
    assert answer.get("Cache-Control") == "no-store"
    assert work.runs == LIMIT
    assert backend.storage.get_stats().idempotency_keys == LIMIT
    assert client.manager.get_stats().keys_refused == 1
    backend.age(41)
    assert client.send(key="next").json() == {"run": LIMIT + 1}


def test_retries_are_answered_over_the_quota(serve: Any, backend: Backend) -> None:
    """
    Whoever is over the quota gets replays and 422 as before.
    """
    client = limited(serve, Work(), backend.storage)
    use_up(client)
    assert client.send(key="next").status == 429
    assert client.send(key="k0").is_replay
    assert client.send(key="k0", body=b"[2]").problem == "key-reused"


def test_request_without_a_key_has_no_quota(serve: Any) -> None:
    """
    What is not stored is not counted.
    """
    work = Work()
    client = limited(serve, work)
    for _ in range(LIMIT + 2):
        assert client.send().status == 200
    assert work.runs == LIMIT + 2


def test_users_and_tenants_are_counted_apart(serve: Any, backend: Backend) -> None:
    """
    What one user uses up is taken from no other, nor from the same name at another tenant.
    """
    client = limited(serve, Work(), backend.storage, tenant=read_tenant)
    use_up(client, ("Test-User", "alice"))
    assert client.send(key="x", headers=[("Test-User", "alice")]).status == 429
    use_up(client, ("Test-User", "bob"))
    use_up(client, ("Test-User", "alice"), ("Test-Tenant", "other"))
    use_up(client)


def test_made_up_credentials_share_one_quota(serve: Any, backend: Backend) -> None:
    """
    Tokens that nobody resolved do not multiply the quota of the anonymous.
    """
    client = limited(serve, Work(), backend.storage)
    answers = [
        client.send(key=KEY, headers=[("Authorization", f"Bearer {number}")]).status
        for number in range(LIMIT)
    ]
    assert answers == [200] * LIMIT
    assert client.send(key=KEY, headers=[("Authorization", "Bearer new")]).status == 429
    assert client.send(key=KEY).status == 429


def test_released_key_stays_counted(serve: Any) -> None:
    """
    A request that failed and is sent again counts twice: it ran twice.
    """
    work = Work(status=503)
    client = limited(serve, work)
    answers = [client.send(key=KEY).status for _ in range(LIMIT + 1)]
    assert answers == [503] * LIMIT + [429]
    assert work.runs == LIMIT


def test_crowd_runs_exactly_as_often_as_the_quota_says(serve: Any, backend: Backend) -> None:
    """
    Of many new keys at the same instant exactly as many run as the limit allows.
    """
    work = Work()
    client = limited(serve, work, backend.storage)
    numbers = itertools.count()
    answers: list[Any] = run_together(8, lambda: client.send(key=f"n{next(numbers)}").status)
    assert sorted(answers) == [200] * LIMIT + [429] * (8 - LIMIT)
    assert work.runs == LIMIT


def test_unprotected_work_is_not_counted(serve: Any, faulty: FaultyStorage) -> None:
    """
    While the storage is down nobody counts, and the work runs as the setting says.
    """
    work = Work()
    client = limited(serve, work, faulty)
    faulty.refuse("claim_operation", times=LIMIT + 1)
    for number in range(LIMIT + 1):
        assert client.send(key=f"k{number}").get("X-Idempotency-Status") == "unprotected"
    assert work.runs == LIMIT + 1


# Sizes

KEY = "5a1e2f"
CAP = 1000


def send_twice(client: HttpClient, **request: Any) -> tuple[Response, Response]:
    return client.send(key=KEY, **request), client.send(key=KEY, **request)


def assert_not_kept(work: Work, first: Response, second: Response) -> None:
    assert first.status == 200
    assert (second.status, second.problem) == (409, "not-replayable")
    assert work.runs == 1


def test_kept_headers_over_the_cap_are_not_kept(serve: Any, backend: Backend) -> None:
    """
    Headers that are too large together are sent and not kept; the work is not run again.
    """
    links = ("Link", "</" + "x" * 70_000 + ">")
    work = Work(headers=(*JSON, links))
    first, second = send_twice(serve(work, backend.storage))
    assert first.get("Link") == links[1]
    assert_not_kept(work, first, second)


def test_kept_headers_within_the_cap_are_kept(serve: Any) -> None:
    """
    A long header alone is no reason, nor does it count towards the body's cap.
    """
    work = Work(headers=(*JSON, ("Link", "</" + "x" * 60_000 + ">")))
    first, second = send_twice(serve(work, max_response_bytes=CAP))
    assert second.is_replay
    assert second.get("Link") == first.get("Link")


def test_header_that_is_not_kept_is_not_counted(serve: Any) -> None:
    """
    What a replay does not carry may be as large as it likes.
    """
    work = Work(headers=(*JSON, ("X-Debug", "x" * 70_000)))
    assert send_twice(serve(work))[1].is_replay


@pytest.mark.parametrize(("size", "kept"), [(CAP - 2, True), (CAP - 1, False)])
def test_result_over_the_cap_is_not_kept(
    serve: Any, backend: Backend, size: int, kept: bool
) -> None:
    """
    A result that is larger than a response may be leaves what such a response leaves.
    """
    work = Work()
    work.result = "x" * size  # and two quotes
    first, second = send_twice(serve(work, backend.storage, max_response_bytes=CAP))
    if kept:
        assert second.json() == work.result
    else:
        assert_not_kept(work, first, second)


@pytest.mark.parametrize("error", [None, "x" * 2 * CAP])
def test_result_of_a_worker_over_the_cap_is_not_kept(
    serve: Any, backend: Backend, error: str | None
) -> None:
    """
    What a worker reports is bounded alike: the operation is finished, and its outcome is not kept.
    """
    work = Work()
    work.result = "defer"
    client = serve(work, backend.storage, max_response_bytes=CAP)
    first = client.send(key=KEY)
    (stored,) = work.deferred
    assert client.manager.complete_idempotent_operation(stored, ["x" * CAP], error)
    assert_not_kept(work, first, client.send(key=KEY))
    record = client.manager.check_idempotency(stored)
    assert (record.result, record.error) == (None, None)


def test_long_ids_are_shortened_and_stay_apart(serve: Any, backend: Backend) -> None:
    """
    Of a tenant or a user of any length a bounded part is stored, and two never share a key.
    """
    work = Work()
    work.result = "defer"
    client = serve(work, backend.storage, tenant=read_tenant, principal=read_user)
    for end in "ab":
        long = "x" * 5_000 + end
        client.send(key=KEY, headers=[("Test-Tenant", long), ("Test-User", long)])
    assert work.runs == 2
    records = [client.manager.check_idempotency(key) for key in work.deferred]
    assert all(len(record.tenant_id) == len(record.user_id) == 255 for record in records)
    assert records[0].tenant_id != records[1].tenant_id


def test_long_path_is_cut(serve: Any, backend: Backend) -> None:
    """
    The kind of work that a record names is bounded, whatever path was asked for.
    """
    work = Work()
    work.result = "defer"
    client = serve(work, backend.storage)
    client.send(key=KEY, path="/" + "x" * 5_000)
    record = client.manager.check_idempotency(work.deferred[0])
    assert record.operation_type == ("POST /" + "x" * 5_000)[:200]


# The names of the records


def test_stored_key_depends_on_the_secret(serve: Any, backend: Backend) -> None:
    """
    With a secret nobody without it can compute the stored key of a client's key.
    """
    work = Work()
    work.result = "defer"
    client = serve(work, backend.storage, key_secret=SECRET)
    client.send(key="1")
    assert work.deferred == [http_storage_key("default", "", "1", SECRET)]
    assert backend.storage.find_operation(http_storage_key("default", "", "1")) is None
    assert client.send(key="1").status == 202


def test_request_cannot_be_guessed_either(serve: Any, backend: Backend) -> None:
    """
    With a secret the fingerprint of one request differs, and still tells requests apart.
    """
    work = Work()
    work.result = "defer"
    prints = []
    for secret in ("", SECRET, SECRET + "2"):
        client = serve(work, backend.storage, key_secret=secret)
        client.send(key="1")
        assert client.send(key="1", body=b"[2]").problem == "key-reused"
        record = backend.storage.find_operation(work.deferred[-1])
        assert record is not None
        prints.append(record.fingerprint)
    assert len(set(prints)) == 3


def test_new_secret_forgets_the_keys(serve: Any, backend: Backend) -> None:
    """
    After a change of the secret a retry is a new request.
    """
    work = Work()
    assert serve(work, backend.storage).send(key=KEY).json() == {"run": 1}
    assert serve(work, backend.storage, key_secret=SECRET).send(key=KEY).json() == {"run": 2}
    assert serve(work, backend.storage).send(key=KEY).is_replay


# What is stored is sealed


def test_sealed_response_is_replayed(serve: Any, backend: Backend) -> None:
    """
    A response goes through the codec and comes back byte for byte, with its headers.
    """
    work = Work(status=201, headers=(*JSON, ("Location", "/orders/1")))
    first, second = send_twice(serve(work, backend.storage, payload_codec=MaskingCodec()))
    assert second.is_replay
    assert (second.status, second.body) == (first.status, first.body)
    assert second.get("Location") == "/orders/1"
    stored = backend.storage.find_operation(http_storage_key("default", "", KEY))
    assert stored is not None
    assert stored.payload.startswith(b"1s")
    assert b"/orders/1" not in stored.payload


def test_response_from_before_the_codec_is_replayed(serve: Any, backend: Backend) -> None:
    """
    What was stored in the clear is still answered once a codec is set.
    """
    work = Work()
    serve(work, backend.storage).send(key=KEY)
    assert serve(work, backend.storage, payload_codec=MaskingCodec()).send(key=KEY).is_replay


def test_sealed_response_without_its_codec_is_refused(serve: Any, backend: Backend) -> None:
    """
    Without the codec a sealed answer is a record that cannot be read; the work is not run again.
    """
    work = Work()
    serve(work, backend.storage, payload_codec=MaskingCodec()).send(key=KEY)
    answer = serve(work, backend.storage).send(key=KEY)
    assert (answer.status, answer.problem) == (503, "unreadable-record")
    assert work.runs == 1


def test_response_that_cannot_be_sealed_is_not_kept(serve: Any, backend: Backend) -> None:
    """
    Where the codec fails the client has its answer, nothing readable is stored, nothing runs again.
    """
    work = Work()
    first, second = send_twice(serve(work, backend.storage, payload_codec=FailingCodec()))
    assert first.json() == {"run": 1}
    assert_not_kept(work, first, second)
    stored = backend.storage.find_operation(http_storage_key("default", "", KEY))
    assert stored is not None
    assert stored.payload == b"1tunsealable"


# Abandoned work that the project decides about


def abandon_and_retry(serve: Any, backend: Backend, decide: Any, **changes: Any) -> Response:
    """
    Leave a key to a dead executor, then send it again to a project that can find out.
    """
    work = Work()
    work.result = "defer"
    client = serve(work, backend.storage, on_abandoned="refuse", reconcile=decide, **changes)
    client.send(key=KEY)
    backend.age(4000)
    answer: Response = client.send(key=KEY)
    assert work.runs == 1
    return answer


@pytest.mark.parametrize("secret", ["", SECRET])
def test_reconciliation_knows_the_downstream_key(serve: Any, backend: Backend, secret: str) -> None:
    """
    Whoever asks another system about the work does so by the key that depends on no secret.
    """
    asked: list[str] = []

    def decide(abandoned: AbandonedOperation) -> Verdict:
        asked.append(abandoned.downstream_key("charge"))
        return abandoned.found({"paid": True})

    answer = abandon_and_retry(serve, backend, decide, key_secret=secret)
    assert answer.json() == {"paid": True}
    assert asked == [derive_downstream_key(http_storage_key("default", "", KEY), "charge")]


def test_result_that_was_found_out_is_bounded(serve: Any, backend: Backend) -> None:
    """
    A result that a callback found out is not kept either where it is too large.
    """

    def decide(abandoned: AbandonedOperation) -> Verdict:
        return abandoned.found("x" * CAP)

    answer = abandon_and_retry(serve, backend, decide, max_response_bytes=CAP)
    assert answer.problem == "not-replayable"


def test_operator_finds_the_key_under_the_secret(serve: Any, backend: Backend) -> None:
    """
    Whoever looks for a client's key finds its record, with and without a secret.
    """
    for secret in ("", SECRET):
        client = serve(Work(), backend.storage, key_secret=secret)
        client.send(key=KEY)
        stored = client.manager.find_stored_key("default", None, KEY)
        assert client.manager.check_idempotency(stored) is not None
