"""Maximal chains of Mul, Add, Sub, Div, Neg and Sum by constants, as a ChannelAffine.

    m = Mul (x, scale)    y = Add (m, shift)        scale (1, C, 1, 1), (C, 1, 1), (C,) after a Transpose, (), ...

is what a BatchNormalization becomes when an exporter writes it out (FrozenBatchNorm, Keras). A constant is aligned
with x at the last axes (ONNX broadcasting; below opset 7 by the attributes `broadcast` and `axis`), and counts where
it neither enlarges x nor varies along the batch. An Add directly behind a MatMul is that MatMul's bias, and part of
no chain. Source: ONNX Mul, Add, Sub, Div -1, -6, -7, -13, -14; Neg-1 to -13; Sum-1 to -13.
"""

from collections.abc import Iterator
from math import prod

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.constants import Constant
from bnfold.errors import ByReferenceError
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, label
from bnfold.reading import is_constant, read_constant
from bnfold.refusals import Code, Refusal
from bnfold.text import printable

OPERATORS = frozenset(["Add", "Div", "Mul", "Neg", "Sub", "Sum"])
MATMULS = frozenset(["MatMul", "com.microsoft::FusedMatMul"])
MOST_ELEMENTS = 2**20  # of a constant that varies along several axes


def sites(facts: GraphFacts) -> Iterator[Site]:
    """Every maximal chain, in topological order of their first nodes."""
    taken: set[int] = set()
    for index in facts.live():
        if facts.op(index) not in OPERATORS or index in taken:
            continue
        slot = mapped_slot(facts, index)
        if slot is None or len(facts.nodes[index].output) != 1 or _is_bias(facts, index, slot):
            continue
        first = link(facts, index, slot)
        if isinstance(first, Refusal):
            if first.code != Code.UNSUPPORTED_TYPE:  # sums of integers are nobody's feature maps
                yield Site("chain", (index,), slot)
            continue
        nodes = [index]
        while (following := _next(facts, nodes[-1])) is not None and following not in taken:
            nodes.append(following)
        taken.update(nodes)
        yield Site("chain", tuple(nodes), slot)


def source(facts: GraphFacts, site: Site) -> Source | Refusal:
    """The map of a chain, or why it is none."""
    if "" not in facts.opsets and facts.model.ir_version >= 3:
        return Refusal(Code.UNKNOWN_VERSION, "the model does not say which version of the standard operators it uses")
    affine = ChannelAffine.uniform(1.0, 0.0)
    overridable: list[str] = []
    scales = per_map = False
    for place, index in enumerate(site.nodes):
        slot = site.slot if place == 0 else mapped_slot(facts, index)
        if slot is None:
            return Refusal(Code.NOT_PER_MAP, f"{label(facts.nodes[index])} has no constant operand")
        found = link(facts, index, slot)
        if isinstance(found, Refusal):
            return found
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                affine = found.affine.after(affine)
        except ValueError:
            return Refusal(Code.SHAPE_MISMATCH, f"the constants of {label(facts.nodes[index])} do not fit together")
        overridable += found.overridable
        scales = scales or found.scales_maps
        per_map = per_map or found.per_map
    if not (np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all()):
        return Refusal(Code.NON_FINITE, f"the map of {label(facts.nodes[site.nodes[0]])} is not finite")
    return Source(affine, tuple(overridable), scales, per_map)


def mapped_slot(facts: GraphFacts, index: int) -> int | None:
    """The one operand of the node that is not constant; None where there is not exactly one."""
    names = facts.nodes[index].input
    if len(names) != (1 if facts.op(index) == "Neg" else 2) or not all(names):
        return None
    moving = [slot for slot, name in enumerate(names) if not is_constant(facts, name)]
    if len(moving) != 1 or (facts.op(index) == "Div" and moving == [1]):
        return None
    return moving[0]


def _is_bias(facts: GraphFacts, index: int, slot: int) -> bool:
    """Whether the node adds to the output of a MatMul."""
    producer = facts.producer(facts.nodes[index].input[slot])
    adds = facts.op(index) in ("Add", "Sub", "Sum")
    return adds and producer is not None and facts.op(producer) in MATMULS


