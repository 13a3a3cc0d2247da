"""A float64 evaluator of the few operators that the networks here use; independent of bnfold's own.

Every value is a `Number`: what the graph computes, and `size`, the same sums over absolute values. What one rounding
of all constants to a type of unit roundoff u may move a value by is u * size: one *honest bound* of that type.

`moved` holds a folded model against its original, value by value: each value that both have is computed from the
original's own numbers, so that an error is seen where it is made and nowhere else.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import ModelProto, NodeProto, helper, numpy_helper

ROUNDOFF = {np.dtype(np.float16): 2.0**-11, np.dtype(np.float32): 2.0**-24}


@dataclass(frozen=True, slots=True)
class Number:
    """A value, float64 (N, C, ...), and what it would be at most if no two numbers cancelled."""

    value: np.ndarray
    size: np.ndarray


def known(array: np.ndarray) -> Number:
    """A number that nothing was added up for."""
    wide = np.asarray(array).astype(np.float64)
    return Number(wide, np.abs(wide))


def attributes(node: NodeProto) -> dict:
    """The attributes of a node by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def apply(node: NodeProto, inputs: list[Number | None]) -> Number:
    """What one node computes.

    Raises:
        KeyError: an operator that no network here uses.
    """
    given = attributes(node)
    first = inputs[0]
    if node.op_type in MONOTONE:
        value = MONOTONE[node.op_type](first.value, inputs, given)
        return Number(value, np.maximum(first.size, np.abs(value)))
    if node.op_type in MOVES:
        values = MOVES[node.op_type]([n.value for n in inputs], given)
        return Number(values, MOVES[node.op_type]([n.size for n in inputs], given))
    return ARITHMETIC[node.op_type](inputs, given)


def _linear(product):
    """An operator product(x, w) + bias as a function of numbers."""

    def compute(inputs, given):
        x, w = inputs[:2]
        bias = inputs[2] if len(inputs) > 2 else None
        value, size = product(x.value, w.value, given), product(x.size, w.size, given)
        if bias is None:
            return Number(value, size)
        shape = (-1, *[1] * (value.ndim - 2))
        return Number(value + bias.value.reshape(shape), size + bias.size.reshape(shape))

    return compute


def conv(x, w, given):
    """x (N, C, *locations), w (O, C/group, *kernel): every window, then one sum over channels and taps."""
    rank, group = w.ndim - 2, given.get("group", 1)
    strides, dilations = given.get("strides", [1] * rank), given.get("dilations", [1] * rank)
    pads = given.get("pads", [0] * 2 * rank)
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    spans = tuple(d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True))
    steps = (*[slice(None, None, s) for s in strides], *[slice(None, None, d) for d in dilations])
    windows = sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))[(slice(None), slice(None), *steps)]
    windows = windows.reshape(x.shape[0], group, -1, *windows.shape[2:])
    grouped = w.reshape(group, -1, *w.shape[1:])
    found = np.einsum("ngchwij,gocij->ngohw", windows, grouped, optimize=True)
    return found.reshape(x.shape[0], w.shape[0], *found.shape[3:])


def conv_transpose(x, w, given):
    """x with zeros between its locations, convolved by the turned kernel w (C, O/group, *kernel)."""
    rank, group = w.ndim - 2, given.get("group", 1)
    strides, dilations = given.get("strides", [1] * rank), given.get("dilations", [1] * rank)
    pads, extra = given.get("pads", [0] * 2 * rank), given.get("output_padding", [0] * rank)
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True)]
    spread = np.zeros((*x.shape[:2], *sizes))
    spread[(slice(None), slice(None), *[slice(None, None, s) for s in strides])] = x
    reach = [d * (k - 1) for d, k in zip(dilations, w.shape[2:], strict=True)]
    around = [r - p for r, p in zip(reach, pads[:rank], strict=True)]
    around += [r - p + e for r, p, e in zip(reach, pads[rank:], extra, strict=True)]
    turned = np.flip(w, axis=tuple(range(2, 2 + rank)))
    turned = turned.reshape(group, -1, *w.shape[1:]).swapaxes(1, 2).reshape(-1, w.shape[0] // group, *w.shape[2:])
    return conv(spread, turned, {"group": group, "dilations": dilations, "pads": around})


def _gemm(inputs, given):
    a, b, *rest = inputs
    alpha, beta = given.get("alpha", 1.0), given.get("beta", 1.0)
    turned = given.get("transB", 0)
    value, size = (x @ (w.T if turned else w) for x, w in ((a.value, b.value), (a.size, b.size)))
    value, size = alpha * value, abs(alpha) * size
    if rest:
        value, size = value + beta * rest[0].value, size + abs(beta) * rest[0].size
    return Number(value, size)


def _batchnorm(inputs, given):
    x, *rest = inputs
    shape = (-1, *[1] * (x.value.ndim - 2))
    gamma, beta, mean, var = (n.value.reshape(shape) for n in rest)
    scale = gamma / np.sqrt(var + given.get("epsilon", float(np.float32(1e-5))))
    return Number(scale * (x.value - mean) + beta, np.abs(scale) * (x.size + np.abs(mean)) + np.abs(beta))


def _quotient(inputs, _):
    return Number(inputs[0].value / inputs[1].value, inputs[0].size / np.abs(inputs[1].value))


def _max_pool(arrays, given):
    kernel, strides, pads = given["kernel_shape"], given.get("strides", [1, 1]), given.get("pads", [0] * 4)
    around = [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])]
    x = np.pad(arrays[0], around, constant_values=-np.inf)
    return sliding_window_view(x, tuple(kernel), axis=(2, 3))[:, :, :: strides[0], :: strides[1]].max(axis=(4, 5))


