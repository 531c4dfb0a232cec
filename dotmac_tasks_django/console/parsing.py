"""
What the parsers of all subcommands have in common.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from dotmac_tasks import BackgroundOperationsManager
from dotmac_tasks_django.console.screen import Answer

__all__ = ["Action", "Subparsers", "add_command", "add_reason"]

Action: TypeAlias = Callable[[BackgroundOperationsManager, dict[str, Any]], Answer]


class Subparsers(Protocol):
    """
    What the standard library has no public name for; used while parsers are made.
    """

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
        """
        Add a parser and return it.
        """
        ...


def add_command(
    subparsers: Subparsers, name: str, action: Action, what: str
) -> argparse.ArgumentParser:
    """
    Add a subcommand with what all of them take, and return its parser.
    """
    parser = subparsers.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("--json", action="store_true", help="print one document of JSON")
    parser.set_defaults(action=action)
    return parser


def add_reason(parser: argparse.ArgumentParser) -> None:
    """
    Add what every decision takes.
    """
    parser.add_argument("--reason", required=True, help="why; goes into the log")
    parser.add_argument("--by", default=None, help="who decides (default: the user of the system)")
