"""ReduceMean, ReduceSum, ReduceMax and ReduceMin over other axes than those of the map carry it.

    before:  c = Conv(x, W)          m = ReduceMean <keepdims = 0> (c, axes = [2, 3])      y = Mul(m, s)
    after:   c_folded = Conv(x, W')      y = ReduceMean <keepdims = 0> (c_folded, axes = [2, 3])

    mean(s x + t) = s mean(x) + t        sum(s x) = s sum(x)        max(s x + t) = s max(x) + t  where s >= 0

s and t are the same for all that is taken together. Without keepdims the axes behind get other numbers.
A sum would take the shift in once for each element, so only scale passes it.
Source: ONNX ReduceMean-1, -11, -13, -18 and its like; the axes are an input from 13 (ReduceSum) or 18 on.
"""

from collections.abc import Mapping

from bnfold.affine import ChannelAffine
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, label
from bnfold.parameters import reduced_axes
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data, frozen_parameters, mismatch, unknown


def pull(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input, by the input's numbers of the axes."""
    del output
    return _passed(facts, index, affine.reduced(), pulls=True)


def push(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the map on, by the output's numbers of the axes."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _passed(facts, index, affine, pulls=False)


def _passed(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> Step | Refusal:
    node, at = facts.nodes[index], label(facts.nodes[index])
    if node.op_type in ("ReduceMax", "ReduceMin") and (affine.scale < 0).any():
        return Refusal(Code.NEGATIVE_SCALE, f"a negative scale would swap maxima and minima at {at}", at)
    if node.op_type == "ReduceSum" and not affine.only_scales:
        code = Code.PRODUCER_CANNOT_ABSORB if pulls else Code.CONSUMER_CANNOT_ABSORB
        return Refusal(code, f"{at} would sum the shift up once for each element", at)
    computes = node.op_type in ("ReduceMean", "ReduceSum")
    if not affine.axes:
        return Step(asks=carried(affine, pulls=pulls).asks, computes=computes)
    moved = _renumbered(facts, index, affine, pulls=pulls)
    if isinstance(moved, Refusal):
        return moved
    step = carried(moved, pulls=pulls, frozen=frozen_parameters(facts, index))
    return Step(asks=step.asks, frozen=step.frozen, computes=computes)


def _renumbered(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> ChannelAffine | Refusal:
    """The map by the axes of the other side."""
    node, rank = facts.nodes[index], facts.shapes.rank(facts.only_input(index))
    gone = reduced_axes(facts, index)
    if rank is None or gone is None:
        return unknown(facts, index, "which axes are reduced, or the rank of the input,")
    keeps = bool(int_attribute(node, "keepdims", 1))
    inner = [axis for axis in range(rank) if keeps or axis not in gone]  # output axis to input axis
    places = dict(enumerate(inner)) if pulls else {axis: place for place, axis in enumerate(inner)}
    taken = [places.get(axis) for axis in affine.axes] if pulls else affine.axes
    if None in taken:
        return mismatch(facts, index)
    if not gone.isdisjoint(taken):
        message = f"{label(node)} takes together what the map treats differently"
        return Refusal(Code.NOT_PER_MAP, message, label(node))
    return affine.placed(places)
