"""Sites inside If, Loop, Scan and SequenceMap bodies: found, folded, or left with a reason; nothing else changes."""

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

import bnfold
from bnfold.errors import BnfoldError
from tests.conftest import tensor
from tests.scopes import fork, loop, parse, scan
from tests.scopes_check import check

PAIR = "w = K() c = Conv(x, w) a = BN(c)"
OTHER = "w2 = K() c2 = Conv(x, w2) b = BN(c2)"
RELU = "b = Relu(x)"


def graph_of(proto: ModelProto, attribute: str = "then_branch") -> GraphProto:
    """The graph inside the last node of the main graph."""
    return next(a.g for a in proto.graph.node[-1].attribute if a.name == attribute)


# Found at any depth -------------------------------------------------------------------------------------------------


def test_one_branch():
    """A pair in one branch folds; the other branch stays."""
    check(fork(PAIR, RELU), "If[Conv | Relu]")


def test_both_branches():
    """A pair in each branch folds, each with its own weights."""
    check(fork(PAIR, OTHER), "If[Conv | Conv]", folded=2)


def test_sibling_branches_may_use_the_same_names():
    """Where both branches call their values alike, each name is taken for its own scope's value."""
    check(fork(PAIR, PAIR, ends="aa"), "If[Conv | Conv]", folded=2)


def test_same_name_is_another_kind_of_value_in_the_other_branch():
    """`c` is a Conv's output in one branch and a model-wide Relu's in the other: it has one reader in each."""
    text = fork(PAIR, "c = Relu(x) d = Tanh(c) b = Add(c, d)")
    check(text, "If[Conv | Relu Tanh Add]")


def test_sibling_weight_of_the_same_name_is_computed():
    """`w` is a constant in one branch and computed in the other."""
    text = fork(PAIR, "k = K() w = Softmax(k) z = ReduceMax(x) v = Mul(w, z) c = Conv(x, v) b = BN(c)")
    check(text, "If[Conv | Softmax ReduceMax Mul Conv BatchNormalization]", "weights-not-constant")


def test_loop_body():
    """A pair in a Loop folds; its result is the carried value, whose name stays."""
    result = check(loop("w = K() c = Conv(v, w) a = BN(c)"), "Loop[Identity Conv]")
    assert [v.name for v in graph_of(result.model, "body").output] == ["stay", "a"]


def test_loop_that_runs_no_round():
    """With a trip count of 0 the Loop's input passes through, folded or not."""
    text = loop("w = K() c = Conv(v, w) a = BN(c)").replace("int64 {3}", "int64 {0}")
    check(text, "Loop[Identity Conv]")


def test_loop_with_scan_output():
    """The BatchNormalization's output is stacked by the Loop: it keeps its name."""
    text = """n = Constant <value = int64 {2}> () go = Constant <value = bool {1}> ()
        y = Loop (n, go) <body = body (int64 i, bool on) => (bool stay, T a)
            { stay = Identity (on) w = K() c = Conv(x, w) a = BN(c) }>"""
    check(f"main (T x) => (float[2,2,4,6,6] y) {{ {text} }}", "Loop[Identity Conv]")


def test_scan_body():
    """A pair in a Scan folds, of rank 3 there."""
    check(scan("w = K(6,6,1) c = Conv(v, w) a = BN <maps = 6> (c)"), "Scan[Conv]")


def test_sequence_map_body():
    """A pair in the body of a SequenceMap folds."""
    text = """s = SequenceConstruct (x, x) k = Constant <value = int64 {1}> ()
        t = SequenceMap (s) <body = body (T v) => (T a) { w = K() c = Conv(v, w) a = BN(c) }>
        y = SequenceAt (t, k)"""
    check(text, "SequenceConstruct SequenceMap[Conv] SequenceAt")


def test_three_kinds_inside_one_another():
    """A pair in an If in a Loop in an If folds."""
    inner = fork("w = K() c = Conv(v, w) d = BN(c)", "e = Relu(v)", out="a", ends="de")
    text = fork(loop(inner, out="f"), "b = Tanh(x)", ends="fb")
    check(text, "If[Loop[Identity If[Conv | Relu]] | Tanh]")


