"""Which model files are meant: files as they are, folders with all that is in them, patterns."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from bnfold.errors import UsageError
from bnfold.text import printable


def model_files(given: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Every model that is meant, once, in the order that they were given in.

    A file stands for itself, whatever its name; a folder for every *.onnx in it and below, in the order of their
    names, but for folders whose name starts with a dot; anything else that holds `*`, `?` or `[` is a pattern, in
    which `**` stands for any number of folders.

    Raises:
        UsageError: a folder or pattern has no model in it, or a folder cannot be listed.
    """
    found: dict[str, Path] = {}
    for entry in given:
        for path in _meant(Path(entry)):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _meant(given: Path) -> list[Path]:
    shown = printable(str(given))
    if given.is_dir():
        paths = list(_below(given))
        if not paths:
            raise UsageError(f"{shown}: no *.onnx in this folder or below")
        return paths
    if given.exists() or not glob.has_magic(str(given)):
        return [given]  # if it is not there, its own line says so
    names = glob.glob(str(given), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    matches = [Path(name) for name in sorted(names)]
    paths = [path for match in matches for path in (_below(match) if match.is_dir() else (match,))]
    if not paths:
        raise UsageError(f"{shown}: no file matches this pattern")
    return paths


def _below(folder: Path) -> Iterator[Path]:
    """Every *.onnx in a folder and below, sorted; links to folders are not followed."""

    def complain(error: OSError) -> None:
        raise UsageError(f"{printable(str(error.filename))}: cannot list this folder: {error.strerror}") from None

    for root, folders, names in os.walk(folder, onerror=complain):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if name.lower().endswith(".onnx") and name[0] != ".")
