"""
What processes do to one storage at the same time: clean it up, claim in it.
"""

from __future__ import annotations

import os

from dotmac_tasks.cleanup import clean_up
from dotmac_tasks.models import ClaimOutcome, WriteOutcome
from dotmac_tasks.storage import RedisStorage
from support.backends import make_request


def clean_or_claim(url: str, prefix: str, turns: str, keys: list[str]) -> list[str] | int:
    """
    Clean up, or claim and complete each of the keys.

    All processes get the same arguments: the first two that find a free turn in a directory clean.
    Returns how many entries were removed, or the keys that were claimed.
    """
    storage = RedisStorage(url, prefix=prefix, timeout=30)
    try:
        if _take(turns, "first") or _take(turns, "second"):
            return clean_up(storage, batch_size=7, max_records=None, dry_run=False).removed
        return [key for key in keys if _claim_and_complete(storage, key)]
    finally:
        storage.close()


def _take(turns: str, name: str) -> bool:
    try:
        os.close(os.open(os.path.join(turns, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _claim_and_complete(storage: RedisStorage, key: str) -> bool:
    request = make_request(key=key, owner=f"process-{os.getpid()}")
    reply = storage.claim_operation(request)
    if reply.outcome is not ClaimOutcome.CLAIMED:
        return False
    done = storage.complete_operation(request, reply.fencing_token, b"1jtrue", failed=False)
    assert done is WriteOutcome.DONE
    return True
