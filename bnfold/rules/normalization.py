"""InstanceNormalization, GroupNormalization and LayerNormalization end in a scale and a bias, which take a map in.

    before:  n = InstanceNormalization (x, gamma, beta)       y = BatchNormalization (n, ...)
    after:   y = InstanceNormalization (x, s gamma, s beta + t)

    s (gamma z + beta) + t = (s gamma) z + (s beta + t)

The statistics in front of z come from the input of every run, so nothing passes to the input.
Source: ONNX InstanceNormalization-6, -22; GroupNormalization-21 (in -18 the scale is per group, and cannot take a
map in); LayerNormalization-17 with a scale along the last axis.
"""

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, label
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.weights import dead_maps, read_bias, read_weight, set_bias


def pull_channels(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Scale and bias are (C,), along axis 1."""
    if facts.op(index) == "GroupNormalization" and facts.opset() < 21:
        at = label(facts.nodes[index])
        return Refusal(Code.BEHIND_NORMALIZATION, f"{at} has one scale for each group, not for each map", at)
    return _pull(facts, index, affine, 1, output)


def pull_layer(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Scale and bias lie along the last axis."""
    node = facts.nodes[index]
    rank = facts.shapes.rank(node.input[0])
    axis = int_attribute(node, "axis", -1)
    if rank is None or axis not in (-1, rank - 1):
        message = f"{label(node)} has a scale that spans several axes, or an input of unknown rank"
        return Refusal(Code.BEHIND_NORMALIZATION, message, label(node))
    return _pull(facts, index, affine, rank - 1, output)


def _pull(facts: GraphFacts, index: int, affine: ChannelAffine, axis: int, output: int) -> Step | Refusal:
    node = facts.nodes[index]
    at = label(node)
    scale = read_weight(facts, index, 1)
    if isinstance(scale, Refusal):
        return Refusal(Code.BEHIND_NORMALIZATION, f"it stands behind {at}: {scale.message}", at)
    bias = read_bias(facts, index, 2)
    if isinstance(bias, Refusal):
        return Refusal(Code.BEHIND_NORMALIZATION, f"it stands behind {at}: {bias.message}", at)
    along = affine.along(axis, scale.shape[0]) if len(scale.shape) == 1 else None
    if along is None or output or (bias is not None and (bias.shape, bias.dtype) != (scale.shape, scale.dtype)):
        message = f"it stands behind {at}, whose scale lies along axis {axis}, and does not vary along that alone"
        return Refusal(Code.BEHIND_NORMALIZATION, message, at)
    edits = scale.times(along.scale, 0)
    if isinstance(edits, Refusal):
        return edits
    with np.errstate(over="ignore", invalid="ignore"):
        new = along.shift if bias is None else along.scale * bias.exact() + along.shift
    more = set_bias(node, index, 2, old=bias, new=new, weight=scale)
    if isinstance(more, Refusal):
        return more
    frozen = (*scale.frozen, *(bias.frozen if bias is not None else ()))
    return Step((*edits, *more), absorbs=True, frozen=frozen, notes=dead_maps(node, along.scale))
