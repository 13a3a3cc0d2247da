"""External data: where a tensor's bytes lie, whether it is safe to read them, and reading them.

A model may keep tensors in files beside it (ONNX ExternalData.md): `location` relative to the model's folder,
`offset` and `length` in bytes. A location is text from a file we did not write, so it may only name a plain
file inside that folder: not absolute, no "..", no symbolic or hard link, no device. In a `TrustedFolder` links are
followed, as the layout of Hugging Face's cache needs it.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from bnfold.errors import InvalidModelError, UnsafePathError
from bnfold.text import printable

_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128,
         16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}  # fmt: skip


_WITHOUT_TENSORS = frozenset([
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.FLOATS, AttributeProto.INTS,
    AttributeProto.STRINGS, AttributeProto.TYPE_PROTO, AttributeProto.TYPE_PROTOS,
])  # fmt: skip
if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # before Python 3.12, only the platform's own class can be derived from
_TRUST = "put the real file beside the model, or trust the folder (--follow-links)"


class TrustedFolder(_Path):
    """A model's folder whose links are followed. Trust belongs to a folder, so it goes wherever the folder goes."""


@dataclass(frozen=True, slots=True)
class ExternalRange:
    """A stretch of bytes in a file of the model's folder."""

    location: str
    path: Path
    offset: int
    length: int


def external_range(tensor: TensorProto, folder: Path | None) -> ExternalRange:
    """Where the bytes of `tensor` lie, checked against the file's real size.

    Raises:
        UnsafePathError: the location leaves the folder, or is not a plain file.
        InvalidModelError: the file is missing or too short, or the fields are not numbers that fit.
    """
    where = f"external data of tensor {printable(tensor.name)!r}"
    fields = {entry.key: entry.value for entry in tensor.external_data}
    if not all(isinstance(text, str) for entry in fields.items() for text in entry):  # else protobuf gives bytes
        raise InvalidModelError(f"{where}: its fields are not UTF-8 text")
    location = fields.get("location", "")
    if folder is None:
        raise InvalidModelError(f"{where}: the model was given in memory; give its path, so that its folder is known")
    path, size = _plain_file(folder, location, where)
    offset = _number(fields.get("offset", "0"), where)
    needed = byte_size(tensor, where)
    length = _number(fields["length"], where) if "length" in fields else needed
    if needed is not None and length != needed:
        raise InvalidModelError(f"{where}: shape {list(tensor.dims)} needs {needed} bytes, 'length' says {length}")
    if length is None:
        raise InvalidModelError(f"{where}: there is no 'length', and type {tensor.data_type} has no size of its own")
    if offset + length > size:
        raise InvalidModelError(
            f"{where}: {printable(location)} has {size} bytes, too short for {length} bytes at offset {offset}"
        )
    return ExternalRange(location, path, offset, length)


def read_external(tensor: TensorProto, folder: Path | None) -> bytes:
    """The bytes of an external tensor."""
    where = external_range(tensor, folder)
    with where.path.open("rb") as file:
        file.seek(where.offset)
        return file.read(where.length)


def _plain_file(folder: Path, location: str, where: str) -> tuple[Path, int]:
    shown = printable(location)
    trusted = isinstance(folder, TrustedFolder)
    path = folder
    for part in _parts(location, where):
        path = path / part
        try:
            info = path.stat() if trusted else path.lstat()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidModelError(f"{where}: cannot read {shown!r} beside the model: {reason}") from None
        if stat.S_ISLNK(info.st_mode):
            raise UnsafePathError(f"{where}: {shown!r} is a symbolic link; {_TRUST}")
    if not stat.S_ISREG(info.st_mode):
        raise UnsafePathError(f"{where}: {shown!r} is not a plain file; refusing to read it")
    if info.st_nlink > 1 and not trusted:
        raise UnsafePathError(f"{where}: {shown!r} is a hard link; {_TRUST}")
    return path, info.st_size


def _parts(location: str, where: str) -> tuple[str, ...]:
    """The names on the way to the file, from the model's folder on; there is at least one."""
    parts = PurePosixPath(location).parts
    windows = PureWindowsPath(location)
    if not parts or "\0" in location:
        raise InvalidModelError(f"{where}: the location is {'empty' if not parts else 'not a file name'}")
    if location.startswith("/") or windows.drive or windows.root or ".." in (*parts, *windows.parts):
        shown = printable(location)
        raise UnsafePathError(f"{where}: {shown!r} leads out of the model's folder; refusing to read it")
    return parts


def is_plain_inside(folder: Path, location: str) -> bool:
    """Whether `location` is a plain file inside `folder`, with one name and no link on the way."""
    try:
        _plain_file(Path(folder), location, "")
    except InvalidModelError:
        return False
    return True


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidModelError(f"{where}: {printable(text)!r} is not a number of bytes")
    return int(text)


def byte_size(tensor: TensorProto, where: str = "a tensor") -> int | None:
    """How many bytes a tensor of that shape and type has; None for types without a size of their own.

    Raises:
        InvalidModelError: a dimension is negative.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise InvalidModelError(f"{where}: negative dimension in {list(tensor.dims)}")
    bits = _BITS.get(tensor.data_type)
    return None if bits is None else (prod(tensor.dims) * bits + 7) // 8


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every TensorProto of the model: initializers and attributes, nested graphs and functions included."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _attribute_tensors(function.attribute_proto)
        yield from _node_tensors(function.node)
    for info in model.training_info:
        yield from _graph_tensors(info.initialization)
        yield from _graph_tensors(info.algorithm)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _sparse_tensors(graph.sparse_initializer)
    yield from _node_tensors(graph.node)


def _sparse_tensors(tensors: Iterable[SparseTensorProto]) -> Iterator[TensorProto]:
    for tensor in tensors:
        yield tensor.values
        yield tensor.indices


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    for attribute in attributes:
        if attribute.type not in _WITHOUT_TENSORS:
            yield from _held_tensors(attribute)


def _held_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    """By the fields that are there: what an attribute of no type holds is read by some as well."""
    if attribute.HasField("t"):
        yield attribute.t
    if attribute.HasField("g"):
        yield from _graph_tensors(attribute.g)
    if attribute.HasField("sparse_tensor"):
        yield from _sparse_tensors([attribute.sparse_tensor])
    yield from attribute.tensors
    yield from _sparse_tensors(attribute.sparse_tensors)
    for graph in attribute.graphs:
        yield from _graph_tensors(graph)


def copy_range(source: ExternalRange, target: int) -> None:
    """Append the bytes of `source` to the open file descriptor `target`, a few megabytes at a time."""
    with source.path.open("rb") as file:
        file.seek(source.offset)
        left = source.length
        while left:
            piece = file.read(min(left, 1 << 23))
            if not piece:
                raise InvalidModelError(f"{printable(source.location)} became shorter while it was read")
            write_all(target, piece)
            left -= len(piece)


def write_all(target: int, data: bytes | memoryview) -> None:
    """Write all of `data` to a file descriptor; os.write alone may stop short."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(target, view[: 1 << 30]) :]
