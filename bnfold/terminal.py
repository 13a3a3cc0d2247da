"""The terminal: reports on stdout, a progress bar on stderr. stdout is the product; nothing moves in a pipe."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.errors import UsageError
from bnfold.text import printable

if TYPE_CHECKING:
    from bnfold.report import Report
    from bnfold.report.verdicts import CheckResult, VerifyReport


class Show:
    """Prints a report on stdout and writes it to the files that were asked for."""

    def __init__(self, format_: str, reports: tuple[Path, ...], *, verbose: bool, quiet: bool) -> None:
        self.format = format_
        self.reports = reports
        self.verbose = verbose
        self.quiet = quiet

    def __call__(self, report: "Report | VerifyReport | CheckResult") -> None:
        """Print the report, and write it to the files that were asked for.

        Raises:
            UsageError: a file cannot be written.
        """
        if not self.quiet:
            self._print(report)
        self._write(report)

    def _write(self, report: "Report | VerifyReport | CheckResult") -> None:
        from bnfold.report import json

        text = _renderer(report)
        for path in self.reports:
            content = json.render(report) if path.suffix == ".json" else text(report, verbose=True)
            try:
                path.write_text(content, encoding="utf-8")
            except OSError as error:
                done = "; the model was written" if getattr(report, "output", None) else ""
                shown = printable(str(path))
                raise UsageError(f"cannot write the report {shown}: {error.strerror}{done}") from None

    def _print(self, report: "Report | VerifyReport | CheckResult") -> None:
        from bnfold.report import json

        text = _renderer(report)
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        boxes = color and sys.stdout.encoding.lower().startswith("utf")
        if self.format == "json":
            content = safe_in_actions(json.render(report), is_json=True)
        else:
            content = safe_in_actions(text(report, color=color, boxes=boxes, verbose=self.verbose))
        try:
            click.echo(content, nl=False, color=color or None)
            sys.stdout.flush()
        except BrokenPipeError:
            drop_stdout()
        except OSError as error:
            drop_stdout()
            done = "; the model was written" if getattr(report, "output", None) else ""
            raise UsageError(f"cannot print the report: {error.strerror}{done}") from None


def check_place(report: Path, models: list[Path]) -> None:
    """Refuse a place for a report where it would write over a file of a model, or could not be written.

    Raises:
        UsageError: it is one of the models, or may be external data of one; it is a link, or no plain file.
    """
    shown = f"--report {printable(str(report))}"
    try:
        if any(report.resolve() == model.resolve() for model in models):
            raise UsageError(f"{shown}: that is the model's own file")
        if report.is_symlink():
            raise UsageError(f"{shown}: that is a symbolic link; give the real path")
        if not report.exists():
            return
        if not report.is_file() or not os.access(report, os.W_OK):
            raise UsageError(f"{shown}: that is no file that can be written")
        if any(model.is_file() and (report.samefile(model) or _may_name(model, report)) for model in models):
            raise UsageError(f"{shown}: that is a file of the model itself; choose another name")
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown}: {error}") from None


def _may_name(model: Path, other: Path) -> bool:
    """Whether the model contains the file's name, as it does where that is its external data."""
    name = os.fsencode(other.name)
    with model.open("rb") as file:
        tail = b""
        while piece := file.read(1 << 23):
            if name in tail + piece:
                return True
            tail = piece[-len(name) :]
    return False


def _renderer(report: "Report | VerifyReport | CheckResult") -> Callable[..., str]:
    """The renderer for a terminal that goes with this kind of report."""
    from bnfold.report import check_text, text, verify_text
    from bnfold.report.verdicts import CheckResult, VerifyReport

    if isinstance(report, CheckResult):
        return check_text.render
    return verify_text.render if isinstance(report, VerifyReport) else text.render


def in_actions() -> bool:
    """Whether this runs in GitHub Actions, which takes commands out of what is printed."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def safe_in_actions(text: str, *, is_json: bool = False) -> str:
    """The text to print, in which names out of a model are no commands to GitHub Actions."""
    if not in_actions():
        return text
    from bnfold.report.harmless import harmless, harmless_json

    return harmless_json(text) if is_json else harmless(text)


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on stderr, from the second second on, where stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.close()


class _Bar:
    """Shows itself by a timer, because the stage that takes long may not report while it runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = ("reading", 0, 1)
        self._bar: Any = None
        self._task: Any = None
        self._closed = False
        self._timer = threading.Timer(1.0, self._show)
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        with self._lock:
            self._state = (stage, done, total)
            self._update()

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        with self._lock:
            if self._closed:
                return
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("")
            self._bar.start()
            self._update()

    def _update(self) -> None:
        if self._bar is not None:
            stage, done, total = self._state
            self._bar.update(self._task, description=stage, completed=done, total=total)


def drop_stdout() -> None:
    """The reader has seen enough (| head): what is still to be printed goes nowhere, without an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
