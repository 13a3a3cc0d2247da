"""New files that are written under temporary names, and get their own when all of them are complete, or go."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from bnfold.errors import OutputError
from bnfold.fileops import keep_mode, name_for, rename_to_fresh, sync_folder
from bnfold.text import printable


class Fresh:
    """Files that are not in their places yet, or that can still be taken back."""

    def __init__(self) -> None:
        self._written: dict[Path, tuple[Path, int]] = {}  # by place: the temporary name, the inode
        self._folders: list[Path] = []

    @contextlib.contextmanager
    def new(self, place: Path) -> Iterator[int]:
        """A file descriptor to write the file for `place`; its bytes are on the disk at the end."""
        self._make_folder(place.parent)
        temporary = temporary_name(place)
        self._written[place] = temporary, 0
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            self._written[place] = temporary, os.fstat(descriptor).st_ino
            keep_mode(descriptor, place)
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def put(self, place: Path, *, replace: bool) -> None:
        """Give a file its name.

        Raises:
            OutputError: there is another file by now, and `replace` is off.
        """
        temporary, _ = self._written[place]
        if replace:
            temporary.replace(place)
        elif not rename_to_fresh(temporary, place):
            raise OutputError(f"{printable(str(place))} was made by somebody else meanwhile; it is kept")
        sync_folder(place.parent)

    def is_put(self, place: Path) -> bool:
        """Whether the file at `place` is ours."""
        with contextlib.suppress(OSError):
            return place in self._written and place.lstat().st_ino == self._written[place][1]
        return False

    def rollback(self, *, keep: bool) -> None:
        """Remove what has only a temporary name, and, without `keep`, what was put in its place too."""
        for place, (temporary, _) in self._written.items():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                if not keep and self.is_put(place):
                    place.unlink()
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):  # it may hold something by now
                folder.rmdir()

    def _make_folder(self, folder: Path) -> None:
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(exist_ok=True)
            self._folders.append(missing)


def temporary_name(place: Path) -> Path:
    """A fresh name beside `place`, as all temporary files of bnfold are called."""
    return place.with_name(f".{name_for(place, ending=40)}.{secrets.token_hex(4)}.bnfold-tmp")
