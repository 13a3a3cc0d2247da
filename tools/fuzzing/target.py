"""What one file goes through: open, inspect, fold, save, fold again; and what must hold at the end."""

import re
import resource
import signal
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import bnfold
from bnfold.document import Document
from bnfold.report import Report, json, text

SECONDS = 10  # for one file, all it goes through
MEGABYTES = 600  # that one file may make the process grow by
PACKAGE = Path(bnfold.__file__).parent
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
FLAGS = ("freeze_inputs", "clone_shared", "partial", "merge_branches", "assume_range")


class Find(Exception):
    """A file that did not end as it must. `kind` is what the same defect has in common."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _TooLong(BaseException):
    """Raised by the alarm, wherever the work is; a BaseException, so that nothing swallows it."""


@dataclass(slots=True)
class Ending:
    """How a file ended: what was reached, the error's class and message, and how much was folded."""

    opened: bool = False
    understood: bool = False
    error: str = ""
    message: str = ""
    folded: int = 0
    left: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def options_of(random: Random) -> dict[str, Any]:
    """Any options of `fold` that change what is folded."""
    chosen: dict[str, Any] = {flag: True for flag in FLAGS if random.random() < 0.25}
    chosen["sources"] = random.choice(("affine", "all", "all", "bn"))
    return chosen


def prepare(folder: Path) -> None:
    """A folder to work in, with a data file beside the model and a link out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 256)
    if not (folder / "link.bin").is_symlink():
        (folder / "link.bin").symlink_to("/etc/passwd")
    (folder / "out").mkdir(exist_ok=True)


def attempt(data: bytes, folder: Path, options: dict[str, Any]) -> Ending:
    """One file, in this process.

    Raises:
        Find: it ended in an exception that is not a BnfoldError, took too long or too much memory, or the result
            is not what it must be.
    """
    _tidy(folder)
    source = folder / "model.onnx"
    source.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ending = Ending(options=options)
    before_alarm = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        _go_through(source, ending)
    except Find:
        raise
    except _TooLong as error:
        raise Find(f"hang {_place(error)}", f"took more than {SECONDS} s") from None
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        raise Find(f"{type(error).__name__} {_place(error)}", f"{type(error).__name__}: {error}"[:500]) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before_alarm)
    left = [path.name for path in (*folder.iterdir(), *(folder / "out").iterdir()) if "bnfold-tmp" in path.name]
    if left:
        raise Find("left behind", ", ".join(left))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if grown > MEGABYTES:
        raise Find("memory", f"the process grew by {grown} MB")
    return ending


def _go_through(source: Path, ending: Ending) -> None:
    target, again = source.parent / "out" / "folded.onnx", source.parent / "out" / "again.onnx"
    try:
        Document.open(source)
        ending.opened = True
        inspected = bnfold.inspect(source, **ending.options).report
        ending.understood = True
        result = bnfold.fold(source, target, force=True, verify=False, **ending.options)
    except bnfold.BnfoldError as error:
        ending.error, ending.message = type(error).__name__, str(error)
        _check_text("message", ending.message)
        return
    ending.folded, ending.left = len(result.folded), len(result.refused)
    _check_report(result.report)
    if _told(inspected) != _told(result.report):
        raise Find("inspect", "inspect and fold do not say the same")
    if not result.folded and target.read_bytes() != source.read_bytes():
        raise Find("copy", "nothing was folded, and the output is not the input's bytes")
    if result.folded:
        _check_folded(source, target, again, ending)


def _check_folded(source: Path, target: Path, again: Path, ending: Ending) -> None:
    """Folding is deterministic, and folding twice is folding once."""
    first = target.read_bytes()
    bnfold.fold(source, target, force=True, verify=False, **ending.options)
    if target.read_bytes() != first:
        raise Find("determinism", "the same input gave other bytes the second time")
    try:
        second = bnfold.fold(target, again, force=True, verify=False, **ending.options)
    except bnfold.BnfoldError as error:
        raise Find("refold refused", f"the folded model is refused: {error}"[:500]) from None
    if second.folded:
        more = ", ".join(f"{site.kind} {site.site} {site.direction} into {site.into}" for site in second.folded)
        raise Find("refold", f"folding again folded {more}"[:500])
    if again.read_bytes() != first:
        raise Find("refold copy", "folding again did not copy the bytes")
    if hasattr(bnfold, "unfold"):
        _check_unfold(source, target, ending)


def _check_unfold(source: Path, target: Path, ending: Ending) -> None:
    """What `unfold` restores is the original, byte for byte."""
    undo, back = target.with_name("undo"), target.with_name("back.onnx")
    bnfold.fold(source, target, force=True, verify=False, undo_file=undo, **ending.options)
    try:
        bnfold.unfold(target, undo, back)
    except bnfold.BnfoldError as error:
        raise Find("unfold refused", str(error)[:500]) from None
    if back.read_bytes() != source.read_bytes():
        raise Find("unfold", "the restored model is not the original's bytes")


def _check_report(report: Report) -> None:
    _check_text("text", text.render(report, verbose=True))
    _check_text("json", json.render(report))


def _check_text(where: str, shown: str) -> None:
    """Nothing of a model's names reaches a terminal as a control character."""
    odd = CONTROL.search(shown)
    if odd:
        raise Find(f"raw control character in {where}", f"{odd[0]!r} in {shown[:300]!r}")
    if where == "message" and "\n" in shown:
        raise Find("message of several lines", repr(shown[:300]))


def _told(report: Report) -> list[tuple[str, str, str | None]]:
    return [(site.site, site.outcome, site.code) for site in report.sites]


def _tidy(folder: Path) -> None:
    """Remove what the last file left; `fold` must have taken back its temporary files itself."""
    for path in (folder / "out").iterdir():
        path.unlink()


def _ring(_signal: int, _frame: Any) -> None:
    raise _TooLong


def _place(error: BaseException) -> str:
    """The innermost function of bnfold that the error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "?"
