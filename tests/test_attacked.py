"""What attacks on the engine have found, each once: wrong folds, broken interfaces, crashes, endless walks."""

import contextlib

import numpy as np
import pytest
from onnx import TensorProto, helper

import bnfold
from bnfold.nodes import label
from tests.conftest import assert_same_outputs, batchnorm_parameters, model, ops, run, tensor


@pytest.mark.parametrize("rows", [4, 7])
def test_a_table_behind_gather_takes_the_map_by_its_columns(rows):
    """The map is one of the looked-up vectors: of the table's last axis, whatever the rank of the result."""
    nodes = [
        helper.make_node("Gather", ["tab", "ids"], ["e"]),
        helper.make_node("Transpose", ["e"], ["t"], perm=[0, 2, 1]),
        helper.make_node("BatchNormalization", ["t", "gamma", "beta", "mean", "var"], ["y"]),
    ]
    table = np.random.default_rng(0).normal(size=(rows, 4))
    proto = model(nodes, [tensor("tab", table), *batchnorm_parameters(4)], (2, 5))
    proto.graph.input[0].name = "ids"
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    folded = bnfold.fold(proto, verify=False)
    assert ops(folded.model)[-1] == "Transpose"
    ids = {"ids": np.arange(10).reshape(2, 5) % rows}
    assert np.allclose(run(proto, ids)[0], run(folded.model, ids)[0], atol=1e-5)


def test_a_constant_beside_a_residual_is_not_lost():
    """(k + x) + Conv(x), then a map: k would be left out or dangling if x were made a tap."""
    nodes = [
        helper.make_node("Add", ["k", "x"], ["a"]),
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "c"], ["s"]),
        helper.make_node("BatchNormalization", ["s", "gamma", "beta", "mean", "var"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    for shape in ((1, 4, 6, 6), (4, 1, 1)):
        held = [tensor("k", rng.normal(size=shape)), tensor("w", rng.normal(size=(4, 4, 3, 3)))]
        proto = model(nodes, held + batchnorm_parameters(4), (2, 4, 6, 6))
        for sources in ("bn", "affine", "all"):
            assert_same_outputs(proto, bnfold.fold(proto, verify=False, sources=sources).model)


def test_a_sibling_freezes_the_weights_it_changes():
    """Weights that are model inputs too leave the inputs under their own names, and are listed."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Add", ["c", "n"], ["y"]),
    ]
    proto = model(nodes, [tensor("w", np.ones((4, 4, 3, 3))), *batchnorm_parameters(4)], (2, 4, 6, 6))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 3, 3]))
    assert not bnfold.fold(proto, verify=False).folded
    result = bnfold.fold(proto, verify=False, freeze_inputs=True)
    assert [value.name for value in result.model.graph.input] == ["x"]
    assert result.frozen == ("w",)


def test_half_precision_behind_a_cast_is_half_precision():
    """What a Cast makes float16 has float16's range, declared or not."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "p"], ["c"]),
        helper.make_node("Conv", ["h", "q"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["s"]),
        helper.make_node("BatchNormalization", ["s", "gamma", "beta", "mean", "var"], ["z"]),
        helper.make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT),
    ]
    half = np.float16
    held = [
        tensor("p", np.full((1, 1, 1, 1), 50), half),
        tensor("q", np.full((1, 1, 1, 1), -50), half),
        tensor("gamma", [100], half),
        *[tensor(n, [v], half) for n, v in (("beta", 0), ("mean", 0), ("var", 1))],
    ]
    proto = model(nodes, held, (1, 1, 2, 2))
    result = bnfold.fold(proto, verify=False)
    assert [site.code for site in result.refused] == ["range-risk"]
    assert bnfold.fold(proto, verify=False, assume_range=True).folded


def test_freezing_takes_only_what_the_fold_needs():
    """Shapes of other nodes that callers may replace stay inputs."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"]),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Mul", ["r", "two"], ["z"]),
    ]
    held = [tensor("w", np.ones((3, 3, 1, 1))), tensor("shape", [2, -1], np.int64), tensor("two", [2.0])]
    proto = model(nodes, held + batchnorm_parameters(3), (2, 3, 4, 4), outputs=("y", "z"))
    proto.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    result = bnfold.fold(proto, verify=False, freeze_inputs=True)
    assert len(result.folded) == 1
    assert result.frozen == ()
    assert [value.name for value in result.model.graph.input] == ["x", "shape"]


def test_merged_branches_need_biases_of_one_length():
    """A bias of another length is the model's fault, and no crash."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Conv", ["x", "u", "d"], ["e"]),
        helper.make_node("Add", ["c", "e"], ["y"]),
    ]
    ones = np.ones((4, 4, 1, 1))
    held = [tensor("w", ones), tensor("u", ones), tensor("b", np.ones(4)), tensor("d", np.ones(2))]
    assert not bnfold.fold(model(nodes, held, (1, 4, 2, 2)), verify=False, merge_branches=True).folded


