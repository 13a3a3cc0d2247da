"""A file that is read range by range, and never as a whole."""

import contextlib
import functools
import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path

from bnfold.errors import UndoError
from bnfold.text import printable

BLOCK = 2**20  # bytes that are handled at a time
_MAPPED = 2**16  # bytes; below, a system call costs more than it saves
_FIRST_LOOK = 256  # bytes; most ranges that differ do so early


class Ranged:
    """An open file.

    Attributes:
        size: in bytes, when it was opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._held = contextlib.ExitStack()
        self._held.callback(self._file.close)
        self._shown = printable(str(path))
        self.size = self._file.seek(0, 2)

    def close(self) -> None:
        """Close the file."""
        self._held.close()

    @functools.cached_property
    def view(self) -> memoryview:
        """The file in the address space, for those who walk through it: what is not looked at is not read."""
        view = memoryview(self._held.enter_context(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)))
        self._held.callback(view.release)
        return view

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`.

        Raises:
            UndoError: the file ends before.
        """
        if "view" in self.__dict__ and stop - start < _MAPPED:  # larger ones would count as memory of ours
            found = bytes(self.view[start:stop])
        else:
            self._file.seek(start)
            found = self._file.read(stop - start)
        if len(found) < stop - start:
            raise UndoError(f"{self._shown} became shorter while it was read")
        return found

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """The same, a block at a time."""
        for place in range(start, stop, BLOCK):
            yield self.read(place, min(place + BLOCK, stop))

    def equals(self, start: int, stop: int, other: "Ranged", place: int) -> bool:
        """Whether `other` has the bytes from `start` to `stop` at `place`."""
        if place + stop - start > other.size:
            return False
        step, at = _FIRST_LOOK, start
        while at < stop:
            end = min(at + step, stop)
            if self.read(at, end) != other.read(place + at - start, place + end - start):
                return False
            step, at = min(step * 8, BLOCK), end
        return True

    def sha256(self) -> str:
        """The SHA-256 of the whole file, in hex digits."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()
