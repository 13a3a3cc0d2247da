"""Tensors with several users and names that are taken: every other user must see the old values, bit for bit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

import bnfold
from tests.conftest import (
    assert_same_outputs,
    batchnorm_parameters,
    initializer,
    model,
    ops,
    random_feeds,
    run,
    tensor,
)

MAPS = 4
PARAMETERS = ("gamma", "beta", "mean", "var")
WEIGHT = (MAPS, MAPS, 3, 3)


def weight(name: str = "w", seed: int = 7) -> TensorProto:
    """A random (4, 4, 3, 3) weight."""
    return tensor(name, np.random.default_rng(seed).normal(size=WEIGHT))


def vector(name: str, seed: int = 8) -> TensorProto:
    """A random (4,) tensor of positive numbers, fit for any parameter."""
    return tensor(name, np.random.default_rng(seed).uniform(0.5, 2, MAPS))


def conv(x: str, y: str, w: str = "w", *bias: str) -> NodeProto:
    """A padded 3x3 Conv named after its output."""
    return helper.make_node("Conv", [x, w, *bias], [y], name=f"conv_{y}", pads=[1, 1, 1, 1])


def bn(x: str, y: str, parameters: Sequence[str] = PARAMETERS) -> NodeProto:
    """A BatchNormalization named after its output."""
    return helper.make_node("BatchNormalization", [x, *parameters], [y], name=f"bn_{y}")


def net(nodes: Sequence[NodeProto], held: Sequence[TensorProto], outputs: Sequence[str] = ("y",)) -> ModelProto:
    """A model of x (1, 4, 5, 5)."""
    proto = model(nodes, held, (1, MAPS, 5, 5), outputs=outputs)
    shapes = {t.name: t.dims for t in held}
    for value in proto.graph.output:
        if value.name in shapes:
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shapes[value.name]))
    return proto


def fold_all(proto: ModelProto, sites: int, *, kept: Sequence[str] = ()) -> ModelProto:
    """Fold; all `sites` go, the outputs agree, those in `kept` bit for bit, and the result is a valid model."""
    result = bnfold.fold(proto, verify=False)
    assert [site.message for site in result.refused] == []
    assert len(result.folded) == sites
    assert "BatchNormalization" not in ops(result.model)
    compare(proto, result.model, kept)
    return result.model


def compare(proto: ModelProto, folded: ModelProto, kept: Sequence[str]) -> None:
    """The outputs agree, those in `kept` bit for bit, and names are used once."""
    # The checker wants the shapes of outputs, which these models do not say.
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(folded), full_check=True)
    names = [t.name for t in folded.graph.initializer] + [name for node in folded.graph.node for name in node.output]
    assert len(set(names)) == len(names)
    assert_same_outputs(proto, folded)
    feeds = random_feeds(proto, seed=5)
    outputs = [value.name for value in proto.graph.output]
    before, after = (dict(zip(outputs, run(m, feeds), strict=True)) for m in (proto, folded))
    for name in kept:
        np.testing.assert_array_equal(after[name], before[name], strict=True)


def scale(proto: ModelProto, prefix: str = "") -> Any:
    """gamma / sqrt(var + epsilon) in float64."""
    gamma, var = (initializer(proto, prefix + name).astype(np.float64) for name in ("gamma", "var"))
    return gamma / np.sqrt(var + np.float32(1e-5))


def times(factor: Any, w: Any) -> Any:
    """The float64 product, map by map, rounded once to float32."""
    return (factor.reshape(-1, 1, 1, 1) * w.astype(np.float64)).astype(np.float32)


def reader(op: str, name: str, output: str = "z") -> NodeProto:
    """Another user of a tensor."""
    return helper.make_node(op, [name], [output], name=f"reader_{output}")


def test_two_pairs_share_parameters():
    """Case 13: two pairs with the same parameters both fold, and the parameters go."""
    nodes = [conv("x", "c1"), bn("c1", "y1"), conv("x", "c2", "w2"), bn("c2", "y2")]
    proto = net(nodes, [weight(), weight("w2", 1), *batchnorm_parameters(MAPS)], ("y1", "y2"))
    folded = fold_all(proto, 2)
    assert {t.name for t in folded.graph.initializer} == {"w_folded", "w2_folded", "w_bias", "w2_bias"}


def test_parameters_stay_for_a_site_that_stays():
    """Case 13, other half: one of the pairs is refused and keeps the parameters as they were."""
    nodes = [conv("x", "c1"), bn("c1", "y1"), conv("x", "c2", "w2"), bn("c2", "y2")]
    proto = net(nodes, [weight(), weight("w2", 1), *batchnorm_parameters(MAPS)], ("y1", "y2", "c2"))
    result = bnfold.fold(proto, verify=False)
    assert [site.code for site in result.refused] == ["producer-is-output"]
    for name in (*PARAMETERS, "w2"):
        np.testing.assert_array_equal(initializer(result.model, name), initializer(proto, name))
    compare(proto, result.model, ["y2", "c2"])


def test_chain_of_two_pairs():
    """Case 14: Conv -> BN -> Conv -> BN with one W and one set of parameters for both."""
    nodes = [conv("x", "c1"), bn("c1", "h"), conv("h", "c2"), bn("c2", "y")]
    folded = fold_all(net(nodes, [weight(), *batchnorm_parameters(MAPS)]), 2)
    np.testing.assert_array_equal(initializer(folded, "w_folded"), initializer(folded, "w_folded_2"))


def test_one_weight_two_convs_two_maps():
    """Case 21: each Conv gets W times its own map's scale, rounded once."""
    nodes = [conv("x", "c1"), bn("c1", "y1"), conv("x", "c2"), bn("c2", "y2", [f"p_{n}" for n in PARAMETERS])]
    held = [weight(), *batchnorm_parameters(MAPS), *batchnorm_parameters(MAPS, 1, prefix="p_")]
    proto = net(nodes, held, ("y1", "y2"))
    folded = fold_all(proto, 2)
    w = initializer(proto, "w")
    used = {node.output[0]: initializer(folded, node.input[1]) for node in folded.graph.node}
    np.testing.assert_array_equal(used["y1"], times(scale(proto), w))
    np.testing.assert_array_equal(used["y2"], times(scale(proto, "p_"), w))
    assert "w" not in {t.name for t in folded.graph.initializer}


