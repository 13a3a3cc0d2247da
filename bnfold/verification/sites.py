"""Judging a changed value by what both models make of the same inputs, in float64.

Nothing propagates from site to site: both segments of a value get the numbers that the original had there. What is
left is the difference of the stored constants, and that is held against what rounding them may do, feature map by
feature map:

    |folded - original| <= roundings * unit roundoff * (size of both)

with the unit roundoff of the type that the constants are stored in, and `size` the sum of the absolute values that
were added up (`float64`). A network's own ill condition does not enter, and a map that nothing reads is judged as
any other. The numbers are moved about at random too, as a channel that happens to be zero would hide its weights.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.rounding import FLOAT_TYPES, Array, to_float64
from bnfold.text import printable
from bnfold.verification.float64 import Evaluator, NotEvaluatedError, Number, UnfitError
from bnfold.verification.operators import CORES, SUMS
from bnfold.verification.pairing import Pairing
from bnfold.verification.sitecheck import SiteCheck
from bnfold.verification.weights import ROUNDINGS, next_to_zero, storage_roundoff, worst_of

DEEPEST = 6  # matrix products in a row between two shared values; sizes tell nothing about more of them
AFFINE = CORES | SUMS | {"AveragePool", "BatchNormalization", "Concat", "Div", "Dropout", "Identity", "Mul"}
LARGEST = 6  # locations along an axis that are looked at first, beside what the kernels reach


@dataclass(frozen=True, slots=True)
class Frontier:
    """Where the segments of a value start.

    Attributes:
        names: the shared values that they read, by their names in the original.
        common: those that both read.
        roundoff: the unit roundoff of the coarsest type of their constants.
        reach: how many locations their kernels reach at most.
        longer: whether the folded one computes in more steps than the original one.
        affine: whether both are affine maps, so that one set of numbers tells as much as any other.
    """

    names: frozenset[str]
    common: frozenset[str]
    roundoff: float
    reach: int
    longer: bool
    affine: bool


def frontier(pairing: Pairing, value: str) -> Frontier:
    """Where the segments of `value`, by its name in the original, start in both models."""
    names: list[frozenset[str]] = []
    roundoff, reach = 0.0, 1
    lengths: list[int] = []
    ops: set[str] = set()
    for facts, start in ((pairing.original, value), (pairing.folded, pairing.names[value])):
        shared = pairing.names.keys() if facts is pairing.original else pairing.shared.keys()
        segment = _segment(facts, start, shared)
        lengths.append(len(segment))
        ops.update(facts.op(index) for index in segment)
        read: set[str] = set()
        for node in (facts.nodes[index] for index in segment):
            roundoff = max(roundoff, storage_roundoff(facts, node.input))
            reach = max([reach, *_reach(node)])
            read.update(name for name in node.input if name in shared)
        names.append(frozenset(read if facts is pairing.original else (pairing.shared[name] for name in read)))
    return Frontier(names[0] | names[1], names[0] & names[1], roundoff, reach, lengths[1] > lengths[0], ops <= AFFINE)


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
    small = _cropped(given, LARGEST + 2 * start.reach)
    check = None if small is None else _judged(pairing, value, node, small, start)
    return check if check is not None and check.equal else _judged(pairing, value, node, given, start)


def _judged(pairing: Pairing, value: str, node: str, given: Mapping[str, Array], start: Frontier) -> SiteCheck:
    """The worse of two verdicts: on the numbers themselves, and on those that both read, moved about."""
    first = _evaluated(pairing, value, node, given, start.roundoff)
    if not first.equal:
        return first
    moved = _moved({name: given[name] for name in start.common})
    second = _evaluated(pairing, value, node, moved, start.roundoff)
    return second if second.covered and second.times > first.times else first


def _evaluated(pairing: Pairing, value: str, node: str, given: Mapping[str, Array], roundoff: float) -> SiteCheck:
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
    return _compared(value, node, first, second, roundoff)


def _moved(given: Mapping[str, Array]) -> dict[str, Array]:
    """Floats with seeded normal noise of their own scale; all else as it is."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for name in sorted(given):
        array = given[name]
        found[name] = array
        if array.dtype in FLOAT_TYPES and array.size:
            wide = to_float64(array)
            scale = float(np.abs(wide).max())
            found[name] = wide + (scale if 0 < scale < np.inf else 1.0) * rng.normal(size=array.shape)
    return found


def _compared(value: str, node: str, first: Number, second: Number, roundoff: float) -> SiteCheck:
    if first.value.shape != second.value.shape or first.value.dtype != second.value.dtype:
        problem = f"shape {second.value.shape} instead of {first.value.shape}"
        return SiteCheck(value, node, layer="values", problem=problem, times=float("inf"))
    layers = max(first.depth, second.depth, 1)
    if layers > DEEPEST:
        problem = f"{layers} products lie between this value and the last one that both models have"
        return SiteCheck(value, node, covered=False, layer="values", problem=problem)
    roundings = ROUNDINGS * layers + max(first.steps, second.steps)
    limit = roundings * (roundoff * (first.size + second.size) + next_to_zero(roundoff))
    expected, found = (side.value.astype(np.float64, copy=False) for side in (first, second))
    worst = worst_of(expected, found, np.broadcast_to(limit, expected.shape), 1)
    return SiteCheck(
        value, node, layer="values", times=worst.times, map=worst.map, expected=worst.expected, found=worst.found,
        what="value",
    )  # fmt: skip


def _segment(facts: GraphFacts, value: str, shared: AbstractSet[str]) -> list[int]:
    """The nodes that make `value` out of the shared values before it."""
    found = {facts.producers[value]: None}
    open_ = list(found)
    while open_:
        for name in facts.nodes[open_.pop()].input:
            producer = facts.producer(name)
            if name in shared or producer is None or producer in found or facts.constants.computes(producer):
                continue
            found[producer] = None
            open_.append(producer)
    return list(found)


def _reach(node: object) -> list[int]:
    """How far the kernel of a node reaches along each axis, as far as its attributes say."""
    entries = {entry.name: list(entry.ints) for entry in getattr(node, "attribute", ())}
    kernel = entries.get("kernel_shape", [])
    dilations = entries.get("dilations", [1] * len(kernel))
    return [size * step for size, step in zip(kernel, dilations, strict=False)]


def _cropped(given: Mapping[str, Array], most: int) -> dict[str, Array] | None:
    """One sample and a corner of the locations; None where that is all there is, or would tear apart what fits."""
    sizes = {array.shape[2:] for array in given.values() if array.ndim > 2}
    batches = {array.shape[0] for array in given.values() if array.ndim > 1}
    if len(sizes) > 1 or len(batches) != 1:
        return None
    locations = next(iter(sizes), ())
    if batches <= {0, 1} and not any(size > most for size in locations):
        return None
    cut = (slice(0, 1), slice(None), *[slice(0, most)] * len(locations))
    return {name: array[cut[: array.ndim]] if array.ndim > 1 else array for name, array in given.items()}
