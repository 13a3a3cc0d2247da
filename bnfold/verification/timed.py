"""A time limit for one run of a model.

A Loop may go on for ever, and one Conv of gigantic activations may take days. onnxruntime looks between two operators
at the flag `terminate` of a run's options (nested graphs included), so the run goes on in a thread of its own, and
the caller waits: it can give up, and it sees a Ctrl-C at once, which Python holds back while a C++ function runs in
the main thread. What does not stop in time (a single operator that goes on and on) is left behind; it ends with the
process. Source: onnxruntime's API reference, RunOptions.terminate.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

DEFAULT_LIMIT = 600.0  # seconds
_GRACE = 2.0  # seconds for a run to notice that it is to stop
_GLANCE = 0.25  # seconds; on Windows, Python sees a Ctrl-C only between two waits

T = TypeVar("T")


def run_session(session: Any, feeds: dict[str, Any], limit: float) -> list[Any]:
    """The outputs of one run of a session.

    Raises:
        TimeoutError: it took more than `limit` seconds.
        Exception: it does not run; onnxruntime's errors share no base class.
    """
    import onnxruntime as ort

    options = ort.RunOptions()
    return list(within(limit, lambda: session.run(None, feeds, options), lambda: _terminate(options)))


def _terminate(options: Any) -> None:
    options.terminate = True


def within(limit: float, work: Callable[[], T], stop: Callable[[], None]) -> T:
    """What `work` returns, or raises.

    Args:
        limit: seconds that it may take.
        work: what is to be done; it runs in another thread.
        stop: makes `work` end soon; called at the limit, and when the wait is interrupted.

    Raises:
        TimeoutError: it took longer.
    """
    run = _Run(work)
    try:
        run.start()
        is_done = run.wait(limit)
    finally:
        if not run.is_done:
            stop()
            run.wait(_GRACE if run.is_started else 0)
    if not is_done:
        raise TimeoutError
    return run.result()


class _Run(Generic[T]):
    """A piece of work in a thread, and its outcome."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._end = threading.Event()
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._go, name="bnfold-run", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_started(self) -> bool:
        """Whether it has begun."""
        return self._thread.ident is not None

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._end.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, for so long; False where it did not come."""
        until = time.monotonic() + seconds
        while not self._end.wait(max(0.0, min(_GLANCE, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
        return True

    def result(self) -> T:
        """What was returned, or raised; once it has ended."""
        if self._errors:
            raise self._errors.pop()
        return self._results.pop()

    def _go(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001 - for the other thread to raise
            self._errors.append(error)
        finally:
            self._end.set()


class Deadline:
    """A point in time that Python code asks about on its way."""

    def __init__(self) -> None:
        self._until = float("inf")

    @contextlib.contextmanager
    def set(self, seconds: float) -> Iterator[None]:
        """For the block: so many seconds from now."""
        self._until = time.monotonic() + seconds
        try:
            yield
        finally:
            self._until = float("inf")

    def check(self) -> None:
        """Go on, or not.

        Raises:
            TimeoutError: it is later than that.
        """
        if time.monotonic() > self._until:
            raise TimeoutError
