r"""
A payload codec that encrypts: AES-256 in GCM, with the record as associated data.

Needs the `cryptography` package: ``pip install 'dotmac-tasks[encryption]'``.
What it returns is::

    1 byte    1, the format
    8 bytes   which key, the beginning of a digest of it
    12 bytes  a random nonce
    the rest  ciphertext and tag

Nothing is compressed before it is encrypted, since the length would then tell
of the content.
"""

from __future__ import annotations

import base64
import hashlib
import os

from dotmac_tasks.errors import ConfigurationError

try:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ModuleNotFoundError as error:
    raise ImportError(
        "AesGcmCodec needs cryptography. Install it with: pip install 'dotmac-tasks[encryption]'.",
        name="AesGcmCodec",
    ) from error

__all__ = ["AesGcmCodec"]

_OPTION = "PAYLOAD_CODEC"
_FORMAT = b"\x01"
_KEY_BYTES = 32
_NONCE_BYTES = 12
_HEAD_BYTES = len(_FORMAT) + 8


class AesGcmCodec:
    """
    Encrypts with the first key and decrypts with whichever key it was.

    To rotate, put the new key in front and keep the old one behind it for as long
    as something that it sealed is kept. Every process must know a key before any
    process encrypts with it: deploy a new key at the end first, then at the front.

    A key is good for 2**32 payloads, since its nonces are drawn at random.

    Instances are immutable and shared by all threads.

    Args:
        keys: 32 random bytes each; `generate_key` makes one.

    Raises:
        ConfigurationError: There is no key, or one is not 32 bytes.
    """

    def __init__(self, *keys: bytes) -> None:
        if not keys:
            raise ConfigurationError(_OPTION, "needs a key. Make one with generate_key().")
        for number, key in enumerate(keys, 1):
            _check_key(number, key)
        self._ciphers = {_head_of(key): AESGCM(key) for key in keys}
        self._head = _head_of(keys[0])

    def __repr__(self) -> str:
        """
        Show how many keys it has, and nothing of them.
        """
        return f"<AesGcmCodec with {len(self._ciphers)} keys>"

    @staticmethod
    def generate_key() -> str:
        """
        Return a new random key in base64, as `from_text` takes it.
        """
        return base64.urlsafe_b64encode(os.urandom(_KEY_BYTES)).decode()

    @classmethod
    def from_text(cls, text: str) -> AesGcmCodec:
        """
        Make one from keys in base64, separated by commas: the form of an environment variable.

        Raises:
            ConfigurationError: There is no key, or one is not 32 bytes in base64.
        """
        return cls(
            *(
                _decode_key(number, part.strip())
                for number, part in enumerate(text.split(","), 1)
                if part.strip()
            )
        )

    def encode(self, payload: bytes, key: str) -> bytes:
        """
        Encrypt a payload for one record.
        """
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._head].encrypt(nonce, payload, _associate(self._head, key))
        return self._head + nonce + sealed

    def decode(self, data: bytes, key: str) -> bytes:
        """
        Decrypt what was encrypted for the same record.

        Raises:
            ValueError: It was encrypted with a key that is not among those given, or
                is of another format.
            cryptography.exceptions.InvalidTag: It was changed, or made for another
                record.
        """
        head, nonce = data[:_HEAD_BYTES], data[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
        cipher = self._ciphers.get(head)
        if cipher is None:
            raise ValueError("it was not encrypted with any of the given keys")
        return cipher.decrypt(nonce, data[_HEAD_BYTES + _NONCE_BYTES :], _associate(head, key))


def _check_key(number: int, key: object) -> None:
    if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
        # Never the key itself.
        raise ConfigurationError(_OPTION, f"key {number} is not {_KEY_BYTES} bytes.")


def _head_of(key: bytes) -> bytes:
    return _FORMAT + hashlib.sha256(b"dotmac-tasks key:" + key).digest()[: _HEAD_BYTES - 1]


def _associate(head: bytes, key: str) -> bytes:
    # The head has a fixed length: no two pairs meet in one text.
    return head + key.encode("utf-8", "surrogatepass")


def _decode_key(number: int, text: str) -> bytes:
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        raise ConfigurationError(_OPTION, f"key {number} is not in base64.") from None
