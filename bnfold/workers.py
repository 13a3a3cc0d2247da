"""Work in several processes, each of which may die without taking the others along (onnxruntime may crash).

Processes are started anew (`spawn`), because threads of onnxruntime do not survive a fork. As with multiprocessing
itself, a script that uses this needs `if __name__ == "__main__":`.
"""

import contextlib
import itertools
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from bnfold.interrupts import held_back

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Died:
    """In place of a result: the process ended without one.

    Attributes:
        code: its exit code; the negative number of the signal that killed it, None if not known.
    """

    code: int | None


class _Worker(Generic[Item, Result]):
    """One process and what it is working on."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, there), daemon=True)
        with _deaf_children():
            self.process.start()
        there.close()
        self.index = -1

    def give(self, index: int, item: Item) -> None:
        """Let it work on an item."""
        self.index = index
        with contextlib.suppress(OSError):  # it died meanwhile; `take` finds out
            self.pipe.send(item)

    def take(self) -> Result | Died:
        """The result, once there is something in the pipe."""
        try:
            result: Result = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return Died(self.process.exitcode)
        return result

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_all(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[int, Result | Died]]:
    """`function` of every item, in `jobs` processes; yields index and result as they come.

    `function` is a module's function, or a partial of one, and raises nothing; items and results can be pickled.
    """
    queue = iter(enumerate(items))
    busy: dict[Connection, _Worker[Item, Result]] = {}
    try:
        for index, item in itertools.islice(queue, jobs):
            _start(function, None, index, item, busy)
        while busy:
            ready: list[Any] = wait(list(busy))
            for pipe in ready:
                worker = busy.pop(pipe)
                index, result = worker.index, worker.take()
                following = next(queue, None)
                if following is None or isinstance(result, Died):
                    worker.stop()
                if following is not None:
                    _start(function, None if isinstance(result, Died) else worker, *following, busy)
                yield index, result
    finally:
        for worker in busy.values():
            worker.stop()


def _start(
    function: Callable[[Item], Result],
    worker: _Worker[Item, Result] | None,
    index: int,
    item: Item,
    busy: dict[Connection, _Worker[Item, Result]],
) -> None:
    """Let a worker, or a new one, work on an item. No signal comes between, so that each that runs is in `busy`."""
    with held_back():
        worker = worker or _Worker(function)
        busy[worker.pipe] = worker
        worker.give(index, item)


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started in here never see a Ctrl-C, which reaches all processes of a terminal.

    They would print a traceback while they start. They inherit the mask; the program's own end ends them.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # which unblocks the signal, where it is first started later on
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    """In the process: work on one item after the other, until the other side has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(function(pipe.recv()))
