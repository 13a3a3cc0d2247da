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


def compare_outputs(
    names: Sequence[str], reference: Sequence[Any], found: Sequence[Any], weights: np.dtype | None = None
) -> list[OutputComparison]:
    """Compare the outputs of two runs pair by pair; sequences and maps element by element.

    `weights` is the type that most of the model's weights are stored in, where the limit should allow for it.
    """
    return [
        comparison
        for name, first, second in zip(names, reference, found, strict=True)
        for comparison in _compare_value(name, first, second, weights)
    ]


def _compare_value(name: str, reference: Any, found: Any, weights: np.dtype | None) -> Iterator[OutputComparison]:
    if isinstance(reference, (list, tuple)) and isinstance(found, (list, tuple)):
        if len(reference) != len(found):
            yield OutputComparison(name, equal=False, problem=f"{len(found)} elements instead of {len(reference)}")
            return
        for i, (first, second) in enumerate(zip(reference, found, strict=True)):
            yield from _compare_value(f"{name}[{i}]", first, second, weights)
    elif isinstance(reference, dict) and isinstance(found, dict):
        yield from _compare_value(f"{name}.keys", np.array(list(reference)), np.array(list(found)), weights)
        if list(reference) == list(found):
            yield from _compare_value(
                f"{name}.values", np.array(list(reference.values())), np.array(list(found.values())), weights
            )
    elif (reference is None) or (found is None):
        yield OutputComparison(
            name, equal=reference is found, problem="" if reference is found else "absent on one side"
        )
    else:
        yield compare_arrays(name, np.asarray(reference), np.asarray(found), weights)


def compare_arrays(name: str, reference: Array, found: Array, weights: np.dtype | None = None) -> OutputComparison:
    """Compare two arrays by type, shape and value."""
    if reference.dtype != found.dtype:
        return OutputComparison(name, equal=False, problem=f"type {found.dtype} instead of {reference.dtype}")
    if reference.shape != found.shape:
        return OutputComparison(name, equal=False, problem=f"shape {found.shape} instead of {reference.shape}")
    if reference.dtype not in ROUNDINGS:
        return _compare_exact(name, reference, found, _coarser(np.dtype(np.float32), weights))
    return _compare_floats(name, reference, found, _coarser(reference.dtype, weights))


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
        return OutputComparison(name, equal=True, elements=reference.size, relative=share, limit=limit)
    if wrong:
        return OutputComparison(name, equal=False, problem=f"{wrong} of {reference.size} elements differ")
    return OutputComparison(name, equal=True, elements=reference.size)


def _compare_floats(name: str, reference: Array, found: Array, precision: np.dtype) -> OutputComparison:
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
    scale = float(np.abs(first[finite]).max())
    max_abs = float(np.abs(second[finite] - first[finite]).max())
    relative = max_abs / scale if scale else (0.0 if max_abs == 0 else float("inf"))
    return OutputComparison(
        name, relative <= limit, elements=first.size, max_abs=max_abs, scale=scale, relative=relative, limit=limit,
        ulps=relative / (2 * unit_roundoff(precision)),
    )  # fmt: skip


def _same_place(first: Float64Array, second: Float64Array) -> NDArray[np.bool_]:
    both_nan = np.isnan(first) & np.isnan(second)
    same: NDArray[np.bool_] = (first == second) | both_nan | (np.isfinite(first) & np.isfinite(second))
    return same