ARITHMETIC = {
    "Add": lambda i, _: Number(i[0].value + i[1].value, i[0].size + i[1].size),
    "BatchNormalization": _batchnorm,
    "Conv": _linear(conv),
    "ConvTranspose": _linear(conv_transpose),
    "Div": _quotient,
    "Gemm": _gemm,
    "MatMul": lambda i, _: Number(i[0].value @ i[1].value, i[0].size @ i[1].size),
    "Mul": lambda i, _: Number(i[0].value * i[1].value, i[0].size * i[1].size),
    "Neg": lambda i, _: Number(-i[0].value, i[0].size),
    "Sub": lambda i, _: Number(i[0].value - i[1].value, i[0].size + i[1].size),
}
MONOTONE = {
    "Clip": lambda x, i, _: np.clip(x, i[1].value, i[2].value),
    "LeakyRelu": lambda x, _, a: np.where(x < 0, a.get("alpha", 0.01) * x, x),
    "Relu": lambda x, _i, _: np.maximum(x, 0),
    "Sigmoid": lambda x, _i, _: 1 / (1 + np.exp(-x)),
}
MOVES = {
    "Cast": lambda arrays, _: arrays[0],
    "Concat": lambda arrays, given: np.concatenate(arrays, axis=given["axis"]),
    "Flatten": lambda arrays, _: arrays[0].reshape(arrays[0].shape[0], -1),
    "GlobalAveragePool": lambda arrays, _: arrays[0].mean(axis=(2, 3), keepdims=True),
    "Identity": lambda arrays, _: arrays[0],
    "MaxPool": _max_pool,
    "Transpose": lambda arrays, given: arrays[0].transpose(given["perm"]),
}


def _constants(proto: ModelProto) -> dict[str, Number]:
    return {t.name: known(numpy_helper.to_array(t)) for t in proto.graph.initializer}


def _inputs(node: NodeProto, held: dict[str, Number]) -> list[Number | None]:
    return [held[name] if name else None for name in node.input]


def values(proto: ModelProto, feeds: dict[str, np.ndarray], start_anew: frozenset[str] = frozenset()) -> dict:
    """Every value of the graph as a Number; those in `start_anew` hand on their value as if nothing was added up."""
    held = {**_constants(proto), **{name: known(array) for name, array in feeds.items()}}
    found: dict[str, Number] = {}
    for node in proto.graph.node:
        name = node.output[0]
        found[name] = apply(node, _inputs(node, held))
        held[name] = known(found[name].value) if name in start_anew else found[name]
    return found


def moved(original: ModelProto, folded: ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, float]:
    """For every value that nodes of both models make: how many honest bounds its worst map is off by.

    A value is computed from the original's numbers at the shared values before it. Infinite: another shape, or NaN.
    """
    shared = frozenset(n.output[0] for n in original.graph.node) & {n.output[0] for n in folded.graph.node}
    truth = values(original, feeds, shared)
    held = {**_constants(folded), **{name: known(array) for name, array in feeds.items()}}
    unit = max(ROUNDOFF.get(numpy_helper.to_array(t).dtype, 0.0) for t in original.graph.initializer)
    found: dict[str, float] = {}
    for node in folded.graph.node:
        name = node.output[0]
        made = _attempt(node, held)
        if name in shared:
            found[name] = float("inf") if made is None else _bounds(truth[name], made.value, unit)
            held[name] = known(truth[name].value)
        elif made is not None:
            held[name] = made
    return found


def _attempt(node: NodeProto, held: dict[str, Number]) -> Number | None:
    """What a node computes; None where shapes do not fit, or did not before it."""
    if any(name and name not in held for name in node.input):
        return None
    try:
        return apply(node, _inputs(node, held))
    except ValueError:
        return None


def _bounds(expected: Number, found: np.ndarray, unit: float) -> float:
    """The largest difference of a map in units of its own largest honest bound."""
    if expected.value.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    axes = tuple(axis for axis in range(found.ndim) if axis != 1)
    difference, size = (part.max(axis=axes) for part in (np.abs(found - expected.value), expected.size))
    return float(np.max(difference / (unit * np.where(size > 0, size, 1.0)), initial=0.0))
