"""Graph facts: producers, uses, constants in all their forms, fresh names, order."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.errors import InvalidModelError
from bnfold.graph import GraphFacts, Use
from bnfold.nodes import captures, float_attribute, int_attribute, label
from tests.conftest import conv_bn, model, tensor


def facts(nodes, held=(), **options) -> GraphFacts:
    """Facts about a model of these nodes."""
    return GraphFacts(model(nodes, held, **options))


def test_producers_and_uses():
    """Each value has its producer and all its uses; names that are empty are no values."""
    found = GraphFacts(conv_bn())
    assert found.producer("c") == 0
    assert found.producer("x") is None
    assert list(found.users("c")) == [Use(1, 0)]
    assert list(found.users("w")) == [Use(0, 1)]
    assert not found.users("y")
    assert not found.is_free("y")
    assert found.is_free("nowhere")


def branch(*nodes, output):
    """A graph without inputs, as in an If."""
    return helper.make_graph(list(nodes), "b", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def test_captures_count_as_uses_at_any_depth():
    """A value read inside a nested graph, or returned by it, is used there; its own values are not captures."""
    inner = branch(helper.make_node("Add", ["a", "deep"], ["b"]), output="b")
    middle = branch(
        helper.make_node("Identity", ["outer"], ["a"]),
        helper.make_node("If", ["a"], ["m"], then_branch=inner, else_branch=branch(output="returned")),
        output="m",
    )
    node = helper.make_node("If", ["cond"], ["y"], then_branch=middle, else_branch=branch(output="direct"))
    assert captures(node) == {"deep", "outer", "returned", "direct"}
    nodes = [helper.make_node("Identity", ["x"], [n]) for n in ("deep", "outer", "returned", "direct", "cond")]
    assert list(facts([*nodes, node]).users("outer")) == [Use(5, -1)]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": tensor("", [[1.5, 2]])}, [[1.5, 2]]),
        ({"value_float": 1.5}, 1.5),
        ({"value_floats": [1.5, 2.0]}, [1.5, 2]),
        ({"value_int": 2**60 + 1}, 2**60 + 1),
        ({"value_ints": [1, 2]}, [1, 2]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_constant_nodes_in_every_form(attributes, expected):
    """Dense numbers of every kind are constants, with nothing lost."""
    found = facts([helper.make_node("Constant", [], ["k"], **attributes), helper.make_node("Relu", ["k"], ["y"])])
    assert found.constants.find("k").tensor.array().tolist() == expected
    assert found.constants.computes(0)
    assert not found.constants.computes(1)
    assert found.constants.find("y") is None


def test_strings_and_sparse_constants_are_none():
    """What bnfold does not compute with is not taken for a number."""
    sparse = helper.make_sparse_tensor(tensor("s", [1.0]), helper.make_tensor("", TensorProto.INT64, [1], [0]), [4])
    for attributes in ({"value_string": "a"}, {"value_strings": ["a"]}, {"sparse_value": sparse}):
        found = facts([helper.make_node("Constant", [], ["y"], **attributes)])
        assert found.constants.find("y") is None


def test_constants_through_identity_and_arithmetic():
    """Identity is looked through; pure operators on constants are evaluated; run-time values are not constant."""
    nodes = [
        helper.make_node("Identity", ["k"], ["i"]),
        helper.make_node("Mul", ["i", "i"], ["m"]),
        helper.make_node("Sqrt", ["m"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["y"]),
        helper.make_node("Shape", ["x"], ["s"]),
    ]
    found = facts(nodes, [tensor("k", [3.0, 4.0])], x=(2,))
    assert found.constants.find("i").name == "k"
    assert found.constants.find("r").tensor.array().tolist() == [3, 4]
    assert found.constants.find("r").stored == 8
    assert found.constants.find("y") is None
    assert found.constants.find("s") is None


def test_cast_like_reads_only_a_type():
    """The second input of CastLike may be a run-time value (torch's dynamo exporter writes a bias of zeros so)."""
    nodes = [helper.make_node("CastLike", ["k", "x"], ["h"]), helper.make_node("Relu", ["x"], ["y"])]
    found = facts(nodes, [tensor("k", [3.0])], elem_type=TensorProto.FLOAT16)
    assert found.constants.find("h").tensor.array().dtype == np.float16


def test_what_would_be_huge_is_not_evaluated():
    """A constant subgraph that expands to terabytes is left to the runtime."""
    nodes = [helper.make_node("Expand", ["k", "shape"], ["y"])]
    found = facts(nodes, [tensor("k", [1.0]), tensor("shape", [2**40], np.int64)])
    assert found.constants.find("y") is None
    huge = tensor("shape", [2**20, 2**20], np.int64)
    for op, reads in (("ConstantOfShape", ["shape"]), ("Expand", ["shape", "shape"]), ("ConstantOfShape", [])):
        found = facts([helper.make_node(op, reads, ["y"])], [huge])
        assert found.constants.find("y") is None
    held = [tensor("table", np.zeros((1, 2**15))), tensor("rows", np.zeros(2**15), np.int64)]
    assert facts([helper.make_node("Gather", ["table", "rows"], ["y"])], held).constants.find("y") is None


def test_overridable_from_ir_4_on():
    """Below IR 4 every initializer is an input; from then on, one that is an input may be replaced by a caller."""
    for version, expected in ((3, ()), (4, ("w",)), (8, ("w",))):
        proto = conv_bn(ir_version=version)
        proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))
        assert GraphFacts(proto).constants.find("w").overridable == expected


