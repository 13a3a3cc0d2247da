"""Each weight is rounded once, from float64, however many maps went into it and from whichever side."""

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper

from tests.conftest import initializer
from tests.folding import check, graph, numbers, statistics

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EPSILON = float(np.float32(1e-5))
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32)]
BITS = {np.dtype(np.float16): 11, BFLOAT16: 8, np.dtype(np.float32): 24, np.dtype(np.float64): 53}
BOTH = "[n1] n = BN <maps = 8> (x)\nc = {} (n, w, b)\n[n2] y = BN <maps = 8> (c)"


def affine(prefix: str, dtype):
    """s and t of the BatchNormalization that makes `prefix`, in float64."""
    gamma, beta, mean, var = (numpy_helper.to_array(t).astype(np.float64) for t in statistics(prefix, 8, dtype))
    scale = gamma / np.sqrt(var + EPSILON)
    return scale, beta - scale * mean


def nearest(values, dtype):
    """Rounded to `dtype` once, half to even, by the definition: no conversion of any library takes part."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(mantissa, BITS[dtype])), exponent - BITS[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("op", "w", "x"),
    [("Conv", (8, 8, 3, 3), (1, 8, 5, 5)), ("ConvTranspose", (8, 8, 1, 1), (1, 8, 5, 5)), ("Gemm", (8, 8), (3, 8)),
     ("Conv <group = 2>", (8, 4, 3, 3), (1, 8, 5, 5)), ("Gemm <transB = 1, beta = 0.5>", (8, 8), (3, 8))],
)  # fmt: skip
def test_pulled_and_pushed_into_one_weight(op, w, x, dtype):
    """One map from behind, one from before: W and b are the exact ones, rounded once; twice would show."""
    proto = graph(BOTH.format(op), x, dtype=dtype, w=w, b=(8,))
    result = check(proto, folded=2, limit=2e-2 if dtype.itemsize == 2 else 4e-6, runs=dtype != BFLOAT16)
    before, behind = affine("n", dtype), affine("y", dtype)
    weight = initializer(proto, "w").astype(np.float64)
    bias = initializer(proto, "b").astype(np.float64) * (0.5 if "beta" in op else 1)
    exact, once = np.zeros_like(weight), np.zeros_like(weight)
    for one, other in np.ndindex(*w[:2]):  # the channel of x and that of y which each tap connects
        source, target = (one, other) if op in ("ConvTranspose", "Gemm") else (one // w[1] * w[1] + other, one)
        taps = weight[one, other]
        bias[target] += (taps * before[1][source]).sum()
        once[one, other] = nearest(taps * behind[0][target], dtype) * before[0][source]
        exact[one, other] = taps * behind[0][target] * before[0][source]
    bias = behind[0] * bias + behind[1]
    stored, stored_bias = (initializer(result.model, name) for name in result.model.graph.node[0].input[1:])
    assert stored.dtype == stored_bias.dtype == dtype
    assert np.array_equal(stored.astype(np.float64), nearest(exact, dtype))
    assert (nearest(once, dtype) != nearest(exact, dtype)).any()
    unit = np.ldexp(1.0, np.frexp(bias)[1] - BITS[dtype])
    assert (np.abs(stored_bias.astype(np.float64) - bias) <= 0.5 * unit + 1e-14).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_maps_behind_one_conv_round_once(dtype):
    """Four BatchNormalizations and a Mul in a row: the weight is the exact product's nearest."""
    text = "c = Conv (x, w)\na = BN <maps = 8> (c)\nd = BN <maps = 8> (a)\ne = Mul (d, s)\ny = BN <maps = 8> (e)"
    proto = graph(text, (1, 8, 4, 4), dtype=dtype, w=(8, 8, 3, 3), s=(8, 1, 1))
    result = check(proto, folded=4, limit=3e-2 if dtype.itemsize == 2 else 4e-6, runs=dtype == np.float32)
    scales = [affine(name, dtype)[0] for name in "ady"] + [initializer(proto, "s").astype(np.float64).ravel()]
    weight = initializer(proto, "w").astype(np.float64)
    exact = weight * np.prod(np.array(scales, np.longdouble), axis=0).reshape(-1, 1, 1, 1)
    stored = initializer(result.model, result.model.graph.node[0].input[1])
    assert np.array_equal(stored.astype(np.float64), nearest(exact.astype(np.float64), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sibling_tap_is_added_before_the_rounding(dtype):
    """W s2 + s1 at the tap: one rounding of the sum, not of the product first."""
    text = "c = Conv <pads = [1, 1, 1, 1]> (x, w)\nm = BN <maps = 8> (c)\n[id] n = BN <maps = 8> (x)\ny = Add (m, n)"
    proto = graph(text, (1, 8, 4, 4), dtype=dtype, w=(8, 8, 3, 3))
    result = check(
        proto, folded=2, nodes="Conv", limit=2e-2 if dtype.itemsize == 2 else 4e-6, runs=dtype == np.float32
    )
    exact = initializer(proto, "w").astype(np.float64) * affine("m", dtype)[0].reshape(-1, 1, 1, 1)
    exact[range(8), range(8), 1, 1] += affine("n", dtype)[0]
    stored = initializer(result.model, result.model.graph.node[0].input[1])
    assert np.array_equal(stored.astype(np.float64), nearest(exact, dtype))


@pytest.mark.parametrize("gamma", [1 + 2.0**-8 + 2.0**-33, 1 + 2.0**-8 - 2.0**-33, -1 - 2.0**-8 - 2.0**-33])
def test_bfloat16_is_rounded_from_float64(gamma):
    """gamma is next to a tie of bfloat16, closer than float32 can tell: the way by float32 would round it wrongly."""
    text = "c = Conv (x, w)\ny = BatchNormalization <epsilon = 0.0> (c, g, z, z, v)"
    parameters = {"g": np.array([gamma]), "z": np.zeros(1), "v": np.ones(1)}
    held = {name: numbers(name, value, np.float64) for name, value in parameters.items()}
    proto = graph(text, (1, 1, 2, 2), dtype=BFLOAT16, w=np.ones((1, 1, 1, 1)), **held)
    result = check(proto, nodes="Conv", runs=False)
    stored = initializer(result.model, result.model.graph.node[0].input[1])
    assert float(stored.ravel()[0]) == nearest(np.array([gamma]), BFLOAT16)[0]
