from __future__ import annotations

import hmac
import os
import re
import subprocess
import sys
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dotmac_tasks.errors import InvalidKeyError, SerializationError
from dotmac_tasks.keys import (
    MAX_ID_LENGTH,
    MAX_KEY_LENGTH,
    RESERVED_KEY,
    generate_idempotency_key,
    http_storage_key,
    key_hash,
    keyed_digest,
    new_token,
    parse_key_header,
    quota_caller,
    shorten_id,
    validate_stored_key,
)


def test_generated_key_matches_the_test_vector() -> None:
    """
    The key is the beginning of the digest of exactly the documented text.
    """
    text = 'tenant1:user1:send_email:{"n":1,"to":"a@example.com"}'

    key = generate_idempotency_key(
        "tenant1", "user1", "send_email", {"to": "a@example.com", "n": 1}
    )

    assert key == sha256(text.encode()).hexdigest()[:32]


def test_generated_key_treats_a_missing_user_as_empty() -> None:
    """
    No user and the empty user are one.
    """
    assert generate_idempotency_key("t", None, "x", {}) == generate_idempotency_key(
        "t", "", "x", {}
    )


def test_generated_key_keeps_its_parts_apart() -> None:
    """
    A separator inside a part does not move the border between two parts.
    """
    keys = {
        generate_idempotency_key("a:b", "c", "x", {}),
        generate_idempotency_key("a", "b:c", "x", {}),
        generate_idempotency_key("a%3Ab", "c", "x", {}),
        generate_idempotency_key("a", "b", "c:x", {}),
    }
    assert len(keys) == 4


def test_generated_key_is_equal_in_another_process_with_another_hash_seed() -> None:
    """
    Neither hash seed nor memory address enters the key.
    """
    code = (
        "from dotmac_tasks.keys import generate_idempotency_key as g;"
        "print(g('t', 'é', 'x', {'s': {'a', 'b', 'c', 'd'}, 'é': ('z', None)}))"
    )
    here = generate_idempotency_key("t", "é", "x", {"s": {"d", "c", "b", "a"}, "é": ("z", None)})
    for seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == here


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ((7, "u", "x", {}), "tenant_id"),
        (("t", UUID(int=1), "x", {}), "user_id"),
        (("t", "u", None, {}), "operation_type"),
        (("t\ud800", "u", "x", {}), "tenant_id"),
    ],
)
def test_generated_key_refuses_parts_that_are_no_text(arguments: Any, path: str) -> None:
    """
    A part that is not text is refused by its name, never turned into its repr.
    """
    with pytest.raises(SerializationError) as caught:
        generate_idempotency_key(*arguments)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ("abc", "abc"),
        ("a", "a"),
        (" abc\t", "abc"),
        ("a b;c", "a b;c"),
        ("a\\b", "a\\b"),
        ("x" * 255, "x" * 255),
        ('"abc"', "abc"),
        (' "abc" ', "abc"),
        ('"a,b"', "a,b"),
        (r'"a\"b\\c"', r'a"b\c'),
        ('"' + "x" * 255 + '"', "x" * 255),
        ('"' + r"\"" * 255 + '"', '"' * 255),
        ('"abc";v=1', "abc"),
        ('"abc"; a;b=?1;c="x\\"y";d=tok/en;e=-1.5;f=:YQ==:;g=@12;h=%"a%c3"', "abc"),
    ],
)
def test_header_is_parsed(raw: str, key: str) -> None:
    """
    Bare and quoted forms give the same key; parameters behind a quoted one are ignored.
    """
    assert parse_key_header(raw) == key


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "   ",
        '""',
        '"  "',
        "a,b",
        "a, b",
        '"a","b"',
        '"a" "b"',
        '"a',
        'a"',
        'a"b',
        '"',
        '"a\\',
        r'"a\b"',
        '"a"b',
        '"a" ;v=1',
        '"a";V=1',
        '"a";v=',
        '"a";',
        '"a";v=1234567890123456',
        '"a";v=1.2345',
        "a\x00b",
        "a\tb",
        '"a\x7f"',
        "é",
        '"é"',
        "x" * 256,
        '"' + "x" * 256 + '"',
        "x" * 100_000,
    ],
)
def test_header_is_refused(raw: str) -> None:
    """
    Every other deviation is an invalid key, whose message does not show it.
    """
    with pytest.raises(InvalidKeyError) as caught:
        parse_key_header(raw)
    assert caught.value.key == ""


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_header_of_any_printable_key_survives_quoting(key: str) -> None:
    """
    Quoting a printable text and parsing it gives the text, unless it is blank.
    """
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if key.strip():
        assert parse_key_header(quoted) == key
    else:
        with pytest.raises(InvalidKeyError):
            parse_key_header(quoted)