def test_shared_weight_with_two_maps_in_a_row():
    """A W that takes two maps for one Conv and one for the other starts from the old W each time."""
    prefixed = [f"p_{n}" for n in PARAMETERS]
    nodes = [conv("x", "c1"), bn("c1", "d1"), conv("x", "c2"), bn("c2", "y2"), bn("d1", "y1", prefixed)]
    held = [weight(), *batchnorm_parameters(MAPS), *batchnorm_parameters(MAPS, 1, prefix="p_")]
    proto = net(nodes, held, ("y1", "y2"))
    folded = fold_all(proto, 3)
    w = initializer(proto, "w")
    used = {node.output[0]: initializer(folded, node.input[1]) for node in folded.graph.node}
    np.testing.assert_array_equal(used["y1"], times(scale(proto) * scale(proto, "p_"), w))
    np.testing.assert_array_equal(used["y2"], times(scale(proto), w))


@pytest.mark.parametrize("plain_first", [True, False])
def test_one_weight_one_batchnorm(plain_first):
    """Case 22: the Conv without a BatchNormalization keeps W bit for bit, whichever comes first."""
    pair, plain = [conv("x", "c"), bn("c", "y")], [conv("x", "z")]
    nodes = plain + pair if plain_first else pair + plain
    proto = net(nodes, [weight(), *batchnorm_parameters(MAPS)], ("y", "z"))
    folded = fold_all(proto, 1, kept=["z"])
    np.testing.assert_array_equal(initializer(folded, "w"), initializer(proto, "w"))


