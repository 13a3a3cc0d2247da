"""Sites inside local functions whose constants lie in the function itself: folded there, for every call alike."""

import pytest
from onnx import FunctionProto, ModelProto, TensorProto, helper

import bnfold
from bnfold.errors import BnfoldError
from tests.scopes import fork, parse
from tests.scopes_check import check

PAIR = "w = K() c = Conv(x, w) y = BN(c)"
F = f"fn f (x) => (y) {{ {PAIR} }}"


def function(proto: ModelProto, name: str = "f") -> FunctionProto:
    """The function of that name."""
    return next(f for f in proto.functions if f.name == name)


def head(imports: str, overload: str = "") -> str:
    """The head of a function with these imports, where `fn` would give it opset 17."""
    return f'<domain: "local", opset_import: [{imports}]{overload}> '


# Where the fold goes ------------------------------------------------------------------------------------------------


def test_pair_in_a_function():
    """It folds, into Constant nodes: a function holds no initializers."""
    found = check("y = local.f(x) " + F, "f; f: Conv").model
    assert not found.graph.initializer
    kinds = [node.op_type for node in function(found).node]
    assert sorted(kinds) == ["Constant", "Constant", "Conv"]


def test_constants_come_before_their_readers():
    """Nodes of a function are in topological order, as the checker asks for."""
    found = check(
        "y = local.f(x) fn f (x) => (y) { z = Tanh(x) w = K() c = Conv(z, w) y = BN(c) }", "f; f: Tanh Conv"
    )
    known = {"x"}
    for node in function(found.model).node:
        assert known.issuperset(node.input)
        known.update(node.output)


def test_called_twice():
    """Both calls get the folded body; neither call changes."""
    proto = parse("z = local.f(x) y = local.f(z) " + F)
    found = check(proto, "f f; f: Conv").model
    assert list(found.graph.node) == list(proto.graph.node)


def test_never_called():
    """A function that nobody calls, with constants inside, folds as well."""
    check("y = Relu(x) " + F, "Relu; f: Conv")


def test_main_graph_and_function():
    """Both fold; names that they share are other values."""
    text = "w = K() c = Conv(x, w) z = BN(c) y = local.f(z) " + F
    check(text, "Conv f; f: Conv", folded=2)


def test_two_functions():
    """Each by itself, though all names are the same."""
    text = f"z = local.f(x) y = local.g(z) {F} fn g (x) => (y) {{ {PAIR} }}"
    check(text, "f g; f: Conv; g: Conv", folded=2)


def test_function_that_calls_another():
    """A pair in the inner one folds, and one in the outer one behind the call."""
    text = f"y = local.g(x) fn g (x) => (y) {{ z = local.f(x) v = K() d = Conv(z, v) y = BN(d) }} {F}"
    check(text, "g; g: f Conv; f: Conv", folded=2)


def test_three_calls_deep():
    """f in g in h."""
    text = f"y = local.h(x) fn h (x) => (y) {{ y = local.g(x) }} fn g (x) => (y) {{ y = local.f(x) }} {F}"
    check(text, "h; h: g; g: f; f: Conv")


def test_called_inside_a_branch():
    """A call in a branch of an If is a call like any other."""
    check(fork("a = local.f(x)", "b = Relu(x)") + F, "If[f | Relu]; f: Conv")


def test_branch_inside_a_function():
    """A pair in a branch in a function folds; condition and input are the function's."""
    body = fork("w = K() c = Conv(x, w) a = BN(c)", "b = Relu(x)")
    check(f"y = local.f(x, p) fn f (x, p) => (y) {{ {body} }}", "f; f: If[Conv | Relu]")


def test_branch_in_a_function_with_weights_of_the_function():
    """The weight is a Constant node of the function's body; the branch reads it."""
    body = "w = K() g = K(4) q = P(4) "
    body += fork("c = Conv(x, w) a = BatchNormalization(c, g, g, g, q)", "b = Relu(x)")
    check(f"y = local.f(x, p) fn f (x, p) => (y) {{ {body} }}", "f; f: If[Conv | Relu]")


def test_function_in_a_branch_in_a_function():
    """The call lies in a branch in the body of another function."""
    body = fork("a = local.f(x)", "b = Relu(x)")
    check(f"y = local.g(x, p) fn g (x, p) => (y) {{ {body} }} {F}", "g; g: If[f | Relu]; f: Conv")


