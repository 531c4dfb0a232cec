"""
Many threads or processes doing one thing at the same instant.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from typing import TypeVar

T = TypeVar("T")

_SWITCH_INTERVAL = 1e-5


class ProcessDiedError(Exception):
    """
    A process ended without handing back a result.

    Immutable, so it may be shared between threads.
    """


class Counter:
    """
    A number that threads may count up together.

    Instances may be shared between threads: `_lock` guards `_value`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value = 0

    @property
    def value(self) -> int:
        """
        The count so far.
        """
        with self._lock:
            return self._value

    def increment(self, by: int = 1) -> int:
        """
        Add `by` and return the new count, in one step.
        """
        with self._lock:
            self._value += by
            return self._value


def run_together(
    n: int, fn: Callable[..., T], *args: object, timeout: float = 30.0
) -> list[T | BaseException]:
    """
    Call `fn(*args)` from `n` threads at once and return what came of each.

    An exception is returned as a value in its thread's place. While the calls run, Python switches
    threads as often as it can; as that setting is the whole process's, calls must not overlap.

    Raises:
        TimeoutError: Some thread was not done within `timeout` seconds; the message shows where
            each one stands. Those threads are left behind as daemons.
    """
    barrier = threading.Barrier(n)
    outcomes: dict[int, T | BaseException] = {}  # each thread writes its own index only

    def call(index: int) -> None:
        try:
            barrier.wait(timeout)
            outcomes[index] = fn(*args)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test judges it
            outcomes[index] = error

    threads = [
        threading.Thread(target=call, args=(index,), name=f"together-{index}", daemon=True)
        for index in range(n)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    finally:
        sys.setswitchinterval(interval)
    stuck = [thread for thread in threads if thread.is_alive()]
    if stuck:
        raise TimeoutError(f"{len(stuck)} of {n} threads still run:\n{_stacks(stuck)}")
    return [outcomes[index] for index in range(n)]


def run_processes(
    n: int, target: Callable[..., T], *args: object, timeout: float = 60.0
) -> list[T | BaseException]:
    """
    Call `target(*args)` from `n` new processes at once; return what came of each.

    The processes share nothing with this one: `target`, the arguments and the results are pickled,
    so `target` lives in an importable module (`support.…`, not a test module). An exception is
    returned as a value in its process's place; a process that died is a `ProcessDiedError`.

    Raises:
        TimeoutError: Some process was not done within `timeout` seconds; all are killed.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(n)
    # A pipe for each, not one queue: a process killed while it writes would leave a shared queue
    # locked, and a closed pipe tells at once that its process died.
    pipes = [context.Pipe(duplex=False) for _ in range(n)]
    processes = [
        context.Process(target=_call, args=(target, args, barrier, sender, timeout), daemon=True)
        for _, sender in pipes
    ]
    started = []
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            started.append(process)
            sender.close()
        outcomes = _collect([receiver for receiver, _ in pipes], timeout)
        for process in processes:
            process.join(timeout)
    finally:
        for process in started:
            process.kill()
            process.join()
        for receiver, sender in pipes:
            receiver.close()
            sender.close()
    return [
        ProcessDiedError(f"exit code {process.exitcode}") if data is None else pickle.loads(data)
        for process, data in zip(processes, outcomes, strict=True)
    ]


def wait_until(predicate: Callable[[], object], timeout: float = 30.0) -> None:
    """
    Return as soon as `predicate()` is true.

    Raises:
        TimeoutError: It was not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not predicate():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true within {timeout} seconds: {predicate}")
        pause.wait(0.005)


def find_threads(name: str) -> list[threading.Thread]:
    """
    Return the threads of this process that run under a name.
    """
    return [thread for thread in threading.enumerate() if thread.name == name]


def _stacks(threads: list[threading.Thread]) -> str:
    frames = sys._current_frames()
    parts = []
    for thread in threads:
        frame = frames.get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame else "  (ended meanwhile)\n"
        parts.append(f"{thread.name}:\n{stack}")
    return "\n".join(parts)


def _call(
    target: Callable[..., object],
    args: tuple[object, ...],
    barrier: Barrier,
    sender: Connection,
    timeout: float,
) -> None:
    outcome: object
    try:
        barrier.wait(timeout)
        outcome = target(*args)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test judges it
        outcome = error
    try:
        data = pickle.dumps(outcome)
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - classes fail to travel in many ways
        data = pickle.dumps(RuntimeError(f"cannot be pickled: {outcome!r}"))
    sender.send_bytes(data)


def _collect(receivers: list[Connection], timeout: float) -> list[bytes | None]:
    outcomes: dict[int, bytes | None] = {}
    deadline = time.monotonic() + timeout
    while len(outcomes) < len(receivers):
        waiting = [pipe for index, pipe in enumerate(receivers) if index not in outcomes]
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"{len(waiting)} of {len(receivers)} processes still run")
        for index, pipe in enumerate(receivers):
            if pipe in ready:
                try:
                    outcomes[index] = pipe.recv_bytes()
                except EOFError:
                    outcomes[index] = None
    return [outcomes[index] for index in range(len(receivers))]