def test_fresh_names_avoid_every_name_in_the_model():
    """Inputs, initializers, nested graphs, value_info: none of their names is handed out, nor any twice."""
    nested = branch(helper.make_node("Identity", ["x"], ["n"]), output="n")
    proto = model(
        [helper.make_node("If", ["x"], ["y"], then_branch=nested, else_branch=nested)], [tensor("w", [1.0])]
    )
    proto.graph.value_info.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, None))
    found = GraphFacts(proto)
    assert [found.fresh(name) for name in ("x", "y", "n", "w", "v")] == ["x_2", "y_2", "n_2", "w_2", "v_2"]
    assert [found.fresh("free") for _ in range(3)] == ["free", "free_2", "free_3"]


def test_nodes_in_any_order_are_walked_in_a_topological_one():
    """Some exporters write nodes out of order; runtimes take that, and so does bnfold."""
    nodes = [helper.make_node("Relu", ["b"], ["y"]), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("Relu", ["x"], ["a"])]  # fmt: skip
    assert list(facts(nodes).order) == [2, 1, 0]
    assert list(facts(nodes[::-1]).order) == [0, 1, 2]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([helper.make_node("Relu", ["nowhere"], ["y"])], "which nothing produces"),
        ([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])], "cycle"),
        ([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])], "produced twice"),
        ([helper.make_node("Relu", ["x"], ["x"])], "produced twice"),
    ],
    ids=["missing", "cycle", "two producers", "overwritten input"],
)
def test_broken_graphs_are_errors(nodes, words):
    """A value without a producer, with two, or that depends on itself, with the names at issue."""
    with pytest.raises(InvalidModelError, match=words):
        facts(nodes)


def test_operators_of_other_domains_are_not_the_standard_ones():
    """Neither a custom domain's BatchNormalization nor one that a local function redefines is taken for ONNX's."""
    assert facts([helper.make_node("Conv", ["x"], ["y"], domain="org.custom")]).op(0) == "org.custom::Conv"
    assert facts([helper.make_node("Conv", ["x"], ["y"], domain="ai.onnx")]).op(0) == "Conv"
    proto = model([helper.make_node("Conv", ["x"], ["y"])], [])
    opset = [helper.make_opsetid("", 17)]
    proto.functions.append(
        onnx.helper.make_function("", "Conv", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opset)
    )
    assert GraphFacts(proto).op(0) == "::Conv"


def test_attributes_are_read_by_the_type_the_spec_gives_them():
    """An attribute of another type is an error, not a guess; one without a type (IR 1) is read by its field."""
    node = helper.make_node("BatchNormalization", ["x"], ["y"], epsilon=0.5, training_mode=1)
    assert float_attribute(node, "epsilon", 1e-5) == 0.5
    assert int_attribute(node, "training_mode", 0) == 1
    assert int_attribute(node, "absent", 7) == 7
    for name in ("epsilon", "training_mode"):
        other = int_attribute if name == "epsilon" else float_attribute
        with pytest.raises(InvalidModelError, match=name):
            other(node, name, 1)
    node.attribute[0].ClearField("type")
    assert float_attribute(node, "epsilon", 1e-5) == 0.5


def test_labels_name_nodes_safely():
    """A node is called by its operator and name, or by its output; control characters are escaped."""
    assert label(helper.make_node("Conv", [], ["y"], name="conv1")) == "Conv 'conv1'"
    assert label(helper.make_node("Conv", [], ["y"])) == "Conv -> 'y'"
    assert label(helper.make_node("Conv", [], [], name="\x1b[31mred\n")) == "Conv '\\x1b[31mred\\n'"
