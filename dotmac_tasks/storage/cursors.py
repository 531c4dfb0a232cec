"""
Where a listing of idempotency records goes on, as text: expiry, colon, key in hex.
"""

from __future__ import annotations

__all__ = ["format_cursor", "parse_cursor"]


def format_cursor(expiry: float, key: bytes) -> str:
    """
    Return the place behind the record with this expiry and key.
    """
    return f"{expiry!r}:{key.hex()}"


def parse_cursor(cursor: str) -> tuple[float, bytes]:
    """
    Return the expiry and the key that make up a cursor.

    Raises:
        ValueError: It is no such text.
    """
    expiry, _, key = cursor.partition(":")
    try:
        number, name = float(expiry), bytes.fromhex(key)
    except ValueError:
        number, name = float("nan"), b""
    if not name or number != number:  # only NaN differs from itself
        raise ValueError("This cursor is none that a listing returned.")
    return number, name
