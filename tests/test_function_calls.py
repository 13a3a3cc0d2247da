"""Sites inside local functions whose constants are arguments of the calls: folded where every call allows it."""

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import bnfold
from bnfold.api import FoldResult
from tests.conftest import tensor
from tests.scopes import fork, loop, parse, scopes
from tests.scopes_check import check, folds_or_stays

BODY = "c = Conv(x, w) y = BatchNormalization(c, g, h, m, v)"
F = f"fn f (x, w, g, h, m, v) => (y) {{ {BODY} }}"
STATISTICS = "g{0} = K(4) h{0} = K(4) m{0} = K(4) v{0} = P(4)"


def weights(number: str = "") -> str:
    """Constants w, g, h, m, v of that number."""
    return f"w{number} = K() {STATISTICS.format(number)} "


def call(result: str, value: str, number: str = "", function: str = "f") -> str:
    """A call with these constants."""
    names = ", ".join(f"{name}{number}" for name in "wghmv")
    return f"{result} = local.{function}({value}, {names}) "


def formals(proto: ModelProto, place: int = 0) -> list[str]:
    """The inputs of a function."""
    return list(proto.functions[place].input)


def calls(proto: ModelProto, name: str = "f") -> list[list[str]]:
    """The arguments of every call of a function, in any scope."""
    return [
        list(node.input) for s in scopes(proto) for node in s.nodes if (node.domain, node.op_type) == ("local", name)
    ]


def names_second(result: FoldResult) -> bool:
    """Whether the reason says that it is the second call."""
    message = result.refused[0].message
    return "'second'" in message or "call 2 of 2" in message


# Every call gets its own --------------------------------------------------------------------------------------------


def test_one_call():
    """The call passes the folded weight; what nobody reads any more is neither an input nor an argument."""
    found = check(weights() + call("y", "x") + F, "f; f: Conv").model
    conv = next(node for node in found.functions[0].node if node.op_type == "Conv")
    assert formals(found) == [name for name in conv.input if name in formals(found)]
    (arguments,) = calls(found)
    assert arguments[1:] == [t.name for t in found.graph.initializer]


def test_two_calls_with_other_weights():
    """Each call passes its own folded weight."""
    found = check(weights() + weights("2") + call("z", "x") + call("y", "z", "2") + F, "f f; f: Conv").model
    first, second = calls(found)
    assert not set(first[1:]) & set(second[1:])
    assert len(found.graph.initializer) == 4


def test_two_calls_with_the_same_weights():
    """Two calls with the same constants pass the same folded ones, or equal copies; the old ones are gone."""
    found = check(weights() + call("z", "x") + call("y", "z") + F, "f f; f: Conv").model
    assert not {t.name for t in found.graph.initializer} & {"w", "g", "h", "m"}
    assert all(arguments[0] in {"x", "z"} for arguments in calls(found))


def test_two_calls_that_share_one_weight():
    """The same weight with two sets of statistics becomes two weights."""
    text = weights() + STATISTICS.format("2") + call("z", "x") + "y = local.f(z, w, g2, h2, m2, v2) " + F
    found = check(text, "f f; f: Conv").model
    first, second = calls(found)
    assert first[1] != second[1]


def test_bias_that_is_there():
    """A bias among the arguments is replaced in its place: the inputs stand as they stood, none is new."""
    body = "c = Conv(x, w, k) y = BatchNormalization(c, g, h, m, v)"
    text = (
        weights() + "k = K(4) y = local.f(x, w, k, g, h, m, v) " + f"fn f (x, w, k, g, h, m, v) => (y) {{ {body} }}"
    )
    assert len(formals(check(text, "f; f: Conv").model)) == 3


def test_constants_inside_and_outside():
    """The weight is an argument, the statistics lie inside."""
    text = "w = K() y = local.f(x, w) fn f (x, w) => (y) { c = Conv(x, w) y = BN(c) }"
    found = check(text, "f; f: Conv").model
    assert len(found.graph.initializer) in {1, 2}


def test_weight_inside_and_statistics_outside():
    """The weight lies inside, and must become an argument, as each call needs its own; or the site stays."""
    body = "w = K() c = Conv(x, w) y = BatchNormalization(c, g, h, m, v)"
    text = STATISTICS.format("") + STATISTICS.format("2") + " z = local.f(x, g, h, m, v) "
    folds_or_stays(text + f"y = local.f(z, g2, h2, m2, v2) fn f (x, g, h, m, v) => (y) {{ {body} }}", "f f; f: Conv")


