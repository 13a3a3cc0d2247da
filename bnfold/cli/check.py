"""`bnfold check`: the report, GitHub's annotations and step summary, and the exit code."""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold import errors, interrupts
from bnfold.cli.options import (
    EXIT_CODES,
    check_reports,
    fold_options,
    output_options,
    session_arguments,
    session_options,
)
from bnfold.terminal import Show, in_actions, progress
from bnfold.text import printable

if TYPE_CHECKING:
    from bnfold.report.verdicts import CheckResult


@click.command("check", epilog=EXIT_CODES)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--allow-foldable", is_flag=True, help="Let models pass in which something would fold.")
@click.option("--max-unfolded", type=click.IntRange(0), metavar="N",
              help="Fail where more than N sites would stay; default: any number may.")  # fmt: skip
@click.option("-j", "--jobs", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="N",
              help="How many processes work side by side.")  # fmt: skip
@fold_options
@session_options
@output_options
def check_command(
    models: tuple[str, ...], *, format_: str, reports: tuple[Path, ...], verbose: bool, quiet: bool, **settings: Any
) -> None:
    """Check each MODEL, as CI does: fail where folding would change its outputs, or where a foldable site is left.

    MODEL is a file, a folder (every *.onnx in it and below) or a pattern such as 'models/**/*.onnx'. Writes nothing
    but reports. In GitHub Actions it annotates the models that do not pass, and writes a step summary.
    """
    with interrupts.held_back():
        from bnfold import api
        from bnfold.modelfiles import model_files

        session = session_arguments(settings)
    paths = model_files(models)
    check_reports(reports, paths)
    gc.enable()  # many models in one process: what one leaves has to go
    with progress(quiet=quiet) as callback:
        result = api.check(paths, progress=callback, **session, **settings)
    Show(format_, reports, verbose=verbose, quiet=quiet)(result)
    if quiet:
        _tell(result)
    if in_actions():
        _tell_github(result)
    if result.exit_code != errors.EXIT_DONE:
        raise click.exceptions.Exit(result.exit_code)


def _tell(result: "CheckResult") -> None:
    """With -q: the models that did not pass, on stderr."""
    from bnfold.terminal import safe_in_actions

    for model in result.models:
        for reason in model.reasons:
            line = f"bnfold: {model.outcome}: {printable(model.model)}: {printable(reason, 1200)}"
            click.echo(safe_in_actions(line), err=True)


def _tell_github(result: "CheckResult") -> None:
    """Annotations on stderr, which GitHub reads like stdout, so that JSON on stdout stays JSON; the step summary."""
    from bnfold.report.github import annotations, step_summary

    for line in annotations(result):
        click.echo(line, err=True)
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(step_summary(result))
    except OSError as error:
        click.echo(f"bnfold: cannot write the step summary: {error.strerror}", err=True)
