from __future__ import annotations

import gc
import os
import runpy
import subprocess
import sys
import weakref

import pytest

from dotmac_tasks import fork
from dotmac_tasks.fork import reset_after_fork


class Forkable:
    def __init__(self) -> None:
        self.resets = 0

    def after_fork(self) -> None:
        self.resets += 1


CHILD = """
import os
from dotmac_tasks.fork import reset_after_fork

class Forkable:
    resets = 0
    def after_fork(self):
        self.resets += 1

instance = Forkable()
reset_after_fork(instance)
child = os.fork()
if child == 0:
    os._exit(10 + instance.resets)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), instance.resets)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_child_resets_and_parent_does_not() -> None:
    """
    A registered instance is told once in the child, and never in the parent.
    """
    run = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.split() == ["11", "0"]


def test_registered_instance_is_told_in_a_child() -> None:
    """
    What a child runs first calls the hook of a registered instance, not of others.
    """
    registered, other = Forkable(), Forkable()
    reset_after_fork(registered)
    before = set(fork._registered)
    fork._registered.clear()
    try:
        reset_after_fork(registered)
        fork._run_in_child()
    finally:
        fork._registered.update(before)
    assert (registered.resets, other.resets) == (1, 0)


def test_system_without_fork_has_nothing_to_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where the interpreter knows no fork, the module still loads.
    """
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    module = runpy.run_path(fork.__file__)
    module["reset_after_fork"](Forkable())


def test_registering_keeps_nothing_alive() -> None:
    """
    A registered instance that nobody else holds is collected.
    """
    instance = Forkable()
    reset_after_fork(instance)
    gone = weakref.ref(instance)
    del instance
    gc.collect()
    assert gone() is None
