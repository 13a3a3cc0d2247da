"""Gemm takes a map in by the columns of its constant matrix (pull) or by the rows (push).

    Y = alpha op(A) op(B) + beta C                    op transposes where transA, transB say so; B is constant

    pull:  s Y + t = alpha op(A) (op(B) s) + (s beta C + t)
    push:  with op(A) s + t for op(A):  alpha op(A) (s op(B)) + (beta C + alpha t op(B))

The new C is stored as it counts, so beta becomes 1. C may be absent, (), (1,), (N,), (1, N) or (M, N); an (M, 1) is
not per column, and would have to be stored as (M, N). Source: ONNX Gemm-7 to -13; com.microsoft.FusedGemm.
"""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.edits import Edit, SetAttribute, SetConstant
from bnfold.graph import GraphFacts
from bnfold.nodes import float_attribute, int_attribute, label, text_attribute
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.conv import misfit
from bnfold.rules.weights import Weight, dead_maps, finite, read_bias, read_weight


def pull(facts: GraphFacts, index: int, affine: ChannelAffine, _output: int) -> Step | Refusal:
    """Columns of op(B) times s, C' = s beta C + t."""
    node = facts.nodes[index]
    weight = _matrix(facts, index)
    if isinstance(weight, Refusal):
        return weight
    columns = 0 if int_attribute(node, "transB", 0) else 1
    along = affine.along(1, weight.shape[columns])
    if along is None:
        return misfit(node, weight, affine, weight.shape[columns])
    edits = weight.times(np.expand_dims(along.scale, 1 - columns), columns)
    if isinstance(edits, Refusal):
        return edits
    more = _new_c(facts, index, weight, along.scale, along.shift)
    if isinstance(more, Refusal):
        return more
    added, frozen = more
    step_notes = dead_maps(node, along.scale)
    return Step((*edits, *added), absorbs=True, frozen=(*weight.frozen, *frozen), notes=step_notes)


def push(facts: GraphFacts, index: int, changes: Mapping[int, ChannelAffine]) -> Step | Refusal:
    """Rows of op(B) times s, C' = beta C + alpha t op(B)."""
    node = facts.nodes[index]
    if set(changes) != {0}:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"only the first matrix of {label(node)} may change", label(node))
    weight = _matrix(facts, index)
    if isinstance(weight, Refusal):
        return weight
    rows = 1 if int_attribute(node, "transB", 0) else 0
    axis = 0 if int_attribute(node, "transA", 0) else 1
    along = changes[0].along(axis, weight.shape[rows])
    if along is None:
        return misfit(node, weight, changes[0], weight.shape[rows], axis)
    edits = weight.times(np.expand_dims(along.scale, 1 - rows), rows)
    if isinstance(edits, Refusal):
        return edits
    if along.only_scales:
        return Step(edits, absorbs=True, frozen=weight.frozen)
    matrix = weight.exact() if rows == 0 else weight.exact().T
    reach = float_attribute(node, "alpha", 1.0) * (along.shift @ matrix)
    more = _new_c(facts, index, weight, np.ones_like(reach), reach)
    if isinstance(more, Refusal):
        return more
    added, frozen = more
    return Step((*edits, *added), absorbs=True, frozen=(*weight.frozen, *frozen))


def _matrix(facts: GraphFacts, index: int) -> Weight | Refusal:
    """The constant B."""
    node = facts.nodes[index]
    weight = read_weight(facts, index, 1)
    if isinstance(weight, Refusal):
        return weight
    if facts.op(index) != "Gemm" and text_attribute(node, "activation", ""):
        return Refusal(Code.ACTIVATION_BETWEEN, f"{label(node)} has an activation inside", label(node))
    if len(weight.shape) != 2:
        return Refusal(Code.SHAPE_MISMATCH, f"{label(node)} has a weight of shape {weight.shape}", label(node))
    return weight


def _new_c(
    facts: GraphFacts, index: int, weight: Weight, scale: Float64Array, shift: Float64Array
) -> tuple[tuple[Edit, ...], tuple[str, ...]] | Refusal:
    """The edits for C' = scale * beta * C + shift; scale and shift are (N,)."""
    node = facts.nodes[index]
    old = read_bias(facts, index, 2)
    if isinstance(old, Refusal):
        return old
    beta = float_attribute(node, "beta", 1.0)
    plain: tuple[Edit, ...] = () if beta == 1 else (SetAttribute(index, "beta", 1.0),)
    if old is None:
        new: Float64Array = shift
        frozen: tuple[str, ...] = ()
        if not shift.any():
            return (), ()
    else:
        fault = _not_per_column(node, old, weight, scale.size)
        if fault is not None:
            return fault
        if beta == 1 and not shift.any() and len(old.shape) <= 1 and old.shape != () and old.shape[-1] == scale.size:
            times = old.times(scale, 0)
            return times if isinstance(times, Refusal) else (times, old.frozen)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            new, frozen = scale * (beta * old.exact()) + shift, old.frozen
    tensor = finite(node, None if old is None else old.exact(), new, weight.dtype)
    if isinstance(tensor, Refusal):
        return tensor
    return (SetConstant(index, 2, tensor, f"{weight.name}_bias"), *plain), frozen


def _not_per_column(node: NodeProto, old: Weight, weight: Weight, columns: int) -> Refusal | None:
    at, shape = label(node), old.shape
    if old.dtype != weight.dtype or len(shape) > 2 or (shape and shape[-1] not in (1, columns)):
        return Refusal(Code.SHAPE_MISMATCH, f"C of {at} has shape {shape} and type {old.dtype}", at)
    if len(shape) == 2 and shape[0] > 1 and shape[1] == 1 and columns > 1:
        return Refusal(Code.NOT_PER_MAP, f"C of {at} has shape {shape}: one number per row, not per column", at)
    return None
