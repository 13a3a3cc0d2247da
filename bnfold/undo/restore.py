"""Getting the original files back: the folded files are checked, the instructions carried out, the result checked.

Everything is written under temporary names first. Only when all files have their digests do data files get their
names (one that is there with the same bytes is kept, one with other bytes is never replaced), and then the model.
"""

import contextlib
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import OutputError, UndoError
from bnfold.external import write_all
from bnfold.staging import cannot_write
from bnfold.text import printable, size
from bnfold.undo.form import FileEntry, Index, check_plain, inside, read_index
from bnfold.undo.fresh import Fresh
from bnfold.undo.play import Player
from bnfold.undo.ranged import Ranged


@dataclass(frozen=True, slots=True)
class Restored:
    """What `unfold` did.

    Attributes:
        path: the original model, restored.
        data: its data files, those included that were there already.
        bytes: the size of all of them.
        superseded: data files of the folded model that the model no longer uses (in place).
    """

    path: Path
    data: tuple[Path, ...]
    bytes: int
    superseded: tuple[Path, ...] = ()


def restore(folded: Path, undo: Path, target: Path, *, replace: bool) -> Restored:
    """Restore the files that `undo` was made for.

    Args:
        folded: the folded model, its data files beside it.
        undo: the undo file.
        target: where the original model goes; its data files go beside it.
        replace: replace the file `target`.

    Raises:
        UndoError: the undo file is damaged, or not the one for this model.
        OutputError: a file cannot be written, or is there and holds something else.
    """
    fresh, found = Fresh(), check_plain(folded)
    try:
        with contextlib.ExitStack() as held:
            index, sources, player = _opened(folded, undo, held)
            _check_target(target, sources[1:])
            places = _places(index, target)
            kept = _write(fresh, index, player, places)
        for place in places[1:]:
            if place not in kept:
                fresh.put(place, replace=False)
        if target == folded and check_plain(folded) != found:
            raise OutputError(f"{printable(str(folded))} was changed by somebody else meanwhile; it is kept")
        fresh.put(target, replace=replace)
    except OSError as error:
        raise cannot_write(target, error) from None
    finally:
        fresh.rollback(keep=fresh.is_put(target))
    made = sum(entry.size for entry in index.original)
    unused = [path for path in sources[1:] if path not in places] if target == folded else []
    return Restored(target, tuple(places[1:]), made, tuple(unused))


def _opened(folded: Path, undo: Path, held: contextlib.ExitStack) -> tuple[Index, list[Path], Player]:
    """The index of the undo file, the folded files, which it was made for, and the instructions."""
    shown = printable(str(undo))
    script = held.enter_context(contextlib.closing(_open(undo)))
    index = read_index(script, shown)
    paths = [folded, *(inside(folded.parent, entry.name) for entry in index.folded[1:])]
    files = [held.enter_context(contextlib.closing(_open(path))) for path in paths]
    for entry, path, file in zip(index.folded, paths, files, strict=True):
        found = file.sha256() if file.size == entry.size else None
        if found != entry.sha256:
            is_ = f"its SHA-256 is {found}" if found else f"it has {file.size} bytes instead of {entry.size}"
            raise UndoError(
                f"{printable(str(path))} is not the file that {shown} was made for: {is_}; expected is the one with "
                f"SHA-256 {printable(entry.sha256)}"
            )
    return index, paths, Player(script, index, files, shown)


def _open(path: Path) -> Ranged:
    check_plain(path)
    try:
        return Ranged(path)
    except OSError as error:
        raise UndoError(f"cannot read {printable(str(path))}: {error.strerror}") from None


def _check_target(target: Path, data: list[Path]) -> None:
    """Refuse to write the original over external data of the folded model.

    Raises:
        OutputError: the target is one of those files.
    """
    if target.exists() and any(target.samefile(path) for path in data):
        raise OutputError(f"{printable(str(target))} is the folded model's external data; choose another name")


def _places(index: Index, target: Path) -> list[Path]:
    """Where the original files go, the model first.

    Raises:
        OutputError: there is no room for them, or two would go to one place.
    """
    folder, needed = target.parent, sum(entry.size for entry in index.original)
    places = [target, *(inside(folder, entry.name) for entry in index.original[1:])]
    if len(set(places)) < len(places):
        raise OutputError(f"{printable(str(target))} is the name of the original's data; choose another name")
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OutputError(f"the original has {size(needed)}; {printable(str(folder))} has {size(free)} left")
    return places


def _write(fresh: Fresh, index: Index, player: Player, places: list[Path]) -> set[Path]:
    """Write all original files under temporary names; returns the places of those that are there already."""
    kept: set[Path] = set()
    for entry, place in zip(index.original, places, strict=True):
        if place != places[0] and _is_there(place, entry):
            kept.add(place)
            _make(player, entry, None)
            continue
        with fresh.new(place) as descriptor:
            _make(player, entry, descriptor)
    player.finish()
    return kept


def _is_there(place: Path, entry: FileEntry) -> bool:
    """Whether the file is there already.

    Raises:
        OutputError: another one is.
    """
    if not place.exists():
        return False
    if place.is_file() and place.stat().st_size == entry.size:
        with contextlib.closing(Ranged(place)) as file:
            if file.sha256() == entry.sha256:
                return True
    raise OutputError(f"{printable(str(place))} exists and holds other data; choose another folder for the output")


def _make(player: Player, entry: FileEntry, descriptor: int | None) -> None:
    """Make the next original file; `descriptor` is None for one that is not needed."""
    digest = hashlib.sha256()
    for block in player.play(entry.size):
        digest.update(block)
        if descriptor is not None:
            write_all(descriptor, block)
    if digest.hexdigest() != entry.sha256:
        raise UndoError(
            f"the undo file is damaged: {printable(entry.name)} would have SHA-256 {digest.hexdigest()}, "
            f"the original had {printable(entry.sha256)}"
        )