@pytest.mark.parametrize("op", ["DepthToSpace", "GlobalAveragePool", "Neg", "Split", "LayerNormalization", "Pad",
                                "Resize", "Gather", "Reshape", "Transpose", "MaxPool", "Relu", "Concat"])  # fmt: skip
def test_a_node_without_inputs_costs_one_site_at_most(op):
    """No exception gets out of the library but its own."""
    nodes = [
        helper.make_node(op, [], ["h"]),
        helper.make_node("BatchNormalization", ["h", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Conv", ["n", "w"], ["y"]),
    ]
    proto = model(nodes, [tensor("w", np.ones((4, 4, 3, 3))), *batchnorm_parameters(4)], (1, 4, 6, 6))
    with contextlib.suppress(bnfold.InvalidModelError):
        bnfold.fold(proto, verify=False, sources="all", clone_shared=True, partial=True, merge_branches=True)


@pytest.mark.parametrize("dims", [[2**44, 4, 1, 1], [2**31, 0, 1, 1], [4, 2**44, 1, 1]])
def test_declared_sizes_are_not_allocated(dims):
    """A weight that only says that it is huge is refused before anything of that size is made."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "two"], ["y"])]
    proto = model(nodes, [tensor("two", 2.0)], (1, 4, 2, 2))
    proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=dims)
    with contextlib.suppress(bnfold.InvalidModelError):
        assert not bnfold.fold(proto, verify=False).folded


def test_a_walk_through_many_operators_ends():
    """No real path between a map and its weights is hundreds of operators long, so nobody looks that far."""
    nodes = [helper.make_node("Relu", ["x" if i == 0 else f"r{i - 1}"], [f"r{i}"]) for i in range(300)]
    nodes.append(helper.make_node("Mul", ["r299", "k"], ["y"]))
    proto = model(nodes, [tensor("k", np.full((3, 1, 1), 2.0))], (1, 3, 4, 4))
    (site,) = bnfold.fold(proto, verify=False, sources="all").refused
    assert "within 128 operators" in site.message
    assert label(nodes[-1]) == site.site


def test_many_maps_into_one_concat_each_get_a_short_reason():
    """The message names a few branches, not all of them."""
    count = 40
    nodes = [helper.make_node("Mul", ["x", "k"], [f"m{i}"]) for i in range(count)]
    nodes.append(helper.make_node("Sum", [*(f"m{i}" for i in range(count)), "x"], ["y"]))
    proto = model(nodes, [tensor("k", np.full((3, 1, 1), 2.0))], (1, 3, 4, 4))
    for site in bnfold.fold(proto, verify=False, sources="all").refused:
        assert len(site.message) < 400


def test_sums_on_the_way_to_a_sibling_have_the_range_of_half_precision():
    """Three branches in float16: the first Conv's output changes and may overflow; with two there is none between."""
    half = np.float16
    ones = [tensor("w", np.ones((4, 4, 1, 1)), half), tensor("u", np.ones((4, 4, 1, 1)), half)]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Conv", ["x", "u"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["a"]),
        helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Add", ["a", "n"], ["y"]),
    ]
    kinds = {"elem_type": TensorProto.FLOAT16}
    held = ones + batchnorm_parameters(4, dtype=half)
    three = model(nodes, held, (1, 4, 2, 2), **kinds)
    nodes[4] = helper.make_node("Add", ["c", "n"], ["y"])
    two = model([nodes[0], nodes[3], nodes[4]], [held[0], *held[2:]], (1, 4, 2, 2), **kinds)
    assert not bnfold.fold(three, verify=False).folded
    assert bnfold.fold(three, verify=False, assume_range=True).folded
    assert bnfold.fold(two, verify=False).folded
