"""Data files of a model that was replaced: removed where nothing else can refer to them, else kept.

A data file may serve several models, and nothing in it says which. So it goes only if it is a plain file with one
name, inside the model's folder, and no file beside the model, beside the data, or in the folder above contains its
name. Whatever cannot be looked at, or is too much to look at, keeps it.
"""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from onnx import ModelProto

from bnfold.errors import BnfoldError
from bnfold.external import all_tensors, is_plain_inside
from bnfold.wire import lift

MOST_BYTES = 2**30  # that are searched for the names
MOST_FILES = 10_000  # in each folder
_PIECE = 2**23


def unneeded_data(model: Path, needed: Iterable[Path]) -> frozenset[str]:
    """Locations of plain data files that the model at `model` names and that `needed` does not contain.

    None where it is no model, or has no data: what is about to be replaced may be any file.
    """
    keep = {_identity(path) for path in needed}
    with contextlib.suppress(OSError, ValueError, BnfoldError, RecursionError, MemoryError):
        names = _named_data(model)
        plain = (name for name in names if is_plain_inside(model.parent, name))
        return frozenset(name for name in plain if _identity(model.parent / name) not in keep)
    return frozenset()


def _named_data(model: Path) -> frozenset[str]:
    if not _found_in(model, {b"location"}):
        return frozenset()
    data = model.read_bytes()
    proto = ModelProto()
    try:
        proto.ParseFromString((lift(data) or (data,))[0])
    except Exception:  # noqa: BLE001 - what protobuf cannot parse is no model, and names no data
        return frozenset()
    fields = (entry for tensor in all_tensors(proto) for entry in tensor.external_data)
    return frozenset(entry.value for entry in fields if entry.key == "location")


def remove_unused(model: Path, locations: AbstractSet[str], used: AbstractSet[Path]) -> tuple[str, ...]:
    """Remove those data files of `model`'s folder that no other file names; returns their locations.

    Args:
        model: the new model, which is in its place; it needs the files `used`.
        locations: data of the model that was replaced, relative to the folder.
        used: files that stay, whatever else is true.
    """
    folder = model.parent
    keep = {_identity(path) for path in (model, *used)}
    candidates = {name: folder / name for name in locations if is_plain_inside(folder, name)}
    candidates = {name: path for name, path in candidates.items() if _identity(path) not in keep}
    if not candidates:
        return ()
    named = _named_elsewhere(set(candidates.values()), {model, *used}, folder)
    removed = []
    for name, path in sorted(candidates.items()):
        with contextlib.suppress(OSError):
            if path not in named:
                path.unlink()
                removed.append(name)
    return tuple(removed)


def _named_elsewhere(data: set[Path], known: set[Path], folder: Path) -> set[Path]:
    """Those of `data` of which a file contains the name, or may: all of them where that cannot be found out."""
    folders = {folder, folder.absolute().parent, *(path.parent for path in data)}
    skipped = {_identity(path) for path in (*data, *known)}
    named: set[Path] = set()
    try:
        for path in list(_searched(folders, skipped)):
            needles = {os.fsencode(entry.name) for entry in data - named}
            found = _found_in(path, needles)
            named |= {entry for entry in data if os.fsencode(entry.name) in found}
    except (OSError, _TooMuchError):
        return data
    return named


class _TooMuchError(Exception):
    """There is more than anybody would want to wait for."""


def _identity(path: Path) -> tuple[int, int]:
    with contextlib.suppress(OSError):
        info = path.stat()
        return info.st_dev, info.st_ino
    return 0, 0


def _searched(folders: set[Path], skipped: set[tuple[int, int]]) -> Iterator[Path]:
    """The files to look into, by symbolic links too; each once.

    Raises:
        _TooMuchError: they are too many or too large.
    """
    size = 0
    for path in itertools.chain.from_iterable(map(_entries, folders)):
        try:
            info = path.stat()
        except FileNotFoundError:
            continue  # a link to nothing, or gone already
        place = info.st_dev, info.st_ino
        if not stat.S_ISREG(info.st_mode) or place in skipped:
            continue
        skipped.add(place)
        size += info.st_size
        if size > MOST_BYTES:
            raise _TooMuchError
        yield path


def _entries(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in itertools.islice(entries, MOST_FILES + 1)]
    if len(found) > MOST_FILES:
        raise _TooMuchError
    return found


def _found_in(path: Path, needles: set[bytes]) -> set[bytes]:
    """Those of `needles` that stand in the file at `path`; it is read piece by piece."""
    if not needles:
        return set()
    found: set[bytes] = set()
    kept = max(map(len, needles)) - 1
    tail = b""
    with path.open("rb") as file:
        while (piece := file.read(_PIECE)) and found != needles:
            window = tail + piece
            found |= {needle for needle in needles if needle in window}
            tail = window[-kept:] if kept else b""
    return found
