from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dotmac_tasks

CONFTEST = 'pytest_plugins = ["dotmac_tasks.testing.fixtures"]\n'
SUITE = """
import threading

import pytest

seen = []


def test_harness(tasks_harness):
    charge = tasks_harness.manager.idempotent("charge")(lambda order: order)
    tasks_harness.send_twice(lambda: charge(7)).assert_replayed()
    seen.append(tasks_harness)


def test_another(tasks_harness):
    charge = tasks_harness.manager.idempotent("charge")(lambda order: order)
    tasks_harness.send_twice(lambda: charge(7)).assert_replayed()
    seen.append(tasks_harness)


@pytest.mark.parametrize("tasks_settings", [{"lease": 7}])
def test_settings(tasks_harness):
    assert tasks_harness.manager.config.lease == 7


class TestOverridden:
    @pytest.fixture
    def tasks_settings(self):
        return {"lease": 8}

    def test_settings(self, tasks_harness):
        assert tasks_harness.manager.config.lease == 8


@pytest.fixture(scope="module", autouse=True)
def leftovers():
    yield
    assert seen[0].storage is not seen[1].storage
    assert [thread.name for thread in threading.enumerate() if "dotmac" in thread.name] == []
"""


def test_one_line_in_the_conftest_is_enough(tmp_path: Path) -> None:
    """With it a project has the fixtures, its settings count, and no thread is left behind."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_charge.py").write_text(SUITE)
    ours = {"DJANGO_SETTINGS_MODULE", "CI_DOTMAC_TASKS"}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": str(Path(dotmac_tasks.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
