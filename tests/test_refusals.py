"""Each reason to leave a BatchNormalization: the code, a sentence that names the node, and what helps."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx.parser
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

import bnfold
from bnfold.find import batchnorm
from bnfold.refusals import Code
from bnfold.report import SiteReport
from tests.conftest import (
    assert_same_outputs,
    conv_bn,
    initializer,
    model,
    ops,
    tensor,
)

MAPS = 3
BN = "BatchNormalization 'bn'"
CONV = "Conv 'conv'"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TYPES = pytest.mark.parametrize(
    "dtype", [np.float16, BFLOAT16, np.float32, np.float64], ids=["f16", "bf16", "f32", "f64"]
)
DEFAULTS: dict[str, Any] = {"gamma": [1, 2, 3], "beta": [0, 1, 2], "mean": [2, 1, 0], "var": [1, 2, 3]}


def left(proto: ModelProto, code: str, *words: str, freeze_inputs: bool = False) -> SiteReport:
    """The only site; it is refused with `code`, `words` are in the sentence, and the model is not touched."""
    result = bnfold.fold(proto, verify=False, freeze_inputs=freeze_inputs)
    assert not result.folded
    (site,) = result.refused
    assert (site.code, site.outcome) == (code, "left")
    assert site.into is None
    assert site.help == Code(code).help
    for word in words:
        assert word in site.message
    assert result.model == proto
    (inspected,) = bnfold.inspect(proto, freeze_inputs=freeze_inputs).sites
    assert (inspected.code, inspected.message) == (code, site.message)
    return site


def folds(proto: ModelProto, **options: Any) -> ModelProto:
    """Every site folds; the folded model."""
    result = bnfold.fold(proto, verify=False, **options)
    assert result.folded
    assert [site.message for site in result.refused] == []
    return result.model


def pair(
    *,
    w: Any = None,
    b: Any = None,
    dtype: Any = np.float32,
    opset: int = 17,
    epsilon: float | None = None,
    **given: Any,
) -> ModelProto:
    """x (1, 1, 2, 2) -> pointwise Conv 'conv' of three maps -> BatchNormalization 'bn', parameters `given`."""
    maps = MAPS if w is None else len(w)
    weights = np.asarray([1, 2, 3] if w is None else w, dtype).reshape(maps, -1, 1, 1)
    held = [tensor("w", weights, dtype)] + ([] if b is None else [tensor("b", b, dtype)])
    held += [tensor(name, {**DEFAULTS, **given}[name], dtype) for name in DEFAULTS]
    attributes = {} if epsilon is None else {"epsilon": epsilon}
    nodes = [conv(*(["b"] if b is not None else [])), norm("c", **attributes)]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    opset = 22 if dtype == BFLOAT16 else opset  # the first Conv that takes it
    return model(nodes, held, (1, weights.shape[1], 2, 2), opset=opset, elem_type=kind)


def conv(*bias: str) -> NodeProto:
    """Conv 'conv', x to c."""
    return helper.make_node("Conv", ["x", "w", *bias], ["c"], name="conv")


def norm(x: str, y: str = "y", name: str = "bn", **attributes: Any) -> NodeProto:
    """A BatchNormalization with the parameters of those names."""
    return helper.make_node("BatchNormalization", [x, *DEFAULTS], [y], name=name, **attributes)


def between(*nodes: NodeProto, held: list[TensorProto] | None = None) -> ModelProto:
    """The pair with other nodes between c and d."""
    proto = pair()
    proto.graph.node[1].input[0] = "d"
    bn_node = proto.graph.node.pop()
    proto.graph.node.extend([*nodes, bn_node])
    proto.graph.initializer.extend(held or [])
    return proto


# Codes and help


def test_every_code_explains_itself():
    """Each code has a line of explanation; both texts are one line without a full stop."""
    for code in Code:
        assert code.explanation
        for text in (code.explanation, code.help):
            assert "\n" not in text
            assert not text.endswith(".")


def test_help_where_the_user_can_do_something():
    """These are the user's to repair; the rest lies in the model's structure."""
    helpless = {code.value for code in Code if not code.help}
    assert helpless == {
        "no-producer", "producer-cannot-absorb", "captured-by-subgraph", "activation-between",
        "not-per-map", "would-grow", "unsupported-type", "in-subgraph", "consumer-cannot-absorb",
        "consumer-is-output", "negative-scale", "behind-normalization",
    }  # fmt: skip


def test_a_refused_site_names_node_output_and_producer():
    """The report says which node stays, by name and by output, and what makes its input."""
    site = left(pair(var=[1, -1, 1]), "bad-variance", BN)
    assert (site.site, site.output, site.producer) == (BN, "y", CONV)


def test_an_unnamed_node_is_named_by_its_output():
    """Without a name the output stands for the node."""
    proto = pair(var=[1, -1, 1])
    for node in proto.graph.node:
        node.ClearField("name")
    site = left(proto, "bad-variance", "BatchNormalization -> 'y'")
    assert (site.site, site.producer) == ("BatchNormalization -> 'y'", "Conv -> 'c'")


# The map itself


@pytest.mark.parametrize(("attributes", "word"), [({"training_mode": 1}, "training_mode=1"), ({}, "3 outputs")])
def test_training_mode(attributes, word):
    """Statistics of the batch, by attribute or by outputs; the help is to export in inference mode."""
    proto = pair()
    proto.graph.node[1].CopyFrom(norm("c", **attributes))
    proto.graph.node[1].output.extend(["m", "v"])
    assert "inference mode" in left(proto, "training-mode", BN, word).help


@pytest.mark.parametrize(
    "var", [-0.001, -1e-5, -1.00000001e-5, np.nextafter(np.float32(-1e-5), np.float32(0)), -1e30]
)
def test_negative_variance(var):
    """var + epsilon negative, exactly 0, or nearly 0 where only epsilon holds up a negative variance."""
    assert "running variance" in left(pair(var=[1, 2, var]), "bad-variance", BN, "map 2").help


@pytest.mark.parametrize("var", [0.0, -0.0])
def test_zero_variance_without_epsilon(var):
    """0 + 0 has no inverse root."""
    left(pair(var=[var, 2, 3], epsilon=0.0), "bad-variance", BN, "map 0")


@pytest.mark.parametrize("var", [0.0, 1e-12, 1e-30])
def test_tiny_variance_folds(var):
    """var = 0 and tiny ones are honest statistics of a constant map (FIELD 55)."""
    proto = pair(var=[1, var, 3])
    found = initializer(folds(proto), "w_folded").ravel()[1]
    assert found == np.float32(2 * 2 / np.sqrt(float(np.float32(var)) + float(np.float32(1e-5))))


def test_a_negative_variance_well_below_epsilon_folds():
    """var = -1e-7 with epsilon 1e-3 is a rounding error of the training: harmless."""
    proto = pair(var=[1, -1e-7, 3], epsilon=1e-3)
    assert_same_outputs(proto, folds(proto))


def test_scale_of_a_hundred_thousand_folds():
    """epsilon = 1e-12 and var = 1e-10: large scales are no reason to refuse (FIELD 59)."""
    proto = pair(var=[1e-10] * 3, epsilon=1e-12)
    assert_same_outputs(proto, folds(proto))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("name", DEFAULTS)
@TYPES
def test_non_finite_parameter(name, bad, dtype):
    """NaN or infinity in any of the four: NaN matches NaN, so no verification would ever notice (FIELD 58)."""
    values = [*DEFAULTS[name][:2], bad]
    assert "repair" in left(pair(dtype=dtype, **{name: values}), "non-finite", f"{name} of {BN}", "map 2").help


@pytest.mark.parametrize("gamma", [[1, 2, 3], [0, 0, 0], [1, 2, -1e-3]], ids=["usual", "zero", "small"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@TYPES
def test_non_finite_weight(dtype, bad, gamma):
    """NaN or infinity in W, whatever the scale: 0 times infinity too."""
    left(pair(w=[[1, 2], [3, 4], [5, bad]], dtype=dtype, gamma=gamma), "non-finite", CONV, "map 2")


@pytest.mark.parametrize("gamma", [[1, 2, 3], [0, 0, 0]], ids=["usual", "zero"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@TYPES
def test_non_finite_bias(dtype, bad, gamma):
    """NaN or infinity in the bias, whatever the scale: 0 times infinity too."""
    left(pair(b=[0, bad, 0], dtype=dtype, gamma=gamma), "non-finite", f"bias of {CONV}")


def test_signalling_nan_weight():
    """A NaN of the other kind is one like any other, and raises no warning."""
    proto = pair(w=[1, 2, 3])
    bits = np.array([0x3F800000, 0x7F800001, 0x3F800000], np.uint32)
    proto.graph.initializer[0].raw_data = bits.tobytes()
    left(proto, "non-finite", CONV, "map 1")


# Too large and too small


@pytest.mark.parametrize(
    ("dtype", "w", "gamma"), [(np.float16, 600, 150), (np.float32, 1e30, 1e10), (np.float64, 1e200, 1e200)], ids=str
)
def test_weight_overflow(dtype, w, gamma):
    """s W is beyond the weight's type: the first such map is named, and how many there are."""
    zero = {"beta": [0, 0, 0], "mean": [0, 0, 0]}
    proto = pair(dtype=dtype, w=[1, w, -w], gamma=[1, gamma, gamma], var=[1, 1, 1], epsilon=0.0, **zero)
    site = left(proto, "overflow", CONV, "2 maps", "first map 1", str(np.dtype(dtype)))
    assert "fold the float32 model" in site.help


