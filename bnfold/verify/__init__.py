"""Proof that two models give the same outputs.

This package imports no rule: it reads two models and nothing else, so it also judges models that other
tools made. The two run on the same seeded inputs with all graph optimisations off (with them on,
onnxruntime would fold the reference as well), and every output is compared relative to its own scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from bnfold.errors import UsageError
from bnfold.text import printable
from bnfold.verify.compare import OutputComparison
from bnfold.verify.providers import full_name

LARGEST_SIZE = 2**31 - 1
Verdict = Literal["equal", "different", "not verified"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What to run.

    Attributes:
        providers: "cpu", "cuda", "reference", or onnxruntime's full names; all are run.
        seed: of the random inputs.
        trials: how many inputs; even ones are standard normal, odd ones uniform in [-1, 1).
        shapes: whole input shapes, by input name.
        dims: sizes of symbolic dimensions, by symbol.
        threads: for onnxruntime; None leaves it to onnxruntime.
    """

    providers: tuple[str, ...] = ("cpu",)
    seed: int = 0
    trials: int = 2
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense, before any work is done.

        Raises:
            UsageError: no provider or an unknown one, no trials, a size below 1 or beyond reason.
        """
        if not self.providers:
            raise UsageError("no provider is given; choose cpu, cuda or reference")
        for provider in self.providers:
            full_name(provider)
        if self.seed < 0 or (self.threads is not None and self.threads < 1):
            raise UsageError(f"seed {self.seed} and threads {self.threads} must not be negative or none")
        if self.trials < 1:
            raise UsageError(f"{self.trials} trials compare nothing; at least 1 is needed")
        sizes = [*self.dims.items(), *((name, size) for name, shape in self.shapes.items() for size in shape)]
        for name, size in sizes:
            if not 1 <= size <= LARGEST_SIZE:
                raise UsageError(f"size {size} for {printable(name)!r} is out of range: 1 to {LARGEST_SIZE}")


@dataclass(frozen=True, slots=True)
class ProviderRun:
    """The verdict on one provider.

    Attributes:
        provider: what ran: "CPUExecutionProvider", "CUDAExecutionProvider", or "reference".
        runtime: name and version of the software.
        verdict: see Verification.
        reason: a sentence: why not equal, or what is notable; empty where all is plain.
        outputs: the comparison of each output, the worst over the trials.
        shapes: of the inputs that were fed.
        sizes: sizes that were chosen for free dimensions, as "input[axis]" or by symbol.
        trials: how many inputs were compared.
    """

    provider: str
    runtime: str
    verdict: Verdict
    reason: str = ""
    outputs: tuple[OutputComparison, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    trials: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict over all providers; true only where it is "equal".

    Attributes:
        verdict: "different" if any provider says so, else "not verified" if any could not tell, else "equal".
        reason: the sentence that goes with the verdict.
        runs: one for each provider.
    """

    verdict: Verdict
    reason: str
    runs: tuple[ProviderRun, ...]

    def __bool__(self) -> bool:
        return self.verdict == "equal"

    @property
    def outputs(self) -> tuple[OutputComparison, ...]:
        """The output comparisons of all providers."""
        return tuple(output for run in self.runs for output in run.outputs)

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
