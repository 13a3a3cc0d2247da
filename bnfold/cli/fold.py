"""`bnfold fold`, `bnfold inspect` and `bnfold unfold`."""

from pathlib import Path
from typing import Any

import click

from bnfold import interrupts
from bnfold.cli.options import (
    EXIT_CODES,
    check_reports,
    fold_options,
    output_options,
    session_arguments,
    session_options,
)
from bnfold.errors import UsageError, WrittenInterrupt
from bnfold.terminal import Show, progress
from bnfold.text import printable


@click.command("fold", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT",
              help="Where to write; default: <name>.folded.onnx beside the model.")  # fmt: skip
@click.option("--in-place", is_flag=True, help="Replace the model itself.")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--undo-file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write what `bnfold unfold` needs to get the original bytes back.")  # fmt: skip
@click.option("--no-provenance", is_flag=True, help="Do not note in the metadata what was folded into each node.")
@fold_options
@session_options
@click.option("--allow-unverified", is_flag=True, help="Write even where the outputs could not be compared.")
@click.option("--no-verify", is_flag=True, help="Do not compare the outputs (needs no onnxruntime).")
@output_options
def fold_command(
    model: Path, output: Path | None, *, in_place: bool, no_provenance: bool, no_verify: bool,
    undo_file: Path | None, format_: str, reports: tuple[Path, ...], verbose: bool, quiet: bool, **settings: Any,
) -> None:  # fmt: skip
    """Fold every BatchNormalization of MODEL, and every chain like one, that can be folded exactly; verify; write."""
    if output is None and not in_place:
        output = _default_output(model)
    check_reports(reports, (model, output, undo_file))
    with interrupts.held_back():  # extension modules make other errors of a Ctrl-C while they are imported
        from bnfold import api
        from bnfold.errors import NotVerified, VerificationFailed

        session = session_arguments(settings)
    show = Show(format_, reports, verbose=verbose, quiet=quiet)
    result = None
    try:
        with progress(quiet=quiet) as callback:
            result = api.fold(
                model, output, in_place=in_place, verify=not no_verify, provenance=not no_provenance,
                undo_file=undo_file, progress=callback, **session, **settings,
            )  # fmt: skip
        show(result.report)
    except (VerificationFailed, NotVerified) as error:
        show(error.fold_report())
        raise
    except KeyboardInterrupt:
        if result is not None and result.report.output:
            raise WrittenInterrupt from None
        raise


@click.command("inspect", epilog=EXIT_CODES)
@click.argument("model", type=click.Path(path_type=Path))
@fold_options
@output_options
def inspect_command(
    model: Path, *, format_: str, reports: tuple[Path, ...], verbose: bool, quiet: bool, **choices: Any
) -> None:
    """Say for each BatchNormalization of MODEL, and each chain like one, whether it would fold, and why not.

    Writes nothing.
    """
    check_reports(reports, (model,))
    with interrupts.held_back():
        from bnfold import api

    Show(format_, reports, verbose=verbose, quiet=quiet)(api.inspect(model, **choices).report)


@click.command("unfold", epilog=EXIT_CODES)
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
