"""Inputs that decide which branches of an If run: over the trials, every branch that can be reached is.

    is_training -> Not -> If                 False, True
    step -> Greater (., 10) -> If            10, 11        (and 9)

What makes an If's condition out of single numbers (Booleans, whole numbers, floats) and constants alone is evaluated
by onnx's reference evaluator for a few values of each: those at, just below and just above each constant on the way.
Then, trial by trial, the values are taken that reach most of the branches not reached yet, the rare ones above all;
nested ones count where those around them are taken. (Drawn at random, one branch of two goes unseen in every fourth
set of three trials.)
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
from onnx import ModelProto

from bnfold.verification.feeds.conditions import Branch, Condition, IfNode, Scope, Single, Values
from bnfold.verification.feeds.spec import InputSpec
from bnfold.verification.feeds.uses import Use

_MOST_VALUES = 16  # of one input
_MOST_SETS = 512  # of values of all inputs


def plan_branches(
    model: ModelProto,
    specs: list[InputSpec],
    shapes: Mapping[str, tuple[int, ...]],
    uses: Mapping[str, Use],
    seed: int,
    trials: int,
) -> list[Values]:
    """The values of single numbers that decide branches, for each trial; empty where nothing is decided so.

    Args:
        model: as `lightened` makes it.
        specs: its inputs, each with a dtype.
        shapes: what shapes they are going to have.
        uses: what else whole numbers are used for.
        seed: for the order, where several sets of values reach as much.
        trials: how many there are to be.
    """
    single = {
        spec.name: Single(spec.dtype, shapes[spec.name])
        for spec in specs
        if spec.dtype is not None and spec.dtype.kind in "biuf" and not spec.wraps and prod(shapes[spec.name]) == 1
    }
    if not single:
        return []
    scope = Scope(model, single)
    conditions = {one.condition: scope.condition(one.condition) for one in scope.ifs}
    known = {name: found for name, found in conditions.items() if found is not None and found.inputs}
    deciding = {name for found in known.values() for name in found.inputs}
    deciding |= {name for name, one in single.items() if one.dtype.kind == "b"}
    if not deciding:
        return []
    near = sorted({number for found in known.values() for number in found.numbers})
    choices = {name: _choices(single[name], near, uses.get(name, Use())) for name in sorted(deciding)}
    sets = _sets(choices, seed)
    reached = [_reached(scope.ifs, known, values, single) for values in sets]
    return [sets[index] for index in _greedy(reached, trials)]


def _choices(one: Single, near: list[float], use: Use) -> list[float]:
    """The values to try for one input: either Boolean, or what lies around the constants and is in its range."""
    if one.dtype.kind == "b":
        return [0, 1]
    numbers = dict.fromkeys([0, 1, *(number + step for number in near for step in (0, 1, -1))])
    if one.dtype.kind == "f":
        return list(numbers)[:_MOST_VALUES]
    limits = np.iinfo(one.dtype)
    low, high = (use.bound.low, use.bound.high) if use.bound is not None else (limits.min, limits.max)
    allowed = [n for n in numbers if n == int(n) and max(low, limits.min) <= n <= min(high, limits.max)]
    return allowed[:_MOST_VALUES] or [max(low, int(limits.min))]


def _sets(choices: Mapping[str, list[float]], seed: int) -> list[Values]:
    """Values for all inputs at once: every combination in an order by the seed, or many where there are too many."""
    rng = np.random.default_rng([seed, len(choices)])
    if prod(map(len, choices.values())) <= _MOST_SETS:
        every = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
        return [every[index] for index in rng.permutation(len(every))]
    return [{name: values[rng.integers(len(values))] for name, values in choices.items()} for _ in range(_MOST_SETS)]


def _reached(
    ifs: list[IfNode], known: Mapping[str, Condition], values: Values, single: Mapping[str, Single]
) -> frozenset[Branch]:
    """The branches that run with these values, and the Booleans among them."""
    taken = {name: condition.holds(values) for name, condition in known.items()}
    found = {(name, bool(value)) for name, value in values.items() if single[name].dtype.kind == "b"}
    for one in ifs:
        here = taken.get(one.condition)
        if here is not None and all(taken.get(name, side) == side for name, side in one.around):
            found.add((f"If {one.condition}", here))
    return frozenset(found)


def _greedy(reached: list[frozenset[Branch]], trials: int) -> Iterator[int]:
    """Sets of values, by index: each reaches most of what is left, rare branches first; then all counts anew."""
    rare = {branch: 1 / count for branch, count in Counter(itertools.chain(*reached)).items()}
    left, unused = frozenset[Branch](), set(range(len(reached)))
    for _ in range(trials):
        left = left or frozenset(rare)
        gains = [sum(rare[branch] for branch in sorted(branches & left)) for branches in reached]
        best = max(range(len(reached)), key=lambda index: (gains[index], index in unused, -index))
        yield best
        left -= reached[best]
        unused.discard(best)
