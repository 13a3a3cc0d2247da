"""Writing a model so that the file that was there is safe.

Everything is first written under fresh names in the target's folder. External data gets its final name then;
the rename of the .onnx over the target is the one commit point. Whatever ends the work before it, Ctrl-C and
a full disk included, takes back what was written.
"""

import contextlib
import errno
import filecmp
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from onnx import StringStringEntryProto, TensorProto

from bnfold.document import Document, serialise
from bnfold.errors import OutputError
from bnfold.external import all_tensors, copy_range, external_range, write_all
from bnfold.tensors import Tensor, is_external
from bnfold.text import printable

ALIGNMENT = 4096  # external tensors start on pages, so that runtimes can map them


@dataclass(slots=True)
class Staged:
    """A model that is written but not yet in its place.

    Attributes:
        path: the temporary .onnx, complete and loadable, external data included.
        target: where `commit` will put it.
    """

    path: Path
    target: Path
    _created: list[Path] = field(default_factory=list)

    def commit(self) -> None:
        """Put the model in its place: the one moment at which the target changes.

        Raises:
            OutputError: the target cannot be replaced.
        """
        try:
            self.path.replace(self.target)
        except OSError as error:
            raise _cannot_write(self.target, error) from None
        self._created.clear()
        _sync_folder(self.target.parent)

    @property
    def bytes(self) -> int:
        """How much was written: the .onnx, and its new data file."""
        return sum(path.stat().st_size for path in self._created)

    def note(self, path: Path) -> Path:
        """Remember a file to take back if there is no commit; call it before making the file."""
        self._created.append(path)
        return path

    def forget(self, path: Path) -> None:
        """The file is gone, or is not ours."""
        self._created.remove(path)

    def rollback(self) -> None:
        """Take back what was written."""
        for path in self._created:
            path.unlink(missing_ok=True)
        self._created.clear()


@contextlib.contextmanager
def staged(document: Document, target: Path, *, unchanged: bool) -> Iterator[Staged]:
    """Write `document` beside `target`; the block decides whether to `commit`. Without it, nothing remains.

    `unchanged`: the document was not edited, so its file is copied byte for byte.

    Raises:
        OutputError: the folder is missing, not writable, or full.
    """
    stage = Staged(_temporary(target), target)
    try:
        try:
            if unchanged and document.path is not None:
                _copy_file(document, stage)
            else:
                _write_model(document, stage)
        except OSError as error:
            raise _cannot_write(target, error) from None
        yield stage
    finally:
        stage.rollback()


def check_target(target: Path, *, force: bool) -> None:
    """Refuse early what could not be written in the end.

    Raises:
        OutputError: the target exists and `force` is off, is not a plain file, or has no folder.
    """
    shown = printable(str(target))
    if target.is_symlink():
        raise OutputError(f"{shown} is a symbolic link; give the real path of the file to write")
    if target.is_dir():
        raise OutputError(f"{shown} is a folder; give the name of a file")
    if target.exists() and not target.is_file():
        raise OutputError(f"{shown} is not a plain file")
    if target.exists() and not force:
        raise OutputError(f"{shown} exists; --force overwrites it, -o names another file")
    if not target.parent.is_dir():
        raise OutputError(f"the folder {printable(str(target.parent))} does not exist")


def _cannot_write(target: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {printable(str(target))}: {error.strerror}; nothing was changed")


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.bnfold-tmp")


def _copy_file(document: Document, stage: Staged) -> None:
    assert document.path is not None
    with contextlib.suppress(FileNotFoundError):
        if document.path.parent.samefile(stage.target.parent):
            shutil.copyfile(document.path, stage.note(stage.path))
            return
    for location in sorted(document.data_files):
        copy = stage.target.parent / location
        original = document.path.parent / location
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original, stage.note(copy))
        elif not filecmp.cmp(original, copy, shallow=False):
            raise OutputError(f"{printable(str(copy))} exists and holds other data; choose another folder")
    shutil.copyfile(document.path, stage.note(stage.path))


def _write_model(document: Document, stage: Staged) -> None:
    if not any(is_external(tensor) for tensor in all_tensors(document.proto)):
        _write_onnx(stage, serialise(document.proto))
        return
    tensors = [tensor for tensor in all_tensors(document.proto) if is_external(tensor)]
    fields = [list(tensor.external_data) for tensor in tensors]
    try:
        _write_data(document, stage, tensors)
        data = serialise(document.proto)
    finally:  # the document keeps saying where its own data lies, so that it can be written again
        for tensor, entries in zip(tensors, fields, strict=True):
            del tensor.external_data[:]
            tensor.external_data.extend(entries)
    _write_onnx(stage, data)


def _write_onnx(stage: Staged, data: bytes) -> None:
    with _new_file(stage.note(stage.path)) as descriptor:
        if stage.target.exists() and hasattr(os, "fchmod"):
            with contextlib.suppress(OSError):  # a file system without modes; the umask's mode stays
                os.fchmod(descriptor, stage.target.stat().st_mode & 0o777)
        write_all(descriptor, data)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """A file descriptor to write a file that does not exist yet; its bytes are on the disk at the end."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_data(document: Document, stage: Staged, tensors: list[TensorProto]) -> None:
    """All external tensors into one new file; their fields then name it."""
    changed = {t.name: t for t in document.proto.graph.initializer if t.name in document.external}
    temporary = stage.note(_temporary(stage.target))
    places: list[tuple[int, int]] = []
    with _new_file(temporary) as descriptor:
        position = 0
        for tensor in tensors:
            gap = -position % ALIGNMENT
            write_all(descriptor, bytes(gap))
            start = position + gap
            new = document.external[tensor.name] if changed.get(tensor.name) is tensor else None
            position = start + _write_tensor(tensor, new, document.folder, descriptor)
            places.append((start, position - start))
    location = _settle_data(stage, temporary)
    for tensor, (offset, length) in zip(tensors, places, strict=True):
        _point(tensor, location, offset, length)


def _write_tensor(tensor: TensorProto, new: Tensor | None, folder: Path | None, descriptor: int) -> int:
    if new is not None:
        data = new.array().tobytes()
        write_all(descriptor, data)
        return len(data)
    where = external_range(tensor, folder)
    copy_range(where, descriptor)
    return where.length


def _settle_data(stage: Staged, temporary: Path) -> str:
    """Give the data file its final, fresh name: <target>.data, or with a digest where that is taken."""
    plain = f"{stage.target.name}.data"
    for attempt in (1, 2):
        name = plain if attempt == 1 else f"{stage.target.name}.{_digest(temporary)}.data"
        path = stage.target.with_name(name)
        if path.is_file() and not path.is_symlink() and filecmp.cmp(temporary, path, shallow=False):
            temporary.unlink()
            stage.forget(temporary)
            return name
        if _rename_to_fresh(temporary, path):
            stage.forget(temporary)
            stage.note(path)
            return name
    raise OutputError(f"{printable(name)} exists and holds other data; remove it, or choose another output")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _rename_to_fresh(source: Path, target: Path) -> bool:
    """Rename without ever replacing a file: False where `target` exists."""
    if os.path.lexists(target):
        return False
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        source.rename(target)  # a file system without hard links
        return True
    source.unlink()
    return True


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.append(StringStringEntryProto(key=key, value=value))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