def _next(facts: GraphFacts, index: int) -> int | None:
    """The node that continues the chain behind `index`: all that reads its output."""
    value = facts.nodes[index].output[0]
    users = facts.users(value)
    if len(users) != 1 or value in facts.outputs or value in facts.pinned:
        return None
    use = next(iter(users))
    if use.slot < 0 or len(facts.nodes[use.node].output) != 1:
        return None
    if facts.op(use.node) not in OPERATORS or mapped_slot(facts, use.node) != use.slot:
        return None
    return None if isinstance(link(facts, use.node, use.slot), Refusal) else use.node


def link(facts: GraphFacts, index: int, slot: int) -> Source | Refusal:
    """The map of one node of a chain."""
    node, op = facts.nodes[index], facts.op(index)
    if op == "Neg":
        return Source(ChannelAffine.uniform(-1.0, 0.0), (), scales_maps=False, per_map=False)
    found = read_constant(facts, node.input[1 - slot], "the constant", node, Code.PARAMS_NOT_CONSTANT)
    if isinstance(found, Refusal):
        return found
    try:
        placed = _placed(facts, index, slot, found)
    except ByReferenceError as error:
        return Refusal(Code.IN_FUNCTION, str(error))
    if isinstance(placed, Refusal):
        return placed
    values, axes = placed
    ones, zeros = np.ones_like(values), np.zeros_like(values)
    with np.errstate(all="ignore"):
        if op == "Mul":
            scale, shift = values, zeros
        elif op == "Div":
            scale, shift = 1 / values, zeros
        elif op == "Sub":
            scale, shift = (ones, -values) if slot == 0 else (-ones, values)
        else:
            scale, shift = ones, values
    many = len(axes) == 1 and values.size > 1
    affine = ChannelAffine(scale, shift, axes)
    return Source(affine, found.overridable, scales_maps=many and op in ("Mul", "Div"), per_map=many)


def _placed(
    facts: GraphFacts, index: int, slot: int, constant: Constant
) -> tuple[Float64Array, tuple[int, ...]] | Refusal:
    """The constant's numbers without axes of size 1, and the axes of the mapped value that the others are."""
    node, at = facts.nodes[index], label(facts.nodes[index])
    shape = constant.tensor.shape
    wide = [place for place, size in enumerate(shape) if size != 1]
    if not shape:
        return constant.tensor.exact(), ()
    mapped = facts.shapes.of(node.input[slot])
    shown = printable(constant.name)
    if mapped is None:
        return Refusal(Code.UNKNOWN_SHAPE, f"the rank of the input of {at} is not known")
    start = _start(facts, index, slot, len(shape), len(mapped))
    if start is None or start < 0:
        return Refusal(Code.NOT_PER_MAP, f"{shown!r}, of shape {shape}, raises the rank of what {at} maps")
    axes = tuple(start + place for place in wide)
    for axis, place in zip(axes, wide, strict=True):
        size = mapped[axis].size if axis < len(mapped) else None
        if size is None:
            return Refusal(
                Code.UNKNOWN_SHAPE, f"axis {axis} of what {at} maps is not known; {shown!r} may enlarge it"
            )
        if size != shape[place]:
            return Refusal(Code.NOT_PER_MAP, f"{shown!r}, of shape {shape}, enlarges axis {axis} of what {at} maps")
    if len(wide) > 1 and (0 in axes or prod(shape) > MOST_ELEMENTS):
        return Refusal(Code.NOT_PER_MAP, f"{shown!r} of {at} varies along axes {axes}, not per feature map")
    if axes == (0,):
        return Refusal(Code.NOT_PER_MAP, f"{shown!r} of {at} varies along the batch, not per feature map")
    return constant.tensor.exact().reshape([shape[place] for place in wide]), axes


def _start(facts: GraphFacts, index: int, slot: int, own: int, rank: int) -> int | None:
    """The axis of the mapped value that the constant's first axis is; None where the operator cannot broadcast it."""
    if facts.opset() >= 7:
        return rank - own
    node = facts.nodes[index]
    if not int_attribute(node, "broadcast", 0):
        return 0 if own == rank else None
    start = int_attribute(node, "axis", rank - own)
    return start if slot == 0 and 0 <= start <= rank - own else None
