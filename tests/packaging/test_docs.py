"""
The documentation says what the code does: tables, names and examples are compared with it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace

import pytest

import dotmac_tasks
from dotmac_tasks import errors, events, http, serialization, testing
from dotmac_tasks.config import TasksConfig
from dotmac_tasks.http.answers import _PROBLEMS
from dotmac_tasks.http.keeping import _REPLAYED
from dotmac_tasks.http.run import _RELEASING
from dotmac_tasks.models import OperationStatus
from dotmac_tasks.transitions import (
    OPERATION_TRANSITIONS,
    SAGA_STEP_TRANSITIONS,
    SAGA_TRANSITIONS,
)

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# Pages whose Python blocks are a program when they are put together, from these sections or all.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "how-to/configure.md": (),
    "how-to/observe.md": (),
    "how-to/test-your-code.md": ("A function", "What happened"),
    "how-to/use-locks.md": (),
    "how-to/write-a-storage.md": (),
    "how-to/wsgi-middleware.md": ("A plain application", "Users and tenants"),
}
# Those of them that import Django.
DJANGO_PROGRAMS = {"how-to/configure.md", "how-to/observe.md"}


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def read_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def read_table(page: str, heading: str) -> list[list[str]]:
    """
    Return the rows of all tables of a page whose first column has this heading.
    """
    rows: list[list[str]] = []
    inside = False
    for line in read(page).splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif cells[0] == heading:
            inside = True
        elif inside and not set(cells[0]) <= {"-", " "}:
            rows.append(cells)
    assert rows, f"{page} has no table under {heading!r}"
    return rows


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first_codes(page: str, heading: str) -> list[str]:
    return [codes(row[0])[0] for row in read_table(page, heading)]


def show_default(value: object) -> str:
    if value is None:
        return "built in"
    if isinstance(value, tuple):
        return f"`{json.dumps(list(value))}`"
    if isinstance(value, str):
        return f"`{json.dumps(value)}`"
    return f"`{value:.0f}`" if isinstance(value, float) else f"`{value}`"


def test_settings_are_those_of_the_code() -> None:
    """Each setting is listed once, with its default."""
    expected = {
        field.name.upper(): show_default(field.default)
        for field in dataclasses.fields(TasksConfig)
        if field.init
    }
    rows = read_table("reference/settings.md", "setting")
    assert {codes(row[0])[0]: row[1] for row in rows} == expected
    assert len(rows) == len(expected)


def test_settings_are_read_from_the_environment_as_told() -> None:
    """The environment has each listed name behind the prefix, and the storage another one."""
    defaults = TasksConfig()
    for name in first_codes("reference/settings.md", "setting"):
        value = getattr(defaults, name.lower())
        value = "shop.find" if value is None else value
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        changed = TasksConfig.from_env({f"DOTMAC_TASKS_{name}": text})
        assert getattr(changed, name.lower()) == value
    page = read("reference/settings.md")
    assert "`DOTMAC_TASKS_LEASE`" in page
    assert "`REDIS_URL`" in page
    assert TasksConfig.from_env({"REDIS_URL": "redis://there"}).storage == "redis://there"


def test_errors_are_those_of_the_code() -> None:
    """Each error is listed with whether it makes sense to try again."""
    expected = {name: "yes" if getattr(errors, name).retryable else "no" for name in errors.__all__}
    rows = read_table("reference/errors.md", "error")
    assert {codes(row[0])[0]: row[2] for row in rows} == expected


def test_error_tree_is_that_of_the_code() -> None:
    """The tree on the page is the one in the module, and holds every class in its place."""
    (tree,) = read_blocks(read("reference/errors.md"), "text")
    assert textwrap.indent(tree, "    ") in (errors.__doc__ or "")
    parents: list[str] = []
    found = {}
    for line in tree.splitlines():
        match = re.match(r"([│├└─ ]*)(\w+)", line)
        assert match is not None
        depth = len(match[1]) // 4
        del parents[depth:]
        found[match[2]] = parents[-1] if parents else "Exception"
        parents.append(match[2])
    assert found == {name: getattr(errors, name).__bases__[0].__name__ for name in errors.__all__}


def test_events_are_those_of_the_code() -> None:
    """Each event is listed with its name, its hook and its fields."""
    expected = {
        kind.__name__: (kind.name, kind.hook, [item.name for item in dataclasses.fields(kind)])
        for kind in events.Event.__subclasses__()
        if dataclasses.is_dataclass(kind)
    }
    found = {
        codes(row[0])[0]: (*codes(row[1]), codes(row[2]))
        for row in read_table("reference/events.md", "event")
    }
    assert found == expected


def test_problem_types_are_those_of_the_code() -> None:
    """Each problem type is listed with its status and its title, and named in the answers."""
    rows = read_table("reference/http.md", "type")
    assert {codes(row[0])[0]: (int(row[1]), row[2]) for row in rows} == {
        name: (status, title) for name, (status, title, _) in _PROBLEMS.items()
    }
    answers = " ".join(row[1] for row in read_table("reference/http.md", "situation"))
    assert set(_PROBLEMS) <= set(codes(answers))
    assert f"`{http.PROBLEM_PREFIX}`" in read("reference/http.md")


def test_shown_problems_are_those_of_the_code() -> None:
    """Each problem document that a page shows has the status, title and words of the code."""
    shown = [
        json.loads(line)
        for page in PAGES
        for line in read(page).splitlines()
        if line.startswith('{"type": "urn:')
    ]
    assert shown
    for problem in shown:
        status, title, detail = _PROBLEMS[problem["type"].removeprefix(http.PROBLEM_PREFIX)]
        assert (status, title) == (problem["status"], problem["title"])
        words = [re.escape(part) for part in re.split(r"{\w+}", detail)]
        assert re.fullmatch(".+".join(words), problem["detail"])


def test_statuses_and_headers_are_those_of_the_code() -> None:
    """What is kept and what is replayed is told completely."""
    page = read("reference/http.md")
    (kept,) = re.findall(r"^2xx, 3xx and 4xx are kept, but for (.*)\.$", page, re.MULTILINE)
    assert {int(status) for status in re.findall(r"\d+", kept)} == _RELEASING
    section = page.partition("## Which headers a replay carries")[2].partition("and what")[0]
    assert {name.lower() for name in codes(section)} == _REPLAYED
    assert f"`{http.STORE_HEADER}`" in page


def test_view_options_are_those_of_the_code() -> None:
    """The options of a view are listed where its settings are."""
    (line,) = re.findall(
        r"^`@idempotent\(\.\.\.\)` takes (.*)$", read("reference/settings.md"), re.M
    )
    assert codes(line) == [field.name for field in dataclasses.fields(http.ViewOptions)]


def test_redis_keys_are_those_of_the_code() -> None:
    """Each pattern of a key is listed as the storage forms it."""
    pytest.importorskip("redis")
    storage = dotmac_tasks.RedisStorage("redis://127.0.0.1:1/0")
    statuses = [status.value.encode() for status in OperationStatus]
    tenant, *by_status = storage._listings(b"{tenant}")
    expected = {
        storage._records + b"{key}",
        storage._index,
        storage._fence,
        storage._quotas + b"{caller}",
        storage._locks + b"{name}",
        storage._operations + b"{id}",
        storage._operation_index,
        tenant,
        *(
            name.replace(b"status:" + status, b"status:{status}")
            for name, status in zip(by_status, statuses, strict=True)
        ),
    }
    found = first_codes("reference/redis-layout.md", "key")
    assert sorted(found) == sorted(name.decode() for name in expected)


def test_record_fields_are_those_of_the_scripts() -> None:
    """Each field that a script reads of a record is listed."""
    script = ROOT / "dotmac_tasks" / "storage" / "lua" / "record.lua"
    page = [
        name for row in read_table("reference/redis-layout.md", "field") for name in codes(row[0])
    ]
    used = set(re.findall(r"\b(?:r|record)\.(\w)\b", script.read_text(encoding="utf-8")))
    assert used <= set(page)
    kinds = first_codes("reference/redis-layout.md", "first two bytes")
    assert all(f"    {kind}" in (serialization.__doc__ or "") for kind in kinds)
    assert len(kinds) == (serialization.__doc__ or "").count("\n    1")


def test_documented_redis_user_is_the_tested_one() -> None:
    """The access rules on the page are those of the storage's docstring, which are tested."""
    pytest.importorskip("redis")
    rules = re.search(r"ACL SETUSER(.*?)\n\n", dotmac_tasks.RedisStorage.__doc__ or "", re.DOTALL)
    assert rules is not None
    (block,) = [
        block for block in read_blocks(read("how-to/deploy.md"), "text") if "SETUSER" in block
    ]
    assert block.replace("\\", " ").split()[2:] == rules[1].split()


