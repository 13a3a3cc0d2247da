"""Weights behind a DequantizeLinear: the factor goes into the scale, the integers stay, or the site does."""

import numpy as np
import pytest

from tests.conftest import initializer, ops
from tests.folding import check, graph

CONV = "[dq] w = DequantizeLinear <axis = {axis}> (q, s, z)\nc = Conv (x, w{bias})\n"
MUL = "y = Mul (c, k)"
SHAPE = (5, 4, 3, 3)


def quantised(dtype=np.int8, scale=(5,), axis=0, zero=None, low=-100, high=100, shape=SHAPE, **more):
    """The tensors of a quantised weight; the zero point is the same everywhere, or None for random ones."""
    rng = np.random.default_rng(7)
    info = np.iinfo(dtype)
    middle = 0 if info.min else (int(info.max) + 1) // 2
    zeros = np.full(scale, middle if zero is None else zero, dtype)
    q = rng.integers(max(low + middle, info.min), min(high + middle, info.max), shape).astype(dtype)
    return {"q": q, "s": rng.uniform(0.001, 0.02, scale).astype(np.float32), "z": zeros, **more}


def factor(*values):
    """Per map, against NCHW."""
    return np.array(values, np.float32).reshape(-1, 1, 1)


POSITIVE, SIGNED, ZEROED = factor(0.5, 2, 3, 1, 1.5), factor(-0.5, 2, -3, 1, 1.5), factor(0, 2, 3, 0, 1.5)


def parts(model):
    """q, s and z as the DequantizeLinear in the model reads them, and its axis."""
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear")
    values = [initializer(model, name) for name in node.input if name]
    return (*values, next((a.i for a in node.attribute if a.name == "axis"), 1))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8], ids=["int8", "uint8"])
@pytest.mark.parametrize("scale", [(5,), (), (1,)], ids=["per_channel", "per_tensor", "one"])
@pytest.mark.parametrize("k", [POSITIVE, factor(*[2.5] * 5), np.float32(0.5)], ids=["vector", "equal", "scalar"])
def test_scale_takes_the_factor_and_integers_keep_their_bytes(dtype, scale, k):
    """Per-tensor becomes per-channel where the factor varies, the zero point with it; else the form stays."""
    tensors = quantised(dtype, scale, k=k)
    text = CONV.format(axis=0, bias="") + MUL
    result = check(graph(text, **tensors), nodes="DequantizeLinear Conv", limit=4e-6)
    q, s, z, axis = parts(result.model)
    factors = np.broadcast_to(np.asarray(k, np.float64).ravel(), 5)
    varies = (factors != factors[0]).any()
    assert q.tobytes() == tensors["q"].tobytes()
    assert s.shape == z.shape == ((5,) if varies else scale)
    assert not varies or axis == 0
    expected = (tensors["s"].astype(np.float64) * (factors if s.shape == (5,) else factors[0])).astype(np.float32)
    assert np.array_equal(s, np.broadcast_to(expected, s.shape))
    assert (z == tensors["z"].ravel()[0]).all()
    assert z.dtype == dtype


@pytest.mark.parametrize("k", [SIGNED, ZEROED], ids=["negative", "zero"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8], ids=["int8", "uint8"])
@pytest.mark.parametrize("scale", [(5,), ()], ids=["per_channel", "per_tensor"])
def test_negative_and_zero_factors(scale, dtype, k):
    """Scales stay positive: integers are mirrored at the zero point, or become it; the other maps keep theirs."""
    tensors = quantised(dtype, scale, k=k)
    result = check(graph(CONV.format(axis=0, bias="") + MUL, **tensors), nodes="DequantizeLinear Conv", limit=4e-6)
    q, s, z, _ = parts(result.model)
    sign = np.sign(k).ravel().astype(int)
    middle = int(tensors["z"].ravel()[0])
    assert (s > 0).all()
    assert np.array_equal(q, middle + (tensors["q"].astype(int) - middle) * sign[:, None, None, None])
    assert np.array_equal(s[sign == 0], np.broadcast_to(tensors["s"], 5)[sign == 0])
    assert q.dtype == z.dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "zero", "value"), [(np.int8, 0, -128), (np.int8, 20, -100), (np.uint8, 128, 0), (np.uint8, 0, 5)]
)
def test_a_mirrored_integer_that_does_not_fit(dtype, zero, value):
    """-128 has no opposite, 0 at zero point 128 neither: refused, unless that map is not negated."""
    tensors = quantised(dtype, (5,), zero=zero, low=0, high=20)
    tensors["q"][0, 1, 1, 1] = value
    text = CONV.format(axis=0, bias="") + MUL
    result = check(graph(text, **tensors, k=SIGNED), folded=0, left=["quantized-weight"])
    assert "'dq'" in result.refused[0].message
    check(graph(text, **tensors, k=POSITIVE), limit=4e-6)


