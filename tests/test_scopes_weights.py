"""Constants of nested graphs: which graph holds them, who else reads them, and where new ones go."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from tests.scopes import fork, loop, parse, scopes
from tests.scopes_check import check

RELU = "b = Relu(x)"
THEN = ("", "0.then_branch.0")


def held(proto: ModelProto, path: tuple[str, ...] = ("",)) -> list[str]:
    """The names of the initializers of a scope, in order."""
    return list(next(scope for scope in scopes(proto) if scope.path == path).initializers)


def test_weight_and_bias_of_the_branch():
    """The new weight takes the old one's place in the branch's own list, and the bias is added there."""
    text = "w = K() c = Conv(x, w) a = BN(c) " + fork("w1 = K() c1 = Conv(a, w1) a1 = BN(c1)", RELU, ends=("a1", "b"))
    found = check(text, "Conv If[Conv | Relu]", folded=2).model
    assert held(found, THEN)[0] == "w1_folded"
    assert held(found)[0] == "w_folded"
    assert (len(held(found, THEN)), len(held(found))) == (2, 2)


def test_weight_of_an_outer_scope_that_only_the_branch_reads():
    """It is replaced in the graph that holds it; the bias is new in the branch."""
    text = "w = K()" + fork("c = Conv(x, w) a = BN(c)", RELU)
    found = check(text, "If[Conv | Relu]").model
    assert held(found) == ["w_folded"]
    assert len(held(found, THEN)) == 1


def test_weight_of_the_scope_between():
    """The holder is neither the main graph nor the branch, but the branch around it."""
    deep = fork("c = Conv(x, w) d = BN(c)", "e = Relu(x)", out="a", ends="de")
    found = check(fork("w = K() " + deep, RELU), "If[If[Conv | Relu] | Relu]").model
    assert held(found, THEN) == ["w_folded"]
    assert len(held(found, (*THEN, "0.then_branch.0"))) == 1


def test_bias_of_an_outer_scope():
    """A bias that lies outside is replaced there."""
    text = "w = K() k = K(4)" + fork("c = Conv(x, w, k) a = BN(c)", RELU)
    found = check(text, "If[Conv | Relu]").model
    assert held(found) == ["w_folded", "k_folded"]
    assert held(found, THEN) == []


def test_weight_read_by_both_branches():
    """Two folds of one weight: both new ones stand where the old one did, which nobody reads any more."""
    text = "w = K()" + fork("c = Conv(x, w) a = BN(c)", "d = Conv(x, w) b = BN(d)")
    found = check(text, "If[Conv | Conv]", folded=2).model
    assert sorted(held(found)) == ["w_folded", "w_folded_2"]


def test_weight_read_by_a_branch_that_does_not_fold():
    """The other branch's Conv keeps the old weight, bit for bit."""
    text = "w = K()" + fork("c = Conv(x, w) a = BN(c)", "b = Conv(x, w)")
    assert sorted(held(check(text, "If[Conv | Conv]").model)) == ["w", "w_folded"]


def test_weight_read_outside_too():
    """A Conv outside reads the same weight, and keeps it."""
    text = "w = K() z = Conv(x, w)" + fork("c = Conv(z, w) a = BN(c)", "b = Relu(z)")
    assert sorted(held(check(text, "Conv If[Conv | Relu]").model)) == ["w", "w_folded"]


def test_weight_that_is_an_output_of_the_model():
    """A weight that is an output of the model as well stays what it is."""
    text = "w = K()" + fork("c = Conv(x, w) a = BN(c)", RELU)
    proto = parse(f"main (T x, bool p) => (T y) {{ {text} }}")
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 1, 1]))
    assert sorted(held(check(proto, "If[Conv | Relu]").model)) == ["w", "w_folded"]


def test_weight_that_is_an_output_of_its_branch():
    """A weight that its branch hands out stays what it is."""
    text = """y, z = If (p) <then_branch = yes () => (T a, float[4,4,1,1] w) { w = K() c = Conv(x, w) a = BN(c) },
        else_branch = no () => (T b, float[4,4,1,1] d) { b = Relu(x) d = K() }>"""
    text = f"main (T x, bool p) => (T y, float[4,4,1,1] z) {{ {text} }}"
    found = held(check(text, "If[Conv | Relu]").model, THEN)
    assert {"w", "w_folded"} < set(found)
    assert len(found) == 3


def test_weight_read_by_a_graph_inside():
    """A branch of the branch reads the weight too, and keeps it."""
    deep = fork("d = Conv(e, w)", "f = Relu(e)", out="a", ends="df")
    text = fork("w = K() c = Conv(x, w) e = BN(c) " + deep, RELU)
    found = held(check(text, "If[Conv If[Conv | Relu] | Relu]").model, THEN)
    assert {"w", "w_folded"} < set(found)
    assert len(found) == 3


