"""
The old import paths: a distribution of its own, whose names are those of dotmac_tasks.

Each test runs in a process of its own that sees the archives it asks for and nothing else that
is installed.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
import textwrap
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import dotmac_tasks
from support.archives import ROOT, build, copy_tree, run

LEGACY = "dotmac_shared.middleware.background_operations"
NAMES = [
    "BackgroundOperation",
    "BackgroundOperationsManager",
    "BackgroundOperationsMiddleware",
    "IdempotencyKey",
    "MemoryStorage",
    "OperationStatus",
    "SagaStep",
    "SagaStepStatus",
    "SagaWorkflow",
    "add_background_operations_middleware",
    "get_idempotency_key",
    "is_idempotent_request",
    "set_operation_result",
]
# Of what a program prints: the warnings that it caught, by file, line and text.
CATCH = """
import sys
import warnings

caught = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, category, filename, lineno, *rest: caught.append(
    (category.__name__, filename, lineno, str(message))
)
"""

pytestmark = pytest.mark.slow


class Site(NamedTuple):
    """
    Folders to which archives are unpacked, as an installer does.
    """

    main: Path
    shims: Path


class Archives(NamedTuple):
    """
    The wheels of both distributions.
    """

    main: Path
    shims: Path


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    tree = copy_tree(tmp_path_factory.mktemp("tree"))
    return Archives(build(tree), build(tree / "shims"))


@pytest.fixture(scope="module")
def site(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folders = [tmp_path_factory.mktemp(name) for name in Site._fields]
    for archive, folder in zip(archives, folders, strict=True):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
    return Site(*folders)


def run_program(folder: Path, *path: Path, source: str, legacy: str = "", catch: str = "") -> str:
    """
    Run a program that finds these folders and the standard library; return what it prints.
    """
    program = folder / "program.py"
    program.write_text(catch + textwrap.dedent(source), encoding="utf-8")
    environ = {
        "PYTHONPATH": ":".join(map(str, path)),
        "PYTHONSAFEPATH": "1",
        "DOTMAC_TASKS_LEGACY": legacy,
    }
    return run(sys.executable, "-S", program, cwd=folder, environ=environ).stdout


def run_both(site: Site, folder: Path, *, source: str, legacy: str = "") -> str:
    """
    Run a program that finds both distributions, and has its warnings in `caught`.
    """
    return run_program(folder, site.shims, site.main, source=source, legacy=legacy, catch=CATCH)


def line_of(folder: Path, text: str) -> int:
    lines = (folder / "program.py").read_text(encoding="utf-8").splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if text in line)
    return number


def message_of(name: str) -> str:
    return f"{LEGACY}.{name} is deprecated. Write: from dotmac_tasks import {name}"


def test_archive_holds_two_packages_and_their_types(archives: Archives) -> None:
    """No shared folder has an __init__.py, and both modules say that they have types."""
    with zipfile.ZipFile(archives.shims) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        licenses = [name for name in opened.namelist() if name.endswith("/LICENSE")]
    folders = ("dotmac/tasks", "dotmac_shared/middleware/background_operations")
    assert names == {
        f"{folder}/{file}" for folder in folders for file in ("__init__.py", "py.typed")
    }
    assert len(licenses) == 1


def test_licence_and_version_are_those_of_the_main_distribution() -> None:
    """Both are released together, under one licence."""
    assert (ROOT / "shims" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    versions = []
    for file in (ROOT / "setup.cfg", ROOT / "shims" / "setup.cfg"):
        parser = configparser.ConfigParser()
        parser.read(file)
        versions.append(parser["metadata"]["version"])
    assert versions[0] == versions[1]


def test_shims_install_with_what_they_need(archives: Archives, tmp_path: Path) -> None:
    """An installer finds that they need the main distribution, and takes its version."""
    venv.create(tmp_path / "home", with_pip=True)
    python = tmp_path / "home" / "bin" / "python"
    found = [f"--find-links={archive.parent}" for archive in archives]
    run(python, "-m", "pip", "install", "--no-index", *found, "dotmac-tasks-shims", cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    source = f"import dotmac.tasks, {LEGACY}; print(dotmac.tasks.__version__)"
    assert run(python, "-c", source, cwd=tmp_path).stdout == f"{archives.main.name.split('-')[1]}\n"


def test_importing_does_nothing(site: Site, tmp_path: Path) -> None:
    """Importing both modules warns of nothing and does not import dotmac_tasks."""
    printed = run_both(
        site,
        tmp_path,
        source=f"""
        import dotmac.tasks
        import {LEGACY} as legacy

        print(legacy.__all__ == {NAMES!r}, set({NAMES!r}) <= set(dir(legacy)))
        print(caught, [name for name in sys.modules if name.startswith("dotmac_tasks")])
        """,
    )
    assert printed == "True True\n[] []\n"


@pytest.mark.parametrize("name", NAMES)
def test_use_warns_at_the_line_of_the_caller(site: Site, tmp_path: Path, name: str) -> None:
    """An import of the name and a use of it warn once each, with file, line and new import."""
    printed = run_both(
        site,
        tmp_path,
        source=f"""
        import dotmac_tasks
        import {LEGACY} as legacy
        from {LEGACY} import {name}  # first
        again = legacy.{name}  # second
        print(caught)
        print({name} is again is dotmac_tasks.{name})
        """,
    )
    warned, same = printed.splitlines()
    program = str(tmp_path / "program.py")
    assert ast.literal_eval(warned) == [
        ("DeprecationWarning", program, line_of(tmp_path, place), message_of(name))
        for place in ("# first", "# second")
    ]
    assert same == "True"
    assert hasattr(dotmac_tasks, name)


def test_use_in_a_function_is_shown_to_the_caller_of_the_module(site: Site, tmp_path: Path) -> None:
    """Wherever the name is used, it is that line which is named, and every use is."""
    printed = run_both(
        site,
        tmp_path,
        source=f"""
        def use():
            from {LEGACY} import MemoryStorage, OperationStatus  # here

        use()
        use()
        print([lineno for _, _, lineno, _ in caught])
        """,
    )
    assert ast.literal_eval(printed) == [line_of(tmp_path, "# here")] * 4


def test_star_import_gives_all_names(site: Site, tmp_path: Path) -> None:
    """A star import takes the thirteen names, and warns of each."""
    printed = run_both(
        site,
        tmp_path,
        source=f"""
        import dotmac_tasks
        from {LEGACY} import *

        print(all(globals()[name] is getattr(dotmac_tasks, name) for name in {NAMES!r}))
        print(len(caught))
        """,
    )
    assert printed == "True\n13\n"


def test_objects_are_those_of_the_new_package(site: Site, tmp_path: Path) -> None:
    """Instances made through one path are instances for the other, also after pickling."""
    printed = run_program(
        tmp_path,
        site.shims,
        site.main,
        source=f"""
        import pickle

        import dotmac_tasks
        from dotmac.tasks import IdempotencyKey as plain
        from {LEGACY} import IdempotencyKey, OperationStatus, SagaStep

        step = SagaStep(step_id="a", name="A", operation="do")
        print(isinstance(step, dotmac_tasks.SagaStep), pickle.loads(pickle.dumps(step)) == step)
        failed = dotmac_tasks.OperationStatus.FAILED
        print(pickle.loads(pickle.dumps(OperationStatus.FAILED)) is failed)
        print(IdempotencyKey is plain)
        # As an earlier process pickled it, under the old name.
        old = b"c{LEGACY}\\nOperationStatus\\n(Vfailed\\ntR."
        print(pickle.loads(old) is failed)
        """,
    )
    assert printed == "True True\nTrue\nTrue\nTrue\n"


@pytest.mark.parametrize("use", [f"from {LEGACY} import SagaStep", "legacy.SagaStep"])
def test_second_phase_refuses_a_use(site: Site, tmp_path: Path, use: str) -> None:
    """With DOTMAC_TASKS_LEGACY=error a use is an ImportError that names the new import."""
    source = f"""
        import {LEGACY} as legacy
        try:
            {use}
        except ImportError as error:
            print(error)
        print(caught, "dotmac_tasks" in sys.modules)
        """
    printed = run_both(site, tmp_path, source=source, legacy="error")
    told, rest = printed.splitlines()
    assert told.startswith(message_of("SagaStep"))
    assert "DOTMAC_TASKS_LEGACY" in told
    assert rest == "[] False"


def test_second_phase_leaves_the_silent_name_alone(site: Site, tmp_path: Path) -> None:
    """DOTMAC_TASKS_LEGACY=error says nothing about dotmac.tasks, nor does the manager mind it."""
    printed = run_both(
        site,
        tmp_path,
        legacy="error",
        source="""
        from dotmac.tasks import BackgroundOperationsManager

        with BackgroundOperationsManager.from_env() as manager:
            print(manager.check_idempotency("k"), caught)
        """,
    )
    assert printed == "None []\n"


def test_mistaken_mode_is_told(site: Site, tmp_path: Path) -> None:
    """A word that DOTMAC_TASKS_LEGACY cannot be is an error, not a warning that nobody sees."""
    printed = run_program(
        tmp_path,
        site.shims,
        site.main,
        legacy="errors",
        source=f"""
        try:
            from {LEGACY} import SagaStep
        except ImportError as error:
            print(error)
        """,
    )
    assert printed == "DOTMAC_TASKS_LEGACY is 'errors'. Set it to warn or to error.\n"


@pytest.mark.parametrize("module", [LEGACY, "dotmac.tasks"])
def test_missing_package_is_named_with_what_to_install(
    site: Site, tmp_path: Path, module: str
) -> None:
    """Without dotmac-tasks importing works, and each use is one error that says what to install."""
    printed = run_program(
        tmp_path,
        site.shims,
        catch=CATCH,
        source=f"""
        import {module} as module

        def use():
            from {module} import OperationStatus

        for use in (use, lambda: module.OperationStatus):
            try:
                use()
            except ImportError as error:
                print(type(error).__name__, error.name, error.__cause__ or error.__context__)
                print("pip install dotmac-tasks" in str(error), caught)
        print(len(dir(module)) > 5)
        """,
    )
    assert printed == "ImportError dotmac_tasks None\nTrue []\n" * 2 + "True\n"


@pytest.mark.parametrize("module", [LEGACY, "dotmac.tasks"])
@pytest.mark.parametrize("name", ["Nothing", "__wrapped__"])
def test_unknown_name_is_missed_as_anywhere_else(
    site: Site, tmp_path: Path, module: str, name: str
) -> None:
    """A name that neither package has is an AttributeError, and an ImportError where imported."""
    printed = run_both(
        site,
        tmp_path,
        source=f"""
        import {module} as module

        try:
            module.{name}
        except AttributeError as error:
            print(error)
        try:
            from {module} import {name}
        except ImportError as error:
            print(str(error).startswith("cannot import name '{name}' from '{module}'"))
        print(hasattr(module, "{name}"), caught)
        """,
    )
    assert printed == f"module '{module}' has no attribute '{name}'\nTrue\nFalse []\n"


def test_legacy_path_has_its_thirteen_names_only(site: Site, tmp_path: Path) -> None:
    """What is new in dotmac_tasks is not to be had under the path that goes away."""
    printed = run_program(
        tmp_path,
        site.shims,
        site.main,
        source=f"""
        import dotmac.tasks
        import {LEGACY} as legacy

        print(hasattr(legacy, "Storage"), hasattr(dotmac.tasks, "Storage"))
        """,
    )
    assert printed == "False True\n"


def test_silent_name_has_every_public_name(site: Site, tmp_path: Path) -> None:
    """dotmac.tasks has whatever dotmac_tasks exports, the same objects, without a warning."""
    printed = run_both(
        site,
        tmp_path,
        source="""
        import dotmac.tasks
        import dotmac_tasks

        names = set(dotmac_tasks.__all__) - {"RedisStorage"}
        print(all(getattr(dotmac.tasks, name) is getattr(dotmac_tasks, name) for name in names))
        print(dotmac.tasks.__all__ is dotmac_tasks.__all__, names <= set(dir(dotmac.tasks)))
        print(caught)
        """,
    )
    assert printed == "True\nTrue True\n[]\n"


def test_silent_name_has_the_submodules_themselves(site: Site, tmp_path: Path) -> None:
    """A submodule is the one of dotmac_tasks and never a copy, at any depth and in any order."""
    printed = run_program(
        tmp_path,
        site.shims,
        site.main,
        source="""
        import importlib
        import sys

        from dotmac.tasks.errors import ClaimLostError
        from dotmac.tasks import keys
        import dotmac.tasks.storage.memory
        import dotmac_tasks

        print(ClaimLostError is dotmac_tasks.ClaimLostError, keys is dotmac_tasks.keys)
        print(dotmac.tasks.storage.memory.MemoryStorage is dotmac_tasks.MemoryStorage)
        for name in ("errors", "storage", "storage.memory"):
            module = importlib.import_module(f"dotmac_tasks.{name}")
            print(sys.modules[f"dotmac.tasks.{name}"] is module, module.__spec__.name)
        importlib.reload(dotmac_tasks.clock)
        try:
            import dotmac.tasks.nothing
        except ModuleNotFoundError as error:
            print(error)
        """,
    )
    assert printed == (
        "True True\nTrue\n"
        "True dotmac_tasks.errors\n"
        "True dotmac_tasks.storage\n"
        "True dotmac_tasks.storage.memory\n"
        "No module named 'dotmac.tasks.nothing'\n"
    )


def write_package(folder: Path, *names: str) -> Path:
    for name in names:
        package = folder.joinpath(*name.split("."))
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
    return folder


def test_other_namespace_packages_are_found_beside(site: Site, tmp_path: Path) -> None:
    """Modules of other distributions in the same namespaces are found, wherever they are."""
    other = write_package(tmp_path / "other", "dotmac.billing", "dotmac_shared.middleware.cors")
    printed = run_program(
        tmp_path,
        other,
        site.shims,
        site.main,
        source=f"""
        import dotmac.billing
        import dotmac_shared.middleware.cors
        from dotmac.tasks import MemoryStorage
        from {LEGACY} import MemoryStorage as legacy
        print(legacy is MemoryStorage)
        """,
    )
    assert printed == "True\n"


def test_regular_package_in_the_same_folder_is_found_beside(site: Site, tmp_path: Path) -> None:
    """Where one folder holds both, a parent with an __init__.py has the shims as well."""
    together = tmp_path / "together"
    run("cp", "-r", site.shims, together, cwd=tmp_path)
    write_package(together, "dotmac", "dotmac_shared", "dotmac_shared.middleware")
    # The module that the earlier package had; the folder of the same name comes first.
    (together / "dotmac_shared" / "middleware" / "background_operations.py").write_text("1 / 0")
    printed = run_program(
        tmp_path,
        together,
        site.main,
        source=f"""
        from dotmac.tasks import MemoryStorage
        from {LEGACY} import MemoryStorage as legacy
        print(legacy is MemoryStorage)
        """,
    )
    assert printed == "True\n"


def test_regular_package_elsewhere_hides_them_until_it_is_extended(
    site: Site, tmp_path: Path
) -> None:
    """A parent with an __init__.py in another folder hides the shims; the readme's line helps."""
    source = """
        try:
            import dotmac.tasks
        except ModuleNotFoundError as error:
            print(error)
        else:
            print(dotmac.tasks.OperationStatus.FAILED)
        """
    other = write_package(tmp_path / "other", "dotmac")
    path = (other, site.shims, site.main)
    assert run_program(tmp_path, *path, source=source) == "No module named 'dotmac.tasks'\n"
    (line,) = (
        line.strip()
        for line in (ROOT / "shims" / "README.md").read_text(encoding="utf-8").splitlines()
        if "extend_path" in line
    )
    (other / "dotmac" / "__init__.py").write_text(line)
    assert run_program(tmp_path, *path, source=source) == "failed\n"