def test_two_pairs_in_one_function():
    """Both fold, one after the other."""
    body = "c = Conv(x, w) d = BatchNormalization(c, g, h, m, v) "
    body += "e = Conv(d, w2) y = BatchNormalization(e, g2, h2, m2, v2)"
    names = "w, g, h, m, v, w2, g2, h2, m2, v2"
    text = weights() + weights("2") + f"y = local.f(x, {names}) fn f (x, {names}) => (y) {{ {body} }}"
    found = check(text, "f; f: Conv Conv", folded=2).model
    assert len(formals(found)) in {3, 5}


def test_formal_read_by_two_pairs():
    """One weight, read by two Convs of the body with two BatchNormalizations, becomes two."""
    body = """c = Conv(x, w) d = BatchNormalization(c, g, h, m, v) e = Conv(d, w)
        y = BatchNormalization(e, g, m, h, v)"""
    text = weights() + call("y", "x") + f"fn f (x, w, g, h, m, v) => (y) {{ {body} }}"
    check(text, "f; f: Conv Conv", folded=2)


def test_formal_read_by_another_conv():
    """A Conv of the body without a BatchNormalization keeps the old weight."""
    body = "z = Conv(x, w) c = Conv(z, w) y = BatchNormalization(c, g, h, m, v)"
    found = check(
        weights() + call("y", "x") + f"fn f (x, w, g, h, m, v) => (y) {{ {body} }}", "f; f: Conv Conv"
    ).model
    assert "w" in {t.name for t in found.graph.initializer}
    assert formals(found)[:2] == ["x", "w"]


def test_statistics_read_elsewhere_in_the_body():
    """gamma is read by another node of the body: it stays an input."""
    body = "c = Conv(x, w) d = BatchNormalization(c, g, h, m, v) q = ReduceSum(g) y = Mul(d, q)"
    found = check(weights() + call("y", "x") + f"fn f (x, w, g, h, m, v) => (y) {{ {body} }}",
                  "f; f: Conv ReduceSum Mul").model  # fmt: skip
    assert "g" in formals(found)


def test_formal_that_nobody_ever_read():
    """An input of the function that was not read before stays: it is not the fold's."""
    body = f"fn f (x, w, idle, g, h, m, v) => (y) {{ {BODY} }}"
    found = check(weights() + "y = local.f(x, w, x, g, h, m, v) " + body, "f; f: Conv").model
    assert "idle" in formals(found)


def test_fold_behind_one_that_differs_by_call():
    """Into one Conv go first the calls' own statistics, then the function's: every call keeps its own numbers."""
    body = "w = K() r = Tanh(x) d = BatchNormalization(r, g, h, m, v) e = Conv(d, w) y = BN(e)"
    text = STATISTICS.format("") + STATISTICS.format("2") + " z = local.f(x, g, h, m, v) "
    text += f"y = local.f(z, g2, h2, m2, v2) fn f (x, g, h, m, v) => (y) {{ {body} }}"
    folds_or_stays(text, "f f; f: Tanh Conv")


def test_pushed_statistics_that_differ_by_call():
    """The weight lies inside, and the BatchNormalization before it has the calls' statistics: one weight each."""
    body = "w = K() r = Tanh(x) d = BatchNormalization(r, g, h, m, v) y = Conv(d, w)"
    text = STATISTICS.format("") + STATISTICS.format("2") + " z = local.f(x, g, h, m, v) "
    text += f"y = local.f(z, g2, h2, m2, v2) fn f (x, g, h, m, v) => (y) {{ {body} }}"
    folds_or_stays(text, "f f; f: Tanh Conv")


def test_aliased_arguments():
    """One tensor for beta and mean."""
    check(weights().replace("m = K(4) ", "") + "y = local.f(x, w, g, h, h, v) " + F, "f; f: Conv")


def test_formal_captured_by_a_branch():
    """The Conv lies in a branch in the function, its weight is an argument."""
    body = fork("c = Conv(x, w) a = BatchNormalization(c, g, h, m, v)", "b = Relu(x)")
    text = weights() + "y = local.f(x, p, w, g, h, m, v) " + f"fn f (x, p, w, g, h, m, v) => (y) {{ {body} }}"
    check(text, "f; f: If[Conv | Relu]")


def test_weight_read_by_both_branches_of_the_body():
    """One branch folds, the other keeps the old weight."""
    body = fork("c = Conv(x, w) a = BatchNormalization(c, g, h, m, v)", "b = Conv(x, w)")
    text = weights() + "y = local.f(x, p, w, g, h, m, v) " + f"fn f (x, p, w, g, h, m, v) => (y) {{ {body} }}"
    check(text, "f; f: If[Conv | Conv]")


