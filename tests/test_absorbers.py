"""Conv and ConvTranspose take maps in from behind and from before: every rank, group, stride and padding."""

import itertools

import numpy as np
import pytest

from tests.conftest import initializer
from tests.folding import check, graph

BEHIND = "[op] c = {op} (x, w{bias})\n[bn] y = BN <maps = {maps}> (c)"
BEFORE = "[bn] n = BN <maps = {maps}> (x)\n[op] y = {op} (n, w{bias})"
BIASES = ["", ', ""', ", b"]

# weight, x, attributes
CONVS = {
    "1d": ((5, 4, 3), (2, 4, 9), ""),
    "2d": ((5, 4, 3, 3), (2, 4, 7, 8), "strides = [2, 1]"),
    "3d": ((5, 4, 2, 3, 2), (1, 4, 5, 6, 5), "dilations = [1, 2, 1]"),
    "1x1": ((6, 4, 1, 1), (2, 4, 5, 5), ""),
    "group": ((6, 2, 3, 3), (2, 4, 6, 6), "group = 2"),
    "depthwise": ((4, 1, 3, 3), (2, 4, 6, 6), "group = 4"),
    "depthwise_twice": ((8, 1, 3, 3), (2, 4, 6, 6), "group = 4"),
    "groups_of_unequal_sides": ((9, 2, 1, 1), (2, 6, 4, 4), "group = 3"),
    "square": ((4, 4, 3, 3), (4, 4, 4, 4), ""),
    "square_group": ((4, 2, 1, 1), (4, 4, 4, 4), "group = 2"),
}
PADDED = {
    "pads": "pads = [1, 1, 1, 1]",
    "one_side": "pads = [0, 0, 0, 1]",
    "same_upper": 'auto_pad = "SAME_UPPER"',
    "same_lower": 'auto_pad = "SAME_LOWER"',
    "stride": "pads = [1, 0, 0, 0], strides = [2, 2]",
}
# never reads the padding that it declares: x is (2, 4, 6, 6)
UNREAD = {
    "valid": ((5, 4, 3, 3), 'auto_pad = "VALID"'),
    "valid_keyword_pads_absent": ((5, 4, 3, 3), 'auto_pad = "VALID", strides = [2, 2]'),
    "zeros": ((5, 4, 3, 3), "pads = [0, 0, 0, 0]"),
    "stride_jumps_over_the_end": ((5, 4, 3, 3), "pads = [0, 0, 1, 1], strides = [3, 3]"),
    "same_of_1x1": ((5, 4, 1, 1), 'auto_pad = "SAME_UPPER"'),
    "same_that_fits": ((5, 4, 2, 2), 'auto_pad = "SAME_LOWER", strides = [2, 2]'),
}


@pytest.mark.parametrize("bias", BIASES, ids=["absent", "empty", "bias"])
@pytest.mark.parametrize("where", [BEHIND, BEFORE], ids=["pull", "push"])
@pytest.mark.parametrize("case", CONVS)
def test_conv(case, where, bias):
    """The map goes into weight and bias, whichever side it stands on, and the Conv keeps its name and attributes."""
    shape, x, attributes = CONVS[case]
    maps = shape[0] if where is BEHIND else x[1]
    text = where.format(op=f"Conv <{attributes}>", maps=maps, bias=bias)
    tensors = {"b": (shape[0],)} if "b" in bias else {}
    proto = graph(text, x, w=shape, **tensors)
    result = check(proto, nodes="Conv", limit=5e-6)
    before, after = (next(n for n in m.graph.node if n.op_type == "Conv") for m in (proto, result.model))
    assert (after.name, after.output[0], list(after.attribute)) == ("op", "y", list(before.attribute))
    assert result.folded[0].direction == ("pull" if where is BEHIND else "push")
    assert result.folded[0].into == "Conv 'op'"


@pytest.mark.parametrize("padding", PADDED)
def test_shift_does_not_pass_padding(padding):
    """A map behind a padded Conv folds, before it only if it has no shift; the reason names the Conv."""
    behind, before = (t.format(op=f"Conv <{PADDED[padding]}>", maps=4, bias=", b") for t in (BEHIND, BEFORE))
    check(graph(behind, w=(4, 4, 3, 3), b=(4,)), nodes="Conv")
    result = check(graph(before, w=(4, 4, 3, 3), b=(4,)), folded=0, left=["shift-meets-padding"])
    assert "'op'" in result.refused[0].message
    scaled = f"n = Mul (x, s)\n[op] y = Conv <{PADDED[padding]}> (n, w, b)"
    check(graph(scaled, w=(4, 4, 3, 3), b=(4,), s=(4, 1, 1)), nodes="Conv")


