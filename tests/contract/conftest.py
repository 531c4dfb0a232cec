"""
Binds the contract to every storage of the backend table.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dotmac_tasks.storage import Storage
from support.backends import BACKENDS, Backend, open_backend


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """
    One storage of the table with its test helpers, empty.
    """
    with open_backend(request.param, request) as opened:
        yield opened


@pytest.fixture
def storage(backend: Backend) -> Storage:
    """
    The storage of `backend`.
    """
    return backend.storage
