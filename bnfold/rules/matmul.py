"""MatMul with a constant operand takes a map in by that operand's columns or rows.

    x @ W, W (..., K, N)    pull along the last axis:      s (x @ W) + t = x @ (W s) + t
                            push along x's last axis:      (s x + t) @ W = x @ (s W) + t @ W
    A @ x, A (..., M, K)    pull along the last but one:   s (A @ x) + t = (s A) @ x + t
                            push along x's last but one:   A @ (s x + t) = (A s) @ x + A @ t

A MatMul has no bias. What is left to add goes into the Add directly behind it (see `arithmetic`), or into a new Add;
where both operands are matrices, the MatMul becomes a Gemm with a bias instead.
Source: ONNX MatMul-1, -9, -13; com.microsoft.FusedMatMul.
"""

from collections.abc import Mapping

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.edits import AddBias, Edit
from bnfold.graph import GraphFacts
from bnfold.nodes import float_attribute, int_attribute, label
from bnfold.reading import is_constant
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.conv import misfit
from bnfold.rules.weights import Weight, dead_maps, finite, read_weight


def pull(facts: GraphFacts, index: int, affine: ChannelAffine, _output: int) -> Step | Refusal:
    """Columns of the right operand, or rows of the left one, times s; the shift becomes a bias."""
    node = facts.nodes[index]
    read = _read(facts, index, Code.PRODUCER_CANNOT_ABSORB)
    if isinstance(read, Refusal):
        return read
    slot, weight = read
    rank = facts.shapes.rank(node.output[0])
    other = facts.shapes.rank(node.input[1 - slot])
    if rank is None or other is None or other < 2 - slot or len(weight.shape) < 2:
        return Refusal(Code.UNKNOWN_SHAPE, f"the rank of what {label(node)} multiplies is not known", label(node))
    place = len(weight.shape) - 1 - (1 - slot)  # the axis of the weight that is an axis of the result
    if slot == 0 and other < 2:
        return misfit(node, weight, affine, weight.shape[place], -1)
    size, axis = weight.shape[place], rank - 1 - (1 - slot)
    along = affine.along(axis, size)
    if along is None:
        return misfit(node, weight, affine, size, axis)
    edits = weight.times(_against(along.scale, weight, place), place)
    if isinstance(edits, Refusal):
        return edits
    bias = _bias(facts, index, weight, along.shift.reshape((-1,) if slot else (-1, 1)))
    if isinstance(bias, Refusal):
        return bias
    return Step((*edits, *bias), absorbs=True, frozen=weight.frozen, notes=dead_maps(node, along.scale))