def test_weight_just_below_overflow_folds():
    """65504 is a float16."""
    zero = {"beta": [0] * 3, "mean": [0] * 3}
    proto = pair(dtype=np.float16, w=[1, 32752, 1], gamma=[1, 2, 1], var=[1] * 3, epsilon=0.0, **zero)
    assert initializer(folds(proto), "w_folded").ravel()[1] == 65504


@pytest.mark.parametrize(
    ("dtype", "b", "mean"), [(np.float16, None, -50000), (np.float16, 50000, 0), (np.float32, None, -3e38)], ids=str
)
def test_bias_overflow(dtype, b, mean):
    """s b + t is beyond the weight's type, with a bias or without; the value is in the sentence."""
    bias = None if b is None else [0, 0, b]
    proto = pair(dtype=dtype, b=bias, mean=[0, 0, mean], gamma=[1, 1, 3], var=[1, 1, 1], epsilon=0.0)
    left(proto, "overflow", f"bias of {CONV}", "map 2", str(np.dtype(dtype)))


@pytest.mark.parametrize("b", [1e308, -1e308])
def test_bias_overflow_in_float64(b):
    """s b is beyond float64 itself: refused as in any type, and without a warning from numpy."""
    proto = pair(dtype=np.float64, b=[0, 0, b], gamma=[1, 1, 1e10], mean=[0, 0, 0])
    left(proto, "overflow", f"bias of {CONV}", "map 2", "float64")


def test_two_scales_that_overflow_float64_together():
    """The product of two scales is infinite while the weight is 0: the second stays, without a warning from numpy."""
    proto = pair(
        dtype=np.float64, w=[0, 0, 0], gamma=[1e200] * 3, beta=[0] * 3, mean=[0] * 3, var=[1] * 3, epsilon=0.0
    )
    proto.graph.node[1].output[0] = "d"
    proto.graph.node.append(norm("d", name="bn2", epsilon=0.0))
    result = bnfold.fold(proto, verify=False)
    assert [(site.site, site.code) for site in result.refused] == [("BatchNormalization 'bn2'", "overflow")]


def test_map_overflow_in_float64():
    """The map itself is beyond float64: gamma of 1e300 over a root of 1e-100."""
    proto = pair(dtype=np.float64, gamma=[1, 1e300, 1], var=[1, 1e-200, 1], epsilon=0.0)
    left(proto, "overflow", BN)


