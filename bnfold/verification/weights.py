"""Layer 1: weight and bias of a changed product against a float64 evaluation of the definition, without any data.

    |W' - exact| <= roundings * unit roundoff * size,    and the same of the bias

with the unit roundoff of the type that the weights are stored in, and the size of what was added up and multiplied
(`affinemaps`). A fold by bnfold rounds once; others round in the weight's type, step by step.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bnfold.affine import Float64Array
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.rounding import FLOAT_TYPES, smallest_normal, unit_roundoff
from bnfold.verification.algebra import Product, recover
from bnfold.verification.pairing import Pairing
from bnfold.verification.sitecheck import SiteCheck

# How many roundings a constant may have seen: for one BatchNormalization, step by step, the sum with epsilon, the
# root, the quotient, two products, the difference with the mean and the last sum; and one more for each further step.
ROUNDINGS = 8
_BLOCK = 2**16  # elements that are compared at a time, so that they stay in the cache


@dataclass(frozen=True, slots=True)
class Worst:
    """The element of two arrays with the largest difference in multiples of its limit."""

    times: float
    map: int | None
    expected: float
    found: float


@dataclass(frozen=True, slots=True)
class AlgebraicCheck:
    """Both sides of a changed value as one product each, and the verdict on them."""

    check: SiteCheck
    original: Product
    folded: Product


def by_algebra(pairing: Pairing, value: str) -> AlgebraicCheck | None:
    """Compare weight and bias; None where a segment is not one product."""
    name = pairing.names[value]
    try:
        original = recover(pairing.original, value, pairing.names.keys())
        folded = recover(pairing.folded, name, pairing.shared.keys())
    except ValueError:  # shapes that do not fit together; running them will tell
        return None
    if original is None or folded is None or pairing.shared[folded.reads] != original.reads:
        return None
    if original.kind != folded.kind or original.weight.shape != folded.weight.shape or original.axis != folded.axis:
        return None
    u = storage_roundoff(pairing.folded, (folded.node.input[1],))
    roundings = ROUNDINGS + max(original.steps, folded.steps) - 1
    weight, bias = (compare(original, folded, roundings, u) for compare in (_compare_weight, _compare_bias))
    worst, what = (weight, "weight") if weight.times >= bias.times else (bias, "bias")
    check = SiteCheck(
        value, label(folded.node), times=worst.times, map=worst.map, expected=worst.expected, found=worst.found,
        what=what,
    )  # fmt: skip
    return AlgebraicCheck(check, original, folded)


def storage_roundoff(facts: GraphFacts, names: Iterable[str]) -> float:
    """The unit roundoff of the coarsest type that the constants among `names` are stored in; float32's for none."""
    found = [facts.constants.find(name) for name in names if name]
    types = [c.tensor.dtype for c in found if c is not None and c.tensor.dtype in FLOAT_TYPES]
    return max([unit_roundoff(dtype) for dtype in types if dtype is not None], default=unit_roundoff(np.dtype("f4")))


def next_to_zero(u: float) -> float:
    """What one rounding may move a number by that is next to zero: its type has no more digits there."""
    types = [dtype for dtype in FLOAT_TYPES if unit_roundoff(dtype) == u]
    return smallest_normal(types[0]) * u if types else 0.0


def worst_of(expected: Float64Array, found: Float64Array, limit: Float64Array, axis: int | None) -> Worst:
    """The element that is furthest off, and its index along `axis`, of arrays of one shape."""
    with np.errstate(all="ignore"):
        times = np.abs(found - expected)
        if (times <= limit).all():
            times = times / limit if limit.all() else np.where(times == 0, 0.0, times / limit)
        else:
            same = (expected == found) | (np.isnan(expected) & np.isnan(found))
            times = np.where(same, 0.0, times / limit)
            times[np.isnan(times)] = np.inf
    if not times.size:
        return Worst(0.0, None, 0.0, 0.0)
    place = np.unravel_index(int(np.argmax(times)), times.shape)
    map_ = int(place[axis]) if axis is not None and times.ndim > axis else None
    return Worst(float(times[place]), map_, float(expected[place]), float(found[place]))


def _compare_weight(original: Product, folded: Product, roundings: int, u: float) -> Worst:
    worst = Worst(0.0, None, 0.0, 0.0)
    height = len(original.weight)
    step = max(1, _BLOCK * height // max(original.weight.size, 1))
    for start in range(0, height, step):
        stop = min(start + step, height)
        expected, found = original.rows(start, stop), folded.rows(start, stop)
        limit = np.abs(expected)
        for slack in original.slack:
            limit = limit * (slack if len(slack) == 1 else slack[start:stop])
        limit *= roundings * u
        limit += roundings * next_to_zero(u)
        part = worst_of(expected, found, limit, original.axis)
        if part.times > worst.times:
            offset = start if original.axis == 0 and part.map is not None else 0
            worst = Worst(part.times, None if part.map is None else part.map + offset, part.expected, part.found)
    return worst


def _compare_bias(original: Product, folded: Product, roundings: int, u: float) -> Worst:
    shape = np.broadcast_shapes(original.bias.value.shape, folded.bias.value.shape)
    expected, found = (np.broadcast_to(side.bias.value, shape) for side in (original, folded))
    size = np.broadcast_to(original.bias.size, shape) + np.broadcast_to(folded.bias.size, shape)
    return worst_of(expected, found, roundings * (u * size + next_to_zero(u)), 0)
