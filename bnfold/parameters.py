"""Parameters that moved from attributes to inputs over the opsets: axes, pads, scales, shapes.

`Absent` and `None` are different answers: not given at all, and given but not the same in every run.
"""

import enum
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from bnfold.constants import Constant
from bnfold.graph import GraphFacts
from bnfold.nodes import floats_attribute, int_attribute, ints_attribute, text_attribute


class Absent(enum.Enum):
    """The parameter is not given; the operator's default holds."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT
MOST_INDICES = 2**24


def ints(facts: GraphFacts, index: int, name: str, slot: int | None = None) -> tuple[int, ...] | Absent | None:
    """The integers of attribute `name`, else of input `slot`; None where that input is not constant."""
    given = ints_attribute(facts.nodes[index], name) if name else None
    if given is not None:
        return given
    held = _held(facts, index, slot)
    if not isinstance(held, Constant):
        return held
    if held.tensor.dtype is None or held.tensor.dtype.kind not in "iu" or prod(held.tensor.shape) > MOST_INDICES:
        return None
    return tuple(int(n) for n in np.ravel(held.tensor.array()))


def floats(facts: GraphFacts, index: int, name: str, slot: int | None = None) -> tuple[float, ...] | Absent | None:
    """The numbers of attribute `name`, else of input `slot`; None where that input is not constant."""
    given = floats_attribute(facts.nodes[index], name) if name else None
    if given is not None:
        return given
    held = _held(facts, index, slot)
    if not isinstance(held, Constant):
        return held
    if held.tensor.dtype is None or prod(held.tensor.shape) > MOST_INDICES:
        return None
    return tuple(float(n) for n in np.ravel(held.tensor.exact()))


def _held(facts: GraphFacts, index: int, slot: int | None) -> Constant | Absent | None:
    """The constant at an input."""
    names = facts.nodes[index].input
    if slot is None or len(names) <= slot or not names[slot]:
        return ABSENT
    found = facts.constants.find(names[slot])
    if found is None or (found.overridable and (facts.shapes.deriving or not facts.freeze_inputs)):
        return None
    return found


def axis_of(axis: int, rank: int) -> int | None:
    """A possibly negative axis counted from the front; None where there is no such axis."""
    place = axis + rank if axis < 0 else axis
    return place if 0 <= place < rank else None


def split_lengths(facts: GraphFacts, index: int) -> tuple[int, ...] | None:
    """How long each piece of a Split is; None where that is not known."""
    node = facts.nodes[index]
    given = ints(facts, index, "split", 1)
    if given is not ABSENT:
        return given if given is not None and len(given) == len(node.output) else None
    x = facts.shapes.of(node.input[0]) if node.input else None
    axis = None if x is None else axis_of(int_attribute(node, "axis", 0), len(x))
    total = None if x is None or axis is None else x[axis].size
    if total is None:
        return None
    each = -(-total // len(node.output))
    return tuple(max(0, min(each, total - each * i)) for i in range(len(node.output)))


def slices(facts: GraphFacts, index: int) -> Mapping[int, slice] | None:
    """What a Slice keeps along each axis that it cuts; None where that is not the same in every run."""
    node = facts.nodes[index]
    rank = facts.shapes.rank(node.input[0]) if node.input else None
    starts, ends = ints(facts, index, "starts", 1), ints(facts, index, "ends", 2)
    axes, steps = ints(facts, index, "axes", 3), ints(facts, index, "", 4)
    if starts is None or starts is ABSENT or ends is None or ends is ABSENT or axes is None or steps is None:
        return None
    axes = tuple(range(len(starts))) if axes is ABSENT else axes
    steps = (1,) * len(starts) if steps is ABSENT else steps
    if rank is None or not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        return None
    cuts: dict[int, slice] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = axis_of(axis, rank)
        if place is None or (step < 0 and (start >= 0 or end >= 0) and min(start, end) < 0 <= max(start, end)):
            return None
        forever = (step > 0 and end >= 2**31 - 1) or (step < 0 and end <= -(2**31) + 1)
        cuts[place] = slice(start, None if forever else end, step)
    return cuts


def reduced_axes(facts: GraphFacts, index: int) -> frozenset[int] | None:
    """The axes that a Reduce operator takes together, counted from the front; None where they are not known."""
    node = facts.nodes[index]
    rank, axes = facts.shapes.rank(node.input[0]), ints(facts, index, "axes", 1)
    if rank is None or axes is None:
        return None
    if axes is ABSENT or not axes:
        nothing = int_attribute(node, "noop_with_empty_axes", 0)
        return frozenset() if nothing else frozenset(range(rank))
    places = [axis_of(axis, rank) for axis in axes]
    return None if None in places else frozenset(place for place in places if place is not None)


def padded(facts: GraphFacts, index: int) -> Mapping[int, tuple[int, int]] | None:
    """How much a Pad adds before and behind along each axis; None where that is not known."""
    node = facts.nodes[index]
    rank = facts.shapes.rank(node.input[0])
    name = "paddings" if facts.opset() < 2 else "pads"
    pads, axes = ints(facts, index, name, 1), ints(facts, index, "", 3)
    if rank is None or pads is None or pads is ABSENT or axes is None:
        return None
    places = [axis_of(axis, rank) for axis in (range(rank) if axes is ABSENT else axes)]
    if None in places or len(pads) != 2 * len(places):
        return None
    half = len(places)
    return {place: (pads[i], pads[half + i]) for i, place in enumerate(places) if place is not None}


def resize_scales(facts: GraphFacts, index: int) -> tuple[float, ...] | None:
    """By how much a Resize or Upsample enlarges each axis; nan where it is not 1 but not known. None: unknown."""
    node = facts.nodes[index]
    x = facts.shapes.of(node.input[0])
    old = facts.op(index) == "Upsample" or facts.opset() < 11
    scales = floats(facts, index, "scales", 1 if old else 2)
    axes = ABSENT if old else ints(facts, index, "axes")
    if x is None or scales is None or axes is None:
        return None
    places = [axis_of(axis, len(x)) for axis in (range(len(x)) if axes is ABSENT else axes)]
    found = [1.0] * len(x)
    if scales is not ABSENT and scales:
        listed: Sequence[float] = scales
    else:
        targets = None if old or len(node.input) < 4 else facts.shapes.numbers(node.input[3])
        if targets is None or len(targets) != len(places) or None in places:
            return None
        fits = text_attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
        pairs = zip(places, targets, strict=True)
        listed = [1.0 if fits and target == x[place or 0] else float("nan") for place, target in pairs]
    if len(listed) != len(places):
        return None
    for place, scale in zip(places, listed, strict=True):
        if place is None:
            return None
        found[place] = scale
    return tuple(found)
