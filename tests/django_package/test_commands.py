from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from dotmac_tasks.errors import StorageUnavailableError
from dotmac_tasks.storage.memory import MemoryStorage
from dotmac_tasks.testing import FakeClock
from dotmac_tasks_django import conf
from dotmac_tasks_django.conf import get_manager
from support.concurrency import run_together


class Terminal(io.StringIO):
    """
    Takes itself for a terminal.
    """

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _expired(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """
    Seven expired records and one that lives.
    """
    manager = conf.BackgroundOperationsManager(MemoryStorage(clock=clock), clock=clock)
    monkeypatch.setattr(conf._current, "manager", manager)
    for number in range(7):
        manager.create_idempotency_key("default", None, "test", key=f"old-{number}", ttl=10)
    clock.advance(20)
    manager.create_idempotency_key("default", None, "test", key="new", ttl=10)
    yield
    assert manager.check_idempotency("new") is not None


def clean(*arguments: str, stderr: io.StringIO | None = None) -> str:
    stdout = io.StringIO()
    call_command("cleanup_bgops", *arguments, stdout=stdout, stderr=stderr or io.StringIO())
    return stdout.getvalue().strip()


def test_expired_records_are_removed_in_batches() -> None:
    """Everything expired goes, in batches; a second run finds nothing."""
    assert clean("--batch-size", "3") == "7 expired records removed in 3 batches."
    assert clean().startswith("0 expired records removed")


def test_dry_run_only_counts() -> None:
    """A dry run removes nothing."""
    for _ in range(2):
        assert clean("--dry-run") == "7 expired records would be removed."


def test_maximum_is_kept() -> None:
    """No more than `--max` records are removed in one run, and it says so."""
    assert clean("--max", "5", "--batch-size", "2").endswith("3 batches; more are left.")
    assert clean().startswith("2 expired records removed")


def test_one_is_counted_as_one() -> None:
    """A single record and a single batch are not spoken of in the plural."""
    clean("--max", "6")
    assert clean("--dry-run") == "1 expired record would be removed."
    assert clean() == "1 expired record removed in 1 batch."


def test_json_summary() -> None:
    """The summary can be read by a machine."""
    assert json.loads(clean("--json")) == {
        "removed": 7,
        "batches": 1,
        "more": False,
        "dry_run": False,
    }


def test_progress_is_shown_on_a_terminal_only() -> None:
    """A terminal sees a dot for each batch, cron sees nothing."""
    terminal, mail = Terminal(), io.StringIO()
    clean("--max", "4", "--batch-size", "2", stderr=terminal)
    clean(stderr=mail)
    assert terminal.getvalue() == "..\n"
    assert mail.getvalue() == ""


@pytest.mark.parametrize(
    "arguments", [("--batch-size", "0"), ("--max", "0"), ("--max", "many"), ("--everything",)]
)
def test_bad_arguments_are_refused(arguments: tuple[str, ...]) -> None:
    """A bad argument is an error of the command, not a traceback."""
    with pytest.raises(CommandError):
        clean(*arguments)


def test_failing_storage_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the storage fails, the command fails with status 1 and says why."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise StorageUnavailableError("memory", "switched off")

    monkeypatch.setattr(get_manager().storage, "purge_expired", fail)
    with pytest.raises(CommandError, match="switched off") as caught:
        clean()
    assert caught.value.returncode == 1


def test_two_runs_at_once_share_the_work() -> None:
    """Of two runs at the same time each record is removed once, and both succeed."""
    outputs = run_together(2, clean, "--json", "--batch-size", "1")
    assert sum(json.loads(str(output))["removed"] for output in outputs) == 7
