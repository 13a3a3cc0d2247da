"""Expand and Tile make copies of what they are fed; a map passes where the copies are to get the same.

    before:  c = Conv(x, W)      e = Expand(c, [2, 8, 7, 7])      y = BatchNormalization(e, ...)
    after:   c = Conv(x, W')     y = Expand(c, [2, 8, 7, 7])

Along an axis that is not copied, scale and shift pass. Along one that is, push repeats the parameters as Tile
repeats the data, and pull needs parameters that repeat: r copies of c maps, tile(s, r) = tile(s', r) only if
s'[i + c] = s'[i]. Expand copies axes of size 1 and puts new ones in front. Source: ONNX Expand-8, -13; Tile-6, -13.
"""

from collections.abc import Mapping

import numpy as np

from bnfold.affine import ChannelAffine, check_maps
from bnfold.graph import GraphFacts
from bnfold.parameters import ABSENT, ints
from bnfold.refusals import Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data, frozen_parameters, mismatch, not_per_map, unknown
from bnfold.shapes import ONE


def pull_expand(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input, if the map spans no axis that is copied."""
    del output
    affine = affine.reduced()
    if not affine.axes:
        return carried(affine, pulls=True)
    before, after = facts.shapes.of(facts.only_input(index)), facts.shapes.of(facts.nodes[index].output[0])
    if before is None or after is None:
        return unknown(facts, index, "the shape of the input or of the output")
    added = len(after) - len(before)
    for axis in affine.axes:
        dim = before[axis - added] if added <= axis < len(after) else ONE
        if dim == ONE:
            return not_per_map(facts, index, f"copies axis {axis}, and the map is not the same for all copies")
        if dim.size is None and dim != after[axis]:
            return unknown(facts, index, f"whether axis {axis} is copied by Expand, as its size in the input")
    return carried(affine.placed({axis: axis - added for axis in affine.axes}), pulls=True)


def push_expand(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the map on: what it spans is longer than 1, so it is not copied."""
    affine = changed_data(facts, index, changes)
    if isinstance(affine, Refusal) or not affine.axes:
        return affine if isinstance(affine, Refusal) else carried(affine)
    before, after = facts.shapes.rank(facts.only_input(index)), facts.shapes.rank(facts.nodes[index].output[0])
    if before is None or after is None:
        return unknown(facts, index, "the rank of the input or of the output")
    return carried(affine.placed({axis: axis + after - before for axis in affine.axes}))


def pull_tile(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for the map of one copy, if all copies have the same."""
    del output
    affine = affine.reduced()
    if not affine.axes:
        return carried(affine, pulls=True)
    repeats = _repeats(facts, index, affine)
    if isinstance(repeats, Refusal):
        return repeats
    for axis in affine.axes:
        length, rest = divmod(affine.sizes()[axis], repeats[axis])
        if rest:
            return mismatch(facts, index)
        first = affine.take(axis, np.arange(length))
        again = first.take(axis, np.tile(np.arange(length), repeats[axis]))
        if not (np.array_equal(again.scale, affine.scale) and np.array_equal(again.shift, affine.shift)):
            return not_per_map(facts, index, f"copies axis {axis}, and the map is not the same for all copies")
        affine = first
    return carried(affine.reduced(), pulls=True, frozen=frozen_parameters(facts, index))


def push_tile(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the map on, its parameters repeated like the data."""
    affine = changed_data(facts, index, changes)
    if isinstance(affine, Refusal) or not affine.axes:
        return affine if isinstance(affine, Refusal) else carried(affine)
    repeats = _repeats(facts, index, affine)
    if isinstance(repeats, Refusal):
        return repeats
    for axis in affine.axes:
        check_maps([affine.sizes()[axis], repeats[axis]])
        affine = affine.take(axis, np.tile(np.arange(affine.sizes()[axis]), repeats[axis]))
    return carried(affine, frozen=frozen_parameters(facts, index))


def _repeats(facts: GraphFacts, index: int, affine: ChannelAffine) -> tuple[int, ...] | Refusal:
    """How many copies along each axis; Tile-1 names one axis in a third input."""
    repeats = ints(facts, index, "", 1)
    if repeats is None or repeats is ABSENT or len(facts.nodes[index].input) > 2:
        return unknown(facts, index, "the number of copies")
    if affine.axes[-1] >= len(repeats) or min(repeats) < 1:
        return mismatch(facts, index)
    return repeats