@pytest.mark.parametrize(("dtype", "small"), [(np.float16, 1e-5), (np.float32, 1e-30)], ids=["f16", "f32"])
def test_underflow(dtype, small):
    """A usual map that sinks below the normal range would lose bits: refused, with the map's index."""
    gamma = [1, float(np.float64(small)), 1]
    proto = pair(dtype=dtype, w=[1, 1.1 * small, 1], gamma=gamma, var=[1, 1, 1], epsilon=0.0, mean=[0, 0, 0])
    if dtype is np.float16:  # 1e-5 is no normal float16 itself: the scale comes from the variance
        held = {"gamma": [1, 0.001, 1], "var": [1, 10000, 1]}
        proto = pair(dtype=dtype, w=[1, 0.11, 1], epsilon=0.0, mean=[0, 0, 0], **held)
    assert "prune" in left(proto, "underflow", CONV, "1 map", "first map 1").help


def test_underflow_to_zero():
    """A map that would vanish altogether is refused too, not taken for a dead one."""
    zero = {"beta": [0] * 3, "mean": [0] * 3}
    left(pair(w=[1, 1e-30, 1], gamma=[1, 1e-30, 1], var=[1] * 3, epsilon=0.0, **zero), "underflow", CONV)


def test_map_that_was_subnormal_folds():
    """What had lost its bits before the fold does not lose them to it."""
    proto = pair(w=[1, 1e-41, 1], gamma=[1, 0.3, 1], var=[1] * 3, epsilon=0.0, mean=[0] * 3)
    assert initializer(folds(proto), "w_folded").ravel()[1] == np.float32(
        np.float64(np.float32(1e-41)) * np.float32(0.3)
    )


def test_exact_subnormal_folds():
    """A power of two below the normal range is exact, so nothing is lost."""
    proto = pair(w=[1, 2.0**-120, 1], gamma=[1, 2.0**-10, 1], var=[1] * 3, epsilon=0.0, mean=[0] * 3)
    assert initializer(folds(proto), "w_folded").ravel()[1] == np.float32(2.0**-130)


def test_zero_map_folds():
    """An all-zero filter stays one, at any scale."""
    proto = pair(w=[1, 0, 1], gamma=[1, 1e-30, 1], var=[1] * 3, epsilon=0.0, mean=[0] * 3)
    assert initializer(folds(proto), "w_folded").ravel()[1] == 0


def test_small_weight_beside_a_large_one_folds():
    """A map is judged by its largest weight: what rounds to a subnormal beside it is noise."""
    proto = pair(w=[[1, 1], [1, 1e-37], [1, 1]], gamma=[1, 0.01, 1], var=[1] * 3, epsilon=0.0, mean=[0] * 3)
    assert initializer(folds(proto), "w_folded").ravel()[3] == np.float32(
        np.float64(np.float32(1e-37)) * np.float32(0.01)
    )


def test_fold_of_two_that_only_together_fit():
    """The first map alone overflows and is refused; the second then has a BatchNormalization upstream."""
    proto = pair(w=[1e30] * 3, gamma=[1e10] * 3, epsilon=0.0, var=[1] * 3)
    proto.graph.node[1].output[0] = "d"
    proto.graph.node.append(norm("d", name="bn2"))
    result = bnfold.fold(proto, verify=False)
    assert [site.code for site in result.refused] == ["overflow", "producer-cannot-absorb"]
    assert result.model == proto


def test_second_of_two_overflows():
    """The first folds; the second, which would overflow what the first left, stays and says so."""
    proto = pair(w=[1e30] * 3, gamma=[2] * 3, mean=[0] * 3, epsilon=0.0, var=[1] * 3)
    proto.graph.node[1].output[0] = "d"
    second = norm("d", name="bn2", epsilon=0.0)
    second.input[1] = "huge"
    proto.graph.node.append(second)
    proto.graph.initializer.append(tensor("huge", [1e10] * 3))
    result = bnfold.fold(proto, verify=False)
    assert [site.code for site in result.refused] == ["overflow"]
    assert result.refused[0].site == "BatchNormalization 'bn2'"
    np.testing.assert_array_equal(initializer(result.model, "w_folded").ravel(), np.full(3, np.float32(2e30)))


# Shapes, types and versions


@pytest.mark.parametrize("maps", [1, 2, 4])
def test_wrong_lengths(maps):
    """All four parameters fit each other but not the Conv."""
    given = {name: np.ones(maps) for name in DEFAULTS}
    left(pair(**given), "shape-mismatch", CONV, f"{maps} map")


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize(
    "values", [[1.0], [1.0, 1, 1, 1], 1.0, [[1.0, 1, 1]]], ids=["short", "long", "scalar", "rank 2"]
)
def test_one_parameter_of_another_shape(name, values):
    """One of the four has another shape."""
    left(pair(**{name: values}), "shape-mismatch", BN)


@pytest.mark.parametrize("values", [[1], [1, 2, 3, 4], [[1, 2, 3]]], ids=["short", "long", "rank 2"])
def test_bias_of_another_shape(values):
    """The Conv's bias does not have one number for each map."""
    left(pair(b=values), "shape-mismatch", f"bias of {CONV}")


def test_bias_of_another_type():
    """The Conv's bias is no float32: an invalid model, left alone."""
    proto = pair(b=[1, 2, 3])
    proto.graph.initializer[1].CopyFrom(tensor("b", [1, 2, 3], np.float64))
    left(proto, "shape-mismatch", f"bias of {CONV}", "float64")


def test_parameter_with_an_empty_name():
    """An empty name where a parameter should be."""
    proto = pair()
    proto.graph.node[1].input[2] = ""
    left(proto, "params-not-constant", f"beta of {BN}", "missing")


@pytest.mark.parametrize("outputs", [[], [""]], ids=["none", "empty"])
def test_no_output(outputs):
    """A BatchNormalization without a first output has no value that could take its place."""
    proto = pair()
    proto.graph.node[1].output[:] = outputs
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["y"]))
    left(proto, "shape-mismatch", "BatchNormalization 'bn'")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_missing_parameters(count):
    """A BatchNormalization without its five inputs."""
    proto = pair()
    del proto.graph.node[1].input[count:]
    left(proto, "shape-mismatch", BN, f"{count} inputs")


def test_conv_without_weight():
    """A Conv with its data alone."""
    proto = pair()
    del proto.graph.node[0].input[1:]
    left(proto, "shape-mismatch", CONV)