def test_weight_of_the_same_name_inside_and_outside():
    """The branch's own `w` hides the outer one, as runtimes allow: each Conv means its own, or stays."""
    text = "w = K() c = Conv(x, w) z = BN(c)" + fork("w = K() d = Conv(z, w) a = BN(d)", "b = Relu(z)")
    proto = parse(text)
    inner = next(s for s in scopes(proto) if s.path == THEN)
    assert inner.initializers["w"].raw_data != proto.graph.initializer[0].raw_data
    result = bnfold.fold(proto, verify=False)
    if len(result.folded) == 2:
        check(proto, "Conv If[Conv | Relu]", folded=2)
    else:
        check(proto, "Conv If[Conv BatchNormalization | Relu]", "in-subgraph")


def test_hidden_weight_is_not_the_fold_s():
    """The outer `w` is read by nobody but the outer Conv, though a branch has a `w` of its own that stays."""
    text = "w = K() c = Conv(x, w) z = BN(c)" + fork("w = K() a = Conv(z, w)", "b = Relu(z)")
    found = check(text, "Conv If[Conv | Relu]").model
    assert held(found) == ["w_folded", "w_bias"]
    assert held(found, THEN) == ["w"]


@pytest.mark.parametrize("name", ["w_folded", "w_bias"])
@pytest.mark.parametrize("place", ["other branch", "deeper", "outside", "output of the deepest"])
def test_names_that_are_taken(name, place):
    """A new name is free in every scope, so that it hides nothing and nothing hides it."""
    deep = "a = Tanh(e)"
    if place == "deeper":
        deep = fork(f"{name} = Abs(x) d = Add(e, {name})", "f = Relu(e)", out="a", ends="df")
    if place == "output of the deepest":
        deep = fork(f"{name} = Abs(e)", "f = Relu(e)", out="a", ends=(name, "f"))
    other = f"{name} = Tanh(x) b = Abs({name})" if place == "other branch" else RELU
    before = f"{name} = Tanh(x)" if place == "outside" else f"{name}0 = Tanh(x)"
    user = name if place == "outside" else f"{name}0"
    text = f"w = K() {before}" + fork("c = Conv(x, w) e = BN(c) " + deep, other, out="z") + f" y = Add(z, {user})"
    found = check(text, check_layout(place)).model
    assert name not in {n for s in scopes(found) for n in s.constants}


def check_layout(place: str) -> str:
    """What is left of the model of `test_names_that_are_taken`."""
    inner = {"deeper": "If[Abs Add | Relu]", "output of the deepest": "If[Abs | Relu]"}.get(place, "Tanh")
    return f"Tanh If[Conv {inner} | {'Tanh Abs' if place == 'other branch' else 'Relu'}] Add"


def test_parameters_outside():
    """gamma, beta, mean and var of an outer scope, read by nobody else, go."""
    text = "w = K() g = K(4) h = K(4) m = K(4) v = P(4)"
    text += fork("c = Conv(x, w) a = BatchNormalization(c, g, h, m, v)", "b = Add(x, x)")
    assert held(check(text, "If[Conv | Add]").model) == ["w_folded"]


def test_parameters_read_by_the_other_branch():
    """Parameters that a BatchNormalization elsewhere reads stay."""
    text = "w = K() g = K(4) q = P(4)"
    text += fork("c = Conv(x, w) a = BatchNormalization(c, g, g, g, q)", "b = BatchNormalization(x, g, g, g, q)")
    assert sorted(held(check(text, "If[Conv | BatchNormalization]", "no-producer").model)) == ["g", "q", "w_folded"]


@pytest.mark.parametrize("inside", [True, False])
def test_weights_in_constant_nodes(inside):
    """Constant nodes in the branch or outside are constants as well."""
    text = fork("w = N() c = Conv(x, w) a = BN(c)", RELU)
    text = text if inside else "w = N() " + text.replace("w = N() ", "")
    check(text, "If[Conv | Relu]")


def test_constant_node_read_elsewhere():
    """A Constant node outside that a Conv outside reads as well stays."""
    text = "w = N() z = Conv(x, w)" + fork("c = Conv(z, w) a = BN(c)", "b = Relu(z)")
    found = check(text, "Conv If[Conv | Relu]").model
    assert [node.output[0] for node in found.graph.node if node.op_type == "Constant"] == ["w"]


