from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from dotmac_tasks.errors import CorruptRecordError, StaleRecordError, StorageError
from dotmac_tasks.manager import BackgroundOperationsManager
from dotmac_tasks.models import ClaimOutcome, OperationStatus, SettleOutcome
from dotmac_tasks.storage import Storage
from dotmac_tasks.storage.observed import ObservedStorage
from dotmac_tasks.storage.sealed import SealedStorage
from dotmac_tasks.testing import EventRecorder
from dotmac_tasks.typing import PayloadCodec
from support.backends import BACKENDS, Backend, make_request, open_backend
from support.codecs import FailingCodec, MaskingCodec

PAYLOAD = b'1j{"card":"4111"}'


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """
    One storage of the table, empty.
    """
    with open_backend(request.param, request) as opened:
        yield opened


@pytest.fixture
def inner(backend: Backend) -> Storage:
    """
    What really holds the records.
    """
    return backend.storage


@pytest.fixture
def sealed(inner: Storage) -> SealedStorage:
    """
    The same, behind a codec.
    """
    return SealedStorage(inner, MaskingCodec())


def complete(storage: Storage, key: str = "k", payload: bytes = PAYLOAD) -> None:
    request = make_request(key=key)
    token = storage.claim_operation(request).fencing_token
    storage.complete_operation(request, token, payload, failed=False)


def save(storage: Storage, name: str = "op", data: bytes = PAYLOAD, revision: int = 0) -> Any:
    return storage.save_background(
        name,
        "tenant",
        OperationStatus.PENDING,
        data,
        expected_revision=revision,
        request_id=f"r{revision}",
        retention=None,
    )


def stored(storage: Storage, key: str = "k") -> bytes:
    record = storage.find_operation(key)
    assert record is not None
    return record.payload


def stored_data(storage: Storage, name: str = "op") -> bytes:
    record = storage.find_background(name)
    assert record is not None
    return record.data