@given(st.text(max_size=300))
def test_header_is_parsed_or_refused_whatever_it_holds(raw: str) -> None:
    """
    No input raises anything else, and no key comes out that cannot be stored.
    """
    try:
        key = parse_key_header(raw)
    except InvalidKeyError:
        return
    assert 0 < len(key) <= MAX_KEY_LENGTH
    assert key.isprintable()
    assert key.isascii()


def test_http_storage_key_separates_tenants_principals_and_keys() -> None:
    """
    The same client key of another tenant or principal is another stored key.
    """
    scopes = [("t", "p", "k"), ("t", "q", "k"), ("u", "p", "k"), ("t", "p", "l")]
    scopes += [("t:p", "", "k"), ("t", "p:k", ""), ("t", "p", ":k"), ("t%3Ap", "", "k")]
    keys = {http_storage_key(*scope) for scope in scopes}
    assert len(keys) == len(scopes)
    assert http_storage_key("t", "p", "k") == http_storage_key("t", "p", "k")
    assert all(len(key) == 32 for key in keys)


def test_http_storage_key_never_meets_a_generated_key() -> None:
    """
    A generated key cannot be chosen so that it is the one of an HTTP request.
    """
    assert http_storage_key("t", "p", "{}") == sha256(b"%http:t:p:{}").hexdigest()[:32]
    assert generate_idempotency_key("%http", "t", "p", {}) != http_storage_key("t", "p", "{}")


def test_http_storage_key_takes_any_text() -> None:
    """
    A principal that UTF-8 cannot hold still has a key of its own.
    """
    assert http_storage_key("t", "\ud800", "k") != http_storage_key("t", "\ud801", "k")


def test_key_hash_is_short_and_hides_the_key() -> None:
    """
    Logs show twelve hex digits, equal for equal keys.
    """
    assert key_hash("secret") == key_hash("secret") != key_hash("other")
    assert len(key_hash("secret")) == 12
    int(key_hash("\ud800"), 16)


@pytest.mark.parametrize("key", ["a", "x" * 255, "order:17 é", "Index"])
def test_stored_key_is_accepted(key: str) -> None:
    """
    Any printable text within the limit may be a key.
    """
    validate_stored_key(key)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "a\x85", "\ud800", RESERVED_KEY, 7])
def test_stored_key_is_refused(key: Any) -> None:
    """
    Empty, long, unstorable and reserved keys are invalid, and so is what is no text.
    """
    with pytest.raises(InvalidKeyError, match="cannot be used"):
        validate_stored_key(key)


def test_tokens_are_random_hex() -> None:
    """
    Tokens are 128 bits in hex, and no two are equal.
    """
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) == 32 and int(token, 16) >= 0 for token in tokens)


def test_secret_makes_other_keys() -> None:
    """
    Under a secret a stored key is the beginning of an HMAC, and another one under each.
    """
    text = b"%http:t:p:k"
    expected = hmac.new(b"secret", text, "sha256").hexdigest()
    assert http_storage_key("t", "p", "k", "secret") == expected[:32]
    assert keyed_digest("secret", text.decode()) == expected
    keys = {http_storage_key("t", "p", "k", secret) for secret in ("", "secret", "secreu")}
    assert len(keys) == 3


def test_caller_of_a_quota_is_a_digest() -> None:
    """
    Whom a quota counts is told apart by tenant and principal, and shown by neither.
    """
    scopes = [("t", "user:p"), ("t", ""), ("u", "user:p"), ("t:user", "p"), ("", "t:user:p")]
    callers = {quota_caller(*scope, secret) for scope in scopes for secret in ("", "secret")}
    assert len(callers) == 2 * len(scopes)
    assert all(re.fullmatch("[0-9a-f]{32}", caller) for caller in callers)
    assert quota_caller("t", "k") != http_storage_key("t", "k", "")


def test_long_ids_are_shortened_and_stay_apart() -> None:
    """
    An id within the limit is kept as it is; two longer ones never become the same.
    """
    assert shorten_id("x" * MAX_ID_LENGTH) == "x" * MAX_ID_LENGTH
    shortened = {shorten_id("x" * 1000 + end) for end in ("a", "b", "\ud800")}
    assert len(shortened) == 3
    assert {len(text) for text in shortened} == {MAX_ID_LENGTH}