def test_pairs_at_every_depth():
    """One pair in each of four scopes inside one another."""
    text = PAIR.replace("a =", "v0 =")
    inner = "w3 = K() c3 = Conv(v2, w3) v3 = BN(c3)"
    inner = "w2 = K() c2 = Conv(v1, w2) v2 = BN(c2) " + fork(inner, "u3 = Tanh(v2)", out="t2", ends=("v3", "u3"))
    inner = "w1 = K() c1 = Conv(v0, w1) v1 = BN(c1) " + fork(inner, "u2 = Tanh(v1)", out="t1", ends=("t2", "u2"))
    text += fork(inner, "u1 = Tanh(v0)", ends=("t1", "u1"))
    check(text, "Conv If[Conv If[Conv If[Conv | Tanh] | Tanh] | Tanh]", folded=4)


def test_ten_deep():
    """The depth has no limit that a model meets (for older onnxruntime each level doubles the time to load)."""
    text = "w = K() c = Conv(x, w) d10 = BN(c)"
    for depth in reversed(range(10)):
        text = fork(text, f"e{depth} = Relu(x)", out=f"d{depth}", ends=(f"d{depth + 1}", f"e{depth}"))
    check(text + " y = Tanh(d0)", "If[" * 10 + "Conv" + " | Relu]" * 10 + " Tanh")


def test_chain():
    """Mul and Add with constants in a branch fold like a BatchNormalization."""
    text = "w = K() c = Conv(x, w) s = K(1,4,1,1) t = K(4,1,1) d = Mul(c, s) a = Add(d, t)"
    check(fork(text, RELU), "If[Conv | Relu]")


def test_gemm_and_matmul():
    """Gemm and MatMul in a branch take in a BatchNormalization behind them, MatMul by way of its Add."""
    text = """z = Flatten(x) w = K(144,4) g = Gemm(z, w) h = BN(g) v = K(4,4) m = MatMul(h, v) d = K(4) e = Add(m, d)
        f = BN(e) o = Constant <value = int64[4] {2,4,1,1}> () q = Reshape(f, o) a = Mul(q, x)"""
    check(fork(text, RELU), "If[Flatten Gemm MatMul Add Reshape Mul | Relu]", folded=2)


def test_push_in_a_branch():
    """A BatchNormalization before a Conv in a branch goes into it."""
    check(fork("c = BN(x) w = K() a = Conv(c, w)", RELU), "If[Conv | Relu]")


def test_sibling_in_a_branch():
    """RepVGG inside a branch: the identity branch becomes a tap of the Conv beside it."""
    text = "w = K(4,4,3,3) c = Conv <pads = [1,1,1,1]> (x, w) d = BN(x) a = Add(c, d)"
    check(fork(text, RELU), "If[Conv | Relu]")


def test_concat_in_a_branch():
    """A BatchNormalization behind a Concat of an outer and an inner Conv goes into both."""
    text = "w0 = K(2,4,1,1) c0 = Conv(x, w0)"
    text += fork("w = K(2,4,1,1) c = Conv(x, w) d = Concat <axis = 1> (c0, c) e = BN(d) a = Tanh(e)", RELU)
    check(text, "Conv If[Conv Concat Tanh | Relu]")


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (9, 4), (13, 7), (14, 8), (15, 8), (21, 10)])
def test_opsets(opset, ir):
    """Every version of BatchNormalization is known inside a branch as outside."""
    check(fork(PAIR, RELU), "If[Conv | Relu]", opset=opset, ir=ir)


def test_absent_bias_in_both_spellings():
    """An empty third input of the Conv is an absent bias, in a branch as elsewhere."""
    check(fork('w = K() c = Conv(x, w, "") a = BN(c)', RELU), "If[Conv | Relu]")


def test_only_and_exclude_match_inside():
    """Patterns of names choose among sites in branches too."""
    text = fork(PAIR, OTHER)
    check(text, "If[Conv | Conv BatchNormalization]", only="a")
    check(text, "If[Conv BatchNormalization | Conv]", exclude="a")