# Where calls stand --------------------------------------------------------------------------------------------------


def test_arguments_read_elsewhere():
    """What the main graph reads besides stays bit for bit; the call gets a copy."""
    text = weights() + "z = Conv(x, w) q = Mul(g, h) o = ReduceSum(q) n = Mul(z, o) " + call("y", "n") + F
    found = check(text, "Conv Mul ReduceSum Mul f; f: Conv").model
    assert {"w", "g", "h"} <= {t.name for t in found.graph.initializer}


def test_argument_that_is_an_output():
    """So does an argument that is an output of the model."""
    proto = parse(weights() + call("y", "x") + F)
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 1, 1]))
    assert "w" in {t.name for t in check(proto, "f; f: Conv").model.graph.initializer}


def test_calls_in_both_branches():
    """Each branch calls with constants of its own."""
    then, other = weights() + call("a", "x"), weights() + call("b", "x")
    check(fork(then, other) + F, "If[f | f]; f: Conv")


def test_calls_in_the_main_graph_and_in_a_branch():
    """One call with constants of the main graph, one with a branch's own."""
    text = weights() + call("z", "x") + fork(weights("2") + call("a", "z", "2"), "b = Relu(z)") + F
    check(text, "f If[f | Relu]; f: Conv")


def test_call_in_a_branch_with_outer_constants():
    """The branch passes constants of the main graph."""
    check(weights() + fork(call("a", "x"), "b = Relu(x)") + F, "If[f | Relu]; f: Conv")


def test_call_in_a_loop():
    """The body of a Loop calls with outer constants."""
    check(weights("2") + loop(call("a", "v", "2")) + F, "Loop[Identity f]; f: Conv")


def test_call_with_constant_nodes():
    """Constant nodes as arguments."""
    text = "w = N() y = local.f(x, w) fn f (x, w) => (y) { c = Conv(x, w) y = BN(c) }"
    check(text, "f; f: Conv")


def test_call_from_another_function():
    """The caller is a function, with constants of its own."""
    text = "y = local.k(x) fn k (x) => (y) { w = K() y = local.f(x, w) } "
    check(text + "fn f (x, w) => (y) { c = Conv(x, w) y = BN(c) }", "k; k: f; f: Conv")


def test_arguments_through_two_functions():
    """The caller hands on what it was given: constants of the outermost calls, or the site stays."""
    text = weights() + call("y", "x", function="k") + F.replace(" f ", " k ").replace(BODY, call("y", "x")) + F
    folds_or_stays(text, "k; k: f; f: Conv")


def test_arguments_computed_from_constants():
    """A weight that nodes compute from constants before the call."""
    text = "k = K() w = Neg(k) y = local.f(x, w) fn f (x, w) => (y) { c = Conv(x, w) y = BN(c) }"
    check(text, "f; f: Conv")


def test_overloads_have_their_own_calls():
    """A call of another overload says nothing about this one."""
    plain = '<domain: "local", opset_import: ["" : 17]> f (x, w) => (y) { y = Conv(x, w) }'
    text = (
        "k = Relu(x) q = ReduceMax(k) o = K() u = Mul(o, q) z = local.f(x, u) w = K() y = local.f:bn(z, w) " + plain
    )
    text += '<domain: "local", opset_import: ["" : 17], overload: "bn"> f (x, w) => (y) { c = Conv(x, w) y = BN(c) }'
    knows = not onnxruntime.__version__.startswith("1.22.")  # that one calls the wrong overload
    check(text, "Relu ReduceMax Mul f f; f: Conv; f:bn: Conv", ir=10, runs=knows)


# Absent arguments ---------------------------------------------------------------------------------------------------

OPTIONAL = "fn f (x, w, k) => (y) { c = Conv(x, w, k) y = BN(c) }"


@pytest.mark.parametrize("arguments", ["x, w", 'x, w, ""'])
def test_absent_bias(arguments):
    """A trailing argument is missing or empty: the Conv has no bias, and gets one, or the site stays."""
    folds_or_stays(f"w = K() y = local.f({arguments}) {OPTIONAL}", "f; f: Conv")


