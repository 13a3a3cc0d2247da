"""Conv takes a map in by its output channels.

    before:  c = Conv(x, W, b)               y = BatchNormalization(c, gamma, beta, mean, var)
    after:   y = Conv(x, W', b')

    s[o] * (sum_k W[o, k] x[k] + b[o]) + t[o] = sum_k (s[o] W[o, k]) x[k] + (s[o] b[o] + t[o])

so W'[o] = s[o] W[o] and b' = s b + t. This holds for any rank, group, stride, dilation and padding: they choose
which x are summed, never which o they belong to. W is (O, I/group, *kernel), b is (O,).
Source: ONNX Conv-1, -11, -22; Jacob et al. 2018, eq. 14 (arXiv 1712.05877).
"""

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.constants import read_constant
from bnfold.edits import SetConstant
from bnfold.graph import Constant, GraphFacts, label
from bnfold.refusals import Code, Refusal
from bnfold.rounding import map_peaks, rounding_fault
from bnfold.rules import Step
from bnfold.tensors import ExactTensor, ScaledTensor, scaled
from bnfold.text import plural, printable


def pull(facts: GraphFacts, index: int, affine: ChannelAffine) -> Step | Refusal:
    """W' = s W per output channel, b' = s b + t; each rounded once into W's type."""
    node = facts.nodes[index]
    at = label(node)
    if len(node.input) < 2:
        return Refusal(Code.SHAPE_MISMATCH, f"{at} has no weight", at)
    weight = read_constant(facts, node.input[1], f"the weight of {at}", Code.WEIGHTS_NOT_CONSTANT)
    if isinstance(weight, Refusal):
        return weight
    shape = weight.tensor.shape
    if len(shape) < 3 or shape[0] != affine.maps:
        message = f"{at} has a weight of shape {shape}, the BatchNormalization has {plural(affine.maps, 'map')}"
        return Refusal(Code.SHAPE_MISMATCH, message, at)
    bias = _bias(facts, index, affine.maps, weight)
    if isinstance(bias, Refusal):
        return bias
    return _absorb(facts, index, affine, weight, bias)


def _bias(facts: GraphFacts, index: int, maps: int, weight: Constant) -> Constant | Refusal | None:
    """The bias; None where there is none, which an empty name says too."""
    node = facts.nodes[index]
    if len(node.input) < 3 or not node.input[2]:
        return None
    bias = read_constant(facts, node.input[2], f"the bias of {label(node)}", Code.WEIGHTS_NOT_CONSTANT)
    if isinstance(bias, Refusal):
        return bias
    if bias.tensor.shape != (maps,) or bias.tensor.dtype != weight.tensor.dtype:
        message = f"the bias of {label(node)} has shape {bias.tensor.shape} and type {bias.tensor.dtype}"
        return Refusal(Code.SHAPE_MISMATCH, message, label(node))
    return bias


def _absorb(
    facts: GraphFacts, index: int, affine: ChannelAffine, weight: Constant, bias: Constant | None
) -> Step | Refusal:
    node = facts.nodes[index]
    dtype = weight.tensor.dtype
    assert dtype is not None
    old_bias = np.zeros(affine.maps) if bias is None else bias.tensor.exact()
    factor = affine.scale.reshape(-1, *[1] * (len(weight.tensor.shape) - 1))
    new_weight = scaled(weight.tensor, factor, dtype)
    new_bias = ExactTensor(affine.scale * old_bias + affine.shift, dtype)
    fault = _weight_fault(label(node), new_weight) or _bias_fault(label(node), old_bias, new_bias)
    if fault is not None:
        return fault
    edits = [SetConstant(index, 1, new_weight, "")]
    if bias is not None or new_bias.values.any():
        edits.append(SetConstant(index, 2, new_bias, f"{weight.name}_bias"))
    frozen = (*weight.overridable, *(bias.overridable if bias is not None else ()))
    return Step(tuple(edits), frozen=frozen, notes=_dead_maps(label(node), affine.scale))


def _weight_fault(at: str, weight: ScaledTensor) -> Refusal | None:
    fault = rounding_fault(weight.array(), weight.source.array, weight.factor, axis=0)
    if fault is None:
        return None
    first = fault.maps[0]
    where = f"{plural(len(fault.maps), 'map')} of the weight of {at}, first map {first}"
    if fault.kind == "underflow":
        message = f"{where}, would sink below the normal range of {weight.dtype} and lose precision"
        return Refusal(Code.UNDERFLOW, message, at)
    if not np.isfinite(map_peaks(weight.source.array(), 0)[first]):
        return Refusal(Code.NON_FINITE, f"the weight of {at} is NaN or infinite in map {first}", at)
    return Refusal(Code.OVERFLOW, f"{where}, would overflow {weight.dtype}", at)


def _bias_fault(at: str, old: Float64Array, new: ExactTensor) -> Refusal | None:
    if not np.isfinite(old).all():
        return Refusal(Code.NON_FINITE, f"the bias of {at} is NaN or infinite", at)
    bad = np.flatnonzero(~np.isfinite(new.array().astype(np.float64)))
    if not bad.size:
        return None
    value = new.values[bad[0]]
    return Refusal(Code.OVERFLOW, f"the bias of {at} would be {value:g} at map {bad[0]}, over {new.dtype}", at)


def _dead_maps(at: str, scale: Float64Array) -> tuple[str, ...]:
    dead = np.flatnonzero(scale == 0)
    if not dead.size:
        return ()
    maps = ", ".join(map(str, dead[:8])) + (", ..." if dead.size > 8 else "")
    return (f"gamma is 0 in {plural(dead.size, 'map')} of {printable(at)} ({maps}): dead, constant output",)