def test_weight_of_rank_two():
    """A weight without spatial axes."""
    proto = pair()
    proto.graph.initializer[0].CopyFrom(tensor("w", np.ones((MAPS, 1))))
    left(proto, "shape-mismatch", CONV)


@pytest.mark.parametrize(("index", "role"), [(0, f"the weight of {CONV}"), (1, f"gamma of {BN}")])
def test_unsupported_type(index, role):
    """A tensor of a type that bnfold does not compute with."""
    proto = pair()
    held = proto.graph.initializer[index]
    proto.graph.initializer[index].CopyFrom(
        helper.make_tensor(held.name, TensorProto.FLOAT8E4M3FN, held.dims, np.ones(MAPS).tolist())
    )
    left(proto, "unsupported-type", role)


def test_integer_weight():
    """Integers are no weights of a Conv."""
    proto = pair()
    proto.graph.initializer[0].CopyFrom(tensor("w", np.ones((MAPS, 1, 1, 1)), np.int32))
    left(proto, "unsupported-type", CONV)


def test_unknown_version(monkeypatch):
    """A BatchNormalization newer than bnfold may mean something else."""
    monkeypatch.setattr(batchnorm, "KNOWN_VERSIONS", (1, 6, 7, 9, 14))
    assert "update bnfold" in left(pair(), "unknown-version", BN, "BatchNormalization-15").help


def test_no_version_at_all():
    """From IR 3 on the model must say which version of the standard operators it means."""
    proto = pair()
    proto.opset_import[0].domain = "com.example"
    left(proto, "unknown-version", "does not say")


def test_not_per_map():
    """spatial = 0 and parameters that differ within a map: a Conv has one weight for all locations."""
    rng = np.random.default_rng(0)
    proto = pair(opset=8, **{name: rng.uniform(1, 2, (MAPS, 2, 2)) for name in DEFAULTS})
    proto.graph.node[1].attribute.append(helper.make_attribute("spatial", 0))
    left(proto, "not-per-map", CONV, "axes 1, 2, 3", "3 channels")


# What is not constant


def at_run_time(name: str, values: Any) -> ModelProto:
    """The pair, with one tensor as an input of the model."""
    proto = pair(b=[1, 2, 3])
    held = next(t for t in proto.graph.initializer if t.name == name)
    proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, held.dims))
    proto.graph.initializer.remove(held)
    return proto


@pytest.mark.parametrize("name", DEFAULTS)
def test_parameter_is_an_input(name):
    """The caller feeds gamma, beta, mean or var."""
    site = left(at_run_time(name, None), "params-not-constant", f"{name} of {BN}", "model input")
    assert "initializers" in site.help


@pytest.mark.parametrize("name", ["w", "b"])
def test_weight_or_bias_is_an_input(name):
    """The caller feeds the weight or the bias."""
    assert (
        "initializers" in left(at_run_time(name, None), "weights-not-constant", CONV, f"'{name}'", "model input").help
    )


@pytest.mark.parametrize(
    ("name", "code", "at"), [("w", "weights-not-constant", CONV), ("var", "params-not-constant", BN)]
)
def test_computed_at_run_time(name, code, at):
    """The tensor comes out of a node that reads an input."""
    proto = at_run_time(name, None)
    fed = proto.graph.input[-1]
    fed.name = "fed"
    proto.graph.node.insert(0, helper.make_node("Abs", ["fed"], [name], name="maker"))
    left(proto, code, at, "Abs 'maker'")


def test_random_weight_is_not_constant():
    """RandomNormal reads nothing and still differs from run to run."""
    proto = at_run_time("w", None)
    del proto.graph.input[-1]
    maker = helper.make_node("RandomNormal", [], ["w"], name="maker", shape=[MAPS, 1, 1, 1])
    proto.graph.node.insert(0, maker)
    left(proto, "weights-not-constant", "RandomNormal 'maker'")


def test_weight_generated_by_nodes():
    """ConstantOfShape makes the weight: storing it would make the file larger than it was."""
    proto = at_run_time("w", None)
    del proto.graph.input[-1]
    proto.graph.initializer.append(tensor("shape", [MAPS, 3, 5, 5], np.int64))
    proto.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["w"], name="maker"))
    left(proto, "would-grow", CONV)


def overridable(name: str) -> ModelProto:
    """The pair, IR 8, with one initializer that is an input too, between two inputs that are none."""
    proto = pair(b=[1, 2, 3])
    held = next(t for t in proto.graph.initializer if t.name == name)
    proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, held.dims))
    proto.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
    return proto


@pytest.mark.parametrize("name", ["w", "b", *DEFAULTS])
def test_overridable_initializer(name):
    """A default that the caller may replace is no constant, until told otherwise (FIELD 45)."""
    site = left(overridable(name), "overridable-initializer", f"'{name}'", BN if name in DEFAULTS else CONV)
    assert "--freeze-inputs" in site.help


@pytest.mark.parametrize("name", ["w", "b", *DEFAULTS])
def test_freeze_inputs(name):
    """Told so, it folds; the signature loses exactly this input, and the result says which."""
    proto = overridable(name)
    result = bnfold.fold(proto, verify=False, freeze_inputs=True)
    assert len(result.folded) == 1
    assert result.frozen == (name,)
    assert [value.name for value in result.model.graph.input] == ["x", "unused"]
    plain = bnfold.fold(pair(b=[1, 2, 3]), verify=False).model
    assert result.model.graph.initializer == plain.graph.initializer
    assert result.model.graph.node == plain.graph.node


def test_freeze_inputs_takes_only_what_it_needs():
    """Overridable initializers of nodes that stay, or that no fold reads, remain inputs."""
    proto = overridable("w")
    proto.graph.initializer.append(tensor("scale", [2.0]))
    proto.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    proto.graph.node[1].output[0] = "d"
    proto.graph.node.append(helper.make_node("Sigmoid", ["d"], ["e"]))
    proto.graph.node.append(helper.make_node("Mul", ["e", "scale"], ["y"]))
    result = bnfold.fold(proto, verify=False, freeze_inputs=True)
    assert result.frozen == ("w",)
    assert [value.name for value in result.model.graph.input] == ["x", "unused", "scale"]