def test_parameters_computed_from_constants_outside():
    """A gamma that nodes outside compute from constants is a constant in the branch."""
    text = "w = K() g = K(4) h = K(4) s = Mul(g, h) q = P(4)"
    text += fork("c = Conv(x, w) a = BatchNormalization(c, s, h, h, q)", RELU)
    check(text, "If[Conv | Relu]")


def test_weight_of_a_loop_lies_outside():
    """Outer weights of a Loop body are the same in each round."""
    text = "w = K() k = K(4) " + loop("c = Conv(v, w, k) a = BN(c)")
    assert held(check(text, "Loop[Identity Conv]").model) == ["w_folded", "k_folded"]


def test_one_weight_four_scopes():
    """A weight that four Convs in as many scopes read, three of which fold, stays for the fourth."""
    third = fork("c3 = Conv(v2, w) v3 = BN(c3)", "u3 = Conv(v2, w)", out="t2", ends=("v3", "u3"))
    text = "w = K() c1 = Conv(x, w) v1 = BN(c1)"
    text += fork("c2 = Conv(v1, w) v2 = BN(c2) " + third, "u2 = Tanh(v1)", ends=("t2", "u2"))
    found = check(text, "Conv If[Conv If[Conv | Conv] | Tanh]", folded=3).model
    assert sorted(held(found)) == ["w", "w_bias", "w_folded", "w_folded_2", "w_folded_3"]


def test_quantised_weight_outside():
    """The scale of a DequantizeLinear outside takes the factor in; the integers stay."""
    proto = parse(
        "s = K(4) g = P(4) h = K(4) v = P(4) w = DequantizeLinear <axis = 0> (q, s)"
        + fork("c = Conv(x, w) a = BatchNormalization(c, g, h, h, v)", RELU)
    )
    numbers = np.arange(-8, 8, dtype=np.int8).reshape(4, 4, 1, 1)
    proto.graph.initializer.append(numpy_helper.from_array(numbers, "q"))
    found = check(proto, "DequantizeLinear If[Conv | Relu]").model
    assert [t.name for t in found.graph.initializer if t.name == "q"] == ["q"]


def test_sparse_weight_in_a_branch():
    """A sparse initializer of a branch is left, with the code of a sparse weight."""
    proto = parse(fork("w = K() c = Conv(x, w) a = BN(c)", RELU))
    inner = next(s.body for s in scopes(proto) if s.path == THEN)
    values = numpy_helper.from_array(np.float32([1, 2]), "w")
    place = numpy_helper.from_array(np.int64([0, 5]), "i")
    del inner.initializer[0]
    inner.sparse_initializer.append(helper.make_sparse_tensor(values, place, [4, 4, 1, 1]))
    check(proto, None, "sparse-weight", runs=False)


def test_tensor_fields_of_a_kept_weight():
    """What is kept in a branch keeps its storage, doc_string and metadata."""
    proto = parse("w = K()" + fork("k = K() c = Conv(x, w) e = BN(c) a = Conv(e, k)", RELU), ir=10)
    kept = next(s.initializers["k"] for s in scopes(proto) if s.path == THEN)
    kept.doc_string = "kept"
    kept.metadata_props.add(key="from", value="test")
    kept.float_data.extend(numpy_helper.to_array(kept).reshape(-1).tolist())
    kept.ClearField("raw_data")
    check(proto, "If[Conv Conv | Relu]")


# IR 3 ---------------------------------------------------------------------------------------------------------------


def test_ir3_bias_goes_to_the_main_graph():
    """At IR 3 nested graphs hold no initializers: the new bias is one of the main graph, and among its inputs."""
    found = check(fork("w = K() c = Conv(x, w) a = BN(c)", RELU), "If[Conv | Relu]", ir=3, opset=8).model
    assert held(found) == ["w_folded", "w_bias"]
    assert held(found, THEN) == []
    assert [value.name for value in found.graph.input] == ["x", "p", "w_folded", "w_bias"]


def test_ir3_shared_weight():
    """At IR 3 a copy of a weight that others read is an input of the model too."""
    text = "w = K()" + fork("c = Conv(x, w) a = BN(c)", "b = Conv(x, w)")
    found = check(text, "If[Conv | Conv]", ir=3, opset=8).model
    assert {value.name for value in found.graph.input} == {"x", "p", "w", "w_folded", "w_bias"}


def test_ir3_two_levels():
    """From the deepest scope as well."""
    deep = fork("w = K() c = Conv(x, w) d = BN(c)", "e = Relu(x)", out="a", ends="de")
    found = check(fork(deep, RELU), "If[If[Conv | Relu] | Relu]", ir=3, opset=8).model
    assert sorted(held(found)) == ["w_bias", "w_folded"]