def test_checks_are_those_of_the_code() -> None:
    """Each system check is listed by its id."""
    pytest.importorskip("django")
    checks = importlib.import_module("dotmac_tasks_django.checks").CHECKS
    expected = [f"dotmac_tasks.{name}" for name in checks]
    assert first_codes("reference/checks.md", "id") == expected


def test_commands_are_those_of_the_code() -> None:
    """Each command is listed with its own options and their defaults."""
    base = pytest.importorskip("django.core.management.base")
    folder = ROOT / "dotmac_tasks_django" / "management" / "commands"
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    page = read("reference/commands.md")
    assert re.findall(r"^## manage\.py (\w+)$", page, re.MULTILINE) == names
    expected = []
    for name in names:
        module = importlib.import_module(f"dotmac_tasks_django.management.commands.{name}")
        inherited = {
            action.dest for action in base.BaseCommand().create_parser("manage.py", name)._actions
        }
        parser = module.Command().create_parser("manage.py", name)
        expected += list_options("", parser, inherited)
    rows = [
        (codes(row[0])[0], row[1], subcommand)
        for row in read_table("reference/commands.md", "option")
        # Options of subcommands have a column that says of which.
        for subcommand in (codes(row[2]) if len(row) == 4 else [""])
    ]
    assert sorted(rows) == sorted(expected)