def test_verification_runs_both_branches():
    """`verify` passes a fold inside a branch, and a wrong one is caught by it."""
    result = bnfold.fold(parse(fork(PAIR, OTHER)), trials=4)
    assert len(result.folded) == 2
    assert result.verification is not None


# Who reads a value --------------------------------------------------------------------------------------------------


def test_nested_reader_of_the_result():
    """What a branch reads of the BatchNormalization's output it reads still: the Conv's output has that name now."""
    check("w = K() c = Conv(x, w) d = BN(c)" + fork("a = Tanh(d)", "b = Relu(d)"), "Conv If[Tanh | Relu]")


def test_nested_reader_of_the_producer():
    """A branch that reads the Conv's output itself keeps the BatchNormalization beside it."""
    text = "w = K() c = Conv(x, w) d = BN(c)" + fork("a = Tanh(c)", "b = Relu(d)")
    assert "'c'" in check(text, None, "captured-by-subgraph").refused[0].message


def test_nested_reader_two_levels_down():
    """So does one that lies deeper."""
    deep = fork("e = Tanh(c)", "f = Relu(x)", out="a", ends="ef")
    check("w = K() c = Conv(x, w) d = BN(c)" + fork(deep, "b = Relu(d)"), None, "captured-by-subgraph")


def test_reader_of_a_namesake_is_no_reader():
    """A Loop body whose input has the name of nothing outside, and whose branch makes a `c` of its own."""
    text = "w = K() c = Conv(x, w) d = BN(c)" + loop("e = Tanh(v) a = Abs(e)", start="d")
    check(text, "Conv Loop[Identity Tanh Abs]")


def test_reader_inside_a_custom_operator():
    """An operator of an unknown domain reads the Conv's output in a graph inside: it counts all the same."""
    proto = parse("w = K() c = Conv(x, w) d = BN(c) y = Tanh(d)")
    graph = helper.make_graph([helper.make_node("Tanh", ["c"], ["e"])], "g", [],
                              [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)])  # fmt: skip
    proto.graph.node.insert(2, helper.make_node("Strange", ["x"], ["z"], domain="com.example", inner=graph))
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    check(proto, None, "captured-by-subgraph")


def test_branch_output_that_is_an_outer_value():
    """A branch that hands out the Conv's output itself reads it (onnxruntime refuses such a file, others do not)."""
    text = "w = K() c = Conv(x, w) d = BN(c)" + fork("e = Tanh(d)", "b = Relu(d)", ends=("c", "b"))
    check(text.replace("e = Tanh(d)", ""), None, "captured-by-subgraph|producer-is-output", runs=False)


def test_branch_output_that_is_the_outer_result():
    """A branch that hands out the outer BatchNormalization's output itself does so still."""
    text = "w = K() c = Conv(x, w) d = BN(c)" + fork("", "b = Relu(d)", ends=("d", "b"))
    check(text, "Conv If[ | Relu]", runs=False)


# Across scopes ------------------------------------------------------------------------------------------------------

OUTER = "w0 = K() c0 = Conv(x, w0) "


def test_conv_outside_and_batchnorm_is_the_branch_output():
    """It goes into the outer Conv; an Identity hands out the value, as onnxruntime wants it."""
    check(OUTER + fork("a = BN(c0)", RELU), "Conv If[Identity | Relu]")


def test_conv_outside_and_batchnorm_read_inside():
    """It goes into the outer Conv, and its reader in the branch has its value from there."""
    check(OUTER + fork("d = BN(c0) a = Tanh(d)", RELU), "Conv If[Tanh | Relu]")


def test_conv_two_scopes_outside():
    """The same across two levels."""
    deep = fork("d = BN(c0) e = Tanh(d)", "f = Abs(x)", out="a", ends="ef")
    check(OUTER + fork(deep, RELU), "Conv If[If[Tanh | Abs] | Relu]")


def test_conv_outside_and_batchnorm_in_a_loop():
    """Each round has mapped the same value: it folds."""
    check(OUTER + loop("d = BN(c0) a = Add(d, v)"), "Conv Loop[Identity Add]")


