"""All inputs that two models are compared on, one trial after the other.

Made-up inputs come in the kinds of `made`. The first trial finds sizes that the original runs on; the one with
uniform numbers takes another size for each free dimension, where the original runs on that too, and leaves optionals
out. What it does not run on is taken back, dimension by dimension. Given inputs are taken as they are.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Protocol, TypeVar

from onnx import ModelProto

from bnfold.errors import UsageError
from bnfold.rounding import Array
from bnfold.verification.feeds.branches import plan_branches
from bnfold.verification.feeds.conditions import Values
from bnfold.verification.feeds.made import KINDS, Recipe, make_feeds
from bnfold.verification.feeds.sizes import ATTEMPTS, Chosen, check_memory, choose_shapes, shapes_with
from bnfold.verification.feeds.spec import Feeds, InputSpec, tensors_only
from bnfold.verification.feeds.statistics import fits, follow_statistics
from bnfold.verification.feeds.uses import Use, find_uses, lightened
from bnfold.verification.providers import Provider
from bnfold.verification.runtime import CannotRunError, Model, OutOfTimeError, Settings, load_graph

T = TypeVar("T")
Look = Callable[[Feeds], T]
MOST_SINGLE = 8  # dimensions that are tried one by one, where not all can change at once


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of inputs.

    Attributes:
        name: its kind, or where it came from.
        feeds: the inputs.
        shapes: of the inputs.
        sizes: those of free dimensions that were chosen, as "input[axis]" or by symbol.
        labels: the right class of each sample, where they were given: int64 (N,), -1 where a sample has none.
    """

    name: str
    feeds: Feeds
    shapes: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    labels: Array | None = None


class Trials(Protocol):
    """Something that has inputs."""

    @property
    def count(self) -> int:
        """How many trials there are."""

    def first_to_run(self, index: int, look: Look[T]) -> tuple[Trial, T]:
        """The trial of that number, and what the original makes of it. Raises CannotRunError."""


@dataclass(slots=True)
class Given:
    """Inputs from files or a script."""

    trials: list[Trial]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.trials)

    def first_to_run(self, index: int, look: Look[T]) -> tuple[Trial, T]:
        """The trial of that number, and what the original makes of it.

        Raises:
            CannotRunError: it does not run.
        """
        trial = self.trials[index]
        try:
            return trial, look(trial.feeds)
        except CannotRunError as error:
            raise CannotRunError(f"the original does not run on {trial.name}: {error}") from None