def test_freeze_inputs_of_a_site_that_stays():
    """A refused site freezes nothing, though its parameters could be."""
    proto = overridable("gamma")
    proto.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, None))
    left(proto, "producer-is-output", freeze_inputs=True)
    assert bnfold.fold(proto, verify=False, freeze_inputs=True).frozen == ()


def test_freeze_inputs_of_a_shared_weight():
    """A second Conv keeps reading the frozen W, which is now a constant for both."""
    proto = overridable("w")
    proto.graph.node.append(helper.make_node("Conv", ["x", "w"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    result = bnfold.fold(proto, verify=False, freeze_inputs=True)
    assert result.frozen == ("w",)
    assert [value.name for value in result.model.graph.input] == ["x", "unused"]
    np.testing.assert_array_equal(initializer(result.model, "w"), initializer(proto, "w"))
    assert_same_outputs(proto, result.model)


def test_overridable_behind_nodes():
    """An overridable initializer behind Identity or in a constant subgraph counts as much."""
    proto = overridable("gamma")
    proto.graph.node.insert(0, helper.make_node("Abs", ["gamma"], ["positive"]))
    proto.graph.node.insert(1, helper.make_node("Identity", ["positive"], ["same"]))
    proto.graph.node[3].input[1] = "same"
    left(proto, "overridable-initializer", "'gamma'", BN)
    result = bnfold.fold(proto, verify=False, freeze_inputs=True)
    assert result.frozen == ("gamma",)
    assert ops(result.model) == ["Conv"]
    assert [value.name for value in result.model.graph.input] == ["x", "unused"]


def test_freeze_inputs_lists_a_shared_tensor_once():
    """Two sites that read one overridable gamma freeze it once."""
    proto = overridable("gamma")
    proto.graph.node.append(helper.make_node("Conv", ["x", "w"], ["c2"]))
    proto.graph.node.append(norm("c2", "z", "bn2"))
    result = bnfold.fold(proto, verify=False, freeze_inputs=True)
    assert len(result.folded) == 2
    assert result.frozen == ("gamma",)


def test_freeze_inputs_of_a_dropouts_training_mode():
    """training_mode = false by default only: no inference until the caller's right to replace it is given up."""
    node = helper.make_node("Dropout", ["c", "", "mode"], ["d"], name="drop")
    proto = between(node, held=[tensor("mode", False, np.bool_)])  # noqa: FBT003 - a tensor's value
    proto.graph.input.append(helper.make_tensor_value_info("mode", TensorProto.BOOL, []))
    left(proto, "training-dropout-between", "Dropout 'drop'")
    result = bnfold.fold(proto, verify=False, freeze_inputs=True)
    assert len(result.folded) == 1
    assert result.frozen == ("mode",)


def test_nothing_is_overridable_below_ir_4():
    """At IR 3 every initializer must be listed as an input, and none is a default."""
    proto = overridable("w")
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    result = bnfold.fold(proto, verify=False)
    assert len(result.folded) == 1
    assert result.frozen == ()


def sparse(name: str, values: np.ndarray) -> ModelProto:
    """The pair with one tensor as a sparse initializer."""
    proto = pair(b=[1, 2, 3])
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == name))
    entry = proto.graph.sparse_initializer.add()
    entry.values.CopyFrom(tensor(name, values.ravel()))
    entry.indices.CopyFrom(tensor("", np.arange(values.size), np.int64))
    entry.dims.extend(values.shape)
    return proto


@pytest.mark.parametrize(
    ("name", "shape", "at"), [("w", (MAPS, 1, 1, 1), CONV), ("b", (MAPS,), CONV), ("gamma", (MAPS,), BN)]
)
def test_sparse_initializer(name, shape, at):
    """Sparse tensors are not read; two other tools crash on them (FIELD 82)."""
    assert "dense" in left(sparse(name, np.ones(shape)), "sparse-weight", at, f"'{name}'").help


def test_sparse_constant_node():
    """The same as a Constant node: constant, but sparse."""
    proto = at_run_time("w", None)
    del proto.graph.input[-1]
    values, indices = tensor("v", np.ones(MAPS)), tensor("i", np.arange(MAPS), np.int64)
    entry = helper.make_sparse_tensor(values, indices, [MAPS, 1, 1, 1])
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], name="maker", sparse_value=entry))
    left(proto, "sparse-weight", CONV)


def quantized(*nodes: NodeProto, dequantised: str = "w") -> ModelProto:
    """The pair, its weight out of DequantizeLinear 'dq' of int8 `q` (3, 1, 1, 1) by `step` and `zero`."""
    proto = at_run_time("w", None)
    del proto.graph.input[-1]
    proto.graph.initializer.extend(
        [tensor("q", np.ones((MAPS, 1, 1, 1)), np.int8), tensor("step", 0.5), tensor("zero", 0, np.int8)]
    )
    node = helper.make_node("DequantizeLinear", ["q", "step", "zero"], [dequantised], name="dq")
    for made in reversed([node, *nodes]):
        proto.graph.node.insert(0, made)
    return proto


def test_quantized_weight_keeps_its_integers():
    """The factors go into the scale, which becomes one for each map, and so does the zero point."""
    proto = quantized()
    found = folds(proto)
    assert ops(found) == ["DequantizeLinear", "Conv"]
    node = found.graph.node[0]
    assert list(node.input) == ["q", "step_folded", "zero_folded"]
    assert [(a.name, a.i) for a in node.attribute] == [("axis", 0)]
    np.testing.assert_array_equal(initializer(found, "q"), initializer(proto, "q"))
    np.testing.assert_array_equal(initializer(found, "zero_folded"), np.zeros(MAPS, np.int8))
    scale = np.array(DEFAULTS["gamma"]) / np.sqrt(np.array(DEFAULTS["var"]) + np.float64(np.float32(1e-5)))
    np.testing.assert_array_equal(initializer(found, "step_folded"), (0.5 * scale).astype(np.float32))
    assert_same_outputs(proto, found)


def test_quantized_weight_behind_identity():
    """What stands between DequantizeLinear and Conv is not looked through."""
    proto = quantized(helper.make_node("Identity", ["dq"], ["w"], name="id"), dequantised="dq")
    assert "quantising" in left(proto, "quantized-weight", CONV, "DequantizeLinear 'dq'").help


