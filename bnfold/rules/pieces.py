"""Split, Slice and Gather cut pieces out: a piece's map is the whole's at the places that were kept.

    before:  c = Conv(x, W)      a, b = Split <axis = 1> (c)      y = BatchNormalization(a, ...)
    after:   c = Conv(x, W')     y, b = Split <axis = 1> (c)      W' = W in the maps of b

Pushed, each piece gets the part of scale and shift that stands at its places. Pulled, the map of a piece is laid
into s = 1, t = 0 for everything else, along the axis that is cut. What a Slice or Gather drops may become
anything, so along other axes a map passes as it is; the other pieces of a Split must stay what they are.
A place that a Gather takes twice needs the same map in both copies. Indices must be constant where the map spans
their axis; indices of rank q put q axes in its place.
Source: ONNX Split-1, -2, -11, -13, -18; Slice-1, -10, -11, -13; Gather-1, -11, -13.
"""

from collections.abc import Mapping

import numpy as np

from bnfold.affine import IDENTITY, ChannelAffine, IntArray
from bnfold.graph import GraphFacts
from bnfold.parameters import ABSENT, ints, slices, split_lengths
from bnfold.refusals import Refusal
from bnfold.rules import Step, moves


def pull_split(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for the piece's map at the piece's places, and nothing elsewhere."""
    outputs = len(facts.nodes[index].output)
    if outputs == 1:
        return moves.carried(affine, pulls=True)
    axis, lengths = moves.axis_attribute(facts, index, 0), split_lengths(facts, index)
    if axis is None or lengths is None:
        return moves.unknown(facts, index, "the rank of the input" if axis is None else "the length of the pieces")
    parts = [affine.reduced() if place == output else IDENTITY for place in range(outputs)]
    if min(lengths) < 0 or parts[output].sizes().get(axis, lengths[output]) != lengths[output]:
        return moves.mismatch(facts, index)
    return moves.carried(
        ChannelAffine.join(parts, axis, lengths), pulls=True, frozen=moves.frozen_parameters(facts, index)
    )


def push_split(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand on to each piece its part."""
    affine = moves.changed_data(facts, index, changes)
    if isinstance(affine, Refusal):
        return affine
    outputs = range(len(facts.nodes[index].output))
    axis = moves.axis_attribute(facts, index, 0) if affine.axes else None
    if affine.axes and axis is None:
        return moves.unknown(facts, index, "the rank of the input")
    parts = [affine for _ in outputs]
    frozen: tuple[str, ...] = ()
    if axis is not None and axis in affine.axes:
        lengths, frozen = split_lengths(facts, index), moves.frozen_parameters(facts, index)
        if lengths is None:
            return moves.unknown(facts, index, "the length of the pieces")
        if sum(lengths) != affine.sizes()[axis] or min(lengths) < 0:
            return moves.mismatch(facts, index)
        ends = np.cumsum(lengths)
        parts = [affine.take(axis, np.arange(ends[i] - lengths[i], ends[i])).reduced() for i in outputs]
    return Step(asks=tuple((i, part) for i, part in enumerate(parts) if not part.is_identity), frozen=frozen)


def pull_slice(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for the map at the places that are kept."""
    del output
    return _sliced(facts, index, affine.reduced(), pulls=True)


def push_slice(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand on what is kept of the map."""
    affine = moves.changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _sliced(facts, index, affine, pulls=False)


def _sliced(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> Step | Refusal:
    if not affine.axes:
        return moves.carried(affine, pulls=pulls)
    cuts = slices(facts, index)
    if cuts is None:
        return moves.unknown(facts, index, "what is kept, or the rank of the input,")
    for axis, cut in cuts.items():
        if axis in affine.axes and cut != slice(0, None, 1):
            kept = _kept(facts, index, affine, axis, cut, pulls=pulls)
            if isinstance(kept, Refusal):
                return kept
            affine = kept
    return moves.carried(affine, pulls=pulls, frozen=moves.frozen_parameters(facts, index))


def pull_gather(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for the map at the places that are taken."""
    del output
    return _gathered(facts, index, affine.reduced(), pulls=True)


def push_gather(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand on what is taken of the map."""
    affine = moves.changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _gathered(facts, index, affine, pulls=False)


def _gathered(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> Step | Refusal:
    if not affine.axes:
        return moves.carried(affine, pulls=pulls)
    axis, rank = moves.axis_attribute(facts, index, 0), _rank_of_indices(facts, index)
    if axis is None or rank is None:
        return moves.unknown(facts, index, "the rank of the " + ("input" if axis is None else "indices"))
    frozen: tuple[str, ...] = ()
    if set(affine.axes).intersection(range(axis, axis + rank) if pulls else [axis]):
        picked = ints(facts, index, "", 1)
        if picked is None or picked is ABSENT:
            return moves.unknown(facts, index, "the list of indices")
        if rank > 1:
            return moves.not_per_map(facts, index, f"spreads the maps over {rank} axes")
        kept = _kept(facts, index, affine, axis, list(picked), pulls=pulls)
        if isinstance(kept, Refusal):
            return kept
        affine, frozen = kept, moves.frozen_parameters(facts, index)
    first, more = (axis + rank, 1 - rank) if pulls else (axis + 1, rank - 1)
    places = {a: a + more if a >= first else a for a in affine.axes}
    return moves.carried(affine.placed(places), pulls=pulls, frozen=frozen)


def _kept(
    facts: GraphFacts, index: int, affine: ChannelAffine, axis: int, cut: slice | list[int], *, pulls: bool
) -> ChannelAffine | Refusal:
    """The map of what is kept along an axis (push), or that of the whole of which it is kept (pull)."""
    size = affine.sizes()[axis]
    length = moves.length_along(facts, facts.only_input(index), axis) if pulls else size
    if length is None:
        return moves.unknown(facts, index, f"the size of the input along axis {axis}")
    try:
        places: IntArray = np.arange(length)[cut]
    except IndexError:
        return moves.mismatch(facts, index)
    if not pulls:
        return affine.take(axis, places).reduced()
    if len(places) != size:
        return moves.mismatch(facts, index)
    twice = "takes a map twice, and the copies are to get different parameters"
    return moves.scattered(affine, axis, places, length) or moves.not_per_map(facts, index, twice)


def _rank_of_indices(facts: GraphFacts, index: int) -> int | None:
    name = facts.nodes[index].input[1]
    found = facts.constants.find(name)
    return facts.shapes.rank(name) if found is None else len(found.tensor.shape)