@pytest.mark.parametrize("bias", ["", ", b"], ids=["no_bias", "float_bias"])
def test_batchnorm_behind_a_quantised_conv(bias):
    """Shift goes to a float bias, no quantised weight is turned into a float one."""
    tensors = quantised(b=(5,)) if bias else quantised()
    result = check(graph(CONV.format(axis=0, bias=bias) + "y = BN <maps = 5> (c)", **tensors), limit=4e-6)
    assert ops(result.model) == ["DequantizeLinear", "Conv"]
    assert parts(result.model)[0].dtype == np.int8


BIAS = "bf = DequantizeLinear <axis = 0> (bq, bs)\n"


def test_bias_behind_a_dequantize_linear():
    """int32 bias: a scale multiplies its scale too; a shift would need a float bias in its place."""
    tensors = quantised(bq=np.array([100, -200, 300, 0, 7], np.int32), bs=np.full(5, 0.01, np.float32))
    text = BIAS + CONV.format(axis=0, bias=", bf")
    result = check(
        graph(text + MUL, **tensors, k=POSITIVE), nodes="DequantizeLinear DequantizeLinear Conv", limit=4e-6
    )
    kept = next(t for t in result.model.graph.initializer if list(t.dims) == [5] and t.data_type == 6)
    assert kept.raw_data == tensors["bq"].tobytes()
    result = check(graph(text + "y = BN <maps = 5> (c)", **tensors), limit=4e-6)
    assert "BatchNormalization" not in ops(result.model)
    assert parts(result.model)[0].dtype in (np.int8, np.int32)


@pytest.mark.parametrize(
    ("scale", "axis", "op", "shape", "maps"),
    [
        ((4,), 1, "Conv (x, w)", SHAPE, 5),
        ((4,), 0, "ConvTranspose <group = 2> (x, w)", (4, 5, 3, 3), 10),
        ((), 0, "ConvTranspose <group = 2> (x, w)", (4, 5, 3, 3), 10),
    ],
    ids=["other_axis", "transposed_group", "spread_over_two_axes"],
)
def test_scale_along_another_axis_than_the_maps(scale, axis, op, shape, maps):
    """A factor along one axis cannot go into a scale along another, nor one along two into any."""
    text = f"w = DequantizeLinear <axis = {axis}> (q, s, z)\nc = {op}\ny = BN <maps = {maps}> (c)"
    check(graph(text, **quantised(np.int8, scale, shape=shape)), folded=0, left=["quantized-weight"])


@pytest.mark.parametrize(
    ("text", "scale", "axis", "shape", "x"),
    [
        ("c = ConvTranspose (x, w)\ny = Mul (c, k)", (5,), 1, (4, 5, 3, 3), (2, 4, 6, 6)),
        ("c = Gemm (x, w)\ny = Mul (c, v)", (5,), 1, (4, 5), (3, 4)),
        ("c = Gemm <transB = 1> (x, w)\ny = Mul (c, v)", (5,), 0, (5, 4), (3, 4)),
        ("c = MatMul (x, w)\ny = Mul (c, v)", (5,), 1, (4, 5), (2, 3, 4)),
        ("c = MatMul (x, w)\ny = Mul (c, v)", (), 0, (4, 5), (2, 3, 4)),
        ("c = Mul (x, i)\ny = Conv (c, w)", (4,), 1, SHAPE, (2, 4, 6, 6)),
        ("c = Mul (x, i)\ny = Conv (c, w)", (), 0, SHAPE, (2, 4, 6, 6)),
    ],
    ids=["conv_transpose", "gemm", "gemm_trans", "matmul", "matmul_widened", "push", "push_widened"],
)
def test_other_absorbers(text, scale, axis, shape, x):
    """Whatever axis the maps lie on, the scale along that axis takes them."""
    tensors = quantised(np.int8, scale, shape=shape)
    held = {"k": POSITIVE, "v": POSITIVE.ravel(), "i": factor(2, 0.5, 3, 4)}
    tensors |= {name: value for name, value in held.items() if f", {name})" in text}
    result = check(graph(f"w = DequantizeLinear <axis = {axis}> (q, s, z)\n{text}", x, **tensors), limit=4e-6)
    assert parts(result.model)[0].tobytes() == tensors["q"].tobytes()