def test_quantized_weight_by_blocks():
    """A scale for each block of a map is left alone."""
    proto = quantized()
    proto.opset_import[0].version = 21
    proto.ir_version = 10
    held = {t.name: t for t in proto.graph.initializer}
    held["q"].CopyFrom(tensor("q", np.ones((MAPS, 1, 1, 1)), np.int8))
    held["step"].CopyFrom(tensor("step", np.full((MAPS, 1, 1, 1), 0.5)))
    held["zero"].CopyFrom(tensor("zero", np.zeros((MAPS, 1, 1, 1)), np.int8))
    proto.graph.node[0].attribute.extend([helper.make_attribute("axis", 1), helper.make_attribute("block_size", 1)])
    assert "quantising" in left(proto, "quantized-weight", "DequantizeLinear 'dq'").help


# What lies upstream


@pytest.mark.parametrize(
    "op",
    [
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Tanh",
        "Elu",
        "Selu",
        "Softplus",
        "HardSigmoid",
        "Exp",
        "Clip",
        "HardSwish",
        "Erf",
    ],
)
def test_activation_between(op):
    """A nonlinear function lies between."""
    left(between(helper.make_node(op, ["c"], ["d"], name="act")), "activation-between", f"{op} 'act'")


def test_cast_between():
    """A Cast there and back: its rounding would move."""
    nodes = [
        helper.make_node("Cast", ["c"], ["h"], name="down", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["d"], name="up", to=TensorProto.FLOAT),
    ]
    assert "precision after folding" in left(between(*nodes), "cast-between", "Cast 'up'").help


def test_quantize_between():
    """QuantizeLinear and DequantizeLinear on the activation."""
    nodes = [
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"], name="dq"),
    ]
    held = [tensor("step", 0.5), tensor("zero", 0, np.int8)]
    proto = between(*nodes, held=held)
    assert "quantising" in left(proto, "quantize-between", "DequantizeLinear 'dq'").help


@pytest.mark.parametrize("op", ["LpPool", "GlobalLpPool", "Floor", "Sign", "Softmax"])
def test_producer_cannot_absorb(op):
    """What makes the input has no constants that could take the map in; Softmax counts as an activation."""
    attributes = {"kernel_shape": [1, 1]} if op == "LpPool" else {}
    code = "activation-between" if op == "Softmax" else "producer-cannot-absorb"
    left(between(helper.make_node(op, ["c"], ["d"], name="op", **attributes)), code, f"{op} 'op'")


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [2, 2]}),
        ("AveragePool", {"kernel_shape": [2, 2]}),
        ("GlobalAveragePool", {}),
        ("Transpose", {"perm": [0, 1, 3, 2]}),
        ("Neg", {}),
    ],
    ids=["MaxPool", "AveragePool", "GlobalAveragePool", "Transpose", "Neg"],
)
def test_producer_hands_the_map_on(op, attributes):
    """What keeps the maps apart carries the map to the Conv; Neg is a site of its own."""
    proto = between(helper.make_node(op, ["c"], ["d"], name="op", **attributes))
    found = folds(proto)
    assert ops(found) == (["Conv"] if op == "Neg" else ["Conv", op])
    assert_same_outputs(proto, found)


@pytest.mark.parametrize(("op", "code"), [("MaxPool", "negative-scale"), ("Relu", "activation-between")])
def test_producer_hands_not_every_map_on(op, code):
    """A maximum does not hand on a negative scale, nor a rectifier a shift; no word about the Conv behind."""
    attributes = {"kernel_shape": [2, 2]} if op == "MaxPool" else {}
    proto = between(helper.make_node(op, ["c"], ["d"], name="op", **attributes))
    held = next(t for t in proto.graph.initializer if t.name == "gamma")
    held.CopyFrom(tensor("gamma", [1, -2, 3] if op == "MaxPool" else [1, 2, 3]))
    left(proto, code, f"{op} 'op'", "; downstream: 'y' is an output")


def test_transpose_that_moves_the_maps():
    """Behind it, axis 1 is the height of the Conv's output."""
    proto = between(helper.make_node("Transpose", ["c"], ["d"], name="op", perm=[0, 2, 1, 3]))
    for name in DEFAULTS:
        held = next(t for t in proto.graph.initializer if t.name == name)
        held.CopyFrom(tensor(name, [1, 2]))
    left(proto, "not-per-map", CONV, "axis 2")


def test_conv_of_another_domain():
    """A custom operator called Conv is no Conv."""
    proto = pair()
    proto.graph.node[0].domain = "com.example"
    left(proto, "producer-cannot-absorb", "Conv 'conv'")


def test_batchnorm_of_another_domain_is_no_site():
    """A custom operator called BatchNormalization is none of ours, at any depth."""
    proto = pair()
    proto.graph.node[1].domain = "com.example"
    assert bnfold.inspect(proto).sites == ()


def test_model_input():
    """A BatchNormalization at the model's input."""
    proto = pair()
    del proto.graph.node[0]
    proto.graph.node[0].input[0] = "x"
    left(proto, "no-producer", "'x'", "model input")


def test_constant_input():
    """A BatchNormalization of an initializer, straight or through Identity."""
    proto = pair()
    proto.graph.node[0].CopyFrom(helper.make_node("Identity", ["w"], ["c"]))
    left(proto, "no-producer", "'c'", "constant")
    proto.graph.node[1].input[0] = "w"
    left(proto, "no-producer", "'w'", "constant")


def before_conv(**attributes: Any) -> ModelProto:
    """x (1, 3, 4, 4) -> BatchNormalization 'bn' -> 3x3 Conv 'conv' of two maps -> y."""
    held = [tensor("w", np.arange(54).reshape(2, 3, 3, 3)), *(tensor(name, v) for name, v in DEFAULTS.items())]
    nodes = [norm("x", "n"), helper.make_node("Conv", ["n", "w"], ["y"], name="conv", **attributes)]
    return model(nodes, held, (1, MAPS, 4, 4))


