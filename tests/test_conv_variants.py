"""Conv in every shape and type: the outputs, and the numbers that are stored, bit for bit.

The expectation is computed here from the formulas, with an own convolution and own rounding; onnxruntime runs
float32 and float16, for float64 and bfloat16 (no kernel on the CPU) the own convolution stands in.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import onnxruntime.capi.onnxruntime_pybind11_state as ort_errors
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

import bnfold
from tests.conftest import initializer, model, ops, run, tensor

PARAMETERS = ("gamma", "beta", "mean", "var")
EPSILON = float(np.float32(1e-5))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Variant(NamedTuple):
    """A Conv: the shapes of its weight and input, and its attributes."""

    w: tuple[int, ...]
    x: tuple[int, ...]
    attributes: dict[str, Any]


VARIANTS = {
    "1d": Variant((4, 3, 5), (2, 3, 11), {"pads": [2, 2]}),
    "2d": Variant((4, 3, 3, 3), (2, 3, 7, 6), {"pads": [1, 1, 1, 1]}),
    "3d": Variant((4, 2, 2, 3, 2), (1, 2, 4, 5, 3), {"pads": [0, 1, 0, 1, 1, 1]}),
    "grouped": Variant((6, 2, 3, 3), (1, 4, 6, 6), {"group": 2}),
    "depthwise": Variant((4, 1, 3, 3), (1, 4, 6, 6), {"group": 4, "pads": [1, 1, 1, 1]}),
    "depthwise 1d": Variant((4, 1, 3), (1, 4, 6), {"group": 4}),
    "channel multiplier 2": Variant((8, 1, 3, 3), (1, 4, 6, 6), {"group": 4}),
    "dilated": Variant((4, 3, 3, 3), (1, 3, 9, 9), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "strided": Variant((4, 3, 3, 2), (1, 3, 9, 8), {"strides": [2, 3]}),
    "asymmetric pads": Variant((4, 3, 3, 3), (1, 3, 6, 6), {"pads": [0, 2, 1, 0]}),
    "same upper": Variant((4, 3, 3, 2), (1, 3, 7, 8), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": Variant((4, 3, 3, 2), (1, 3, 7, 8), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "valid": Variant((4, 3, 3, 3), (1, 3, 7, 8), {"auto_pad": "VALID"}),
    "notset": Variant((4, 3, 3, 3), (1, 3, 7, 8), {"auto_pad": "NOTSET", "pads": [1, 1, 1, 1]}),
    "pointwise": Variant((5, 3, 1, 1), (2, 3, 4, 4), {"kernel_shape": [1, 1]}),
    "one map": Variant((1, 3, 3, 3), (1, 3, 5, 5), {}),
    "one input map": Variant((4, 1, 3, 3), (1, 1, 5, 5), {}),
}
# Each type with what its outputs may differ by, of their scale: rounding W' and b', and summing up.
DTYPES = {"float32": 2e-6, "float16": 4 * 2.0**-10, "float64": 4e-15, "bfloat16": 4 * 2.0**-7}
BIASES = ("none", "bias", "empty")


def dtype_of(name: str) -> np.dtype:
    """The numpy dtype, bfloat16 included."""
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def conv_inputs(bias: str) -> list[str]:
    """The inputs of the Conv."""
    return {"none": ["x", "w"], "bias": ["x", "w", "b"], "empty": ["x", "w", ""]}[bias]


def numbers(variant: Variant, dtype: np.dtype, seed: int, parameters: Any = None) -> dict[str, Any]:
    """Random weight, bias and parameters (also a second set, `gamma2` ...), in their types."""
    rng = np.random.default_rng(seed)
    maps = variant.w[0]
    held = {"w": rng.normal(size=variant.w).astype(dtype), "b": rng.normal(size=maps).astype(dtype)}
    for suffix in ("", "2"):
        values = (
            rng.uniform(0.5, 2, maps) * rng.choice([-1, 1], maps),
            rng.normal(size=maps),
            rng.normal(size=maps),
            rng.uniform(0.1, 3, maps),
        )
        for name, value in zip(PARAMETERS, values, strict=True):
            held[name + suffix] = value.astype(parameters or dtype)
    return held


def batchnorm(x: str, y: str, suffix: str = "") -> NodeProto:
    """A BatchNormalization with one set of parameters."""
    return helper.make_node("BatchNormalization", [x, *(n + suffix for n in PARAMETERS)], [y], name=f"bn{suffix}")


def build(variant: Variant, held: dict[str, Any], bias: str, norms: int = 1, shape: Any = None) -> ModelProto:
    """Conv and one or two BatchNormalizations, of the type of the weight, with the tensors that they read."""
    nodes = [helper.make_node("Conv", conv_inputs(bias), ["c"], name="conv", **variant.attributes)]
    nodes += [batchnorm("c", "y")] if norms == 1 else [batchnorm("c", "d"), batchnorm("d", "y", "2")]
    used = {name for node in nodes for name in node.input}
    tensors = [tensor(name, values, values.dtype) for name, values in held.items() if name in used]
    kind = helper.np_dtype_to_tensor_dtype(held["w"].dtype)
    return model(nodes, tensors, shape or variant.x, opset=22, ir_version=10, elem_type=kind)


def fold(proto: ModelProto) -> ModelProto:
    """The folded model: one Conv, and valid."""
    result = bnfold.fold(proto, verify=False)
    assert not result.refused
    assert ops(result.model) == ["Conv"]
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(result.model), full_check=True)
    return result.model


def affine(held: dict[str, Any], suffix: str = "") -> tuple[Any, Any]:
    """s and t of Alg. 2, in float64."""
    gamma, beta, mean, var = (held[name + suffix].astype(np.float64) for name in PARAMETERS)
    s = gamma / np.sqrt(var + EPSILON)
    return s, beta - s * mean


def rounded(values: Any, dtype: np.dtype) -> Any:
    """float64 to `dtype`, to nearest and once; bfloat16 on the bits: it has the top 7 of 52 fraction bits."""
    if dtype != BFLOAT16:
        return values.astype(dtype)
    bits = np.ascontiguousarray(values).view(np.uint64)
    last = (bits >> np.uint64(45)) & np.uint64(1)
    nearest = (bits + np.uint64(2**44 - 1) + last) & ~np.uint64(2**45 - 1)
    return nearest.view(np.float64).astype(BFLOAT16)  # exact: the numbers are of normal size


def by_map(factor: Any, w: Any) -> Any:
    """factor[o] * w[o], in float64."""
    return factor.reshape(-1, *[1] * (w.ndim - 1)) * w.astype(np.float64)


def folded_bias(proto: ModelProto) -> Any:
    """What the Conv adds."""
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    return initializer(proto, conv.input[2])


def padding(variant: Variant, reach: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """Zeros before and after each spatial axis; `reach` is the dilated kernel's size (Conv-22)."""
    auto, given = variant.attributes.get("auto_pad", "NOTSET"), variant.attributes.get("pads")
    if not auto.startswith("SAME"):
        return list(zip(given[: len(reach)], given[len(reach) :], strict=True)) if given else [(0, 0)] * len(reach)
    pairs = []
    for size, k, stride in zip(variant.x[2:], reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + k - size, 0)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return pairs


