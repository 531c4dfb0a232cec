"""
The core needs the standard library alone, and importing it does nothing else.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# Hides the extras, and notes what the operating system is asked for and each thread's start.
PROLOGUE = """
import sys
import threading

WATCHED = {"os.fork", "socket.__new__", "subprocess.Popen"}
started = []
sys.addaudithook(lambda event, arguments: started.append(event) if event in WATCHED else None)
start_thread = threading.Thread.start
threading.Thread.start = lambda thread: started.append("thread") or start_thread(thread)


class Unimportable:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"cryptography", "django", "redis"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Unimportable())
"""


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    """
    Run a script in a fresh interpreter in which the extras cannot be imported.
    """
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_import_works_without_django_and_redis() -> None:
    """The core imports where neither django nor redis can be, and loads no asyncio."""
    done = run_python("""
        import dotmac_tasks

        print(sorted({"asyncio", "cryptography", "django", "redis"} & set(sys.modules)))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_hidden_module_is_refused_by_this_harness() -> None:
    """The interpreter of these tests really cannot import what it hides."""
    done = run_python("import redis")
    assert done.returncode == 1
    assert "No module named 'redis'" in done.stderr


def test_import_starts_nothing() -> None:
    """Importing the core starts no thread and no process and opens no socket."""
    done = run_python("""
        import dotmac_tasks

        print(started)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_construction_starts_nothing() -> None:
    """Constructing a manager starts no thread and no process and opens no socket."""
    done = run_python("""
        from dotmac_tasks import BackgroundOperationsManager

        manager = BackgroundOperationsManager()
        print(started)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_construction_over_redis_starts_nothing() -> None:
    """Nor does one over Redis, whether a server is there or not; the first use connects."""
    pytest.importorskip("redis")
    done = run_python("""
        sys.meta_path.pop(0)  # what hides redis
        import redis

        started.clear()
        from dotmac_tasks import BackgroundOperationsManager, StorageError

        manager = BackgroundOperationsManager("redis://127.0.0.1:1/0")
        print(started)
        try:
            manager.check_idempotency("key")
        except StorageError:
            print("socket.__new__" in started)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\nTrue\n", "")


def test_host_that_forbids_weak_digests_serves() -> None:
    """Where MD5 and SHA-1 may not be used for security, keys, fingerprints and scripts work."""
    done = run_python("""
        import hashlib

        def guard(name):
            function = getattr(hashlib, name)

            def guarded(*args, usedforsecurity=True, **options):
                assert not usedforsecurity, name
                return function(*args, usedforsecurity=usedforsecurity, **options)

            setattr(hashlib, name, guarded)

        for name in ("md5", "sha1"):
            guard(name)
        from dotmac_tasks import BackgroundOperationsManager
        from dotmac_tasks.fingerprint import body_digest, request_fingerprint
        from dotmac_tasks.storage.lua import load_script

        load_script("claim_operation")
        request_fingerprint("POST", "/", "", "", body_digest("application/json", b"{}"))
        with BackgroundOperationsManager() as manager:
            print(manager.idempotent("double")(lambda n: 2 * n)(4))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


def test_thread_and_socket_are_seen_by_this_harness() -> None:
    """What does start is noticed, so silence above means something."""
    done = run_python("""
        import socket

        threading.Thread(target=int).start()
        socket.socket().close()
        print(started)
    """)
    assert done.stdout == "['thread', 'socket.__new__']\n"


def test_public_names_need_no_extra() -> None:
    """Every public name but the Redis storage is there without django and redis."""
    done = run_python("""
        import dotmac_tasks

        for name in set(dotmac_tasks.__all__) - {"RedisStorage"}:
            getattr(dotmac_tasks, name)
        print(sorted({"asyncio", "cryptography", "django", "redis"} & set(sys.modules)))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_django_package_never_imports_a_rest_framework() -> None:
    """A project of Django alone is served, and decorated, without any REST framework."""
    pytest.importorskip("django")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DJANGO_ALONE)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[b'done', b'done']\n[]\n", "")


DJANGO_ALONE = """
    import sys

    import django
    from django.conf import settings
    from django.http import HttpResponse
    from django.urls import path

    settings.configure(
        ROOT_URLCONF="__main__",
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["dotmac_tasks_django"],
        MIDDLEWARE=["dotmac_tasks_django.middleware.BackgroundOperationsMiddleware"],
    )
    django.setup()

    from django.test import Client
    from dotmac_tasks_django import idempotent

    urlpatterns = [path("", idempotent(lambda request: HttpResponse("done")))]
    client = Client(headers={"Idempotency-Key": "key-1"})
    print([client.post("/").content for _ in range(2)])
    print(sorted({"rest_framework", "drf_spectacular"} & set(sys.modules)))
"""


def test_helpers_for_tests_need_no_extra() -> None:
    """What the tests of a project import loads neither pytest nor Django nor redis."""
    done = run_python("""
        import dotmac_tasks.testing

        for name in dotmac_tasks.testing.__all__:
            getattr(dotmac_tasks.testing, name)
        print(started, sorted({"asyncio", "django", "pytest", "redis"} & set(sys.modules)))
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] []\n", "")
