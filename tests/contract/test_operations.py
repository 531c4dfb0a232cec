from __future__ import annotations

import pytest

from dotmac_tasks.models import (
    ClaimOutcome,
    ClaimReply,
    Lease,
    LeaseKind,
    OperationStatus,
    SettleOutcome,
    WriteOutcome,
)
from dotmac_tasks.storage import Storage
from support.backends import Backend, make_request

PAYLOAD = b'1j{"answer":42}'


def complete(storage: Storage, *, key: str = "k", owner: str = "a", failed: bool = False) -> None:
    """
    Claim a key and record an outcome for it.
    """
    request = make_request(key=key, owner=owner)
    token = storage.claim_operation(request).fencing_token
    done = storage.complete_operation(request, token, PAYLOAD, failed=failed)
    assert done is WriteOutcome.DONE


def defer(storage: Storage, *, seconds: float = 60, ttl: float = 3600) -> None:
    """
    Claim the key "k" as owner "a" and leave it for anybody to settle.
    """
    request = make_request(owner="a", ttl=ttl)
    storage.claim_operation(request)
    assert storage.defer_operation(request, seconds) is WriteOutcome.DONE


class TestClaim:
    def test_absent_key_is_claimed(self, storage: Storage) -> None:
        """A claim of an absent key gets it, with a positive fencing token."""
        reply = storage.claim_operation(make_request())
        assert reply.outcome is ClaimOutcome.CLAIMED
        assert reply.fencing_token >= 1

    def test_claimed_record_holds_what_was_asked(self, storage: Storage) -> None:
        """A claimed record shows the request it was made from and a lease that ends first."""
        reply = storage.claim_operation(make_request(ttl=100, lease=30))
        record = storage.find_operation("k")
        assert record is not None
        assert record == (
            "k",
            "tenant",
            "user",
            "charge",
            OperationStatus.IN_PROGRESS,
            "fingerprint",
            record.created_ms,
            record.expires_ms,
            reply.fencing_token,
            record.lease_ms,
            b"",
            0,
            False,
            False,
        )
        assert record.lease_ms == pytest.approx(record.created_ms + 30_000, abs=50)
        assert record.expires_ms == pytest.approx(record.lease_ms + 100_000, abs=50)

    def test_refused_rerun_never_expires(self, backend: Backend) -> None:
        """A claim whose policy is `refuse` has no expiry and is there long after its lease."""
        storage = backend.storage
        storage.claim_operation(make_request(on_abandoned="refuse", ttl=100, lease=30))
        backend.age(100_000)
        record = storage.find_operation("k")
        assert record is not None
        assert record.expires_ms is None

    def test_abandoned_rerun_expires(self, backend: Backend) -> None:
        """A claim that may be run again is gone after its lease and its retention."""
        storage = backend.storage
        storage.claim_operation(make_request(ttl=100, lease=30))
        backend.age(129)
        assert storage.find_operation("k") is not None
        backend.age(2)
        assert storage.find_operation("k") is None

    def test_same_owner_gets_the_same_answer(self, storage: Storage) -> None:
        """A claim that is sent again answers as it did the first time."""
        first = storage.claim_operation(make_request())
        assert storage.claim_operation(make_request()) == first

    def test_same_owner_gets_the_same_answer_after_its_lease(self, backend: Backend) -> None:
        """A claim sent again after its lease, untaken, keeps its token and is live again."""
        first = backend.storage.claim_operation(make_request(lease=10))
        backend.age(11)
        again = backend.storage.claim_operation(make_request(lease=10))
        assert (again.outcome, again.fencing_token) == (first.outcome, first.fencing_token)
        other = backend.storage.claim_operation(make_request(owner="b"))
        assert other.outcome is ClaimOutcome.IN_PROGRESS

    def test_same_owner_gets_the_same_answer_to_a_takeover(self, backend: Backend) -> None:
        """A takeover that is sent again is reported as a takeover again."""
        backend.storage.claim_operation(make_request(owner="a", lease=10))
        backend.age(11)
        first = backend.storage.claim_operation(make_request(owner="b"))
        assert first.outcome is ClaimOutcome.TAKEN_OVER
        assert backend.storage.claim_operation(make_request(owner="b")) == first

    def test_live_lease_is_in_progress(self, backend: Backend) -> None:
        """Another owner's claim meets a live lease and learns how long it still runs."""
        storage = backend.storage
        first = storage.claim_operation(make_request(owner="a", lease=30))
        backend.age(10)
        reply = storage.claim_operation(make_request(owner="b", lease=30))
        assert reply.outcome is ClaimOutcome.IN_PROGRESS
        assert reply.fencing_token == 0
        assert reply.payload == b""
        assert 10 < reply.remaining <= 20
        assert first.remaining == 0

    def test_live_lease_is_left_alone(self, storage: Storage) -> None:
        """A refused claim changes nothing of the record that it met."""
        storage.claim_operation(make_request(owner="a"))
        before = storage.find_operation("k")
        storage.claim_operation(make_request(owner="b", user_id="other", ttl=5, lease=5))
        assert storage.find_operation("k") == before

    def test_ended_lease_is_taken_over(self, backend: Backend) -> None:
        """A claim after the lease takes the key over with a larger fencing token."""
        storage = backend.storage
        first = storage.claim_operation(make_request(owner="a", lease=10))
        backend.age(11)
        second = storage.claim_operation(make_request(owner="b", lease=10))
        assert second.outcome is ClaimOutcome.TAKEN_OVER
        assert second.fencing_token > first.fencing_token
        third = storage.claim_operation(make_request(owner="c"))
        assert third.outcome is ClaimOutcome.IN_PROGRESS

    @pytest.mark.parametrize("offset", [None, -1, 1])
    def test_ended_lease_is_not_taken_over_if_refused(
        self, backend: Backend, offset: int | None
    ) -> None:
        """A claim after the lease of a `refuse` claim is told of it, and changes nothing."""
        storage = backend.storage
        token = storage.claim_operation(
            make_request(owner="a", lease=10, on_abandoned="refuse")
        ).fencing_token
        backend.age(11)
        before = storage.find_operation("k")
        takeover = 0 if offset is None else token + offset
        request = make_request(owner="b", on_abandoned="rerun")._replace(takeover=takeover)
        reply = storage.claim_operation(request)
        assert (reply.outcome, reply.fencing_token) == (ClaimOutcome.UNRESOLVED, token)
        assert storage.find_operation("k") == before

    def test_named_claim_is_taken_over_though_refused(self, backend: Backend) -> None:
        """Whoever names the token of the abandoned claim takes over, and again if it asks again."""
        storage = backend.storage
        storage.claim_operation(make_request(owner="a", lease=10, on_abandoned="refuse"))
        backend.age(11)
        token = storage.claim_operation(make_request(owner="b")).fencing_token
        request = make_request(owner="b", on_abandoned="refuse")._replace(takeover=token)
        reply = storage.claim_operation(request)
        assert reply.outcome is ClaimOutcome.TAKEN_OVER
        assert reply.fencing_token > token
        assert storage.claim_operation(request) == reply

    def test_named_claim_that_lives_is_not_taken_over(self, storage: Storage) -> None:
        """Naming the token of a claim whose lease runs takes nothing from it."""
        token = storage.claim_operation(
            make_request(owner="a", on_abandoned="refuse")
        ).fencing_token
        request = make_request(owner="b")._replace(takeover=token)
        assert storage.claim_operation(request).outcome is ClaimOutcome.IN_PROGRESS

    def test_policy_is_the_stored_one(self, backend: Backend) -> None:
        """A claimant that would refuse takes over what was claimed with `rerun`."""
        storage = backend.storage
        storage.claim_operation(make_request(owner="a", lease=10))
        backend.age(11)
        reply = storage.claim_operation(make_request(owner="b", on_abandoned="refuse"))
        assert reply.outcome is ClaimOutcome.TAKEN_OVER

    def test_takeover_brings_its_own_policy(self, backend: Backend) -> None:
        """After a takeover the policy of the new claim counts."""
        storage = backend.storage
        storage.claim_operation(make_request(owner="a", lease=10))
        backend.age(11)
        storage.claim_operation(make_request(owner="b", lease=10, on_abandoned="refuse"))
        backend.age(11)
        reply = storage.claim_operation(make_request(owner="c"))
        assert reply.outcome is ClaimOutcome.UNRESOLVED

    @pytest.mark.parametrize("failed", [False, True])
    def test_finished_key_is_replayed(self, storage: Storage, failed: bool) -> None:
        """A claim of a finished key gets the outcome, and never a token."""
        complete(storage, failed=failed)
        for owner in ("a", "b"):
            reply = storage.claim_operation(make_request(owner=owner))
            assert reply == ClaimReply(ClaimOutcome.FINISHED, 0, PAYLOAD)

    def test_replay_does_not_prolong_the_retention(self, backend: Backend) -> None:
        """A client that replays often does not keep the record beyond its retention."""
        complete(backend.storage)
        backend.age(3000)
        backend.storage.claim_operation(make_request(owner="b"))
        backend.age(601)
        assert backend.storage.find_operation("k") is None

    def test_pending_key_is_claimed(self, backend: Backend) -> None:
        """A pending record is claimed and keeps its creation time, its user and its type."""
        storage = backend.storage
        pending = storage.ensure_operation(make_request())
        backend.age(10)
        created_ms = storage.ensure_operation(make_request()).created_ms
        reply = storage.claim_operation(make_request(user_id="other", operation_type="other"))
        assert reply.outcome is ClaimOutcome.CLAIMED
        record = storage.find_operation("k")
        assert record is not None
        assert record.created_ms == created_ms
        assert (record.user_id, record.operation_type) == (pending.user_id, pending.operation_type)

    def test_expired_key_is_claimed_anew(self, backend: Backend) -> None:
        """A claim of an expired key is a claim of an absent one, even for another request."""
        storage = backend.storage
        complete(storage)
        old = storage.find_operation("k")
        assert old is not None
        backend.age(3601)
        request = make_request(owner="b", tenant_id="other", fingerprint="other")
        reply = storage.claim_operation(request)
        assert reply.outcome is ClaimOutcome.CLAIMED
        assert reply.fencing_token > old.fencing_token
        record = storage.find_operation("k")
        assert record is not None
        assert (record.tenant_id, record.fingerprint, record.payload) == ("other", "other", b"")

    def test_fencing_tokens_grow(self, storage: Storage) -> None:
        """Each claim's fencing token is larger than any before, whatever the key and the fate."""
        tokens = []
        for number in range(5):
            request = make_request(key=f"k{number}", owner="a")
            tokens.append(storage.claim_operation(request).fencing_token)
            storage.release_operation(f"k{number}", "a")
        tokens.append(storage.claim_operation(make_request(key="k0")).fencing_token)
        assert tokens == sorted(set(tokens))


