"""What the carriers share: reading what changes, handing a map on, and saying why that is not possible."""

from collections.abc import Mapping, Sequence

import numpy as np

from bnfold.affine import ChannelAffine, IntArray, check_maps
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, label
from bnfold.parameters import axis_of
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step


def changed_data(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> ChannelAffine | Refusal:
    """The map before input 0, reduced; refused where a parameter (a shape, indices) would change."""
    if changes.keys() == {0}:
        return changes[0].reduced()
    at = label(facts.nodes[index])
    return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"{at} reads the value as a parameter, not as data", at)


def carried(affine: ChannelAffine, *, pulls: bool = False, frozen: tuple[str, ...] = ()) -> Step:
    """The map goes on: up to input 0, or down from output 0 if it is not the identity."""
    done = not pulls and affine.is_identity
    return Step(asks=() if done else ((0, affine),), frozen=frozen)


def frozen_parameters(facts: GraphFacts, index: int) -> tuple[str, ...]:
    """The overridable initializers behind the inputs that are no data."""
    return overridable_at(facts, index, range(1, len(facts.nodes[index].input)))


def overridable_at(facts: GraphFacts, index: int, slots: Sequence[int]) -> tuple[str, ...]:
    """The overridable initializers behind these inputs of the node."""
    inputs = facts.nodes[index].input
    found = [facts.constants.find(inputs[slot]) for slot in slots if slot < len(inputs) and inputs[slot]]
    return tuple(name for constant in found if constant is not None for name in constant.overridable)


def unknown(facts: GraphFacts, index: int, what: str) -> Refusal:
    """Refuse because `what` is not known."""
    at = label(facts.nodes[index])
    return Refusal(Code.UNKNOWN_SHAPE, f"{what} of {at} is not known, so the maps cannot be followed through it", at)


def mismatch(facts: GraphFacts, index: int) -> Refusal:
    """Refuse because the parameters do not fit the shapes."""
    at = label(facts.nodes[index])
    return Refusal(Code.SHAPE_MISMATCH, f"the lengths of the parameters do not fit the shapes at {at}", at)


def not_per_map(facts: GraphFacts, index: int, why: str) -> Refusal:
    """Refuse because the map has no counterpart on the other side; `why` says what the node does."""
    at = label(facts.nodes[index])
    return Refusal(Code.NOT_PER_MAP, f"{at} {why}", at)


def axis_attribute(facts: GraphFacts, index: int, default: int) -> int | None:
    """The attribute `axis`, counted from the front of the input; None where that takes a rank that is not known."""
    axis = int_attribute(facts.nodes[index], "axis", default)
    if axis >= 0:
        return axis
    rank = facts.shapes.rank(facts.only_input(index))
    return None if rank is None else axis_of(axis, rank)


def length_along(facts: GraphFacts, value: str, axis: int) -> int | None:
    """How long a value is along an axis; None where that is not known."""
    shape = facts.shapes.of(value)
    length = shape[axis].size if shape is not None and axis < len(shape) else None
    check_maps([length or 0])
    return length


def scattered(affine: ChannelAffine, axis: int, places: IntArray, length: int) -> ChannelAffine | None:
    """The map for a value of which `places` along `axis` are taken: nothing is done to the rest.

    `affine` spans the axis. None where a place is taken twice and its copies have different parameters.
    """
    before = affine.axes.index(axis)
    shape = [*affine.scale.shape[:before], length, *affine.scale.shape[before + 1 :]]
    check_maps(shape)
    where = (slice(None),) * before + (places,)
    scale, shift = np.ones(shape), np.zeros(shape)
    scale[where], shift[where] = affine.scale, affine.shift
    if not (np.array_equal(scale[where], affine.scale) and np.array_equal(shift[where], affine.shift)):
        return None
    return ChannelAffine(scale, shift, affine.axes).reduced()
