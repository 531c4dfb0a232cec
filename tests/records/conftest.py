"""
The storages whose records outlive a version of the library.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.backends import BACKENDS, RedisBackend, open_backend


@pytest.fixture(params=[row for row in BACKENDS if row.id != "memory"])
def backend(request: pytest.FixtureRequest) -> Iterator[RedisBackend]:
    """
    A Redis, real or not, that is empty.
    """
    with open_backend(request.param, request) as opened:
        assert isinstance(opened, RedisBackend)
        yield opened