def test_conv_in_the_body_and_batchnorm_in_its_branch():
    """Across scopes of one function, as in the main graph."""
    body = "w = K() c = Conv(x, w) " + fork("a = BN(c)", "b = Relu(x)")
    check(f"y = local.f(x, p) fn f (x, p) => (y) {{ {body} }}", "f; f: Conv If[Identity | Relu]")


def test_chain_and_push():
    """A chain behind a Conv, and a BatchNormalization before another."""
    body = """w = K() c = Conv(x, w) s = K(4,1,1) t = K(4,1,1) d = Mul(c, s) e = Add(d, t) r = Tanh(e) b = BN(r)
        v = K() y = Conv(b, v)"""
    check(f"y = local.f(x) fn f (x) => (y) {{ {body} }}", "f; f: Conv Tanh Conv", folded=2)


def test_carriers():
    """Operators between pass the map on inside a function too; the value that changes on the way is renamed."""
    body = "w = K() c = Conv(x, w) d = Transpose <perm = [0, 1, 3, 2]> (c) e = BN(d) y = Tanh(e)"
    result = check(f"y = local.f(x) fn f (x) => (y) {{ {body} }}", "f; f: Conv Transpose Tanh")
    assert [old for old, _ in result.renamed] == ["c"]


def test_output_name_stays():
    """The function's output keeps its name, its inputs theirs."""
    found = function(check("y = local.f(x) " + F, "f; f: Conv").model)
    assert (list(found.input), list(found.output)) == (["x"], ["y"])


def test_verification():
    """The result is proved by running both models, functions and all."""
    assert bnfold.fold(parse("y = local.f(x) " + F)).verification is not None


# What stays ---------------------------------------------------------------------------------------------------------


def test_batchnorm_on_the_argument():
    """What calls pass in has nothing upstream inside; the help says to inline."""
    result = check("w = K() c = Conv(x, w) y = local.f(c) fn f (x) => (y) { y = BN(x) }", None, "in-function")
    assert "inline" in result.refused[0].help


def test_conv_in_the_function_batchnorm_outside():
    """Nothing goes through the end of a function either."""
    text = "c = local.f(x) y = BN(c) fn f (x) => (y) { w = K() y = Conv(x, w) }"
    result = bnfold.fold(parse(text), verify=False)
    assert not result.folded
    assert result.refused[0].code in {"in-function", "producer-cannot-absorb"}


def test_conv_and_batchnorm_in_two_functions():
    """The BatchNormalization of the second stays."""
    text = "c = local.f(x) y = local.g(c) fn f (x) => (y) { w = K() y = Conv(x, w) } fn g (x) => (y) { y = BN(x) }"
    check(text, None, "in-function")


def test_conv_in_an_inner_function():
    """The Conv lies in a function that the BatchNormalization's function calls: it stays."""
    text = """y = local.g(x) fn g (x) => (y) { c = local.f(x) y = BN(c) }
        fn f (x) => (y) { w = K() y = Conv(x, w) }"""
    result = bnfold.fold(parse(text), verify=False)
    assert not result.folded
    assert result.refused[0].code in {"in-function", "producer-cannot-absorb"}


def test_batchnorm_before_the_end_of_a_function():
    """Its output is the function's, and a Conv outside reads that: it stays."""
    text = "d = local.f(x) w = K() y = Conv(d, w) fn f (x) => (y) { r = Tanh(x) y = BN(r) }"
    result = bnfold.fold(parse(text), verify=False)
    assert not result.folded
    assert result.refused[0].message


def test_conv_output_is_a_function_output():
    """The Conv's output leaves the function as well."""
    text = "y, z = local.f(x) fn f (x) => (y, c) { w = K() c = Conv(x, w) y = BN(c) }"
    check(f"main (T x) => (T y, T z) {{ {text} }}".replace(" fn", "} fn", 1).replace("} }", "}"), None,
          "producer-is-output")  # fmt: skip


def test_unread_output_of_every_call():
    """The same where no call names that output: the function may still be called so."""
    text = "y = local.f(x) fn f (x) => (y, c) { w = K() c = Conv(x, w) y = BN(c) }"
    check(text, None, "producer-is-output")


def test_output_that_is_the_batchnorm_and_read_inside():
    """The BatchNormalization's output leaves and is read inside: the Conv's output takes its name."""
    text = "y, z = local.f(x) o = Add(y, z) fn f (x) => (d, z) { w = K() c = Conv(x, w) d = BN(c) z = Tanh(d) }"
    check(text.replace("y, z =", "u, z =").replace("o = Add(y,", "y = Add(u,"), "f Add; f: Conv Tanh")