class TestOutcomes:
    def test_outcome_is_sealed_and_opened(self, sealed: Storage, inner: Storage) -> None:
        """An outcome lies sealed in the storage and comes back as it was, whoever asks for it."""
        complete(sealed)
        assert stored(inner).startswith(b"1s")
        assert b"4111" not in stored(inner)
        assert stored(sealed) == PAYLOAD
        assert sealed.ensure_operation(make_request()).payload == PAYLOAD
        reply = sealed.claim_operation(make_request(owner="b"))
        assert (reply.outcome, reply.payload) == (ClaimOutcome.FINISHED, PAYLOAD)

    def test_settled_outcome_is_sealed(self, sealed: Storage, inner: Storage) -> None:
        """An outcome that a worker reports is sealed alike."""
        sealed.ensure_operation(make_request())
        done = sealed.settle_operation("k", PAYLOAD, failed=True, tenant_id="tenant")
        assert done is SettleOutcome.DONE
        assert stored(inner).startswith(b"1s")
        assert stored(sealed) == PAYLOAD

    def test_open_record_has_nothing_to_open(self, sealed: Storage) -> None:
        """Records without an outcome pass as they are."""
        assert sealed.find_operation("k") is None
        assert sealed.ensure_operation(make_request()).payload == b""
        assert sealed.claim_operation(make_request()).payload == b""
        assert stored(sealed) == b""

    def test_tombstone_is_left_readable(self, sealed: Storage, inner: Storage) -> None:
        """That an outcome was not kept is no secret, and is read without the codec."""
        complete(sealed, payload=b"1tstream")
        assert stored(inner) == stored(sealed) == b"1tstream"

    def test_outcome_from_before_is_read(self, sealed: Storage, inner: Storage) -> None:
        """What was stored before the codec was set is given out as it is."""
        complete(inner)
        assert stored(sealed) == PAYLOAD

    def test_unsealed_outcome_is_refused_where_sealing_is_required(self, inner: Storage) -> None:
        """Where everything has to be sealed, what is not is damaged, but for tombstones."""
        strict = SealedStorage(inner, MaskingCodec(), require_sealed=True)
        complete(inner, key="plain")
        complete(inner, key="gone", payload=b"1tstream")
        complete(strict, key="sealed")
        save(inner)
        with pytest.raises(CorruptRecordError, match="REQUIRE_SEALED"):
            strict.find_operation("plain")
        with pytest.raises(CorruptRecordError, match="REQUIRE_SEALED"):
            strict.find_background("op")
        assert (stored(strict, "gone"), stored(strict, "sealed")) == (b"1tstream", PAYLOAD)

    def test_moved_outcome_is_damaged(self, sealed: Storage, inner: Storage) -> None:
        """A sealed outcome that was copied to another key cannot be opened there."""
        complete(sealed)
        complete(inner, key="other", payload=stored(inner))
        with pytest.raises(CorruptRecordError):
            sealed.find_operation("other")
        with pytest.raises(CorruptRecordError):
            sealed.claim_operation(make_request(key="other", owner="b"))

    def test_outcome_is_no_data_of_an_operation(self, sealed: Storage, inner: Storage) -> None:
        """A sealed outcome cannot pass for an operation of the same name, nor the reverse."""
        complete(sealed, key="same")
        save(sealed, "same")
        outcome, data = stored(inner, "same"), stored_data(inner, "same")
        save(inner, "same", outcome, revision=1)
        with pytest.raises(CorruptRecordError):
            sealed.find_background("same")
        complete(inner, key="new", payload=data)
        with pytest.raises(CorruptRecordError):
            sealed.find_operation("new")

    def test_wrong_secret_is_damage(self, sealed: Storage, inner: Storage) -> None:
        """What another key has sealed counts as damaged; the message holds nothing of it."""
        complete(sealed)
        with pytest.raises(CorruptRecordError) as caught:
            SealedStorage(inner, MaskingCodec("hunter2")).find_operation("k")
        assert "ValueError" in str(caught.value)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__
        assert stored(sealed) == PAYLOAD

    def test_codec_that_returns_no_bytes_is_damage(self, sealed: Storage, inner: Storage) -> None:
        """A codec that decodes to anything but bytes gives no outcome."""

        class Texts(MaskingCodec):
            def decode(self, data: bytes, key: str) -> Any:
                return "text"

        complete(sealed)
        with pytest.raises(CorruptRecordError):
            SealedStorage(inner, Texts()).find_operation("k")


