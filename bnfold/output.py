"""Writing a model: one .onnx, and its external data, if it has any, in one new file beside it.

A model in which nothing changed is copied byte for byte, and its data files with it where it moves to another
folder. The files that were there are never written to (see `staging`).
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from onnx import StringStringEntryProto, TensorProto

from bnfold.document import Document
from bnfold.errors import OutputError
from bnfold.external import ExternalRange, all_tensors, copy_range, external_range, write_all
from bnfold.staging import Staged, cannot_write, keep_mode
from bnfold.tensors import RawBytes, Tensor, is_external
from bnfold.text import printable
from bnfold.wire import made

ALIGNMENT = 4096  # external tensors start on pages, so that runtimes can map them


@contextlib.contextmanager
def staged(document: Document, target: Path, *, unchanged: bool) -> Iterator[Staged]:
    """Write `document` beside `target`; the block decides whether to `commit`. Without it, nothing remains.

    `unchanged`: the document was not edited, so its file is copied byte for byte.

    Raises:
        OutputError: the target is one of the model's own data files, or its folder is missing, not writable, full.
    """
    stage = Staged(target)
    try:
        try:
            _check_own_data(document, target)
            if unchanged and document.path is not None:
                _copy_model(document, document.path, stage)
            else:
                _write_model(document, stage)
        except OSError as error:
            raise cannot_write(target, error) from None
        stage.finish()
        yield stage
    finally:
        stage.rollback()


def _check_own_data(document: Document, target: Path) -> None:
    for location in document.data_files:
        assert document.folder is not None
        own = (document.folder / location, target.parent / location)
        if target in own or (target.exists() and target.samefile(own[0])):
            raise OutputError(f"{printable(str(target))} is the name of the model's own external data")


def _copy_model(document: Document, source: Path, stage: Staged) -> None:
    if not source.parent.samefile(stage.target.parent):
        for location in sorted(document.data_files):
            _copy_data(source.parent, location, stage)
    with stage.new_file(stage.path) as descriptor:
        keep_mode(descriptor, stage.target)
        copy_range(ExternalRange(source.name, source, 0, source.stat().st_size), descriptor)


def _copy_data(folder: Path, location: str, stage: Staged) -> None:
    original, copy = folder / location, stage.target.parent / location
    for parent in (copy, *copy.parents[: len(Path(location).parts) - 1]):
        if parent.is_symlink():
            raise OutputError(f"{printable(str(parent))} is a symbolic link; choose another folder")
    stage.new_folders(copy.parent)
    temporary = stage.temporary()
    with stage.new_file(temporary) as descriptor:
        copy_range(ExternalRange(location, original, 0, original.stat().st_size), descriptor)
    if not stage.settle(temporary, copy):
        raise OutputError(f"{printable(str(copy))} exists and holds other data, or is a link; choose another folder")


def _write_model(document: Document, stage: Staged) -> None:
    tensors = [t for t in all_tensors(document.proto) if is_external(t)] if document.data_files else []
    fields = [list(tensor.external_data) for tensor in tensors]
    try:
        if tensors:
            _write_data(document, stage, tensors)
        pieces = document.pieces()
    finally:  # the document keeps saying where its own data lies, so that it can be written again
        for tensor, entries in zip(tensors, fields, strict=True):
            del tensor.external_data[:]
            tensor.external_data.extend(entries)
    with stage.new_file(stage.path) as descriptor:
        keep_mode(descriptor, stage.target)
        for piece in pieces:
            write_all(descriptor, made(piece))


def _write_data(document: Document, stage: Staged, tensors: list[TensorProto]) -> None:
    """All external tensors into one new file; their fields then name it."""
    changed = {t.name: t for t in document.proto.graph.initializer if t.name in document.changed}
    temporary = stage.temporary()
    places: list[tuple[int, int]] = []
    with stage.new_file(temporary) as descriptor:
        position = 0
        for tensor in tensors:
            gap = -position % ALIGNMENT
            write_all(descriptor, bytes(gap))
            start = position + gap
            new = document.changed[tensor.name] if changed.get(tensor.name) is tensor else None
            position = start + _write_tensor(tensor, new, document.folder, descriptor)
            places.append((start, position - start))
    location = _settle_data(stage, temporary)
    for tensor, (offset, length) in zip(tensors, places, strict=True):
        _point(tensor, location, offset, length)


def _write_tensor(tensor: TensorProto, new: Tensor | None, folder: Path | None, descriptor: int) -> int:
    if new is not None:
        data = RawBytes(new)
        write_all(descriptor, data.buffer())
        return len(data)
    where = external_range(tensor, folder)
    copy_range(where, descriptor)
    return where.length


def _settle_data(stage: Staged, temporary: Path) -> str:
    """Give the data file its final name: <target>.data, or with a digest where that is taken."""
    name = f"{stage.target.name}.data"
    if stage.settle(temporary, stage.target.with_name(name)):
        return name
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    name = f"{stage.target.name}.{digest}.data"
    if stage.settle(temporary, stage.target.with_name(name)):
        return name
    raise OutputError(f"{printable(name)} exists and holds other data; remove it, or choose another output")


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.append(StringStringEntryProto(key=key, value=value))
