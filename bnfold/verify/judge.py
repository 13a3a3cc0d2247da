"""Running two models on the same inputs and judging the difference."""

from dataclasses import dataclass, replace
from typing import Any

from bnfold.rounding import FLOAT_TYPES, to_float64
from bnfold.text import printable
from bnfold.verify import Progress, ProviderRun, Verification, VerifyOptions, combine
from bnfold.verify.compare import OutputComparison, compare_outputs
from bnfold.verify.feeds import ATTEMPTS, Feeds, choose_shapes, make_feeds, nudge
from bnfold.verify.providers import CPU, REFERENCE, full_name
from bnfold.verify.reference import ReferenceRunner, storage_type
from bnfold.verify.runtime import CannotRunError, Model, OrtRunner, Runner, load_graph

# How far the noise of a network may excuse a difference: this many times what a one-ulp change of its inputs
# does to the original, and never more than NOISE_CEILING of the output's scale.
NOISE_FACTOR = 8
NOISE_CEILING = 0.01


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both models, ready to run on one provider."""

    model: Model
    original: Runner
    folded: Runner
    stand_in: str = ""


def verify_pair(
    original: Model, folded: Model, options: VerifyOptions, progress: Progress | None = None
) -> Verification:
    """Compare two models on every requested provider.

    Raises:
        UsageError: an unknown provider, or a shape that fits no input.
    """
    providers = [full_name(provider) for provider in options.providers]
    return combine(tuple(_verify_on(p, original, folded, options, progress) for p in dict.fromkeys(providers)))


def _verify_on(
    provider: str, original: Model, folded: Model, options: VerifyOptions, progress: Progress | None
) -> ProviderRun:
    if progress is not None:
        progress("verify", 0, options.trials)
    try:
        pair = _load(provider, original, folded, options)
    except CannotRunError as error:
        return ProviderRun(provider, "", "not verified", str(error))
    if not pair.original.outputs:
        return ProviderRun(provider, "", "not verified", "the model has no outputs: nothing can be compared")
    problem = _interface_problem(pair)
    run = ProviderRun(pair.original.provider, pair.original.runtime, "different", problem)
    try:
        if not problem:
            run = _run_trials(pair, run, options, progress)
        if run.verdict == "different" and run.outputs:
            run = _arbitrate(run, pair, folded, options)
    except MemoryError:
        return replace(run, verdict="not verified", reason="the values do not fit into memory (--shape or --dim?)")
    return replace(run, reason="; ".join(text for text in (pair.stand_in, run.reason) if text))


def _load(provider: str, original: Model, folded: Model, options: VerifyOptions) -> _Pair:
    """Sessions for both. Where onnxruntime cannot load the original on the CPU, the reference stands in.

    Raises:
        CannotRunError: the original cannot be run.
    """
    if provider == REFERENCE:
        return _Pair(original, ReferenceRunner(original), ReferenceRunner(folded))
    try:
        first = OrtRunner(original, provider, options.threads)
    except CannotRunError as error:
        if provider != CPU or "not installed" in str(error):
            raise
        return _stand_in(original, folded, str(error))
    try:
        return _Pair(original, first, OrtRunner(folded, provider, options.threads))
    except CannotRunError as error:
        return _Pair(original, first, _Unloadable(str(error)))


def _stand_in(original: Model, folded: Model, reason: str) -> _Pair:
    why = f"the reference evaluator stood in, because onnxruntime cannot run the original: {reason}"
    try:
        return _Pair(original, ReferenceRunner(original), ReferenceRunner(folded), why)
    except CannotRunError as error:
        raise CannotRunError(f"onnxruntime cannot load the original: {reason}; {error}") from None


class _Unloadable:
    """A folded model that does not load, although the original does."""

    provider = runtime = ""

    def __init__(self, reason: str) -> None:
        self.inputs: list[Any] = []
        self.outputs: list[str] = []
        self.reason = reason

    def run(self, feeds: Feeds) -> list[Any]:
        """Never called: the interface is judged first."""
        raise CannotRunError(f"{self.reason} ({len(feeds)} inputs)")


def _interface_problem(pair: _Pair) -> str:
    if isinstance(pair.folded, _Unloadable):
        return f"the folded model does not load: {pair.folded.reason}"
    if pair.original.outputs != pair.folded.outputs:
        return f"the outputs are {_named(pair.folded.outputs)} instead of {_named(pair.original.outputs)}"
    if pair.original.inputs != pair.folded.inputs:
        found, expected = (", ".join(map(str, runner.inputs)) for runner in (pair.folded, pair.original))
        return f"the inputs are {found} instead of {expected}"
    return ""


def _named(names: list[str]) -> str:
    return ", ".join(repr(printable(name)) for name in names)


def _run_trials(pair: _Pair, run: ProviderRun, options: VerifyOptions, progress: Progress | None) -> ProviderRun:
    start = _find_sizes(pair.original, options)
    if isinstance(start, str):
        return replace(run, verdict="not verified", reason=start)
    run = replace(run, shapes=start.shapes, sizes=start.chosen)
    worst: list[OutputComparison] = []
    for trial in range(options.trials):
        if progress is not None:
            progress("verify", trial, options.trials)
        feeds = make_feeds(pair.original.inputs, start.shapes, options.seed, trial)
        try:
            reference = start.outputs if trial == 0 else pair.original.run(feeds)
        except CannotRunError as error:
            return replace(run, verdict="not verified", reason=f"the original does not run: {error}")
        try:
            outputs = _compare_once(pair, feeds, reference, options.seed)
        except CannotRunError as error:
            return _does_not_run(pair, feeds, run, error)
        if outputs is None:
            reason = "the original gives other outputs each time it runs (a random operator without a seed?)"
            return replace(run, verdict="not verified", reason=reason)
        worst = _worse_of(worst, outputs)
    return _judge(replace(run, outputs=tuple(worst), trials=options.trials))


def _does_not_run(pair: _Pair, feeds: Feeds, run: ProviderRun, error: CannotRunError) -> ProviderRun:
    """The folded model is to blame where the original still runs; else it is the memory, or the runtime."""
    try:
        pair.original.run(feeds)
    except CannotRunError:
        return replace(run, verdict="not verified", reason=f"neither model runs any more: {error}")
    return replace(run, verdict="different", reason=f"the folded model does not run: {error}")


@dataclass(frozen=True, slots=True)
class _Start:
    """Shapes that the original runs on, the sizes chosen for them, and what it put out in trial 0."""

    shapes: dict[str, tuple[int, ...]]
    chosen: dict[str, int]
    outputs: list[Any]


def _find_sizes(runner: Runner, options: VerifyOptions) -> _Start | str:
    """Try the attempts in order; or say why none runs."""
    if any(spec.dtype is None for spec in runner.inputs):
        names = ", ".join(repr(printable(spec.name)) for spec in runner.inputs if spec.dtype is None)
        return f"the values of input {names} cannot be made up: it is no plain tensor"
    problem = ""
    for sizes in ATTEMPTS:
        shapes, chosen = choose_shapes(runner.inputs, sizes, options.shapes, options.dims)
        try:
            outputs = runner.run(make_feeds(runner.inputs, shapes, options.seed, 0))
        except CannotRunError as error:
            problem = problem or str(error)
            if not chosen:
                break
        else:
            return _Start(shapes, chosen, outputs)
    return f"the original does not run on made-up inputs (give --shape or --dim?): {problem}"


def _compare_once(pair: _Pair, feeds: Feeds, reference: list[Any], seed: int) -> list[OutputComparison] | None:
    """Compare on one set of inputs; None where the original does not even agree with itself.

    Raises:
        CannotRunError: the folded model does not run.
    """
    names = pair.original.outputs
    found = pair.folded.run(feeds)
    if pair.original.provider != REFERENCE:
        outputs = compare_outputs(names, reference, found)
        if all(output.equal for output in outputs):
            return outputs
        if not all(output.equal for output in compare_outputs(names, reference, pair.original.run(feeds))):
            return None
    outputs = compare_outputs(names, reference, found, storage_type(load_graph(pair.model)))
    noise = compare_outputs(names, reference, pair.original.run(nudge(feeds, seed)))
    return [_within_noise(output, floor) for output, floor in zip(outputs, noise, strict=False)]


def _within_noise(output: OutputComparison, floor: OutputComparison) -> OutputComparison:
    """Widen the limit to the network's own noise, where that is larger than the usual rounding."""
    limit = min(NOISE_FACTOR * floor.relative, NOISE_CEILING)
    if output.equal or output.problem or limit <= output.limit:
        return output
    return replace(output, limit=limit, equal=output.relative <= limit)


