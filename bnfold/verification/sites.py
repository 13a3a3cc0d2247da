"""Judging a changed value by what both models make of the same inputs, in float64.

Nothing propagates from site to site: both segments of a value get the numbers that the original had there. What is
left is the difference of the stored constants, and that is held against what rounding them may do, feature map by
feature map:

    |folded - original| <= roundings * unit roundoff * (size of both)

with the unit roundoff of the type that the constants are stored in, and `size` the sum of the absolute values that
were added up (`float64`). A network's own ill condition does not enter, and a map that nothing reads is judged as
any other. The numbers are moved about at random too, as a channel that happens to be zero would hide its weights.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from bnfold.nodes import label
from bnfold.rounding import FLOAT_TYPES, Array, to_float64
from bnfold.text import printable
from bnfold.verification.float64 import Evaluator, NotEvaluatedError, Number, UnfitError
from bnfold.verification.pairing import Pairing
from bnfold.verification.segments import Frontier, frontier
from bnfold.verification.sitecheck import SiteCheck
from bnfold.verification.weights import ROUNDINGS, next_to_zero, worst_of

DEEPEST = 2  # matrix products in a row between two shared values; sizes grow too far beyond values with more of them
SPATIAL = 12  # a corner keeps the size of the whole modulo this, so that strides end as they do there
MOST_LOOKS = 64  # times that tables are looked something up in
LARGEST = 6  # locations along an axis that are looked at first, beside what the kernels reach


def by_values(pairing: Pairing, value: str, activations: Mapping[str, Array]) -> SiteCheck:
    """Compare what both segments make of the original's own numbers. `activations`: its shared values, by name."""
    name = pairing.names[value]
    node = label(pairing.folded.nodes[pairing.folded.producers[name]])
    start = frontier(pairing, value)
    missing = sorted(start.names - activations.keys())
    if missing:
        problem = f"the numbers at {printable(missing[0])!r} are not known"
        return SiteCheck(value, node, covered=False, layer="values", problem=problem)
    given = {key: activations[key] for key in start.names}
    small = _cropped(given, LARGEST + 2 * start.reach) if start.local else None
    check = None if small is None else _judged(pairing, value, node, small, start)
    return check if check is not None and check.equal else _judged(pairing, value, node, given, start)


def _judged(pairing: Pairing, value: str, node: str, given: Mapping[str, Array], start: Frontier) -> SiteCheck:
    """The worse of two verdicts: on the numbers themselves, and on those that both read, moved about."""
    first = _evaluated(pairing, value, node, given, start)
    if not first.equal:
        return first
    common = {name: given[name] for name in start.common}
    checks = [
        _evaluated(pairing, value, node, _moved(common), start),
        *_looked_up(pairing, value, node, common, start),
    ]
    return max([first, *(check for check in checks if check.covered)], key=lambda check: check.times)


def _looked_up(
    pairing: Pairing, value: str, node: str, given: Mapping[str, Array], start: Frontier
) -> Iterator[SiteCheck]:
    """The verdict on every row of a table, where the segments look something up: all at once, or as many as fit."""
    indices = [name for name, array in given.items() if array.dtype.kind in "iu" and array.size and array.ndim]
    if not start.rows or not indices:
        return
    rows = np.arange(start.rows)
    whole = {name: np.resize(rows, (*given[name].shape[:-1], start.rows)) for name in indices}
    check = _evaluated(pairing, value, node, dict(given) | _as_given(whole, given), start)
    yield check
    most = max(given[name].size for name in indices)
    for first in range(0, 0 if check.covered else min(start.rows, MOST_LOOKS * most), most):
        some = {name: np.resize(rows[first : first + most], given[name].shape) for name in indices}
        yield _evaluated(pairing, value, node, dict(given) | _as_given(some, given), start)


def _as_given(indices: Mapping[str, Array], given: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.astype(given[name].dtype) for name, array in indices.items()}


