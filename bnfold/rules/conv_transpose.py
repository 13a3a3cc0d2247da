"""ConvTranspose takes a map in; its weight is (C_in, C_out/group, *kernel), the group along both.

    pull:  W'[j, m] = W[j, m] s[o],  b' = s b + t           o = (the group of j) * C_out/group + m
    push:  W'[j, m] = W[j, m] s[j],  b'[o] = b[o] + sum over the j of the group of o, and k, of W[j, m, k] t[j]

Positions that only output_padding makes hold the bias alone, and s b + t is right there too. The shift of a push
must reach every output position by the whole kernel: per axis stride 1, both pads >= dilation * (kernel - 1), no
output_padding. (kernel = stride is not uniform: each position is reached by another tap.)
Source: ONNX ConvTranspose-1, -11, -22.
"""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.graph import GraphFacts
from bnfold.nodes import geometry, int_attribute, ints_attribute, label, text_attribute
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.conv import absorbed, misfit, raised
from bnfold.rules.weights import Weight, read_bias, read_weight


def pull(facts: GraphFacts, index: int, affine: ChannelAffine, _output: int) -> Step | Refusal:
    """W' = W s along the output channels, axis 1 within each group; b' = s b + t."""
    node = facts.nodes[index]
    read = _read(facts, index, node)
    if isinstance(read, Refusal):
        return read
    weight, bias, group = read
    maps = weight.shape[1] * group
    along = affine.along(1, maps)
    if along is None:
        return misfit(node, weight, affine, maps)
    factor = np.repeat(along.scale.reshape(group, -1), weight.shape[0] // group if group > 1 else 1, axis=0)
    edits = weight.times(factor.reshape(*factor.shape, *[1] * (len(weight.shape) - 2)), 1)
    return edits if isinstance(edits, Refusal) else absorbed(node, index, along, edits, weight, bias)


def push(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """W' = W s along axis 0; the shift only where every position sees the whole kernel."""
    node = facts.nodes[index]
    if set(changes) != {0}:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"it is the weight or bias of {label(node)}", label(node))
    read = _read(facts, index, node)
    if isinstance(read, Refusal):
        return read
    weight, bias, group = read
    along = changes[0].along(1, weight.shape[0])
    if along is None:
        return misfit(node, weight, changes[0], weight.shape[0])
    if along.shift.any() and not _is_uniform(node, weight.shape[2:]):
        message = (
            f"{label(node)} reaches its output positions by different taps, so the shift is not the same for all"
        )
        return Refusal(Code.SHIFT_MEETS_PADDING, message, label(node))
    edits = weight.times(along.scale.reshape(-1, *[1] * (len(weight.shape) - 1)), 0)
    if isinstance(edits, Refusal):
        return edits
    if along.only_scales:
        return Step(edits, absorbs=True, frozen=weight.frozen)
    return raised(node, index, _reach(weight, along.shift, group), edits, weight, bias)


def _reach(weight: Weight, shift: Float64Array, group: int) -> Float64Array:
    """What the shift adds to each output channel: (C_out,)."""
    taps = weight.exact().reshape(group, weight.shape[0] // group, weight.shape[1], -1)
    reach: Float64Array = np.einsum("gjmk,gj->gm", taps, shift.reshape(group, -1)).ravel()
    return reach


def _is_uniform(node: NodeProto, kernel: tuple[int, ...]) -> bool:
    """Whether every output position is reached by every tap of the kernel."""
    if text_attribute(node, "auto_pad", "NOTSET") != "NOTSET" or ints_attribute(node, "output_shape"):
        return False
    spatial = len(kernel)
    shape, extra = geometry(node, spatial), ints_attribute(node, "output_padding") or (0,) * spatial
    if shape is None:
        return False
    strides, dilations, pads = shape
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    covered = all(pads[i] >= reach[i] and pads[spatial + i] >= reach[i] for i in range(spatial))
    return covered and all(s == 1 for s in strides) and not any(extra)


def _read(facts: GraphFacts, index: int, node: NodeProto) -> tuple[Weight, Weight | None, int] | Refusal:
    """The weight, the bias (C_out,), the number of groups."""
    weight = read_weight(facts, index, 1)
    if isinstance(weight, Refusal):
        return weight
    bias, group = read_bias(facts, index, 2), int_attribute(node, "group", 1)
    if isinstance(bias, Refusal):
        return bias
    if len(weight.shape) < 3 or group < 1 or weight.shape[0] % group:
        message = f"{label(node)} has a weight of shape {weight.shape} and {group} groups"
        return Refusal(Code.SHAPE_MISMATCH, message, label(node))
    if bias is not None and (bias.shape != (weight.shape[1] * group,) or bias.dtype != weight.dtype):
        message = f"the bias of {label(node)} has shape {bias.shape} and type {bias.dtype}"
        return Refusal(Code.SHAPE_MISMATCH, message, label(node))
    return weight, bias, group