def _worse_of(first: list[OutputComparison], second: list[OutputComparison]) -> list[OutputComparison]:
    if len(first) != len(second):
        return first or second
    badness = [(not output.equal, output.relative) for output in first]
    return [b if (not b.equal, b.relative) > bad else a for a, b, bad in zip(first, second, badness, strict=True)]


def _judge(run: ProviderRun) -> ProviderRun:
    wrong = [output for output in run.outputs if not output.equal]
    if wrong:
        return replace(run, verdict="different", reason=_difference(wrong[0]))
    if not any(output.elements for output in run.outputs):
        return replace(run, verdict="not verified", reason="all outputs are empty: nothing was compared")
    if not any(output.finite for output in run.outputs):
        reason = "the original's outputs are all NaN or infinite: nothing to compare"
        return replace(run, verdict="not verified", reason=reason)
    return replace(run, verdict="equal", reason="")


def _difference(output: OutputComparison) -> str:
    if output.problem:
        return f"output '{printable(output.name)}': {output.problem}"
    return (
        f"output '{printable(output.name)}' differs by {output.max_abs:.3g}, {output.relative:.3g} of its scale; "
        f"the limit is {output.limit:.3g}"
    )


def _arbitrate(run: ProviderRun, pair: _Pair, folded: Model, options: VerifyOptions) -> ProviderRun:
    """Ask float64 who is right.

    The original made the difference if the two models agree in float64, and the run of the folded one is no
    further from its float64 evaluation than the run of the original is from its own. The limits stay those of the
    run's type, because that is the type the folded weights were rounded to.
    """
    if run.provider == REFERENCE or any(output.problem for output in run.outputs):
        return run
    limits = {output.name: output.limit for output in run.outputs}
    exact: list[OutputComparison] = []
    try:
        first, second = ReferenceRunner(pair.model), ReferenceRunner(folded)
        for trial in range(options.trials):
            feeds = make_feeds(first.inputs, run.shapes, options.seed, trial)
            truth, found = first.run(feeds), second.run(feeds)
            exact = _worse_of(exact, compare_outputs(first.outputs, truth, found))
            before = compare_outputs(first.outputs, truth, _wide(pair.original.run(feeds)))
            after = compare_outputs(first.outputs, found, _wide(pair.folded.run(feeds)))
            if any(b.relative > max(2 * a.relative, limits[a.name]) for a, b in zip(before, after, strict=True)):
                return run
    except CannotRunError:
        return run
    if any(output.problem or output.relative > limits.get(output.name, 0.0) for output in exact):
        return run
    worst = max(output.relative for output in exact)
    reason = (
        f"in float64 the two agree to {worst:.2g} of the output's scale; the larger difference here is rounding "
        "in the run of the original"
    )
    return replace(run, verdict="equal", reason=reason)


def _wide(outputs: list[Any]) -> list[Any]:
    return [to_float64(value) if getattr(value, "dtype", None) in FLOAT_TYPES else value for value in outputs]
