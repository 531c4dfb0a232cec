"""
Asks whether what the extras install has known vulnerabilities, and says plainly what came of it.

Run in an environment that holds the distribution with its extras, and pip-audit::

    python .ci/audit.py django docs redis test

Ends with 1 where a vulnerability is known. Where the package index serves no such data, it says
that nothing was audited and ends with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DISTRIBUTION = "dotmac-tasks"


def find_installed(name: str, extras: Iterable[str]) -> dict[str, str]:
    """
    Return name and version of all that a distribution needs with these extras, at any depth.
    """
    found: dict[str, str] = {}
    seen = set()
    waiting = [(name, frozenset(extras))]
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        installed = distribution(asked[0])
        found[canonicalize_name(asked[0])] = installed.version
        for text in installed.requires or ():
            needed = Requirement(text)
            cases = [{"extra": extra} for extra in asked[1] or {""}]
            if needed.marker is None or any(map(needed.marker.evaluate, cases)):
                waiting.append((needed.name, frozenset(needed.extras)))
    return found


def audit(installed: dict[str, str]) -> dict[str, Any]:
    """
    Return pip-audit's report of exactly these versions.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "requirements.txt")
        listed.write_text("".join(f"{name}=={installed[name]}\n" for name in sorted(installed)))
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip"]
        options = ["--progress-spinner=off", "--format=json", f"--requirement={listed}"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        sys.exit(f"pip-audit failed before it had anything to report:\n{done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def judge(report: dict[str, Any]) -> tuple[list[str], int]:
    """
    Return what a report comes to, line by line, and the exit code.
    """
    packages = report["dependencies"]
    skipped = [package for package in packages if "skip_reason" in package]
    lines = [f"skipped {package['name']}: {package['skip_reason']}" for package in skipped]
    known = [
        f"VULNERABLE {package['name']} {package['version']}: {flaw['id']}, "
        f"fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    lines += known
    if packages and len(skipped) == len(packages):
        lines.append(
            "Result: SKIPPED. The index serves no vulnerability data: nothing was audited."
        )
    else:
        audited = len(packages) - len(skipped)
        verdict = f"{len(known)} known vulnerabilities" if known else "no known vulnerability"
        lines.append(
            f"Result: AUDITED {audited} of {len(packages)} packages: {verdict}, "
            f"{len(skipped)} skipped."
        )
    return lines, 1 if known else 0


def main() -> None:
    """
    Audit what the extras on the command line install.
    """
    installed = find_installed(DISTRIBUTION, sys.argv[1:])
    # Ours is on no index before its release, and bandit looks at its source.
    del installed[DISTRIBUTION]
    lines, code = judge(audit(installed))
    print(*lines, sep="\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
