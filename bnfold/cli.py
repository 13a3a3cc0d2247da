"""The command line: parses, calls the API, picks a renderer, exits. No graph logic, no heavy import at the top."""

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from bnfold import __version__, errors, interrupts
from bnfold.errors import BnfoldError, UsageError, WrittenInterrupt
from bnfold.options import SOURCES
from bnfold.terminal import Show, check_place, drop_stdout, progress
from bnfold.text import printable

EXIT_CODES = """
\b
Exit codes:
  0   done, or nothing to do
  1   outputs differ; nothing was written
  2   usage; or the model is unreadable, invalid or unsafe
  3   could not verify (something is missing, or inconclusive); nothing was written
  70  a bug in bnfold
  130 interrupted (Ctrl-C, SIGTERM); what was not finished was taken back
"""

F = TypeVar("F", bound=Callable[..., Any])
REPORT_FORMATS = (".json", ".txt")


def _output_options(command: F) -> F:
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, help="List the folded BatchNormalizations too."),
        click.option(
            "--report", "reports", multiple=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
            help="Also write the report to FILE (.json or .txt). Repeatable.",
        ),
        click.option(
            "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True,
            help="Format of the report on stdout.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _verify_options(command: F) -> F:
    for option in (
        click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads for onnxruntime."),
        click.option("--trials", type=click.IntRange(1), default=2, show_default=True, metavar="N",
                     help="How many random inputs to compare on."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
                     help="Seed of the random inputs."),
        click.option("--dim", "dims", multiple=True, metavar="SYMBOL=SIZE",
                     help="Size of a symbolic dimension, such as N=2. Repeatable."),
        click.option("--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224",
                     help="Shape of an input whose dimensions are free. Repeatable."),
        click.option("--provider", "providers", multiple=True, default=("cpu",), show_default=True,
                     metavar="cpu|cuda|reference", help="Where to compare; all that are given run. Repeatable."),
        click.option("--allow-unverified", is_flag=True, help="Write even where the outputs could not be compared."),
        click.option("--no-verify", is_flag=True, help="Do not compare the outputs (needs no onnxruntime)."),
    ):  # fmt: skip
        command = option(command)
    return command


def _fold_options(command: F) -> F:
    for option in (
        click.option("--follow-links", is_flag=True,
                     help="Read external data through links, as in Hugging Face's cache; for folders you trust."),
        click.option("--exclude", multiple=True, metavar="PATTERN",
                     help="Leave sites whose node or output name matches, such as '*/head/*'. Repeatable."),
        click.option("--only", multiple=True, metavar="PATTERN",
                     help="Take only sites whose node or output name matches. Repeatable."),
        click.option("--assume-range", is_flag=True,
                     help="In float16 and bfloat16, assume that no value on the way overflows."),
        click.option("--merge-branches", is_flag=True,
                     help="Make one Conv of two that read the same input and are added up."),
        click.option("--partial", is_flag=True,
                     help="Before a padded Conv, move the scale into the weights and leave one Add."),
        click.option("--clone-shared", is_flag=True,
                     help="Where the Conv upstream is used elsewhere too, fold into a copy of it."),
        click.option("--freeze-inputs", is_flag=True,
                     help="Fold initializers that are also model inputs (IR >= 4), and remove those inputs."),
        click.option("--sources", type=click.Choice(SOURCES), default="affine", show_default=True,
                     help="What to fold: BatchNormalization only; besides, chains of Mul, Add, ... like it; "
                          "or every chain that is exactly foldable."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", "-V", prog_name="bnfold")
def cli() -> None:
    """Fold BatchNormalization into the convolutions of ONNX models, exactly, and prove that nothing changed."""


@cli.command("fold", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT",
              help="Where to write; default: <name>.folded.onnx beside the model.")  # fmt: skip
@click.option("--in-place", is_flag=True, help="Replace the model itself.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--undo-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write what `bnfold unfold` needs to get the original bytes back.")  # fmt: skip
@click.option("--no-provenance", is_flag=True, help="Do not note in the metadata what was folded into each node.")
@_fold_options
@_verify_options
@_output_options
def fold_command(
    model: Path, output: Path | None, *, in_place: bool, force: bool, no_provenance: bool, no_verify: bool,
    undo_file: Path | None, allow_unverified: bool,
    providers: tuple[str, ...], shapes: tuple[str, ...], dims: tuple[str, ...], seed: int, trials: int,
    threads: int | None, format_: str, reports: tuple[Path, ...], verbose: bool, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Fold every BatchNormalization of MODEL, and every chain like one, that can be folded exactly; verify; write."""
    if output is None and not in_place:
        output = _default_output(model)
    _check_reports(reports, model, output, undo_file)
    with interrupts.held_back():  # extension modules make other errors of a Ctrl-C while they are imported
        from bnfold import api
        from bnfold.errors import NotVerified, VerificationFailed
        from bnfold.verify.feeds import parse_dim, parse_shape

    show = Show(format_, reports, verbose=verbose, quiet=quiet)
    result = None
    try:
        with progress(quiet=quiet) as callback:
            result = api.fold(
                model, output, in_place=in_place, force=force, verify=not no_verify,
                allow_unverified=allow_unverified, providers=providers, seed=seed, trials=trials,
                shapes=dict(map(parse_shape, shapes)), dims=dict(map(parse_dim, dims)), threads=threads,
                provenance=not no_provenance, undo_file=undo_file, progress=callback, **choices,
            )  # fmt: skip
        show(result.report)
    except (VerificationFailed, NotVerified) as error:
        if error.result is not None:
            show(error.result.report)
        raise
    except KeyboardInterrupt:
        if result is not None and result.report.output:
            raise WrittenInterrupt from None
        raise


@cli.command("inspect", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@_fold_options
@_output_options
def inspect_command(
    model: Path, *, format_: str, reports: tuple[Path, ...], verbose: bool, quiet: bool, **choices: Any
) -> None:
    """Say for each BatchNormalization of MODEL, and each chain like one, whether it would fold, and why not.

    Writes nothing.
    """
    _check_reports(reports, model)
    with interrupts.held_back():
        from bnfold import api

    Show(format_, reports, verbose=verbose, quiet=quiet)(api.inspect(model, **choices).report)


@cli.command("unfold", epilog=EXIT_CODES)
@click.argument("folded", type=click.Path(path_type=Path))
@click.argument("undo", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="Where to write the original.")
@click.option("--in-place", is_flag=True, help="Replace the folded model itself.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def unfold_command(
    folded: Path, undo: Path, output: Path | None, *, in_place: bool, force: bool, quiet: bool
) -> None:
    """Get the original of FOLDED back, byte for byte, with the UNDO file that `fold --undo-file` wrote."""
    from bnfold import api
    from bnfold.text import size

    restored = api.unfold(folded, undo, output, in_place=in_place, force=force)
    if quiet:
        return
    click.echo(f"restored -> {printable(str(restored.path))} ({size(restored.bytes)})")
    for path in restored.superseded:
        click.echo(f"no longer used by this model: {printable(str(path))} (remove it if nothing else needs it)")


def _default_output(model: Path) -> Path:
    if not model.name:
        raise UsageError(f"{printable(str(model))} is a folder, not a model file")
    return model.with_name(f"{model.stem}.folded.onnx")


def _check_reports(reports: tuple[Path, ...], *models: Path | None) -> None:
    for path in reports:
        shown = printable(str(path))
        if path.suffix not in REPORT_FORMATS:
            raise UsageError(f"--report {shown}: the ending must be one of {', '.join(REPORT_FORMATS)}")
        if not path.parent.is_dir():
            raise UsageError(f"--report {shown}: the folder does not exist")
        check_place(path, [model for model in models if model is not None])


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
    click.echo(f"bnfold: error: {message}", err=True)
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