def test_training_mode():
    """A BatchNormalization in training form stays, inside a function as elsewhere."""
    body = "w = K() c = Conv(x, w) y, m, v = BN <training_mode = 1> (c)"
    check(f"y = local.f(x) fn f (x) => (y) {{ {body} }}", None, "training-mode")


# Names and versions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Conv", "BatchNormalization", "Constant", "If"])
def test_function_called_like_an_operator(name):
    """A function of a domain of its own is not the standard operator of that name; its body folds like any."""
    text = f"y = local.{name}(x) fn {name} (x) => (y) {{ {PAIR} }}"
    proto = parse(text)
    result = bnfold.fold(proto, verify=False)
    assert [site.site for site in result.folded] == ["BatchNormalization -> 'y'"]
    assert list(result.model.graph.node) == list(proto.graph.node)


def test_batchnorm_function_behind_a_conv():
    """`local.BatchNormalization` behind a Conv is a call, and no site."""
    text = "w = K() c = Conv(x, w) y = local.BatchNormalization(c) fn BatchNormalization (x) => (y) { y = Tanh(x) }"
    check(text, None)


def test_overloads():
    """Of two overloads of one name only the one with the pair changes."""
    text = "z = local.f:one(x) y = local.f(z) "
    text += head('"" : 17', ', overload: "one"') + f"f (x) => (y) {{ {PAIR} }}"
    text += head('"" : 17') + "f (x) => (y) { y = Relu(x) }"
    check(text, "f f; f:one: Conv; f: Relu", ir=10)


def test_two_overloads_with_sites():
    """Both overloads fold, each with its own weights."""
    text = "z = local.f:one(x) y = local.f:two(z) "
    text += "".join(
        head('"" : 17', f', overload: "{name}"') + f"f (x) => (y) {{ {PAIR} }}" for name in ("one", "two")
    )
    check(text, "f f; f:one: Conv; f:two: Conv", folded=2, ir=10)


@pytest.mark.parametrize("opset", [8, 13])
def test_function_of_another_opset(opset):
    """A function is read by its own imports, not the model's."""
    check("y = local.f(x) " + head(f'"" : {opset}') + f"f (x) => (y) {{ {PAIR} }}", "f; f: Conv")


def test_operators_mean_what_the_function_s_opset_says():
    """Opset 6 has is_test, which opset 17 has not: without it, in training form, the site stays."""
    text = "y = local.f(x) " + head('"" : 6') + f"f (x) => (y) {{ {PAIR} }}"
    check(text, None, "training-mode")


def test_imports_of_a_function_stay():
    """No import is added to a function, and none goes."""
    proto = parse("y = local.f(x) " + head('"" : 17, "com.example" : 3') + f"f (x) => (y) {{ {PAIR} }}")
    found = check(proto, "f; f: Conv").model
    assert list(function(found).opset_import) == list(function(proto).opset_import)


def test_function_without_imports():
    """No version of the operators is stated: an error or a reason, no fold."""
    proto = parse("y = local.f(x) " + F)
    del proto.functions[0].opset_import[:]
    try:
        result = bnfold.fold(proto, verify=False)
    except BnfoldError as error:
        assert error.exit_code == 2  # noqa: PT017 - an error is one of two ways out
    else:
        assert not result.folded
        assert result.model == proto


def test_name_of_a_new_constant_is_free_in_the_function():
    """`w_folded` and `w_bias` are values of the body already."""
    body = "w_folded = Tanh(x) w_bias = Abs(w_folded) w = K() c = Conv(w_bias, w) y = BN(c)"
    check(f"y = local.f(x) fn f (x) => (y) {{ {body} }}", "f; f: Tanh Abs Conv")


def test_name_of_a_new_constant_is_a_formal():
    """`w_bias` is an input of the function."""
    body = "w = K() c = Conv(x, w) d = BN(c) y = Add(d, w_bias)"
    check(f"y = local.f(x, x) fn f (x, w_bias) => (y) {{ {body} }}", "f; f: Conv Add")


# Fields -------------------------------------------------------------------------------------------------------------


