"""
Lets a test stop a view in the middle of its work.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar

note = ContextVar("note", default="nothing")


class Gate:
    """
    Says when a view has entered and holds it until it may leave; shared by threads.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """
        Close it again.
        """
        self.entered = threading.Event()
        self.leave = threading.Event()
        self.cancelled = False

    def pass_through(self) -> None:
        """
        Enter, and wait until it opens; a stuck test ends by itself.
        """
        self.entered.set()
        assert self.leave.wait(30)


gate = Gate()
