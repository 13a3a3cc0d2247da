"""The check of nested graphs and functions itself: a right fold made by hand passes, each damage to it is noticed."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.conftest import tensor
from tests.scopes import Scope, fork, parse, scopes
from tests.scopes_check import assert_right

THEN = ("", "0.then_branch.0")


def scope_of(proto: ModelProto, path: tuple[str, ...]) -> Scope:
    """The scope of that path."""
    return next(scope for scope in scopes(proto) if scope.path == path)


def folded(weight: TensorProto, *statistics: TensorProto) -> tuple[TensorProto, TensorProto]:
    """Weight and bias of a Conv and the BatchNormalization behind it."""
    w, gamma, beta, mean, var = (numpy_helper.to_array(t).astype(np.float64) for t in (weight, *statistics))
    scale = gamma / np.sqrt(var + np.float64(np.float32(1e-5)))
    return tensor("w_folded", w * scale.reshape(-1, 1, 1, 1)), tensor("w_bias", beta - scale * mean)


def by_hand() -> tuple[ModelProto, ModelProto]:
    """A pair in a branch, whose weight lies outside and is read by the other branch as well; and its fold."""
    before = parse("w = K()" + fork("c = Conv(x, w) d = BN(c) a = Tanh(d)", "b = Conv(x, w)"))
    after = ModelProto.FromString(before.SerializeToString())
    inner = scope_of(after, THEN).body
    weight, bias = folded(after.graph.initializer[0], *inner.initializer)
    after.graph.initializer.append(weight)
    del inner.initializer[:]
    inner.initializer.append(bias)
    inner.node[0].CopyFrom(helper.make_node("Conv", ["x", "w_folded", "w_bias"], ["d"]))
    del inner.node[1]
    return before, after


def call_by_hand() -> tuple[ModelProto, ModelProto]:
    """A pair in a function that is called with its constants; and its fold."""
    text = "w = K() g = K(4) h = K(4) m = K(4) v = P(4) k = K(4,1,1) y = local.f(x, w, k, g, h, m, v)"
    body = "c = Conv(x, w) d = BatchNormalization(c, g, h, m, v) y = Mul(d, k)"
    before = parse(f"{text} fn f (x, w, k, g, h, m, v) => (y) {{ {body} }}")
    after = ModelProto.FromString(before.SerializeToString())
    held = scope_of(before, ("",)).initializers
    del after.graph.initializer[:]
    after.graph.initializer.extend([*folded(*(held[name] for name in "wghmv")), held["k"]])
    after.graph.node[0].input[1:] = ["w_folded", "k", "w_bias"]
    function = after.functions[0]
    function.input[1:] = ["w", "k", "w_bias"]
    function.node[0].CopyFrom(helper.make_node("Conv", ["x", "w", "w_bias"], ["d"]))
    del function.node[1]
    return before, after


@pytest.mark.parametrize("make", [by_hand, call_by_hand])
def test_the_check_passes_a_right_fold(make):
    """And the model itself, unchanged."""
    before, after = make()
    assert_right(before, after, {})
    assert_right(before, before, {})


def last_bit(array):
    """The first number, moved by one unit in the last place."""
    changed = array.copy()
    changed.flat[0] = np.nextafter(changed.flat[0], np.float32(np.inf), dtype=np.float32)
    return changed


def _replace(held, name, change):
    entry = next(t for t in held if t.name == name)
    entry.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(entry)), name))


def weight_is_off(after, inner):
    """One bit of a folded weight."""
    _replace(after.graph.initializer, "w_folded", last_bit)


def bias_is_off(after, inner):
    """One bit of a new bias, inside."""
    _replace(inner.initializer, "w_bias", last_bit)


def other_weight_is_changed(after, inner):
    """One bit of the weight that the other branch reads."""
    _replace(after.graph.initializer, "w", last_bit)


def orphan_outside(after, inner):
    """A tensor that nobody reads, in the main graph."""
    after.graph.initializer.append(tensor("left", np.ones(4)))


def orphan_inside(after, inner):
    """The same in the branch."""
    inner.initializer.append(tensor("left", np.ones(4)))


def output_is_renamed(after, inner):
    """The branch's output has another name."""
    inner.output[0].name = inner.node[-1].output[0] = "renamed"


def attribute_is_added(after, inner):
    """A node that has nothing to do with it gets a doc_string."""
    inner.node[-1].doc_string = "seen"


def shape_of_nothing(after, inner):
    """An entry of value_info for the value that is gone."""
    inner.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 4, 6, 6]))


def input_is_added(after, inner):
    """One more input of the model."""
    after.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def branches_are_exchanged(after, inner):
    """The two graphs of the If."""
    one, other = after.graph.node[-1].attribute
    one.name, other.name = other.name, one.name


def reads_another_value(after, inner):
    """A node that stays reads the input of the model instead."""
    inner.node[-1].input[0] = "x"


def hides_an_outer_name(after, inner):
    """The branch makes a value whose name an outer one has: not valid, and onnxruntime refuses it."""
    inner.node[0].output[0] = inner.node[-1].input[0] = "w"


def producer_name_changes(after, inner):
    """A field of the model."""
    after.producer_name = "somebody"


DAMAGE = (weight_is_off, bias_is_off, other_weight_is_changed, orphan_outside, orphan_inside, output_is_renamed,
          attribute_is_added, shape_of_nothing, input_is_added, branches_are_exchanged, reads_another_value,
          hides_an_outer_name, producer_name_changes)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_the_check_notices(damage):
    """Each damage to the fold of a nested graph."""
    before, after = by_hand()
    damage(after, scope_of(after, THEN).body)
    with pytest.raises(AssertionError):
        assert_right(before, after, {})


@pytest.mark.parametrize("damage", ["formal", "order", "bits", "argument"])
def test_the_check_notices_in_a_call(damage):
    """A formal that nobody reads, arguments in another order than the formals, a bit, an argument not passed."""
    before, after = call_by_hand()
    call, function = after.graph.node[0], after.functions[0]
    if damage == "formal":
        function.input.append("idle")
    elif damage == "order":
        function.input[2:] = ["w_bias", "k"]
    elif damage == "bits":
        _replace(after.graph.initializer, "w_bias", last_bit)
    else:
        del call.input[-1]
    with pytest.raises(AssertionError):
        assert_right(before, after, {})
