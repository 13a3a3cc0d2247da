"""Both models of a comparison, ready to run on one provider; the original also puts out values from inside."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bnfold.graph import GraphFacts
from bnfold.text import printable
from bnfold.verification import ProviderRun, Verdict, VerifyOptions
from bnfold.verification.exposed import exposing
from bnfold.verification.feeds import Feeds
from bnfold.verification.layers import Sites
from bnfold.verification.providers import CPU, REFERENCE, Provider
from bnfold.verification.reference import ReferenceRunner
from bnfold.verification.runtime import CannotRunError, Model, NotInstalledError, OrtRunner, Runner, Settings


class LookingInside:
    """One of the models, and the numbers at the values `inside` that sites are judged by.

    The runner puts them out behind the model's own outputs; or another one does, `inner`, where they have names in a
    copy only.
    """

    def __init__(self, runner: Runner, inside: tuple[str, ...] = (), inner: Runner | None = None) -> None:
        self._runner, self._inside, self._inner = runner, inside, inner
        self.provider, self.runtime, self.inputs = runner.provider, runner.runtime, runner.inputs
        self.options: Mapping[str, str] = getattr(runner, "options", {})
        self.device: str = getattr(runner, "device", "")
        self.outputs = runner.outputs if inner is not None else runner.outputs[: len(runner.outputs) - len(inside)]

    def run(self, feeds: Feeds) -> list[Any]:
        """The outputs of one run."""
        return self._runner.run(feeds)[: len(self.outputs)]

    def look_inside(self, feeds: Feeds) -> tuple[list[Any], dict[str, Any]]:
        """The outputs of one run, and the numbers inside, inputs included."""
        count = len(self.outputs)
        found = self._runner.run(feeds)
        behind = (found if self._inner is None else self._inner.run(feeds))[count:]
        own = dict(zip(self.outputs, found[:count], strict=True))
        return found[:count], {**feeds, **own, **dict(zip(self._inside, behind, strict=True))}


@dataclass(frozen=True, slots=True)
class PairOfRuns:
    """Both models, ready to run on one provider.

    Attributes:
        model: the original.
        original: what runs it.
        folded: what runs the other.
        where: the provider.
        settings: of the sessions.
        unloadable: why the folded model does not load, although the original does; empty where it does.
        stand_in: a sentence where another evaluator stood in for the provider.
    """

    model: Model
    original: LookingInside
    folded: LookingInside
    where: Provider
    settings: Settings = field(default_factory=Settings)
    stand_in: str = ""
    unloadable: str = ""

    def original_with(self, values: Iterable[str]) -> LookingInside:
        """The original in another session, which puts out `values` of its main graph as well.

        Raises:
            CannotRunError: it cannot put one of them out.
        """
        inside = tuple(name for name in values if name not in self.original.outputs)
        inside = tuple(name for name in inside if name not in {spec.name for spec in self.original.inputs})
        if self.original.provider == REFERENCE:
            return _reference(self.model, inside, self.settings)
        return LookingInside(OrtRunner(exposing(self.model, inside), self.where, self.settings), inside)

    def described(self, verdict: Verdict, reason: str) -> ProviderRun:
        """A verdict, with what ran where."""
        runner = self.original
        run = ProviderRun(runner.provider, runner.runtime, verdict, reason)
        return replace(run, options=runner.options, device=runner.device)

    def interface_problem(self) -> str:
        """What makes it useless to run both on the same inputs; empty where nothing does."""
        if self.unloadable:
            return f"the folded model does not load: {self.unloadable}"
        if self.original.outputs != self.folded.outputs:
            return f"the outputs are {_named(self.folded.outputs)} instead of {_named(self.original.outputs)}"
        if self.original.inputs != self.folded.inputs:
            found, expected = (", ".join(map(str, runner.inputs)) for runner in (self.folded, self.original))
            return f"the inputs are {found} instead of {expected}"
        return ""


def settings_of(options: VerifyOptions, *, optimised: bool = False) -> Settings:
    """How the sessions of a comparison are made."""
    return Settings(options.threads, options.custom_op_libraries, options.tf32, optimised, options.time_limit)


def load_pair(
    provider: Provider, original: Model, folded: Model, sites: Sites | None, options: VerifyOptions
) -> PairOfRuns:
    """Sessions for both. Where onnxruntime cannot load the original on the CPU, the reference stands in.

    Raises:
        CannotRunError: the original cannot be run.
    """
    inside, inside_folded = _inside(sites)
    settings = settings_of(options)
    if provider.name == REFERENCE:
        first, second = _reference(original, inside, settings), _reference(folded, inside_folded, settings)
        return PairOfRuns(original, first, second, provider, settings)
    try:
        first = _exposed(original, inside, provider, settings, sites.models[0] if sites else original)
    except CannotRunError as error:
        if provider.name != CPU or isinstance(error, NotInstalledError):
            raise
        return _stand_in(original, folded, sites, settings, str(error))
    try:
        second = _exposed(folded, inside_folded, provider, settings, sites.models[1] if sites else folded)
    except CannotRunError as error:
        return PairOfRuns(original, first, first, provider, settings, unloadable=str(error))
    return PairOfRuns(original, first, second, provider, settings)


def _inside(sites: Sites | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The values that each model has to put out beside its outputs, so that sites can be judged."""
    if sites is None:
        return (), ()
    first, second = sites.needed
    return _made(sites.pairing.original, first), _made(sites.pairing.folded, second)


def _made(facts: GraphFacts, names: frozenset[str]) -> tuple[str, ...]:
    own = {value.name for value in facts.model.graph.output}
    return tuple(sorted(name for name in names if name in facts.producers and name not in own))


def _exposed(
    model: Model, inside: tuple[str, ...], provider: Provider, settings: Settings, looked_into: Model
) -> LookingInside:
    """A session that puts out values from inside too (of `looked_into`, the same); without them where it cannot."""
    with contextlib.suppress(CannotRunError):
        if inside and looked_into is model:
            return LookingInside(OrtRunner(exposing(model, inside), provider, settings), inside)
        if inside:
            inner = OrtRunner(exposing(looked_into, inside), provider, settings)
            return LookingInside(OrtRunner(model, provider, settings), inside, inner)
    return LookingInside(OrtRunner(model, provider, settings))


def _reference(model: Model, inside: tuple[str, ...], settings: Settings) -> LookingInside:
    runner = ReferenceRunner(exposing(model, inside) if inside else model, settings.time_limit)
    return LookingInside(runner, inside)


def _stand_in(original: Model, folded: Model, sites: Sites | None, settings: Settings, reason: str) -> PairOfRuns:
    why = f"the reference evaluator stood in, because onnxruntime cannot run the original: {reason}"
    inside, inside_folded = _inside(sites)
    try:
        first, second = _reference(original, inside, settings), _reference(folded, inside_folded, settings)
    except CannotRunError as error:
        raise CannotRunError(f"onnxruntime cannot load the original: {reason}; {error}") from None
    return PairOfRuns(original, first, second, Provider(REFERENCE), settings, why)


def _named(names: list[str]) -> str:
    return ", ".join(repr(printable(name)) for name in names)