def test_annotations_of_a_function_stay_true():
    """value_info of values that are gone goes; doc_string and metadata stay."""
    proto = parse("y = local.f(x) fn f (x) => (y) { w = K() c = Conv(x, w) d = BN(c) y = Tanh(d) }", ir=10)
    held = proto.functions[0]
    held.value_info.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4, 6, 6]) for n in "cd")
    held.doc_string = "a block"
    held.metadata_props.add(key="from", value="test")
    found = function(check(proto, "f; f: Conv Tanh").model)
    assert [value.name for value in found.value_info] == ["d"]
    assert (found.doc_string, list(found.metadata_props)) == ("a block", list(held.metadata_props))


def test_functions_without_sites_stay():
    """Byte for byte, and in their order."""
    other = "fn {} (x) => (y) {{ y = Relu(x) }} "
    proto = parse("a = local.g(x) b = local.f(a) y = local.h(b) " + other.format("g") + F + other.format("h"))
    found = check(proto, "g f h; g: Relu; f: Conv; h: Relu").model
    assert [found.functions[0], found.functions[2]] == [proto.functions[0], proto.functions[2]]


# Attributes by reference --------------------------------------------------------------------------------------------

BY_REFERENCE = head('"" : 17') + "f <{}> (x) => (y) {{ w = K() c = Conv(x, w) y = BN <epsilon: float = @eps> (c) }}"


@pytest.mark.parametrize("calls", ["y = local.f <eps = 0.25> (x)",
                                   "z = local.f <eps = 0.25> (x) y = local.f <eps = 0.25> (z)"])  # fmt: skip
def test_epsilon_by_reference(calls):
    """All calls give the same epsilon: it is a constant."""
    check(calls + BY_REFERENCE.format("eps"), "f f; f: Conv" if "z" in calls else "f; f: Conv")


def test_epsilon_by_reference_and_calls_that_differ():
    """Two calls give two: the site stays, and the reason names the attribute."""
    text = "z = local.f <eps = 0.25> (x) y = local.f <eps = 0.5> (z)" + BY_REFERENCE.format("eps")
    result = bnfold.fold(parse(text), verify=False)
    assert not result.folded
    assert "eps" in result.refused[0].message


def test_epsilon_by_reference_and_its_default():
    """No call gives one: the default of the function holds."""
    check("y = local.f(x)" + BY_REFERENCE.format("eps: float = 0.25"), "f; f: Conv", ir=9)


def test_epsilon_by_reference_equal_to_the_default():
    """One call gives what the other leaves to the default: the same number."""
    text = "z = local.f <eps = 0.25> (x) y = local.f(z)" + BY_REFERENCE.format("eps: float = 0.25")
    check(text, "f f; f: Conv", ir=9)


def test_epsilon_by_reference_unlike_the_default():
    """One call gives another than the default: the site stays."""
    text = "z = local.f <eps = 0.5> (x) y = local.f(z)" + BY_REFERENCE.format("eps: float = 0.25")
    assert not bnfold.fold(parse(text, ir=9), verify=False).folded


def test_epsilon_by_reference_that_no_call_gives():
    """Neither call nor function gives one: the operator's own default holds, or the site stays."""
    proto = parse("y = local.f(x)" + BY_REFERENCE.format("eps"))
    result = bnfold.fold(proto, verify=False)
    if result.folded:
        check(proto, "f; f: Conv")


def test_epsilon_by_reference_without_calls():
    """Nobody calls the function, and it has no default: the number is not known."""
    text = "y = Relu(x)" + BY_REFERENCE.format("eps")
    assert not bnfold.fold(parse(text), verify=False).folded


def test_epsilon_by_reference_through_two_functions():
    """The outer function hands its own attribute on: the value is that of the outer calls, or the site stays."""
    outer = head('"" : 17, "local" : 1') + "g <eps> (x) => (y) { y = local.f <eps: float = @eps> (x) }"
    proto = parse("y = local.g <eps = 0.25> (x)" + outer + BY_REFERENCE.format("eps"))
    result = bnfold.fold(proto, verify=False)
    if result.folded:
        check(proto, "g; g: f; f: Conv")


@pytest.mark.parametrize("attribute", ["pads: ints = @pads", "strides: ints = @pads"])
def test_attributes_of_the_conv_by_reference(attribute):
    """A Conv whose window is given by the call folds rightly, whatever the calls give, or stays."""
    body = f"w = K() c = Conv <{attribute}> (x, w) y = BN(c)"
    calls = "y = local.f <pads = [0, 0, 0, 0]> (x)" if "pads:" in attribute else "y = local.f <pads = [1, 1]> (x)"
    proto = parse(calls + head('"" : 17') + f"f <pads> (x) => (y) {{ {body} }}")
    result = bnfold.fold(proto, verify=False)
    if result.folded:
        check(proto, "f; f: Conv")
    else:
        assert result.model == proto


