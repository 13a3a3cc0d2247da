"""Carrying out the instructions of an undo file, which may ask for anything."""

import zlib
from collections.abc import Iterator, Sequence

from bnfold.errors import UndoError
from bnfold.undo.form import COPY, HEAD, LEAST_COPY, TEXT, Index, unzigzag
from bnfold.undo.ranged import Ranged

_PIECE = 2**16  # bytes that are inflated at a time


class Player:
    """The instructions, from the first on.

    Args:
        undo: the undo file.
        index: what its end says.
        files: the folded files, in the order of the index, checked.
        shown: how the undo file is called in messages.
    """

    def __init__(self, undo: Ranged, index: Index, files: Sequence[Ranged], shown: str) -> None:
        self._undo = undo
        self._files = files
        self._shown = shown
        self._deflated = undo.blocks(len(HEAD), len(HEAD) + index.script)
        self._inflate = zlib.decompressobj()
        self._ready = memoryview(b"")  # inflated, and not used yet
        self._number = len(HEAD) + index.script
        self._last_number = self._number + index.numbers
        self._stopped = [0] * len(files)
        self._budget = sum(file.size for file in files)

    def play(self, size: int) -> Iterator[bytes | memoryview]:
        """The bytes of the next original file, of which there must be `size`, in blocks.

        Raises:
            UndoError: the instructions are damaged, or ask for what is not there.
        """
        before = COPY
        while size:
            head = self._varint()
            kind, length = head & 3, head >> 2
            # Two COPY may follow one another, of two TEXT or NUMBERS the writer makes one: so a long script that
            # does little is a forged one.
            if not 0 < length <= size or kind > COPY or (kind == before and kind != COPY):
                raise self._damaged()
            if kind == COPY:
                yield from self._copy(length)
            else:
                yield from self._text(length) if kind == TEXT else self._numbers(length)
            size, before = size - length, kind

    def finish(self) -> None:
        """Make sure that nothing is left over.

        Raises:
            UndoError: something is.
        """
        if self._ready or self._more() or not self._inflate.eof or self._number != self._last_number:
            raise self._damaged()

    def _copy(self, length: int) -> Iterator[bytes]:
        place, move = self._varint(), unzigzag(self._varint())
        if place >= len(self._files) or length < LEAST_COPY or length > self._budget:
            raise self._damaged()
        start = self._stopped[place] + move
        stop = start + length
        if start < 0 or stop > self._files[place].size:
            raise self._damaged()
        self._stopped[place] = stop
        self._budget -= length
        yield from self._files[place].blocks(start, stop)

    def _numbers(self, length: int) -> Iterator[bytes]:
        start = self._number
        self._number += length
        if self._number > self._last_number:
            raise self._damaged()
        yield from self._undo.blocks(start, self._number)

    def _text(self, length: int) -> Iterator[memoryview]:
        while length:
            if not self._ready and not self._more():
                raise self._damaged()
            piece = self._ready[:length]
            self._ready = self._ready[len(piece) :]
            length -= len(piece)
            yield piece

    def _varint(self) -> int:
        value = shift = 0
        while shift < 63:
            if not self._ready and not self._more():
                break
            byte = self._ready[0]
            self._ready = self._ready[1:]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise self._damaged()

    def _more(self) -> bool:
        """Inflate the next piece; whether there was one."""
        try:
            while not self._inflate.eof:
                deflated = self._inflate.unconsumed_tail or next(self._deflated, b"")
                piece = self._inflate.decompress(deflated, _PIECE)
                if piece:
                    self._ready = memoryview(piece)
                    return True
                if not deflated:
                    break
        except zlib.error:
            raise self._damaged() from None
        if self._inflate.unused_data or next(self._deflated, b""):
            raise self._damaged()
        return False

    def _damaged(self) -> UndoError:
        return UndoError(f"{self._shown} is damaged: its instructions make no sense")