def read_phase(number: int) -> str:
    page = (ROOT / "docs" / "how-to" / "upgrade.md").read_text(encoding="utf-8")
    return page.partition(f"\n## Phase {number}")[2].partition("\n## ")[0]


def read_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def check_commands(section: str, folder: Path, *path: Path) -> int:
    """
    Run each command of a section that needs no network; it must print the lines that follow it.
    """
    checked = 0
    for block in read_blocks(section, "console"):
        for command, *shown in (part.splitlines() for part in block.split("$ ")[1:]):
            if command.startswith("pip "):
                continue
            done = subprocess.run(
                ["sh", "-c", re.sub(r"\bpython ", f"{sys.executable} -S ", command)],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(map(str, path))},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            printed = done.stdout + done.stderr
            assert all(line in printed for line in shown), printed
            assert shown or not printed, printed
            # A command that fails is shown failing.
            refused = done.returncode and not command.startswith("grep")
            assert bool(refused) == any("Error: " in line for line in shown), printed
            checked += 1
    return checked


def test_upgrade_page_does_what_it_shows(site: Site, tmp_path: Path) -> None:
    """Each phase's commands print what the page shows, on the project that the page changes."""
    old, new = read_blocks(read_phase(1), "python")
    payments = tmp_path / "payments.py"
    payments.write_text(old)
    assert check_commands(read_phase(1), tmp_path, site.shims, site.main) == 2
    payments.write_text(old.replace(old.splitlines()[0], new.strip()))
    assert check_commands(read_phase(2), tmp_path, site.shims, site.main) == 2
    assert check_commands(read_phase(3), tmp_path, site.main) == 2


def test_upgrade_page_quiets_the_warnings_in_tests(site: Site, tmp_path: Path) -> None:
    """With the lines of the page a suite that makes errors of warnings passes, and tells them."""
    (lines,) = read_blocks(read_phase(1), "ini")
    (tmp_path / "pytest.ini").write_text(lines)
    suite = f"def test_use():\n    from {LEGACY} import MemoryStorage\n"
    (tmp_path / "test_suite.py").write_text(suite)
    environ = {"PYTHONPATH": f"{site.shims}:{site.main}", "DJANGO_SETTINGS_MODULE": ""}
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:django"]
    done = run(sys.executable, "-m", "pytest", *options, cwd=tmp_path, environ=environ)
    assert "1 passed, 1 warning" in done.stdout
    assert message_of("MemoryStorage") in done.stdout
