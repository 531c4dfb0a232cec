"""
Archives built from a copy of the source tree, and programs run beside what they hold.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("dotmac_tasks", "dotmac_tasks_django")


def run(
    *arguments: str | Path, cwd: Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """
    Run a program to its end and show what it said if it failed.
    """
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env={**_environ(), **(environ or {})},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _environ() -> dict[str, str]:
    # Coverage would take unpacked packages for more of what it measures.
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def copy_tree(folder: Path) -> Path:
    """
    Copy what the two packages are built from, and the shims beside them.
    """
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in (*PACKAGES, "shims"):
        leavings = shutil.ignore_patterns("__pycache__", "build", "dist", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, ignore=leavings)
    return folder


def build(tree: Path, kind: str = "wheel") -> Path:
    """
    Build the wheel or the sdist of the distribution in a folder; needs no network.
    """
    code = f"import setuptools.build_meta as backend; backend.build_{kind}('dist')"
    run(sys.executable, "-c", code, cwd=tree)
    (archive,) = (tree / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return archive
