"""Ctrl-C and SIGTERM: held back where they would do harm, and never lost.

A KeyboardInterrupt may come anywhere, also while an extension module is imported or calls back into Python, and
some of those turn it into an error of their own, or drop it. So the signal itself is remembered.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_came: list[int] = []


def listen() -> None:
    """Let both signals end the work in the same way. Where Ctrl-C is ignored (a shell's background job) it stays so.

    For a program's start: it changes the handlers of the whole process.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, _frame: Any) -> None:
    _came.append(number)
    raise KeyboardInterrupt


def came() -> bool:
    """Whether one of the signals came since `listen`, whatever became of its KeyboardInterrupt."""
    return bool(_came)


def stop_if_one_came() -> None:
    """The last chance before something is changed for good.

    Raises:
        KeyboardInterrupt: a signal came, and its own KeyboardInterrupt was lost.
    """
    if _came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Keep both signals waiting until the block has ended; then they do what they would have done.

    By handlers, not by a signal mask: a mask holds for one thread, and the system then hands the signal to another
    one, of which numpy has some. Outside the main thread no handler runs, and nothing is to be done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before: dict[int, Any] = {}
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                before[number] = signal.signal(number, lambda came, _frame: waiting.append(came))
        yield
    finally:
        for held, handler in before.items():
            signal.signal(held, handler)
        if waiting:
            signal.raise_signal(waiting[0])
