"""
Remove what is past its retention; for cron.
"""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from dotmac_tasks.cleanup import CleanupReport, clean_up
from dotmac_tasks.errors import StorageError
from dotmac_tasks_django.conf import get_manager

__all__ = ["Command"]


class Command(BaseCommand):
    """
    Purges in batches; may run several times at once. One per call.

    Ends with status 0, or with 1 where the storage failed; what was removed
    before stays removed.
    """

    help = "Remove expired idempotency keys and operations, in batches. Safe to run at any time."

    def add_arguments(self, parser: CommandParser) -> None:
        """
        Declare the options.
        """
        parser.add_argument(
            "--dry-run", action="store_true", help="only count what would be removed"
        )
        parser.add_argument(
            "--batch-size", type=int, default=500, help="records per storage call (default: 500)"
        )
        parser.add_argument(
            "--max", type=int, default=None, help="remove at most so many records in this run"
        )
        parser.add_argument(
            "--json", action="store_true", help="print the summary as one line of JSON"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """
        Remove, and say how much it was.
        """
        batch_size, most = options["batch_size"], options["max"]
        if batch_size < 1:
            raise CommandError("--batch-size must be at least 1.")
        if most is not None and most < 1:
            raise CommandError("--max must be at least 1.")
        # Dots would only litter the mail that cron sends.
        shows_progress = self.stderr.isatty()
        try:
            report = clean_up(
                get_manager().storage,
                batch_size=batch_size,
                max_records=most,
                dry_run=options["dry_run"],
                go_on=self._show_batch if shows_progress else lambda: True,
            )
        except StorageError as error:
            raise CommandError(f"The cleanup stopped. {error}") from error
        finally:
            if shows_progress:
                self.stderr.write("")
        self.stdout.write(_as_json(report) if options["json"] else _as_text(report))

    def _show_batch(self) -> bool:
        self.stderr.write(".", ending="")
        return True


def _as_json(report: CleanupReport) -> str:
    return json.dumps(report._asdict())


def _as_text(report: CleanupReport) -> str:
    records = _count(report.removed, "expired record", "expired records")
    if report.dry_run:
        return f"{records} would be removed."
    rest = "; more are left" if report.more else ""
    return f"{records} removed in {_count(report.batches, 'batch', 'batches')}{rest}."


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
