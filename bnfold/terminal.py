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


class Show:
    """Prints a report on stdout and writes it to the files that were asked for."""

    def __init__(self, format_: str, reports: tuple[Path, ...], *, verbose: bool, quiet: bool) -> None:
        self.format = format_
        self.reports = reports
        self.verbose = verbose
        self.quiet = quiet

    def __call__(self, report: "Report") -> None:
        """Print the report, and write it to the files that were asked for.

        Raises:
            UsageError: a file cannot be written.
        """
        from bnfold.report import json, text

        for path in self.reports:
            content = json.render(report) if path.suffix == ".json" else text.render(report, verbose=True)
            try:
                path.write_text(content, encoding="utf-8")
            except OSError as error:
                raise UsageError(f"cannot write the report {printable(str(path))}: {error.strerror}") from None
        if self.quiet:
            return
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        boxes = color and sys.stdout.encoding.lower().startswith("utf")
        if self.format == "json":
            content = json.render(report)
        else:
            content = text.render(report, color=color, boxes=boxes, verbose=self.verbose)
        try:
            click.echo(content, nl=False, color=color or None)
            sys.stdout.flush()
        except BrokenPipeError:
            drop_stdout()
        except OSError as error:
            drop_stdout()
            done = "; the model was written" if report.output else ""
            raise UsageError(f"cannot print the report: {error.strerror}{done}") from None


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