class TestIsolation:
    @pytest.mark.parametrize("state", ["pending", "in_progress", "abandoned", "finished"])
    def test_foreign_tenant_learns_nothing(self, backend: Backend, state: str) -> None:
        """Another tenant's claim is answered FOREIGN in every state and changes nothing."""
        bring_into(backend, state)
        before = backend.storage.find_operation("k")
        for fingerprint in ("fingerprint", "other"):
            request = make_request(owner="b", tenant_id="intruder", fingerprint=fingerprint)
            assert backend.storage.claim_operation(request) == ClaimReply(ClaimOutcome.FOREIGN)
        assert backend.storage.find_operation("k") == before

    @pytest.mark.parametrize("state", ["pending", "in_progress", "abandoned", "finished"])
    def test_other_request_is_refused(self, backend: Backend, state: str) -> None:
        """Another fingerprint is answered MISMATCH in every state and changes nothing."""
        bring_into(backend, state)
        before = backend.storage.find_operation("k")
        request = make_request(owner="b", fingerprint="other")
        assert backend.storage.claim_operation(request) == ClaimReply(ClaimOutcome.MISMATCH)
        assert backend.storage.find_operation("k") == before

    @pytest.mark.parametrize("state", ["pending", "in_progress", "abandoned", "finished"])
    def test_same_request_is_served(self, backend: Backend, state: str) -> None:
        """The same tenant with the same fingerprint is neither foreign nor a mismatch."""
        bring_into(backend, state)
        outcome = backend.storage.claim_operation(make_request(owner="b")).outcome
        assert outcome not in (ClaimOutcome.FOREIGN, ClaimOutcome.MISMATCH)

    def test_same_owner_with_other_request_is_refused(self, storage: Storage) -> None:
        """The fingerprint is compared before the owner is recognised."""
        storage.claim_operation(make_request())
        reply = storage.claim_operation(make_request(fingerprint="other"))
        assert reply.outcome is ClaimOutcome.MISMATCH

    def test_record_without_fingerprint_takes_the_callers(self, storage: Storage) -> None:
        """A record made pending without a fingerprint is bound by the first claim of it."""
        storage.ensure_operation(make_request(fingerprint=""))
        assert storage.claim_operation(make_request()).outcome is ClaimOutcome.CLAIMED
        record = storage.find_operation("k")
        assert record is not None
        assert record.fingerprint == "fingerprint"
        reply = storage.claim_operation(make_request(owner="b", fingerprint="other"))
        assert reply.outcome is ClaimOutcome.MISMATCH

    def test_keys_are_apart(self, storage: Storage) -> None:
        """Keys that resemble each other are different records."""
        keys = ["k", "K", "k ", "k:1", "k{1}", "ké", "k%3A1"]
        replies = [storage.claim_operation(make_request(key=key)) for key in keys]
        assert [reply.outcome for reply in replies] == [ClaimOutcome.CLAIMED] * len(keys)