@pytest.mark.parametrize("op", ["ReduceSum", "Identity", "Neg"])
@pytest.mark.parametrize("name", ["w", "b", "gamma", "beta", "mean", "var"])
def test_tensor_with_another_reader(name, op):
    """Cases 23 and 24: whatever else reads W, the bias or a parameter sees the old numbers."""
    nodes = [conv("x", "c", "w", "b"), bn("c", "y"), reader(op, name)]
    proto = net(nodes, [weight(), vector("b"), *batchnorm_parameters(MAPS)], ("y", "z"))
    fold_all(proto, 1, kept=["z"])


@pytest.mark.parametrize("name", ["w", "b", "gamma", "beta", "mean", "var"])
def test_tensor_is_a_graph_output(name):
    """Case 27: W, the bias or a parameter is an output of the model and stays what it is."""
    nodes = [conv("x", "c", "w", "b"), bn("c", "y")]
    fold_all(net(nodes, [weight(), vector("b"), *batchnorm_parameters(MAPS)], ("y", name)), 1, kept=[name])


def branch(node: NodeProto) -> onnx.GraphProto:
    """A graph without inputs around one node."""
    return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info(node.output[0], 1, None)])


def if_node(then: NodeProto, otherwise: NodeProto, output: str = "z") -> NodeProto:
    """If `flag`, one node, else the other."""
    return helper.make_node(
        "If", ["flag"], [output], name="if", then_branch=branch(then), else_branch=branch(otherwise)
    )


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("deep", [False, True], ids=["branch", "branch of a branch"])
@pytest.mark.parametrize("name", ["w", "b", "gamma", "var"])
def test_tensor_captured_by_a_branch(name, deep, flag):
    """Case 30: an If branch, at any depth, reads the tensor from the scope around it and sees the old numbers."""
    capture, other = reader("Identity", name, "inner"), reader("Neg", name, "other")
    if deep:
        capture = if_node(capture, reader("Abs", name, "third"), "middle")
    nodes = [conv("x", "c", "w", "b"), bn("c", "y"), if_node(capture, other)]
    proto = net(nodes, [weight(), vector("b"), *batchnorm_parameters(MAPS)], ("y", "z"))
    proto.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    folded = bnfold.fold(proto, verify=False)
    assert len(folded.folded) == 1
    feeds = {"x": random_feeds(proto)["x"], "flag": np.array(flag)}
    before, after = run(proto, feeds), run(folded.model, feeds)
    np.testing.assert_array_equal(after[1], before[1], strict=True)
    assert np.abs(after[0] - before[0]).max() <= 2e-6 * np.abs(before[0]).max()


@pytest.mark.parametrize("name", ["w", "gamma"])
def test_tensor_is_the_output_of_a_branch(name):
    """A branch without nodes hands the outer tensor itself on: a use like any other, though no node reads it."""
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    bare = helper.make_graph([], "bare", [], [value])
    choice = helper.make_node("If", ["flag"], ["z"], then_branch=bare, else_branch=bare)
    proto = net([conv("x", "c"), bn("c", "y"), choice], [weight(), *batchnorm_parameters(MAPS)], ("y", "z"))
    proto.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    result = bnfold.fold(proto, verify=False)
    assert len(result.folded) == 1
    np.testing.assert_array_equal(initializer(result.model, name), initializer(proto, name))
    assert result.model.graph.node[-1] == choice


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_bias_is_a_parameter(parameter):
    """Case 25: the bias tensor is beta itself, or another parameter of the same BatchNormalization."""
    held = batchnorm_parameters(MAPS)
    proto = net([conv("x", "c", "w", parameter), bn("c", "y")], [weight(), *held])
    folded = fold_all(proto, 1)
    g, b, m, v = (initializer(proto, name).astype(np.float64) for name in PARAMETERS)
    s = g / np.sqrt(v + np.float32(1e-5))
    wanted = (s * initializer(proto, parameter) + (b - s * m)).astype(np.float32)
    np.testing.assert_array_equal(initializer(folded, folded.graph.node[0].input[2]), wanted)
    assert len(folded.graph.initializer) == 2


