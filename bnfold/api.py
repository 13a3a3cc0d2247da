"""fold and inspect: the stages in their order; verify and check beside them. The CLI calls only this.

open -> facts -> find, plan, apply -> write a temporary file -> verify it -> rename it -> report
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from bnfold.checking import check
from bnfold.comparing import Paths, Tolerance, session, verify, verify_report
from bnfold.document import Document
from bnfold.errors import OutputError, UsageError
from bnfold.finish import Finish
from bnfold.options import FoldOptions, Sources
from bnfold.results import FoldResult, Inspection
from bnfold.rewrite import Progress, rewrite
from bnfold.sources import naming, source_of
from bnfold.staging import cannot_write, check_target
from bnfold.text import printable
from bnfold.undo.make import check_undo_target
from bnfold.undo.unfold import unfold
from bnfold.verification.timed import DEFAULT_LIMIT

if TYPE_CHECKING:
    from os import PathLike

    from bnfold.verification.feeds.script import Script

__all__ = ["FoldResult", "Inspection", "check", "fold", "inspect", "unfold", "verify", "verify_report"]


def inspect(
    model: "str | PathLike[str] | ModelProto",
    *,
    sources: Sources = "affine",
    freeze_inputs: bool = False,
    clone_shared: bool = False,
    partial: bool = False,
    merge_branches: bool = False,
    assume_range: bool = False,
    only: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    follow_links: bool = False,
) -> Inspection:
    """Say for each BatchNormalization, and each chain like one, whether `fold` would fold it, and why not.

    Writes nothing.

    Args:
        model: a path, or a ModelProto (which is not changed).
        sources: as for `fold`, like all that follow.
        freeze_inputs: take initializers that are also graph inputs for constants.
        clone_shared: fold into a copy of what is used elsewhere too.
        partial: before a padded Conv, move the scale alone.
        merge_branches: make one Conv of two that are added up.
        assume_range: assume that no value in float16 or bfloat16 overflows.
        only: patterns of names of sites.
        exclude: patterns of names of sites.
        follow_links: read external data through links, in a folder that you trust.

    Raises:
        InvalidModelError: the model cannot be read or breaks a rule of the ONNX spec.
    """
    started = time.perf_counter()
    source = source_of(model)
    options = FoldOptions(
        sources,
        freeze_inputs,
        clone_shared,
        partial,
        merge_branches,
        assume_range,
        named(only),
        named(exclude),
    )
    with naming(source):
        report = rewrite(Document.open(source, follow_links=follow_links), options, command="inspect")
    return Inspection(replace(report, after=None, seconds=time.perf_counter() - started))


def fold(
    model: "str | PathLike[str] | ModelProto",
    output: "str | PathLike[str] | None" = None,
    *,
    in_place: bool = False,
    force: bool = False,
    sources: Sources = "affine",
    freeze_inputs: bool = False,
    clone_shared: bool = False,
    partial: bool = False,
    merge_branches: bool = False,
    assume_range: bool = False,
    only: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    verify: bool = True,
    allow_unverified: bool = False,
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
    provenance: bool = True,
    undo_file: "str | PathLike[str] | None" = None,
    progress: Progress | None = None,
) -> FoldResult:
    """Fold every BatchNormalization and chain like it that can be folded exactly; prove that outputs are preserved.

    Args:
        model: a path, or a ModelProto (which is not changed).
        output: where to write the folded model. Without it nothing is written; use `FoldResult.save`.
        in_place: replace the file `model` instead.
        force: replace `output` if it exists. Here and in place, external data of the model that is replaced is
            removed where nothing else names it; the report lists what was removed and what was kept.
        sources: what to fold. "bn": BatchNormalization only. "affine": besides, chains of Mul, Add, Sub, Div, Neg by
            constants that go into Conv or ConvTranspose, and those with a factor for each map that go into the
            Gemm or MatMul before them. "all": every chain that can be folded exactly.
        freeze_inputs: take initializers that are also graph inputs (IR >= 4) for constants; those that take
            part in a fold are removed from the inputs and listed in `FoldResult.frozen`.
        clone_shared: where the Conv upstream is used elsewhere too, fold into a copy of it. The model grows.
        partial: before a padded Conv, move the scale into the weights and leave one Add.
        merge_branches: make one Conv of two that read the same input and are added up.
        assume_range: in float16 and bfloat16, assume that no value on the way overflows.
        only: patterns (`*`, `?`, `[...]`): take only sites of which the name of a node or an output matches one.
        exclude: patterns: leave sites of which the name of a node or an output matches one.
        verify: compare the outputs of both models.
        allow_unverified: go on where the outputs could not be compared.
        providers: where to compare, as for `verify`, like all that follow.
        seed: of the random inputs.
        trials: how many inputs to make up.
        shapes: input shapes, by input name, for models that leave them free.
        dims: sizes of symbolic dimensions, by symbol.
        threads: for onnxruntime.
        input_data: files and folders of inputs to compare on instead.
        data_script: a function that gives inputs to compare on instead.
        save_failing: a folder for the first inputs that the outputs differ on.
        custom_op_libraries: shared libraries with custom operators, for onnxruntime.
        rtol: relative tolerance of the outputs.
        atol: absolute tolerance of the outputs.
        require_sites: "not verified" where a changed value could only be judged by the outputs.
        thorough: compare on at least 8 inputs, and in other ways, as information.
        tf32: let CUDA multiply in TF32.
        time_limit: seconds that one run of one model may take.
        follow_links: read external data through symbolic and hard links, as in Hugging Face's cache, in a folder that
            you trust. What is written is never a link.
        provenance: note in the metadata of each node (below IR 10: of the model) what was folded into it.
        undo_file: write what `unfold` needs to get the original bytes back to this new file (`force` replaces it).
        progress: called with a stage's name, how far it is, and how far it goes.

    Raises:
        InvalidModelError: the model cannot be read or breaks a rule of the ONNX spec.
        OutputError: the output cannot be written, or exists.
        VerificationFailed: the outputs differ. Nothing is written.
        NotVerified: the outputs could not be compared. Nothing is written.
    """
    started = time.perf_counter()
    source = source_of(model)
    target = _target(source, output, in_place=in_place, force=force)
    undo = _undo(undo_file, source, target, force=force)
    chosen = FoldOptions(
        sources,
        freeze_inputs,
        clone_shared,
        partial,
        merge_branches,
        assume_range,
        named(only),
        named(exclude),
        provenance,
    )
    options = session(
        providers=providers, seed=seed, trials=trials, shapes=shapes, dims=dims, threads=threads,
        input_data=input_data, data_script=data_script, save_failing=save_failing,
        custom_op_libraries=custom_op_libraries, rtol=rtol, atol=atol,
        require_sites=require_sites, thorough=thorough, tf32=tf32, time_limit=time_limit,
    )  # fmt: skip
    with naming(source):
        document = Document.open(source, follow_links=follow_links)
        report = rewrite(document, chosen, command="fold", progress=progress)
    result = FoldResult(report, None, document)
    finish = Finish(
        result, source, options, started, replace=force or in_place, allow_unverified=allow_unverified,
        progress=progress, undo=undo, force=force,
    )  # fmt: skip
    if not report.folded:
        finish.write_unchanged(target, in_place=in_place)
    elif target is not None:
        finish.write(target, verify=verify)
    else:
        finish.keep_in_memory(verify=verify)
    return result


def named(given: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern or several, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def _target(
    source: Path | ModelProto, output: "str | PathLike[str] | None", *, in_place: bool, force: bool
) -> Path | None:
    if output is None and not in_place:
        return None
    if in_place and (output is not None or not isinstance(source, Path)):
        raise OutputError("in place means over the input file: it needs a path and no other output")
    target = source if isinstance(source, Path) and in_place else Path(output or "")
    try:
        is_input = isinstance(source, Path) and target.exists() and source.exists() and target.samefile(source)
        is_link = target.is_symlink()
    except (OSError, ValueError) as error:
        raise cannot_write(target, error) from None
    if in_place:
        if is_link:
            raise OutputError(f"{printable(str(target))} is a symbolic link; give the real path, or another output")
        return target
    if is_input:
        raise OutputError(f"{printable(str(target))} is the input itself; --in-place overwrites it")
    check_target(target, force=force)
    return target


def _undo(
    undo_file: "str | PathLike[str] | None", source: Path | ModelProto, target: Path | None, *, force: bool
) -> Path | None:
    if undo_file is None:
        return None
    if target is None or not isinstance(source, Path):
        raise UsageError("an undo file goes from one file to another: it needs a path, and an output or in place")
    path = Path(undo_file)
    check_undo_target(path, [source, target, target.with_name(f"{target.name}.data")], force=force)
    return path
