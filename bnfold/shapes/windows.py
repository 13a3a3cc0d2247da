"""The output shapes of Conv, ConvTranspose and the poolings, by their operator specifications."""

from collections.abc import Mapping, Sequence

from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, ints_attribute, text_attribute
from bnfold.shapes import ONE, Dim, Shape
from bnfold.shapes.common import ShapeRule, input_shape, made_up


def _conv(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, weight = input_shape(facts, index), input_shape(facts, index, 1)
    if weight is None or len(weight) < 3:
        return []
    batch = x[0] if x is not None else made_up(facts, index, 0)
    return [(batch, weight[0], *_windows(facts, index, x, weight[2:]))]


def _conv_transpose(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, weight = input_shape(facts, index), input_shape(facts, index, 1)
    if weight is None or len(weight) < 3:
        return []
    node = facts.nodes[index]
    spatial = len(weight) - 2
    maps = weight[1] * Dim(int_attribute(node, "group", 1))
    batch = x[0] if x is not None else made_up(facts, index, 0)
    rest = [made_up(facts, index, axis) for axis in range(2, 2 + spatial)]
    plain = text_attribute(node, "auto_pad", "NOTSET") == "NOTSET" and ints_attribute(node, "output_shape") is None
    if x is not None and plain:
        stride, dilation = (ints_attribute(node, name) or (1,) * spatial for name in ("strides", "dilations"))
        pads = ints_attribute(node, "pads") or (0,) * (2 * spatial)
        extra = ints_attribute(node, "output_padding") or (0,) * spatial
        for i in range(spatial):
            size, kernel = x[2 + i].size, weight[2 + i].size
            if size is not None and kernel is not None:
                span = dilation[i] * (kernel - 1) + 1 + extra[i]
                rest[i] = Dim(stride[i] * (size - 1) + span - pads[i] - pads[spatial + i])
    return [(batch, maps, *rest)]


def _pool(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = input_shape(facts, index)
    kernel = ints_attribute(facts.nodes[index], "kernel_shape")
    if x is None or kernel is None:
        return []
    shape = (*x[:2], *_windows(facts, index, x, [Dim(size) for size in kernel]))
    return [shape, shape]


def _windows(facts: GraphFacts, index: int, x: Shape | None, kernel: Sequence[Dim]) -> list[Dim]:
    """The spatial sizes of a Conv or pooling."""
    node = facts.nodes[index]
    spatial = len(kernel)
    found = [made_up(facts, index, axis) for axis in range(2, 2 + spatial)]
    stride, dilation = (ints_attribute(node, name) or (1,) * spatial for name in ("strides", "dilations"))
    pads = ints_attribute(node, "pads") or (0,) * (2 * spatial)
    mode = text_attribute(node, "auto_pad", "NOTSET")
    if x is None or len(x) != spatial + 2:
        return found
    for i in range(spatial):
        size, taps = x[2 + i], kernel[i].size
        if taps is None:
            continue
        reach = dilation[i] * (taps - 1)
        padded = 0 if mode == "VALID" else pads[i] + pads[spatial + i]
        if stride[i] == 1 and (mode in ("SAME_UPPER", "SAME_LOWER") or padded == reach):
            found[i] = size
        elif size.size is not None and mode in ("SAME_UPPER", "SAME_LOWER"):
            found[i] = Dim(-(-size.size // stride[i]))
        elif size.size is not None and not int_attribute(node, "ceil_mode", 0):
            found[i] = Dim((size.size + padded - reach - 1) // stride[i] + 1)
    return found


def _global_pool(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = input_shape(facts, index)
    return [] if x is None else [(*x[:2], *[ONE] * (len(x) - 2))]


WINDOWS: Mapping[str, ShapeRule] = {
    **dict.fromkeys(["AveragePool", "LpPool", "MaxPool"], _pool),
    **dict.fromkeys(["GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"], _global_pool),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "com.microsoft::FusedConv": _conv,
}
