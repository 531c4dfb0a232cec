"""
What every test relies on: a clean environment, honest skips, a clock, a prefix of its own.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from dotmac_tasks.testing import FakeClock
    from support.redis_server import RedisServer

# Not named like a setting: those in the environment are checked, and this is none.
CI_FLAG = "CI_DOTMAC_TASKS"
# A busy machine is slow, not wrong; and what was found once belongs into a test, not into a cache.
hypothesis.settings.register_profile("patient", deadline=None, database=None)
hypothesis.settings.load_profile("patient")
# The mark of a test that needs a server, and the client library without which it cannot run.
SERVER_MARKS = {"redis": "redis", "database": "django"}


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# The directory, not what is in it: its own conftest needs Django.
collect_ignore = [] if is_installed("django") else ["django_package"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    Declare pytest-django's option where that is missing, so that one configuration fits both.
    """
    if not is_installed("pytest_django"):
        parser.addini("DJANGO_SETTINGS_MODULE", "Unused without Django.")


def pytest_configure() -> None:
    """
    Scrub the environment before any module is collected.
    """
    for name in list(os.environ):
        if name == "REDIS_URL" or name.startswith("DOTMAC_TASKS_"):
            del os.environ[name]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """
    Turn a skip for a missing server into a failure under CI.
    """
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and CI_FLAG in os.environ:
        for mark, client in SERVER_MARKS.items():
            if item.get_closest_marker(mark) and is_installed(client):
                report.outcome = "failed"
                report.longrepr = f"{CI_FLAG} is set, so this must not skip: {report.longrepr}"
    return report


@pytest.fixture
def clock() -> FakeClock:
    """
    A clock that moves only when the test says so.
    """
    from dotmac_tasks.testing import FakeClock

    return FakeClock()


@pytest.fixture
def random_prefix() -> str:
    """
    A key prefix that no other test has; not from `random`, which is seeded anew for each test.
    """
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """
    A private Redis for the whole run; whoever uses it keeps to a prefix of its own.
    """
    from support.redis_server import RedisServer, find_redis_server

    if find_redis_server() is None:
        pytest.skip("redis-server is not installed")
    with RedisServer() as server:
        yield server