def bring_into(backend: Backend, state: str) -> None:
    """
    Make the key "k" pending, in progress, abandoned or finished.
    """
    if state == "pending":
        backend.storage.ensure_operation(make_request())
    elif state == "finished":
        complete(backend.storage)
    else:
        backend.storage.claim_operation(make_request(lease=10))
        backend.age(11 if state == "abandoned" else 0)


class TestEnsure:
    def test_absent_record_is_created_pending(self, storage: Storage) -> None:
        """An absent record is created pending, unclaimed, and expires after its retention."""
        record = storage.ensure_operation(make_request(ttl=100))
        assert record.status is OperationStatus.PENDING
        assert (record.fencing_token, record.lease_ms, record.payload) == (0, 0, b"")
        assert record.expires_ms == pytest.approx(record.created_ms + 100_000, abs=50)
        assert storage.find_operation("k") == record

    def test_pending_record_stays_as_it_is(self, storage: Storage) -> None:
        """Asking again returns the same record, whatever is asked the second time."""
        first = storage.ensure_operation(make_request())
        again = storage.ensure_operation(
            make_request(user_id="other", operation_type="other", fingerprint="other", ttl=5)
        )
        assert again == first

    def test_finished_record_stays_as_it_is(self, storage: Storage) -> None:
        """A finished operation is never reset."""
        complete(storage)
        assert storage.ensure_operation(make_request()) == storage.find_operation("k")
        assert storage.ensure_operation(make_request()).payload == PAYLOAD

    def test_running_record_stays_as_it_is(self, storage: Storage) -> None:
        """An operation in progress keeps its claim."""
        storage.claim_operation(make_request(owner="a"))
        record = storage.ensure_operation(make_request(owner="b"))
        assert record.status is OperationStatus.IN_PROGRESS
        assert storage.release_operation("k", "a") is WriteOutcome.DONE

    def test_foreign_record_is_returned(self, storage: Storage) -> None:
        """Another tenant's record is returned with its tenant, for the caller to compare."""
        storage.ensure_operation(make_request())
        assert storage.ensure_operation(make_request(tenant_id="other")).tenant_id == "tenant"

    def test_policy_and_owner_of_the_request_are_not_used(self, backend: Backend) -> None:
        """A pending record expires even where its maker's policy is `refuse`, and has no owner."""
        storage = backend.storage
        storage.ensure_operation(make_request(owner="a", on_abandoned="refuse", ttl=100))
        assert storage.release_operation("k", "a") is WriteOutcome.LOST
        backend.age(101)
        assert storage.find_operation("k") is None

    def test_expired_record_is_created_anew(self, backend: Backend) -> None:
        """An expired record counts as absent."""
        complete(backend.storage)
        backend.age(3601)
        record = backend.storage.ensure_operation(make_request())
        assert record.status is OperationStatus.PENDING