def push(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Rows of the right operand, or columns of the left one, times s; what the shift adds up to is asked on."""
    node = facts.nodes[index]
    at = label(node)
    if len(changes) > 1:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"both operands of {at} would change", at)
    read = _read(facts, index, Code.CONSUMER_CANNOT_ABSORB)
    if isinstance(read, Refusal):
        return read
    slot, weight = read
    if set(changes) != {1 - slot}:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"it is the weight of {at}", at)
    rank, whole = facts.shapes.rank(node.input[1 - slot]), facts.shapes.rank(node.output[0])
    if rank is None or whole is None or len(weight.shape) < 2:
        return Refusal(Code.UNKNOWN_SHAPE, f"the rank of what {at} multiplies is not known", at)
    place = len(weight.shape) - 1 - slot
    if slot == 0 and rank < 2:
        return misfit(node, weight, changes[1], weight.shape[place], -1)
    axis = rank - 1 - (1 - slot)
    along = changes[1 - slot].along(axis, weight.shape[place])
    if along is None:
        return misfit(node, weight, changes[1 - slot], weight.shape[place], axis)
    edits = weight.times(_against(along.scale, weight, place), place)
    if isinstance(edits, Refusal) or along.only_scales:
        return edits if isinstance(edits, Refusal) else Step(edits, absorbs=True, frozen=weight.frozen)
    if len(weight.shape) > 2:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"the weight of {at} has more than two axes", at)
    product = along.shift @ weight.exact() if slot else weight.exact() @ along.shift
    reach = float_attribute(node, "alpha", 1.0) * product  # FusedMatMul has one
    return _shifted(facts, index, weight, edits, reach, whole - 1 - (1 - slot))


def _shifted(
    facts: GraphFacts, index: int, weight: Weight, edits: tuple[Edit, ...], reach: Float64Array, axis: int
) -> Step | Refusal:
    """What the shift adds up to: the bias behind takes it, if there is one; otherwise there will be one."""
    node = facts.nodes[index]
    if bias_behind(facts, index) is not None:
        ask = ChannelAffine(np.ones_like(reach), reach, (axis,))
        return Step(edits, asks=((0, ask),), absorbs=True, frozen=weight.frozen)
    last = axis == (facts.shapes.rank(node.output[0]) or 0) - 1
    bias = _bias(facts, index, weight, reach if last else reach.reshape(-1, 1))
    if isinstance(bias, Refusal):
        return bias
    return Step((*edits, *bias), absorbs=True, frozen=weight.frozen)


def bias_behind(facts: GraphFacts, index: int) -> int | None:
    """The Add of a constant that is all that reads this MatMul's output; None where there is none."""
    value = facts.nodes[index].output[0]
    users = facts.users(value)
    if len(users) != 1 or value in facts.outputs or value in facts.pinned:
        return None
    use = next(iter(users))
    if use.slot < 0 or facts.op(use.node) not in ("Add", "Sum"):
        return None
    others = [name for slot, name in enumerate(facts.nodes[use.node].input) if slot != use.slot]
    return use.node if len(others) == 1 and is_constant(facts, others[0]) else None


def _against(values: Float64Array, weight: Weight, place: int) -> Float64Array:
    shape = [1] * len(weight.shape)
    shape[place] = -1
    return values.reshape(shape)


def _bias(facts: GraphFacts, index: int, weight: Weight, shift: Float64Array) -> tuple[Edit, ...] | Refusal:
    """The edit that gives the MatMul a bias, where there is anything to add."""
    node = facts.nodes[index]
    if not shift.any():
        return ()
    if facts.opset() < 7:
        message = f"the bias that {label(node)} would need has to be broadcast, which opset {facts.opset()} does not"
        return Refusal(Code.UNKNOWN_VERSION, message, label(node))
    tensor = finite(node, None, shift, weight.dtype)
    if isinstance(tensor, Refusal):
        return tensor
    gemm = facts.op(index) == "MatMul" and all(facts.shapes.rank(name) == 2 for name in node.input)
    return (AddBias(index, tensor, f"{weight.name}_bias", gemm=gemm),)


def _read(facts: GraphFacts, index: int, otherwise: Code) -> tuple[int, Weight] | Refusal:
    """Which operand is the constant one, and its numbers; `otherwise` is the code for an operator that differs."""
    node = facts.nodes[index]
    if len(node.input) != 2:
        return Refusal(Code.SHAPE_MISMATCH, f"{label(node)} has {len(node.input)} operands", label(node))
    if facts.op(index) != "MatMul" and any(
        int_attribute(node, name, 0) for name in ("transA", "transB", "transBatchA", "transBatchB")
    ):
        message = f"bnfold does not fold into {label(node)}, which transposes"
        return Refusal(otherwise, message, label(node))
    for slot in (1, 0):
        producer = facts.producer(node.input[slot])
        quantised = producer is not None and facts.op(producer) == "DequantizeLinear"
        if is_constant(facts, node.input[slot]) or (quantised and _holds_constants(facts, producer)):
            weight = read_weight(facts, index, slot)
            return weight if isinstance(weight, Refusal) else (slot, weight)
    message = f"both operands of {label(node)} are computed at run time"
    return Refusal(Code.WEIGHTS_NOT_CONSTANT, message, label(node))


def _holds_constants(facts: GraphFacts, dequantize: int | None) -> bool:
    return dequantize is not None and is_constant(facts, facts.nodes[dequantize].input[0])
