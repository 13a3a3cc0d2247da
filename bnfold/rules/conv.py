"""Conv takes a map in by its output channels (pull) or by its input channels (push).

    before:  c = Conv(x, W, b)               y = BatchNormalization(c, gamma, beta, mean, var)
    after:   y = Conv(x, W', b')

    s[o] * (sum_k W[o, k] x[k] + b[o]) + t[o] = sum_k (s[o] W[o, k]) x[k] + (s[o] b[o] + t[o])

so W'[o] = s[o] W[o] and b' = s b + t. This holds for any rank, group, stride, dilation and padding: they choose
which x are summed, never which o they belong to. W is (O, I/group, *kernel), b is (O,).

    before:  n = BatchNormalization(x, gamma, beta, mean, var)      y = Conv(n, W, b)
    after:   y = Conv(x, W', b')

    W'[o, j] = W[o, j] s[c],  b'[o] = b[o] + sum_j,k W[o, j, k] t[c],  c = (the group of o) * I/group + j.

A padded zero is zero before and after the scale, so the scale passes any padding; where padding is read, the shift
would have to be there too, and is not. Source: ONNX Conv-1, -11, -22; Jacob et al. 2018, eq. 14 (arXiv 1712.05877).
"""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.edits import Edit
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, label, text_attribute
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.weights import Weight, dead_maps, read_bias, read_weight, set_bias
from bnfold.rules.windows import reads_padding
from bnfold.text import plural


def pull(facts: GraphFacts, index: int, affine: ChannelAffine, _output: int) -> Step | Refusal:
    """W' = s W per output channel, b' = s b + t; each rounded once into W's type."""
    node = facts.nodes[index]
    read = _read(facts, index, node)
    if isinstance(read, Refusal):
        return read
    weight, bias = read
    maps = weight.shape[0]
    along = affine.along(1, maps)
    if along is None:
        return misfit(node, weight, affine, maps)
    edits = weight.times(along.scale.reshape(-1, *[1] * (len(weight.shape) - 1)), 0)
    if isinstance(edits, Refusal):
        return edits
    return absorbed(node, index, along, edits, weight, bias)


def absorbed(
    node: NodeProto, index: int, along: ChannelAffine, edits: tuple[Edit, ...], weight: Weight, bias: Weight | None
) -> Step | Refusal:
    """The step of an absorber with its bias (O,) at input 2, whose weight `edits` has scaled already."""
    if bias is not None and along.only_scales:
        more = bias.times(along.scale, 0)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            new = along.shift if bias is None else along.scale * bias.exact() + along.shift
        more = set_bias(node, index, 2, old=bias, new=new, weight=weight)
    if isinstance(more, Refusal):
        return more
    frozen = (*weight.frozen, *(bias.frozen if bias is not None else ()))
    return Step((*edits, *more), absorbs=True, frozen=frozen, notes=dead_maps(node, along.scale))


def push(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """W' = W s per input channel, b' = b + W t; the shift only where no padding is read."""
    node = facts.nodes[index]
    if set(changes) != {0}:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"it is the weight or bias of {label(node)}", label(node))
    read = _read(facts, index, node)
    if isinstance(read, Refusal):
        return read
    weight, bias = read
    group = int_attribute(node, "group", 1)
    maps = weight.shape[1] * group
    along = changes[0].along(1, maps)
    if along is None or group < 1 or weight.shape[0] % group:
        return misfit(node, weight, changes[0], maps)
    if along.shift.any() and reads_padding(facts, index, weight.shape[2:]):
        message = f"{label(node)} pads its input with zeros, which the shift would have to reach"
        return Refusal(Code.SHIFT_MEETS_PADDING, message, label(node))
    edits = weight.times(_spread(along.scale, weight.shape, group), 1)
    if isinstance(edits, Refusal):
        return edits
    if along.only_scales:
        return Step(edits, absorbs=True, frozen=weight.frozen)
    reached = weight.exact() * _spread(along.shift, weight.shape, group)
    return raised(node, index, reached.sum(axis=tuple(range(1, len(weight.shape)))), edits, weight, bias)


def raised(
    node: NodeProto, index: int, reach: Float64Array, edits: tuple[Edit, ...], weight: Weight, bias: Weight | None
) -> Step | Refusal:
    """The step of an absorber whose bias (O,) at input 2 grows by `reach`, and whose weight `edits` has scaled."""
    new = reach if bias is None else reach + bias.exact()
    more = set_bias(node, index, 2, old=bias, new=new, weight=weight)
    if isinstance(more, Refusal):
        return more
    frozen = (*weight.frozen, *(bias.frozen if bias is not None else ()))
    return Step((*edits, *more), absorbs=True, frozen=frozen)


def _spread(values: Float64Array, shape: tuple[int, ...], group: int) -> Float64Array:
    """Values per input channel, laid out against W: (1, I, 1, ...), or (O, I/group, 1, ...) with groups."""
    ones = [1] * (len(shape) - 2)
    if group == 1:
        return values.reshape(1, -1, *ones)
    return np.repeat(values.reshape(group, -1), shape[0] // group, axis=0).reshape(shape[0], shape[1], *ones)


def _read(facts: GraphFacts, index: int, node: NodeProto) -> tuple[Weight, Weight | None] | Refusal:
    """The weight and the bias (O,)."""
    weight = read_weight(facts, index, 1)
    if isinstance(weight, Refusal):
        return weight
    if facts.op(index) != "Conv" and (text_attribute(node, "activation", "") or any(node.input[3:])):
        return Refusal(Code.ACTIVATION_BETWEEN, f"{label(node)} has an activation inside", label(node))
    bias = read_bias(facts, index, 2)
    if isinstance(bias, Refusal):
        return bias
    if len(weight.shape) < 3:
        return Refusal(Code.SHAPE_MISMATCH, f"{label(node)} has a weight of shape {weight.shape}", label(node))
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        message = f"the bias of {label(node)} has shape {bias.shape} and type {bias.dtype}"
        return Refusal(Code.SHAPE_MISMATCH, message, label(node))
    return weight, bias


def misfit(node: NodeProto, weight: Weight, affine: ChannelAffine, maps: int, axis: int = 1) -> Refusal:
    """Why a map does not lie along the channels of `node`, which are axis `axis` of the value at issue."""
    at = label(node)
    if affine.axes == (axis,):
        message = f"{at} has a weight of shape {weight.shape}, the map is for {plural(affine.maps, 'map')}"
        return Refusal(Code.SHAPE_MISMATCH, message, at)
    varies = "axis" if len(affine.axes) == 1 else "axes"
    places = ", ".join(map(str, affine.axes))
    message = f"seen from {at} the map varies along {varies} {places}, its {plural(maps, 'channel')} are axis {axis}"
    return Refusal(Code.NOT_PER_MAP, message, at)