class TestFind:
    def test_absent_record_is_none(self, storage: Storage) -> None:
        """What is not there is None."""
        assert storage.find_operation("k") is None

    def test_record_is_found_by_another_instance(self, backend: Backend) -> None:
        """What one instance wrote, another one over the same storage reads."""
        backend.storage.claim_operation(make_request())
        assert backend.reopen().find_operation("k") == backend.storage.find_operation("k")


class TestComplete:
    @pytest.mark.parametrize("failed", [False, True])
    def test_owner_completes(self, storage: Storage, failed: bool) -> None:
        """The owner's outcome is recorded and nothing else of the record is lost."""
        request = make_request(ttl=100)
        reply = storage.claim_operation(request)
        before = storage.find_operation("k")
        outcome = storage.complete_operation(request, reply.fencing_token, PAYLOAD, failed=failed)
        record = storage.find_operation("k")
        assert outcome is WriteOutcome.DONE
        assert before is not None
        assert record is not None
        status = OperationStatus.FAILED if failed else OperationStatus.COMPLETED
        assert record == before._replace(
            status=status,
            payload=PAYLOAD,
            payload_size=len(PAYLOAD),
            lease_ms=0,
            expires_ms=record.expires_ms,
        )
        assert record.expires_ms == pytest.approx(record.created_ms + 100_000, abs=500)

    def test_retention_counts_from_completion(self, backend: Backend) -> None:
        """The retention starts when the outcome is recorded, not when the key was claimed."""
        storage = backend.storage
        request = make_request(ttl=100, lease=60)
        token = storage.claim_operation(request).fencing_token
        backend.age(50)
        storage.complete_operation(request, token, PAYLOAD, failed=False)
        backend.age(98)
        assert storage.find_operation("k") is not None
        backend.age(3)
        assert storage.find_operation("k") is None

    def test_completed_refuse_claim_expires(self, backend: Backend) -> None:
        """A claim that never expires does so once its outcome is recorded."""
        storage = backend.storage
        request = make_request(ttl=100, on_abandoned="refuse")
        token = storage.claim_operation(request).fencing_token
        storage.complete_operation(request, token, PAYLOAD, failed=False)
        backend.age(101)
        assert storage.find_operation("k") is None

    def test_completion_after_the_lease_counts(self, backend: Backend) -> None:
        """An owner whose lease is over, and whose key nobody took, still completes."""
        request = make_request(lease=10)
        token = backend.storage.claim_operation(request).fencing_token
        backend.age(11)
        done = backend.storage.complete_operation(request, token, PAYLOAD, failed=False)
        assert done is WriteOutcome.DONE

    def test_completion_sent_again_keeps_the_first_outcome(self, storage: Storage) -> None:
        """A second completion by the owner is answered DONE and writes nothing."""
        complete(storage)
        before = storage.find_operation("k")
        again = storage.complete_operation(make_request(owner="a"), 1, b"other", failed=True)
        assert again is WriteOutcome.DONE
        assert storage.find_operation("k") == before

    def test_loser_of_a_running_claim_is_refused(self, backend: Backend) -> None:
        """An owner that was taken over can record nothing while the new one runs."""
        storage = backend.storage
        old = make_request(owner="a", lease=10)
        token = storage.claim_operation(old).fencing_token
        backend.age(11)
        new = make_request(owner="b")
        new_token = storage.claim_operation(new).fencing_token
        before = storage.find_operation("k")
        lost = storage.complete_operation(old, token, b"late", failed=False)
        assert lost is WriteOutcome.LOST
        assert storage.find_operation("k") == before
        done = storage.complete_operation(new, new_token, PAYLOAD, failed=False)
        assert done is WriteOutcome.DONE

    def test_late_finisher_cannot_overwrite(self, backend: Backend) -> None:
        """An owner that was taken over cannot replace the second one's outcome."""
        storage = backend.storage
        old = make_request(owner="a", lease=10)
        token = storage.claim_operation(old).fencing_token
        backend.age(11)
        complete(storage, owner="b")
        before = storage.find_operation("k")
        lost = storage.complete_operation(old, token, b"late", failed=False)
        assert lost is WriteOutcome.LOST
        assert storage.find_operation("k") == before

    def test_pending_record_is_not_completed(self, storage: Storage) -> None:
        """A record that nobody claimed is not completed by a claim's token."""
        before = storage.ensure_operation(make_request())
        lost = storage.complete_operation(make_request(), 1, PAYLOAD, failed=False)
        assert lost is WriteOutcome.LOST
        assert storage.find_operation("k") == before

    def test_settled_record_is_finished_by_somebody_else(self, backend: Backend) -> None:
        """An owner is refused after somebody settled what it had abandoned."""
        storage = backend.storage
        request = make_request(lease=10)
        token = storage.claim_operation(request).fencing_token
        backend.age(11)
        storage.settle_operation("k", b"decided", failed=False)
        lost = storage.complete_operation(request, token, PAYLOAD, failed=False)
        assert lost is WriteOutcome.LOST
        record = storage.find_operation("k")
        assert record is not None
        assert record.payload == b"decided"

    @pytest.mark.parametrize("failed", [False, True])
    def test_absent_record_is_written_whole(self, storage: Storage, failed: bool) -> None:
        """A completion that finds no record writes a complete one, fingerprint included."""
        request = make_request(ttl=100)
        outcome = storage.complete_operation(request, 7, PAYLOAD, failed=failed)
        assert outcome is WriteOutcome.DONE
        record = storage.find_operation("k")
        assert record is not None
        status = OperationStatus.FAILED if failed else OperationStatus.COMPLETED
        assert record == (
            "k",
            "tenant",
            "user",
            "charge",
            status,
            "fingerprint",
            record.created_ms,
            record.expires_ms,
            7,
            0,
            PAYLOAD,
            len(PAYLOAD),
            False,
            False,
        )
        assert record.expires_ms == pytest.approx(record.created_ms + 100_000, abs=50)

    def test_absent_record_is_compared_afterwards(self, storage: Storage) -> None:
        """What was written whole replays to the same request and is refused to another."""
        storage.complete_operation(make_request(), 7, PAYLOAD, failed=False)
        same = storage.claim_operation(make_request(owner="b"))
        other = storage.claim_operation(make_request(owner="b", fingerprint="other"))
        foreign = storage.claim_operation(make_request(owner="b", tenant_id="other"))
        assert same.outcome is ClaimOutcome.FINISHED
        assert other.outcome is ClaimOutcome.MISMATCH
        assert foreign.outcome is ClaimOutcome.FOREIGN

    def test_absent_record_raises_the_counter(self, storage: Storage) -> None:
        """After a completion with a token of its own the counter goes on above that token."""
        storage.complete_operation(make_request(key="lost"), 1000, PAYLOAD, failed=False)
        assert storage.claim_operation(make_request()).fencing_token > 1000

    def test_absent_record_never_lowers_the_counter(self, storage: Storage) -> None:
        """A completion with a small token does not set the counter back."""
        storage.complete_operation(make_request(key="lost"), 1000, PAYLOAD, failed=False)
        storage.complete_operation(make_request(key="old"), 3, PAYLOAD, failed=False)
        assert storage.claim_operation(make_request()).fencing_token > 1000

    def test_expired_record_is_written_whole(self, backend: Backend) -> None:
        """A completion after everything expired is recorded, for nobody claimed in between."""
        storage = backend.storage
        request = make_request(ttl=10, lease=10)
        token = storage.claim_operation(request).fencing_token
        backend.age(21)
        done = storage.complete_operation(request, token, PAYLOAD, failed=False)
        assert done is WriteOutcome.DONE
        record = storage.find_operation("k")
        assert record is not None
        assert (record.payload, record.fingerprint) == (PAYLOAD, "fingerprint")

    @pytest.mark.parametrize(
        "payload", [b"", b"0", b"null", b'""', bytes(range(256)), b"\x00" * 3, b"x" * 200_000]
    )
    def test_payload_comes_back_unchanged(self, storage: Storage, payload: bytes) -> None:
        """Payloads are opaque: empty, binary and large ones come back byte for byte."""
        request = make_request()
        token = storage.claim_operation(request).fencing_token
        storage.complete_operation(request, token, payload, failed=False)
        assert storage.claim_operation(make_request(owner="b")).payload == payload
        record = storage.find_operation("k")
        assert record is not None
        assert record.payload == payload


