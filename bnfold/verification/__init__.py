"""Proof that two models give the same outputs.

This package imports no rule: it reads two models and nothing else, so it also judges models that other
tools made. The two run on the same seeded inputs with all graph optimisations off (with them on,
onnxruntime would fold the reference as well), and every output is compared relative to its own scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bnfold.errors import NotVerified, UsageError, VerificationFailed
from bnfold.text import printable
from bnfold.verification.compare import OutputComparison
from bnfold.verification.feeds.labels import Accuracy
from bnfold.verification.feeds.script import Script
from bnfold.verification.providers import CUDA, full_name
from bnfold.verification.sitecheck import SiteCheck
from bnfold.verification.timed import DEFAULT_LIMIT
from bnfold.verification.tolerances import by_output

THOROUGH_TRIALS = 8
LARGEST_SIZE = 2**31 - 1
Verdict = Literal["equal", "different", "not verified"]
Coverage = Literal["sites", "end to end"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What to run.

    Attributes:
        providers: "cpu", "cuda", "reference", or onnxruntime's full names, with options as in "cuda:device_id=0";
            all are run.
        seed: of the random inputs.
        trials: how many inputs to make up; in turn standard normal, uniform in [-1, 1) and of other sizes, and
            normal as the running statistics of the first BatchNormalization want it.
        shapes: whole input shapes, by input name.
        dims: sizes of symbolic dimensions, by symbol.
        threads: for onnxruntime; None leaves it to onnxruntime.
        input_data: files and folders of inputs to use instead, and a .csv of labels.
        data_script: a function that gives inputs to use instead, or behind those.
        save_failing: a folder for the inputs and outputs of the first trial that differs.
        custom_op_libraries: shared libraries of custom operators for onnxruntime.
        rtol, atol: tolerances of the outputs in place of what rounding may do, by output; "" stands for all others.
        require_sites: "not verified" where a changed value could only be judged by the outputs.
        thorough: besides, gather `Verification.information`; the API also raises `trials` to `THOROUGH_TRIALS`.
        tf32: let CUDA multiply in TF32, and judge by TF32's own rounding.
        time_limit: seconds that one run of one model may take; "not verified" beyond.
    """

    providers: tuple[str, ...] = ("cpu",)
    seed: int = 0
    trials: int = 3
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    threads: int | None = None
    input_data: tuple[Path, ...] = ()
    data_script: Script | None = None
    save_failing: Path | None = None
    custom_op_libraries: tuple[Path, ...] = ()
    rtol: Mapping[str, float] = field(default_factory=dict)
    atol: Mapping[str, float] = field(default_factory=dict)
    require_sites: bool = False
    thorough: bool = False
    tf32: bool = False
    time_limit: float = DEFAULT_LIMIT

    def __post_init__(self) -> None:
        """Refuse what makes no sense, before any work is done.

        Raises:
            UsageError: no provider or an unknown one, no trials, a size below 1 or beyond reason, a file that is not
                there, sizes for inputs that are given, a tolerance that is none, TF32 without CUDA, no time.
        """
        if not self.providers:
            raise UsageError("no provider is given; choose cpu, cuda or reference")
        names = [full_name(provider) for provider in self.providers]
        if self.tf32 and CUDA not in names:
            raise UsageError("--tf32 (tf32=True) is about CUDA: ask for --provider cuda too")
        for given in (self.rtol, self.atol):
            by_output(given)
        if self.seed < 0 or (self.threads is not None and self.threads < 1):
            raise UsageError(f"seed {self.seed} and threads {self.threads} must not be negative or none")
        if self.trials < 1:
            raise UsageError(f"{self.trials} trials compare nothing; at least 1 is needed")
        if not self.time_limit > 0:  # as is NaN
            raise UsageError(f"a time limit of {self.time_limit} s leaves no time to run; give some seconds")
        sizes = [*self.dims.items(), *((name, size) for name, shape in self.shapes.items() for size in shape)]
        for name, size in sizes:
            if not 1 <= size <= LARGEST_SIZE:
                raise UsageError(f"size {size} for {printable(name)!r} is out of range: 1 to {LARGEST_SIZE}")
        self._check_given()

    def _check_given(self) -> None:
        if (self.input_data or self.data_script) and (self.shapes or self.dims):
            raise UsageError("--shape and --dim are for made-up inputs; given ones have the shapes that they have")
        for option, paths in (("input-data", self.input_data), ("custom-op-library", self.custom_op_libraries)):
            for path in paths:
                if not path.exists():
                    raise UsageError(f"--{option} {printable(str(path))}: there is no such file")


