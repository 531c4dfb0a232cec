"""
The archive holds what the packages need at run time, and works where nothing else is.
"""

from __future__ import annotations

import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from support.archives import PACKAGES, ROOT, build, copy_tree, run

# Beside the modules themselves, what a running package reads.
DATA_SUFFIXES = {".html", ".lua", ".py", ".txt", ".typed"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The wheel of a copy of the source tree, so that no earlier build can leak into it.
    """
    return build(copy_tree(tmp_path_factory.mktemp("tree")))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    The interpreter of an environment that holds the wheel and nothing else.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=home)
    return python


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    """
    The names in the archive.
    """
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_holds_every_file_of_the_package(package: str, contents: set[str]) -> None:
    """Every module, script, template and marker of the tree is in the archive."""
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / package).rglob("*")
        if path.suffix in DATA_SUFFIXES and "__pycache__" not in path.parts
    }
    assert f"{package}/py.typed" in files
    assert files - contents == set()


def test_wheel_holds_the_scripts(contents: set[str]) -> None:
    """The Lua scripts, without which the Redis storage does nothing, are in the archive."""
    assert any(
        name.startswith("dotmac_tasks/storage/lua/") and name.endswith(".lua") for name in contents
    )


def test_wheel_holds_nothing_else(contents: set[str]) -> None:
    """No test, example or document of the project travels in the archive."""
    tops = {name.partition("/")[0] for name in contents}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_sdist_holds_nothing_else(tmp_path: Path) -> None:
    """The sources of the two packages are in it, and none of the shims that lie beside them."""
    with tarfile.open(build(copy_tree(tmp_path), "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.partition("/")[0] for name in names if "/" in name}
    assert {top for top in tops if not top.endswith(".egg-info")} == set(PACKAGES)
    assert "dotmac_tasks/storage/lua/claim_operation.lua" in names


def test_wheel_demands_nothing(wheel: Path) -> None:
    """Whatever the packages need beyond the standard library is behind an extra."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    demands = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert demands
    assert [line for line in demands if "extra ==" not in line] == []


def test_wheel_works_in_an_empty_environment(wheel: Path, installed: Path, tmp_path: Path) -> None:
    """With nothing else installed an operation is claimed, done once and replayed."""
    script = textwrap.dedent("""
        import dotmac_tasks
        from dotmac_tasks import BackgroundOperationsManager

        runs = []
        with BackgroundOperationsManager() as manager:

            @manager.idempotent("charge")
            def charge(order):
                runs.append(order)
                return {"order": order}

            assert charge(order=7) == charge(order=7) == {"order": 7}
        print(dotmac_tasks.__version__, runs)
    """)
    done = run(installed, "-W", "error", "-c", script, cwd=tmp_path)
    assert done.stdout == f"{wheel.name.split('-')[1]} [7]\n"


def test_wheel_without_redis_says_what_to_install(installed: Path, tmp_path: Path) -> None:
    """Asking for Redis without its client names the extra that brings it."""
    script = textwrap.dedent("""
        from dotmac_tasks import ConfigurationError

        try:
            from dotmac_tasks import RedisStorage

            RedisStorage(redis_url="redis://127.0.0.1:1/0")
        except (ConfigurationError, ImportError) as error:
            print(error)
    """)
    done = run(installed, "-c", script, cwd=tmp_path)
    assert "dotmac-tasks[redis]" in done.stdout