def _evaluated(pairing: Pairing, value: str, node: str, given: Mapping[str, Array], start: Frontier) -> SiteCheck:
    names = pairing.names
    try:
        first = Evaluator(pairing.original, given).target(value)
    except NotEvaluatedError as error:
        return SiteCheck(value, node, covered=False, layer="values", problem=str(error))
    try:
        second = Evaluator(pairing.folded, {names[key]: array for key, array in given.items()}).target(names[value])
    except NotEvaluatedError as error:
        times = float("inf") if isinstance(error, UnfitError) else 0.0
        return SiteCheck(value, node, covered=False, layer="values", problem=str(error), times=times)
    return _compared(value, node, first, second, start)


def _moved(given: Mapping[str, Array]) -> dict[str, Array]:
    """Floats with seeded normal noise of their own scale; all else as it is."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for name in sorted(given):
        array = given[name]
        found[name] = array
        if array.dtype in FLOAT_TYPES and array.size:
            wide = to_float64(array)
            wide = np.where(np.isfinite(wide), wide, 0.0)
            scale = float(np.abs(wide).max())
            found[name] = wide + (scale or 1.0) * rng.normal(size=array.shape)
    return found


def _compared(value: str, node: str, first: Number, second: Number, start: Frontier) -> SiteCheck:
    roundoff = start.roundoff
    if first.value.shape != second.value.shape or first.value.dtype != second.value.dtype:
        problem = f"shape {second.value.shape} instead of {first.value.shape}"
        return SiteCheck(value, node, layer="values", problem=problem, times=float("inf"))
    if first.value.dtype != np.float64:
        return _compared_exactly(value, node, first.value, second.value)
    layers = max(first.depth, second.depth, 1)
    roundings = ROUNDINGS * layers + max(first.steps, second.steps)
    limit = roundings * (roundoff * (first.size + second.size) + next_to_zero(roundoff))
    expected, found = first.value, second.value
    if expected.size and not (np.isfinite(expected) & np.isfinite(found)).any():
        return SiteCheck(value, node, covered=False, layer="values", problem="no number there is finite")
    limit = np.broadcast_to(limit, expected.shape)
    if not np.isfinite(limit[np.isfinite(expected) & np.isfinite(found)]).all():
        problem = "how far rounding goes there is not known"
        return SiteCheck(value, node, covered=False, layer="values", problem=problem)
    worst = worst_of(expected, found, limit, start.axis)
    if layers > DEEPEST and worst.times <= 1:
        problem = f"{layers} products lie between this value and the last one that both models have"
        return SiteCheck(value, node, covered=False, layer="values", problem=problem)
    return SiteCheck(
        value, node, layer="values", times=worst.times, map=worst.map, expected=worst.expected, found=worst.found,
        what="value",
    )  # fmt: skip


def _compared_exactly(value: str, node: str, expected: Array, found: Array) -> SiteCheck:
    """Whole numbers, truth values and texts."""
    wrong = np.flatnonzero((expected != found).reshape(-1))
    if not wrong.size:
        return SiteCheck(value, node, layer="values")
    at = wrong[0]
    problem = f"element {at} is {printable(str(found.flat[at]))} instead of {printable(str(expected.flat[at]))}"
    return SiteCheck(value, node, layer="values", problem=problem, times=float("inf"))


def _cropped(given: Mapping[str, Array], most: int) -> dict[str, Array] | None:
    """Two samples and a corner of the locations; None where that is all there is, or would tear apart what fits."""
    sizes = {array.shape[2:] for array in given.values() if array.ndim > 2}
    batches = {array.shape[0] for array in given.values() if array.ndim > 1}
    if len(sizes) > 1 or len(batches) != 1:
        return None
    locations = next(iter(sizes), ())
    if batches <= {0, 1, 2} and not any(size > most + SPATIAL for size in locations):
        return None
    whole = [size if size <= most + SPATIAL else most + (size - most) % SPATIAL for size in locations]
    cut = (slice(0, 2), slice(None), *map(slice, whole))
    return {name: array[cut[: array.ndim]] if array.ndim > 1 else array for name, array in given.items()}