def convolve(variant: Variant, x: Any, w: Any, b: Any) -> Any:
    """Conv in float64, straight from the definition: a window for each output, summed against the kernel."""
    rank = len(variant.w) - 2
    strides = variant.attributes.get("strides", [1] * rank)
    dilations = variant.attributes.get("dilations", [1] * rank)
    group = variant.attributes.get("group", 1)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, variant.w[2:], strict=True)]
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *padding(variant, reach, strides)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, rank + 2)))
    windows = windows[(..., *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))]
    windows = windows.reshape(len(x), group, -1, *windows.shape[2:])
    kernel = w.astype(np.float64).reshape(group, -1, *w.shape[1:])
    axes = "uvw"[:rank]
    out = np.einsum(f"ngi{axes.upper()}{axes},goi{axes}->ngo{axes.upper()}", windows, kernel)
    return out.reshape(len(x), -1, *out.shape[3:]) + b.astype(np.float64).reshape(-1, *[1] * rank)


def close(found: Any, wanted: Any, limit: float) -> bool:
    """Within `limit` of the scale."""
    return np.abs(found.astype(np.float64) - wanted).max() <= limit * np.abs(wanted).max()


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_weight_and_bias_are_rounded_once(name, dtype, bias):
    """W' = s W and b' = s b + t in float64, rounded once into the weight's type, bit for bit; attributes stay."""
    variant, kind = VARIANTS[name], dtype_of(dtype)
    held = numbers(variant, kind, seed=len(name))
    proto = build(variant, held, bias)
    folded = fold(proto)
    s, t = affine(held)
    old_bias = held["b"].astype(np.float64) if bias == "bias" else np.zeros(variant.w[0])
    np.testing.assert_array_equal(initializer(folded, "w_folded"), rounded(by_map(s, held["w"]), kind), strict=True)
    np.testing.assert_array_equal(folded_bias(folded), rounded(s * old_bias + t, kind), strict=True)
    assert folded.graph.node[0].attribute == proto.graph.node[0].attribute


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_are_the_same(name, dtype, bias):
    """The folded model gives what Conv and BatchNormalization gave, and both what the definition says."""
    variant, kind = VARIANTS[name], dtype_of(dtype)
    held = numbers(variant, kind, seed=len(name))
    proto = build(variant, held, bias)
    folded = fold(proto)
    x = np.random.default_rng(1).normal(size=variant.x).astype(kind)
    s, t = affine(held)
    plain = convolve(variant, x, held["w"], held["b"] if bias == "bias" else np.zeros(variant.w[0]))
    shape = (-1, *[1] * (len(variant.x) - 2))
    wanted = s.reshape(shape) * plain + t.reshape(shape)
    stored = convolve(variant, x, initializer(folded, "w_folded"), folded_bias(folded))
    assert close(stored, wanted, DTYPES[dtype])
    if dtype in {"float32", "float16"}:
        before, after = (run(m, {"x": x})[0] for m in (proto, folded))
        assert before.dtype == after.dtype == kind
        assert before.shape == after.shape == wanted.shape
        assert close(before, wanted, DTYPES[dtype])
        assert close(after, wanted, DTYPES[dtype])


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_there_is_no_kernel_to_run_these(dtype):
    """The reason why this file convolves by itself; when this fails, let onnxruntime run these types too."""
    variant, kind = VARIANTS["2d"], dtype_of(dtype)
    proto = build(variant, numbers(variant, kind, seed=0), "none")
    with pytest.raises(ort_errors.NotImplemented):
        run(proto, {"x": np.zeros(variant.x, kind)})


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["2d", "1d", "channel multiplier 2"])
def test_two_batchnorms_round_once(name, dtype, bias):
    """BN after BN is one map s2 s1, s2 t1 + t2, and one rounding; rounding after each would give other numbers."""
    variant, kind = VARIANTS[name], dtype_of(dtype)
    held = numbers(variant, kind, seed=3)
    folded = fold(build(variant, held, bias, norms=2))
    (s1, t1), (s2, t2) = affine(held), affine(held, "2")
    found = initializer(folded, "w_folded")
    np.testing.assert_array_equal(found, rounded(by_map(s2 * s1, held["w"]), kind), strict=True)
    assert (found != rounded(by_map(s2, rounded(by_map(s1, held["w"]), kind)), kind)).any()
    old_bias = held["b"].astype(np.float64) if bias == "bias" else 0
    np.testing.assert_array_equal(folded_bias(folded), rounded(s2 * (s1 * old_bias + t1) + t2, kind), strict=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_float32_parameters_keep_their_precision(dtype):
    """The scale is not rounded to the weight's type on the way (onnxruntime's fp16_eps, PyTorch's Linear)."""
    variant, kind = VARIANTS["2d"], dtype_of(dtype)
    held = numbers(variant, kind, seed=4, parameters=np.float32)
    folded = fold(build(variant, held, "bias"))
    s, t = affine(held)
    np.testing.assert_array_equal(initializer(folded, "w_folded"), rounded(by_map(s, held["w"]), kind), strict=True)
    np.testing.assert_array_equal(folded_bias(folded), rounded(s * held["b"].astype(float) + t, kind), strict=True)


def test_bfloat16_tie_is_not_rounded_twice():
    """1 + 2^-8 + 2^-40 is above the tie: 1 + 2^-7. By way of float32 it would become the tie, and then 1."""
    held = {
        "w": np.ones((1, 1, 1, 1), BFLOAT16),
        "gamma": np.array([1 + 2.0**-8 + 2.0**-40]),
        "beta": np.array([-(1 + 2.0**-8 + 2.0**-40)]),
        "mean": np.zeros(1),
        "var": np.array([1 - EPSILON]),
    }
    folded = fold(build(Variant((1, 1, 1, 1), (1, 1, 2, 2), {}), held, "none"))
    assert initializer(folded, "w_folded").item() == 1 + 2.0**-7
    assert folded_bias(folded).item() == -(1 + 2.0**-7)


def test_bfloat16_just_below_the_tie():
    """1 + 2^-8 - 2^-40 is below the tie: 1. float32 rounds it up to the tie, from where odd must mean downwards."""
    scale = 1 + 2.0**-8 - 2.0**-40
    held = {"w": np.array([[[[1]]], [[[1 + 2.0**-7]]]], BFLOAT16), "beta": np.zeros(2), "mean": np.zeros(2)}
    held |= {"gamma": np.array([scale, 1 + 2.0**-8 + 2.0**-40]), "var": np.full(2, 1 - EPSILON)}
    folded = fold(build(Variant((2, 1, 1, 1), (1, 1, 2, 2), {}), held, "none"))
    exact = held["w"].astype(np.float64).ravel() * held["gamma"]
    assert initializer(folded, "w_folded").ravel().tolist() == [1, rounded(exact, BFLOAT16)[1]]


def cast_like(declared: Any) -> ModelProto:
    """A float16 Conv of Relu(x) with gamma = CastLike(0.1, Relu(x)), which only a runtime's types make float16."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(np.float16))
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("CastLike", ["g", "h"], ["gamma"]),
        helper.make_node("Conv", ["h", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "zero", "zero", "one"], ["y"], epsilon=0.0),
    ]
    held = [tensor("g", [0.1]), tensor("w", [[[[7]]]], np.float16)]
    held += [tensor("zero", [0], np.float16), tensor("one", [1], np.float16)]
    proto = model(nodes, held, (1, 1, 2, 2), elem_type=kind)
    if declared:
        proto.graph.value_info.append(helper.make_tensor_value_info("h", kind, [1, 1, 2, 2]))
    return proto


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
def test_constant_cast_like_a_run_time_value(declared):
    """gamma is float16(0.1), as h is float16; where nobody declares h, no type may be made up: right, or refused."""
    result = bnfold.fold(cast_like(declared), verify=False)
    wanted = np.float16(7 * np.float64(np.float16(0.1)))
    assert wanted != np.float16(7 * np.float64(np.float32(0.1)))
    if declared or result.folded:
        assert initializer(result.model, "w_folded").item() == wanted
    else:
        assert [site.code for site in result.refused] == ["params-not-constant"]


def test_bias_cast_like_an_undeclared_value():
    """The bias is float16 as h is, though nobody declares h: it folds or is unknown; the model is not invalid."""
    proto = cast_like(declared=False)
    cast, conv, norm = proto.graph.node[1:]
    cast.output[0] = "b"
    conv.input.append("b")
    norm.input[1] = "two"
    proto.graph.initializer.append(tensor("two", [2], np.float16))
    result = bnfold.fold(proto, verify=False)
    if result.folded:
        assert folded_bias(result.model).item() == 2 * np.float16(0.1)
    else:
        assert [site.code for site in result.refused] == ["weights-not-constant"]


def test_float16_variance_below_its_normal_range():
    """var = 6e-8 and epsilon are added in float64, not in float16 where they would be zero (fp16_eps, FIELD 62)."""
    variant = VARIANTS["pointwise"]
    held = numbers(variant, np.dtype(np.float16), seed=5)
    held["var"][:] = np.float16(6e-8)
    held["mean"][:] = 0
    folded = fold(build(variant, held, "none"))
    assert held["var"][0] == 2.0**-24
    s, _ = affine(held)
    wanted = rounded(by_map(s, held["w"]), np.dtype(np.float16))
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(initializer(folded, "w_folded"), wanted, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", BIASES)
def test_zero_gamma(bias, dtype):
    """Maps with s = 0 get exactly zero weights and beta as bias, and a note that counts and lists them."""
    variant, kind = VARIANTS["2d"], dtype_of(dtype)
    held = numbers(variant, kind, seed=6)
    held["gamma"][[1, 3]] = 0
    result = bnfold.fold(build(variant, held, bias), verify=False)
    w = initializer(result.model, "w_folded").astype(np.float64)
    assert (w[[1, 3]] == 0).all()
    assert (w[[0, 2]] != 0).all()
    np.testing.assert_array_equal(folded_bias(result.model)[[1, 3]], held["beta"][[1, 3]], strict=True)
    (note,) = result.folded[0].notes
    assert "2 maps" in note
    assert "(1, 3)" in note


def test_no_note_without_dead_maps():
    """A usual fold has nothing to remark."""
    variant = VARIANTS["2d"]
    proto = build(variant, numbers(variant, np.dtype(np.float32), seed=6), "bias")
    assert bnfold.fold(proto, verify=False).folded[0].notes == ()


def test_all_maps_dead():
    """gamma = 0 everywhere: a constant output, still a Conv of the right shape."""
    variant = VARIANTS["2d"]
    held = numbers(variant, np.dtype(np.float32), seed=6)
    held["gamma"][:] = 0
    proto = build(variant, held, "bias")
    x = np.random.default_rng(1).normal(size=variant.x).astype(np.float32)
    np.testing.assert_array_equal(run(fold(proto), {"x": x})[0], run(proto, {"x": x})[0], strict=True)


def test_identity_batchnorm_changes_no_number():
    """gamma = 1, var + epsilon = 1, beta = mean = 0: W and b stay, name and bits."""
    variant = VARIANTS["2d"]
    held = numbers(variant, np.dtype(np.float32), seed=7)
    for name, value in zip(PARAMETERS, (1, 0, 0, 1), strict=True):
        held[name][:] = value
    proto = build(variant, held, "bias")
    proto.graph.node[1].attribute.append(helper.make_attribute("epsilon", 0.0))
    folded = fold(proto)
    assert ops(folded) == ["Conv"]
    assert list(folded.graph.node[0].input[1:]) == ["w", "b"]
    np.testing.assert_array_equal(initializer(folded, "w"), held["w"], strict=True)
    np.testing.assert_array_equal(initializer(folded, "b"), held["b"], strict=True)


@pytest.mark.parametrize(
    "shape", [("N", 3, "H", "W"), (None, 3, None, None), (2, 3, "H", 6)], ids=["names", "none", "H"]
)
def test_dynamic_dimensions(shape):
    """Free N, H and W: the fold needs none of them, the declared input stays, and any size runs."""
    variant = VARIANTS["2d"]
    proto = build(variant, numbers(variant, np.dtype(np.float32), seed=8), "bias", shape=shape)
    folded = fold(proto)
    assert folded.graph.input == proto.graph.input
    assert folded.graph.output == proto.graph.output
    x = np.random.default_rng(1).normal(size=variant.x).astype(np.float32)
    before, after = (run(m, {"x": x})[0] for m in (proto, folded))
    assert close(after, before.astype(np.float64), DTYPES["float32"])


STORAGE = {"float16": "int32_data", "bfloat16": "int32_data", "float32": "float_data", "float64": "double_data"}


@pytest.mark.parametrize("dtype", STORAGE)
def test_typed_fields_and_raw_data_are_the_same_numbers(dtype):
    """Tensors in float_data, double_data or int32_data fold to what raw_data gives, and hold one copy (FIELD 81)."""
    variant, kind = VARIANTS["2d"], dtype_of(dtype)
    proto = build(variant, numbers(variant, kind, seed=9), "bias")
    typed = ModelProto()
    typed.CopyFrom(proto)
    for held in typed.graph.initializer:
        array = numpy_helper.to_array(held)
        held.ClearField("raw_data")
        values = array.view(np.uint16) if array.itemsize == 2 else array
        getattr(held, STORAGE[dtype]).extend(values.ravel().tolist())
    assert fold(typed) == fold(proto)


def test_empty_kernel_is_no_crash():
    """A weight with no elements (no input maps) folds or is refused, and nothing is raised (FIELD 87)."""
    held = numbers(VARIANTS["2d"], np.dtype(np.float32), seed=10)
    held["w"] = np.zeros((4, 0, 3, 3), np.float32)
    result = bnfold.fold(build(Variant((4, 0, 3, 3), (1, 0, 5, 5), {}), held, "bias"), verify=False)
    assert len(result.folded) + len(result.refused) == 1
