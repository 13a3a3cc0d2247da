"""The algebra of Alg. 2, with Hypothesis, against exact rational arithmetic where square roots allow it."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.affine import ChannelAffine

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False, width=32)
ROOTS = st.integers(1, 2**20)


def affine(scale, shift):
    """An affine from two lists."""
    return ChannelAffine(np.float64(scale), np.float64(shift))


@given(gamma=NUMBERS, beta=NUMBERS, mean=NUMBERS, root=ROOTS, x=NUMBERS)
def test_batchnorm_is_its_affine(gamma, beta, mean, root, x):
    """gamma * (x - mean) / sqrt(var + eps) + beta = s x + t, to rounding; sqrt is exact for a squared integer."""
    found = ChannelAffine.from_batchnorm(*(np.float64([v]) for v in (gamma, beta, mean, root**2 - 0.5)), 0.5)
    g, b, m, r, v = (Fraction(n) for n in (gamma, beta, mean, root, x))
    exact = g * (v - m) / r + b
    result = Fraction(float(found.scale[0])) * v + Fraction(float(found.shift[0]))
    size = abs(g * v / r) + abs(g * m / r) + abs(b)
    assert abs(result - exact) <= size * Fraction(1, 2**50)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_composition_is_applying_one_after_the_other(rows):
    """(second after first)(x) = second(first(x)), map by map, to rounding."""
    s1, t1, s2, t2, x = (np.float64(column) for column in zip(*rows, strict=True))
    both = affine(s2, t2).after(affine(s1, t1))
    size = np.abs(s2 * s1 * x) + np.abs(s2 * t1) + np.abs(t2)
    assert (np.abs((both.scale * x + both.shift) - (s2 * (s1 * x + t1) + t2)) <= size * 2.0**-50).all()


def test_composition_needs_the_same_maps():
    """Two maps over different numbers of channels do not compose."""
    with pytest.raises(ValueError, match="cannot compose"):
        affine([1, 2], [0, 0]).after(affine([1], [0]))
    with pytest.raises(ValueError, match="cannot compose"):
        affine([1], [0]).after(affine([1, 2], [0, 0]))


def test_composition_over_different_axes_spans_both():
    """s2[j] * (s1[i] * x + t1[i]) + t2[j], for every i along axis 1 and j along axis 2, either way round."""
    first = affine([2, 3, 5], [1, 0, -1])
    second = ChannelAffine(np.float64([7, -1]), np.float64([0.5, 4]), (2,))
    found = second.after(first)
    assert found.axes == (1, 2)
    np.testing.assert_array_equal(found.scale, [[14, -2], [21, -3], [35, -5]])
    np.testing.assert_array_equal(found.shift, [[7.5, 3], [0.5, 4], [-6.5, 5]])
    other = first.after(second)
    assert other.axes == (1, 2)
    np.testing.assert_array_equal(other.scale, found.scale)
    np.testing.assert_array_equal(other.shift, [[2, 9], [1.5, 12], [1.5, 19]])


def test_pruned_maps_are_constant():
    """gamma = 0 gives scale 0 and the map's beta, whatever the mean."""
    found = ChannelAffine.from_batchnorm(np.zeros(2), np.float64([1, -2]), np.float64([5, 1e9]), np.ones(2), 1e-5)
    assert found.scale.tolist() == [0, 0]
    assert found.shift.tolist() == [1, -2]
    assert found.maps == 2