def test_batchnorm_before_conv():
    """Downstream there is a Conv without padding, which takes scale and shift in."""
    proto = before_conv()
    found = folds(proto)
    assert ops(found) == ["Conv"]
    assert [t.name for t in found.graph.initializer] == ["w_folded", "w_bias"]
    assert_same_outputs(proto, found)


@pytest.mark.parametrize("padding", [{"pads": [0, 0, 0, 1]}, {"auto_pad": "SAME_UPPER"}], ids=["pads", "auto_pad"])
def test_batchnorm_before_padded_conv(padding):
    """The zeros of its padding do not have the shift; the code is that of the direction that came to weights."""
    site = left(before_conv(**padding), "shift-meets-padding", CONV, "; upstream: 'x' is a model input")
    assert "--partial" in site.help


def test_batchnorm_before_conv_that_is_read_elsewhere():
    """One reader of two cannot take the map in: nothing moves."""
    proto = before_conv()
    proto.graph.node.append(helper.make_node("Sigmoid", ["n"], ["z"], name="other"))
    left(proto, "activation-between", "Sigmoid 'other'", "; upstream: 'x' is a model input")


@pytest.mark.parametrize("reader", ["Relu", "Neg"])
def test_producer_shared(reader):
    """The Conv's output is also read elsewhere; the readers are named."""
    proto = pair()
    proto.graph.node.append(helper.make_node(reader, ["c"], ["z"], name="other"))
    left(proto, "producer-shared", CONV, "'c'", f"{reader} 'other'")


def test_producer_read_twice_by_one_node():
    """Both operands of one Add besides."""
    proto = pair()
    proto.graph.node.append(helper.make_node("Add", ["c", "c"], ["z"], name="other"))
    left(proto, "producer-shared", CONV, "read 3 times", "Add 'other'")


def test_conv_feeds_two_batchnorms():
    """Both stay, each for the other (FIELD 34)."""
    proto = pair()
    proto.graph.node.append(norm("c", "z", "bn2"))
    result = bnfold.fold(proto, verify=False)
    assert [(site.site, site.code) for site in result.refused] == [
        (BN, "producer-shared"),
        ("BatchNormalization 'bn2'", "producer-shared"),
    ]
    assert all(BN in site.message and "'bn2'" in site.message for site in result.refused)
    assert result.model == proto


def test_producer_is_output():
    """The Conv's output is an output of the model."""
    proto = pair()
    proto.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, None))
    assert "drop that output" in left(proto, "producer-is-output", CONV, "'c'").help


def branch(name: str, *nodes: NodeProto) -> GraphProto:
    """A graph without inputs, of the last node's first output."""
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [output])


@pytest.mark.parametrize("deep", [False, True], ids=["branch", "branch of a branch"])
def test_captured_by_subgraph(deep):
    """An If branch, at any depth, reads the Conv's output; the outermost node is named."""
    proto = pair()
    inner = helper.make_node("Neg", ["c"], ["inner"])
    other = helper.make_node("Neg", ["x"], ["other"])
    if deep:
        third = branch("third", helper.make_node("Abs", ["x"], ["third"]))
        inner = helper.make_node("If", ["flag"], ["outer"], then_branch=branch("deep", inner), else_branch=third)
    both = {"then_branch": branch("then", inner), "else_branch": branch("else", other)}
    proto.graph.node.append(helper.make_node("If", ["flag"], ["z"], name="if", **both))
    proto.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    left(proto, "captured-by-subgraph", CONV, "'c'", "If 'if'")


def test_captured_batchnorm_output_is_no_obstacle():
    """A branch that reads the BatchNormalization's output reads it still."""
    proto = pair()
    both = {
        "then_branch": branch("then", helper.make_node("Neg", ["y"], ["inner"])),
        "else_branch": branch("else", helper.make_node("Abs", ["y"], ["other"])),
    }
    proto.graph.node.append(helper.make_node("If", ["flag"], ["z"], name="if", **both))
    proto.graph.initializer.append(tensor("flag", True, np.bool_))  # noqa: FBT003 - a tensor's value
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert_same_outputs(proto, folds(proto))


@pytest.mark.parametrize(("ratio", "mode"), [(True, True), (False, True)])
def test_training_dropout_between(ratio, mode):
    """A Dropout in training mode drops at random."""
    node = helper.make_node("Dropout", ["c", "ratio" if ratio else "", "mode"], ["d"], name="drop")
    proto = between(node, held=[tensor("ratio", 0.5), tensor("mode", mode, np.bool_)])
    assert "inference mode" in left(proto, "training-dropout-between", "Dropout 'drop'").help


def test_used_mask_of_a_dropout_between():
    """Somebody reads the mask."""
    node = helper.make_node("Dropout", ["c"], ["d", "mask"], name="drop")
    proto = between(node)
    proto.graph.node.append(helper.make_node("Not", ["mask"], ["z"]))
    left(proto, "training-dropout-between", "mask of Dropout 'drop'")


# What lies deeper

FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (float[1,1,2,2] x) => (float[1,3,2,2] y)
<float[3,1,1,1] w = {1, 2, 3}, float[3] one = {1, 1, 1}, float[3] zero = {0, 0, 0}>
{ c = local.block (x, w, one, zero)  [main] y = BatchNormalization (c, one, zero, zero, one) }
<domain: "local", opset_import: ["" : 17]>
block (x, w, one, zero) => (y)
{ c = Conv (x, w)  [deep] y = BatchNormalization (c, one, zero, zero, one) }
"""


def test_batchnorm_behind_a_function():
    """What a local function's own Conv can take in folds; the one in the main graph does not reach into it."""
    proto = onnx.parser.parse_model(FUNCTION)
    result = bnfold.fold(proto, verify=False)
    assert [site.site for site in result.folded] == ["BatchNormalization 'deep'"]
    assert [(site.site, site.code) for site in result.refused] == [("BatchNormalization 'main'", "in-function")]
    assert "inline" in result.refused[0].help
    assert "block -> 'c', which is a local function" in result.refused[0].message
    assert len(bnfold.inspect(proto).sites) == 2
    assert_same_outputs(proto, result.model)