class TestRelease:
    def test_owner_releases(self, storage: Storage) -> None:
        """A released key is absent, and the next claim is a first one."""
        storage.claim_operation(make_request(owner="a"))
        assert storage.release_operation("k", "a") is WriteOutcome.DONE
        assert storage.find_operation("k") is None
        reply = storage.claim_operation(make_request(owner="b", fingerprint="other"))
        assert reply.outcome is ClaimOutcome.CLAIMED

    def test_owner_releases_after_its_lease(self, backend: Backend) -> None:
        """An owner whose lease is over, and whose key nobody took, still releases."""
        backend.storage.claim_operation(make_request(owner="a", lease=10))
        backend.age(11)
        assert backend.storage.release_operation("k", "a") is WriteOutcome.DONE
        assert backend.storage.find_operation("k") is None

    def test_loser_cannot_release(self, backend: Backend) -> None:
        """An owner that was taken over leaves its successor's claim alone."""
        storage = backend.storage
        storage.claim_operation(make_request(owner="a", lease=10))
        backend.age(11)
        storage.claim_operation(make_request(owner="b"))
        before = storage.find_operation("k")
        assert storage.release_operation("k", "a") is WriteOutcome.LOST
        assert storage.find_operation("k") == before

    def test_absent_key_counts_as_released(self, storage: Storage) -> None:
        """A release that is sent again finds nothing and is answered DONE."""
        storage.claim_operation(make_request(owner="a"))
        answers = [storage.release_operation("k", "a") for _ in range(2)]
        assert answers == [WriteOutcome.DONE, WriteOutcome.DONE]

    def test_expired_key_counts_as_released(self, backend: Backend) -> None:
        """An expired record is as good as absent."""
        complete(backend.storage)
        backend.age(3601)
        assert backend.storage.release_operation("k", "b") is WriteOutcome.DONE

    @pytest.mark.parametrize("state", ["pending", "finished"])
    def test_what_is_not_claimed_is_not_released(self, backend: Backend, state: str) -> None:
        """A pending or finished record is not removed, not even by its executor."""
        bring_into(backend, state)
        before = backend.storage.find_operation("k")
        assert backend.storage.release_operation("k", "a") is WriteOutcome.LOST
        assert backend.storage.release_operation("k", "b") is WriteOutcome.LOST
        assert backend.storage.find_operation("k") == before


