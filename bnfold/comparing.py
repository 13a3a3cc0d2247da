"""verify: judge any two models, whoever made them. The stages: open both -> compare -> the verdict."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

import bnfold
from bnfold.document import Document, serialise
from bnfold.filefacts import file_facts, versions
from bnfold.relocated import relocated
from bnfold.report.verdicts import VERDICT_CODES, VerifyReport
from bnfold.sources import naming, source_of
from bnfold.verification import THOROUGH_TRIALS, Progress, Verification, VerifyOptions
from bnfold.verification.feeds.script import Script, parse_script
from bnfold.verification.runtime import Model
from bnfold.verification.timed import DEFAULT_LIMIT
from bnfold.verification.tolerances import by_output

if TYPE_CHECKING:
    from os import PathLike

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Tolerance = float | Mapping[str, float] | None


def verify(
    original: "str | PathLike[str] | ModelProto",
    folded: "str | PathLike[str] | ModelProto",
    *,
    providers: str | Sequence[str] = ("cpu",),
    seed: int = 0,
    trials: int = 3,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dims: Mapping[str, int] | None = None,
    threads: int | None = None,
    input_data: Paths = (),
    data_script: "str | Script | None" = None,
    save_failing: "str | PathLike[str] | None" = None,
    custom_op_libraries: Paths = (),
    rtol: Tolerance = None,
    atol: Tolerance = None,
    require_sites: bool = False,
    thorough: bool = False,
    tf32: bool = False,
    time_limit: float = DEFAULT_LIMIT,
    follow_links: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Judge whether `folded` does what `original` does, whoever made it. Writes nothing.

    Args:
        original: a path, or a ModelProto.
        folded: the model to judge, likewise.
        providers: "cpu", "cuda", "reference" or onnxruntime's full names, with options as in "cuda:device_id=0"; all
            are run.
        seed: of the random inputs.
        trials: how many inputs to make up: normal, uniform, as the running statistics want them, in turn.
        shapes: input shapes, by input name, for models that leave them free.
        dims: sizes of symbolic dimensions, by symbol.
        threads: for onnxruntime.
        input_data: files and folders of inputs to compare on instead: .npz, .npy, folders of `test_data_set_*`, and
            a .csv of class labels.
        data_script: "file.py:function" that yields a dict of arrays for each trial.
        save_failing: a folder for the first inputs that the outputs differ on, and the outputs.
        custom_op_libraries: shared libraries with custom operators, for onnxruntime.
        rtol: relative tolerance of all outputs, or by output, in place of what rounding may do. Concerns the outputs
            only: a value inside that is made wrong stays wrong.
        atol: the absolute one; what is not given is 0.
        require_sites: "not verified" where a changed value could only be judged by the outputs.
        thorough: at least 8 inputs, and the pair at onnxruntime's default optimisation level as information.
        tf32: let CUDA multiply in TF32, and judge by TF32's own rounding.
        time_limit: seconds that one run of one model may take; "not verified" beyond.
        follow_links: read external data through links, in folders that you trust.
        progress: called with a stage's name, how far it is, and how far it goes.

    Raises:
        InvalidModelError: one of the models cannot be read or breaks a rule of the ONNX spec.
        UsageError: an unknown provider; a shape, size or tolerance that fits no input or output.
    """
    options = session(
        providers=providers, seed=seed, trials=trials, shapes=shapes, dims=dims, threads=threads,
        input_data=input_data, data_script=data_script, save_failing=save_failing,
        custom_op_libraries=custom_op_libraries, rtol=rtol, atol=atol,
        require_sites=require_sites, thorough=thorough, tf32=tf32, time_limit=time_limit,
    )  # fmt: skip
    first, second = _open(original, follow_links=follow_links), _open(folded, follow_links=follow_links)
    from bnfold.verification.whole import verify_whole

    return verify_whole(_runnable(first), _runnable(second), options, progress, documents=(first, second))


def session(
    *,
    providers: str | Sequence[str],
    seed: int,
    trials: int,
    shapes: Mapping[str, tuple[int, ...]] | None,
    dims: Mapping[str, int] | None,
    threads: int | None,
    input_data: Paths = (),
    data_script: "str | Script | None" = None,
    save_failing: "str | PathLike[str] | None" = None,
    custom_op_libraries: Paths = (),
    rtol: Tolerance,
    atol: Tolerance,
    require_sites: bool,
    thorough: bool,
    tf32: bool,
    time_limit: float = DEFAULT_LIMIT,
) -> VerifyOptions:
    """The options of a comparison as the API takes them, checked.

    Raises:
        UsageError: one makes no sense.
    """
    return VerifyOptions(
        providers=(providers,) if isinstance(providers, str) else tuple(providers),
        seed=seed,
        trials=max(trials, THOROUGH_TRIALS) if thorough and trials > 0 else trials,
        shapes=shapes or {},
        dims=dims or {},
        threads=threads,
        input_data=_paths(input_data),
        data_script=parse_script(data_script) if isinstance(data_script, str) else data_script,
        save_failing=None if save_failing is None else Path(save_failing),
        custom_op_libraries=_paths(custom_op_libraries),
        rtol=by_output(rtol),
        atol=by_output(atol),
        require_sites=require_sites,
        thorough=thorough,
        tf32=tf32,
        time_limit=time_limit,
    )


def _paths(given: Paths) -> tuple[Path, ...]:
    return tuple(map(Path, (given,) if isinstance(given, str | os.PathLike) else given))


def _open(model: "str | PathLike[str] | ModelProto", *, follow_links: bool) -> Document:
    source = source_of(model)
    with naming(source):
        return Document.open(source, follow_links=follow_links)


def _runnable(document: Document) -> Model:
    """The model as a runtime takes it: its file, also where its data is reached through links, or its bytes."""
    if document.path is None:
        return serialise(document.proto)
    return relocated(document.path, document.data_files)


def verify_report(original: Path, folded: Path, verification: Verification, seconds: float) -> VerifyReport:
    """The verdict on two files, with what is to be said about them.

    Raises:
        InvalidModelError: one of them is gone.
    """
    with naming(original):
        first = file_facts(original)
    with naming(folded):
        second = file_facts(folded)
    code = VERDICT_CODES[verification.verdict]
    blame = verification.blame
    return VerifyReport(
        bnfold.__version__, versions(), first, second, verification.verdict, code, blame, verification, seconds
    )