@pytest.mark.parametrize(
    "parameters",
    [["p", "q", "q", "p"], ["p", "p", "p", "p"], ["p", "q", "p", "p"]],
    ids=["two", "one", "mean and var"],
)
def test_parameters_share_initializers(parameters):
    """Case 26: scale is var, beta is mean, or all four are one tensor (onnxruntime's ConstantSharing)."""
    proto = net([conv("x", "c"), bn("c", "y", parameters)], [weight(), vector("p"), vector("q", 9)])
    spare = {"p", "q"} - set(parameters)
    folded = fold_all(proto, 1)
    assert {t.name for t in folded.graph.initializer} == {"w_folded", "w_bias"} | spare


def test_beta_is_the_bias_of_the_next_conv():
    """beta of the first BatchNormalization is the bias of the second Conv, and gamma of the second is its mean."""
    nodes = [conv("x", "c1"), bn("c1", "h"), conv("h", "c2", "w2", "beta"), bn("c2", "y", ["mean", "b", "b", "var"])]
    fold_all(net(nodes, [weight(), weight("w2", 1), vector("b"), *batchnorm_parameters(MAPS)]), 2)


def test_bias_shared_by_two_convs():
    """One bias for two Convs, one of which folds."""
    nodes = [conv("x", "c", "w", "b"), bn("c", "y"), conv("x", "z", "w", "b")]
    fold_all(net(nodes, [weight(), vector("b"), *batchnorm_parameters(MAPS)], ("y", "z")), 1, kept=["z"])


def test_tensor_is_weight_and_bias():
    """One initializer is a Conv's weight and, reshaped, the other Conv's bias: the bias follows the old numbers."""
    w = tensor("w", np.random.default_rng(2).normal(size=(MAPS, 1, 1, 1)))
    nodes = [
        helper.make_node("Reshape", ["w", "flat"], ["b"]),
        helper.make_node("Conv", ["x", "w"], ["c"], group=MAPS),
        bn("c", "y"),
        conv("x", "z", "v", "b"),
    ]
    held = [w, tensor("flat", [-1], np.int64), weight("v"), *batchnorm_parameters(MAPS)]
    fold_all(net(nodes, held, ("y", "z")), 1, kept=["z"])


def test_tensor_is_weight_and_bias_of_one_conv():
    """The same within one Conv that folds: both come from the old numbers, and the Reshape goes."""
    w = tensor("w", np.random.default_rng(2).normal(size=(MAPS, 1, 1, 1)))
    nodes = [
        helper.make_node("Reshape", ["w", "flat"], ["b"]),
        helper.make_node("Conv", ["x", "w", "b"], ["c"], group=MAPS),
        bn("c", "y"),
    ]
    folded = fold_all(net(nodes, [w, tensor("flat", [-1], np.int64), *batchnorm_parameters(MAPS)]), 1)
    assert ops(folded) == ["Conv"]
    assert len(folded.graph.initializer) == 2


def test_weight_is_the_input_too():
    """A Conv of W with itself: the input keeps the old W."""
    w = tensor("w", np.random.default_rng(2).normal(size=(MAPS, MAPS, 3, 3)))
    nodes = [conv("w", "c"), bn("c", "y"), reader("Relu", "x")]
    fold_all(net(nodes, [w, *batchnorm_parameters(MAPS)], ("y", "z")), 1)


def test_two_convs_of_one_input_without_bias():
    """Case 29: distinct weights from one input; the new biases are two tensors."""
    nodes = [conv("x", "c1"), bn("c1", "y1"), conv("x", "c2", "w2"), bn("c2", "y2", [f"p_{n}" for n in PARAMETERS])]
    held = [weight(), weight("w2", 1), *batchnorm_parameters(MAPS), *batchnorm_parameters(MAPS, 1, prefix="p_")]
    folded = fold_all(net(nodes, held, ("y1", "y2")), 2)
    first, second = (node.input[2] for node in folded.graph.node)
    assert first != second


