"""What random graphs and hostile readers found in nested graphs and functions, each as a small model."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from tests.conftest import assert_same_outputs, random_feeds
from tests.scopes import parse
from tests.test_function_calls import STATISTICS as CALL_STATISTICS

STATISTICS = "float[2] g = {1.5, -2}, float[2] h = {0.5, 1}, float[2] m = {1, -1}, float[2] v = {0.5, 2}"
STATISTICS_OF_TWO_CALLS = CALL_STATISTICS.format("") + CALL_STATISTICS.format("2")
BRANCHED = f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (float[1,2,3] x, bool c) => (float[1,2,3] y) <{STATISTICS}> {{
  y = If (c) <
    then_branch = t () => (float[1,2,3] a) {{
      w = Constant <value = float[2,2,1] {{1, 2, 3, 4}}> ()
      a = local.f (x, g, h, m, v, w)
    }},
    else_branch = e () => (float[1,2,3] b) {{
      w = Constant <value = float[2,2,1] {{1, 2, 3, 4}}> ()
      r = Relu (x)
      b = local.f (r, g, h, m, v, w)
    }}
  >
}}
<domain: "local", opset_import: ["" : 17]>
f (x, g, h, m, v, w) => (y) {{
  k = Identity (w)
  c = Conv (x, k)
  y = BatchNormalization (c, g, h, m, v)
}}"""


@pytest.mark.parametrize("condition", [True, False])
def test_calls_in_two_branches_do_not_share_what_one_cannot_see(condition):
    """Both branches pass the same new weight, which each of them needs in its own scope."""
    proto = onnx.parser.parse_model(BRANCHED)
    result = bnfold.fold(proto, verify=False)
    assert len(result.folded) == 1
    onnx.checker.check_model(result.model)
    feeds = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 2, 3), "c": np.array(condition)}
    assert_same_outputs(proto, result.model, feeds=feeds)


def test_merging_branches_keeps_the_numbers_of_each_call():
    """Two Conv in a function are merged with the weights of each call, not with those of the first."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[1,2,5] x) => (float[1,2,5] y)
    <float[2,2,3] a = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[2,2,1] b = {1, 2, 3, 4},
     float[2,2,3] c = {1, 0, -1, 2, 0, -2, 3, 0, -3, 4, 0, -4}, float[2,2,1] d = {-1, -2, -3, -4}>
    { z = local.f (x, a, b)  y = local.f (z, c, d) }
    <domain: "local", opset_import: ["" : 17]>
    f (x, u, w) => (y) { p = Conv <pads = [1, 1]> (x, u)  q = Conv (x, w)  y = Add (p, q) }""")
    result = bnfold.fold(proto, verify=False, merge_branches=True)
    assert [site.kind for site in result.folded] == ["branch"]
    feeds = {"x": np.linspace(-1, 1, 10, dtype=np.float32).reshape(1, 2, 5)}
    assert_same_outputs(proto, result.model, feeds=feeds)


def test_matmul_outside_with_the_shift_left_inside():
    """A MatMul without bias outside takes the scale; the site inside becomes the Add, of the value's new name."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[2,3,2] x, bool c) => (float[2,3,2] y)
    <float[2,2] w = {1, 2, 3, 4}, float[3] g = {1, 2, 3}, float[3] h = {1, -1, 0}, float[3] z = {0, 0, 0},
     float[3] o = {1, 1, 1}> {
      n = Transpose <perm = [0, 1, 2]> (x)
      k = MatMul (n, w)
      y = If (c) <then_branch = t () => (float[2,3,2] a) { s = BatchNormalization (k, g, h, z, o)  a = Relu (s) },
                  else_branch = e () => (float[2,3,2] b) { b = Identity (x) }>
    }""")
    result = bnfold.fold(proto, verify=False)
    feeds = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 3, 2), "c": np.array(True)}  # noqa: FBT003
    assert_same_outputs(proto, result.model, feeds=feeds)


