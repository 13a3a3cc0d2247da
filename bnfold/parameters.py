"""Parameters that moved from attributes to inputs over the opsets: axes, pads, scales, shapes.

`Absent` and `None` are different answers: not given at all, and given but not the same in every run.
"""

import enum
from math import prod

import numpy as np

from bnfold.graph import GraphFacts
from bnfold.nodes import floats_attribute, ints_attribute


class Absent(enum.Enum):
    """The parameter is not given; the operator's default holds."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT
MOST_INDICES = 2**24


def ints(facts: GraphFacts, index: int, name: str, slot: int | None = None) -> tuple[int, ...] | Absent | None:
    """The integers of attribute `name`, else of input `slot`; None where that input is not constant."""
    node = facts.nodes[index]
    given = ints_attribute(node, name) if name else None
    if given is not None:
        return given
    if slot is None or len(node.input) <= slot or not node.input[slot]:
        return ABSENT
    found = facts.constants.find(node.input[slot])
    if found is None or (found.overridable and not facts.freeze_inputs):
        return None
    facts.shapes.assumed.update(found.overridable)
    dtype = found.tensor.dtype
    if dtype is None or dtype.kind not in "iu" or prod(found.tensor.shape) > MOST_INDICES:
        return None
    return tuple(int(n) for n in np.ravel(found.tensor.array()))


def floats(facts: GraphFacts, index: int, name: str, slot: int | None = None) -> tuple[float, ...] | Absent | None:
    """The numbers of attribute `name`, else of input `slot`; None where that input is not constant."""
    node = facts.nodes[index]
    given = floats_attribute(node, name) if name else None
    if given is not None:
        return given
    if slot is None or len(node.input) <= slot or not node.input[slot]:
        return ABSENT
    found = facts.constants.find(node.input[slot])
    if found is None or (found.overridable and not facts.freeze_inputs) or found.tensor.dtype is None:
        return None
    facts.shapes.assumed.update(found.overridable)
    return tuple(float(n) for n in np.ravel(found.tensor.exact()))


def axis_of(axis: int, rank: int) -> int | None:
    """A possibly negative axis counted from the front; None where there is no such axis."""
    place = axis + rank if axis < 0 else axis
    return place if 0 <= place < rank else None
