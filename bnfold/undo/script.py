"""Writing the instructions of an undo file: what follows on what came before becomes one instruction with it."""

import zlib
from collections.abc import Callable

from bnfold.undo.form import COPY, NUMBERS, TEXT, varint, zigzag
from bnfold.undo.ranged import Ranged

_LEVEL = 6


class Script:
    """Instructions that go to `put` deflated, while they are found.

    `sizes` are those of the folded files. No more is copied than they hold together, so that an undo file cannot ask
    for more than that.

    Attributes:
        written: how many bytes went to `put` so far.
    """

    def __init__(self, put: Callable[[bytes], None], sizes: list[int]) -> None:
        self._put = put
        self._deflate = zlib.compressobj(_LEVEL)
        self._budget = sum(sizes)
        self._stopped = [0] * len(sizes)  # where the last COPY of each file stopped
        self._numbers: list[tuple[Ranged, int, int]] = []
        self._literal: tuple[int, Ranged, int, int] | None = None
        self._range: tuple[int, int, int] | None = None
        self.written = 0

    @property
    def next_copy(self) -> tuple[int, int] | None:
        """(file, start) of the COPY that would go on with the last instruction; None where that was no COPY."""
        return None if self._range is None else (self._range[0], self._range[2])

    def copy(self, place: int, start: int, length: int) -> bool:
        """Copy a range of folded file `place`; False where too much has been copied already."""
        if length > self._budget:
            return False
        self._budget -= length
        if self.next_copy == (place, start):
            assert self._range is not None
            self._range = (place, self._range[1], start + length)
        else:
            self.end_file()
            self._range = (place, start, start + length)
        return True

    def write(self, kind: int, file: Ranged, start: int, stop: int) -> None:
        """The bytes of `file` from `start` to `stop`: TEXT or NUMBERS."""
        if self._literal is not None and self._literal[0] == kind and self._literal[3] == start:
            start = self._literal[2]
            self._literal = None
        else:
            self.end_file()
        if stop > start:
            self._literal = (kind, file, start, stop)

    def end_file(self) -> None:
        """Write the instruction that is open."""
        if self._range is not None:
            place, start, stop = self._range
            move = zigzag(start - self._stopped[place])
            self._emit(varint(stop - start << 2 | COPY) + varint(place) + varint(move))
            self._stopped[place] = stop
        if self._literal is not None:
            kind, file, start, stop = self._literal
            self._emit(varint(stop - start << 2 | kind))
            if kind == NUMBERS:
                self._numbers.append((file, start, stop))
            for block in file.blocks(start, stop) if kind == TEXT else ():
                self._emit(block)
        self._range = self._literal = None

    def finish(self) -> tuple[int, int]:
        """Write what is left; returns the lengths of the two parts."""
        self._direct(self._deflate.flush())
        script = self.written
        for file, start, stop in self._numbers:
            for block in file.blocks(start, stop):
                self._direct(block)
        return script, self.written - script

    def _emit(self, data: bytes) -> None:
        self._direct(self._deflate.compress(data))

    def _direct(self, data: bytes) -> None:
        self._put(data)
        self.written += len(data)
