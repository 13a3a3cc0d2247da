"""Comparing what two models put out. Pure numpy.

An output is judged against its own scale, max |reference|, because rounding errors scale with the numbers
that were added up, not with the result: next to zero a perfectly rounded network has any relative error.

    |found - reference| <= limit * scale,    limit = ROUNDINGS[dtype] * unit roundoff of dtype

where dtype is the coarser of the output's type and the type that the model's weights are stored in: a float16
network with a Cast to float32 at its end is no more exact than one without.
NaN is equal only to NaN in the same place, an infinity only to itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Float64Array
from bnfold.rounding import BFLOAT16, Array, to_float64, unit_roundoff
from bnfold.verification.metrics import cosine, snr_db, top1_agreement
from bnfold.verification.tolerances import Tolerance, Tolerances

# How many unit roundoffs of the output's scale rounding may add up to before anyone looks closer. The folds of the
# trained networks in models/ stay within 35 over 20 seeds; where a network is noisier than this, `judge` measures
# its noise. Half types accumulate in float32, so a layer costs them about one.
DECISIONS = 4
ROUNDINGS = {np.dtype(np.float32): 128, np.dtype(np.float64): 128, np.dtype(np.float16): 8, BFLOAT16: 8}


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """How one output of the two models compares.

    Attributes:
        name: of the output.
        equal: whether it is within the limit.
        problem: what is wrong, where it is not a matter of a limit (shape, type, NaN); empty otherwise.
        max_abs: the largest |found - reference|, over the finite elements.
        scale: the largest |reference|.
        relative: max_abs / scale.
        limit: what `relative` may be.
        ulps: `relative` in unit roundoffs of the type, doubled: 1 is one unit in the last place of the scale.
        finite: whether any element of the reference is finite, or it has none.
        elements: how many elements were compared.
        mean_abs: the mean of |found - reference|, over the finite elements.
        cosine: of the angle between both, taken as vectors; None where one is zero.
        snr_db: reference against difference, in dB; infinite where there is none.
        top1: the share of samples with the same class on top; None where these are no class scores (N, K >= 2).
        tolerance: the rtol and atol that were asked for; empty where the limit is that of rounding.
        exceeded: how many elements are further off than that tolerance.
        turned: how many whole numbers, truth values or texts are others, or are there on one side only: a matter of
            decisions upstream, which rounding may turn next to a boundary.
    """

    name: str
    equal: bool
    problem: str = ""
    max_abs: float = 0.0
    scale: float = 0.0
    relative: float = 0.0
    limit: float = 0.0
    ulps: float = 0.0
    finite: bool = True
    elements: int = 0
    mean_abs: float = 0.0
    cosine: float | None = None
    snr_db: float | None = None
    top1: float | None = None
    tolerance: str = ""
    exceeded: int = 0
    turned: int = 0


@dataclass(frozen=True, slots=True)
class _Measure:
    """What an output is held against: rounding in the type of the weights, or a tolerance that was asked for."""

    weights: np.dtype | None = None
    tolerance: Tolerance | None = None


def compare_outputs(
    names: Sequence[str],
    reference: Sequence[Any],
    found: Sequence[Any],
    weights: np.dtype | None = None,
    tolerances: Tolerances | None = None,
) -> list[OutputComparison]:
    """Compare the outputs of two runs pair by pair; sequences and maps element by element.

    `weights` is the type that most of the model's weights are stored in, where the limit should allow for it.
    """
    measures = [_Measure(weights, None if tolerances is None else tolerances.of(name)) for name in names]
    return [
        comparison
        for name, first, second, measure in zip(names, reference, found, measures, strict=True)
        for comparison in _compare_value(name, first, second, measure)
    ]


def _compare_value(name: str, reference: Any, found: Any, measure: _Measure) -> Iterator[OutputComparison]:
    if isinstance(reference, (list, tuple)) and isinstance(found, (list, tuple)):
        if len(reference) != len(found):
            yield OutputComparison(name, equal=False, problem=f"{len(found)} elements instead of {len(reference)}")
            return
        for i, (first, second) in enumerate(zip(reference, found, strict=True)):
            yield from _compare_value(f"{name}[{i}]", first, second, measure)
    elif isinstance(reference, dict) and isinstance(found, dict):
        yield from _compare_value(f"{name}.keys", np.array(list(reference)), np.array(list(found)), measure)
        if list(reference) == list(found):
            yield from _compare_value(
                f"{name}.values", np.array(list(reference.values())), np.array(list(found.values())), measure
            )
    elif (reference is None) or (found is None):
        yield OutputComparison(
            name, equal=reference is found, problem="" if reference is found else "absent on one side"
        )
    else:
        yield _compare_arrays(name, np.asarray(reference), np.asarray(found), measure)


def compare_arrays(name: str, reference: Array, found: Array, weights: np.dtype | None = None) -> OutputComparison:
    """Compare two arrays by type, shape and value."""
    return _compare_arrays(name, reference, found, _Measure(weights))


def _compare_arrays(name: str, reference: Array, found: Array, measure: _Measure) -> OutputComparison:
    if reference.dtype != found.dtype:
        return OutputComparison(name, equal=False, problem=f"type {found.dtype} instead of {reference.dtype}")
    if reference.shape != found.shape:
        problem, size = f"shape {found.shape} instead of {reference.shape}", max(found.size, reference.size)
        return OutputComparison(name, equal=False, problem=problem, turned=size)
    if reference.dtype in ROUNDINGS:
        return _compare_floats(name, reference, found, measure)
    if measure.tolerance is not None and reference.dtype.kind in "iu":
        return _compare_floats(name, reference.astype(np.float64), found.astype(np.float64), measure)
    return _compare_exact(name, reference, found, _coarser(np.dtype(np.float32), measure.weights))


def _coarser(output: np.dtype, weights: np.dtype | None) -> np.dtype:
    if weights is None or unit_roundoff(weights) < unit_roundoff(output):
        return output
    return weights


def _compare_exact(name: str, reference: Array, found: Array, precision: np.dtype) -> OutputComparison:
    """Compare whole numbers, truth values and text.

    Numbers and truth values are decisions (ArgMax, a threshold, a quantisation step), and rounding may turn those
    that lie next to a boundary: about as large a share of them as rounding is of the scale.
    """
    wrong = int(np.count_nonzero(reference != found))
    share = wrong / reference.size if wrong else 0.0
    limit = DECISIONS * ROUNDINGS[precision] * unit_roundoff(precision)
    if 0 < share <= limit and reference.dtype.kind in "iub":
        return OutputComparison(name, equal=True, elements=reference.size, relative=share, limit=limit, turned=wrong)
    if wrong:
        problem = f"{wrong} of {reference.size} elements differ"
        return OutputComparison(name, equal=False, problem=problem, elements=reference.size, turned=wrong)
    return OutputComparison(name, equal=True, elements=reference.size)


def _compare_floats(name: str, reference: Array, found: Array, measure: _Measure) -> OutputComparison:
    precision = _coarser(reference.dtype, measure.weights)
    limit = ROUNDINGS[precision] * unit_roundoff(precision)
    first: Float64Array = to_float64(reference)
    second: Float64Array = to_float64(found)
    finite = np.isfinite(first)
    same_specials = np.array_equal(first[~finite], second[~finite], equal_nan=True)
    if not same_specials or not np.isfinite(second[finite]).all():
        worst = np.flatnonzero(~_same_place(first, second))
        problem = (
            f"{worst.size} of {first.size} elements differ in being finite, first at {worst[0]}: "
            f"{second.flat[worst[0]]} instead of {first.flat[worst[0]]}"
        )
        return OutputComparison(name, equal=False, problem=problem, limit=limit, finite=bool(finite.any()))
    if not finite.any():
        return OutputComparison(name, equal=True, limit=limit, finite=not first.size, elements=first.size)
    exact, got = first[finite], second[finite]
    difference = np.abs(got - exact)
    scale, max_abs = float(np.abs(exact).max()), float(difference.max())
    relative = max_abs / scale if scale else (0.0 if max_abs == 0 else float("inf"))
    exceeded = measure.tolerance.exceeded(exact, got) if measure.tolerance is not None else 0
    return OutputComparison(
        name, (relative <= limit) if measure.tolerance is None else not exceeded, elements=first.size,
        max_abs=max_abs, scale=scale, relative=relative, limit=limit, ulps=relative / (2 * unit_roundoff(precision)),
        mean_abs=float(difference.mean()), cosine=cosine(exact, got), snr_db=snr_db(exact, got),
        top1=top1_agreement(first, second) if finite.all() else None,
        tolerance=str(measure.tolerance or ""), exceeded=exceeded,
    )  # fmt: skip


def _same_place(first: Float64Array, second: Float64Array) -> NDArray[np.bool_]:
    both_nan = np.isnan(first) & np.isnan(second)
    same: NDArray[np.bool_] = (first == second) | both_nan | (np.isfinite(first) & np.isfinite(second))
    return same