@pytest.mark.parametrize("arguments", ["z, w2", 'z, w2, ""'])
def test_bias_in_one_call_only(arguments):
    """One call passes a bias, the other none: both do after the fold, each its own, or the site stays."""
    text = f"w = K() w2 = K() k = K(4) z = local.f(x, w, k) y = local.f({arguments}) {OPTIONAL}"
    folds_or_stays(text, "f f; f: Conv")


def test_absent_argument_in_the_middle():
    """An empty argument before others keeps its place, or goes with its formal; the others mean what they meant."""
    body = "c = Conv(x, w, k) d = BN(c) y = Add(d, r)"
    text = f'w = K() y = local.f(x, w, "", x) fn f (x, w, k, r) => (y) {{ {body} }}'
    folds_or_stays(text, "f; f: Conv Add")


def test_absent_argument_that_nobody_folds():
    """An absent argument that has nothing to do with the fold keeps its place."""
    body = "c = Conv(x, w) d = BN(c) e = Clip(d, low, high) y = Add(e, r)"
    text = 'w = K() o = Constant <value = float {1}> () y = local.f(x, w, "", o, x) '
    found = check(text + f"fn f (x, w, low, high, r) => (y) {{ {body} }}", "f; f: Conv Clip Add").model
    (arguments,) = calls(found)
    assert arguments[2:5] == ["", "o", "x"]


def test_new_argument_behind_absent_ones():
    """The new bias, where it is an argument, stands behind formals that the call leaves out: those stay empty."""
    body = "c = Conv(x, w) d = BN(c) e = Clip(d, low, high) y = Tanh(e)"
    text = f"w = K() y = local.f(x, w) fn f (x, w, low, high) => (y) {{ {body} }}"
    found = check(text, "f; f: Conv Clip Tanh").model
    (arguments,) = calls(found)
    assert formals(found)[2:4] == ["low", "high"]
    assert not any(arguments[2:4])


def test_formal_of_the_name_that_the_bias_would_have():
    """`w_bias` is an input of the function, and read."""
    text = "w = K() y = local.f(x, w, x) "
    text += "fn f (x, w, w_bias) => (y) { c = Conv(x, w) d = BN(c) y = Add(d, w_bias) }"
    check(text, "f; f: Conv Add")


# What stays ---------------------------------------------------------------------------------------------------------


def test_weight_of_one_call_is_computed():
    """One of two calls passes a weight that is computed at run time: all stays, and the reason says which."""
    text = weights() + call("z", "x") + "q = ReduceMax(x) u = Mul(w, q) [second] y = local.f(z, u, g, h, m, v) " + F
    result = check(text, None, "weights-not-constant")
    assert names_second(result)


def test_statistics_of_one_call_are_computed():
    """The same for gamma."""
    text = weights() + call("z", "x") + "q = ReduceMax(x) "
    text += "d = Squeeze(q) u = Mul(g, d) "
    text += "[second] y = local.f(z, w, u, h, m, v) " + F
    result = check(text, None, "params-not-constant")
    assert names_second(result)


def test_weight_of_one_call_is_a_model_input():
    """A call passes an input of the model."""
    text = f"{weights()} {call('z', 'x')} [second] y = local.f(z, u, g, h, m, v)"
    result = check(f"main (T x, float[4,4,1,1] u) => (T y) {{ {text} }} {F}", None, "weights-not-constant")
    assert names_second(result)


def test_weight_of_one_call_is_overridable():
    """A call passes an initializer that is an input of the model as well."""
    proto = parse(weights() + weights("2") + call("z", "x") + call("y", "z", "2") + F)
    proto.graph.input.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, [4, 4, 1, 1]))
    check(proto, None, "overridable-initializer")
    assert bnfold.fold(proto, verify=False, freeze_inputs=True).frozen == ("w2",)


def test_weight_of_one_call_would_overflow():
    """With the numbers of the second call the weight would be infinite: neither folds."""
    proto = parse(weights() + weights("2") + call("z", "x") + "[second] " + call("y", "z", "2") + F)
    for held in proto.graph.initializer:
        if held.name in {"w2", "g2"}:
            held.CopyFrom(tensor(held.name, numpy_helper.to_array(held) * np.float32(1e25)))
    result = check(proto, None, "overflow")
    assert names_second(result)


def test_bad_variance_in_one_call():
    """A negative variance in the second call."""
    proto = parse(weights() + weights("2") + call("z", "x") + "[second] " + call("y", "z", "2") + F)
    next(t for t in proto.graph.initializer if t.name == "v2").CopyFrom(tensor("v2", -np.ones(4)))
    result = check(proto, None, "bad-variance")
    assert names_second(result)


