"""BatchNormalization and Conv in every opset, with the meaning that each gives them."""

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnxruntime.capi.onnxruntime_pybind11_state as ort_errors
import pytest
from onnx import ModelProto, helper

import bnfold
from bnfold.find import batchnorm
from tests.conftest import assert_same_outputs, conv_bn, initializer, model, ops, random_feeds, run, tensor

NEWEST = onnx.defs.onnx_opset_version()
WITH_IS_TEST = (1, 5, 6)
WITHOUT_IS_TEST = (7, 8, 9, 10, 11, 13, 14, 15, 17, 20, 21, 22)
TRAINING_BY_OUTPUTS = (7, 8, 9, 13)
MAPS = 4


def inference(opset: int) -> dict[str, Any]:
    """The attribute that says inference, where one must; and `consumed_inputs`, which version 1 requires."""
    if opset < 6:
        return {"is_test": 1, "consumed_inputs": [0, 0, 0, 0, 0]}
    return {"is_test": 1} if opset < 7 else {}


def expected_weight(proto: ModelProto, epsilon: float = float(np.float32(1e-5))) -> np.ndarray:
    """gamma / sqrt(var + epsilon) * W in float64, rounded once to float32."""
    gamma, var, w = (initializer(proto, name).astype(np.float64) for name in ("gamma", "var", "w"))
    return ((gamma / np.sqrt(var + epsilon)).reshape(-1, 1, 1, 1) * w).astype(np.float32)


def bn_outputs(proto: ModelProto, names: list[str]) -> ModelProto:
    """The same model with other outputs of the BatchNormalization."""
    proto.graph.node[1].output[:] = names
    return proto


def codes(proto: ModelProto, **options: bool) -> list[str | None]:
    """The codes of what stays."""
    return [site.code for site in bnfold.fold(proto, verify=False, **options).refused]


@pytest.mark.parametrize("opset", [*WITH_IS_TEST, *WITHOUT_IS_TEST, NEWEST])
def test_inference_form_folds(opset):
    """In every opset the inference form folds, and the weight is the float64 product rounded once."""
    proto = conv_bn(opset=opset, bn=inference(opset))
    folded = bnfold.fold(proto, verify=False).model
    assert ops(folded) == ["Conv"]
    assert (initializer(folded, "w_folded") == expected_weight(proto)).all()
    assert folded.opset_import == proto.opset_import


@pytest.mark.parametrize("opset", WITHOUT_IS_TEST)
def test_folded_model_computes_the_same(opset):
    """Where onnxruntime has kernels, both models give the same outputs."""
    proto = conv_bn(opset=opset, bias=True)
    assert_same_outputs(proto, bnfold.fold(proto, verify=False).model)


@pytest.mark.parametrize("opset", WITH_IS_TEST)
def test_is_test_form_against_the_formula(opset):
    """Below opset 7 onnxruntime has no BatchNormalization; the folded Conv runs, and gives what Alg. 2 says."""
    proto = conv_bn(opset=opset, bn=inference(opset), bias=True)
    with pytest.raises(ort_errors.NotImplemented):
        run(proto, random_feeds(proto))
    conv = conv_bn(opset=opset, bias=True)
    del conv.graph.node[1]
    conv.graph.output[0].name = "c"
    gamma, beta, mean, var = (initializer(proto, n).reshape(-1, 1, 1) for n in ("gamma", "beta", "mean", "var"))
    feeds = random_feeds(proto)
    wanted = (run(conv, feeds)[0].astype(np.float64) - mean) / np.sqrt(var + 1e-5) * gamma + beta
    found = run(bnfold.fold(proto, verify=False).model, feeds)[0]
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("opset", WITH_IS_TEST)
@pytest.mark.parametrize("attributes", [{}, {"is_test": 0}], ids=["absent", "zero"])
def test_is_test_zero_stays(opset, attributes):
    """Below opset 7 is_test is 0 unless given, and that is training."""
    result = bnfold.fold(conv_bn(opset=opset, bn=attributes), verify=False)
    assert [site.code for site in result.refused] == ["training-mode"]
    assert "is_test=0" in result.refused[0].message


