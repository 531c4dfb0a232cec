"""
Look at what is going on, and step in.
"""

from __future__ import annotations

import shutil
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from dotmac_tasks.errors import InvalidKeyError, TasksError
from dotmac_tasks_django.conf import get_manager
from dotmac_tasks_django.console import keys, service
from dotmac_tasks_django.console.screen import Answer, UsageError, as_json, clean, fit_encoding

__all__ = ["Command"]

# What a decision tells the hooks is handed on before the process ends.
_PATIENCE = 5.0


class Command(BaseCommand):
    """
    Hands each subcommand to its module and prints what it answers. One per call.

    Ends with status 0 where what was asked is done, with 1 where it was refused,
    not found or not healthy, and with 2 where the call makes no sense.
    """

    help = (
        "Look at idempotency keys and the storage, and step in. Ends with status 0 if it is done, "
        "1 if it is refused, not found or unhealthy, 2 if the call makes no sense."
    )
    # Whoever is called at night is not kept from looking by another part of the project.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """
        Declare the subcommands.
        """
        subparsers = parser.add_subparsers(
            dest="subcommand", metavar="SUBCOMMAND", title="subcommands", required=True
        )
        for module in (service, keys):
            module.add_commands(subparsers)

    def handle(self, *args: Any, **options: Any) -> None:
        """
        Carry out a subcommand and print its answer.
        """
        options["width"] = shutil.get_terminal_size().columns if self.stdout.isatty() else None
        answer = self._ask(options)
        if options["json"]:
            self.stdout.write(as_json(answer.document))
        elif answer.text:
            self.stdout.write(fit_encoding(answer.text, getattr(self.stdout, "encoding", None)))
        if answer.refusal is not None:
            raise CommandError(answer.refusal, returncode=1)

    def _ask(self, options: dict[str, Any]) -> Answer:
        try:
            manager = get_manager()
            if manager.storage.name == "memory":
                self.stderr.write(
                    "STORAGE is memory://, which nobody shares: this looks at the empty memory of "
                    "its own process, not at that of your server."
                )
            try:
                answer: Answer = options["action"](manager, options)
            finally:
                manager.events.flush(_PATIENCE)
        except (UsageError, InvalidKeyError) as error:
            raise CommandError(str(error), returncode=2) from error
        except TasksError as error:
            message = clean(str(error))
            failure = {"type": type(error).__name__, "message": message}
            return Answer({"error": failure}, "", message)
        return answer
