"""The verdict on two models: on each provider that was asked for, and over all of them."""

import contextlib
from dataclasses import dataclass, replace

from bnfold.document import Document
from bnfold.errors import BnfoldError
from bnfold.verification import Progress, ProviderRun, Verification, VerifyOptions, combine
from bnfold.verification.anchors import anchored
from bnfold.verification.endtoend import arbitrate
from bnfold.verification.feeds import Feeds
from bnfold.verification.feeds.failing import check_folder
from bnfold.verification.feeds.trials import Trial
from bnfold.verification.layers import Sites, open_sites
from bnfold.verification.pair_runs import PairOfRuns, load_pair
from bnfold.verification.placement import placement_problem
from bnfold.verification.providers import CUDA, Provider, parse_provider
from bnfold.verification.runs import Runs
from bnfold.verification.runtime import CannotRunError, Model, NotInstalledError
from bnfold.verification.tolerances import Tolerances
from bnfold.verification.trialruns import TrialRuns
from bnfold.verification.verdict import judged_run


@dataclass(frozen=True, slots=True)
class _Task:
    """Two models to compare; where they differ, if that is known; and how to go about it."""

    original: Model
    folded: Model
    sites: Sites | None
    options: VerifyOptions
    progress: Progress | None


def verify_pair(
    original: Model,
    folded: Model,
    options: VerifyOptions,
    progress: Progress | None = None,
    fed: dict[Provider, Trial] | None = None,
    documents: tuple[Document, Document] | None = None,
) -> Verification:
    """Compare two models on every requested provider.

    Args:
        original: the one.
        folded: the other.
        options: what to run.
        progress: called with a stage's name, how far it is, and how far it goes.
        fed: takes the first inputs on each provider.
        documents: both models, where they have been read already.

    Raises:
        UsageError: an unknown provider, a shape that fits no input, or data that cannot be used.
        OutputError: what differs cannot be saved.
    """
    if options.save_failing is not None:
        check_folder(options.save_failing)
    fed = {} if fed is None else fed
    with contextlib.ExitStack() as stack:
        try:
            sites = anchored(stack.enter_context(open_sites(original, folded, documents)))
        except (BnfoldError, RecursionError):
            sites = None  # one of them is no model to look into; running them will tell
        task = _Task(original, folded, sites, options, progress)
        providers = dict.fromkeys(parse_provider(provider) for provider in options.providers)
        return combine(tuple(_verify_on(provider, task, fed) for provider in providers))


def _verify_on(provider: Provider, task: _Task, fed: dict[Provider, Trial]) -> ProviderRun:
    options, sites = task.options, task.sites
    if task.progress is not None:
        task.progress("verify", 0, options.trials)
    try:
        pair = load_pair(provider, task.original, task.folded, sites, options)
    except CannotRunError as error:
        run = ProviderRun(provider.name, "", "not verified", str(error), options=dict(provider.options))
        return run if isinstance(error, NotInstalledError) else _by_algebra_alone(run, sites)
    if not pair.original.outputs:
        return pair.described("not verified", "the model has no outputs: nothing can be compared")
    Tolerances(options.rtol, options.atol).check(pair.original.outputs)
    problem = pair.interface_problem()
    trials = TrialRuns(pair, sites, options, pair.described("different", problem))
    try:
        run = trials.without_the_folded() if problem else _ran(trials, task)
    except MemoryError:
        return replace(
            trials.run, verdict="not verified", reason="the values do not fit into memory (--shape or --dim?)"
        )
    if trials.trials:
        fed[provider] = trials.trials[0]
    if run.verdict == "different" and trials.failing is not None and options.save_failing is not None:
        run = replace(run, saved=str(trials.failing.save(options.save_failing)))
    return replace(run, reason="; ".join(text for text in (pair.stand_in, run.reason) if text))


def _ran(trials: TrialRuns, task: _Task) -> ProviderRun:
    """All trials, and a second opinion where only the outputs differ, or where it has to be sure what ran."""
    run = trials.go(task.progress)
    if run.verdict == "different" and run.outputs and not any(site.wrong for site in run.sites):
        run = arbitrate(run, trials.pair, task.folded, trials.trials, task.options.seed)
    if run.verdict == "equal" and trials.pair.where.name == CUDA:
        run = _if_placed(run, trials.pair, task.folded, trials.trials[0].feeds)
    return run


def _by_algebra_alone(run: ProviderRun, sites: Sites | None) -> ProviderRun:
    """The verdict where the original does not run: different where weights are wrong, else not verified."""
    run = replace(run, sites=sites.judge(Runs({}, {})) if sites is not None else ())
    if not any(check.wrong for check in run.sites):
        return run
    judged = judged_run(run)
    return replace(judged, reason=f"{judged.reason} (the original could not be run: {run.reason})")


def _if_placed(run: ProviderRun, pair: PairOfRuns, folded: Model, feeds: Feeds) -> ProviderRun:
    """The verdict stands where all products of both models ran on the provider that was asked for."""
    models = [("the original", pair.model), ("the folded model", folded)]
    problem = placement_problem(models, pair.where, pair.settings, feeds)
    return replace(run, verdict="not verified", reason=problem) if problem else run
