"""The command line: parses, calls the API, picks a renderer, exits. No graph logic, no heavy import at the top."""

import contextlib
import gc
import os
import sys
from io import TextIOWrapper
from typing import NoReturn

import click

from bnfold import __version__, errors, interrupts
from bnfold.cli.check import check_command
from bnfold.cli.fold import fold_command, inspect_command, unfold_command
from bnfold.cli.options import EXIT_CODES
from bnfold.cli.verify import verify_command
from bnfold.errors import BnfoldError, WrittenInterrupt
from bnfold.terminal import drop_stdout, safe_in_actions
from bnfold.text import printable


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", "-V", prog_name="bnfold")
def cli() -> None:
    """Fold BatchNormalization into the convolutions of ONNX models, exactly, and prove that nothing changed."""


for command in (fold_command, inspect_command, verify_command, check_command, unfold_command):
    cli.add_command(command)


def main(argv: list[str] | None = None) -> NoReturn:
    """Entry point: runs the command and turns every ending into its exit code; no traceback reaches a user."""
    interrupts.listen()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names in a model may be in any script, the terminal's may be another
            stream.reconfigure(errors="backslashreplace")
    gc.disable()  # one command, one process: collecting while a large graph is walked takes time and frees nothing
    try:
        code = _run(argv)
    except KeyboardInterrupt:  # while another ending was being told
        code = errors.EXIT_INTERRUPTED
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # everything is written and closed; tearing down a large model takes longer than making it


def _open_closed_streams() -> None:
    """Python has None for a stream that was closed before it started (`>&-`); what is printed then goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - for the whole process


def _run(argv: list[str] | None) -> int:
    """Run and return the exit code. Not by click's own main, which has its own ideas of Ctrl-C and closed pipes."""
    try:
        with cli.make_context("bnfold", list(sys.argv[1:] if argv is None else argv)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except BnfoldError as error:
        return _interrupted() if interrupts.came() else _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show(sys.stderr)
        return errors.EXIT_INVALID
    except KeyboardInterrupt as interrupt:
        return _interrupted(written=isinstance(interrupt, WrittenInterrupt))
    except BrokenPipeError:
        drop_stdout()
    except Exception as error:  # noqa: BLE001 - the last resort: say so, and how to report it
        if interrupts.came():
            return _interrupted()
        return _fail("out of memory", errors.EXIT_INVALID) if isinstance(error, MemoryError) else _bug(error)
    return errors.EXIT_DONE


def _fail(message: str, code: int) -> int:
    click.echo(safe_in_actions(f"bnfold: error: {message}"), err=True)
    return code


def _interrupted(*, written: bool = False) -> int:
    return _fail(f"interrupted; {'the model' if written else 'nothing'} was written", errors.EXIT_INTERRUPTED)


def _bug(error: Exception) -> int:
    if os.environ.get("BNFOLD_DEBUG"):
        raise error
    return _fail(
        f"this is a bug in bnfold, please report it: {type(error).__name__}: {printable(str(error), 500)} "
        "(BNFOLD_DEBUG=1 shows where)",
        errors.EXIT_BUG,
    )