class TestFailingToSeal:
    @pytest.mark.parametrize("failed", [True, False])
    def test_outcome_leaves_a_tombstone(
        self, inner: Storage, failed: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The work is done, so its key is finished; what it answered is stored nowhere."""
        storage = SealedStorage(inner, FailingCodec("hunter2"))
        request = make_request()
        token = storage.claim_operation(request).fencing_token
        with caplog.at_level(logging.ERROR):
            storage.complete_operation(request, token, PAYLOAD, failed=failed)
        assert stored(inner) == b"1tunsealable"
        assert "An outcome cannot be sealed" in caplog.text
        assert "hunter2" not in caplog.text
        assert "4111" not in caplog.text

    def test_worker_leaves_a_tombstone(self, inner: Storage) -> None:
        """So does an outcome that a worker reports."""
        storage = SealedStorage(inner, FailingCodec())
        storage.ensure_operation(make_request())
        assert storage.settle_operation("k", PAYLOAD, failed=False) is SettleOutcome.DONE
        assert stored(inner) == b"1tunsealable"

    def test_data_is_not_written(self, inner: Storage) -> None:
        """An operation whose data cannot be sealed is not created, and its caller is told."""
        storage = SealedStorage(inner, FailingCodec("hunter2"))
        with pytest.raises(StorageError) as caught:
            save(storage)
        assert "PAYLOAD_CODEC" in str(caught.value)
        assert "hunter2" not in str(caught.value)
        assert "4111" not in str(caught.value)
        assert inner.find_background("op") is None

    def test_codec_that_returns_no_bytes_is_refused(self, inner: Storage) -> None:
        """A codec that encodes to anything but bytes counts as one that fails."""

        class Texts(MaskingCodec):
            def encode(self, payload: bytes, key: str) -> Any:
                return "text"

        with pytest.raises(StorageError, match="TypeError"):
            save(SealedStorage(inner, Texts()))

    def test_interrupt_is_no_failure_of_the_codec(self, inner: Storage) -> None:
        """An exit in the middle of encoding passes through."""

        class Interrupted(MaskingCodec):
            def encode(self, payload: bytes, key: str) -> bytes:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save(SealedStorage(inner, Interrupted()))


class TestOperations:
    def test_data_is_sealed_and_opened(self, sealed: Storage, inner: Storage) -> None:
        """Data lies sealed in the storage and comes back from every verb as it was."""
        assert save(sealed).data == PAYLOAD
        assert stored_data(inner).startswith(b"1s")
        assert b"4111" not in stored_data(inner)
        assert stored_data(sealed) == PAYLOAD
        (listed,) = sealed.list_background("tenant").records
        assert listed.data == PAYLOAD
        assert sealed.find_background("other") is None

    def test_save_sent_again_answers_as_before(self, sealed: Storage) -> None:
        """A save that is sent again is sealed anew and still answers as the first time."""
        assert save(sealed) == save(sealed)
        with pytest.raises(StaleRecordError):
            save(sealed, revision=7)

    def test_damaged_one_costs_no_other_its_place(
        self, sealed: Storage, inner: Storage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A listing leaves out what cannot be opened, logs it, and goes on."""
        save(sealed, "good")
        save(inner, "bad", b"1s" + PAYLOAD)
        with caplog.at_level(logging.ERROR):
            records = sealed.list_background("tenant").records
        assert [record.operation_id for record in records] == ["good"]
        assert "cannot be opened" in caplog.text
        assert "4111" not in caplog.text


def test_other_verbs_are_passed_on(sealed: Storage, inner: Storage) -> None:
    """Names, locks, leases, counts and health are those of the wrapped storage."""
    assert (sealed.name, sealed.breaker_state) == (inner.name, inner.breaker_state)
    assert sealed.acquire_lock("lock", "owner", 10) is not None
    assert inner.release_lock("lock", "owner")
    complete(sealed)
    assert sealed.get_stats() == inner.get_stats()
    assert sealed.check_health().backend == inner.name


class TestManager:
    def test_without_a_codec_nothing_stands_between(self, inner: Storage) -> None:
        """A project without a codec has its storage as it is."""
        assert BackgroundOperationsManager(inner).storage is inner

    def test_codec_stands_outside_of_hooks(self, inner: Storage) -> None:
        """Hooks measure the storage alone, whatever the codec takes."""
        codec: PayloadCodec = MaskingCodec()
        manager = BackgroundOperationsManager(
            inner, hooks=[EventRecorder()], payload_codec=codec, enable_background_cleanup=False
        )
        with manager:
            assert isinstance(manager.storage, SealedStorage)
            assert isinstance(manager.storage.wrapped, ObservedStorage)

    def test_everything_the_manager_stores_is_sealed(self, inner: Storage) -> None:
        """Results, failures, parameters: none of them lies readable in the storage."""
        with BackgroundOperationsManager(
            inner,
            payload_codec="support.codecs_of_a_project.codec",
            enable_background_cleanup=False,
        ) as manager:
            manager.idempotent("charge", key=lambda card: "function")(lambda card: {"card": card})(
                "4111"
            )
            manager.create_idempotency_key("tenant", None, "charge", key="failed")
            manager.complete_idempotent_operation("failed", None, "4111 was refused")
            manager.create_operation(
                "tenant", "charge", operation_id="op", parameters={"card": "4111"}
            )
            manager.complete_operation("op", {"card": "4111"})
            for key in ("function", "failed"):
                assert b"4111" not in stored(inner, key)
            assert b"4111" not in stored_data(inner)
            found = manager.check_idempotency("function")
            assert found is not None
            assert found.result == {"card": "4111"}
            operation = manager.get_operation_status("op")
            assert operation.parameters == operation.result == {"card": "4111"}