def test_name_of_the_result_is_taken_in_the_other_branch():
    """The site's output has the name of a value in the sibling branch; both must stay what they are."""
    check(OUTER + fork("d = BN(c0) a = Tanh(d)", "d = Abs(x) b = Relu(d)"),
          ("Conv If[Tanh | Abs Relu]", "Conv If[Identity Tanh | Abs Relu]"))  # fmt: skip


def test_name_of_the_result_is_the_other_branch_output():
    """The same where that value is the sibling's output."""
    check(OUTER + fork("d = BN(c0) a = Tanh(d)", "d = Abs(x)", ends="ad"),
          ("Conv If[Tanh | Abs]", "Conv If[Identity Tanh | Abs]"))  # fmt: skip


def test_conv_outside_read_by_two_branches():
    """Two BatchNormalizations in two branches read the Conv's output: both stay."""
    codes = ["producer-shared"] * 2
    result = bnfold.fold(parse(OUTER + fork("a = BN(c0)", "b = BN(c0)")), verify=False)
    assert [site.code for site in result.refused] in (codes, ["captured-by-subgraph"] * 2)
    assert not result.folded


def test_conv_outside_read_outside_too():
    """The Conv's output has a reader in its own scope: the BatchNormalization in the branch stays."""
    text = OUTER + fork("a = BN(c0)", RELU, out="z") + " y = Add(c0, z)"
    check(text, None, "producer-shared")


def test_conv_outside_is_an_output():
    """The Conv's output is the model's: the BatchNormalization in the branch stays."""
    text = OUTER + fork("a = BN(c0)", RELU)
    check(f"main (T x, bool p) => (T y, T c0) {{ {text} }}", None, "producer-is-output")


def test_batchnorm_outside_and_convs_in_both_branches():
    """All that read it are Convs in branches, which take it in."""
    text = "d = BN(x)" + fork("w = K() a = Conv(d, w)", "w2 = K(4,4,1,1) b = Conv(d, w2)")
    check(text, "If[Conv | Conv]")


def test_batchnorm_outside_and_conv_in_a_loop():
    """The Conv in the body reads the same value in each round, and takes the map in."""
    check("d = BN(x)" + loop("w = K() c = Conv(d, w) a = Add(c, v)"), "Loop[Identity Conv Add]")


def test_batchnorm_outside_and_one_branch_cannot():
    """One branch reads it with an operator that has no weights: it stays."""
    text = "d = BN(x)" + fork("w = K() a = Conv(d, w)", "b = Sigmoid(d)")
    result = bnfold.fold(parse(text), verify=False)
    assert not result.folded
    assert result.refused[0].code in {"activation-between", "consumer-cannot-absorb", "captured-by-subgraph",
                                      "no-producer"}  # fmt: skip


def test_batchnorm_outside_is_handed_out_by_a_branch():
    """One branch hands its output out: it stays, or keeps that value."""
    text = "d = BN(x)" + fork("w = K() a = Conv(d, w)", "b = Identity(d)")
    assert not bnfold.fold(parse(text), verify=False).folded


def test_batchnorms_in_a_row_across_scopes():
    """One behind the Conv outside, one in the branch: both go into the Conv."""
    check("w = K() c = Conv(x, w) d = BN(c)" + fork("e = BN(d) a = Tanh(e)", RELU), "Conv If[Tanh | Relu]", folded=2)


def test_result_read_deeper():
    """Outer Conv, BatchNormalization in a branch, reader in a branch of that branch."""
    deep = fork("e = Tanh(d)", "f = Abs(d)", out="a", ends="ef")
    check(OUTER + fork("d = BN(c0) " + deep, RELU), "Conv If[If[Tanh | Abs] | Relu]")


# Inputs and outputs of nested graphs --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [loop, scan], ids=["loop", "scan"])
def test_batchnorm_on_a_body_input(make):
    """Nothing lies upstream of a carried value or a slice: the same outcome as on an input of the model."""
    result = check(make("a = BN(v)" if make is loop else "a = BN <maps = 6> (v)"), None, "no-producer")
    assert "'v'" in result.refused[0].message


