"""Large tensors stay out of protobuf: taken out of the file's bytes before parsing, put back when writing.

Parsing and serialising a model copies every weight several times. Instead the bytes of the file are walked once:

    lift:    model bytes            ->  skeleton (each large raw_data empty) + where the numbers lie in the file
    splice:  serialised skeleton    ->  pieces to write, one after the other, with numbers in the empty places

splice(skeleton, numbers of lift) is what serialising the whole model gives. Only the plain form that writers
produce is lifted; for anything else `lift` returns None, and protobuf parses it all.
Source: protobuf's encoding (varints, tags, length-delimited fields); field numbers of onnx.proto.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

LENGTH_DELIMITED = 2
GRAPH_KEY = 7 << 3 | LENGTH_DELIMITED  # ModelProto.graph
INITIALIZER_KEY = 5 << 3 | LENGTH_DELIMITED  # GraphProto.initializer
RAW_DATA_KEY = 9 << 3 | LENGTH_DELIMITED  # TensorProto.raw_data
SMALLEST = 2**16  # bytes; smaller tensors are parsed with the rest
MOST_FIELDS = 1000  # in a tensor with raw_data: dimensions, name, metadata; more are numbers one by one
_FIXED = {1: 8, 5: 4}

Buffer = bytes | memoryview


class Later(Protocol):
    """Bytes of a known length that are made when they are wanted."""

    def __len__(self) -> int: ...

    def buffer(self) -> memoryview:
        """The bytes."""


Piece = Buffer | Later


class OddWireError(Exception):
    """The bytes are not of the plain form."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: its key (number and kind), where its tag starts, where its content starts and stops."""

    key: int
    tag: int
    start: int
    stop: int


def lift(data: bytes, end: int | None = None) -> tuple[bytes, dict[int, memoryview]] | None:
    """The skeleton, and the numbers that it lacks by index of the initializer; None where nothing can be lifted.

    `end` is where the model ends, if not with the data.
    """
    end = len(data) if end is None else end
    view = memoryview(data)
    try:
        (graph,) = (f for f in fields(data, 0, end) if f.key == GRAPH_KEY)
        found = _large_tensors(data, graph)
    except (OddWireError, ValueError):
        return None
    if not found:
        return None
    pieces: list[Buffer] = []
    last = graph.start
    for _, tensor, raw in found:
        pieces.append(view[last : tensor.tag])
        body: list[Buffer] = [view[tensor.start : raw.tag], _header(RAW_DATA_KEY, 0), view[raw.stop : tensor.stop]]
        pieces += [_header(INITIALIZER_KEY, sum(map(len, body))), *body]
        last = tensor.stop
    pieces.append(view[last : graph.stop])
    header = _header(GRAPH_KEY, sum(map(len, pieces)))
    skeleton = b"".join([view[: graph.tag], header, *pieces, view[graph.stop :]])
    return skeleton, {index: view[raw.start : raw.stop] for index, _, raw in found}


def splice(skeleton: bytes, numbers: Mapping[int, Piece]) -> list[Piece]:
    """What to write, in order: the skeleton with `numbers` (by index of the initializer) in its empty raw_data."""
    if not numbers:
        return [skeleton]
    view = memoryview(skeleton)
    (graph,) = (f for f in fields(skeleton, 0, len(skeleton)) if f.key == GRAPH_KEY)
    tensors = [f for f in fields(skeleton, graph.start, graph.stop) if f.key == INITIALIZER_KEY]
    pieces: list[Piece] = []
    last = graph.start
    for index in sorted(numbers):
        tensor, content = tensors[index], numbers[index]
        (raw,) = (f for f in fields(skeleton, tensor.start, tensor.stop) if f.key == RAW_DATA_KEY)
        before, after = view[tensor.start : raw.tag], view[raw.stop : tensor.stop]
        header = _header(RAW_DATA_KEY, len(content))
        length = len(before) + len(header) + len(content) + len(after)
        pieces += [view[last : tensor.tag], _header(INITIALIZER_KEY, length), before, header, content, after]
        last = tensor.stop
    pieces.append(view[last : graph.stop])
    header = _header(GRAPH_KEY, sum(map(len, pieces)))
    return [view[: graph.tag], header, *pieces, view[graph.stop :]]


def _large_tensors(data: bytes, graph: Field) -> list[tuple[int, Field, Field]]:
    """Index, tensor and raw_data of each initializer that is worth lifting."""
    found: list[tuple[int, Field, Field]] = []
    index = 0
    for tensor in fields(data, graph.start, graph.stop):
        if tensor.key != INITIALIZER_KEY:
            continue
        if tensor.stop - tensor.start > SMALLEST:
            held = list(itertools.islice(fields(data, tensor.start, tensor.stop), MOST_FIELDS))
            raws = [f for f in held if f.key == RAW_DATA_KEY]
            if len(raws) > 1 or len(held) == MOST_FIELDS:
                raise OddWireError
            found += [(index, tensor, raw) for raw in raws if raw.stop - raw.start >= SMALLEST]
        index += 1
    return found


def fields(data: Buffer, position: int, end: int) -> Iterator[Field]:
    """The fields of the message between `position` and `end`.

    Raises:
        OddWireError: they are not of the plain form.
    """
    while position < end:
        tag = position
        key, position = _varint(data, position, end)
        kind, start = key & 7, position
        if kind == LENGTH_DELIMITED:
            length, start = _varint(data, position, end)
            position = start + length
        elif kind == 0:
            _, position = _varint(data, position, end)
        elif kind in _FIXED:
            position += _FIXED[kind]
        else:
            raise OddWireError  # groups, or no protobuf at all
        if position > end:
            raise OddWireError
        yield Field(key, tag, start, position)


def _varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise OddWireError


def _header(key: int, length: int) -> bytes:
    """The tag and length of a length-delimited field."""
    out = bytearray([key])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def made(piece: Piece) -> Buffer:
    """The bytes of a piece."""
    return piece if isinstance(piece, bytes | memoryview) else piece.buffer()
