"""One bnfold at a time puts files in their place in a folder.

Each run writes under names of its own. Only the moment in which several files get their final names, and unused
ones go, must not be shared: a run could use data that another one is about to take back. The lock is on the folder
itself, so that no lock file is left behind. Where a folder cannot be locked (Windows, some network file systems),
or is not free in time, the work goes on: what is replaced or removed is then still checked by name and inode.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 30.0  # seconds; anybody who may read a folder may lock it, and must not stop us for good
_PAUSE = 0.01


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` for the block, where the system has one."""
    descriptor: int | None = None
    try:
        with contextlib.suppress(OSError, ImportError):
            descriptor = os.open(folder, os.O_RDONLY)
            _lock(descriptor)
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)  # which unlocks it


def _lock(descriptor: int) -> None:
    import fcntl

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return
            time.sleep(_PAUSE)
        else:
            return