def list_options(
    subcommand: str, parser: argparse.ArgumentParser, inherited: set[str]
) -> list[tuple[str, str, str]]:
    """
    Return the options of a parser and of those below it: name, default, subcommand.
    """
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found += list_options(f"{subcommand} {name}".strip(), below, inherited)
        elif action.option_strings and action.dest not in inherited:
            absent = "none" if subcommand else "no limit"
            shown = {False: "off", None: absent}.get(action.default) or f"`{action.default}`"
            default = "required" if action.required else shown
            found.append((action.option_strings[0], default, subcommand))
    return found


def test_public_names_are_documented() -> None:
    """Each public name has its place on the API page, and each helper for tests."""
    page = read("reference/api.md")
    documented = set(re.findall(r"^\.\. auto\w+:: (\S+)$", page, re.MULTILINE))
    packages = {
        "dotmac_tasks": dotmac_tasks.__all__,
        "dotmac_tasks.testing": testing.__all__,
    }
    source = (ROOT / "dotmac_tasks_django" / "__init__.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            packages["dotmac_tasks_django"] = ast.literal_eval(node.value)
    assert len(packages) == 3
    wanted = {f"{package}.{name}" for package, names in packages.items() for name in names}
    assert wanted - documented == set()


@pytest.mark.parametrize(
    ("heading", "transitions"),
    [
        ("Of an idempotency record", OPERATION_TRANSITIONS),
        ("Of a background operation", OPERATION_TRANSITIONS),
        ("Of a saga", SAGA_TRANSITIONS),
        ("Of a step of a saga", SAGA_STEP_TRANSITIONS),
    ],
)
def test_lifecycle_is_that_of_the_table(
    heading: str, transitions: Mapping[StrEnum, frozenset[StrEnum]]
) -> None:
    """The arrows between statuses on the page are those of the table, and no others."""
    section = read("explanation/lifecycle.md").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (block,) = read_blocks(section, "text")
    arrows = re.findall(r"^(\w+) +--.*--> +(\w+)$", block, re.MULTILINE)
    assert len(arrows) == len(block.splitlines())
    assert {pair for pair in arrows if "absent" not in pair} == {
        (current.value, following.value)
        for current, allowed in transitions.items()
        for following in allowed
    }


PROVED = {
    "explanation/guarantees.md": ("promise", "what happens"),
    "explanation/proofs.md": ("situation",),
    "explanation/threat-model.md": ("who",),
}


@pytest.mark.parametrize("page", PROVED)
def test_guarantees_name_tests_that_exist(page: str) -> None:
    """Each test that a guarantee is said to be proved by is there."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read(page))
    assert named
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file()
        or not re.search(rf"\bdef {name}\(", (ROOT / file).read_text(encoding="utf-8"))
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("page", "heading"), [(page, heading) for page, heads in PROVED.items() for heading in heads]
)
def test_every_guarantee_has_its_proof_or_says_no(page: str, heading: str) -> None:
    """A row of a table of guarantees names a test, or says in words that there is no defence."""
    for row in read_table(page, heading):
        assert "`tests/" in row[-1] or row[-1].startswith("no "), row[0]


def test_layers_are_those_that_are_enforced() -> None:
    """The layer diagram names the modules in the order that the import rules have."""
    rules = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (layers,) = re.findall(r"^layers = \[\n(.*?)^\]", rules, re.DOTALL | re.MULTILINE)
    wanted = [
        set(re.findall(r"(?<!\()\b[a-z_]+\b(?!\))", line)) for line in layers.splitlines() if line
    ]
    blocks = read_blocks(read("explanation/architecture.md"), "text")
    (diagram,) = [block for block in blocks if "L0" in block]
    # What stands before a layer's number, over as many lines as it takes.
    layers_drawn = re.split(r"L\d.*\n", diagram.partition("=\n")[2])
    found = [set(re.findall(r"[a-z_]+", drawn)) for drawn in layers_drawn if drawn.strip()]
    assert found == wanted


def test_messages_worth_an_alert_are_those_of_the_code() -> None:
    """Each log message that the page names is written somewhere."""
    texts = {
        node.value
        for path in (ROOT / "dotmac_tasks").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    patterns = [re.escape(text).replace("%s", ".+") for text in texts]
    for row in read_table("how-to/observe.md", "message"):
        (message,) = codes(row[0])
        assert any(re.fullmatch(pattern, message) for pattern in patterns), message


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("how-to/")])
def test_task_ends_with_its_proof(page: str) -> None:
    """Each how-to page ends by saying how to see that it worked."""
    assert re.findall(r"^## (.*)$", read(page), re.MULTILINE)[-1] == "Check that it works"


@pytest.mark.parametrize("page", PAGES)
def test_examples_are_python(page: str) -> None:
    """Each Python block of a page can be compiled."""
    for block in read_blocks(read(page), "python"):
        compile(block, page, "exec")


def write_files(page: str, folder: Path) -> None:
    """
    Write the files that a page has its reader write.
    """
    for name, block in re.findall(
        r"into `(\w+\.py)`:\n\n```python\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE
    ):
        (folder / name).write_text(block, encoding="utf-8")


def run_python(*arguments: str, folder: Path) -> str:
    """
    Run Python in a folder with the packages under test, and return what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{Path(dotmac_tasks.__file__).parents[1]}{os.pathsep}{folder}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if read_blocks(read(page), "pycon")])