def test_consumed_inputs_change_nothing():
    """BatchNormalization-1 carries hints for memory reuse, which say nothing about the numbers."""
    proto = conv_bn(opset=1, bn={"is_test": 1, "consumed_inputs": [1, 0, 0, 1, 1], "momentum": 0.5})
    assert (initializer(bnfold.fold(proto, verify=False).model, "w_folded") == expected_weight(proto)).all()


@pytest.mark.parametrize("opset", WITH_IS_TEST)
def test_training_outputs_below_opset_7_stay(opset):
    """Five outputs are the training form there too, though is_test is 1."""
    proto = bn_outputs(conv_bn(opset=opset, bn=inference(opset)), ["y", "m", "v", "sm", "sv"])
    assert codes(proto) == ["training-mode"]


@pytest.mark.parametrize("opset", TRAINING_BY_OUTPUTS)
@pytest.mark.parametrize("names", [["y", "m"], ["y", "m", "v", "sm", "sv"], ["y", "", "v"]], ids=len)
def test_training_by_outputs_stays(opset, names):
    """From opset 7 to 13 any further output with a name is the training form, read by somebody or not."""
    proto = bn_outputs(conv_bn(opset=opset), names)
    result = bnfold.fold(proto, verify=False)
    assert [site.code for site in result.refused] == ["training-mode"]
    assert f"{sum(map(bool, names))} outputs" in result.refused[0].message
    assert result.model == proto


@pytest.mark.parametrize("opset", [*TRAINING_BY_OUTPUTS, 14, 17])
@pytest.mark.parametrize("empty", [1, 2, 4])
def test_trailing_empty_outputs_are_absent(opset, empty):
    """Trailing outputs with empty names fold as if they were not there."""
    proto = bn_outputs(conv_bn(opset=opset), ["y", *[""] * empty])
    assert bnfold.fold(proto, verify=False).model == bnfold.fold(conv_bn(opset=opset), verify=False).model


NESTED = """
z = If (flag) <
  then_branch = yes () => (float[2,4,7,7] a) { a, "", "", "", "" = BatchNormalization (y, gamma, beta, mean, var) },
  else_branch = no () => (float[2,4,7,7] b) { b = Neg (y) }
>
"""
FUNCTION = """
<domain: "local", opset_import: ["" : 9]>
block (y, gamma, beta, mean, var) => (a) { a, "", "", "", "" = BatchNormalization (y, gamma, beta, mean, var) }
"""


@pytest.mark.parametrize("place", ["main", "branch", "function"])
def test_verifying_trailing_empty_outputs_kills_nobody(save, place):
    """onnxruntime 1.32 dies of these originals (opset 7 to 13, five outputs); bnfold must end in order."""
    proto = conv_bn(opset=9)
    if place == "main":
        bn_outputs(proto, ["y", "", "", "", ""])
    elif place == "branch":
        proto.graph.node.append(onnx.parser.parse_node(NESTED.replace("\n", " ")))
        proto.graph.initializer.append(tensor("flag", True, np.bool_))  # noqa: FBT003 - a tensor's value
    else:
        proto.functions.append(onnx.parser.parse_function(FUNCTION))
        proto.opset_import.append(helper.make_opsetid("local", 1))
        proto.graph.node.append(helper.make_node("block", ["y", *batchnorm.PARAMETERS], ["z"], domain="local"))
    if place != "main":
        proto.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    path = save(proto)
    command = [sys.executable, "-m", "bnfold", "fold", str(path), "-o", str(path.with_name("out.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in {0, 3}, done


@pytest.mark.parametrize("opset", [14, 15, 17, NEWEST])
def test_training_mode_attribute(opset):
    """From opset 14 on training_mode decides: 1 stays with one output or three, 0 folds."""
    training = conv_bn(opset=opset, bn={"training_mode": 1})
    assert codes(training) == ["training-mode"]
    assert codes(bn_outputs(training, ["y", "m", "v"])) == ["training-mode"]
    assert codes(conv_bn(opset=opset, bn={"training_mode": 0})) == []


def test_training_mode_zero_with_three_outputs_stays():
    """An invalid mixture of both forms is not touched."""
    assert codes(bn_outputs(conv_bn(opset=17), ["y", "m", "v"])) == ["training-mode"]


def spatial_zero(opset: int, shape: tuple[int, ...], spoil: str = "", **attributes: int) -> ModelProto:
    """Conv -> BatchNormalization with spatial = 0 and parameters of `shape`, equal within each map unless spoilt."""
    rng = np.random.default_rng(0)
    column = (MAPS, *[1] * (len(shape) - 1))
    held = [tensor("w", rng.normal(size=(MAPS, 2, *[1] * max(len(shape) - 1, 1))))]
    for name in ("gamma", "beta", "mean", "var"):
        values = np.broadcast_to(rng.uniform(0.5, 2, column), shape).copy()
        if name == spoil:
            values.flat[-1] += 0.25
        held.append(tensor(name, values))
    attributes = {"spatial": 0, **inference(opset), **attributes}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], name="bn", **attributes),
    ]
    return model(nodes, held, (1, 2, *(shape[1:] or (3,))), opset=opset)


