"""Opening a model: the protobuf as read is the document of record, and nothing else re-serialises it."""

import stat
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto

from bnfold.errors import InvalidModelError, OutputError, TooLargeError
from bnfold.external import TrustedFolder, all_tensors, external_range
from bnfold.messages import RawBytes, write_into
from bnfold.nodes import ONNX_DOMAINS, check_text
from bnfold.tensors import Tensor, is_external
from bnfold.text import printable, size
from bnfold.wire import Piece, lift, splice

PROTOBUF_LIMIT = 2**31 - 1
_SAYS_EXTERNAL = bytes([14 << 3, TensorProto.EXTERNAL])  # TensorProto.data_location, as it stands in a file
LIFT_FROM = 2**24  # bytes; below, walking the file costs more than it saves

_PICKLES = (b"\x02", b"\x03", b"\x04", b"\x05")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")  # gzip, bzip2, xz, zstd, 7z
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` to get the model itself"),
    (0, b"PK\x03\x04", "a zip archive (a .pt, .pt2 or .keras file?): export it to ONNX first"),
    (0, b"\x89HDF", "an HDF5 file (Keras .h5?): export it to ONNX first"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ORTM", "a model in onnxruntime's own format: fold the .onnx file it was made from"),
    *((0, b"\x80" + version, "a Python pickle (an old .pt file?): export it to ONNX first") for version in _PICKLES),
    *((0, magic, "a compressed file: unpack it first") for magic in _COMPRESSED),
    (0, b"<", "an HTML or XML file: was the download refused?"),
    (0, b"{", "JSON: bnfold reads the binary form"),
    (0, b"ir_version:", "ONNX in text form: bnfold reads the binary form"),
)


class Document:
    """A model that was read, and where its external data lies.

    Attributes:
        proto: the model. Edits are made here and nowhere else.
        path: the file it was read from; None for a model given in memory.
        folder: where external data is looked for; None for a model given in memory. Links there are followed if it
            is a `TrustedFolder`.
        changed: new numbers of initializers, by name, that are not in `proto` but put in when it is written.
        lifted: the same for numbers that were left where they are in the file's bytes.
        data_files: the files that hold external data, relative to `folder`.
    """

    def __init__(
        self,
        proto: ModelProto,
        path: Path | None,
        lifted: dict[int, memoryview] | None = None,
        *,
        external: bool = True,
        follow_links: bool = False,
    ) -> None:
        self.proto = proto
        self.path = path
        self.folder = None if path is None else TrustedFolder(path.parent) if follow_links else path.parent
        self.changed: dict[str, Tensor] = {}
        self._identity: tuple[int, ...] = ()
        _check_header(proto)
        self.lifted = {proto.graph.initializer[i].name: numbers for i, numbers in (lifted or {}).items()}
        self.data_files: set[str] = set()
        if external:
            tensors = (tensor for tensor in all_tensors(proto) if is_external(tensor))
            self.data_files = {external_range(tensor, self.folder).location for tensor in tensors}

    @classmethod
    def open(cls, source: "str | Path | ModelProto", *, follow_links: bool = False) -> "Document":
        """Read a file, or take a copy of a ModelProto. `follow_links`: also where its external data is a link.

        Raises:
            InvalidModelError: it cannot be read, is not ONNX, or breaks a rule of the spec.
        """
        if isinstance(source, ModelProto):
            proto = ModelProto()
            proto.CopyFrom(source)
            return cls(proto, None)
        path = Path(source)
        identity = _identity(path)
        data = _read(path)
        skeleton, lifted = (lift(data) if len(data) >= LIFT_FROM else None) or (data, {})
        # External data is named by the key "location". Looking for that is faster than looking at every tensor;
        # so is looking for the field that says EXTERNAL, for tensors that say so and name nothing.
        proto = _parse(skeleton)
        external = b"location" in skeleton or (_SAYS_EXTERNAL in skeleton and _says_external(proto))
        document = cls(proto, path, lifted, external=external, follow_links=follow_links)
        document._identity = identity
        return document

    def check_unchanged(self) -> None:
        """Make sure that the file is still the one that was read, before it is replaced.

        Raises:
            OutputError: it is another one, or was written to.
        """
        if self.path is not None and _identity(self.path) != self._identity:
            raise OutputError(f"{printable(str(self.path))} was changed by somebody else meanwhile; it is kept")

    def data_paths(self) -> list[Path]:
        """The files that hold external data."""
        return [] if self.folder is None else [Path(self.folder) / name for name in self.data_files]

    def inlined(self) -> ModelProto:
        """A copy of the model that holds its numbers; unchanged external data stays where it is."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in proto.graph.initializer:
            if tensor.name in self.changed:
                write_into(tensor, self.changed[tensor.name])
            elif tensor.name in self.lifted:
                tensor.raw_data = bytes(self.lifted[tensor.name])
        return proto

    def pieces(self) -> list[Piece]:
        """The model's bytes, in pieces to write one after the other: the same for the same model.

        Raises:
            TooLargeError: it is over the 2 GiB that a protobuf can hold.
        """
        numbers: dict[int, Piece] = {}
        if self.changed or self.lifted:
            for index, tensor in enumerate(self.proto.graph.initializer):
                name = tensor.name
                if is_external(tensor):
                    continue
                if name in self.changed:
                    numbers[index] = RawBytes(self.changed[name])
                elif name in self.lifted:
                    numbers[index] = self.lifted[name]
        pieces = splice(serialise(self.proto), numbers)
        total = sum(map(len, pieces))
        if total > PROTOBUF_LIMIT:
            raise TooLargeError(f"the folded model would have {size(total)}; a protobuf file ends at 2 GiB")
        return pieces


def _says_external(proto: ModelProto) -> bool:
    """Whether an initializer or a Constant node says that its numbers lie in another file."""
    constants = (node for node in proto.graph.node if node.op_type == "Constant")
    held = (attribute.t for node in constants for attribute in node.attribute)
    return any(map(is_external, proto.graph.initializer)) or any(map(is_external, held))


def serialise(proto: ModelProto) -> bytes:
    """The model's bytes, the same for the same model.

    Raises:
        TooLargeError: it is over the 2 GiB that a protobuf can hold.
    """
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise TooLargeError(f"the model does not fit into one protobuf file of 2 GiB: {error}") from None


def _identity(path: Path) -> tuple[int, ...]:
    """What tells a file from the one that was there before; () where it cannot be looked at."""
    try:
        info = path.stat()
    except (OSError, ValueError):
        return ()
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _read(path: Path) -> bytes:
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise InvalidModelError("is a folder, not a model file")
        if not stat.S_ISREG(info.st_mode):
            raise InvalidModelError("is not a plain file")
        if info.st_size > PROTOBUF_LIMIT:
            raise InvalidModelError(f"has {size(info.st_size)}; a protobuf file ends at 2 GiB, so this is no .onnx")
        return path.read_bytes()
    except OSError as error:
        raise InvalidModelError(f"cannot read it: {error.strerror}") from None
    except ValueError as error:
        raise InvalidModelError(f"cannot read it: {error}") from None


def _parse(data: bytes) -> ModelProto:
    if not data:
        raise InvalidModelError("the file is empty")
    for offset, signature, what in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            raise InvalidModelError(f"this is {what}")
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise InvalidModelError("not an ONNX model, or cut short: protobuf cannot parse it") from None
    return proto


def _check_header(proto: ModelProto) -> None:
    check_text(proto)
    if not proto.HasField("graph"):
        raise InvalidModelError("not an ONNX model, or cut short: there is no graph in it")
    if proto.ir_version < 1:
        raise InvalidModelError(f"not an ONNX model, or cut short: IR version {proto.ir_version}")
    if proto.ir_version > onnx.IR_VERSION:
        known = f"onnx {onnx.__version__} knows 1 to {onnx.IR_VERSION}"
        raise InvalidModelError(f"IR version {proto.ir_version} is unknown: {known} (update onnx?)")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise InvalidModelError("no opset_import: the file is cut short, or was not written as IR >= 3 requires")
    versions = {entry.version for entry in proto.opset_import if entry.domain in ONNX_DOMAINS}
    if len(versions) > 1:
        raise InvalidModelError(f"imports several versions of the standard operators: {sorted(versions)}")
    newest = onnx.defs.onnx_opset_version()
    if any(not 1 <= version <= newest for version in versions):
        raise InvalidModelError(
            f"opset {versions.pop()} is unknown: onnx {onnx.__version__} knows 1 to {newest} (update onnx?)"
        )
