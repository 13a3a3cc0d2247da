"""`bnfold verify`."""

import time
from pathlib import Path
from typing import Any

import click

from bnfold import errors, interrupts
from bnfold.cli.options import (
    EXIT_CODES,
    check_reports,
    link_option,
    output_options,
    session_arguments,
    session_options,
)
from bnfold.terminal import Show, progress


@click.command("verify", epilog=EXIT_CODES)
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("folded", type=click.Path(path_type=Path))
@link_option
@session_options
@output_options
def verify_command(
    original: Path, folded: Path, *, format_: str, reports: tuple[Path, ...], verbose: bool, quiet: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """Judge whether FOLDED does what ORIGINAL does, whoever made it: 0 equal, 1 different, 3 could not be told.

    Each value that the two make differently is judged by itself, so that the first wrong one is named. Writes
    nothing but reports.
    """
    check_reports(reports, (original, folded))
    with interrupts.held_back():  # extension modules make other errors of a Ctrl-C while they are imported
        from bnfold import api

        session = session_arguments(settings)
    started = time.perf_counter()
    with progress(quiet=quiet) as callback:
        verification = api.verify(original, folded, progress=callback, **session, **settings)
    report = api.verify_report(original, folded, verification, time.perf_counter() - started)
    Show(format_, reports, verbose=verbose, quiet=quiet)(report)
    if quiet:
        verification.raise_unless_equal()
    if report.exit_code != errors.EXIT_DONE:
        raise click.exceptions.Exit(report.exit_code)
