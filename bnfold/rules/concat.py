"""Concat carries a map to all its branches: each gets its slice.

    before:  a = Conv(x, U)      b = Conv(x, V)      y = BatchNormalization(Concat <axis = 1> (a, b), ...)
    after:   a = Conv(x, U')     b = Conv(x, V')     y = Concat <axis = 1> (a, b)

affine([a, b]) = [affine_a(a), affine_b(b)]: along the axis of the Concat each branch gets its part of scale and
shift; a map that does not span that axis goes to all branches as it is. Pushed, the parts are laid end to end,
with s = 1 and t = 0 for the branches that do not change. Source: ONNX Concat-1 (axis 1 by default), -4, -11, -13.
"""

from collections.abc import Mapping

import numpy as np

from bnfold.affine import IDENTITY, ChannelAffine, TooManyMapsError
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute
from bnfold.parameters import axis_of
from bnfold.refusals import Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, length_along, mismatch, unknown


def pull_concat(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask every input, each for its slice of the map."""
    del output
    affine = affine.reduced()
    slots = range(len(facts.nodes[index].input))
    axis = _axis(facts, index) if affine.axes else None
    if affine.axes and axis is None:
        return unknown(facts, index, "the rank")
    if axis is None or axis not in affine.axes:
        return Step(asks=tuple((slot, affine) for slot in slots))
    lengths = [length_along(facts, name, axis) for name in facts.nodes[index].input]
    total = affine.sizes()[axis]
    if lengths.count(None) == 1:
        lengths[lengths.index(None)] = total - sum(length for length in lengths if length is not None)
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return unknown(facts, index, f"the size of an input along axis {axis}")
    if sum(known) != total or min(known) < 0:
        return mismatch(facts, index)
    starts = np.cumsum([0, *known])
    parts = [affine.take(axis, np.arange(starts[slot], starts[slot + 1])).reduced() for slot in slots]
    return Step(asks=tuple(enumerate(parts)))


def push_concat(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand on the maps of all inputs, laid end to end."""
    names = facts.nodes[index].input
    first = next(iter(changes.values())).reduced()
    alike = len(changes) == len(names) and all(part.equals(first) for part in changes.values())
    axis = _axis(facts, index) if first.axes or not alike else None
    if alike and axis not in first.axes and (axis is not None or not first.axes):
        return carried(first)
    if axis is None:
        return unknown(facts, index, "the rank")
    parts: list[ChannelAffine] = []
    lengths: list[int] = []
    for slot, name in enumerate(names):
        own = changes[slot].reduced() if slot in changes else IDENTITY
        length = own.sizes().get(axis, length_along(facts, name, axis))
        if length is None:
            return unknown(facts, index, f"the size of an input along axis {axis}")
        if own is IDENTITY and parts and parts[-1] is IDENTITY:
            lengths[-1] += length
        else:
            parts.append(own)
            lengths.append(length)
    try:
        return carried(ChannelAffine.join(parts, axis, lengths))
    except TooManyMapsError:
        raise
    except ValueError:
        return mismatch(facts, index)


def _axis(facts: GraphFacts, index: int) -> int | None:
    """The axis, counted from the front; None where that takes a rank that is not known."""
    axis = int_attribute(facts.nodes[index], "axis", 1)
    rank = facts.shapes.rank(facts.nodes[index].output[0]) if axis < 0 else None
    return axis_of(axis, rank) if rank is not None else axis if axis >= 0 else None
