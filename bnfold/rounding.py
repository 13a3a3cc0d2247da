"""One rounding, to nearest, from float64 into a storage type; and what that rounding cost. Pure numpy.

numpy rounds float64 to float32 and float16 directly. ml_dtypes goes to bfloat16 by way of float32, which
rounds twice: 1 + 2**-8 + 2**-40 becomes 1 + 2**-8 in float32, a tie, and ends at 1 instead of 1 + 2**-7.
Rounding the first step *to odd* (Boldo & Melquiond 2008) keeps what lies below the tie in the last bit.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bnfold.affine import Float64Array

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT_TYPES = (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))

Array = NDArray[np.generic]


def _finfo(dtype: np.dtype) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # it has no annotations


@functools.cache
def unit_roundoff(dtype: np.dtype) -> float:
    """Half the distance from 1 to the next number of `dtype`: 2**-24 for float32."""
    return float(_finfo(dtype).eps) / 2


@functools.cache
def smallest_normal(dtype: np.dtype) -> float:
    """The least positive number of `dtype` with full precision: 2**-126 for float32."""
    return float(_finfo(dtype).smallest_normal)


def to_float64(values: Array) -> Float64Array:
    """`values` in float64, exactly; a signalling NaN becomes a quiet one without a warning."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def round_once(values: Float64Array, dtype: np.dtype) -> Array:
    """`values` (float64, any shape) rounded to nearest, ties to even, into `dtype`; overflow gives infinity."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == BFLOAT16:
            return _round_to_odd(values).astype(dtype)
        return values.astype(dtype)


def scale_and_round(source: Array, factor: Float64Array, dtype: np.dtype) -> Array:
    """The product source * factor, in float64, rounded once into `dtype`; `factor` broadcasts against `source`."""
    out = np.empty(source.shape, dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == BFLOAT16:
            return round_once(to_float64(source) * factor, dtype)
        # The ufunc converts in cache-sized pieces on both sides: no float64 copy of the whole weight is made.
        np.multiply(source, factor, out=out, dtype=np.float64, casting="unsafe")
    return out


def _round_to_odd(values: Float64Array) -> NDArray[np.float32]:
    """float32 with the last bit set wherever the conversion was not exact."""
    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    too_far = np.abs(back) > np.abs(values)
    truncated = np.where(too_far, np.nextafter(nearest, np.float32(0)), nearest)
    inexact = (back != values) & ~np.isnan(values)
    bits = truncated.view(np.uint32)
    return np.where(inexact, bits | np.uint32(1), bits).view(np.float32)


def map_peaks(array: Array, axis: int) -> Float64Array:
    """The largest magnitude in each slice along `axis`: float64 (array.shape[axis],). NaN where one is NaN."""
    return peaks_along(array, (axis,))


def peaks_along(array: Array, axes: tuple[int, ...]) -> Float64Array:
    """The largest magnitude over all other axes, for each index along `axes`: float64 (array.shape[a] for a in axes).

    NaN where one is NaN.
    """
    shape = tuple(array.shape[axis] for axis in axes)
    if array.size == 0:
        return np.zeros(shape)
    if axes != tuple(range(len(axes))):
        array = np.moveaxis(array, axes, range(len(axes)))
    rows = array.reshape(*shape, -1)
    with np.errstate(invalid="ignore"):  # NaN among bfloat16
        peaks: Float64Array = np.maximum(rows.max(axis=-1), -rows.min(axis=-1)).astype(np.float64)
    return peaks


@dataclass(frozen=True, slots=True)
class RoundingFault:
    """What a rounding did to some maps. `kind` is "overflow" or "underflow", `maps` their indices."""

    kind: str
    maps: tuple[int, ...]


def rounding_fault(
    source: Callable[[], Array], factor: Float64Array, dtype: np.dtype, axis: int
) -> RoundingFault | None:
    """What would be wrong with round(source * factor), judged map by map along `axis`; None if nothing.

    `factor` has as many axes as the source, each of size 1 or the source's.

    Overflow: a weight is no longer finite. Underflow: a map sinks into the subnormal range, so that a weight loses
    more than one unit roundoff of its map's largest weight; a map that already is below the smallest normal number,
    or that is exactly zero (a dead map), is left alone. Multiplying by one number and rounding keep the order of
    magnitudes, so only the largest weight under each factor has to be looked at.
    """
    weights = source()
    spanned = tuple(sorted({axis, *(a for a, size in enumerate(factor.shape) if size > 1)}))
    groups = peaks_along(weights, spanned)
    place = spanned.index(axis)
    rest = tuple(a for a in range(len(spanned)) if a != place)
    small = factor.reshape([factor.shape[a] for a in spanned])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        peaks = to_float64(round_once(groups * np.abs(small), dtype))
        if rest:
            before, peaks = groups.max(axis=rest, initial=0.0), peaks.max(axis=rest, initial=0.0)
        else:
            before = groups
    finite = np.isfinite(peaks)
    if not finite.all():
        return RoundingFault("overflow", tuple(np.flatnonzero(~finite).tolist()))
    is_low = (peaks < smallest_normal(dtype)) & (before >= smallest_normal(dtype))
    if not is_low.any():
        return None
    rows = weights if axis == 0 else np.moveaxis(weights, axis, 0)
    factors = np.broadcast_to(np.moveaxis(factor, axis, 0), (rows.shape[0], *np.moveaxis(factor, axis, 0).shape[1:]))
    lost = tuple(int(c) for c in np.flatnonzero(is_low) if _loses_bits(rows[c], factors[c], dtype))
    return RoundingFault("underflow", lost) if lost else None


def _loses_bits(weights: Array, factor: Float64Array, dtype: np.dtype) -> bool:
    rounded = to_float64(scale_and_round(weights, factor, dtype))
    # Everything times 2**1000, by mantissa and exponent, so that float64's own subnormals are told apart too.
    mantissa, exponent = np.frexp(to_float64(weights))
    factor_mantissa, factor_exponent = np.frexp(factor)
    exact = np.ldexp(mantissa * factor_mantissa, exponent + factor_exponent + 1000)
    error = np.abs(np.ldexp(rounded, 1000) - exact).max()
    return bool(error > unit_roundoff(dtype) * np.abs(exact).max())
