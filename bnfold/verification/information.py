"""What is worth knowing beside the verdict: how the pair compares as users deploy it, and across providers.

Never part of the verdict. At onnxruntime's default optimisation level it folds the original itself, so a comparison
there says how far apart two deployments are, not whether a fold is right. Two providers compute in another order,
with other algorithms, so what they differ by says nothing about the two models.
"""

import itertools
from collections.abc import Iterator, Mapping

from bnfold.verification import Information, ProviderRun, VerifyOptions
from bnfold.verification.compare import compare_outputs
from bnfold.verification.feeds.trials import Trial
from bnfold.verification.pair_runs import settings_of
from bnfold.verification.providers import REFERENCE, Provider
from bnfold.verification.runtime import CannotRunError, Model, OrtRunner

DEFAULT_LEVEL = "at onnxruntime's default optimisation level"


def gather(
    original: Model,
    folded: Model,
    options: VerifyOptions,
    runs: tuple[ProviderRun, ...],
    fed: Mapping[Provider, Trial],
) -> Iterator[Information]:
    """Compare what ran in other ways too, on the first of its inputs (`fed`)."""
    names = {run.provider for run in runs if run.outputs}  # and not of a stand-in
    ran = [(provider, trial) for provider, trial in fed.items() if provider.name in names - {REFERENCE}]
    for provider, trial in ran:
        yield _at_default_level(original, folded, options, provider, trial)
    for first, second in itertools.combinations(ran, 2):
        yield _across(folded, options, first, second)


def _at_default_level(
    original: Model, folded: Model, options: VerifyOptions, provider: Provider, trial: Trial
) -> Information:
    title = f"both models {DEFAULT_LEVEL}, {provider.name}"
    settings = settings_of(options, optimised=True)
    try:
        first = OrtRunner(original, provider, settings)
        expected = first.run(trial.feeds)
        found = OrtRunner(folded, provider, settings).run(trial.feeds)
    except CannotRunError as error:
        return Information(title, reason=str(error))
    return Information(title, tuple(compare_outputs(first.outputs, expected, found)))


def _across(folded: Model, options: VerifyOptions, *sides: tuple[Provider, Trial]) -> Information:
    title = f"the folded model on {sides[1][0].name} against {sides[0][0].name}"
    try:
        runners = [OrtRunner(folded, provider, settings_of(options)) for provider, _ in sides]
        expected, found = (runner.run(sides[0][1].feeds) for runner in runners)
    except CannotRunError as error:
        return Information(title, reason=str(error))
    return Information(title, tuple(compare_outputs(runners[0].outputs, expected, found)))
