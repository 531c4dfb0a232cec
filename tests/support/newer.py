"""
A version that is still to come: as this one, but for the format of what it writes.

It reads and writes records of this version as well, as the rule for a change of format asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from dotmac_tasks.models import ClaimReply, ClaimRequest, SettleOutcome, WriteOutcome
from dotmac_tasks.storage import RedisStorage
from dotmac_tasks.storage.lua import Script

# Where the scripts know the format: what is read may be of either, what is written is of the new.
_CHANGES = (
    ("record.v ~= '1'", "record.v ~= '1' and record.v ~= '2'"),
    ("found.v == '1'", "(found.v == '1' or found.v == '2')"),
    ("'v', '1'", "'v', '2'"),
    ("v = '1'", "v = '2'"),
    ("local flat = {}\n  for field", "record.v = '2'\n  local flat = {}\n  for field"),
    ("record.n, record.m = ", "record.v, record.n, record.m = '2', "),
)


@cache
def _renew(script: Script) -> Script:
    text = script.text.decode()
    for old, new in _CHANGES:
        text = text.replace(old, new)
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script(script.name, text.encode(), digest.encode())


class NewerRecords(RedisStorage):
    """
    Writes records and background operations of format 2 and reads those of format 1.

    Instances may be shared between threads.
    """

    def _run(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[bytes],
        about: str,
        deadline: float | None = None,
    ) -> Any:
        return super()._run(_renew(script), keys, arguments, about, deadline)


class NewerPayloads(RedisStorage):
    """
    Writes outcomes of version 2 into records of format 1, and reads outcomes of either.

    Instances may be shared between threads.
    """

    def claim_operation(self, request: ClaimRequest) -> ClaimReply:
        reply = super().claim_operation(request)
        return reply._replace(payload=b"1" + reply.payload[1:] if reply.payload else b"")

    def complete_operation(
        self, request: ClaimRequest, fencing_token: int, payload: bytes, *, failed: bool
    ) -> WriteOutcome:
        newer = b"2" + payload[1:]
        return super().complete_operation(request, fencing_token, newer, failed=failed)

    def settle_operation(
        self, key: str, payload: bytes, *, failed: bool, tenant_id: str | None = None
    ) -> SettleOutcome:
        newer = b"2" + payload[1:]
        return super().settle_operation(key, newer, failed=failed, tenant_id=tenant_id)
