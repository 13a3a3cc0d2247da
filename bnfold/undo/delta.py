"""What of the original files is in the folded ones, and where: the instructions that make one out of the other.

Both models are walked as protobuf messages. A message or field of the original that stands in a folded file as it is
becomes a COPY; one that does not is opened, if it holds tensors or graphs, and its fields are looked for one by one;
what is left is written out. So it does not matter where in the model something changed, how deep, or what moved.
Data files are compared tensor by tensor. What is found by its first and last bytes is compared in full before it
counts. Source of the field numbers: onnx.proto.
"""

import itertools
from collections.abc import Iterable, Sequence

from bnfold.undo.form import LEAST_COPY, NUMBERS, TEXT
from bnfold.undo.ranged import Ranged
from bnfold.undo.script import Script
from bnfold.wire import LENGTH_DELIMITED, Field, OddWireError, fields

# A message: what its fields hold, by their keys (number << 3 | 2)
_TENSOR, _SPARSE, _ATTRIBUTE, _NODE, _GRAPH, _FUNCTION, _TRAINING, _MODEL = range(8)
_INSIDE: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _FUNCTION: {7: _NODE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
_OPENED = {kind: {number << 3 | 2: child for number, child in inner.items()} for kind, inner in _INSIDE.items()}
SMALL = 512  # bytes; a message that has changed and is smaller is written out: deflated, it takes less
NUMBERS_FROM = 1024  # bytes; the content of a tensor's field from there on is numbers, which do not deflate
MOST_FIELDS = 1000  # of a tensor; more are numbers one by one
MOST_ALIKE = 8  # places that are tried, of those with the same first and last bytes
_EDGE = 32

Range = tuple[int, int]


class Common:
    """An index of the folded files by content."""

    def __init__(self, files: Sequence[Ranged]) -> None:
        self.files = files
        self._places: dict[tuple[int, bytes], list[Range]] = {}

    def add_model(self, place: int) -> None:
        """Take in every message and large field of the model that is file `place`."""
        self._add_message(place, _whole(self.files[place]), _MODEL)

    def add_data(self, place: int, ranges: Iterable[Range]) -> None:
        """Take in tensors, as (start, stop), of the data file that is file `place`."""
        for start, stop in ranges:
            self._add(place, start, stop)

    def find(self, file: Ranged, start: int, stop: int) -> Range | None:
        """(file, start) of the same bytes; None where there are none, or too few to tell."""
        if stop - start < LEAST_COPY:
            return None
        for place, other in self._places.get(_edges(file, start, stop), ()):
            if file.equals(start, stop, self.files[place], other):
                return place, other
        return None

    def _add_message(self, place: int, message: Field, kind: int) -> None:
        self._add(place, message.tag, message.stop)
        for field in _fields(self.files[place], message, kind) or ():
            child = _OPENED[kind].get(field.key)
            if child is not None:
                self._add_message(place, field, child)
                continue
            self._add(place, field.tag, field.stop)
            if _is_large(field):
                self._add(place, field.start, field.stop)

    def _add(self, place: int, start: int, stop: int) -> None:
        if stop - start >= LEAST_COPY and stop <= self.files[place].size:
            alike = self._places.setdefault(_edges(self.files[place], start, stop), [])
            if len(alike) < MOST_ALIKE:
                alike.append((place, start))


class Description:
    """The instructions that make one original file, as they are found."""

    def __init__(self, file: Ranged, common: Common, script: Script) -> None:
        self._file = file
        self._common = common
        self._script = script

    def model(self) -> None:
        """Describe the file as a model."""
        self._message(_whole(self._file), _MODEL)
        self._script.end_file()

    def data(self, ranges: Iterable[Range]) -> None:
        """Describe the file as a data file with tensors at `ranges`, (start, stop)."""
        end = 0
        for start, stop in [*sorted(ranges), (self._file.size, self._file.size)]:
            if start > end:
                self._place(end, start)
            if stop > max(start, end):  # tensors may share bytes
                self._place(max(start, end), stop, numbers=True)
            end = max(end, stop)
        self._script.end_file()

    def _message(self, message: Field, kind: int) -> None:
        if self._copied(message.tag, message.stop):
            return
        inner = _fields(self._file, message, kind)
        if inner is None:
            self._script.write(TEXT, self._file, message.tag, message.stop)
            return
        self._place(message.tag, message.start)
        for field in inner:
            child = _OPENED[kind].get(field.key)
            if child is not None:
                self._message(field, child)
            elif not _is_large(field):
                self._place(field.tag, field.stop)
            elif not self._copied(field.tag, field.stop):
                self._place(field.tag, field.start)
                self._place(field.start, field.stop, numbers=kind == _TENSOR)

    def _place(self, start: int, stop: int, *, numbers: bool = False) -> None:
        """A COPY of the range where there is one, else its bytes."""
        if not self._copied(start, stop):
            self._script.write(NUMBERS if numbers else TEXT, self._file, start, stop)

    def _copied(self, start: int, stop: int) -> bool:
        """Add a COPY of the range, if it is in a folded file: best where the last COPY stopped."""
        next_ = self._script.next_copy
        if next_ is None or not self._file.equals(start, stop, self._common.files[next_[0]], next_[1]):
            next_ = self._common.find(self._file, start, stop)
        return next_ is not None and self._script.copy(*next_, stop - start)


def _whole(file: Ranged) -> Field:
    return Field(0, 0, 0, file.size)


def _is_large(field: Field) -> bool:
    return field.key & 7 == LENGTH_DELIMITED and field.stop - field.start >= NUMBERS_FROM


def _fields(file: Ranged, message: Field, kind: int) -> list[Field] | None:
    """The fields of a message; None where it is not worth looking at them, or they cannot be told apart."""
    if message.stop - message.start < SMALL:
        return None
    found = fields(file.view, message.start, message.stop)
    try:
        inner = list(itertools.islice(found, MOST_FIELDS) if kind == _TENSOR else found)
    except OddWireError:
        return None
    return None if kind == _TENSOR and len(inner) == MOST_FIELDS else inner


def _edges(file: Ranged, start: int, stop: int) -> tuple[int, bytes]:
    """What ranges of the same bytes have in common: their length, and the first and last bytes."""
    if stop - start <= 2 * _EDGE:
        return stop - start, file.read(start, stop)
    return stop - start, file.read(start, start + _EDGE) + file.read(stop - _EDGE, stop)