@dataclass(slots=True)
class MadeUp:
    """Inputs that are made up.

    Attributes:
        model: the original.
        specs: its inputs, each with a dtype.
        trials: how many there are to be.
        seed: of the numbers.
        shapes: whole shapes, by input, that were asked for.
        dims: sizes that were asked for, by symbol.
        provider: where the start of the model runs alone, to see what its statistics want.
        settings: of the session for that.
    """

    model: Model
    specs: list[InputSpec]
    trials: int
    seed: int
    shapes: Mapping[str, tuple[int, ...]]
    dims: Mapping[str, int]
    provider: Provider
    settings: Settings = field(default_factory=Settings)
    _base: Chosen | None = None
    _least: Chosen | None = None
    _light: ModelProto | None = None
    _uses: dict[tuple[tuple[int, ...], ...], dict[str, Use]] = field(default_factory=dict)
    _plans: dict[tuple[tuple[int, ...], ...], list[Values]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many trials there are."""
        return self.trials

    def first_to_run(self, index: int, look: Look[T]) -> tuple[Trial, T]:
        """The trial of that number, and what the original makes of it.

        Raises:
            CannotRunError: the original runs on no inputs that were tried.
            UsageError: sizes were asked for that the model does not have.
        """
        if self._base is None:
            found = self._find_sizes(look)
            if index == 0:
                return found
        kind = KINDS[index % len(KINDS)]
        if kind == "uniform":
            varied = None
            with contextlib.suppress(OutOfTimeError):  # other sizes take too long: not these, then
                varied = self._varied(index, look)
            if varied is not None:
                return varied
        assert self._base is not None
        if kind != "running statistics":
            trial = self._trial(index, self._base)
            return trial, look(trial.feeds)
        trial = self._scaled(index, self._least or self._base)
        return trial, look(trial.feeds)

    def _trial(self, index: int, chosen: Chosen, recipe: Recipe | None = None) -> Trial:
        key = tuple(chosen.shapes.values())
        if key not in self._uses:
            self._uses[key] = self._find_uses(chosen)
            self._plans[key] = self._plan(chosen, self._uses[key])
        fixed = self._plans[key][index] if self._plans[key] else {}
        recipe = replace(recipe or Recipe(KINDS[index % len(KINDS)]), uses=self._uses[key], fixed=fixed)
        feeds = make_feeds(self.specs, chosen.shapes, self.seed, index, recipe)
        return Trial(recipe.kind, feeds, chosen.shapes, chosen.sizes)

    def _find_uses(self, chosen: Chosen) -> dict[str, Use]:
        if not any(spec.dtype is not None and spec.dtype.kind in "iuO" for spec in self.specs):
            return {}
        return find_uses(self._light_model(), self.specs, chosen.shapes)

    def _plan(self, chosen: Chosen, uses: Mapping[str, Use]) -> list[Values]:
        """Values that decide branches, for each trial; empty where no input does."""
        if not any(prod(chosen.shapes[spec.name]) == 1 for spec in self.specs):
            return []
        return plan_branches(self._light_model(), self.specs, chosen.shapes, uses, self.seed, self.trials)

    def _light_model(self) -> ModelProto:
        if self._light is None:
            self._light = lightened(load_graph(self.model))
        return self._light

    def _find_sizes(self, look: Look[T]) -> tuple[Trial, T]:
        """The first attempt that the original runs on."""
        problem = ""
        for sizes in ATTEMPTS:
            chosen = choose_shapes(self.specs, sizes, self.shapes, self.dims)
            trial = self._trial(0, chosen)
            try:
                found = look(trial.feeds)
            except OutOfTimeError:
                raise
            except CannotRunError as error:
                problem = problem or str(error)
                if not chosen.sizes:
                    break
            else:
                self._base = self._least = chosen
                return trial, found
        ways = "--shape, --dim, --input-data or --data-script"
        raise CannotRunError(f"the original does not run on made-up inputs (give {ways}?): {problem}")

    def _varied(self, index: int, look: Look[T]) -> tuple[Trial, T] | None:
        """The trial with another size for as many free dimensions as can be, optionals absent if they can be."""
        base = self._base
        assert base is not None
        best: tuple[Trial, T] | None = None
        absent = any(spec.is_optional for spec in self.specs)
        for is_absent in dict.fromkeys((absent, False)):
            best = self._try(index, {**base.sizes, **base.others}, look, absent=is_absent)
            if best is not None:
                return best
        sizes = base.sizes
        for name in list(base.others)[:MOST_SINGLE]:
            more = {**sizes, name: base.others[name]}
            found = self._try(index, more, look) if len(base.others) > 1 else None
            if found is not None:
                sizes, best = more, found
        return best

    def _try(
        self, index: int, sizes: dict[str, int], look: Look[T], *, absent: bool = False
    ) -> tuple[Trial, T] | None:
        assert self._base is not None
        shapes = shapes_with(self.specs, self.shapes, {**self.dims, **sizes})
        recipe = Recipe(KINDS[index % len(KINDS)], absent=absent)
        try:
            check_memory(shapes)
            chosen = replace(self._base, shapes=shapes, sizes=sizes)
            trial = self._trial(index, chosen, recipe)
            found = look(trial.feeds)
        except OutOfTimeError:
            raise
        except (CannotRunError, UsageError):
            return None
        self._least = min(self._base, chosen, key=_elements)
        return trial, found

    def _scaled(self, index: int, chosen: Chosen) -> Trial:
        """With the mean and scale that the first BatchNormalization expects; normal where none is known."""
        trial = self._trial(index, chosen)
        scaling = follow_statistics(self.model, trial.feeds, self.provider, self.settings)
        if not scaling or not fits(scaling, tensors_only(trial.feeds)):
            return replace(trial, name="normal")
        return self._trial(index, chosen, Recipe(trial.name, scaling=scaling))


def _elements(chosen: Chosen) -> int:
    return sum(map(prod, chosen.shapes.values()))