def test_unnamed_convs_get_distinct_biases():
    """Nodes without names, weights from unnamed-looking Constants: nothing is named after a node."""
    nodes = [conv("x", "c1"), bn("c1", "h"), conv("h", "c2", "w2"), bn("c2", "y")]
    for node in nodes:
        node.ClearField("name")
    folded = fold_all(net(nodes, [weight(), weight("w2", 1), *batchnorm_parameters(MAPS)]), 2)
    assert len({node.input[2] for node in folded.graph.node}) == 2


TAKEN = ("w_folded", "w_folded_2", "w_bias", "w_bias_2", "b_folded", "c_folded", "i_folded", "y_weight", "y_bias")


@pytest.mark.parametrize("bias", [(), ("b",)], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", ["initializer", "activation", "input", "branch", "node name"])
def test_generated_names_that_are_taken(kind, bias):
    """Case 28: every name that a folding tool may want is taken by something else, which stays what it is."""
    nodes = [conv("x", "c", "w", *bias), helper.make_node("Identity", ["c"], ["i"]), bn("i", "y")]
    held = [weight(), vector("b"), *batchnorm_parameters(MAPS)]
    proto = net([*nodes, reader("Neg", "b")], held, ("y", "z"))
    kept = ["z"]
    if kind == "initializer":
        proto.graph.initializer.extend(vector(name, i) for i, name in enumerate(TAKEN))
        proto.graph.node.append(helper.make_node("Sum", list(TAKEN), ["sum"]))
        kept.append("sum")
    elif kind == "activation":
        proto.graph.node.extend(reader("Relu", "x", name) for name in TAKEN)
        kept += TAKEN
    elif kind == "input":
        proto.graph.input.extend(helper.make_tensor_value_info(name, 1, [2]) for name in TAKEN)
    elif kind == "branch":
        for name in TAKEN:
            chosen = if_node(reader("Relu", "x", name), reader("Neg", "x", f"not_{name}"), f"out_{name}")
            chosen.name = f"if_{name}"
            chosen.input[0] = "yes"
            proto.graph.node.append(chosen)
            kept.append(f"out_{name}")
        proto.graph.initializer.append(tensor("yes", True, np.bool_))  # noqa: FBT003 - a tensor's value
    else:
        for node, name in zip(proto.graph.node, TAKEN, strict=False):
            node.name = name
    proto.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in kept[1:])
    folded = fold_all(proto, 1, kept=kept)
    if kind == "input":
        assert [value.name for value in folded.graph.input] == ["x", *TAKEN]


def test_name_that_only_a_value_info_knows():
    """A stale value_info entry of the wanted name must not become a statement about the new tensor."""
    proto = net([conv("x", "c"), bn("c", "y")], [weight(), *batchnorm_parameters(MAPS)])
    proto.graph.value_info.append(helper.make_tensor_value_info("w_folded", TensorProto.INT64, [9]))
    folded = fold_all(proto, 1)
    assert folded.graph.node[0].input[1] == "w_folded_2"


def test_name_of_a_sparse_initializer():
    """Sparse initializers have names too."""
    proto = net([conv("x", "c"), bn("c", "y")], [weight(), *batchnorm_parameters(MAPS)])
    entry = proto.graph.sparse_initializer.add(dims=[4])
    entry.values.CopyFrom(tensor("w_folded", [1]))
    entry.indices.CopyFrom(tensor("", [2], np.int64))
    assert bnfold.fold(proto, verify=False).model.graph.node[0].input[1] == "w_folded_2"


def test_quantization_annotation_pins_a_parameter():
    """A tensor that an annotation names stays with its old numbers, and the annotation with it."""
    proto = net([conv("x", "c"), bn("c", "y")], [weight(), *batchnorm_parameters(MAPS)])
    entry = proto.graph.quantization_annotation.add(tensor_name="y")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="gamma")
    folded = bnfold.fold(proto, verify=False).model
    assert ops(folded) == ["Conv"]
    np.testing.assert_array_equal(initializer(folded, "gamma"), initializer(proto, "gamma"))
    assert folded.graph.quantization_annotation == proto.graph.quantization_annotation


