"""Inputs from a Python function: `--data-script prepare.py:samples`.

The function takes no arguments and returns or yields dicts, input name -> numpy array. The script is the user's own
and runs as it is, with its folder on the path for imports; what it prints goes to stderr, as stdout is for reports.
"""

import contextlib
import importlib.util
import itertools
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import UsageError
from bnfold.text import printable
from bnfold.verification.feeds.check import checked
from bnfold.verification.feeds.spec import Feeds, InputSpec

MOST_SETS = 1000  # that are taken, as a function may go on forever


@dataclass(frozen=True, slots=True)
class Script:
    """A file, and the function in it."""

    path: Path
    function: str

    def __str__(self) -> str:
        return printable(f"{self.path}:{self.function}")


def parse_script(text: str) -> Script:
    """`file.py:function`.

    Raises:
        UsageError: it is not of that form, or there is no such file.
    """
    path, _, function = text.rpartition(":")
    if not path.endswith(".py") or not function.isidentifier():
        raise UsageError(f"--data-script {printable(text)}: expected FILE.py:FUNCTION")
    if not Path(path).is_file():
        raise UsageError(f"--data-script {printable(text)}: there is no file {printable(path)}")
    return Script(Path(path), function)


def run_script(script: Script, specs: list[InputSpec]) -> list[tuple[str, Feeds]]:
    """The sets of inputs that the function gives, each with a name for it; MOST_SETS at most.

    Raises:
        UsageError: it fails, gives something else, or what does not fit the model.
    """
    where = f"--data-script {script}"
    with _running(script):
        found = list(itertools.islice(_sets(_function(script)(), where), MOST_SETS))
    if not found:
        raise UsageError(f"{where}: it gave no inputs")
    name = f"{script.path.name}:{script.function}"
    return [(f"{name} [{i}]", checked(specs, feeds, f"{where}, set {i}")) for i, feeds in enumerate(found)]


def _function(script: Script) -> Any:
    spec = importlib.util.spec_from_file_location("bnfold_data_script", script.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, script.function, None)
    if not callable(function):
        raise UsageError(f"--data-script {script}: there is no function {script.function!r} in it")
    return function


def _sets(given: Any, where: str) -> Iterator[Mapping[str, Any]]:
    sets = [given] if isinstance(given, Mapping) else given
    if not isinstance(sets, Iterable):
        raise UsageError(f"{where}: it gives {type(given).__name__}, not dicts of arrays")
    for feeds in sets:
        if not isinstance(feeds, Mapping):
            raise UsageError(f"{where}: it gives {type(feeds).__name__}, not dicts of arrays")
        yield feeds


@contextlib.contextmanager
def _running(script: Script) -> Iterator[None]:
    """Errors in the script are the user's: said with the line, without a traceback."""
    folder = str(script.path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises
        problem = printable(f"{type(error).__name__}: {error}".rstrip(": "), 400)
        raise UsageError(f"--data-script {script}: line {_line(error, script.path)}: {problem}") from None
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _line(error: BaseException, path: Path) -> int | str:
    """The last line of the script that was running, or the one that does not parse."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == path:
        return error.lineno or "?"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return lines[-1] or "?" if lines else "?"
