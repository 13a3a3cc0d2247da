"""Pad carries a map along axes that it does not pad; a constant that it pads with is mapped too.

    before:  c = Conv(x, W)          p = Pad(c, pads, v)          y = Mul(p, s)      s is one number
    after:   c_folded = Conv(x, W')      y = Pad(c_folded, pads, v')                 v' = s v

reflect, edge and wrap repeat elements of the input, and negative pads only take some away: any map passes. What is
padded with a constant v becomes s v + t by the map, so

    pull:  v' = s v + t        which must be one number for all maps
    push:  v' = (v - t) / s    likewise; a map of scale 0 has to be v already

An axis of the map that is padded itself has new maps of nothing but v: on the way up they have to keep it, on the
way down nothing happens to them. With v = 0, scale passes as it is. So does any map that keeps v, such as s > 0 with
v = -inf before a MaxPool.
Source: ONNX Pad-1, -2, -11, -13, -18, -19, -21; v is an attribute before 11, an input from then on.
"""

from collections.abc import Mapping

import numpy as np

from bnfold.affine import IDENTITY, ChannelAffine, Float64Array, check_maps
from bnfold.edits import Edit, SetAttribute, SetConstant
from bnfold.graph import GraphFacts
from bnfold.nodes import float_attribute, label, text_attribute
from bnfold.parameters import padded
from bnfold.reading import read_constant
from bnfold.refusals import Code, Refusal
from bnfold.rounding import FLOAT_TYPES, round_once
from bnfold.rules import Step
from bnfold.rules.moves import carried, changed_data, overridable_at, unknown
from bnfold.tensors import ExactTensor

FLOAT32 = np.dtype(np.float32)


def pull(facts: GraphFacts, index: int, affine: ChannelAffine, output: int) -> Step | Refusal:
    """Ask the input for the same map, and pad with s v + t."""
    del output
    return _passed(facts, index, affine.reduced(), pulls=True)


def push(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Hand the same map on, and pad with what it takes to v."""
    affine = changed_data(facts, index, changes)
    return affine if isinstance(affine, Refusal) else _passed(facts, index, affine, pulls=False)


def _passed(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> Step | Refusal:
    pads = padded(facts, index)
    if affine.axes and pads is None:
        return unknown(facts, index, "how much of each axis is padded")
    grown = [axis for axis in affine.axes if pads is not None and any(pads.get(axis, ()))]
    if pads is not None and grown:
        return _more_maps(facts, index, affine, pads, pulls=pulls)
    slots = [1, 3] if pads is not None else []
    edits: tuple[Edit, ...] = ()
    adds = pads is None or any(amount > 0 for both in pads.values() for amount in both)
    if adds and text_attribute(facts.nodes[index], "mode", "constant") not in ("reflect", "edge", "wrap"):
        change = _constant(facts, index, affine, pulls=pulls)
        if isinstance(change, Refusal):
            return change
        edits = change
        slots.append(2)
    return Step(edits=edits, asks=carried(affine, pulls=pulls).asks, frozen=overridable_at(facts, index, slots))


def _more_maps(
    facts: GraphFacts, index: int, affine: ChannelAffine, pads: Mapping[int, tuple[int, int]], *, pulls: bool
) -> Step | Refusal:
    """For a map along one axis that is padded with a constant: the maps inside, and those that are added."""
    node, at = facts.nodes[index], label(facts.nodes[index])
    axis = affine.axes[0]
    begin, end = pads[axis]
    if len(affine.axes) > 1 or begin < 0 or end < 0 or text_attribute(node, "mode", "constant") != "constant":
        return Refusal(Code.NOT_PER_MAP, f"{at} pads an axis along which the map is not the same", at)
    held = _held(facts, index)
    if isinstance(held, Refusal):
        return held
    check_maps([affine.maps + begin + end])
    inside = np.arange(begin, affine.maps - end if pulls else affine.maps + begin)
    if pulls and affine.maps < begin + end:
        return Refusal(Code.SHAPE_MISMATCH, f"{at} adds more maps than there are", at)
    elsewhere = any(amount > 0 for other, both in pads.items() if other != axis for amount in both)
    keeps = _mapped(affine, held[0]) == held[0]
    padded_only = np.ones(affine.maps, bool)
    padded_only[inside if pulls else slice(None)] = elsewhere
    if not keeps[padded_only].all():
        message = f"{at} pads with {held[0]:g}, which the map would change"
        return Refusal(Code.SHIFT_MEETS_PADDING, message, at)
    if pulls:
        asked = affine.take(axis, inside)
    else:
        asked = ChannelAffine.join([IDENTITY, affine, IDENTITY], axis, [begin, affine.maps, end])
    return Step(asks=carried(asked, pulls=pulls).asks, frozen=overridable_at(facts, index, [1, 2, 3]))


def _constant(facts: GraphFacts, index: int, affine: ChannelAffine, *, pulls: bool) -> tuple[Edit, ...] | Refusal:
    """The edit that makes the constant what it must be; none where it may stay."""
    node = facts.nodes[index]
    held = _held(facts, index)
    if isinstance(held, Refusal):
        return held
    old, dtype = held
    if (_mapped(affine, old) == old).all():
        return ()
    new = None if dtype is None else _replaced(affine, old, dtype, pulls=pulls)
    if new is None or dtype is None:
        message = f"{label(node)} pads with {old:g}, for which the map leaves no one number that would do"
        return Refusal(Code.SHIFT_MEETS_PADDING, message, label(node))
    if facts.opset() < 11:
        return (SetAttribute(index, "value", new),)
    return (SetConstant(index, 2, ExactTensor(np.array(new), dtype), f"{node.output[0]}_value"),)


def _held(facts: GraphFacts, index: int) -> tuple[float, np.dtype | None] | Refusal:
    """The constant, and the type that another one would be stored in; None where it cannot be another."""
    node = facts.nodes[index]
    data = facts.constants.value_type(node.input[0]) or facts.constants.value_type(node.output[0])
    if facts.opset() < 11:  # an attribute holds a float32, which float16 may not hold
        small = data is not None and data.itemsize < FLOAT32.itemsize
        return float_attribute(node, "value", 0.0), None if small else FLOAT32
    if len(node.input) < 3 or not node.input[2]:
        return 0.0, data
    held = read_constant(facts, node.input[2], "the padding", node, Code.SHIFT_MEETS_PADDING)
    if isinstance(held, Refusal):
        return held
    values = held.tensor.exact().ravel()
    if values.size != 1:
        return Refusal(Code.SHAPE_MISMATCH, f"{label(node)} pads with {values.size} numbers", label(node))
    return float(values[0]), held.tensor.dtype


def _replaced(affine: ChannelAffine, old: float, dtype: np.dtype, *, pulls: bool) -> float | None:
    """The number to pad with instead of `old`; None where there is none."""
    if dtype not in FLOAT_TYPES:
        return None
    if pulls:
        wanted = _mapped(affine, old)
    else:
        alive = affine.scale != 0
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = (old - affine.shift[alive]) / affine.scale[alive]
    if not wanted.size:
        return None
    first = wanted.ravel()[:1]
    stored = float(round_once(first, dtype).astype(np.float64)[0])
    dead = np.zeros(0) if pulls else affine.shift[affine.scale == 0]
    if not np.isfinite(stored) or (wanted != first).any() or (dead != old).any():
        return None
    return float(first[0])


def _mapped(affine: ChannelAffine, value: float) -> Float64Array:
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite padding times zero
        return np.asarray(affine.scale * value + affine.shift)
