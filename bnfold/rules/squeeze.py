"""Squeeze and Unsqueeze carry any map: axes of size 1 go or come, the others get other numbers.

    before:  c = Conv(x, W)      q = Squeeze(c, [2])       y = BatchNormalization(q, ...)
    after:   c = Conv(x, W')     y = Squeeze(c, [2])

An axis of size 1 has one map, so that a reduced map spans none of those. Axis a of the longer shape is axis
a - (how many of the axes of size 1 stand before it) of the shorter. Squeeze's pull is Unsqueeze's push and the
other way round. Source: ONNX Squeeze-1, -11, -13 (axes an input from 13 on), Unsqueeze-1, -11, -13.
"""

from collections.abc import Mapping

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.parameters import ABSENT, axis_of, ints
from bnfold.refusals import Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data, frozen_parameters, mismatch, unknown
from bnfold.shapes import ONE


def pull_squeeze(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input, whose shape has the axes of size 1."""
    del output
    return _moved(facts, index, affine.reduced(), squeezes=True, pulls=True)


def push_squeeze(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the map on without the axes of size 1."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _moved(facts, index, affine, squeezes=True, pulls=False)


def pull_unsqueeze(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input, which does not have the axes of size 1."""
    del output
    return _moved(facts, index, affine.reduced(), squeezes=False, pulls=True)


def push_unsqueeze(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the map on, past the axes of size 1."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _moved(facts, index, affine, squeezes=False, pulls=False)


def _moved(facts: GraphFacts, index: int, affine: ChannelAffine, *, squeezes: bool, pulls: bool) -> Step | Refusal:
    if not affine.axes:
        return carried(affine, pulls=pulls)
    single = _single(facts, index, squeezes=squeezes)
    if isinstance(single, Refusal):
        return single
    to_longer = squeezes == pulls
    if not to_longer and single.intersection(affine.axes):
        return mismatch(facts, index)
    places = {axis: _longer(axis, single) if to_longer else _shorter(axis, single) for axis in affine.axes}
    return carried(affine.placed(places), pulls=pulls, frozen=frozen_parameters(facts, index))


def _single(facts: GraphFacts, index: int, *, squeezes: bool) -> frozenset[int] | Refusal:
    """The axes of size 1 that go or come, counted from the front of the longer shape."""
    axes = ints(facts, index, "axes", 1)
    shape = facts.shapes.of(facts.only_input(index))
    if axes is ABSENT or not axes:
        implied = squeezes and axes is ABSENT and shape is not None and all(dim.size is not None for dim in shape)
        if not implied or shape is None:
            return unknown(facts, index, "the list of axes")
        return frozenset(axis for axis, dim in enumerate(shape) if dim == ONE)
    if min(axes) >= 0:
        return frozenset(axes)
    if shape is None:
        return unknown(facts, index, "the rank of the input")
    places = [axis_of(axis, len(shape) if squeezes else len(shape) + len(axes)) for axis in axes]
    known = frozenset(place for place in places if place is not None)
    return known if None not in places else mismatch(facts, index)


def _longer(axis: int, single: frozenset[int]) -> int:
    for place in sorted(single):
        axis += place <= axis
    return axis


def _shorter(axis: int, single: frozenset[int]) -> int:
    return axis - sum(place < axis for place in single)
