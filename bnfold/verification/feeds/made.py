"""Numbers for inputs: seeded, of the type, shape and range that the model wants.

Trials come in three kinds, in turn: standard normal, uniform in [-1, 1), and normal with the mean and scale that let
a BatchNormalization see what its running statistics describe (`statistics`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bnfold.rounding import Array, round_once
from bnfold.verification.feeds.roles import Bound
from bnfold.verification.feeds.spec import Feeds, InputSpec, each_array
from bnfold.verification.feeds.uses import Use

KINDS = ("normal", "uniform", "running statistics")
_WORDS = ("bnfold",)
_ELEMENTS = 3  # of a sequence


@dataclass(frozen=True, slots=True)
class Recipe:
    """How inputs are made, beside their seed.

    Attributes:
        kind: one of KINDS.
        uses: what whole numbers and text are used for, by input.
        scaling: mean and scale of floats, by input; (0, 1) elsewhere.
        absent: whether optionals are left out.
        fixed: the one number of inputs that decide which branches run, by input.
    """

    kind: str = "normal"
    uses: Mapping[str, Use] = field(default_factory=dict)
    scaling: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    absent: bool = False
    fixed: Mapping[str, float] = field(default_factory=dict)


def make_feeds(
    specs: list[InputSpec],
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    trial: int,
    recipe: Recipe | None = None,
) -> Feeds:
    """One set of inputs. Every spec has a dtype.

    Floats are as `recipe.kind` says; whole numbers in the range that they are used in, else over the whole range of
    their type where that has one byte, 0 to 255 where they are images, and otherwise 0 or 1, an index that any table
    has.
    """
    recipe = recipe or Recipe(KINDS[trial % len(KINDS)])
    feeds: Feeds = {}
    for i, spec in enumerate(specs):
        rng = np.random.default_rng([seed, trial, i])
        if spec.is_optional and recipe.absent:
            feeds[spec.name] = None
        elif spec.name in recipe.fixed:
            feeds[spec.name] = np.full(shapes[spec.name], recipe.fixed[spec.name]).astype(spec.dtype)
        elif spec.is_sequence:
            feeds[spec.name] = [_values(rng, spec, shapes[spec.name], recipe) for _ in range(_ELEMENTS)]
        else:
            feeds[spec.name] = _values(rng, spec, shapes[spec.name], recipe)
    return feeds


def _values(rng: np.random.Generator, spec: InputSpec, shape: tuple[int, ...], recipe: Recipe) -> Array:
    dtype = spec.dtype
    assert dtype is not None
    use = recipe.uses.get(spec.name, Use())
    if dtype.kind == "O":
        words = use.words or (("0", "1", "2") if use.is_number else _WORDS)
        return np.array(rng.choice(words, shape), dtype=object)
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape)).astype(bool)
    if dtype.kind in "iu":
        return _whole(rng, dtype, shape, use)
    if dtype.kind == "c":
        return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    drawn = rng.uniform(-1, 1, shape) if recipe.kind == "uniform" else rng.standard_normal(shape)
    values: NDArray[np.float64] = np.asarray(drawn)
    if spec.name in recipe.scaling:
        mean, scale = recipe.scaling[spec.name]
        values = mean + scale * values
    return round_once(values, dtype)


def _whole(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...], use: Use) -> Array:
    """Whole numbers in the range that their use and their type allow."""
    limits = np.iinfo(dtype)
    bound = use.bound
    if bound is None and dtype.itemsize == 1:
        bound = Bound(int(limits.min), int(limits.max))
    elif bound is None:
        bound = Bound(0, min(255, int(limits.max))) if use.is_image and len(shape) >= 4 else Bound(0, 1)
    if bound.pattern and len(bound.pattern) == int(np.prod(shape)):
        return np.array(bound.pattern, dtype).reshape(shape)
    low = min(max(bound.low, int(limits.min)), int(limits.max))
    high = max(min(bound.high, int(limits.max)), low)
    found = _distinct(rng, bound, shape, high - low + 1)
    return (np.asarray(rng.integers(low, high, shape, endpoint=True)) if found is None else found + low).astype(dtype)


def _distinct(
    rng: np.random.Generator, bound: Bound, shape: tuple[int, ...], choices: int
) -> NDArray[np.int64] | None:
    """Numbers from 0 on, no two the same where they must not be; None where they may be, or there are too few."""
    if bound.distinct is None or not shape:
        return None
    axis = 0 if bound.distinct == "rows" else bound.distinct
    table = (-1, shape[-1]) if bound.distinct == "rows" else shape
    drawn = rng.random(shape).reshape(table)
    return np.argsort(drawn, axis=axis).reshape(shape) if drawn.shape[axis] <= choices else None


def nudge(feeds: Feeds, seed: int) -> Feeds:
    """The same inputs with every float moved to a neighbouring number of its type, up or down at random."""
    rng = np.random.default_rng([seed, 1])
    return {name: each_array(lambda values: nudged(values, rng), value) for name, value in feeds.items()}


def nudged(values: Array, rng: np.random.Generator) -> Array:
    """Floats moved to a neighbouring number of their type, up or down at random; anything else as it is."""
    if values.dtype.kind != "f" or values.dtype.itemsize < 2:
        return values
    towards = np.where(rng.integers(0, 2, values.shape) == 1, np.inf, -np.inf).astype(values.dtype)
    return np.asarray(np.nextafter(values, towards))
