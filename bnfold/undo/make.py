"""Writing an undo file: complete and in its place before the folded model is, taken back where that does not come."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from onnx import ModelProto

import bnfold
from bnfold.document import Document
from bnfold.errors import OutputError
from bnfold.external import all_tensors, byte_size, external_range, write_all
from bnfold.staging import Files, cannot_write, check_target
from bnfold.tensors import is_external
from bnfold.text import printable
from bnfold.undo.delta import Common, Description, Range
from bnfold.undo.form import HEAD, LEAST_COPY, FileEntry, Index, ending
from bnfold.undo.fresh import Fresh, temporary_name
from bnfold.undo.ranged import Ranged
from bnfold.undo.script import Script


def check_undo_target(path: Path, own: Iterable[Path], *, force: bool) -> None:
    """Refuse an undo file that exists, or that is a file of the model itself.

    Raises:
        OutputError: it is one of those, or cannot be written there.
    """
    for other in own:
        if path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other)):
            raise OutputError(f"--undo-file {printable(str(path))}: that is a file of the model itself")
    check_target(path, force=force)


@contextlib.contextmanager
def undo_file(path: Path, document: Document, folded: Files, *, force: bool) -> Iterator[int]:
    """Write the undo file at `path`; the block puts the folded model in its place. Gives the size of the undo file.

    Args:
        path: of the undo file.
        document: the original, whose files have not changed since it was read.
        folded: the files of the folded model, under the names that they will have.
        force: replace the undo file that is there.

    Raises:
        OutputError: it cannot be written; or one of the original files was changed meanwhile.
    """
    assert document.folder is not None
    own = [*folded.values(), *(document.folder / location for location in document.data_files)]
    check_undo_target(path, own, force=force)
    fresh, backup = Fresh(), temporary_name(path)
    target = next(iter(folded.values())).with_name(next(iter(folded)))
    index: Index | None = None
    try:
        try:
            with fresh.new(path) as descriptor:
                index = _write(descriptor, document, folded)
                size = os.fstat(descriptor).st_size
            document.check_unchanged()
            _keep(path, backup)
            fresh.put(path, replace=force)
        except OSError as error:
            raise cannot_write(path, error) from None
        yield size
    except BaseException:
        if index is not None and fresh.is_put(path) and not _is(target, index.folded[0]):
            _back(backup, path)
        raise
    finally:
        fresh.rollback(keep=True)
        with contextlib.suppress(OSError):
            backup.unlink(missing_ok=True)


def _keep(path: Path, backup: Path) -> None:
    """A second name for the file that is replaced, if there is one and the file system has such names."""
    with contextlib.suppress(OSError):
        os.link(path, backup)


def _back(backup: Path, path: Path) -> None:
    """Put back what was there; where that was nothing, or has no second name, nothing stays."""
    with contextlib.suppress(OSError):
        if backup.exists():
            backup.replace(path)
        else:
            path.unlink()


def _is(path: Path, entry: FileEntry) -> bool:
    """Whether a file is the one that the entry tells of."""
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    with contextlib.closing(Ranged(path)) as file:
        return file.sha256() == entry.sha256


def _write(descriptor: int, document: Document, folded: Files) -> Index:
    """Write all of the undo file; returns its index."""
    assert document.path is not None
    assert document.folder is not None
    ranges = _ranges(document)
    paths = {document.path.name: document.path} | {name: document.folder / name for name in ranges}
    with contextlib.ExitStack() as held:
        old, new = (
            {name: held.enter_context(contextlib.closing(Ranged(path))) for name, path in side.items()}
            for side in (paths, folded)
        )
        before, after = (
            tuple(FileEntry(name, file.size, file.sha256()) for name, file in side.items()) for side in (old, new)
        )
        write_all(descriptor, HEAD)
        script = Script(lambda data: write_all(descriptor, data), [file.size for file in new.values()])
        known = {(entry.size, entry.sha256): place for place, entry in enumerate(after)}
        common: Common | None = None
        for entry in before:
            place = known.get((entry.size, entry.sha256))
            if place is not None and entry.size >= LEAST_COPY and script.copy(place, 0, entry.size):
                script.end_file()
                continue
            common = common or _common(new, folded)
            description = Description(old[entry.name], common, script)
            description.data(ranges[entry.name]) if entry.name in ranges else description.model()
        index = Index(*script.finish(), after, before)
    write_all(descriptor, ending(index, bnfold.__version__))
    return index


def _ranges(document: Document) -> dict[str, list[Range]]:
    """Where in the data files of the original the tensors lie, (start, stop); its proto has been edited by now."""
    found: dict[str, list[Range]] = {}
    if document.data_files:
        assert document.path is not None
        proto = ModelProto.FromString(document.path.read_bytes())
        for where in (external_range(t, document.folder) for t in all_tensors(proto) if is_external(t)):
            name = str(PurePosixPath(where.location))
            found.setdefault(name, []).append((where.offset, where.offset + where.length))
    return dict(sorted(found.items()))


def _common(new: Mapping[str, Ranged], folded: Files) -> Common:
    """The index of the folded files."""
    common = Common(list(new.values()))
    common.add_model(0)
    places = {called: place for place, (name, path) in enumerate(folded.items()) for called in (name, path.name)}
    if len(folded) > 1:
        proto = ModelProto.FromString(next(iter(folded.values())).read_bytes())
        for tensor in filter(is_external, all_tensors(proto)):
            fields = {entry.key: entry.value for entry in tensor.external_data}
            place = places.get(str(PurePosixPath(fields["location"])))
            start, length = int(fields.get("offset", "0")), fields.get("length", byte_size(tensor))
            if place is not None and length is not None:
                common.add_data(place, [(start, start + int(length))])
    return common
