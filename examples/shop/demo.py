"""
Run the shop, send it a storm of retried orders, and prove that each happened once.

    python examples/shop/demo.py                 the storm, the table, the proof
    python examples/shop/demo.py --unprotected   the same without the library: it fails
    python examples/shop/demo.py serve           leave the shop open, with curl to try

The exit status is 0 if every order happened exactly once, 1 if one was charged twice or
lost or something else was found to be wrong, and 2 if the demo could not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
NEEDED = ("django", "redis", "dotmac_tasks_django", "gunicorn", "rich", "rest_framework")


def main() -> int:
    """
    Read the command line, run, and clean up whatever happens.
    """
    options = parse()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"The demo needs {', '.join(missing)}. Either run `make {options.command}`, which"
            " sets everything up,\nor: pip install 'dotmac-tasks[django,redis]'"
            f" -r {HERE / 'requirements.txt'}",
            file=sys.stderr,
        )
        return 2
    # Also where Python is told not to look beside a script (PYTHONSAFEPATH).
    sys.path.insert(0, str(HERE))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    try:
        return run(options)
    except KeyboardInterrupt:
        print("\nStopped; everything that was started is gone again.", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """
    Run the demo, or the shop, in a folder of its own that is gone afterwards.
    """
    from rich.console import Console
    from storm.processes import ENDING, Stack, StartError
    from storm.run import Options, run_demo, serve

    console = Console()
    wishes = Options(
        orders=options.orders,
        attempts=options.attempts,
        workers=options.workers,
        seed=options.seed,
        deadline=options.deadline,
        in_memory=options.memory,
        is_protected=not options.unprotected,
    )
    with tempfile.TemporaryDirectory(prefix="dotmac-shop-") as folder:
        stack = Stack(Path(folder))
        try:
            if options.command == "serve":
                serve(console, stack, wishes)
                return 0
            return 0 if run_demo(console, stack, wishes) else 1
        except StartError as error:
            print(error, file=sys.stderr)
            return 2
        finally:
            # A second Ctrl-C must not leave half of it behind; this takes a few seconds.
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)
            stack.stop()


def leave(number: int, frame: FrameType | None) -> None:
    """
    Turn a signal into an exit that runs the clean-up.
    """
    raise SystemExit(128 + number)


def parse() -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser(
        description="A shop, a storm of retried orders, and the proof that each happened once."
    )
    parser.add_argument("command", nargs="?", choices=("demo", "serve"), default="demo")
    parser.add_argument("--orders", type=positive, default=300, help="how many (default 300)")
    parser.add_argument("--attempts", type=positive, default=4, help="copies of each (default 4)")
    parser.add_argument("--workers", type=positive, default=3, help="processes (default 3)")
    parser.add_argument("--memory", action="store_true", help="one process, even with Redis here")
    parser.add_argument("--seed", type=int, default=1, help="for what goes wrong (default 1)")
    parser.add_argument("--deadline", type=positive, default=120, help="seconds (default 120)")
    parser.add_argument("--unprotected", action="store_true", help="switch the library off")
    return parser.parse_args()


def positive(text: str) -> int:
    """
    Read a whole number above zero.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
