"""The one data file of a written model: which tensors go into it, where they lie in it, and what their fields say.

Source: ONNX ExternalData.md. `location`, `offset` and `length` follow the bytes; `checksum`, the SHA-1 of the whole
file, is made anew for a tensor that had one. Keys that ExternalData.md does not know stay, but for those that tell
where the old bytes lay: `basepath`, and onnxruntime's `prepacked_...` (ranges of the old file).
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import StringStringEntryProto, TensorProto

from bnfold.document import Document
from bnfold.external import ExternalRange, copy_range, external_range, write_all
from bnfold.messages import RawBytes
from bnfold.tensors import StoredTensor, Tensor, bytes_of, is_external
from bnfold.wire import Piece, made

ALIGNMENT = 4096  # external tensors start on pages, so that runtimes can map them
SMALLEST_OUTSIDE = 1024  # bytes; onnx moves no smaller tensor out of a model by default either
_OF_THE_OLD_BYTES = ("basepath", "prepacked")
_NUMBERS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True, slots=True)
class DataFile:
    """What goes into a data file: tensors of a document's proto, their numbers, and (offset, length) of each."""

    tensors: Sequence[TensorProto]
    numbers: Sequence[ExternalRange | Piece]
    places: Sequence[tuple[int, int]]

    @classmethod
    def plan(cls, document: Document, tensors: Sequence[TensorProto]) -> "DataFile":
        """Where each tensor is to lie; nothing is read or written yet.

        Raises:
            InvalidModelError: external data is missing, or does not fit.
        """
        own = {id(tensor) for tensor in document.proto.graph.initializer if tensor.name in document.changed}
        numbers = [_numbers(document, tensor, changed=id(tensor) in own) for tensor in tensors]
        places: list[tuple[int, int]] = []
        shared: dict[ExternalRange, tuple[int, int]] = {}  # what several tensors had in one place stays in one
        position = 0
        for piece in numbers:
            if isinstance(piece, ExternalRange) and piece in shared:
                places.append(shared[piece])
                continue
            start = position + -position % ALIGNMENT
            length = piece.length if isinstance(piece, ExternalRange) else len(piece)
            places.append((start, length))
            position = start + length
            if isinstance(piece, ExternalRange):
                shared[piece] = places[-1]
        return cls(tensors, numbers, places)

    def write(self, descriptor: int) -> None:
        """Write all numbers to a file descriptor."""
        position = 0
        for piece, (start, length) in zip(self.numbers, self.places, strict=True):
            if start < position:
                continue  # it is there already, for another tensor
            write_all(descriptor, bytes(start - position))
            if isinstance(piece, ExternalRange):
                copy_range(piece, descriptor)
            else:
                write_all(descriptor, made(piece))
            position = start + length

    def digest(self, path: Path) -> str:
        """The SHA-1 of the file that was written, in hex; "" where no tensor asks for it."""
        if not any(entry.key == "checksum" for tensor in self.tensors for entry in tensor.external_data):
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()

    @contextlib.contextmanager
    def named(self, location: str, digest: str) -> Iterator[None]:
        """For the block, the tensors say that their numbers lie in this file; then, what they said before."""
        kept: list[TensorProto] = []
        try:
            for tensor in self.tensors:
                copy = TensorProto()
                copy.CopyFrom(tensor)
                kept.append(copy)
                self._point(len(kept) - 1, location, digest)
            yield
        finally:
            for copy, tensor in zip(kept, self.tensors, strict=False):
                tensor.CopyFrom(copy)

    def adopt(self, document: Document, location: str, digest: str) -> None:
        """Let the document read from the new file from now on: the files that it was read from may go."""
        own = {id(tensor) for tensor in document.proto.graph.initializer}
        for index, tensor in enumerate(self.tensors):
            self._point(index, location, digest)
            if id(tensor) not in own:
                continue
            document.lifted.pop(tensor.name, None)
            if tensor.name in document.changed:
                held = TensorProto()
                held.CopyFrom(tensor)
                document.changed[tensor.name] = StoredTensor(held, document.folder)
        document.data_files = {location}

    def _point(self, index: int, location: str, digest: str) -> None:
        """Make a tensor say that its numbers lie in this file; its other fields, and the order of the keys, stay."""
        tensor, (offset, length) = self.tensors[index], self.places[index]
        kept = {
            entry.key: entry.value for entry in tensor.external_data if not entry.key.startswith(_OF_THE_OLD_BYTES)
        }
        fields = kept | {"location": location, "offset": str(offset), "length": str(length)}
        if "checksum" in kept:
            fields["checksum"] = digest
        if not isinstance(self.numbers[index], ExternalRange):  # what the message itself holds is of no use any more
            for name in _NUMBERS:
                tensor.ClearField(name)
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.extend(StringStringEntryProto(key=key, value=value) for key, value in fields.items())


def too_large_inside(document: Document) -> list[TensorProto]:
    """The initializers of the main graph that are large enough to lie in a data file, and do not yet."""
    return [
        tensor for tensor in document.proto.graph.initializer
        if not is_external(tensor) and _size(document, tensor) >= SMALLEST_OUTSIDE
    ]  # fmt: skip


def _size(document: Document, tensor: TensorProto) -> int:
    if tensor.name in document.changed:
        return bytes_of(document.changed[tensor.name])
    if tensor.name in document.lifted:
        return len(document.lifted[tensor.name])
    return len(tensor.raw_data) if tensor.HasField("raw_data") else bytes_of(StoredTensor(tensor))


def _numbers(document: Document, tensor: TensorProto, *, changed: bool) -> ExternalRange | Piece:
    """Where the numbers of a tensor come from. `changed`: it is the initializer of that name that was changed."""
    new: Tensor | None = document.changed[tensor.name] if changed else None
    if new is not None:
        return RawBytes(new)
    if is_external(tensor):
        return external_range(tensor, document.folder)
    if tensor.name in document.lifted:
        return document.lifted[tensor.name]
    return tensor.raw_data if tensor.HasField("raw_data") else RawBytes(StoredTensor(tensor))
