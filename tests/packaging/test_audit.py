"""
The audit of what the extras install says plainly whether it was one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"

CLEAN = {"name": "redis", "version": "8.0.0", "vulns": []}
FLAWED = {
    "name": "django",
    "version": "5.2.0",
    "vulns": [
        {"id": "CVE-1", "fix_versions": ["5.2.1", "6.0"]},
        {"id": "CVE-2", "fix_versions": []},
    ],
}
SKIPPED = {"name": "lupa", "skip_reason": "not found"}


@pytest.fixture
def script() -> ModuleType:
    """
    The script as a module.
    """
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "result", "code"),
    [
        ([CLEAN], "Result: AUDITED 1 of 1 packages: no known vulnerability, 0 skipped.", 0),
        (
            [CLEAN, SKIPPED],
            "Result: AUDITED 1 of 2 packages: no known vulnerability, 1 skipped.",
            0,
        ),
        (
            [SKIPPED, SKIPPED],
            "Result: SKIPPED. The index serves no vulnerability data: nothing was audited.",
            0,
        ),
        (
            [CLEAN, FLAWED, SKIPPED],
            "Result: AUDITED 2 of 3 packages: 2 known vulnerabilities, 1 skipped.",
            1,
        ),
    ],
)
def test_report_is_judged(
    script: ModuleType, packages: list[dict[str, Any]], result: str, code: int
) -> None:
    """A vulnerability fails the audit, missing data does not, and the last line says so."""
    lines, found = script.judge({"dependencies": packages})
    assert (lines[-1], found) == (result, code)


def test_each_vulnerability_and_each_skip_has_a_line(script: ModuleType) -> None:
    """Package, version, number and the versions that mend it are named, and why one was skipped."""
    lines, _ = script.judge({"dependencies": [FLAWED, SKIPPED]})
    assert lines[:-1] == [
        "skipped lupa: not found",
        "VULNERABLE django 5.2.0: CVE-1, fixed in 5.2.1, 6.0",
        "VULNERABLE django 5.2.0: CVE-2, fixed in no version",
    ]


def test_what_an_extra_brings_is_found_at_any_depth(script: ModuleType) -> None:
    """Of an installed distribution all that is needed is found, and nothing that is not."""
    found = script.find_installed("pytest", [])
    assert {"pytest", "packaging", "pluggy", "iniconfig"} <= set(found)
    assert "pytest-timeout" not in found
    assert "setuptools" not in found
