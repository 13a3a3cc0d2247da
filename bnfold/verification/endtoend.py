"""Layer 3: the outputs of whole runs, judged against the model's own noise, with float64 as the arbiter."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bnfold.rounding import FLOAT_TYPES, to_float64
from bnfold.verification import ProviderRun, VerifyOptions
from bnfold.verification.compare import OutputComparison, compare_outputs
from bnfold.verification.feeds import Feeds, nudge
from bnfold.verification.feeds.trials import Trial
from bnfold.verification.pair_runs import PairOfRuns
from bnfold.verification.providers import CUDA, REFERENCE
from bnfold.verification.reference import ReferenceRunner, storage_type
from bnfold.verification.runtime import CannotRunError, Model, load_graph
from bnfold.verification.tolerances import Tolerances
from bnfold.verification.wobble import noise

# How far the noise of a network may excuse a difference: this many times what a one-ulp change of its inputs
# does to the original, and never more than NOISE_CEILING of the output's scale.
NOISE_FACTOR = 8
NOISE_CEILING = 0.01
TRUSTED = 256  # how many times its noise the original may be off float64
TF32 = np.dtype(np.float16)  # which has TF32's significand of 11 bits


def compare_once(
    pair: PairOfRuns, feeds: Feeds, reference: list[Any], found: list[Any], options: VerifyOptions
) -> list[OutputComparison] | None:
    """Compare on one set of inputs; None where the original does not even agree with itself."""
    names = pair.original.outputs
    asked = Tolerances(options.rtol, options.atol)
    coarse = TF32 if options.tf32 and pair.original.provider == CUDA else None
    if pair.original.provider != REFERENCE:
        outputs = compare_outputs(names, reference, found, coarse, asked)
        if all(output.equal for output in outputs):
            return outputs
        if not all(output.equal for output in compare_outputs(names, reference, pair.original.run(feeds), coarse)):
            return None
    outputs = compare_outputs(names, reference, found, coarse or storage_type(load_graph(pair.model)), asked)
    moved = compare_outputs(names, reference, pair.original.run(nudge(feeds, options.seed)))
    return [_within_noise(output, floor) for output, floor in zip(outputs, moved, strict=False)]


def _within_noise(output: OutputComparison, floor: OutputComparison) -> OutputComparison:
    """Widen the limit to the network's own noise, where that is larger than the usual rounding."""
    limit = min(NOISE_FACTOR * floor.relative, NOISE_CEILING)
    if output.equal or output.problem or output.tolerance or limit <= output.limit:
        return output
    return replace(output, limit=limit, equal=output.relative <= limit)


def worse_of(first: list[OutputComparison], second: list[OutputComparison]) -> list[OutputComparison]:
    """Of each output the worse comparison."""
    if len(first) != len(second):
        return first or second
    badness = [(not output.equal, output.relative) for output in first]
    return [b if (not b.equal, b.relative) > bad else a for a, b, bad in zip(first, second, badness, strict=True)]


def arbitrate(run: ProviderRun, pair: PairOfRuns, folded: Model, trials: Sequence[Trial], seed: int) -> ProviderRun:
    """Ask float64 who is right.

    The original made the difference if the two models agree in float64, and the run of the folded one is no
    further from its float64 evaluation than the run of the original is from its own. The limits stay those of the
    run's type, because that is the type the folded weights were rounded to.
    """
    if run.provider == REFERENCE or any(o.problem or (o.tolerance and not o.equal) for o in run.outputs):
        return run
    limits = {output.name: output.limit for output in run.outputs}
    floors = noise(pair, trials, seed)
    exact: list[OutputComparison] = []
    try:
        limit = pair.settings.time_limit
        first, second = ReferenceRunner(pair.model, limit), ReferenceRunner(folded, limit)
        for trial in trials:
            feeds = trial.feeds
            truth, found = first.run(feeds), second.run(feeds)
            exact = worse_of(exact, compare_outputs(first.outputs, truth, found))
            before = compare_outputs(first.outputs, truth, _wide(pair.original.run(feeds)))
            after = compare_outputs(first.outputs, found, _wide(pair.folded.run(feeds)))
            if any(b.relative > max(2 * a.relative, limits[a.name]) for a, b in zip(before, after, strict=True)):
                return run
            if any(a.relative > max(TRUSTED * floors.get(a.name, 0.0), limits[a.name]) for a in before):
                return run  # not rounding: the evaluator reads the model otherwise than the runtime does
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
