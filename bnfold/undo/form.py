r"""The format of an undo file, and reading its parts without trusting any.

    b"\x93BNFUNDO" 01 00 00 00    the format and its version
    script                        instructions, deflated (zlib)
    numbers                       bytes of tensors, as they are
    index                         JSON: {"bnfold", "script": length, "numbers": length, "folded": FILES,
                                  "original": FILES}
    SHA-256 of the index, its length (u64, little-endian), b"BNFUNDO\x93"

FILES is a list of {"name", "size", "sha256"}, the model first, then its data files; names of data files are relative
to the folder of the model. The script makes the original files one after the other. An instruction is a varint
(length << 2 | kind), as protobuf writes varints, and

    TEXT      that many bytes of the script itself
    NUMBERS   the next that many bytes of `numbers`
    COPY      varint file, varint zigzag (start - where the last COPY of that file stopped): a range of a folded file

The index is at the end because the rest is written while it is found. Whoever reads this file may have got it from
anywhere: nothing is allocated, opened or believed before it is checked.
"""

import hashlib
import json
import stat
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from bnfold.errors import UndoError
from bnfold.text import printable
from bnfold.undo.ranged import Ranged

HEAD = b"\x93BNFUNDO\x01\x00\x00\x00"
TAIL = b"BNFUNDO\x93"
ENDING = 32 + 8 + len(TAIL)  # bytes behind the index
TEXT, NUMBERS, COPY = 0, 1, 2
LEAST_COPY = 24  # bytes; below, an instruction is no gain. So a script cannot be longer than what it makes is long
MOST_INFLATED = 1040  # times the deflated bytes: zlib gives at most 1032
MOST_INDEX = 2**24  # bytes


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file as the index has it: its name, its size in bytes, its SHA-256 in hex digits."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Index:
    """What the end of an undo file says: lengths of the two parts, and the files on both sides, each model first."""

    script: int
    numbers: int
    folded: tuple[FileEntry, ...]
    original: tuple[FileEntry, ...]


def ending(index: Index, version: str) -> bytes:
    """The index and what comes behind it."""
    text = json.dumps({"bnfold": version, **asdict(index)}, separators=(",", ":")).encode()
    return text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "little") + TAIL


def read_index(file: Ranged, shown: str) -> Index:
    """The index of an undo file; `shown` is what the file is called in messages.

    Raises:
        UndoError: it is no undo file, is cut short, or contradicts itself.
    """
    if file.size < len(HEAD) or file.read(0, len(HEAD)) != HEAD:
        raise UndoError(f"{shown} is no undo file, or one of another version of bnfold")
    end = file.read(max(0, file.size - ENDING), file.size)
    length = int.from_bytes(end[32:40], "little")
    if not end.endswith(TAIL) or not 0 < length <= min(MOST_INDEX, file.size - ENDING - len(HEAD)):
        raise UndoError(f"{shown} is damaged, or cut short: it has no end")
    text = file.read(file.size - ENDING - length, file.size - ENDING)
    if hashlib.sha256(text).digest() != end[:32]:
        raise UndoError(f"{shown} is damaged: its index has changed")
    try:
        index = _index(json.loads(text))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UndoError(f"{shown} is damaged: its index makes no sense") from None
    if len(HEAD) + index.script + index.numbers + length + ENDING != file.size:
        raise UndoError(f"{shown} is damaged: its parts do not add up")
    return index


def _index(tree: Any) -> Index:
    sides = [tuple(_entry(item) for item in tree[side]) for side in ("folded", "original")]
    for side in sides:
        if not side or len({entry.name for entry in side}) < len(side):
            raise ValueError("no file, or one twice")
    index = Index(_count(tree["script"]), _count(tree["numbers"]), *sides)
    made = sum(entry.size for entry in index.original)
    if made > sum(entry.size for entry in index.folded) + index.numbers + MOST_INFLATED * index.script:
        raise ValueError("more than the instructions can make")
    return index


def _entry(item: Any) -> FileEntry:
    name, digest = item["name"], item["sha256"]
    if not isinstance(name, str) or not isinstance(digest, str) or len(digest) != 64:
        raise TypeError
    return FileEntry(name, _count(item["size"]), digest)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise TypeError
    return value


def varint(value: int) -> bytes:
    """A number of at least 0, seven bits in a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def zigzag(value: int) -> int:
    """A number of either sign as one of at least 0: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def unzigzag(value: int) -> int:
    """The number behind `zigzag`."""
    return -(value + 1 >> 1) if value & 1 else value >> 1


def check_plain(path: Path) -> tuple[int, ...]:
    """What tells a plain file from another; nothing else is opened, because a FIFO would never answer.

    Raises:
        UndoError: there is no such file, or it is something else.
    """
    shown = printable(str(path))
    try:
        info = path.stat()
    except (OSError, ValueError) as error:
        raise UndoError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(info.st_mode):
        raise UndoError(f"{shown} is not a plain file")
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def inside(folder: Path, name: str) -> Path:
    """The file called `name` in `folder` or deeper.

    Raises:
        UndoError: the name leads elsewhere, or through a symbolic link.
    """
    shown, windows = printable(name), PureWindowsPath(name)
    parts = PurePosixPath(name).parts
    outside = name.startswith("/") or windows.drive or windows.root or ".." in (*parts, *windows.parts)
    if not parts or "\0" in name or outside:
        raise UndoError(f"the undo file names a file {shown!r}, which is not in the model's folder")
    path = folder
    for part in parts:
        path /= part
        if path.is_symlink():
            raise UndoError(f"{printable(str(path))} is a symbolic link; put a plain file there")
    return path