@pytest.mark.parametrize("opset", [1, 6, 7, 8])
@pytest.mark.parametrize("shape", [(MAPS, 3), (MAPS, 3, 2), (MAPS, 2, 3, 2), (MAPS, 1, 1)], ids=len)
def test_spatial_zero_equal_within_each_map_folds(opset, shape):
    """Per-activation parameters that are equal over each map are one map's parameters."""
    proto = spatial_zero(opset, shape)
    folded = bnfold.fold(proto, verify=False).model
    gamma, var = (initializer(proto, name).reshape(MAPS, -1)[:, 0].astype(np.float64) for name in ("gamma", "var"))
    scale = (gamma / np.sqrt(var + np.float32(1e-5))).reshape(-1, *[1] * len(shape))
    assert ops(folded) == ["Conv"]
    assert (initializer(folded, "w_folded") == (scale * initializer(proto, "w")).astype(np.float32)).all()
    assert initializer(folded, "w_bias").shape == (MAPS,)


@pytest.mark.parametrize("opset", [1, 6, 7, 8])
@pytest.mark.parametrize("spoil", ["gamma", "beta", "mean", "var"])
def test_spatial_zero_varying_stays(opset, spoil):
    """One parameter that differs within one map makes it no per-map affine."""
    assert codes(spatial_zero(opset, (MAPS, 3, 2), spoil)) == ["not-per-map"]


@pytest.mark.parametrize("opset", [1, 6, 7, 8])
def test_spatial_zero_with_one_number_per_map_stays(opset):
    """spatial = 0 asks for (C, H, W); with (C,) nobody can tell what was meant."""
    assert codes(spatial_zero(opset, (MAPS,))) == ["not-per-map"]


@pytest.mark.parametrize("opset", [1, 6, 7, 8])
def test_spatial_one_is_the_usual_form(opset):
    """spatial = 1, said or not, is one pair for each map; parameters of another shape do not fit it."""
    proto = conv_bn(opset=opset, bn={"spatial": 1, **inference(opset)})
    assert (initializer(bnfold.fold(proto, verify=False).model, "w_folded") == expected_weight(proto)).all()
    assert codes(spatial_zero(opset, (MAPS, 3, 2), spatial=1)) == ["shape-mismatch"]


def float64_pair(var: float, **bn: float) -> tuple[np.ndarray, np.ndarray, ModelProto]:
    """w, gamma and a float64 Conv -> BatchNormalization with beta = mean = 0 and all variances `var`."""
    rng = np.random.default_rng(1)
    w, gamma = rng.normal(size=(MAPS, 2, 1, 1)), rng.normal(size=MAPS)
    held = [tensor("w", w, np.float64), tensor("gamma", gamma, np.float64)]
    held += [tensor(name, np.full(MAPS, v), np.float64) for name, v in (("zero", 0.0), ("var", var))]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "zero", "zero", "var"], ["y"], **bn),
    ]
    return w, gamma, model(nodes, held, (1, 2, 3, 3), elem_type=onnx.TensorProto.DOUBLE)


