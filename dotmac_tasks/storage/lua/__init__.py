"""
The scripts that Redis runs: one file for each verb, and what several share.

A script names the shared files that it needs in a line ``-- Uses: a, b``; their
text is put before its own, in that order.
"""

from __future__ import annotations

import functools
import hashlib
import re
from importlib import resources
from typing import NamedTuple

__all__ = ["Script", "load_script"]

_USES = re.compile(r"^-- Uses: (.+)$", re.MULTILINE)


class Script(NamedTuple):
    """
    One script, ready to be sent.

    Attributes:
        name: The verb.
        text: What Redis compiles.
        digest: The SHA-1 by which Redis finds it again, in hex.
    """

    name: str
    text: bytes
    digest: bytes


@functools.cache
def load_script(name: str) -> Script:
    """
    Read one verb's script with what it uses.
    """
    own = _read(name)
    uses = _USES.search(own)
    shared = uses.group(1).split(", ") if uses else []
    text = "\n".join([*map(_read, shared), own]).encode()
    # Redis's name for a script, no matter of security.
    digest = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
    return Script(name, text, digest)


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