@pytest.mark.parametrize(("readers", "folds"), [(40, True), (80, False)])
def test_one_weight_of_hundreds_of_folds_is_not_copied_hundreds_of_times(readers, folds):
    """80 copies of a megabyte are no fold but growth: all of them stay, in a second run too; 40 are copied."""
    nodes, value = [], "x"
    for i in range(readers):
        nodes.append(helper.make_node("Conv", [value, "w"], [f"c{i}"]))
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", "g", "h", "m", "v"], [f"n{i}"]))
        nodes.append(helper.make_node("Relu", [f"n{i}"], [f"r{i}"]))
        value = f"r{i}"
    held = [numpy_helper.from_array(np.ones((512, 512, 1, 1), np.float32), "w")]
    held += [numpy_helper.from_array(np.full(512, 1.5, np.float32), name) for name in "ghmv"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 512, 2, 2]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = bnfold.inspect(proto)
    assert [site.code for site in result.sites] == [None if folds else "would-grow"] * readers


def test_a_weight_that_calls_and_body_both_change():
    """Two Conv of one weight of a branch: the calls' new weight is not computed from what the body makes of it."""
    text = STATISTICS_OF_TWO_CALLS + (
        "z = local.f(x, p, g, h, m, v) y = local.f(z, p, g2, h2, m2, v2) fn f (x, p, g, h, m, v) => (y) { "
        "y = If(p) <then_branch = t () => (T a) { w = K() c = Conv(x, w) d = BatchNormalization(c, g, h, m, v) "
        "e = Conv(d, w) a = BN(e) }, else_branch = e () => (T q) { q = Relu(x) }> }"
    )
    proto = parse(text)
    result = bnfold.fold(proto, verify=False)
    assert len(result.folded) == 2
    for condition in (True, False):
        assert_same_outputs(proto, result.model, feeds=random_feeds(proto) | {"p": np.array(condition)})


def test_half_precision_is_seen_inside_a_function():
    """A sum in float16 that a fold would let overflow stays, in a function as in the main graph."""
    half = {"w": (1, (4, 4, 1, 1)), "v": (-1, (4, 4, 1, 1)), "g": (300, 4), "h": (0, 4), "m": (0, 4), "r": (1, 4)}
    held = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.full(shape, number, np.float16)))
        for name, (number, shape) in half.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("BatchNormalization", ["s", "g", "h", "m", "r"], ["y"]),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "f", ["x"], ["y"], [*held, *nodes], imports[:1])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 4, 2, 2]) for name in ("x", "y")]
    call = helper.make_node("f", ["x"], ["y"], domain="local")
    graph = helper.make_graph([call], "g", ends[:1], ends[1:])
    proto = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=8)
    assert [site.code for site in bnfold.inspect(proto).sites] == ["range-risk"]
    assert bnfold.inspect(proto, assume_range=True).sites[0].outcome == "folded"


def test_branches_that_the_calls_pad_differently_are_not_merged():
    """An attribute by reference stops that pair and nothing else."""
    proto = parse(
        "wz = K() c2 = Conv(x, wz) z = BN(c2) y1 = local.f <p = [1,1,1,1]> (z) y = local.f <p = [0,0,2,2]> (y1) "
        "fn f <p> (x) => (y) { w = K(4,4,3,3) v = K() x2 = Relu(x) a = Conv (x2, v) "
        "b = Conv <pads: ints = @p> (x2, w) y = Add(a, b) }"
    )
    assert len(bnfold.fold(proto, verify=False, merge_branches=True).folded) == 1


def test_the_shape_of_an_overridable_initializer_is_not_its_stored_one():
    """A caller may pass a longer target to Expand, which would raise the rank of what the map is of."""
    proto = parse("w = K() c = Conv(x, w) s = Expand(c, target) y = BN(s)")
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 4, 6, 6]), "target"))
    proto.graph.input.append(helper.make_tensor_value_info("target", TensorProto.INT64, ["rank"]))
    assert bnfold.inspect(proto).sites[0].code == "unknown-shape"


def test_a_function_with_one_input_twice_ends_well():
    """The checker refuses it; here it is folded or left, without a crash."""
    proto = parse("w = K() y = local.f(x, w) fn f (x, w) => (y) { c = Conv(x, w) y = BN(c) }")
    proto.functions[0].input.append("w")
    assert bnfold.inspect(proto).sites