@pytest.mark.parametrize(
    ("bn", "epsilon"), [({}, 1e-5), ({"epsilon": 1e-5}, 1e-5), ({"epsilon": 1e-3}, 1e-3), ({"epsilon": 1e-12}, 1e-12)]
)
def test_epsilon_is_the_float32_of_the_attribute(bn, epsilon):
    """The attribute is a float32, so a runtime adds float32(epsilon): seen where float64 shows it, var = epsilon."""
    w, gamma, proto = float64_pair(epsilon, **bn)
    found = initializer(bnfold.fold(proto, verify=False).model, "w_folded")
    stored, written = (gamma / np.sqrt(epsilon + e) for e in (np.float64(np.float32(epsilon)), epsilon))
    assert (found == w * stored.reshape(-1, 1, 1, 1)).all()
    assert (found != w * written.reshape(-1, 1, 1, 1)).any()


def test_epsilon_zero_counts():
    """epsilon = 0 is a value, not an absent attribute."""
    w, gamma, proto = float64_pair(2.0, epsilon=0.0)
    found = initializer(bnfold.fold(proto, verify=False).model, "w_folded")
    assert (found == w * (gamma / np.sqrt(2.0)).reshape(-1, 1, 1, 1)).all()


@pytest.mark.parametrize("opset", [15, 17, NEWEST])
@pytest.mark.parametrize(
    ("weights", "scales", "statistics"),
    [
        (np.float16, np.float32, np.float32),
        (np.float32, np.float16, np.float64),
        (np.float32, ml_dtypes.bfloat16, np.float16),
        (np.float64, np.float32, np.float16),
    ],
    ids=["half-float-float", "float-half-double", "float-bfloat-half", "double-float-half"],
)
def test_parameters_of_other_types(opset, weights, scales, statistics):
    """From opset 15 on scale and bias, mean and var have types of their own; W' and b' keep the type of W."""
    rng = np.random.default_rng(3)
    w = rng.normal(size=(MAPS, 2, 1, 1)).astype(weights)
    gamma, beta = (rng.uniform(0.5, 2, MAPS).astype(scales) for _ in range(2))
    mean, var = (rng.uniform(0.5, 2, MAPS).astype(statistics) for _ in range(2))
    held = {"w": w, "gamma": gamma, "beta": beta, "mean": mean, "var": var}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"]),
    ]
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(weights))
    tensors = [tensor(name, values, values.dtype) for name, values in held.items()]
    proto = model(nodes, tensors, (1, 2, 3, 3), opset=opset, ir_version=10, elem_type=elem_type)
    folded = bnfold.fold(proto, verify=False).model
    g, b, m, v = (values.astype(np.float64) for values in (gamma, beta, mean, var))
    scale = g / np.sqrt(v + np.float32(1e-5))
    new_weight, new_bias = initializer(folded, "w_folded"), initializer(folded, "w_bias")
    assert new_weight.dtype == new_bias.dtype == weights
    assert (new_weight == (scale.reshape(-1, 1, 1, 1) * w.astype(np.float64)).astype(weights)).all()
    assert (new_bias == (b - scale * m).astype(weights)).all()


def test_ai_onnx_is_the_default_domain():
    """The standard operators may be imported and used by their long name too."""
    proto = conv_bn(opset=17)
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    assert codes(proto) == []
    assert len(bnfold.fold(proto, verify=False).folded) == 1


def test_model_without_opset_import_is_opset_1():
    """Below IR 3 there is no opset_import: version 1 of every operator, where is_test decides."""
    assert codes(_ir2(conv_bn(opset=1, ir_version=2))) == ["training-mode"]
    proto = _ir2(conv_bn(opset=1, ir_version=2, bn={"is_test": 1}))
    assert (initializer(bnfold.fold(proto, verify=False).model, "w_folded") == expected_weight(proto)).all()


def _ir2(proto: ModelProto) -> ModelProto:
    del proto.opset_import[:]
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    return proto


def test_every_version_that_onnx_has_is_known():
    """A version that onnx adds must be looked at, and then listed, or folding stops (onnxruntime#11960)."""
    schemas = onnx.defs.get_all_schemas_with_history()
    versions = {s.since_version for s in schemas if s.name == "BatchNormalization" and not s.domain}
    assert versions == set(batchnorm.KNOWN_VERSIONS)
