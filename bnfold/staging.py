"""Files that are written but not yet in their place, so that the file that was there is safe.

Everything is first written under temporary names in the target's folder, and the model that is verified refers to
those. At `commit` new external data gets its final name, which is never that of a file with other content; then the
.onnx, which names it, is renamed over the target: the one commit point. Whatever ends the work before it, Ctrl-C
and a full disk included, takes back what was written. A process that is killed (SIGKILL) may leave files called
`.<name>.<hex>.bnfold-tmp...`, and between the last two renames a data file that no model refers to.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bnfold.cleanup import remove_unused
from bnfold.errors import OutputError
from bnfold.fileops import holds_the_same, name_for, rename_to_fresh, sync_folder
from bnfold.interrupts import held_back, stop_if_one_came
from bnfold.locking import alone_in
from bnfold.text import printable

Files = Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class NewData:
    """A data file under its temporary name.

    Attributes:
        temporary: where it is.
        places: where it may go, the first that is free; made when asked for.
    """

    temporary: Path
    places: Callable[[], Iterable[Path]]


def _nothing() -> None:
    """There is nothing to do."""


class Staged:
    """A model that is written but not yet in its place.

    Attributes:
        path: the temporary .onnx; complete and loadable after `finish`, external data included.
        target: where `commit` will put it.
        new_data: the data files that belong to it, under temporary names.
        data: the same under their final names, after `commit`.
        rewrite: writes the .onnx once more, to a new file, for data with the final names given; None where the
            temporary .onnx names them already.
        adopt: lets the model in memory read its external data from the new files, after `commit`.
        outgrown: how many tensors had to leave the .onnx, because it would not hold them.
        removed, superseded: data of the model that was replaced, after `commit`: what was removed, as nothing else
            names it, and what was kept.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._prefix = f".{name_for(target, ending=40)}.{secrets.token_hex(4)}.bnfold-tmp"
        self.path = self.temporary("")
        self.new_data: list[NewData] = []
        self.data: list[Path] = []
        self.rewrite: Callable[[Path, list[Path]], None] | None = None
        self.adopt: Callable[[], None] = _nothing
        self.outgrown = 0
        self.removed: tuple[str, ...] = ()
        self.superseded: tuple[str, ...] = ()
        self._created: dict[Path, int | None] = {}  # with the inode, once the file may be another's by then
        self._folders: list[Path] = []
        self._last = self.path  # what is renamed to the target
        self._inode: int | None = None  # of that, once it is about to happen

    @property
    def bytes(self) -> int:
        """The size of the model on disk, external data included. After `commit`."""
        return sum(path.stat().st_size for path in (self.target, *self.data))

    def temporary(self, ending: str) -> Path:
        """A temporary name in the target's folder."""
        return self.target.with_name(f"{self._prefix}{ending}")

    @contextlib.contextmanager
    def new_file(self, path: Path) -> Iterator[int]:
        """A file descriptor to write a file that does not exist yet; its bytes are on the disk at the end."""
        self._created[path] = None
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def commit(
        self,
        *,
        replace: bool,
        check: Callable[[], None] = _nothing,
        old: Callable[[], AbstractSet[str]] = frozenset,
        around: "Callable[[Files], AbstractContextManager[object]]" = contextlib.nullcontext,
    ) -> None:
        """Put the model in its place: the one moment at which the target changes.

        Args:
            replace: whether a file that is there may be replaced.
            check: called right before; raises where the model must not be put in its place.
            old: says the locations of the data of the model that is replaced; called before that.
            around: what has to be in its place before the model is; given the model's files, the model first.

        Raises:
            OutputError: the target cannot be replaced; or it came into being meanwhile, and `replace` is off.
        """
        stop_if_one_came()
        try:
            with alone_in(self.target.parent):
                try:
                    check()
                    unused = old() if replace else frozenset()
                    places = self._prepare(replace=replace)
                    with around(self._files(places)), held_back():  # once data is put, nothing interrupts
                        self._put(places, replace=replace)
                        self._clean(unused)
                finally:
                    self.rollback()
        except OSError as error:
            raise cannot_write(self.target, error) from None

    def _prepare(self, *, replace: bool) -> list[Path]:
        """Choose the places of new data, and write the .onnx that names those; returns them."""
        if not replace and os.path.lexists(self.target):
            raise self._came_meanwhile()
        places = [_choose(new) for new in self.new_data]
        if self.rewrite is not None and self.new_data:
            self._last = self.temporary(".last")
            self.rewrite(self._last, places)
        self._inode = self._last.stat().st_ino
        return places

    def _files(self, places: list[Path]) -> "Files":
        """What the model's files will be called from its folder, and where they are now; the model first."""
        pairs = zip(places, self.new_data, strict=True)
        return {self.target.name: self._last} | {
            place.relative_to(self.target.parent).as_posix(): new.temporary for place, new in pairs
        }

    def _put(self, places: list[Path], *, replace: bool) -> None:
        for new, place in zip(self.new_data, places, strict=True):
            self._settle(new.temporary, place)
        if replace:
            self._last.replace(self.target)
        elif not rename_to_fresh(self._last, self.target):
            raise self._came_meanwhile()
        sync_folder(self.target.parent)
        self.data = places

    def _clean(self, old: AbstractSet[str]) -> None:
        unused = {name for name in old if self.target.parent / name not in self.data}
        with contextlib.suppress(OSError):  # the model is in its place; what cannot be removed stays
            self.removed = remove_unused(self.target, unused, set(self.data))
        self.superseded = tuple(sorted(unused - {*self.removed}))

    def _came_meanwhile(self) -> OutputError:
        return OutputError(f"{printable(str(self.target))} was made by somebody else meanwhile; it is kept")

    def _settle(self, source: Path, place: Path) -> None:
        """Give new data its final name, unless the same data is there already: then that is used."""
        self._new_folders(place.parent)
        self._created[place] = source.stat().st_ino
        if rename_to_fresh(source, place):
            sync_folder(place.parent)  # the .onnx must not be there before its data, after a power cut either
            return
        del self._created[place]
        if not holds_the_same(source, place):
            raise OutputError(f"{printable(str(place))} was made by somebody else meanwhile; it is kept")

    def _new_folders(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            self._folders.append(path)
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)

    def rollback(self) -> None:
        """Take back what was written; once the model is in its place, only the temporary names."""
        with held_back():
            committed = self.is_committed()
            for path, inode in self._created.items():
                with contextlib.suppress(OSError):
                    if inode is None or (not committed and path.lstat().st_ino == inode):
                        path.unlink()
            if not committed:
                self._inode = None
                for folder in reversed(self._folders):
                    with contextlib.suppress(OSError):
                        folder.rmdir()

    def is_committed(self) -> bool:
        """Whether the target is our file, or was: then the temporary name is gone."""
        if self._inode is None:
            return False
        if not os.path.lexists(self._last):
            return True
        with contextlib.suppress(OSError):
            return self.target.lstat().st_ino == self._inode
        return False