class TestDefer:
    def test_deferred_record_stays_in_progress(self, backend: Backend) -> None:
        """A deferred record is in progress until its time is over, whatever the claim's lease."""
        defer(backend.storage, seconds=600)
        backend.age(590)
        record = backend.storage.find_operation("k")
        assert record is not None
        assert record.status is OperationStatus.IN_PROGRESS
        reply = backend.storage.claim_operation(make_request(owner="b"))
        assert reply.outcome is ClaimOutcome.IN_PROGRESS
        assert 0 < reply.remaining <= 10

    def test_deferred_record_is_abandoned_after_its_time(self, backend: Backend) -> None:
        """Past its time a deferred record is taken over like any abandoned one."""
        defer(backend.storage, seconds=600)
        backend.age(601)
        reply = backend.storage.claim_operation(make_request(owner="b"))
        assert reply.outcome is ClaimOutcome.TAKEN_OVER

    def test_taken_over_record_is_no_longer_deferred(self, backend: Backend) -> None:
        """After a takeover nobody settles under the new executor's hands."""
        defer(backend.storage, seconds=600)
        backend.age(601)
        backend.storage.claim_operation(make_request(owner="b"))
        settled = backend.storage.settle_operation("k", PAYLOAD, failed=False)
        assert settled is SettleOutcome.RUNNING

    def test_deferred_refuse_claim_is_unresolved_after_its_time(self, backend: Backend) -> None:
        """Past its time a deferred claim with the policy `refuse` waits for a decision."""
        request = make_request(owner="a", on_abandoned="refuse")
        backend.storage.claim_operation(request)
        backend.storage.defer_operation(request, 600)
        backend.age(601)
        reply = backend.storage.claim_operation(make_request(owner="b"))
        assert reply.outcome is ClaimOutcome.UNRESOLVED

    def test_deferred_record_expires_after_its_time_and_retention(self, backend: Backend) -> None:
        """A deferred record that nobody settles vanishes one retention after its time."""
        defer(backend.storage, seconds=600, ttl=100)
        backend.age(699)
        assert backend.storage.find_operation("k") is not None
        backend.age(2)
        assert backend.storage.find_operation("k") is None

    def test_anybody_settles_at_once(self, storage: Storage) -> None:
        """A deferred record counts as having no live executor."""
        defer(storage)
        settled = storage.settle_operation("k", PAYLOAD, failed=False)
        assert settled is SettleOutcome.DONE
        assert storage.claim_operation(make_request(owner="b")).payload == PAYLOAD

    def test_owner_may_still_release(self, storage: Storage) -> None:
        """The owner of a deferred claim may give it back."""
        defer(storage)
        assert storage.release_operation("k", "a") is WriteOutcome.DONE
        assert storage.find_operation("k") is None

    def test_owner_may_still_complete(self, storage: Storage) -> None:
        """The owner of a deferred claim may record its outcome."""
        defer(storage)
        done = storage.complete_operation(make_request(owner="a"), 1, PAYLOAD, failed=False)
        assert done is WriteOutcome.DONE
        assert storage.settle_operation("k", b"late", failed=False) is SettleOutcome.FINISHED

    def test_owner_may_defer_again(self, storage: Storage) -> None:
        """A command that is sent again is answered DONE."""
        defer(storage)
        assert storage.defer_operation(make_request(owner="a"), 60) is WriteOutcome.DONE

    def test_claim_sent_again_does_not_undo_a_deferral(self, storage: Storage) -> None:
        """A late duplicate of the claim is answered and leaves the record deferred."""
        first = storage.claim_operation(make_request(owner="a"))
        storage.defer_operation(make_request(owner="a"), 600)
        before = storage.find_operation("k")
        assert storage.claim_operation(make_request(owner="a")) == first
        assert storage.find_operation("k") == before
        assert storage.settle_operation("k", PAYLOAD, failed=False) is SettleOutcome.DONE

    def test_deferred_takeover_is_answered_like_any_deferred_claim(self, backend: Backend) -> None:
        """Of a deferred claim nobody remembers whether it was taken over."""
        backend.storage.claim_operation(make_request(owner="dead"))
        backend.age(31)
        defer(backend.storage)
        reply = backend.storage.claim_operation(make_request(owner="a"))
        assert reply.outcome is ClaimOutcome.CLAIMED

    def test_deferring_what_was_settled_is_done(self, storage: Storage) -> None:
        """A fast worker that settled between two sendings keeps its outcome."""
        defer(storage)
        storage.settle_operation("k", PAYLOAD, failed=False)
        before = storage.find_operation("k")
        assert storage.defer_operation(make_request(owner="a"), 60) is WriteOutcome.DONE
        assert storage.find_operation("k") == before

    def test_settled_meanwhile_is_not_completed(self, storage: Storage) -> None:
        """The owner cannot replace the outcome that somebody settled."""
        defer(storage)
        storage.settle_operation("k", PAYLOAD, failed=False)
        lost = storage.complete_operation(make_request(owner="a"), 1, b"late", failed=False)
        assert lost is WriteOutcome.LOST
        assert storage.claim_operation(make_request(owner="b")).payload == PAYLOAD

    def test_settled_meanwhile_is_not_released(self, storage: Storage) -> None:
        """The owner cannot remove the outcome that somebody settled."""
        defer(storage)
        storage.settle_operation("k", PAYLOAD, failed=False)
        assert storage.release_operation("k", "a") is WriteOutcome.LOST

    def test_absent_record_is_written_whole(self, storage: Storage) -> None:
        """Deferring what is absent writes a record that anybody may settle."""
        assert storage.defer_operation(make_request(), 60) is WriteOutcome.DONE
        record = storage.find_operation("k")
        assert record is not None
        assert record.status is OperationStatus.IN_PROGRESS
        assert (record.tenant_id, record.user_id, record.operation_type, record.fingerprint) == (
            "tenant",
            "user",
            "charge",
            "fingerprint",
        )
        assert record.lease_ms == pytest.approx(record.created_ms + 60_000, abs=50)
        assert storage.settle_operation("k", PAYLOAD, failed=False) is SettleOutcome.DONE

    def test_loser_cannot_defer(self, backend: Backend) -> None:
        """An owner that was taken over leaves its successor's claim alone."""
        storage = backend.storage
        old = make_request(owner="a", lease=10)
        storage.claim_operation(old)
        backend.age(11)
        storage.claim_operation(make_request(owner="b"))
        before = storage.find_operation("k")
        assert storage.defer_operation(old, 60) is WriteOutcome.LOST
        assert storage.find_operation("k") == before

    def test_pending_record_is_not_deferred(self, storage: Storage) -> None:
        """A record that nobody claimed is not deferred by a claim's token."""
        before = storage.ensure_operation(make_request())
        assert storage.defer_operation(make_request(), 60) is WriteOutcome.LOST
        assert storage.find_operation("k") == before

    def test_deferred_claim_is_not_renewed(self, backend: Backend) -> None:
        """A heartbeat that still renews is told that the claim is no longer its own."""
        defer(backend.storage, seconds=60)
        before = backend.storage.find_operation("k")
        lease = Lease(LeaseKind.OPERATION, "k", "a", 600)
        assert backend.storage.renew_leases([lease]) == [False]
        assert backend.storage.find_operation("k") == before