def test_sessions_are_as_shown(page: str, tmp_path: Path) -> None:
    """Each interactive session of a page gives what the page shows."""
    write_files(page, tmp_path)
    sessions = "\n\n".join(read_blocks(read(page), "pycon"))
    (tmp_path / "sessions.txt").write_text(sessions, encoding="utf-8")
    # In a process of its own: what a reader leaves open would disturb other tests.
    run_python("-m", "doctest", "-o", "ELLIPSIS", "sessions.txt", folder=tmp_path)


@pytest.mark.parametrize("page", PROGRAMS)
def test_examples_run(page: str, tmp_path: Path) -> None:
    """The Python blocks of a page run, one after the other."""
    if page in DJANGO_PROGRAMS:
        pytest.importorskip("django")
    sections = re.split(r"^## ", read(page), flags=re.MULTILINE)
    chosen = PROGRAMS[page]
    text = "".join(
        section for section in sections if not chosen or section.splitlines()[0] in chosen
    )
    blocks = read_blocks(text, "python")
    assert len(blocks) >= len(chosen)
    run_python("-c", "\n".join(blocks), folder=tmp_path)


def test_race_of_the_tutorial_has_one_winner(tmp_path: Path) -> None:
    """The tutorial's three calls at once give one report and two answers that it still runs."""
    page = "tutorial/1-idempotent-function.md"
    write_files(page, tmp_path)
    printed = run_python("race.py", folder=tmp_path)
    (shown,) = [text for text in read_blocks(read(page), "console") if "still running" in text]
    assert sorted(printed.splitlines()) == sorted(shown.splitlines()[1:])