def test_quantization_annotation_of_a_vanished_value_goes():
    """The annotation of the Conv's old output has no value to speak of; that of the weight follows its name."""
    proto = net([conv("x", "c"), bn("c", "y")], [weight(), *batchnorm_parameters(MAPS)])
    for name in ("c", "y", "w", "gamma"):
        proto.graph.quantization_annotation.add(tensor_name=name)
    folded = bnfold.fold(proto, verify=False).model
    assert [entry.tensor_name for entry in folded.graph.quantization_annotation] == ["y", "w_folded"]


def test_conv_output_pinned_by_an_annotation_stays():
    """An annotation refers to the Conv's output as a parameter: the value must stay, and the message says why."""
    proto = net([conv("x", "c"), bn("c", "y")], [weight(), *batchnorm_parameters(MAPS)])
    entry = proto.graph.quantization_annotation.add(tensor_name="y")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c")
    (site,) = bnfold.fold(proto, verify=False).refused
    assert site.code == "producer-shared"
    assert "read 1 times" not in site.message


def test_weight_of_a_refused_conv_stays_when_the_other_folds():
    """One W, two BatchNormalizations; the one that stays keeps its Conv with the old W."""
    nodes = [conv("x", "c1"), bn("c1", "y1"), conv("x", "c2"), bn("c2", "y2")]
    proto = net(nodes, [weight(), *batchnorm_parameters(MAPS)], ("y1", "y2", "c2"))
    result = bnfold.fold(proto, verify=False)
    assert len(result.folded) == len(result.refused) == 1
    compare(proto, result.model, ["c2", "y2"])


def test_nodes_out_of_order():
    """Nodes that stand before what they read are folded as a runtime runs them, and stay where they stand."""
    nodes = [reader("Relu", "y"), bn("h", "y"), conv("g", "h"), bn("c", "g"), conv("x", "c")]
    proto = net(nodes, [weight(), *batchnorm_parameters(MAPS)], ("y", "z"))
    folded = bnfold.fold(proto, verify=False).model
    assert [node.output[0] for node in folded.graph.node] == ["z", "y", "g"]
    assert_same_outputs(proto, folded)


def test_renamed_values_are_reported():
    """A value whose contents changed is listed with its old and its new name; nothing else is."""
    nodes = [conv("x", "c"), helper.make_node("Identity", ["c"], ["i"]), bn("i", "y")]
    held = [weight(), *batchnorm_parameters(MAPS)]
    assert bnfold.fold(net(nodes, held), verify=False).renamed == (("c", "c_folded"),)
    assert bnfold.fold(net([conv("x", "c"), bn("c", "y")], held), verify=False).renamed == ()


def test_other_outputs_of_the_same_name_family():
    """onnxslim's cross-wiring: an unrelated initializer y_weight that feeds another output is not touched."""
    nodes = [conv("x", "c"), bn("c", "y"), reader("Relu", "y_weight")]
    proto = net(nodes, [weight(), tensor("y_weight", [[1, -2], [3, -4]]), *batchnorm_parameters(MAPS)], ("y", "z"))
    fold_all(proto, 1, kept=["z"])


@pytest.mark.parametrize("ir_version", [3, 8])
def test_shared_tensors_at_every_ir_version(ir_version):
    """W with two readers and beta as bias; the result passes the checker at its IR version."""
    nodes = [conv("x", "c", "w", "beta"), bn("c", "y"), conv("x", "z")]
    proto = net(nodes, [weight(), *batchnorm_parameters(MAPS)], ("y", "z"))
    proto.ir_version = ir_version
    proto.opset_import[0].version = 8
    if ir_version < 4:
        for held in proto.graph.initializer:
            proto.graph.input.append(helper.make_tensor_value_info(held.name, held.data_type, held.dims))
    folded = fold_all(proto, 1, kept=["z"])
    assert folded.ir_version == ir_version
    extra = [value.name for value in folded.graph.input][1:]
    assert extra == ([t.name for t in folded.graph.initializer] if ir_version < 4 else [])
