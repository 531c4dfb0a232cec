"""
Rebuild per-process state in the child of a fork.

A server that loads the application before it forks (gunicorn with
``--preload``) hands its children copies of locks that nobody in the child will
release, of threads that do not run there and of sockets that the parent still
uses. Objects that hold such things register here and are told in the child,
before any of its code runs.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["reset_after_fork"]


class _Forkable(Protocol):
    def after_fork(self) -> None: ...


# Guarded by the interpreter: the child runs the hook while it has one thread.
_registered: weakref.WeakSet[_Forkable] = weakref.WeakSet()


def reset_after_fork(instance: _Forkable) -> None:
    """
    Call `instance.after_fork()` in every child process that is forked later.

    Keeps no strong reference, so that registering does not prolong a life.
    """
    _registered.add(instance)


def _run_in_child() -> None:
    for instance in list(_registered):
        instance.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_run_in_child)