# The project whose tests how-to/test-your-code.md writes.
SHOP = {
    "pytest.ini": """
        [pytest]
        DJANGO_SETTINGS_MODULE = settings
        filterwarnings = error
    """,
    "settings.py": """
        SECRET_KEY = "only-for-tests"
        ROOT_URLCONF = "urls"
        USE_TZ = True
        INSTALLED_APPS = ["shop", "dotmac_tasks_django"]
        MIDDLEWARE = ["dotmac_tasks_django.middleware.BackgroundOperationsMiddleware"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
        DOTMAC_TASKS = {"STORAGE": "redis://127.0.0.1:1/0", "REQUIRE_KEY": True}
    """,
    "urls.py": """
        from django.urls import path
        from shop import views

        urlpatterns = [path("orders/", views.place_order)]
    """,
    "shop/__init__.py": "",
    "shop/models.py": """
        from django.db import models


        class Order(models.Model):
            id = models.AutoField(primary_key=True)
            product = models.CharField(max_length=40)
    """,
    "shop/payments.py": "received = []\n",
    "shop/views.py": """
        from django.http import JsonResponse
        from dotmac_tasks_django import downstream_key, is_idempotent_request

        from shop import payments
        from shop.models import Order


        def place_order(request):
            if is_idempotent_request(request):
                payments.received.append(downstream_key(request, "charge"))
            order = Order.objects.create(product="tea")
            return JsonResponse({"order": order.pk}, status=201)
    """,
}


def write_shop(folder: Path) -> None:
    """
    Write the project, with the tests that the page has its reader write.
    """
    (folder / "shop").mkdir()
    for name, text in SHOP.items():
        (folder / name).write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    page = "how-to/test-your-code.md"
    write_files(page, folder)
    (section,) = [part for part in read(page).split("\n## ") if part.startswith("Settings of")]
    with (folder / "test_orders.py").open("a", encoding="utf-8") as file:
        file.writelines(read_blocks(section, "python"))


