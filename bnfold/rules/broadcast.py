"""Maps and constants under ONNX's multidirectional broadcasting: shapes are aligned at their last axes.

An axis of the result is the same axis of an operand counted from the end; the operand may lack it or have size 1
there, and then holds one number for all of it.
"""

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.edits import Edit, SetConstant
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.reading import read_constant
from bnfold.refusals import Code, Refusal
from bnfold.tensors import ExactTensor
from bnfold.text import printable


def onto(facts: GraphFacts, index: int, slot: int, affine: ChannelAffine) -> ChannelAffine | Refusal:
    """The map of the node's output as a map of its operand `slot`; refused where that broadcasts along its axes."""
    if not affine.axes:
        return affine
    node = facts.nodes[index]
    whole, shape = facts.shapes.rank(node.output[0]), facts.shapes.of(node.input[slot])
    shown = printable(node.input[slot])
    if whole is None or shape is None:
        return Refusal(
            Code.UNKNOWN_SHAPE, f"the shape of {shown!r}, read by {label(node)}, is not known", label(node)
        )
    places: dict[int, int] = {}
    for axis, size in affine.sizes().items():
        place = axis - whole + len(shape)
        found = shape[place].size if place >= 0 else 1
        if found is None and size != 1:
            message = f"{shown!r}, read by {label(node)}, may broadcast along axis {axis}"
            return Refusal(Code.UNKNOWN_SHAPE, message, label(node))
        if found != size:
            message = f"{shown!r} broadcasts along axis {axis} of the result of {label(node)}"
            return Refusal(Code.NOT_PER_MAP, message, label(node))
        places[axis] = place
    return affine.placed(places)


def lifted(facts: GraphFacts, index: int, slot: int, affine: ChannelAffine) -> ChannelAffine | Refusal:
    """The map of the node's operand `slot` as a map of its output."""
    if not affine.axes:
        return affine
    node = facts.nodes[index]
    whole, rank = facts.shapes.rank(node.output[0]), facts.shapes.rank(node.input[slot])
    if whole is None or rank is None:
        return Refusal(Code.UNKNOWN_SHAPE, f"the shapes that {label(node)} broadcasts are not known", label(node))
    short = affine.reduced()
    return short.placed({axis: axis + whole - rank for axis in short.axes})


def constant_edit(
    facts: GraphFacts, index: int, slot: int, affine: ChannelAffine, rank: int | None
) -> tuple[Edit, tuple[str, ...]] | Refusal:
    """The edit that puts the constant at input `slot` through a map of a value of `rank` axes; and what it freezes.

    That value is the constant itself, or the node's output, with which the constant is aligned at the last axes.
    Refused where the constant would have to become larger than it and the map are.
    """
    node = facts.nodes[index]
    at = label(node)
    found = read_constant(facts, node.input[slot], "the constant", node, Code.WEIGHTS_NOT_CONSTANT)
    if isinstance(found, Refusal):
        return found
    old = found.tensor.exact()
    scale, shift = affine.scale, affine.shift
    if affine.axes:
        if rank is None or rank <= max(affine.axes):
            return Refusal(Code.UNKNOWN_SHAPE, f"the rank of what {at} computes with is not known", at)
        sizes = affine.sizes()
        spread = [sizes.get(axis, 1) for axis in range(min(affine.axes), rank)]
        scale, shift = scale.reshape(spread), shift.reshape(spread)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            new = scale * old + shift
    except ValueError:
        message = f"the constant of {at}, of shape {old.shape}, does not fit the map"
        return Refusal(Code.SHAPE_MISMATCH, message, at)
    if new.size > max(old.size, scale.size):
        message = f"the constant of {at} varies along other axes than the map; stored, it would grow"
        return Refusal(Code.WOULD_GROW, message, at)
    assert found.tensor.dtype is not None
    tensor = ExactTensor(new, found.tensor.dtype)
    if not np.isfinite(tensor.array().astype(np.float64)).all():
        return Refusal(Code.OVERFLOW, f"the constant of {at} would overflow {tensor.dtype}", at)
    return SetConstant(index, slot, tensor, ""), found.overridable
