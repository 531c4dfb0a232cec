from __future__ import annotations

import base64
import importlib
import os
import sys
from typing import Any

import pytest

from dotmac_tasks.config import TasksConfig
from dotmac_tasks.errors import ConfigurationError, CorruptRecordError
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks.storage.sealed import SealedStorage
from support.backends import make_request

pytest.importorskip("cryptography")
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks.contrib.encryption import AesGcmCodec

OLD, NEW = bytes(range(32)), bytes(range(1, 33))


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cryptography the import of the codec names the extra."""
    monkeypatch.delitem(sys.modules, "dotmac_tasks.contrib.encryption")
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ImportError, match=r"pip install 'dotmac-tasks\[encryption\]'"):
        importlib.import_module("dotmac_tasks.contrib.encryption")
    config = TasksConfig(payload_codec="dotmac_tasks.contrib.encryption.codec")
    with pytest.raises(ConfigurationError, match=r"dotmac-tasks\[encryption\]'\. Correct it\."):
        config.resolve_codec()


def test_payload_comes_back() -> None:
    """What was encrypted for a record is decrypted for it, and looks different each time."""
    codec = AesGcmCodec(OLD)
    first, second = (codec.encode(b"payload", "idempo:k") for _ in range(2))
    assert first != second
    assert b"payload" not in first
    assert codec.decode(first, "idempo:k") == codec.decode(second, "idempo:k") == b"payload"


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_payload_comes_back_for_any_record(payload: bytes, key: str) -> None:
    """Whatever the payload and the record's name are, lone surrogates included."""
    codec = AesGcmCodec(OLD)
    data = codec.encode(payload, key)
    assert codec.decode(data, key) == payload
    assert len(data) == len(payload) + 1 + 8 + 12 + 16


def test_payload_of_another_record_is_refused() -> None:
    """A ciphertext that was moved to another record does not decrypt there."""
    codec = AesGcmCodec(OLD)
    with pytest.raises(InvalidTag):
        codec.decode(codec.encode(b"payload", "idempo:a"), "idempo:b")


@given(st.data())
def test_changed_payload_is_refused(data: Any) -> None:
    """Whichever bit is flipped and wherever it is cut, nothing comes out."""
    codec = AesGcmCodec(OLD, NEW)
    sealed = bytearray(codec.encode(b"payload", "k"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    if data.draw(st.booleans()):
        sealed[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del sealed[place:]
    with pytest.raises((InvalidTag, ValueError)):
        codec.decode(bytes(sealed), "k")


def test_keys_rotate() -> None:
    """The first key encrypts and all decrypt; a key that is gone takes its payloads with it."""
    before = AesGcmCodec(OLD).encode(b"old", "k")
    both = AesGcmCodec(NEW, OLD)
    after = both.encode(b"new", "k")
    assert both.decode(before, "k") == b"old"
    assert AesGcmCodec(NEW).decode(after, "k") == b"new"
    with pytest.raises(ValueError, match="not encrypted with any"):
        AesGcmCodec(NEW).decode(before, "k")


def test_rotation_reads_what_is_stored() -> None:
    """Records of both keys are read while both are known, and refused once one is gone."""
    inner = MemoryStorage()
    for number, codec in enumerate((AesGcmCodec(OLD), AesGcmCodec(NEW, OLD))):
        request = make_request(key=f"k{number}")
        storage = SealedStorage(inner, codec)
        token = storage.claim_operation(request).fencing_token
        storage.complete_operation(request, token, b"1j%d" % number, failed=False)
    rotated = SealedStorage(inner, AesGcmCodec(NEW, OLD))
    found = [rotated.find_operation(f"k{number}") for number in range(2)]
    assert [record.payload for record in found if record] == [b"1j0", b"1j1"]
    finished = SealedStorage(inner, AesGcmCodec(NEW))
    assert finished.find_operation("k1") == found[1]
    with pytest.raises(CorruptRecordError):
        finished.find_operation("k0")


def test_keys_come_from_text() -> None:
    """Keys in base64, of either alphabet, separated by commas, are what an environment holds."""
    text = f"{base64.b64encode(NEW).decode()} , {base64.urlsafe_b64encode(OLD).decode()},"
    codec = AesGcmCodec.from_text(text)
    assert codec.decode(AesGcmCodec(OLD).encode(b"x", "k"), "k") == b"x"
    assert AesGcmCodec(NEW).decode(codec.encode(b"x", "k"), "k") == b"x"


def test_generated_key_is_one() -> None:
    """A generated key is used as it is, and no two are the same."""
    first, second = AesGcmCodec.generate_key(), AesGcmCodec.generate_key()
    assert first != second
    assert AesGcmCodec.from_text(f"{first},{second}").encode(b"x", "k")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ((), "needs a key"),
        ((b"short-secret",), "key 1 is not 32 bytes"),
        ((OLD, "text-secret"), "key 2 is not 32 bytes"),
    ],
)
def test_key_that_is_none_is_refused(keys: Any, reason: str) -> None:
    """What cannot be a key is refused at once, by its place and never by its value."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        AesGcmCodec(*keys)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "needs a key"), ("hunter2!", "key 1 is not in base64"), ("aHVudGVy", "key 1 is not 32")],
)
def test_text_that_is_no_key_is_refused(text: str, reason: str) -> None:
    """Nor does a text that is no key show in the message."""
    with pytest.raises(ConfigurationError, match=reason) as caught:
        AesGcmCodec.from_text(text)
    assert "hunter2" not in str(caught.value)


def test_keys_are_not_shown() -> None:
    """What the codec shows of itself is how many keys it has."""
    key = os.urandom(32)
    codec = AesGcmCodec(key, OLD)
    assert repr(codec) == "<AesGcmCodec with 2 keys>"
    assert key.hex() not in repr(codec)
