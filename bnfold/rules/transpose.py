"""Transpose carries any map: the axes get other numbers.

    before:  c = Conv(x, W)      h = Transpose <perm = [0, 2, 3, 1]> (c)      y = Mul(h, s)       s is (C,)
    after:   c = Conv(x, W')     y = Transpose <perm = [0, 2, 3, 1]> (c)

Axis a of the output is axis perm[a] of the input, so pull sends the axes of the map by a -> perm[a], and push
by perm[a] -> a. Without perm the order is reversed. Source: ONNX Transpose-1, -13, -21.
"""

from collections.abc import Mapping

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.nodes import ints_attribute
from bnfold.refusals import Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data, mismatch, unknown


def pull_transpose(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input, by the input's numbers of the axes."""
    del output
    return _moved(facts, index, affine.reduced(), pulls=True)


def push_transpose(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the map on, by the output's numbers of the axes."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _moved(facts, index, affine, pulls=False)


def _moved(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> Step | Refusal:
    if not affine.axes:
        return carried(affine, pulls=pulls)
    order = ints_attribute(facts.nodes[index], "perm")
    if order is None:
        rank = facts.shapes.rank(facts.only_input(index))
        if rank is None:
            return unknown(facts, index, "the rank of the input")
        order = tuple(reversed(range(rank)))
    places = dict(enumerate(order)) if pulls else {axis: place for place, axis in enumerate(order)}
    if not places.keys() >= set(affine.axes):
        return mismatch(facts, index)
    return carried(affine.placed(places), pulls=pulls)
