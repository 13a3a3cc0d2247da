"""The options that several commands share, what `--help` says of them, and how they become arguments of the API."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from bnfold.errors import UsageError
from bnfold.options import SOURCES
from bnfold.terminal import check_place
from bnfold.text import printable

EXIT_CODES = """
\b
Exit codes:
  0   done, or nothing to do; the outputs are equal; the check passed
  1   outputs differ (nothing was written); the check found something
  2   usage; or the model is unreadable, invalid or unsafe
  3   could not verify (something is missing, or inconclusive); nothing was written
  70  a bug in bnfold
  130 interrupted (Ctrl-C, SIGTERM); what was not finished was taken back
"""

F = TypeVar("F", bound=Callable[..., Any])
REPORT_FORMATS = (".json", ".txt")


def output_options(command: F) -> F:
    """Where the report goes, and in which format."""
    return _with(
        command,
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, help="List what is folded, or equal, too."),
        click.option("--report", "reports", multiple=True, type=click.Path(dir_okay=False, path_type=Path),
                     metavar="FILE", help="Also write the report to FILE (.json or .txt). Repeatable."),
        click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True,
                     help="Format of the report on stdout."),
    )  # fmt: skip


def session_options(command: F) -> F:
    """How two models are compared; `session_arguments` turns them into arguments of the API."""
    return _with(
        command,
        click.option("--tf32", is_flag=True,
                     help="With CUDA: let it multiply in TF32, and judge by TF32's own rounding."),
        click.option("--thorough", is_flag=True,
                     help="Compare on at least 8 inputs, and at onnxruntime's default optimisation level too."),
        click.option("--require-sites", is_flag=True,
                     help="Not verified where a changed value could only be judged by the outputs."),
        click.option("--atol", "atols", multiple=True, metavar="[OUTPUT:]VALUE",
                     help="Absolute tolerance of the outputs, in place of what rounding may do. Repeatable."),
        click.option("--rtol", "rtols", multiple=True, metavar="[OUTPUT:]VALUE",
                     help="The same relative to each element: |found - expected| <= atol + rtol |expected|."),
        click.option("--custom-op-library", "custom_op_libraries", multiple=True, metavar="FILE",
                     type=click.Path(path_type=Path),
                     help="Shared library with custom operators, for onnxruntime. Repeatable."),
        click.option("--save-failing", type=click.Path(path_type=Path), metavar="DIR",
                     help="Save the first inputs that the outputs differ on, and the outputs, to this folder."),
        click.option("--data-script", metavar="FILE.py:FUNCTION",
                     help="Compare on what this Python function yields: a dict of arrays for each trial."),
        click.option("--input-data", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
                     help="Compare on these inputs: .npz, .npy, a folder of test_data_set_*, a .csv of class "
                          "labels. Repeatable."),
        click.option("--time-limit", type=click.FloatRange(0, min_open=True), default=600, show_default=True,
                     metavar="SECONDS", help="How long one run of one model may take; not verified beyond."),
        click.option("--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads for onnxruntime."),
        click.option("--trials", type=click.IntRange(1), default=3, show_default=True, metavar="N",
                     help="How many inputs to make up: normal, uniform, as the statistics want them, in turn."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
                     help="Seed of the random inputs."),
        click.option("--dim", "dims", multiple=True, metavar="SYMBOL=SIZE",
                     help="Size of a symbolic dimension, such as N=2. Repeatable."),
        click.option("--shape", "shapes", multiple=True, metavar="NAME:1,3,224,224",
                     help="Shape of an input whose dimensions are free. Repeatable."),
        click.option("--provider", "providers", multiple=True, default=("cpu",), show_default=True,
                     metavar="cpu|cuda|reference",
                     help="Where to compare, with options as in cuda:device_id=0; all that are given run. "
                          "Repeatable."),
    )  # fmt: skip


def session_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Take what `session_options` gave out of `settings`, parsed, under the API's names.

    Raises:
        UsageError: a shape, size or tolerance that does not parse.
    """
    from bnfold.verification.feeds import parse_dim, parse_shape
    from bnfold.verification.feeds.script import parse_script
    from bnfold.verification.tolerances import parse_tolerance

    script = settings.pop("data_script")
    return {
        "data_script": None if script is None else parse_script(script),
        "shapes": dict(map(parse_shape, settings.pop("shapes"))),
        "dims": dict(map(parse_dim, settings.pop("dims"))),
        "rtol": dict(parse_tolerance("--rtol", text) for text in settings.pop("rtols")),
        "atol": dict(parse_tolerance("--atol", text) for text in settings.pop("atols")),
        **{
            name: settings.pop(name)
            for name in (
                "providers", "seed", "trials", "threads", "input_data", "save_failing", "custom_op_libraries",
                "require_sites", "thorough", "tf32", "time_limit",
            )
        },
    }  # fmt: skip


def link_option(command: F) -> F:
    """Whether external data may be reached through links."""
    return _with(
        command,
        click.option("--follow-links", is_flag=True,
                     help="Read external data through links, as in Hugging Face's cache; for folders you trust."),
    )  # fmt: skip


def fold_options(command: F) -> F:
    """What is folded; named as the API's arguments."""
    return _with(
        link_option(command),
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
    )  # fmt: skip


def check_reports(reports: tuple[Path, ...], models: Iterable[Path | None]) -> None:
    """Refuse, before any work is done, a report that could not be written, or would replace a file of a model.

    Raises:
        UsageError: an unknown ending, a folder that is not there, a file of a model.
    """
    for path in reports:
        shown = printable(str(path))
        if path.suffix not in REPORT_FORMATS:
            raise UsageError(f"--report {shown}: the ending must be one of {', '.join(REPORT_FORMATS)}")
        if not path.parent.is_dir():
            raise UsageError(f"--report {shown}: the folder does not exist")
        check_place(path, [model for model in models if model is not None])


def _with(command: F, *options: Callable[[F], F]) -> F:
    """The command with these options; click lists the last one first."""
    for option in options:
        command = option(command)
    return command
