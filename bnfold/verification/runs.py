"""Layer 2: the numbers that both models had at a changed value when they ran, against a bound for that computation.

Each model's own run puts out the values that both have. What reached a site may differ already, so that difference is
measured, and what it makes of the site is taken off: nothing propagates from site to site. For a product, map by map,

    |folded - original| <= |W'| * |x' - x|  +  2 ((n + 8) u + 8 w) (|W'| * |x| + size of the bias)

with x and x' what the two runs fed it (the largest of each channel), n the length of the dot products, u the unit
roundoff of the type that was computed in (Higham 2002, eq. 3.5), and w that of the type that weights are stored in.
Weight and bias themselves are judged far more closely by `weights`; this finds what they do not show: numbers that
overflow or cancel on the way, and kernels that do not compute what they should.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from bnfold.affine import Float64Array
from bnfold.nodes import int_attribute
from bnfold.rounding import Array, to_float64, unit_roundoff
from bnfold.verification.algebra import Product
from bnfold.verification.float64 import Evaluator, NotEvaluatedError
from bnfold.verification.pairing import Pairing
from bnfold.verification.segments import Frontier
from bnfold.verification.sitecheck import SiteCheck
from bnfold.verification.weights import ROUNDINGS, AlgebraicCheck, next_to_zero, storage_roundoff, worst_of

HALF_ACCUMULATED = 2.0**-24  # half types are added up in float32


@dataclass(frozen=True, slots=True)
class Runs:
    """What both models had at their values.

    Attributes:
        original: by name in the original.
        folded: by name in the folded model; empty where its values were not put out.
        factor: how many times the bound above the algorithms of the provider may be off (Winograd, TF32).
        u: the unit roundoff that products are computed with, where it is coarser than that of the values.
    """

    original: Mapping[str, Array]
    folded: Mapping[str, Array]
    factor: float = 1.0
    u: float = 0.0


@dataclass(frozen=True, slots=True)
class Reach:
    """How far the channels of a product's input reach into its maps: sums of |W'|, one row for each map."""

    sums: Float64Array
    length: int

    def of(self, channels: Float64Array) -> Float64Array:
        """The most that numbers of these sizes, one for each channel, come to in each map."""
        return np.asarray(self.sums @ channels)


def reach_of(product: Product) -> Reach:
    """The sums over the kernel of a product's absolute weights, as maps by channels."""
    is_plain = not product.factors and product.weight.dtype.kind == "f"
    whole = product.weight if is_plain else product.rows(0, len(product.weight))
    whole = np.abs(whole)
    op, node = product.kind[0], product.node
    if op in ("Gemm", "MatMul"):
        sums = to_float64(whole if product.axis == 0 else whole.T)
        return Reach(sums, sums.shape[1])
    sums = whole.sum(axis=tuple(range(2, whole.ndim)), dtype=np.float64)
    length = int(np.prod(whole.shape[1:]))
    group = int_attribute(node, "group", 1)
    if op == "ConvTranspose":
        length = whole.shape[0] // group * int(np.prod(whole.shape[2:]))
        blocks = [part.T for part in np.split(sums, group)]
    else:
        blocks = np.split(sums, group)
    return Reach(_diagonal(blocks), length)


def _diagonal(blocks: list[Float64Array]) -> Float64Array:
    if len(blocks) == 1:
        return blocks[0]
    rows, columns = blocks[0].shape
    found = np.zeros((rows * len(blocks), columns * len(blocks)))
    for place, block in enumerate(blocks):
        found[place * rows : (place + 1) * rows, place * columns : (place + 1) * columns] = block
    return found