def test_training_mode_by_reference():
    """Whether it is in training form depends on the call: no fold, unless no call asks for that."""
    body = "w = K() c = Conv(x, w) y = BN <training_mode: int = @mode> (c)"
    proto = parse("y = local.f <mode = 0> (x)" + head('"" : 17') + f"f <mode> (x) => (y) {{ {body} }}")
    result = bnfold.fold(proto, verify=False)
    if result.folded:
        check(proto, "f; f: Conv")
    assert not bnfold.fold(parse("y = Relu(x)" + head('"" : 17') + f"f <mode> (x) => (y) {{ {body} }}"),
                           verify=False).folded  # fmt: skip


def test_constant_by_reference():
    """A Constant node whose tensor is given by the call is a constant where all calls agree, or the site stays."""
    body = "w = Constant <value: tensor = @w> () c = Conv(x, w) y = BN(c)"
    numbers = ", ".join(str(n) for n in range(1, 17))
    proto = parse(
        f"y = local.f <w = float[4,4,1,1] {{{numbers}}}> (x)" + head('"" : 17') + f"f <w> (x) => (y) {{ {body} }}"
    )
    result = bnfold.fold(proto, verify=False)
    if result.folded:
        check(proto, "f; f: Conv")
    else:
        assert result.model == proto


# Hostile ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    f"y = local.f(x) fn f (x) => (y) {{ {PAIR.replace('y =', 'z =')} y = local.f(z) }}",
    f"""y = local.f(x) fn f (x) => (y) {{ {PAIR.replace('y =', 'z =')} y = local.g(z) }}
        fn g (x) => (y) {{ y = local.f(x) }}""",
    f"""y = local.f(x, p) fn f (x, p) => (y) {{ {PAIR.replace('y =', 'z =')}
        {fork('a = local.f(z, p)', 'b = Relu(z)')} }}""",
    "w = K() y = local.f(x, w) fn f (x, w) => (y) { c = Conv(x, w) z = BN(c) y = local.f(z, w) }",
], ids=["itself", "by another", "in a branch", "with weights"])  # fmt: skip
def test_recursion(text):
    """A function that calls itself is an error or left with a reason; nothing hangs."""
    proto = parse(text)
    try:
        result = bnfold.fold(proto, verify=False)
    except BnfoldError as error:
        assert error.exit_code == 2  # noqa: PT017 - an error is one of two ways out
    else:
        assert not result.folded
        assert result.model == proto


def test_calls_that_double():
    """Thirty functions, each calling the next twice: the calls are not walked one by one."""
    text = "y = local.f0(x) "
    for i in range(30):
        text += f"fn f{i} (x) => (y) {{ z = local.f{i + 1}(x) y = local.f{i + 1}(z) }} "
    proto = parse(text + F.replace(" f ", " f30 "))
    result = bnfold.fold(proto, verify=False)
    assert [site.outcome for site in result.report.sites] == ["folded"]


def test_call_of_a_function_that_is_not_there():
    """An operator of the functions' domain without a body is an operator nobody knows."""
    proto = parse("z = local.g(x) y = local.f(z) " + F)
    check(proto, "g f; f: Conv", runs=False)


def test_two_functions_of_one_name():
    """Which of the two a call means is not said: an error, a reason, or a fold that is right for both."""
    proto = parse(f"y = local.f(x) {F} fn f (x) => (y) {{ y = Relu(x) }}")
    try:
        result = bnfold.fold(proto, verify=False)
    except BnfoldError as error:
        assert error.exit_code == 2  # noqa: PT017 - an error is one of two ways out
    else:
        assert result.model.functions[1] == proto.functions[1]


def test_function_that_redefines_an_operator():
    """A function `Conv` of the standard domain is what every Conv of the model means, those in functions too."""
    text = "y = local.f(x) " + F + ' <domain: "", opset_import: ["" : 17]> Conv (x, w) => (y) { y = Relu(x) }'
    proto = parse(text)
    result = bnfold.fold(proto, verify=False)
    assert not result.folded
    assert result.model == proto