@pytest.mark.parametrize("case", UNREAD)
def test_shift_passes_padding_that_is_not_read(case):
    """Judged from pads, auto_pad, kernel, stride and the size of x."""
    shape, attributes = UNREAD[case]
    check(graph(BEFORE.format(op=f"Conv <{attributes}>", maps=4, bias=", b"), w=shape, b=(5,)), nodes="Conv")


def test_padding_that_a_free_size_may_read():
    """Of an unknown height nobody knows whether the stride jumps over the padding: it stays."""
    text = BEFORE.format(op="Conv <pads = [0, 0, 1, 1], strides = [3, 3]>", maps=4, bias=", b")
    proto = graph(text, ("n", 4, "h", "w"), w=(5, 4, 3, 3), b=(5,))
    check(proto, folded=0, left=["shift-meets-padding"], runs=False)


# weight (C_in, C_out / group, ...), x, attributes, group
TRANSPOSED = {
    "1d": ((4, 5, 3), (2, 4, 6), "", 1),
    "2d": ((4, 5, 3, 2), (2, 4, 5, 6), "strides = [2, 3]", 1),
    "3d": ((4, 3, 2, 2, 2), (1, 4, 3, 3, 3), "strides = [2, 2, 2]", 1),
    "group": ((4, 3, 3, 3), (2, 4, 5, 5), "group = 2", 2),
    "depthwise": ((4, 1, 2, 2), (2, 4, 5, 5), "group = 4, strides = [2, 2]", 4),
    "square_group": ((4, 2, 2, 2), (4, 4, 4, 4), "group = 2", 2),
    "square": ((4, 4, 2, 2), (4, 4, 4, 4), "", 1),
    "kernel_is_stride": ((4, 5, 2, 2), (2, 4, 5, 5), "strides = [2, 2]", 1),
    "output_padding": (
        (4, 5, 3, 3),
        (2, 4, 5, 5),
        "strides = [2, 2], output_padding = [1, 1], pads = [1, 1, 1, 1]",
        1,
    ),
    "stride_over_kernel": ((4, 5, 2, 2), (2, 4, 5, 5), "strides = [3, 3], output_padding = [2, 1]", 1),
    "dilated": ((4, 5, 2, 2), (2, 4, 5, 5), "dilations = [2, 3]", 1),
    "output_shape": ((4, 5, 3, 3), (2, 4, 5, 5), "strides = [2, 2], output_shape = [10, 10]", 1),
    "same": ((4, 5, 3, 3), (2, 4, 5, 5), 'strides = [2, 2], auto_pad = "SAME_UPPER"', 1),
}
# every output position sees the whole kernel
UNIFORM = {
    "1x1": ((4, 5, 1, 1), "", 1),
    "1x1_group": ((4, 3, 1, 1), "group = 2", 2),
    "pads_of_the_reach": ((4, 5, 3, 3), "pads = [2, 2, 2, 2]", 1),
    "pads_of_the_dilated_reach": ((4, 5, 3, 2), "pads = [2, 2, 2, 2], dilations = [1, 2]", 1),
    "more_than_the_reach": ((4, 3, 2, 2), "pads = [1, 2, 2, 1], group = 2", 2),
}
NOT_UNIFORM = {
    "plain": ((4, 5, 3, 3), ""),
    "kernel_is_stride": ((4, 5, 2, 2), "strides = [2, 2]"),
    "pads_too_small": ((4, 5, 3, 3), "pads = [2, 2, 2, 1]"),
    "symmetric_half": ((4, 5, 3, 3), "pads = [1, 1, 1, 1]"),
    "dilated_reach": ((4, 5, 3, 3), "pads = [2, 2, 2, 2], dilations = [2, 1]"),
    "stride_of_1x1": ((4, 5, 1, 1), "strides = [2, 2]"),
    "output_padding": ((4, 5, 3, 3), "pads = [2, 2, 2, 2], strides = [2, 2], output_padding = [1, 1]"),
    "same": ((4, 5, 1, 1), 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
}


@pytest.mark.parametrize("bias", BIASES, ids=["absent", "empty", "bias"])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose_pull(case, bias):
    """Scale along axis 1 inside each group; what strides leave empty gets the shift by the bias."""
    shape, x, attributes, group = TRANSPOSED[case]
    maps = shape[1] * group
    text = BEHIND.format(op=f"ConvTranspose <{attributes}>", maps=maps, bias=bias)
    check(graph(text, x, w=shape, **({"b": (maps,)} if "b" in bias else {})), nodes="ConvTranspose", limit=5e-6)


@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose_push_of_a_scale(case):
    """Scale along axis 0, at any stride, group and padding."""
    shape, x, attributes, group = TRANSPOSED[case]
    text = f"n = Mul (x, s)\n[op] y = ConvTranspose <{attributes}> (n, w, b)"
    s = (4, *[1] * (len(shape) - 2))
    check(graph(text, x, w=shape, b=(shape[1] * group,), s=s), nodes="ConvTranspose", limit=5e-6)


@pytest.mark.parametrize("bias", BIASES, ids=["absent", "empty", "bias"])
@pytest.mark.parametrize("case", UNIFORM)
def test_conv_transpose_push_of_a_shift(case, bias):
    """The shift goes into the bias where every position is reached by every tap."""
    shape, attributes, group = UNIFORM[case]
    text = BEFORE.format(op=f"ConvTranspose <{attributes}>", maps=4, bias=bias)
    tensors = {"b": (shape[1] * group,)} if "b" in bias else {}
    check(graph(text, w=shape, **tensors), nodes="ConvTranspose", limit=5e-6)


@pytest.mark.parametrize("case", NOT_UNIFORM)
def test_conv_transpose_push_of_a_shift_that_is_not_uniform(case):
    """kernel = stride among them: another tap reaches each position, so the shift stays and the reason says so."""
    shape, attributes = NOT_UNIFORM[case]
    text = BEFORE.format(op=f"ConvTranspose <{attributes}>", maps=4, bias=", b")
    result = check(graph(text, w=shape, b=(5,)), folded=0, left=["shift-meets-padding"])
    assert "'op'" in result.refused[0].message


@pytest.mark.parametrize(
    ("op", "tensors", "code"),
    [
        ('com.microsoft.FusedConv <activation = "Relu"> (x, w, b)', {}, "activation-between"),
        ("com.microsoft.FusedConv (x, w, b, z)", {"z": (2, 4, 4, 4)}, "activation-between"),
        ("com.microsoft.FusedConv (x, w, b)", {}, None),
    ],
    ids=["relu", "residual", "plain"],
)
def test_fused_conv(op, tensors, code):
    """onnxruntime's own Conv takes a map in only where nothing sits between; its Z input is behind the bias too."""
    proto = graph(f"[op] c = {op}\n[bn] y = BN <maps = 4> (c)", w=(4, 4, 3, 3), b=(4,), **tensors)
    check(proto, folded=code is None, left=[code] * (code is not None))


def test_conv_and_its_bias_add():
    """Conv -> Add (constant) -> BatchNormalization: the Add goes too, and nothing is counted twice."""
    text = "c = Conv (x, w)\na = Add (c, k)\n[bn] y = BN <maps = 5> (a)"
    result = check(graph(text, w=(5, 4, 3, 3), k=(1, 5, 1, 1)), folded=2, nodes="Conv")
    assert len(result.model.graph.initializer) == 2


@pytest.mark.parametrize("order", list(itertools.permutations(["g", "s", "d"])))
def test_conv_sees_through_scalars_and_vectors_in_any_order(order):
    """A chain of Mul, Sub and Div, in any order, becomes one rounding of W and b."""
    lines = {"g": "Mul ({}, g)", "s": "Sub (h, {})", "d": "Div ({}, d)"}
    values = ["c", "p", "q", "y"]
    chain = "\n".join(f"{values[i + 1]} = {lines[o].format(values[i])}" for i, o in enumerate(order))
    tensors = {"g": (5, 1, 1), "h": (1, 5, 1, 1), "d": 3.0}
    proto = graph(f"c = Conv (x, w, b)\n{chain}", w=(5, 4, 1, 1), b=(5,), **tensors)
    result = check(proto, nodes="Conv")
    s, g = -initializer(proto, "g").astype(np.float64)[:, 0, 0], initializer(proto, "w").astype(np.float64)
    exact = (g * s[:, None, None, None] / 3.0).astype(np.float32)
    conv = result.model.graph.node[0]
    assert np.array_equal(initializer(result.model, conv.input[1]), exact)