def test_push_where_the_scale_lies_along_the_other_axis():
    """Scale per output map, factor per input map: refused."""
    proto = graph("w = DequantizeLinear <axis = 0> (q, s, z)\n[m] c = Mul (x, i)\ny = Conv (c, w)", **quantised(),
                  i=factor(2, 0.5, 3, 4))  # fmt: skip
    check(proto, folded=0, left=["quantized-weight"])


@pytest.mark.parametrize("also", ["z1 = Conv (x, w)", "z1 = Relu (w)", None], ids=["conv", "relu", "output"])
def test_a_shared_dequantize_linear_stays(also):
    """Its output is read elsewhere, or public: the scale would change there too."""
    text = CONV.format(axis=0, bias="") + "[m] " + MUL + (f"\n{also}" if also else "")
    proto = graph(text, **quantised(), k=POSITIVE, outputs=("y", "z1" if also else "w"))
    check(proto, folded=0, left=["quantized-weight"])


def test_integers_and_scale_shared_by_two_dequantize_linears():
    """Each gets a scale of its own; the integers are still one tensor, the other Conv computes what it did."""
    text = CONV.format(axis=0, bias="") + MUL + "\nw2 = DequantizeLinear <axis = 0> (q, s, z)\no = Conv (x, w2)"
    result = check(graph(text, **quantised(), k=POSITIVE, outputs=("y", "o")), limit=4e-6)
    nodes = [n for n in result.model.graph.node if n.op_type == "DequantizeLinear"]
    assert nodes[0].input[0] == nodes[1].input[0] == "q"
    assert nodes[0].input[1] != nodes[1].input[1] == "s"


@pytest.mark.parametrize(("scale", "k", "folds"), [((), np.float32(2), 1), ((), POSITIVE, 0), ((1,), POSITIVE, 0)])
def test_opset_10_has_no_axis(scale, k, folds):
    """There one scale cannot become many; one number may still change."""
    text = "w = DequantizeLinear (q, s, z)\nc = Conv (x, w)\n" + MUL
    proto = graph(text, **quantised(np.int8, scale, k=k), opset=10)
    check(proto, folded=folds, left=["quantized-weight"] * (1 - folds), limit=4e-6, runs=scale == ())


def test_no_zero_point():
    """Without one there is nothing to widen."""
    tensors = quantised(np.int8, ())
    del tensors["z"]
    proto = graph("w = DequantizeLinear (q, s)\nc = Conv (x, w)\n" + MUL, **tensors, k=SIGNED)
    node = check(proto, limit=4e-6).model.graph.node[0]
    assert len(node.input) == 2


def test_quantize_linear_between_stays():
    """The rounding of activations would move."""
    text = (
        "c = Conv (x, w)\nq1 = QuantizeLinear (c, s, z)\nd = DequantizeLinear (q1, s, z)\n[m] y = BN <maps = 5> (d)"
    )
    proto = graph(text, w=SHAPE, s=np.float32(0.1), z=np.int8(0))
    check(proto, folded=0, left=["quantize-between"])


def test_blocked_scales_stay():
    """One scale for each block of two along axis 1: no factor along axis 0 has a place in it that bnfold knows."""
    text = (
        "w = DequantizeLinear <axis = 1, block_size = 2> (q, s)\nc = Gemm <transB = 1> (x, w)\ny = BN <maps = 5> (c)"
    )
    tensors = {"q": np.ones((5, 4), np.int8), "s": np.full((5, 2), 0.1, np.float32)}
    check(graph(text, (3, 4), **tensors, opset=21), folded=0, left=["quantized-weight"])
