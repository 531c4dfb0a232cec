"""
The command line: `python -m benchmarks [--quick] [--only NAME]... [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

# The private Redis and the counting proxy are those of the tests.
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))

import django

from benchmarks import stacks
from benchmarks.report import Section, render, render_summary
from support.redis_server import RedisServer, find_redis_server

_Part = Callable[[RedisServer, bool], Sequence[Section]]


def _floor(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.middleware import check_floors

    return [check_floors(server.url(1))]


def _round_trips(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.round_trips import count_round_trips

    return [count_round_trips(server.port)]


def _redis(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.middleware import measure_over_redis

    return measure_over_redis(server.url(2), rounds=60 if quick else 300, size=20)


def _memory(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.middleware import measure_over_memory

    return [measure_over_memory(rounds=150 if quick else 800, size=20)]


def _storage(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.storage import measure_storage

    return [measure_storage(server.url(), server.port, rounds=15 if quick else 80, size=100)]


def _sizes(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.sizes import measure_sizes

    return [measure_sizes(server.url(), count=20_000)]


def _scale(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.scale import measure_scale

    return measure_scale(100_000 if quick else 1_000_000, rounds=8 if quick else 30)


def _outage(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.outage import measure_outage

    return measure_outage(
        server.port, rounds=100 if quick else 400, size=20, trials=3 if quick else 10
    )


def _crowd(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.crowd import count_crowds

    return [count_crowds(server.url(3))]


def _imports(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.imports import measure_imports

    return [measure_imports(rounds=5 if quick else 20)]


def _uploads(server: RedisServer, quick: bool) -> Sequence[Section]:
    from benchmarks.uploads import measure_uploads

    return measure_uploads(size=50 * 1024 * 1024, rounds=5 if quick else 20)


# Sizes need a server to themselves for the while; what fills memory comes last.
_PARTS: dict[str, _Part] = {
    "imports": _imports,
    "floor": _floor,
    "round-trips": _round_trips,
    "redis": _redis,
    "memory": _memory,
    "outage": _outage,
    "crowd": _crowd,
    "storage": _storage,
    "uploads": _uploads,
    "sizes": _sizes,
    "scale": _scale,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Measure and print; the exit status tells of a breakdown, never of a missed target.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, 100,000 records")
    parser.add_argument(
        "--only", action="append", choices=_PARTS, help="this part; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    options = parser.parse_args(arguments)
    if find_redis_server() is None:
        print("The benchmarks need a redis-server on the PATH.", file=sys.stderr)
        return 1
    stacks.configure()
    # Refused requests are part of the checks; their log lines are not part of the report.
    logging.disable(logging.CRITICAL)
    start = perf_counter()
    sections: list[Section] = []
    with RedisServer() as server:
        facts = _describe(server, quick=options.quick)
        print(_headline(facts), flush=True)
        for name in options.only or _PARTS:
            server.command("FLUSHALL")
            for section in _PARTS[name](server, options.quick):
                sections.append(section)
                print(render(section), flush=True)
    print(render_summary(sections))
    print(f"{perf_counter() - start:.0f} seconds")
    if options.json is not None:
        document = {"run": facts, "sections": [section.to_dict() for section in sections]}
        options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return 0


def _describe(server: RedisServer, *, quick: bool) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "django": django.get_version(),
        "redis-py": version("redis"),
        "redis": server.info("server")["redis_version"],
        "drf-idempotency": version("drf-idempotency"),
        "machine": f"{platform.system()} {platform.machine()}",
        "quick": quick,
    }


def _headline(facts: dict[str, Any]) -> str:
    named = " · ".join(
        f"{name} {facts[key]}"
        for name, key in (
            ("Python", "python"),
            ("Django", "django"),
            ("redis-py", "redis-py"),
            ("Redis", "redis"),
            ("drf-idempotency", "drf-idempotency"),
        )
    )
    extent = " · quick: fewer rounds, smaller sizes" if facts["quick"] else ""
    return f"dotmac-tasks benchmarks\n{named}\n{facts['machine']}{extent}"


if __name__ == "__main__":
    sys.exit(main())