def ran_product(pairing: Pairing, site: AlgebraicCheck, reach: Reach, runs: Runs) -> SiteCheck:
    """The verdict on weight and bias, and on what both runs made of them."""
    value, product = site.check.value, site.original
    x, y = (runs.original.get(name) for name in (product.reads, value))
    others = (runs.folded.get(name) for name in (site.folded.reads, pairing.names[value]))
    x_folded, y_folded = others
    if x is None or y is None or x_folded is None or y_folded is None or x.dtype != y.dtype:
        return site.check
    if x.shape != x_folded.shape or y.shape != y_folded.shape or y.dtype != y_folded.dtype:
        return site.check  # an earlier site is at fault, or the outputs tell
    at = -1 if product.kind[0] == "MatMul" else 1
    if x.ndim < 2 or not x.size or not y.size:
        return site.check
    largest, moved = _largest(x, at), _largest_difference(x, x_folded, at)
    if not np.isfinite(largest).all() or not np.isfinite(moved).all():
        return site.check
    relative = _relative(y.dtype, reach.length, runs) + ROUNDINGS * storage_roundoff(
        pairing.folded, (site.folded.node.input[1],)
    )
    size = reach.of(largest) + site.original.bias.size
    limit = reach.of(moved) + 2 * relative * size + 2 * ROUNDINGS * next_to_zero(unit_roundoff(y.dtype))
    return _held(site.check, y, y_folded, limit, at)


def ran_segment(pairing: Pairing, check: SiteCheck, start: Frontier, runs: Runs) -> SiteCheck:
    """The verdict on a segment that computes in more steps than the original's, and on what the run made of it.

    The run of the folded model is held against the original's definition, in float64, on its own inputs: numbers that
    it adds only to take them away again cost it digits that float64 does not miss.
    """
    name = pairing.names[check.value]
    found = runs.folded.get(name)
    given = {key: runs.folded[pairing.names[key]] for key in start.names if pairing.names[key] in runs.folded}
    if found is None or given.keys() != start.names or not start.longer:
        return check
    try:
        exact = Evaluator(pairing.original, given).target(check.value)
    except NotEvaluatedError:
        return check
    if exact.value.shape != found.shape or exact.value.dtype != np.float64:
        return check
    roundings = ROUNDINGS * max(exact.depth, 1) + exact.steps
    relative = max(exact.depth, 1) * _relative(found.dtype, exact.length, runs) + roundings * start.roundoff
    limit = 2 * relative * exact.size + 2 * roundings * next_to_zero(unit_roundoff(found.dtype))
    worst = worst_of(exact.value, to_float64(found), np.broadcast_to(limit, found.shape), start.axis)
    return _worse(check, worst.times, worst.map, worst.expected, worst.found)


def _relative(dtype: np.dtype, length: int, runs: Runs) -> float:
    """What computing dot products of this length may be off by, relative to what is added up."""
    u = unit_roundoff(dtype)
    return runs.factor * (ROUNDINGS * max(u, runs.u) + length * min(u, HALF_ACCUMULATED))


def _largest(array: Array, axis: int) -> Float64Array:
    """The largest absolute value of each channel."""
    others = tuple(place for place in range(array.ndim) if place != axis % array.ndim)
    return np.asarray(np.maximum(array.max(axis=others), -array.min(axis=others)), dtype=np.float64)


def _largest_difference(first: Array, second: Array, axis: int) -> Float64Array:
    return np.zeros(first.shape[axis]) if first is second else _largest(_difference(first, second), axis)


def _difference(first: Array, second: Array) -> Array:
    """In float32 at least: half types would overflow."""
    wide = np.result_type(first.dtype, np.float32)
    with np.errstate(all="ignore"):
        return np.asarray(second.astype(wide, copy=False) - first.astype(wide, copy=False))


def _held(check: SiteCheck, expected: Array, found: Array, limit: Float64Array, axis: int) -> SiteCheck:
    """The check, or what the runs show against it: maps that are further off than their limit."""
    if not np.isfinite(_largest(expected, axis)).all():
        return replace(check, ran=True)
    off = _largest(_difference(expected, found), axis)
    worst = worst_of(np.zeros_like(off), off, np.broadcast_to(limit, off.shape), 0)
    if worst.times <= 1 or worst.map is None:
        return replace(check, ran=True)
    first, second = (np.take(array, worst.map, axis=axis).reshape(-1) for array in (expected, found))
    place = int(np.argmax(np.where(np.isfinite(second), np.abs(second - first), np.inf)))
    return _worse(check, worst.times, worst.map, float(first[place]), float(second[place]))


def _worse(check: SiteCheck, times: float, map_: int | None, expected: float, found: float) -> SiteCheck:
    if times <= max(check.times, 1) and times <= 1:
        return replace(check, ran=True)
    if check.wrong and check.times >= times:
        return replace(check, ran=True)
    return replace(
        check, ran=True, layer="values", what="value", times=times, map=map_, expected=expected, found=found
    )
