"""Writing a model: one .onnx, and its external data, if it has any, in one new file beside it.

A model in which nothing changed is copied byte for byte, and its data files with it where it moves to another
folder. The files that were there are never written to (see `staging`).
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from bnfold.datafile import DataFile, too_large_inside
from bnfold.document import Document
from bnfold.errors import OutputError, TooLargeError, WrittenInterrupt
from bnfold.external import ExternalRange, TrustedFolder, all_tensors, copy_range, write_all
from bnfold.fileops import keep_mode, name_for
from bnfold.staging import NewData, Staged, cannot_write
from bnfold.tensors import is_external
from bnfold.text import printable
from bnfold.wire import Piece, made


@contextlib.contextmanager
def staged(document: Document, target: Path, *, unchanged: bool) -> Iterator[Staged]:
    """Write `document` beside `target`; the block decides whether to `commit`. Without it, nothing remains.

    `unchanged`: the document was not edited, so its file is copied byte for byte.

    Raises:
        OutputError: the target is one of the model's own data files, or its folder is missing, not writable, full.
        WrittenInterrupt: Ctrl-C came after the model was put in its place.
    """
    stage = Staged(target)
    try:
        try:
            _write(document, stage, unchanged=unchanged)
            yield stage
        finally:
            stage.rollback()
    except KeyboardInterrupt:
        if stage.is_committed():
            raise WrittenInterrupt from None
        raise


def _write(document: Document, stage: Staged, *, unchanged: bool) -> None:
    try:
        _check_own_data(document, stage.target)
        if unchanged and document.path is not None:
            _copy_model(document, document.path, stage)
        else:
            _write_model(document, stage)
    except OSError as error:
        raise cannot_write(stage.target, error) from None


def _check_own_data(document: Document, target: Path) -> None:
    for location in document.data_files:
        assert document.folder is not None
        own = (document.folder / location, target.parent / location)
        if target in own or (target.exists() and target.samefile(own[0])):
            raise OutputError(f"{printable(str(target))} is the name of the model's own external data")


def _copy_model(document: Document, source: Path, stage: Staged) -> None:
    if not source.parent.samefile(stage.target.parent):
        for number, location in enumerate(sorted(document.data_files)):
            _copy_data(source.parent, location, stage, number)
    elif isinstance(document.folder, TrustedFolder):
        _refuse_links(source.parent, document, stage.target)
    with stage.new_file(stage.path) as descriptor:
        keep_mode(descriptor, stage.target)
        copy_range(ExternalRange(source.name, source, 0, source.stat().st_size), descriptor)


def _refuse_links(folder: Path, document: Document, target: Path) -> None:
    """A byte copy names the data as the original does; beside a link to it, no runtime would load that."""
    for location in sorted(document.data_files):
        if (folder / location).resolve() != folder.resolve() / location:
            raise OutputError(
                f"nothing folds, and {printable(str(target))} would be a copy that reads {printable(location)} "
                "through a link; choose another folder, which gets copies of the data too"
            )


def _copy_data(folder: Path, location: str, stage: Staged, number: int) -> None:
    original, copy = folder / location, stage.target.parent / location
    for parent in (copy, *copy.parents[: len(Path(location).parts) - 1]):
        if parent.is_symlink():
            raise OutputError(f"{printable(str(parent))} is a symbolic link; choose another folder")
    temporary = stage.temporary(f".{number}.data")
    with stage.new_file(temporary) as descriptor:
        copy_range(ExternalRange(location, original, 0, original.stat().st_size), descriptor)
    stage.new_data.append(NewData(temporary, lambda: [copy]))


def _write_model(document: Document, stage: Staged) -> None:
    outside = [t for t in all_tensors(document.proto) if is_external(t)] if document.data_files else []
    try:
        writing = _Writing.plan(document, outside, stage)
    except TooLargeError:
        large = too_large_inside(document)
        writing = _Writing.plan(document, [*outside, *large], stage)
        stage.outgrown = len(large)
    writing.write()


@dataclass(slots=True)
class _Writing:
    """A model on its way into files: the pieces of an .onnx, and what goes into a data file beside it."""

    document: Document
    files: Staged
    data: DataFile
    pieces: list[Piece]
    digest: str = ""

    @classmethod
    def plan(cls, document: Document, outside: list[TensorProto], stage: Staged) -> "_Writing":
        """Find out whether it can be written.

        Raises:
            TooLargeError: the .onnx would be over the 2 GiB of a protobuf, with the tensors `outside` in a data file.
        """
        data = DataFile.plan(document, outside)
        with data.named(stage.temporary(".data").name, ""):
            return cls(document, stage, data, document.pieces())

    def write(self) -> None:
        """Write both under temporary names, and say how the .onnx gets written for the final name of the data."""
        if self.data.tensors:
            temporary = self.files.temporary(".data")
            with self.files.new_file(temporary) as descriptor:
                keep_mode(descriptor, self.files.target, *self._own_data())
                self.data.write(descriptor)
            self.digest = self.data.digest(temporary)
            self.files.new_data.append(NewData(temporary, lambda: self._places(temporary)))
            self.files.rewrite = lambda path, places: self._write_onnx(path, places[0].name)
            self.files.adopt = lambda: self.data.adopt(self.document, self.files.data[0].name, self.digest)
            self._write_onnx(self.files.path, temporary.name)
        else:
            self._write_pieces(self.files.path)

    def _own_data(self) -> list[Path]:
        """The data files of the model that is replaced by itself: they may be more private than it is."""
        return self.document.data_paths() if self.document.path == self.files.target else []

    def _places(self, temporary: Path) -> Iterator[Path]:
        """<target>.data, or with a digest where that is taken."""
        name = name_for(self.files.target, ending=len(".0123456789ab.data"))
        yield self.files.target.with_name(f"{name}.data")
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        yield self.files.target.with_name(f"{name}.{digest}.data")

    def _write_onnx(self, path: Path, location: str) -> None:
        with self.data.named(location, self.digest):
            self.pieces = self.document.pieces()
            self._write_pieces(path)

    def _write_pieces(self, path: Path) -> None:
        with self.files.new_file(path) as descriptor:
            keep_mode(descriptor, self.files.target)
            for piece in self.pieces:
                write_all(descriptor, made(piece))
