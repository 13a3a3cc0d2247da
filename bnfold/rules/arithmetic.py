"""Add, Sub and Sum of branches or constants; Neg; Mul and Div by a constant.

    pull:  s (a + b) + t = (s a + t) + s b          each branch takes the scale, one of them the shift
           s (x + k) + t = s x + (s k + t)          a constant takes the shift: this is where a MatMul has its bias
           s (x + x) + t = 2 (s x + t/2)            a value that is read twice is asked once
           s (-x) + t = -(s x - t),   s (k x) = k (s x)
    push:  (s a + t) + (s b + u) = s (a + b) + (t + u)     all branches come with the same scale
           (x + t) + k = x + (k + t)
           -(s x + t) = s (-x) - t,   k (s x + t) = s (k x) + k t

A branch that broadcasts along an axis of the map cannot be told apart there, and refuses.
Source: ONNX Add-7, Sub-7, Sum-8, Neg-6, Mul-7, Div-7 (multidirectional broadcasting); below opset 7 shapes are equal.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.edits import Edit
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.reading import is_constant
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.broadcast import constant_edit, lifted, onto
from bnfold.text import printable

TAKES_SHIFT = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "BatchNormalization"])
PASSES_SHIFT = frozenset(["Identity", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Resize",
                          "Concat", "Slice", "Split", "Gather", "GlobalAveragePool", "DepthToSpace"])  # fmt: skip


def pull_sum(facts: GraphFacts, index: int, affine: ChannelAffine, _output: int) -> Step | Refusal:
    """Each branch takes the scale; a constant, or else one branch, the shift."""
    node = facts.nodes[index]
    signs = _signs(facts.op(index), len(node.input))
    if facts.opset() < 7 or signs is None:
        return _legacy(facts, index, Code.PRODUCER_CANNOT_ABSORB)
    takes = _who_takes_the_shift(facts, index)
    same = [slot for slot, name in enumerate(node.input) if name == node.input[takes]]
    weight = sum(signs[slot] for slot in same)
    if not weight and affine.shift.any():
        return Refusal(Code.PRODUCER_CANNOT_ABSORB, f"{label(node)} is zero whatever it reads", label(node))
    asks: list[tuple[int, ChannelAffine]] = []
    edits: list[Edit] = []
    frozen: list[str] = []
    for slot, name in enumerate(node.input):
        shift = affine.shift / weight if slot in same and weight else np.zeros_like(affine.shift)
        branch = ChannelAffine(affine.scale, shift, affine.axes).reduced()
        if branch.is_identity:
            continue
        if is_constant(facts, name):
            made = constant_edit(facts, index, slot, branch, facts.shapes.rank(node.output[0]))
            if isinstance(made, Refusal):
                return made
            edits.append(made[0])
            frozen += made[1]
            continue
        aligned = onto(facts, index, slot, branch)
        if isinstance(aligned, Refusal):
            return aligned
        asks.append((slot, aligned))
    return Step(tuple(edits), tuple(asks), computes=True, frozen=tuple(frozen))


def push_sum(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """All branches come with one scale: it passes, and so does the sum of the shifts."""
    node = facts.nodes[index]
    signs = _signs(facts.op(index), len(node.input))
    if facts.opset() < 7 or signs is None:
        return _legacy(facts, index, Code.CONSUMER_CANNOT_ABSORB)
    if len(changes) < len(node.input) and not all((affine.scale == 1).all() for affine in changes.values()):
        message = f"the branches of {label(node)} do not come with the same scale: {_others(facts, index, changes)}"
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, message, label(node))
    scale: ChannelAffine | None = None
    shift = ChannelAffine.uniform(1.0, 0.0)
    for slot in sorted(changes):
        raised = lifted(facts, index, slot, changes[slot])
        if isinstance(raised, Refusal):
            return raised
        short = raised.scaling().reduced()
        if scale is not None and (short.axes != scale.axes or not np.array_equal(short.scale, scale.scale)):
            message = (
                f"the branches of {label(node)} do not come with the same scale: {_others(facts, index, changes)}"
            )
            return Refusal(Code.CONSUMER_CANNOT_ABSORB, message, label(node))
        scale = short
        moved = ChannelAffine(np.ones_like(raised.scale), signs[slot] * raised.shift, raised.axes)
        shift = moved.after(shift)
    assert scale is not None
    total = shift.after(scale).reduced()
    if total.is_identity:
        return Step(computes=True)
    constant = next((slot for slot, name in enumerate(node.input) if is_constant(facts, name)), None)
    if constant is None:
        return Step(asks=((0, total),), computes=True)
    moved = ChannelAffine(total.scale, total.shift * signs[constant], total.axes)
    made = constant_edit(facts, index, constant, moved, facts.shapes.rank(node.output[0]))
    return made if isinstance(made, Refusal) else Step((made[0],), computes=True, frozen=made[1])


def pull_neg(facts: GraphFacts, index: int, affine: ChannelAffine, _output: int) -> Step | Refusal:
    """The shift changes its sign."""
    del facts, index
    return Step(asks=((0, ChannelAffine(affine.scale, -affine.shift, affine.axes)),))


def push_neg(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """The shift changes its sign."""
    return pull_neg(facts, index, changes[0], 0)


def pull_product(facts: GraphFacts, index: int, affine: ChannelAffine, _output: int) -> Step | Refusal:
    """By a constant: the scale passes."""
    slot = _factor(facts, index)
    if isinstance(slot, Refusal):
        return Refusal(Code.PRODUCER_CANNOT_ABSORB, slot.message, slot.node)
    if not affine.only_scales:
        at = label(facts.nodes[index])
        return Refusal(Code.PRODUCER_CANNOT_ABSORB, f"the shift would have to be divided by the constant of {at}", at)
    aligned = onto(facts, index, 1 - slot, affine.reduced())
    return aligned if isinstance(aligned, Refusal) else Step(asks=((1 - slot, aligned),), computes=True)


def push_product(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """By a constant: the scale passes, the shift is multiplied."""
    slot = _factor(facts, index)
    if isinstance(slot, Refusal):
        return slot
    node, at = facts.nodes[index], label(facts.nodes[index])
    raised = lifted(facts, index, 1 - slot, changes[1 - slot])
    if isinstance(raised, Refusal) or raised.only_scales:
        return raised if isinstance(raised, Refusal) else Step(asks=((0, raised),), computes=True)
    found = facts.constants.find(node.input[slot])
    overridable = found is not None and bool(found.overridable) and not facts.freeze_inputs
    if found is None or overridable or found.tensor.dtype is None or found.tensor.array().size != 1:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"the constant of {at} is not one number", at)
    factor = found.tensor.exact().ravel()[0]
    with np.errstate(all="ignore"):
        shift = raised.shift / factor if facts.op(index) == "Div" else raised.shift * factor
    if not np.isfinite(shift).all():
        return Refusal(Code.NON_FINITE, f"the constant of {at} is {factor:g}", at)
    return Step(asks=((0, ChannelAffine(raised.scale, shift, raised.axes)),), computes=True, frozen=found.overridable)


def _signs(op: str, count: int) -> tuple[int, ...] | None:
    if op == "Sub":
        return (1, -1) if count == 2 else None
    return (1,) * count if count and (op == "Sum" or count == 2) else None


def _who_takes_the_shift(facts: GraphFacts, index: int) -> int:
    """The slot of a constant; else of a branch that seems to end in something with a bias; else the first."""
    names = facts.nodes[index].input
    for slot, name in enumerate(names):
        if is_constant(facts, name):
            return slot
    return next((slot for slot, name in enumerate(names) if _ends_in_a_bias(facts, name)), 0)


def _ends_in_a_bias(facts: GraphFacts, value: str) -> bool:
    for _ in range(16):
        producer = facts.producer(value)
        if producer is None or facts.op(producer) not in PASSES_SHIFT:
            return producer is not None and facts.op(producer) in TAKES_SHIFT
        value = facts.nodes[producer].input[0]
    return False


def _factor(facts: GraphFacts, index: int) -> int | Refusal:
    """The slot of the constant that a Mul or Div multiplies or divides by."""
    node = facts.nodes[index]
    constants = [slot for slot, name in enumerate(node.input) if is_constant(facts, name)]
    if facts.opset() < 7 or len(node.input) != 2 or len(constants) != 1:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"{label(node)} is not a product with a constant", label(node))
    if facts.op(index) == "Div" and constants[0] == 0:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"{label(node)} divides a constant by its input", label(node))
    return constants[0]


def _others(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> str:
    inputs = enumerate(facts.nodes[index].input)
    names = list(itertools.islice((name for slot, name in inputs if slot not in changes), 5))
    shown = ", ".join(repr(printable(name)) for name in names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{shown} stays as it is" if names else "they differ"


def _legacy(facts: GraphFacts, index: int, code: Code) -> Refusal:
    at = label(facts.nodes[index])
    return Refusal(code, f"{at} is of an opset below 7, where broadcasting was another, or lacks an operand", at)
