"""
The rules of tests/conftest.py hold, since a silent skip would make every other test worthless.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SUITE = """
from __future__ import annotations

import os

import pytest


@pytest.mark.{mark}
def test_skipping():
    pytest.skip("no server")


def test_environment():
    assert "REDIS_URL" not in os.environ
    assert "DOTMAC_TASKS_LEASE" not in os.environ
"""


def run_suite(folder: Path, *, mark: str, **environment: str) -> str:
    """
    Run a suite of one skipping and one passing test under our conftest; return its last line.
    """
    shutil.copy(CONFTEST, folder)
    folder.joinpath("pytest.ini").write_text("[pytest]\nmarkers =\n    redis:\n    elsewhere:\n")
    folder.joinpath("test_suite.py").write_text(SUITE.format(mark=mark))
    ours = {"DJANGO_SETTINGS_MODULE", "CI_DOTMAC_TASKS"}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout.strip().splitlines()[-1]


def test_missing_server_skips_on_a_laptop(tmp_path: Path) -> None:
    """Without the CI flag a test that finds no server is skipped."""
    assert run_suite(tmp_path, mark="redis").startswith("1 passed, 1 skipped")


def test_missing_server_fails_under_ci(tmp_path: Path) -> None:
    """With the CI flag the same skip is a failure."""
    pytest.importorskip("redis")
    last_line = run_suite(tmp_path, mark="redis", CI_DOTMAC_TASKS="1")
    assert last_line.startswith("1 failed, 1 passed")


def test_other_skip_stays_a_skip_under_ci(tmp_path: Path) -> None:
    """A skip that is about no server is none of the flag's business."""
    last_line = run_suite(tmp_path, mark="elsewhere", CI_DOTMAC_TASKS="1")
    assert last_line.startswith("1 passed, 1 skipped")


def test_environment_is_scrubbed(tmp_path: Path) -> None:
    """Settings that a developer has exported do not reach a test."""
    last_line = run_suite(tmp_path, mark="redis", REDIS_URL="redis://x", DOTMAC_TASKS_LEASE="1")
    assert last_line.startswith("1 passed, 1 skipped")
