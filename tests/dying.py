"""Work for processes that die of it; apart, so that they start fast."""

import os
import signal


def square(number: int) -> int:
    """The square; dies on 1 (killed) and on 3 (by itself)."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        os._exit(9)
    return number * number


def blocked(_: int) -> list[int]:
    """The signals that this process was started with as blocked."""
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
