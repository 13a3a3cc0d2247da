"""check: say of each model whether it is folded as far as it should be, and whether folding it would be right.

Writes nothing. The stages are those of `fold`, in memory; what is new here is the verdict on the model.
"""

import functools
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import bnfold
from bnfold.errors import EXIT_BUG, EXIT_INVALID, BnfoldError, UsageError, VerificationFailed
from bnfold.filefacts import file_facts, versions
from bnfold.options import FoldOptions, Sources
from bnfold.report import Report
from bnfold.report.verdicts import CheckResult, ModelCheck, worst
from bnfold.text import plural, printable
from bnfold.verification import Progress
from bnfold.verification.timed import DEFAULT_LIMIT

if TYPE_CHECKING:
    from bnfold.comparing import Paths, Tolerance
    from bnfold.verification.feeds.script import Script


class FoldArguments(TypedDict, total=False):
    """The arguments of `fold` that `check` has too; they mean the same."""

    sources: Sources
    freeze_inputs: bool
    clone_shared: bool
    partial: bool
    merge_branches: bool
    assume_range: bool
    only: str | Sequence[str]
    exclude: str | Sequence[str]
    providers: str | Sequence[str]
    seed: int
    trials: int
    shapes: Mapping[str, tuple[int, ...]]
    dims: Mapping[str, int]
    threads: int | None
    input_data: "Paths"
    data_script: "str | Script | None"
    save_failing: "str | os.PathLike[str] | None"
    custom_op_libraries: "Paths"
    rtol: "Tolerance"
    atol: "Tolerance"
    require_sites: bool
    thorough: bool
    tf32: bool
    time_limit: float
    follow_links: bool


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a model may have and still pass: sites that would fold; so many that would stay (None: any number)."""

    allow_foldable: bool
    max_unfolded: int | None


def check(
    models: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]",
    *,
    allow_foldable: bool = False,
    max_unfolded: int | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    **arguments: Unpack[FoldArguments],
) -> CheckResult:
    """Say of each model whether it passes: all is folded that can be, and folding would not change its outputs.

    Writes nothing. What is wrong with one model is said in its entry and does not stop the others.

    Args:
        models: files, folders (every *.onnx in them and below), patterns such as "models/**/*.onnx".
        allow_foldable: let models pass in which sites would fold.
        max_unfolded: how many sites may stay; None for any number.
        jobs: how many processes work side by side. With more than one, a script needs `if __name__ == "__main__":`,
            and a crash of onnxruntime costs one model only.
        progress: called with a stage's name, how far it is, and how far it goes.
        **arguments: as for `fold`.

    Raises:
        UsageError: an argument makes no sense, or no model is meant.
    """
    from bnfold.modelfiles import model_files

    started = time.perf_counter()
    if jobs < 1 or (max_unfolded is not None and max_unfolded < 0):
        raise UsageError(f"jobs {jobs} and max_unfolded {max_unfolded} must not be negative or none")
    _check_arguments(arguments)
    paths = model_files([models] if isinstance(models, (str, os.PathLike)) else models)
    if not paths:
        raise UsageError("no model is given")
    if jobs > 1 and len(paths) > 1 and arguments.get("threads") is None:
        arguments["threads"] = max(1, (os.cpu_count() or 1) // jobs)
    one = functools.partial(_check_one, limits=_Limits(allow_foldable, max_unfolded), arguments=arguments)
    found: dict[int, ModelCheck] = {}
    for index, entry in _each(one, paths, jobs):
        found[index] = entry
        if progress is not None:
            progress("check", len(found), len(paths))
    entries = tuple(found[index] for index in range(len(paths)))
    code = worst(entry.exit_code for entry in entries)
    seconds = time.perf_counter() - started
    return CheckResult(bnfold.__version__, versions(), allow_foldable, max_unfolded, code, entries, seconds)


def _check_arguments(arguments: FoldArguments) -> None:
    """Before any model is read, as `fold` does for its own.

    Raises:
        UsageError: an argument makes no sense.
    """
    from bnfold.comparing import session

    unknown = arguments.keys() - FoldArguments.__annotations__.keys()
    if unknown:
        raise UsageError(f"check has no argument {', '.join(sorted(unknown))}")
    FoldOptions(arguments.get("sources", "affine"))
    session(
        providers=arguments.get("providers", ("cpu",)), seed=arguments.get("seed", 0),
        trials=arguments.get("trials", 3), shapes=arguments.get("shapes"), dims=arguments.get("dims"),
        threads=arguments.get("threads"), rtol=arguments.get("rtol"), atol=arguments.get("atol"),
        require_sites=False, thorough=False, tf32=arguments.get("tf32", False),
        time_limit=arguments.get("time_limit", DEFAULT_LIMIT),
    )  # fmt: skip


def _each(one: "functools.partial[ModelCheck]", paths: Sequence[Path], jobs: int) -> Iterator[tuple[int, ModelCheck]]:
    """The verdict on every model, as they come: in this process, or in several."""
    if jobs == 1 or len(paths) == 1:
        yield from enumerate(map(one, paths))
        return
    from bnfold.workers import Died, run_all

    for index, result in run_all(one, paths, min(jobs, len(paths))):
        if isinstance(result, Died):
            reason = f"the process died (exit code {result.code}), in onnxruntime or for lack of memory"
            yield index, ModelCheck(str(paths[index]), "not verified", 3, (reason,))
        else:
            yield index, result


def _check_one(path: Path, limits: _Limits, arguments: FoldArguments) -> ModelCheck:
    """The verdict on one model; whatever goes wrong is in it."""
    started = time.perf_counter()
    try:
        facts = file_facts(path)
        entry = replace(_verdict(path, limits, arguments), sha256=facts.sha256, bytes=facts.bytes)
    except BnfoldError as error:
        reason = str(error).removeprefix(f"{printable(str(path))}: ")
        entry = ModelCheck(str(path), "invalid", EXIT_INVALID, (reason,))
    except MemoryError:
        entry = ModelCheck(str(path), "invalid", EXIT_INVALID, ("out of memory",))
    except Exception as error:
        if os.environ.get("BNFOLD_DEBUG"):
            raise
        reason = f"this is a bug in bnfold, please report it: {type(error).__name__}: {printable(str(error), 500)}"
        entry = ModelCheck(str(path), "bug", EXIT_BUG, (reason,))
    return replace(entry, seconds=time.perf_counter() - started)


def _verdict(path: Path, limits: _Limits, arguments: FoldArguments) -> ModelCheck:
    from bnfold import api

    try:
        report = api.fold(path, allow_unverified=True, **arguments).report
    except VerificationFailed as error:
        report = error.fold_report()
    failures, unverified = _failures(report, limits), _unverified(report)
    code = 1 if failures else 3 if unverified else 0
    return ModelCheck(
        model=str(path),
        outcome="failed" if failures else "not verified" if unverified else "passed",
        exit_code=code,
        reasons=(*failures, *unverified),
        foldable=len(report.folded),
        left=len(report.left),
        codes=dict(Counter(site.code for site in report.left if site.code)),
        sites=report.sites,
        verification=report.verification,
    )


def _failures(report: Report, limits: _Limits) -> list[str]:
    found = []
    if report.verification is not None and report.verification.verdict == "different":
        found.append(f"folding would change the outputs: {report.verification.reason}")
    if report.folded and not limits.allow_foldable:
        first = ", ".join(site.site for site in report.folded[:3])
        more = ", ..." if len(report.folded) > 3 else ""
        found.append(f"{plural(len(report.folded), 'site')} would fold ({first}{more}): run `bnfold fold`")
    if limits.max_unfolded is not None and len(report.left) > limits.max_unfolded:
        codes = Counter(str(site.code) for site in report.left)
        listed = ", ".join(f"{count} {code}" for code, count in codes.most_common())
        found.append(f"{plural(len(report.left), 'site')} would stay, more than {limits.max_unfolded}: {listed}")
    return found


def _unverified(report: Report) -> list[str]:
    if report.verification is None or report.verification.verdict != "not verified":
        return []
    return [f"could not verify: {report.verification.reason}"]