def test_weights_of_other_widths():
    """Two calls with 4 and 8 maps fold alike: each by its own sizes."""
    text = weights() + weights("2").replace("K()", "K(8,4,1,1)").replace("(4)", "(8)")
    text += call("z", "x") + call("o", "z", "2") + "k = K(4,8,1,1) y = Conv(o, k) " + F
    check(text, "f f Conv; f: Conv")


def test_one_call_has_no_producer():
    """The body's data input is a constant in one call and computed in the other: the fold is the same for both."""
    text = weights() + "u = K(2,4,6,6) z = Add(x, u) " + call("o", "u") + call("q", "z") + "y = Add(o, q) " + F
    check(text, "Add f f Add; f: Conv")


def test_function_without_calls():
    """Nobody calls a function whose weights are arguments: there is nothing to fold with."""
    result = bnfold.fold(parse("y = Relu(x) " + F), verify=False)
    assert not result.folded
    assert result.refused[0].message


def test_one_call_leaves_the_weight_out():
    """A call without a needed argument is an error or a reason, not a crash."""
    proto = parse(weights() + call("z", "x") + "y = local.f(z) " + F)
    try:
        result = bnfold.fold(proto, verify=False)
    except bnfold.BnfoldError as error:
        assert error.exit_code == 2  # noqa: PT017 - an error is one of two ways out
    else:
        assert not result.folded
        assert result.model == proto


def test_call_with_too_many_arguments():
    """Neither is one with more arguments than the function has inputs; its data argument stays what it was."""
    proto = parse(weights() + call("y", "x") + F)
    proto.graph.node[-1].input.append("x")
    try:
        result = bnfold.fold(proto, verify=False)
    except bnfold.BnfoldError as error:
        assert error.exit_code == 2  # noqa: PT017 - an error is one of two ways out
    else:
        assert result.model.graph.node[-1].input[0] == "x"


def test_shift_pushed_into_padding_in_the_function():
    """A BatchNormalization before a padded Conv with a shift stays, whatever the calls pass."""
    body = "d = BatchNormalization(x, g, h, m, v) y = Conv <pads = [1,1,1,1]> (d, w)"
    text = weights().replace("K()", "K(4,4,3,3)") + call("y", "x") + f"fn f (x, w, g, h, m, v) => (y) {{ {body} }}"
    result = bnfold.fold(parse(text), verify=False)
    assert not result.folded


def test_push_into_a_weight_that_is_an_argument():
    """A BatchNormalization before a Conv inside the function goes into each call's weight."""
    body = "r = Tanh(x) d = BatchNormalization(r, g, h, m, v) y = Conv(d, w)"
    text = weights() + weights("2") + call("z", "x") + call("y", "z", "2")
    check(text + f"fn f (x, w, g, h, m, v) => (y) {{ {body} }}", "f f; f: Tanh Conv")


def test_factor_and_summand_are_arguments():
    """A chain of Mul and Add whose constants are arguments."""
    body = "c = Conv(x, w) d = Mul(c, s) y = Add(d, t)"
    text = f"w = K() s = K(1,4,1,1) t = K(4,1,1) y = local.f(x, w, s, t) fn f (x, w, s, t) => (y) {{ {body} }}"
    found = check(text, "f; f: Conv").model
    assert len(formals(found)) in {2, 3}


def test_epsilon_and_weights_differ_by_call():
    """Weights may differ by call, the epsilon by reference may not."""
    f = f'<domain: "local", opset_import: ["" : 17]> f <eps> (x, w, g, h, m, v) => (y) {{ {BODY} }}'
    f = f.replace("BatchNormalization(", "BatchNormalization <epsilon: float = @eps> (")
    first, second = (
        call("z", "x").replace("f(", "f <eps = 0.25> ("),
        call("y", "z", "2").replace("f(", "f <eps = {}> ("),
    )
    text = weights() + weights("2") + first + second + f
    check(text.replace("{}", "0.25", 1), "f f; f: Conv")
    assert not bnfold.fold(parse(text.replace("{}", "0.5", 1)), verify=False).folded


def test_verification():
    """Functions with arguments are proved by running both models."""
    assert bnfold.fold(parse(weights() + call("y", "x") + F)).verification is not None


def test_no_such_function_at_ir_7():
    """Functions came with IR 8; a file of IR 7 that has them folds rightly or stays, and is not relabelled."""
    proto = parse(weights() + call("y", "x") + F, ir=7)
    assert bnfold.fold(proto, verify=False).model.ir_version == 7