@pytest.mark.parametrize(("op", "code"), [("If", "producer-is-output"), ("Loop", "no-producer")])
def test_batchnorm_in_a_nested_graph_is_listed(op, code):
    """One inside a branch or a loop body is listed; the one in the main graph folds all the same."""
    proto = pair()
    inner = norm("y", "inner", "deep")
    if op == "If":
        other = branch("else", helper.make_node("Identity", ["y"], ["other"]))
        node = helper.make_node("If", ["yes"], ["z"], name="if", then_branch=branch("then", inner), else_branch=other)
    else:
        inner.input[0] = "carried"
        body = branch("body", inner)
        scalar = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("carried", TensorProto.FLOAT, None)]
        body.input.extend(helper.make_tensor_value_info(*value) for value in scalar)
        body.output.insert(0, helper.make_tensor_value_info("go_on", TensorProto.BOOL, []))
        body.node.insert(0, helper.make_node("Identity", ["go"], ["go_on"]))
        node = helper.make_node("Loop", ["times", "yes", "y"], ["z"], name="loop", body=body)
    proto.graph.node.append(node)
    proto.graph.initializer.extend([tensor("yes", True, np.bool_), tensor("times", 2, np.int64)])  # noqa: FBT003
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    result = bnfold.fold(proto, verify=False)
    assert [site.site for site in result.folded] == [BN]
    (hidden,) = result.refused
    assert (hidden.site, hidden.code, hidden.output) == ("BatchNormalization 'deep'", code, "inner")
    assert hidden.message
    assert_same_outputs(proto, result.model)


def test_batchnorm_two_levels_deep_is_listed():
    """An If in an If, and an If in a function."""
    deep = branch("deep", norm("x", "a", "one"))
    other = branch("other", helper.make_node("Identity", ["x"], ["b"]))
    inner = helper.make_node("If", ["yes"], ["m"], then_branch=deep, else_branch=other)
    outer = helper.make_node("If", ["yes"], ["y"], then_branch=branch("then", inner), else_branch=other)
    held = [tensor(name, values) for name, values in DEFAULTS.items()]
    proto = model([outer], [*held, tensor("yes", True, np.bool_)], (1, MAPS, 2, 2))  # noqa: FBT003
    left(proto, "no-producer", "'a' is an output of then_branch of If -> 'm', then_branch of If -> 'y'")
    imports = list(proto.opset_import)
    function = helper.make_function("local", "block", ["x", "yes", *DEFAULTS], ["y"], [outer], imports)
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node[0].CopyFrom(helper.make_node("block", ["x", "yes", *DEFAULTS], ["y"], domain="local"))
    left(proto, "in-function")


def test_custom_batchnorm_in_a_nested_graph_is_no_site():
    """A custom operator of that name inside a branch is none of ours either."""
    custom = norm("x", "a", "custom")
    custom.domain = "com.example"
    other = branch("else", helper.make_node("Identity", ["x"], ["b"]))
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch("then", custom), else_branch=other)
    held = [tensor("yes", True, np.bool_), *(tensor(name, np.ones(MAPS)) for name in DEFAULTS)]  # noqa: FBT003
    assert bnfold.inspect(model([node], held, (1, MAPS, 2, 2))).sites == ()


def test_inspect_writes_nothing_and_agrees_with_fold():
    """inspect lists what fold does, with the same outcome for each site, and leaves the model alone."""
    proto = conv_bn()
    proto.graph.node.append(norm("x", "z", "second"))
    before = proto.SerializeToString(deterministic=True)
    sites = bnfold.inspect(proto).sites
    assert [(site.site, site.outcome, site.code) for site in sites] == [
        (BN, "folded", None),
        ("BatchNormalization 'second'", "left", "consumer-cannot-absorb"),  # nothing reads what it makes
    ]
    assert sites == bnfold.fold(proto, verify=False).report.sites
    assert proto.SerializeToString(deterministic=True) == before


def test_legacy_broadcasting_in_a_constant_subgraph_is_not_guessed():
    """Opset 6: Mul(W, s, broadcast=1, axis=0) scales maps; the evaluator would scale columns. Not folded."""
    proto = pair(b=[1, 2, 3])
    proto.opset_import[0].version = 6
    proto.ir_version = 3
    proto.graph.node[-1].attribute.append(helper.make_attribute("is_test", 1))
    proto.graph.node.insert(0, helper.make_node("Mul", ["w", "s"], ["w2"], name="mul", broadcast=1, axis=0))
    proto.graph.node[1].input[1] = "w2"
    proto.graph.initializer.append(tensor("s", [1, 10, 100]))
    left(proto, "weights-not-constant", "Mul 'mul'")


@pytest.mark.parametrize("outputs", [["", "gamma"], ["q", "gamma"]])
def test_constant_node_with_another_output(outputs):
    """Only the first output of a Constant node is a value; a parameter that is another one is not constant."""
    proto = at_run_time("gamma", None)
    del proto.graph.input[-1]
    proto.graph.node.insert(0, helper.make_node("Constant", [], outputs, value=tensor("", np.ones(MAPS))))
    left(proto, "params-not-constant")


def test_constant_node_without_a_value():
    """A Constant node with no attribute at all is no constant, and no crash."""
    proto = at_run_time("gamma", None)
    del proto.graph.input[-1]
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["gamma"]))
    left(proto, "params-not-constant")


def test_cast_like_a_type_that_does_not_exist():
    """A value_info with element type 99 tells nothing."""
    proto = at_run_time("gamma", None)
    del proto.graph.input[-1]
    proto.graph.initializer.append(tensor("g", np.ones(MAPS)))
    proto.graph.node.insert(0, helper.make_node("Identity", ["x"], ["h"]))
    proto.graph.node.insert(1, helper.make_node("CastLike", ["g", "h"], ["gamma"]))
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, None))
    proto.graph.value_info[-1].type.tensor_type.elem_type = 99
    left(proto, "params-not-constant")


def test_weight_cast_from_integers_would_grow():
    """A constant all right, but stored as float32 it takes four times the bytes."""
    proto = at_run_time("w", None)
    del proto.graph.input[-1]
    proto.graph.initializer.append(tensor("q", np.ones((MAPS, 1, 1, 1)), np.int8))
    proto.graph.node.insert(0, helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT))
    left(proto, "would-grow", CONV)
