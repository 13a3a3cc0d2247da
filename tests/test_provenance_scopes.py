"""Provenance of what folds inside bodies and local functions: noted at the node that took it in, wherever it lies."""

import json
from typing import Any

import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold.provenance import KEY
from tests.conftest import batchnorm_parameters, conv_bn, tensor


def in_branches(ir_version: int) -> ModelProto:
    """If, with Conv and BatchNormalization in each branch, both with the same names of values."""
    branches = {}
    for name in ("then", "else"):
        inner = conv_bn(seed=len(name), ir_version=ir_version).graph
        nodes = [*inner.node]
        nodes[1].name = f"bn_{name}"
        out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        branches[f"{name}_branch"] = helper.make_graph(nodes, name, [], out, list(inner.initializer))
    graph = helper.make_graph(
        [helper.make_node("If", ["p"], ["r"], **branches)], "g",
        [helper.make_tensor_value_info("p", 9, []), helper.make_tensor_value_info("x", 1, [2, 3, 9, 9])],
        [helper.make_tensor_value_info("r", 1, [2, 4, 7, 7])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)


def called(times: int) -> ModelProto:
    """A function of Conv and BatchNormalization, called `times` times in a row with other parameters each time."""
    names = ["w", "gamma", "beta", "mean", "var"]
    body = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("BatchNormalization", ["c", *names[1:]], ["y"], name="bn")]  # fmt: skip
    function = helper.make_function("here", "F", ["x", *names], ["y"], body, [helper.make_opsetid("", 17)])
    nodes, held = [], []
    for call in range(times):
        weight = tensor(f"{call}w", [[[[1.0 + call]]] * 4] * 4)
        mine = [weight, *batchnorm_parameters(4, call, prefix=str(call))]
        held += mine
        nodes.append(helper.make_node("F", [f"v{call}", *(t.name for t in mine)], [f"v{call + 1}"], domain="here"))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("v0", 1, [1, 4, 3, 3])],
                              [helper.make_tensor_value_info(f"v{times}", 1, [1, 4, 3, 3])], held)  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("here", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)


def sites(node: Any) -> list[Any]:
    """What a node says of itself."""
    return [site for entry in node.metadata_props if entry.key == KEY for site in json.loads(entry.value)["sites"]]


def test_a_node_in_a_branch_says_it() -> None:
    """At IR 10 each Conv has its own BatchNormalization's entry, and no name has a mark of its scope."""
    found = bnfold.fold(in_branches(10), verify=False)
    assert len(found.folded) == 2
    told = {a.name: [s["nodes"][0][1] + "/" + s["output"] for n in a.g.node for s in sites(n)]
            for a in found.model.graph.node[0].attribute}  # fmt: skip
    assert told == {"then_branch": ["bn_then/y"], "else_branch": ["bn_else/y"]}


def test_below_ir_10_branches_share_an_entry_where_they_share_a_name() -> None:
    """The model's entry is by names of values: two branches that make a `y` are listed under it together."""
    found = bnfold.fold(in_branches(8), verify=False).model
    (entry,) = found.metadata_props
    told = json.loads(entry.value)["nodes"]
    assert {output: sorted(site["nodes"][0][1] for site in of) for output, of in told.items()} == {
        "y": ["bn_else", "bn_then"]
    }


@pytest.mark.parametrize("times", [1, 3])
def test_a_node_in_a_function_says_it(times: int) -> None:
    """Once, however often the function is called; the entry says for how many calls it stands."""
    found = bnfold.fold(called(times), verify=False)
    assert len(found.folded) == 1
    (site,) = [site for node in found.model.functions[0].node for site in sites(node)]
    assert site["nodes"] == [["BatchNormalization", "bn"]]
    assert site.get("calls", 1) == times


@pytest.mark.parametrize("make", [lambda: in_branches(10), lambda: in_branches(8), lambda: called(2)])
def test_fold_of_fold_is_the_same(make: Any) -> None:
    """Nothing is added where nothing folds."""
    once = bnfold.fold(make(), verify=False)
    assert once.folded
    again = bnfold.fold(once.model, verify=False)
    assert not again.folded
    assert again.model == once.model
