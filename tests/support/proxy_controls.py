"""
What a Redis proxy counted, and what it is to break.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

HANDSHAKE = frozenset({"HELLO", "AUTH", "CLIENT", "SELECT", "PING"})

_WITH_SECOND_WORD = frozenset({"EVALSHA", "CLIENT", "SCRIPT", "CONFIG", "ACL"})
_REMEMBERED = 10_000


@dataclass(frozen=True, kw_only=True)
class Counts:
    """
    What passed since the counts were last reset.

    Handshake commands (`HANDSHAKE`) count as `handshake` only. A round trip is what a client sends
    in one go, one command or a pipeline, and was answered. Immutable, so it may be shared between
    threads.
    """

    commands: int = 0
    handshake: int = 0
    round_trips: int = 0
    connections: int = 0


class FaultKind(Enum):
    """
    What is done to one command. Immutable, so it may be shared between threads.
    """

    LOSE = "lose"
    DROP = "drop"
    REPLACE = "replace"


@dataclass(frozen=True)
class Fault:
    """
    One fault that waits for its command. Immutable, so it may be shared between threads.
    """

    kind: FaultKind
    match: str | None
    reply: bytes = b""

    def hits(self, label: str) -> bool:
        """
        Tell whether the command with this label is one that it waits for.
        """
        if self.match is None:
            return not is_handshake(label)
        return label.startswith(self.match)


class DisconnectError(Exception):
    """
    This connection is over. Immutable, so it may be shared between threads.
    """


def label_of(args: Sequence[bytes]) -> str:
    """
    Return a command's name, with its second word where that tells more and is no secret.
    """
    name = args[0].decode(errors="replace").upper()
    if name in _WITH_SECOND_WORD and len(args) > 1:
        return f"{name} {args[1].decode(errors='replace')}"
    return name


def is_handshake(label: str) -> bool:
    """
    Tell whether clients send this command on their own account.
    """
    return label.partition(" ")[0] in HANDSHAKE


class ProxyControls:
    """
    The counts and faults of one proxy; the proxy itself derives from it.

    The one-shot faults each hit the first command that matches, in the order they were set. Without
    `match` that is any command but a handshake one; with it, any whose label (see `labels`) starts
    with it: `match="AUTH"`, `match="EVALSHA 1f2e"`, `match=""` for all.

    Instances may be shared between threads: `_lock` guards `_counts`, `_labels`, `_faults`,
    `_closed` and the modes (`_hanging`, `_refusing`, `_delay`, `_drip`); `_changed` is its
    condition.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._counts = Counts()
        self._labels: deque[str] = deque(maxlen=_REMEMBERED)
        self._faults: list[Fault] = []
        self._hanging = self._refusing = self._closed = False
        self._delay = self._drip = 0.0

    @property
    def counts(self) -> Counts:
        """
        What passed since the last reset; a client that has its answer finds it counted.
        """
        with self._lock:
            return self._counts

    @property
    def labels(self) -> tuple[str, ...]:
        """
        The names of the last commands, oldest first, handshake included.

        Some come with their second word: `EVALSHA 1f2e…`, `CLIENT SETINFO`. Never with a secret.
        """
        with self._lock:
            return tuple(self._labels)

    def reset_counts(self) -> None:
        """
        Forget the counts and labels.
        """
        with self._lock:
            self._counts = Counts()
            self._labels.clear()

    def lose_next_reply(self, n: int = 1, *, match: str | None = None) -> None:
        """
        Let the next `n` commands take effect, then cut the connection instead of answering.

        In a pipeline all of it takes effect, and no reply from that command on arrives.
        """
        self._arm(Fault(FaultKind.LOSE, match), n)

    def drop_next_command(self, n: int = 1, *, match: str | None = None) -> None:
        """
        Cut the connection instead of passing the next `n` commands on.

        In a pipeline no command from that one on takes effect.
        """
        self._arm(Fault(FaultKind.DROP, match), n)

    def replace_next_reply(self, reply: bytes, n: int = 1, *, match: str | None = None) -> None:
        r"""
        Answer the next `n` commands with `reply` and do not pass them on.

        Args:
            reply: As on the wire, `b"-OOM command not allowed\r\n"`.
            n: How many commands.
            match: Which commands; see the class.
        """
        self._arm(Fault(FaultKind.REPLACE, match, reply), n)

    def hang(self) -> None:
        """
        Accept connections and commands, pass nothing on, answer nothing.

        What came in meanwhile is never passed on: `heal` and `close` cut those connections.
        """
        self._set(_hanging=True)

    def refuse(self) -> None:
        """
        Close every new connection at once; those there are go on.
        """
        self._set(_refusing=True)

    def delay(self, seconds: float) -> None:
        """
        Hold the replies to each burst back for so long after it took effect.
        """
        self._set(_delay=seconds)

    def drip(self, seconds: float) -> None:
        """
        Deliver replies byte by byte with a pause of so many seconds before each.
        """
        self._set(_drip=seconds)

    def heal(self) -> None:
        """
        Forget every fault, used or not, and release who waits in one.
        """
        self._set(_faults=[], _hanging=False, _refusing=False, _delay=0.0, _drip=0.0)

    def note_commands(self, labels: Sequence[str]) -> None:
        """
        Count commands that came in.
        """
        handshake = sum(map(is_handshake, labels))
        with self._lock:
            self._labels.extend(labels)
            self._counts = replace(
                self._counts,
                commands=self._counts.commands + len(labels) - handshake,
                handshake=self._counts.handshake + handshake,
            )

    def note_round_trip(self) -> None:
        """
        Count a round trip whose replies are about to be delivered.
        """
        with self._lock:
            self._counts = replace(self._counts, round_trips=self._counts.round_trips + 1)

    def take_fault(self, label: str) -> Fault | None:
        """
        Use up and return the fault that hits this command, or None.
        """
        with self._lock:
            for index, fault in enumerate(self._faults):
                if fault.hits(label):
                    return self._faults.pop(index)
        return None

    def pass_hang(self) -> None:
        """
        Return at once, or wait for the end of a hang and raise.

        Raises:
            DisconnectError: It hung.
        """
        with self._lock:
            if not self._hanging:
                return
            self._changed.wait_for(lambda: not self._hanging or self._closed)
        raise DisconnectError

    def pass_delay(self) -> None:
        """
        Wait for as long as replies are to be held back.
        """
        self._pause(lambda: self._delay)

    def pass_drip(self) -> bool:
        """
        Wait for as long as one byte is to be held back; tell whether bytes are.
        """
        return self._pause(lambda: self._drip)

    def _pause(self, seconds: Callable[[], float]) -> bool:
        with self._lock:
            if seconds() > 0:
                self._changed.wait_for(lambda: seconds() == 0 or self._closed, seconds())
            return seconds() > 0

    def _arm(self, fault: Fault, n: int) -> None:
        with self._lock:
            self._faults += [fault] * n

    def _set(self, **attributes: object) -> None:
        with self._lock:
            for name, value in attributes.items():
                setattr(self, name, value)
            self._changed.notify_all()