def check_target(target: Path, *, force: bool) -> None:
    """Refuse early what could not be written in the end.

    Raises:
        OutputError: the target exists and `force` is off, is not a plain file, or has no folder.
    """
    shown = printable(str(target))
    try:
        if target.is_symlink():
            raise OutputError(f"{shown} is a symbolic link; give the real path of the file to write")
        if target.is_dir() or not target.name:
            raise OutputError(f"{shown} is a folder; give the name of a file")
        if target.exists() and not target.is_file():
            raise OutputError(f"{shown} is not a plain file")
        if target.exists() and not force:
            raise OutputError(f"{shown} exists; --force overwrites it, -o names another file")
        if not target.parent.is_dir():
            raise OutputError(f"the folder {printable(str(target.parent))} does not exist")
    except (OSError, ValueError) as error:
        raise cannot_write(target, error) from None


def cannot_write(target: Path, error: OSError | ValueError) -> OutputError:
    """The error for a target that the system refuses."""
    reason = error.strerror if isinstance(error, OSError) else error
    return OutputError(f"cannot write {printable(str(target))}: {reason}; nothing was changed")


def _choose(new: NewData) -> Path:
    """The first place where nothing is yet, or the same data.

    Raises:
        OutputError: there is none.
    """
    place = new.temporary
    for place in new.places():
        if not os.path.lexists(place) or holds_the_same(new.temporary, place):
            return place
    raise OutputError(f"{printable(str(place))} exists and holds other data, or is a link; choose another output")