def test_batchnorm_on_a_captured_model_input():
    """An input of the model read in a branch has nothing upstream either."""
    check(fork("a = BN(x)", RELU), None, "no-producer")


def test_conv_output_is_carried():
    """The Conv's output leaves the body as well: the BatchNormalization stays."""
    text = """n = Constant <value = int64 {2}> () go = Constant <value = bool {1}> ()
        y, z = Loop (n, go, x) <body = body (int64 i, bool on, T v) => (bool stay, T c, T a)
            { stay = Identity (on) w = K() c = Conv(v, w) a = BN(c) }>"""
    check(f"main (T x) => (T y, float[2,2,4,6,6] z) {{ {text} }}", None, "producer-is-output")


def test_conv_output_is_a_branch_output():
    """The same for a branch with two outputs."""
    text = """y, z = If (p) <then_branch = yes () => (T a, T c) { w = K() c = Conv(x, w) a = BN(c) },
        else_branch = no () => (T b, T d) { b = Relu(x) d = Abs(x) }>"""
    check(f"main (T x, bool p) => (T y, T z) {{ {text} }}", None, "producer-is-output")


def test_batchnorm_output_twice_a_branch_output():
    """A value that is two outputs of its branch keeps its name in both places."""
    text = """y, z = If (p) <then_branch = yes () => (T a, T a) { w = K() c = Conv(x, w) a = BN(c) },
        else_branch = no () => (T b, T d) { b = Relu(x) d = Abs(x) }>"""
    check(f"main (T x, bool p) => (T y, T z) {{ {text} }}", "If[Conv | Relu Abs]", runs=False)


# What stays ---------------------------------------------------------------------------------------------------------


def test_training_mode_inside():
    """A BatchNormalization in training form stays, in a branch as elsewhere."""
    check(fork("w = K() c = Conv(x, w) a, e, f = BN <training_mode = 1> (c)", RELU), None, "training-mode")


def test_parameters_that_change_with_the_round():
    """A gamma that the Loop computes is not constant."""
    text = """w = K() c = Conv(v, w) f = Cast <to = 1> (i) k = K(4) g = Mul(k, f) z = N(4) one = Exp(z)
        a = BatchNormalization(c, g, k, k, one)"""
    check(loop(text), None, "params-not-constant")


def test_weight_that_is_a_scan_slice():
    """A weight that is an input of the body is not constant."""
    text = """k = K(3,4,4,1,1) s, y = Scan <num_scan_inputs = 1, body = body (T u, float[4,4,1,1] w) => (T a, T e)
        { c = Conv(u, w) a = BN(c) e = Identity(a) }> (x, k)"""
    check(f"main (T x) => (float[3,2,4,6,6] y, T s) {{ {text} }}", None, "weights-not-constant")


def test_nothing_to_fold_is_the_same_file():
    """Branches without sites come out byte for byte."""
    check(fork("w = K() a = Conv(x, w)", RELU), None)


# Fields -------------------------------------------------------------------------------------------------------------


def test_value_info_of_nested_graphs_stays_true():
    """Entries of values that are gone go, others stay."""
    proto = parse(fork("w = K() c = Conv(x, w) d = BN(c) a = Tanh(d)", RELU))
    inner = graph_of(proto)
    inner.value_info.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4, 6, 6]) for n in "cd")
    found = check(proto, "If[Conv Tanh | Relu]").model
    assert [value.name for value in graph_of(found).value_info] == ["d"]


def test_names_documents_and_metadata_of_a_nested_graph():
    """Name, doc_string and metadata of graph and nodes stay."""
    proto = parse(fork(PAIR, RELU), ir=10)
    inner = graph_of(proto)
    inner.doc_string = "a branch"
    inner.metadata_props.add(key="from", value="test")
    inner.node[0].name, inner.node[0].doc_string = "conv", "a Conv"
    inner.node[0].metadata_props.add(key="scope", value="block.0")
    found = graph_of(check(proto, "If[Conv | Relu]").model)
    assert (found.name, found.doc_string, list(found.metadata_props)) == (
        "yes",
        "a branch",
        list(inner.metadata_props),
    )
    assert (found.node[0].name, found.node[0].doc_string) == ("conv", "a Conv")
    assert inner.node[0].metadata_props[0] in found.node[0].metadata_props