class TestSettle:
    @pytest.mark.parametrize("failed", [False, True])
    def test_pending_record_is_settled(self, storage: Storage, failed: bool) -> None:
        """Anybody records the outcome of what nobody claimed; the record keeps the rest."""
        before = storage.ensure_operation(make_request())
        settled = storage.settle_operation("k", PAYLOAD, failed=failed)
        assert settled is SettleOutcome.DONE
        record = storage.find_operation("k")
        assert record is not None
        status = OperationStatus.FAILED if failed else OperationStatus.COMPLETED
        assert record == before._replace(
            status=status,
            payload=PAYLOAD,
            payload_size=len(PAYLOAD),
            expires_ms=record.expires_ms,
        )

    @pytest.mark.parametrize("policy", ["rerun", "refuse"])
    def test_abandoned_record_is_settled(self, backend: Backend, policy: str) -> None:
        """Anybody decides on a claim whose lease is over; the claim is compared as before."""
        storage = backend.storage
        storage.claim_operation(make_request(owner="a", lease=10, on_abandoned=policy))
        backend.age(11)
        settled = storage.settle_operation("k", PAYLOAD, failed=False)
        assert settled is SettleOutcome.DONE
        reply = storage.claim_operation(make_request(owner="b"))
        assert (reply.outcome, reply.payload) == (ClaimOutcome.FINISHED, PAYLOAD)
        other = storage.claim_operation(make_request(owner="b", fingerprint="other"))
        assert other.outcome is ClaimOutcome.MISMATCH

    def test_live_executor_is_not_settled(self, storage: Storage) -> None:
        """While an executor is alive nobody else records an outcome."""
        storage.claim_operation(make_request())
        before = storage.find_operation("k")
        settled = storage.settle_operation("k", PAYLOAD, failed=False)
        assert settled is SettleOutcome.RUNNING
        assert storage.find_operation("k") == before

    def test_finished_record_keeps_the_first_outcome(self, storage: Storage) -> None:
        """A second outcome is refused and changes nothing, the expiry included."""
        complete(storage)
        before = storage.find_operation("k")
        settled = storage.settle_operation("k", b"other", failed=True)
        assert settled is SettleOutcome.FINISHED
        assert storage.find_operation("k") == before

    def test_absent_record_is_not_settled(self, storage: Storage) -> None:
        """Settling what is absent writes nothing."""
        assert storage.settle_operation("k", PAYLOAD, failed=False) is SettleOutcome.ABSENT
        assert storage.find_operation("k") is None

    def test_expired_record_is_not_settled(self, backend: Backend) -> None:
        """An expired record is absent."""
        backend.storage.ensure_operation(make_request(ttl=100))
        backend.age(101)
        settled = backend.storage.settle_operation("k", PAYLOAD, failed=False)
        assert settled is SettleOutcome.ABSENT

    @pytest.mark.parametrize("state", ["pending", "in_progress", "abandoned", "finished"])
    def test_foreign_tenant_settles_nothing(self, backend: Backend, state: str) -> None:
        """For another tenant the record is absent, in every state."""
        bring_into(backend, state)
        before = backend.storage.find_operation("k")
        settled = backend.storage.settle_operation("k", b"x", failed=False, tenant_id="other")
        assert settled is SettleOutcome.ABSENT
        assert backend.storage.find_operation("k") == before

    def test_own_tenant_settles(self, storage: Storage) -> None:
        """The record's own tenant settles it."""
        storage.ensure_operation(make_request())
        settled = storage.settle_operation("k", PAYLOAD, failed=False, tenant_id="tenant")
        assert settled is SettleOutcome.DONE

    def test_outcome_is_kept_for_the_records_own_retention(self, backend: Backend) -> None:
        """The record's retention counts from when it was settled."""
        storage = backend.storage
        storage.ensure_operation(make_request(ttl=100))
        backend.age(90)
        storage.settle_operation("k", PAYLOAD, failed=False)
        backend.age(98)
        assert storage.find_operation("k") is not None
        backend.age(3)
        assert storage.find_operation("k") is None

    def test_settled_refuse_claim_expires(self, backend: Backend) -> None:
        """A claim that waited for a decision vanishes one retention after it."""
        storage = backend.storage
        storage.claim_operation(make_request(ttl=100, lease=10, on_abandoned="refuse"))
        backend.age(1000)
        storage.settle_operation("k", PAYLOAD, failed=False)
        backend.age(99)
        assert storage.find_operation("k") is not None
        backend.age(2)
        assert storage.find_operation("k") is None
