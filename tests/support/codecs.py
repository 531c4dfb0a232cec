"""
Codecs that need no library, for tests of where a codec is used.
"""

from __future__ import annotations

import hashlib


class MaskingCodec:
    """
    Hides bytes behind a mask of the record's name, and knows when it is another one.

    No cipher; enough to see what is sealed and for which record. Immutable.
    """

    def __init__(self, secret: str = "secret") -> None:
        self.secret = secret

    def encode(self, payload: bytes, key: str) -> bytes:
        check = hashlib.sha256(payload).digest()
        return self._mask(check + payload, key)

    def decode(self, data: bytes, key: str) -> bytes:
        opened = self._mask(data, key)
        check, payload = opened[:32], opened[32:]
        if hashlib.sha256(payload).digest() != check:
            raise ValueError(f"{self.secret}: {payload!r} is of another record")
        return payload

    def _mask(self, data: bytes, key: str) -> bytes:
        name = f"{self.secret}:{key}".encode("utf-8", "surrogatepass")
        mask = hashlib.shake_256(name).digest(len(data))
        return bytes(one ^ other for one, other in zip(data, mask, strict=True))


class FailingCodec(MaskingCodec):
    """
    Decodes as its base does, and fails to encode with all that it knows in the message.
    """

    def encode(self, payload: bytes, key: str) -> bytes:
        raise RuntimeError(f"{self.secret} {payload!r} {key}")
