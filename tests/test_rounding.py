"""One rounding into a storage type, checked against exact rational arithmetic."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.rounding import (
    BFLOAT16,
    FLOAT_TYPES,
    map_peaks,
    round_once,
    rounding_fault,
    scale_and_round,
    smallest_normal,
    to_float64,
    unit_roundoff,
)

HALF_TYPES = [np.dtype(np.float16), BFLOAT16]
DOUBLES = st.floats(allow_nan=False, allow_infinity=False, width=64)


def every_number(dtype):
    """All finite numbers of a 16-bit type, in order, as exact fractions with their float64 value."""
    values = to_float64(np.arange(2**16, dtype=np.uint16).view(dtype))
    return np.unique(values[np.isfinite(values)])


NUMBERS = {dtype: every_number(dtype) for dtype in HALF_TYPES}


def nearest_even(value, dtype):
    """Nearest number of a 16-bit type by comparing fractions; ties to the even bits; overflow from half a step on."""
    numbers = NUMBERS[dtype]
    exact = Fraction(value)
    top = Fraction(numbers[-1])
    step = top - Fraction(numbers[-2])
    if abs(exact) >= top + step / 2:
        return np.copysign(np.inf, value)
    i = int(np.searchsorted(numbers, value))
    candidates = numbers[max(i - 1, 0) : i + 1]
    errors = [abs(Fraction(c) - exact) for c in candidates]
    best = [c for c, e in zip(candidates, errors, strict=True) if e == min(errors)]
    even = [c for c in best if int(np.array(c).astype(dtype).view(np.uint16)) % 2 == 0]
    return best[0] if len(best) == 1 else even[0]


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@given(value=st.one_of(DOUBLES, st.floats(-70000, 70000), st.floats(-1e-4, 1e-4)))
def test_half_types_round_to_nearest(dtype, value):
    """Any float64 goes to the nearest 16-bit number, as fractions say."""
    assert float(round_once(np.float64([value]), dtype)[0]) == nearest_even(value, dtype)


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
@given(data=st.data())
def test_half_types_round_ties_and_their_neighbours(dtype, data):
    """Half-way points go to even, and the float64 next to them to their own side: nothing is rounded twice."""
    numbers = NUMBERS[dtype]
    i = data.draw(st.integers(0, numbers.size - 2))
    tie = (numbers[i] + numbers[i + 1]) / 2
    for value in (tie, np.nextafter(tie, -np.inf), np.nextafter(tie, np.inf)):
        assert float(round_once(np.float64([value]), dtype)[0]) == nearest_even(value, dtype)


def test_bfloat16_by_way_of_float32_would_round_twice():
    """1 + 2**-8 + 2**-40 is above the tie: one rounding gives 1 + 2**-7, two give 1."""
    value = np.float64([1 + 2.0**-8 + 2.0**-40])
    assert float(value.astype(np.float32).astype(BFLOAT16)[0]) == 1
    assert float(round_once(value, BFLOAT16)[0]) == 1 + 2.0**-7


@given(source=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), factor=DOUBLES)
def test_scaling_float32_rounds_the_float64_product_once(source, factor):
    """W' is the float32 nearest to the float64 product, bit for bit."""
    weights = np.array(source, np.float32)
    found = scale_and_round(weights, np.float64([factor]), np.dtype(np.float32))
    with np.errstate(over="ignore", under="ignore"):
        expected = (weights.astype(np.float64) * factor).astype(np.float32)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
def test_scaling_keeps_shape_and_type(dtype):
    """The factor broadcasts along the first axis; the result has the weight's shape and type."""
    weights = np.arange(12).reshape(3, 2, 2).astype(dtype)
    found = scale_and_round(weights, np.float64([1, 2, -0.5]).reshape(3, 1, 1), dtype)
    assert found.dtype == dtype
    expected = [[[0, 1], [2, 3]], [[8, 10], [12, 14]], [[-4, -4.5], [-5, -5.5]]]
    assert found.astype(np.float64).tolist() == expected


def test_unit_roundoff_and_smallest_normal():
    """The constants of IEEE 754 and of bfloat16."""
    assert [unit_roundoff(d) for d in FLOAT_TYPES] == [2.0**-11, 2.0**-8, 2.0**-24, 2.0**-53]
    assert [smallest_normal(d) for d in FLOAT_TYPES] == [2.0**-14, 2.0**-126, 2.0**-126, 2.0**-1022]


def test_peaks_are_per_map_and_carry_nan():
    """The largest magnitude of each map, whichever sign; NaN stays visible."""
    values = np.array([[1, -3], [2, 0], [np.nan, 1]], np.float32)
    np.testing.assert_array_equal(map_peaks(values, 0), [3, 2, np.nan])
    np.testing.assert_array_equal(map_peaks(values[:2], 1), [2, 3])
    np.testing.assert_array_equal(map_peaks(np.zeros((2, 0), np.float32), 0), [0, 0])


def fault(source, factor, dtype):
    """The fault of scaling `source` map by map along axis 0."""
    source = np.asarray(source).astype(dtype)
    return rounding_fault(lambda: source, np.float64(factor), dtype, 0)


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
def test_overflow_names_its_maps(dtype):
    """A map whose weights leave the range is named; its neighbours are not."""
    largest = float(ml_dtypes.finfo(dtype).max)
    assert fault([[1.0], [largest], [largest]], [2, 1, 4], dtype).maps == (2,)


@pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=str)
def test_underflow_is_a_fault_only_where_precision_is_lost(dtype):
    """Sinking below the normal range loses bits unless the map was there already, is zero, or happens to be exact."""
    tiny = smallest_normal(dtype)
    third = 1 + unit_roundoff(dtype) * 2
    assert fault([[third]], [tiny / 4], dtype).kind == "underflow"
    assert fault([[1.0]], [tiny / 4], dtype) is None
    assert fault([[third]], [0.0], dtype) is None
    assert fault([[0.0]], [tiny / 4], dtype) is None
    assert fault([[tiny / 2]], [1 / 3], dtype) is None
    assert fault([[third, 2.0]], [tiny], dtype) is None
