"""Elementwise maps by constants, composed: what stands before and behind a product, as one scale and one shift.

Each number comes with its size: what its absolute value would be if nothing cancelled in computing it. A few
roundings of the unit roundoff times the size is what honest arithmetic may be off by; where numbers cancel, the size
is larger than the number. Constants that nodes compute are followed to what is stored, for the same reason.
Formula of BatchNormalization: Ioffe & Szegedy 2015, Alg. 2.
"""

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from bnfold.affine import Float64Array
from bnfold.graph import GraphFacts
from bnfold.nodes import float_attribute, int_attribute
from bnfold.verification.float64 import Evaluator, NotEvaluatedError

ELEMENTWISE = frozenset(["Add", "BatchNormalization", "Div", "Dropout", "Identity", "Mul", "Neg", "Sub"])
UNFOLLOWED = 8.0  # times its absolute value is taken for the size of a constant whose making is not understood


@dataclass(frozen=True, slots=True)
class Sized:
    """Numbers and their sizes, of one shape."""

    value: Float64Array
    size: Float64Array


@dataclass(frozen=True, slots=True)
class Map:
    """x -> scale x + shift, with the sizes of both. All broadcast against x."""

    scale: Float64Array
    shift: Float64Array
    scale_size: Float64Array
    shift_size: Float64Array


def moving_input(facts: GraphFacts, index: int) -> str | None:
    """The one input of an elementwise node that is no constant; None where it is no affine map of one value."""
    node, op = facts.nodes[index], facts.op(index)
    if op not in ELEMENTWISE or any(node.output[1:]):
        return None
    if op in ("BatchNormalization", "Dropout", "Identity", "Neg"):
        if op == "BatchNormalization" and (int_attribute(node, "training_mode", 0) or len(node.input) != 5):
            return None
        if op == "BatchNormalization" and facts.opset() < 7 and not int_attribute(node, "is_test", 0):
            return None
        if op == "Dropout" and (len(node.input) > 2 or facts.opset() < 7):
            return None
        return node.input[0]
    open_ = [name for name in node.input if facts.constants.find(name) is None]
    if len(open_) != 1 or len(node.input) != 2 or facts.opset() < 7 or (op == "Div" and open_[0] != node.input[0]):
        return None
    return open_[0]


def constant(facts: GraphFacts, name: str) -> Sized | None:
    """A constant of floats, in float64; None where it is none."""
    found = facts.constants.find(name) if name else None
    if found is None or found.tensor.dtype is None or found.tensor.dtype.kind not in "fV":
        return None
    value = found.tensor.exact()
    if name in facts.constants.stored or found.name in facts.constants.stored:
        return Sized(value, np.abs(value))
    try:
        number = Evaluator(facts, {}, through_constants=True).target(name)
    except NotEvaluatedError:
        return Sized(value, UNFOLLOWED * np.abs(value))
    if number.value.shape != value.shape:
        return Sized(value, UNFOLLOWED * np.abs(value))
    return Sized(number.value, np.maximum(np.broadcast_to(number.size, value.shape), np.abs(number.value)))


def composed(facts: GraphFacts, nodes: list[int], shape: tuple[int, ...]) -> Map | None:
    """The map that the nodes, last first, compute together; None where it is not one number for each channel.

    Args:
        facts: of the graph that they are in.
        nodes: their indices.
        shape: (1, channels, 1, ...), or (channels,) where channels are the last axis.
    """
    found = Map(np.ones(shape), np.zeros(shape), np.ones(shape), np.zeros(shape))
    for index in reversed(nodes):
        following = _after(facts, index, found)
        if following is None or any(part.shape != shape for part in (following.scale, following.shift)):
            return None
        found = following
    return found


def _after(facts: GraphFacts, index: int, given: Map) -> Map | None:
    node, op = facts.nodes[index], facts.op(index)
    if op in ("Dropout", "Identity"):
        return given
    if op == "Neg":
        return Map(-given.scale, -given.shift, given.scale_size, given.shift_size)
    if op == "BatchNormalization":
        return _normalised(facts, node, given)
    slot = next(place for place, name in enumerate(node.input) if facts.constants.find(name) is not None)
    k = constant(facts, node.input[slot])
    if k is None:
        return None
    if op in ("Mul", "Div"):
        return _multiplied(given, k if op == "Mul" else _inverse(k))
    zeros = np.zeros_like(k.value)
    size = given.shift_size + k.size
    if op == "Add":
        return Map(given.scale + zeros, given.shift + k.value, given.scale_size + zeros, size)
    if slot == 1:
        return Map(given.scale + zeros, given.shift - k.value, given.scale_size + zeros, size)
    return Map(-given.scale + zeros, k.value - given.shift, given.scale_size + zeros, size)


def _multiplied(given: Map, k: Sized) -> Map:
    return Map(given.scale * k.value, given.shift * k.value, given.scale_size * k.size, given.shift_size * k.size)


def _inverse(k: Sized) -> Sized:
    with np.errstate(all="ignore"):
        return Sized(1 / k.value, k.size / k.value**2)


def _normalised(facts: GraphFacts, node: NodeProto, given: Map) -> Map | None:
    parameters = [constant(facts, name) for name in node.input[1:5]]
    if given.scale.ndim < 2 or any(p is None or p.value.shape != (given.scale.shape[1],) for p in parameters):
        return None
    tail = (1,) * (given.scale.ndim - 2)
    gamma, beta, mean, var = (
        Sized(p.value.reshape(-1, *tail), p.size.reshape(-1, *tail)) for p in parameters if p is not None
    )
    epsilon = float_attribute(node, "epsilon", float(np.float32(1e-5)))
    with np.errstate(all="ignore"):
        inside = var.value + epsilon
        factor = gamma.value / np.sqrt(inside)
        # what a relative error of the sum does to its root, where var is negative and cancels
        factor_size = (gamma.size / np.sqrt(inside)) * np.maximum(1, (var.size + abs(epsilon)) / (2 * np.abs(inside)))
        shift = factor * (given.shift - mean.value) + beta.value
        size = factor_size * (given.shift_size + mean.size) + beta.size
        return Map(given.scale * factor, shift, given.scale_size * factor_size, size)