def run_suite(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """
    Run the tests in a folder as a user would, with the packages under test.
    """
    ours = {"DJANGO_SETTINGS_MODULE", "CI_DOTMAC_TASKS"}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    path = f"{Path(dotmac_tasks.__file__).parents[1]}{os.pathsep}{folder}"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_tests_of_a_project_are_as_shown(tmp_path: Path) -> None:
    """The tests of the page pass, with its one line in the conftest and a project for Redis."""
    pytest.importorskip("pytest_django")
    write_shop(tmp_path)
    done = run_suite(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_tests_of_a_project_fail_without_protection(tmp_path: Path) -> None:
    """With the middleware taken out the page's first test fails and names it."""
    pytest.importorskip("pytest_django")
    write_shop(tmp_path)
    settings = tmp_path / "settings.py"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(re.sub("(?m)^MIDDLEWARE = .*$", "MIDDLEWARE = []", text), encoding="utf-8")
    done = run_suite(tmp_path, "-k", "test_retry_orders_once", "test_orders.py")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The work ran 2 times instead of once" in done.stdout
    assert "BackgroundOperationsMiddleware into MIDDLEWARE" in done.stdout


def test_report_is_as_shown() -> None:
    """The failure that the page shows is what such a test says."""
    request = SimpleNamespace(method="POST", path="/orders/", headers={})
    with testing.TasksHarness() as harness:
        report = harness.send_twice(
            lambda: SimpleNamespace(status_code=201, headers={}, request=request)
        )
    with pytest.raises(AssertionError) as caught:
        report.assert_ran_once()
    (shown,) = read_blocks(read("how-to/test-your-code.md"), "text")
    assert shown == f"AssertionError: {caught.value}\n"


def readme_blocks() -> dict[str, str]:
    blocks = read_blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    return {block.splitlines()[0].lstrip("# "): block for block in blocks}


def test_plain_example_of_the_readme_runs(tmp_path: Path) -> None:
    """The example without a framework runs as it stands."""
    run_python("-c", readme_blocks()["plain.py"], folder=tmp_path)


def test_django_example_of_the_readme_runs(tmp_path: Path) -> None:
    """The example for Django answers a retry from the record and charges once."""
    pytest.importorskip("django")
    blocks = readme_blocks()
    (tmp_path / "payments.py").write_text(
        "calls = []\ndef charge(order, *, key):\n    calls.append(key)\n    return {'id': 'ch_1'}\n"
    )
    (tmp_path / "views.py").write_text(blocks["views.py"])
    (tmp_path / "urls.py").write_text(
        "from django.urls import path\nimport views\n"
        "urlpatterns = [path('orders/', views.place_order)]\n"
    )
    program = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import django
        from django.conf import settings
        project = {{}}
        exec({blocks["settings.py"]!r}, project)
        assert project["DOTMAC_TASKS"]["STORAGE"].startswith("redis://")
        settings.configure(
            INSTALLED_APPS=project["INSTALLED_APPS"], MIDDLEWARE=project["MIDDLEWARE"],
            DOTMAC_TASKS={{"STORAGE": "memory://"}}, ROOT_URLCONF="urls", ALLOWED_HOSTS=["*"],
            DEBUG=True,
        )
        django.setup()
        from django.test import Client
        import payments
        def send():
            return Client().post("/orders/", {{"order": 7}}, "application/json",
                headers={{"Idempotency-Key": "8e03978e"}})
        first, retry = send(), send()
        assert first.status_code == retry.status_code == 201, first.content
        assert first.content == retry.content
        assert retry["Idempotent-Replayed"] == "true"
        assert len(payments.calls) == 1
        assert Client().post("/orders/", {{}}, "application/json").status_code == 400
    """
    run_python("-c", textwrap.dedent(program), folder=tmp_path)


def test_readme_links_every_page() -> None:
    """The readme leads to each page of the documentation, and to none that is not there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([^):]+)\)", readme))
    assert all((ROOT / path).is_file() for path in linked)
    folders = ("tutorial", "how-to", "reference", "explanation")
    pages = {f"docs/{page}" for page in PAGES if page.startswith(folders)}
    assert pages <= linked


def test_readme_names_what_there_is() -> None:
    """Each make target of the readme is one of the Makefile."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = set(re.findall(r"\bmake (\w+)\b", readme + read("contributing.md")))
    assert {"demo", "test", "bench", "docs"} <= named
    assert named - {"sure"} <= set(targets)
