"""Conv takes a map in by its output channels.

    before:  c = Conv(x, W, b)               y = BatchNormalization(c, gamma, beta, mean, var)
    after:   y = Conv(x, W', b')

    s[o] * (sum_k W[o, k] x[k] + b[o]) + t[o] = sum_k (s[o] W[o, k]) x[k] + (s[o] b[o] + t[o])

so W'[o] = s[o] W[o] and b' = s b + t. This holds for any rank, group, stride, dilation and padding: they choose
which x are summed, never which o they belong to. W is (O, I/group, *kernel), b is (O,).
Source: ONNX Conv-1, -11, -22; Jacob et al. 2018, eq. 14 (arXiv 1712.05877).
"""

import numpy as np
from onnx import NodeProto

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.constants import Constant
from bnfold.edits import SetConstant
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.reading import read_constant
from bnfold.refusals import Code, Refusal
from bnfold.rounding import map_peaks, rounding_fault
from bnfold.rules import Step
from bnfold.tensors import ExactTensor, ScaledTensor, bytes_of, scaled
from bnfold.text import plural, size


def pull(facts: GraphFacts, index: int, affine: ChannelAffine) -> Step | Refusal:
    """W' = s W per output channel, b' = s b + t; each rounded once into W's type."""
    node = facts.nodes[index]
    if len(node.input) < 2:
        return Refusal(Code.SHAPE_MISMATCH, f"{label(node)} has no weight", label(node))
    weight = read_constant(facts, node.input[1], "the weight", node, Code.WEIGHTS_NOT_CONSTANT)
    if isinstance(weight, Refusal):
        return weight
    shape = weight.tensor.shape
    if len(shape) < 3 or shape[0] != affine.maps:
        maps = plural(affine.maps, "map")
        message = f"{label(node)} has a weight of shape {shape}, the BatchNormalization has {maps}"
        return Refusal(Code.SHAPE_MISMATCH, message, label(node))
    if bytes_of(weight.tensor) > weight.stored:
        message = f"nodes generate the weight of {label(node)}; stored, it would take {size(bytes_of(weight.tensor))}"
        return Refusal(Code.WOULD_GROW, message, label(node))
    bias = _bias(facts, node, affine.maps, weight)
    if isinstance(bias, Refusal):
        return bias
    return _absorb(node, index, affine, weight, bias)


def _bias(facts: GraphFacts, node: NodeProto, maps: int, weight: Constant) -> Constant | Refusal | None:
    """The bias; None where there is none, which an empty name says too."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    bias = read_constant(facts, node.input[2], "the bias", node, Code.WEIGHTS_NOT_CONSTANT)
    if isinstance(bias, Refusal):
        return bias
    if bias.tensor.shape != (maps,) or bias.tensor.dtype != weight.tensor.dtype:
        message = f"the bias of {label(node)} has shape {bias.tensor.shape} and type {bias.tensor.dtype}"
        return Refusal(Code.SHAPE_MISMATCH, message, label(node))
    return bias


def _absorb(
    node: NodeProto, index: int, affine: ChannelAffine, weight: Constant, bias: Constant | None
) -> Step | Refusal:
    dtype = weight.tensor.dtype
    assert dtype is not None
    old_bias = np.zeros(affine.maps) if bias is None else bias.tensor.exact()
    factor = affine.scale.reshape(-1, *[1] * (len(weight.tensor.shape) - 1))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is a fault, below
        new_weight = scaled(weight.tensor, factor, dtype)
        new_bias = ExactTensor(affine.scale * old_bias + affine.shift, dtype)
    fault = _weight_fault(node, new_weight) or _bias_fault(node, old_bias, new_bias)
    if fault is not None:
        return fault
    edits = [SetConstant(index, 1, new_weight, "")]
    if bias is not None or new_bias.values.any():
        edits.append(SetConstant(index, 2, new_bias, f"{weight.name}_bias"))
    frozen = (*weight.overridable, *(bias.overridable if bias is not None else ()))
    return Step(tuple(edits), frozen=frozen, notes=_dead_maps(node, affine.scale))


def _weight_fault(node: NodeProto, weight: ScaledTensor) -> Refusal | None:
    fault = rounding_fault(weight.source.array, weight.factor, weight.dtype, axis=0)
    if fault is None:
        return None
    first, at = fault.maps[0], label(node)
    where = f"{plural(len(fault.maps), 'map')} of the weight of {at}, first map {first}"
    if fault.kind == "underflow":
        message = f"{where}, would sink below the normal range of {weight.dtype} and lose precision"
        return Refusal(Code.UNDERFLOW, message, at)
    if not np.isfinite(map_peaks(weight.source.array(), 0)[first]):
        return Refusal(Code.NON_FINITE, f"the weight of {at} is NaN or infinite in map {first}", at)
    return Refusal(Code.OVERFLOW, f"{where}, would overflow {weight.dtype}", at)


def _bias_fault(node: NodeProto, old: Float64Array, new: ExactTensor) -> Refusal | None:
    finite = np.isfinite(new.array().astype(np.float64))
    if finite.all():
        return None
    at = label(node)
    if not np.isfinite(old).all():
        return Refusal(Code.NON_FINITE, f"the bias of {at} is NaN or infinite", at)
    first = np.flatnonzero(~finite)[0]
    message = f"the bias of {at} would be {new.values[first]:g} at map {first}, over {new.dtype}"
    return Refusal(Code.OVERFLOW, message, at)


def _dead_maps(node: NodeProto, scale: Float64Array) -> tuple[str, ...]:
    if scale.all():
        return ()
    dead = np.flatnonzero(scale == 0)
    maps = ", ".join(map(str, dead[:8])) + (", ..." if dead.size > 8 else "")
    return (f"gamma is 0 in {plural(dead.size, 'map')} of {label(node)} ({maps}): dead, constant output",)