def test_order_of_the_nodes_inside_stays():
    """What lies between the two in the file stays where it is."""
    text = "d = Tanh(x) w = K() c = Conv(x, w) e = Abs(d) f = BN(c) g = Add(f, e) a = Relu(g)"
    check(fork(text, RELU), "If[Tanh Conv Abs Add Relu | Relu]")


def test_same_graph_object_twice_in_a_row():
    """Two If nodes with equal branches are two places; each folds by itself."""
    text = fork(PAIR, RELU, out="z") + fork(PAIR.replace("x,", "z,"), "b = Relu(z)")
    check(text, "If[Conv | Relu] If[Conv | Relu]", folded=2)


def test_constant_condition():
    """A branch that never runs folds all the same."""
    check("p = Constant <value = bool {0}> ()" + fork(PAIR, OTHER), "If[Conv | Conv]", folded=2, x="T x")


# Overridable, hostile -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w", "a_g"])
def test_nested_initializer_that_is_a_body_input(name):
    """An initializer of a Loop body that is an input of it too has the carried value, not its own."""
    proto = parse(loop("w = K() c = Conv(v, w) a = BN(c)"))
    body = graph_of(proto, "body")
    held = next(t for t in body.initializer if t.name == name)
    body.input.append(helper.make_tensor_value_info(name, held.data_type, held.dims))
    body.output.append(helper.make_tensor_value_info("next", held.data_type, held.dims))
    body.node.append(helper.make_node("Identity", [name], ["next"]))
    proto.graph.node[-1].input.append("start")
    proto.graph.node[-1].output.append("last")
    proto.graph.initializer.append(tensor("start", np.ones(list(held.dims))))
    code = "params-not-constant" if name == "a_g" else "weights-not-constant"
    check(proto, None, f"overridable-initializer|{code}", runs=False)


def test_overridable_weight_of_the_main_graph():
    """A weight that callers may replace is no constant in a branch either; `freeze_inputs` makes it one."""
    proto = parse("w = K()" + fork("c = Conv(x, w) a = BN(c)", RELU))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 1, 1]))
    check(proto, None, "overridable-initializer")
    result = bnfold.fold(proto, verify=False, freeze_inputs=True)
    assert (len(result.folded), result.frozen) == (1, ("w",))
    assert [value.name for value in result.model.graph.input] == ["x", "p"]


@pytest.mark.parametrize("damage", ["twice", "nowhere", "type"])
def test_broken_branches(damage):
    """A value made twice in a branch, one that nothing makes, a branch that is no graph: an error or a reason."""
    proto = parse(fork(PAIR, RELU))
    inner = graph_of(proto)
    if damage == "twice":
        inner.node.append(helper.make_node("Tanh", ["x"], ["c"]))
    elif damage == "nowhere":
        inner.node[0].input[0] = "missing"
    else:
        proto.graph.node[-1].attribute[0].type = AttributeProto.INT
    try:
        result = bnfold.fold(proto, verify=False)
    except BnfoldError as error:
        assert error.exit_code == 2  # noqa: PT017 - an error is one of two ways out
    else:
        assert not result.folded
        assert result.model == proto


def test_checker_accepts_what_it_accepted():
    """Inference over the folded model finds the same shapes in the branch as before."""
    proto = parse(fork("w = K(8,4,1,1) c = Conv(x, w) d = BN <maps = 8> (c) v = K(4,8,1,1) a = Conv(d, v)", RELU))
    found = onnx.shape_inference.infer_shapes(check(proto, "If[Conv Conv | Relu]").model, strict_mode=True)
    assert [d.dim_value for d in found.graph.output[0].type.tensor_type.shape.dim] == [2, 4, 6, 6]
