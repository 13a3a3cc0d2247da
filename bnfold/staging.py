"""Files that are written but not yet in their place, so that the file that was there is safe.

Everything is first written under fresh names in the target's folder; the rename of the .onnx over the target is
the one commit point. Whatever ends the work before it, Ctrl-C and a full disk included, takes back what was
written. A process that is killed (SIGKILL) may leave a `.<name>.<hex>.bnfold-tmp` file and, with external data, a
data file that no model refers to; nothing else is changed.
"""

import contextlib
import errno
import filecmp
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from bnfold.errors import OutputError
from bnfold.text import printable

LONGEST_NAME = 255  # bytes, on every file system in use
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


class Staged:
    """A model that is written but not yet in its place.

    Attributes:
        path: the temporary .onnx; complete and loadable after `finish`, external data included.
        target: where `commit` will put it.
        data: the files of external data that belong to it, whether written now or found to be there already.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = self.temporary()
        self.data: list[Path] = []
        self._created: dict[Path, int | None] = {}  # with the inode, once the file may be another's by then
        self._folders: list[Path] = []
        self._inode: int | None = None  # of the temporary .onnx, once everything is written

    def finish(self) -> None:
        """Say that everything is written."""
        self._inode = self.path.stat().st_ino

    def commit(self, *, replace: bool) -> None:
        """Put the model in its place: the one moment at which the target changes.

        Raises:
            OutputError: the target cannot be replaced; or it came into being meanwhile, and `replace` is off.
        """
        try:
            if replace:
                self.path.replace(self.target)
            elif not _rename_to_fresh(self.path, self.target):
                raise OutputError(f"{printable(str(self.target))} was made by somebody else meanwhile; it is kept")
        except OSError as error:
            raise cannot_write(self.target, error) from None
        sync_folder(self.target.parent)

    @property
    def bytes(self) -> int:
        """The size of the model on disk, external data included."""
        return sum(path.stat().st_size for path in (self.path, *self.data))

    def temporary(self) -> Path:
        """A fresh name in the target's folder."""
        ending = f".{secrets.token_hex(4)}.bnfold-tmp"
        name = os.fsencode(self.target.name)[: LONGEST_NAME - len(ending) - 1]
        return self.target.with_name(f".{os.fsdecode(name)}{ending}")

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

    def new_folders(self, folder: Path) -> None:
        """Make a folder below the target's, and remember what had to be made."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            self._folders.append(path)
            path.mkdir(exist_ok=True)

    def settle(self, source: Path, target: Path) -> bool:
        """Give the new file `source` its final name. False where other data is there, which is never replaced.

        A plain file with the same bytes is replaced by ours: it may belong to another run that is not committed
        yet, and would take back what it made. Nobody takes back a file with another inode than his own.
        """
        self._created[target] = source.stat().st_ino
        if not _rename_to_fresh(source, target):
            del self._created[target]
            if not _holds_the_same(source, target):
                return False
            source.replace(target)
        del self._created[source]
        self.data.append(target)
        return True

    def rollback(self) -> None:
        """Take back what was written, unless it was committed; then only a second name of it may be left."""
        if self._is_committed():
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            return
        for path, inode in self._created.items():
            with contextlib.suppress(OSError):
                if inode is None or path.lstat().st_ino == inode:
                    path.unlink()
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _is_committed(self) -> bool:
        """Whether the target is our file, or was: then the temporary name is gone."""
        if self._inode is None:
            return False
        if not os.path.lexists(self.path):
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


def keep_mode(descriptor: int, target: Path) -> None:
    """Give the new file the access rights of the file that it will replace."""
    if target.exists() and hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):  # a file system without modes; the umask's mode stays
            os.fchmod(descriptor, target.stat().st_mode & 0o777)


def sync_folder(folder: Path) -> None:
    """Make a rename itself durable, where the platform lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename_to_fresh(source: Path, target: Path) -> bool:
    """Rename without ever replacing a file: False where `target` exists."""
    if os.path.lexists(target):
        return False
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        source.rename(target)  # a file system without hard links
    else:
        source.unlink()
    return True


def _holds_the_same(source: Path, target: Path) -> bool:
    """Whether `target` is a file that a model may use as external data, with the bytes of `source`."""
    info = target.lstat()
    plain = stat.S_ISREG(info.st_mode) and info.st_nlink == 1
    return plain and filecmp.cmp(source, target, shallow=False)
