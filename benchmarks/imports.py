"""
What `import dotmac_tasks` loads and how long it takes.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.report import Check, Section, spread
from benchmarks.timing import interleave

_BESIDE = "json, logging, dataclasses, threading"
_UNWANTED = ("asyncio", "django", "redis")
_PROGRAM = """
import sys, time
sys.path[:0] = {path!r}
start = time.perf_counter()
import {modules}
print(time.perf_counter() - start)
"""
_LOADED = """
import json, sys
sys.path[:0] = {path!r}
before = len(sys.modules)
import {modules}
print(json.dumps([len(sys.modules) - before, sorted(set(sys.modules) & set({unwanted!r}))]))
"""


def measure_imports(*, rounds: int) -> Section:
    """
    Time the import in fresh interpreters, beside modules nearly everybody has.
    """
    section = Section(
        "Import",
        ("Milliseconds in a fresh interpreter with compiled files; median [quartiles].",),
        ("", "milliseconds", "modules", "unwanted", "target", ""),
    )
    modules = {f"import {_BESIDE}": _BESIDE, "import dotmac_tasks": "dotmac_tasks"}
    times = interleave(
        {name: lambda each=each: [_time(each)] for name, each in modules.items()},  # type: ignore[misc]
        rounds,
    )
    for name, each in modules.items():
        (series,) = times[name]
        section.keep(f"{name}, ms", series)
        count, unwanted = json.loads(_run(_LOADED, each, unwanted=_UNWANTED))
        section.data[f"{name}, modules"] = count
        cells = (name, spread(series), str(count), ", ".join(unwanted) or "none")
        if each == _BESIDE:
            section.add(*cells)
            continue
        what = f"Import: loads of {', '.join(_UNWANTED)}"
        section.add(*cells, check=Check(what, len(unwanted), 0, "=="))
    (beside,), (ours,) = times.values()
    section.add("ratio", spread(ours.over(beside)))
    return section


def _time(modules: str) -> float:
    return float(_run(_PROGRAM, modules)) * 1000


def _run(program: str, modules: str, **more: object) -> str:
    code = program.format(path=[sys.path[0]], modules=modules, **more)
    return subprocess.run(
        [sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True
    ).stdout