@dataclass(frozen=True, slots=True)
class Fed:
    """What was fed in one trial.

    Attributes:
        name: "normal", "uniform", "running statistics", or the file, row, or script it came from.
        shapes: of the inputs that are plain tensors.
        sizes: those of free dimensions that were chosen, as "input[axis]" or by symbol.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ProviderRun:
    """The verdict on one provider.

    Attributes:
        provider: what ran: "CPUExecutionProvider", "CUDAExecutionProvider", or "reference".
        runtime: name and version of the software.
        verdict: see Verification.
        reason: a sentence: why not equal, or what is notable; empty where all is plain.
        outputs: the comparison of each output, the worst over the trials.
        shapes: of the inputs that were fed first.
        sizes: sizes that were chosen for their free dimensions, as "input[axis]" or by symbol.
        trials: how many inputs were compared.
        sites: the verdict on each value that the two models make differently, the worst over the trials.
        coverage: "sites" where every one of them could be judged, so that they decide about values; "end to end"
            where some could not, or the models share no values: then the outputs decide.
        inputs: what was fed, trial by trial.
        accuracy: of both models, where labels were given; information, no part of the verdict.
        saved: the file that the first trial that differs was saved to; empty where there is none.
        options: of the provider, those that were set.
        device: what it ran on, such as the name of the GPU.
    """

    provider: str
    runtime: str
    verdict: Verdict
    reason: str = ""
    outputs: tuple[OutputComparison, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    trials: int = 0
    sites: tuple[SiteCheck, ...] = ()
    coverage: Coverage = "end to end"
    inputs: tuple[Fed, ...] = ()
    accuracy: Accuracy | None = None
    saved: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    device: str = ""


@dataclass(frozen=True, slots=True)
class Information:
    """Another way of comparing the two models, or one of them with itself; never part of the verdict.

    Attributes:
        title: what was compared with what.
        outputs: the comparison of each output, on the first of the inputs.
        reason: why there is none.
    """

    title: str
    outputs: tuple[OutputComparison, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict over all providers; true only where it is "equal".

    Attributes:
        verdict: "different" if any provider says so, else "not verified" if any could not tell, else "equal".
        reason: the sentence that goes with the verdict.
        runs: one for each provider.
        interface: every difference between the interfaces, as a clause; any makes the models different.
        information: how they compare otherwise (`thorough`); never part of the verdict.
    """

    verdict: Verdict
    reason: str
    runs: tuple[ProviderRun, ...]
    interface: tuple[str, ...] = ()
    information: tuple[Information, ...] = ()

    def __bool__(self) -> bool:
        return self.verdict == "equal"

    def raise_unless_equal(self) -> None:
        """Turn a verdict that is not "equal" into an error, which carries this as `.result`.

        Raises:
            VerificationFailed: the models are different.
            NotVerified: it could not be told.
        """
        if self.verdict == "different":
            raise VerificationFailed(f"the models differ: {self.reason}", self)
        if self.verdict == "not verified":
            raise NotVerified(f"could not verify: {self.reason}", self)

    @property
    def outputs(self) -> tuple[OutputComparison, ...]:
        """The output comparisons of all providers."""
        return tuple(output for run in self.runs for output in run.outputs)

    @property
    def sites(self) -> tuple[SiteCheck, ...]:
        """The verdicts on each value that the two models make differently, of all providers."""
        return tuple(site for run in self.runs for site in run.sites)

    @property
    def blame(self) -> SiteCheck | None:
        """The first value, in the order of the graph, that the folded model makes wrong; None where there is none."""
        return next((site for site in self.sites if site.wrong), None)

    @property
    def worst(self) -> OutputComparison | None:
        """The output with the largest difference relative to its scale; None where nothing was compared."""
        return max(self.outputs, key=lambda output: output.relative, default=None)


def combine(runs: tuple[ProviderRun, ...]) -> Verification:
    """One verdict out of several: different > not verified > equal."""
    for verdict in ("different", "not verified"):
        for run in runs:
            if run.verdict == verdict:
                return Verification(run.verdict, f"{run.provider}: {run.reason}", runs)
    return Verification("equal", "; ".join(run.reason for run in runs if run.reason), runs)
