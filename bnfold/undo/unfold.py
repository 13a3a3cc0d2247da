"""`unfold`: which files are meant, and that none is overwritten unasked; `restore` does the rest."""

from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.errors import OutputError
from bnfold.staging import check_target
from bnfold.text import printable
from bnfold.undo.restore import Restored, restore

if TYPE_CHECKING:
    from os import PathLike


def unfold(
    folded: "str | PathLike[str]",
    undo: "str | PathLike[str]",
    output: "str | PathLike[str] | None" = None,
    *,
    in_place: bool = False,
    force: bool = False,
) -> Restored:
    """Get the original model back, byte for byte, with its data files.

    Args:
        folded: the folded model, as `fold` wrote it, its data files beside it.
        undo: the undo file that `fold` wrote with it.
        output: where to write the original. Its data files go beside it, under the names that they had.
        in_place: replace the file `folded` instead.
        force: replace `output` if it exists. A data file with other contents is never replaced.

    Raises:
        UndoError: the undo file is damaged, or was not made for this model.
        OutputError: the output cannot be written, or exists.
    """
    source, undo_path = Path(folded), Path(undo)
    if in_place == (output is not None):
        raise OutputError("give an output, or replace the folded model in place; one of the two")
    if in_place:
        if source.is_symlink():
            raise OutputError(f"{printable(str(source))} is a symbolic link; give the real path, or another output")
        return restore(source, undo_path, source, replace=True)
    target = Path(output or "")
    for path, what in ((source, "the folded model itself; --in-place overwrites it"), (undo_path, "the undo file")):
        if target.exists() and path.exists() and target.samefile(path):
            raise OutputError(f"{printable(str(target))} is {what}")
    check_target(target, force=force)
    return restore(source, undo_path, target, replace=force)
