"""What the standard library has no call for: names, rights, renaming that never replaces, and making it durable."""

import contextlib
import errno
import filecmp
import os
import stat
from functools import reduce
from pathlib import Path

LONGEST_NAME = 255  # bytes, on every file system in use
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


def name_for(target: Path, *, ending: int) -> str:
    """The target's name, for use inside other names and in locations: text without separators, not too long.

    `ending` is how many bytes will be put before and behind it. Locations are UTF-8 by the spec, and a colon or
    backslash in one leads out of the folder on Windows.
    """
    text = os.fsencode(target.name).decode("utf-8", "replace")
    text = "".join(c if c.isprintable() and c not in "\\/:" else "_" for c in text)
    return text.encode()[: LONGEST_NAME - ending].decode("utf-8", "ignore")


def keep_mode(descriptor: int, *replaced: Path) -> None:
    """Give the new file the access rights of the file that it will replace; of several, those that all give."""
    modes = [path.stat().st_mode & 0o777 for path in replaced if path.exists()]
    if modes and hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):  # a file system without modes; the umask's mode stays
            os.fchmod(descriptor, reduce(int.__and__, modes))


def sync_folder(folder: Path) -> None:
    """Make a rename itself durable, where the platform lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def rename_to_fresh(source: Path, target: Path) -> bool:
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


def holds_the_same(source: Path, target: Path) -> bool:
    """Whether `target` is a file that a model may use as external data, with the bytes of `source`."""
    info = target.lstat()
    plain = stat.S_ISREG(info.st_mode) and info.st_nlink == 1
    return plain and filecmp.cmp(source, target, shallow=False)
