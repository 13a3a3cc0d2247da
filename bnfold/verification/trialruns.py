"""Both models on the same inputs, trial by trial: sites and outputs, the worst of each over the trials."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bnfold.errors import UsageError
from bnfold.rounding import Array
from bnfold.text import printable
from bnfold.verification import Fed, Progress, ProviderRun, VerifyOptions
from bnfold.verification.anchors import judged
from bnfold.verification.arbiter import own_errors
from bnfold.verification.boundaries import Ran, by_decisions
from bnfold.verification.compare import OutputComparison
from bnfold.verification.decisions import decided
from bnfold.verification.endtoend import compare_once, worse_of
from bnfold.verification.feeds.failing import Failing
from bnfold.verification.feeds.given import given_trials
from bnfold.verification.feeds.labels import Tally
from bnfold.verification.feeds.trials import MadeUp, Trial, Trials
from bnfold.verification.layers import Sites
from bnfold.verification.pair_runs import PairOfRuns
from bnfold.verification.providers import CPU, CUDA, REFERENCE, Provider
from bnfold.verification.runs import Runs
from bnfold.verification.runtime import CannotRunError, OutOfTimeError
from bnfold.verification.sitecheck import SiteCheck
from bnfold.verification.verdict import coverage_of, explained, judged_run, without_reason, worse_checks
from bnfold.verification.wobble import FACTOR, unexplained

# How far the fast algorithms of CUDA's convolutions go beyond the bound of a plain sum, with equal weights on both
# sides; and the unit roundoff of TF32, which has 10 bits behind the point.
WINOGRAD = 8.0
TF32_ROUNDOFF = 2.0**-11
MANY = 8  # sites that are not wrong at once without any output showing it


class EndedError(Exception):
    """The trials cannot go on; `run` has the verdict."""

    def __init__(self, run: ProviderRun) -> None:
        super().__init__(run.reason)
        self.run = run


@dataclass(slots=True)
class TrialRuns:
    """The trials of two models on one provider.

    Attributes:
        pair: both models, ready to run.
        sites: where they differ; None where that is not known.
        options: of the comparison.
        run: what has been found so far.
        trials: what was fed.
        failing: the first trial that differs.
    """

    pair: PairOfRuns
    sites: Sites | None
    options: VerifyOptions
    run: ProviderRun
    trials: list[Trial] = field(default_factory=list)
    failing: Failing | None = None
    _worst: list[OutputComparison] = field(default_factory=list)
    _tally: Tally = field(default_factory=Tally)
    _numbers: Runs | None = None

    def go(self, progress: Progress | None) -> ProviderRun:
        """Run all trials; the verdict."""
        trials = self._sources()
        if isinstance(trials, str):
            return replace(self.run, verdict="not verified", reason=trials)
        try:
            for number in range(trials.count):
                if progress is not None:
                    progress("verify", number, trials.count)
                self._once(number, trials)
        except EndedError as end:
            return end.run
        first = self.trials[0]
        run = replace(self.run, shapes=first.shapes, sizes=first.sizes, accuracy=self._tally.accuracy)
        run = judged_run(replace(run, outputs=tuple(self._worst), trials=trials.count))
        apart = [output for output in run.outputs if not output.equal and not output.turned]
        if self.sites is None or run.verdict != "equal" or not apart:
            return run
        behind = decided(self.sites.pairing.original, self.pair.original.outputs)
        plain = [output for output in apart if not behind.get(output.name.split("[")[0], False)]
        unseen = unexplained(self.pair, self.trials, plain, self.options.seed)
        own = own_errors(self.sites, self._numbers) if self._numbers is not None else None
        if unseen is None or (own is not None and FACTOR * own.relative >= unseen[0].relative):
            return explained(run, own)
        return without_reason(run, *unseen)

    def without_the_folded(self) -> ProviderRun:
        """What the sites say where the folded model cannot be run: by what the original makes alone."""
        if self.sites is None:
            return self.run
        trials = self._sources()
        inside: dict[str, Any] = {}
        with contextlib.suppress(CannotRunError, UsageError):
            if not isinstance(trials, str):
                inside = trials.first_to_run(0, self.pair.original.look_inside)[1][1]
        return replace(self.run, sites=self.sites.judge(self._runs(inside, {})))

    def _once(self, number: int, trials: Trials) -> None:
        """One trial.

        Raises:
            EndedError: it was the last one that can be run.
        """
        pair = self.pair
        try:
            trial, (reference, inside) = trials.first_to_run(number, pair.original.look_inside)
        except CannotRunError as error:
            raise EndedError(self._unless_different(error)) from None
        self.trials.append(trial)
        self.run = replace(self.run, inputs=(*self.run.inputs, Fed(trial.name, trial.shapes, trial.sizes)))
        found: list[Any] = []
        failing = Failing(self.run.provider, number, trial, pair.original.outputs, reference, found)
        try:
            own, inside_folded = pair.folded.look_inside(trial.feeds)
            found += own
            outputs = compare_once(pair, trial.feeds, reference, found, self.options)
        except CannotRunError as error:
            raise EndedError(self._folded_fails(trial, inside, failing, error)) from None
        latest = self._judge_sites(self._runs(inside, inside_folded), outputs)
        if outputs is None:
            reason = "the original gives other outputs each time it runs (a custom operator that is random?)"
            raise EndedError(replace(self.run, verdict="not verified", reason=reason))
        if self.sites is not None:
            ran = Ran(trial.feeds, reference, found, self.options.seed)
            covered = self.run.coverage == "sites"
            outputs = by_decisions(pair, self.sites.pairing.original, ran, outputs, covered=covered)
        if judged_run(replace(self.run, outputs=tuple(outputs), sites=latest)).verdict == "different":
            self.failing = self.failing or failing
        self._tally.add(trial.labels, pair.original.outputs, reference, found)
        self._worst = worse_of(self._worst, outputs)

    def _judge_sites(self, numbers: Runs, outputs: list[OutputComparison] | None) -> tuple[SiteCheck, ...]:
        """The verdicts on this trial's sites; the worst so far go into `run`.

        Where most are wrong and all outputs agree, the names are: two models whose values were numbered each on its
        own. Then the outputs decide.
        """
        held, self._numbers = self.sites, numbers
        self.sites, latest = judged(held, numbers)
        wrong = sum(check.wrong for check in latest)
        agree = bool(outputs) and all(output.equal for output in outputs or ())
        if self.sites is not None and agree and wrong >= MANY and 2 * wrong >= len(latest):
            self.sites = self.sites.by_edges()
            latest = self.sites.judge(numbers)
        checks = worse_checks(self.run.sites if self.sites is held else (), latest)
        self.run = replace(self.run, sites=checks, coverage=coverage_of(self.sites, checks))
        return latest

    def _folded_fails(
        self, trial: Trial, inside: Mapping[str, Any], failing: Failing, error: CannotRunError
    ) -> ProviderRun:
        """The verdict where the folded model does not run: to blame where the original still does."""
        if self.sites is not None:
            latest = self.sites.judge(self._runs(inside, {}))
            self.run = replace(self.run, sites=worse_checks(self.run.sites, latest))
        if isinstance(error, OutOfTimeError):
            return self._unless_different(error)
        try:
            self.pair.original.run(trial.feeds)
        except CannotRunError:
            return replace(self.run, verdict="not verified", reason=f"neither model runs any more: {error}")
        self.failing = self.failing or failing
        return replace(self.run, verdict="different", reason=f"the folded model does not run: {error}")

    def _unless_different(self, error: CannotRunError) -> ProviderRun:
        """The trials went no further; a difference that was found before, and that nothing excuses, stays one."""
        told = tuple(output for output in self._worst if output.problem or output.tolerance)
        run = judged_run(replace(self.run, outputs=told))
        return run if run.verdict == "different" else replace(self.run, verdict="not verified", reason=str(error))

    def _sources(self) -> Trials | str:
        """The inputs to compare on; or why there are none."""
        options, specs = self.options, self.pair.original.inputs
        given = given_trials(options.input_data, options.data_script, specs)
        if given is not None:
            return given
        strange = [spec for spec in specs if spec.dtype is None]
        if strange:
            names = ", ".join(repr(printable(spec.name)) for spec in strange)
            return f"the values of input {names} cannot be made up: it is no tensor, sequence or optional of tensors"
        where = Provider(CPU) if self.pair.original.provider == REFERENCE else self.pair.where
        return MadeUp(
            self.pair.model, specs, options.trials, options.seed, options.shapes, options.dims, where,
            self.pair.settings,
        )  # fmt: skip

    def _runs(self, original: Mapping[str, Any], folded: Mapping[str, Any]) -> Runs:
        """The numbers inside both, and what the provider's algorithms may add to rounding."""
        if self.pair.original.provider != CUDA:
            return Runs(_arrays(original), _arrays(folded))
        return Runs(_arrays(original), _arrays(folded), WINOGRAD, TF32_ROUNDOFF if self.options.tf32 else 0.0)


def _arrays(values: Mapping[str, Any]) -> dict[str, Array]:
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
