"""What all absorbers share: reading their weights, multiplying them, and judging what the rounding would cost."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from onnx import NodeProto

from bnfold.affine import Float64Array
from bnfold.constants import Constant
from bnfold.edits import Edit, SetConstant
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.reading import read_constant
from bnfold.refusals import Code, Refusal
from bnfold.rounding import map_peaks, rounding_fault
from bnfold.tensors import ExactTensor, ScaledTensor, Tensor, bytes_of, scaled
from bnfold.text import plural, size


class Weight(Protocol):
    """A weight that a map can be multiplied into: stored as it is, or behind a DequantizeLinear."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""

    @property
    def dtype(self) -> np.dtype:
        """The type that the operator computes with."""

    @property
    def name(self) -> str:
        """What new constants are named after."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Overridable initializers behind it."""

    def exact(self) -> Float64Array:
        """The numbers, before any rounding."""

    def times(self, factor: Float64Array, axis: int) -> tuple[Edit, ...] | Refusal:
        """The edits that multiply it; `factor` has its rank, `axis` is that of the maps a rounding is judged by."""


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A floating-point constant at input `slot` of node `index`."""

    node: NodeProto
    index: int
    slot: int
    constant: Constant

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.constant.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        """Its type."""
        assert self.constant.tensor.dtype is not None
        return self.constant.tensor.dtype

    @property
    def name(self) -> str:
        """The name of the constant."""
        return self.constant.name

    @property
    def frozen(self) -> tuple[str, ...]:
        """Overridable initializers behind it."""
        return self.constant.overridable

    def exact(self) -> Float64Array:
        """The numbers, before any rounding."""
        return self.constant.tensor.exact()

    def times(self, factor: Float64Array, axis: int) -> tuple[Edit, ...] | Refusal:
        """Set the product; where the factor is 1 throughout there is nothing to do."""
        if (factor == 1).all():
            return ()
        product = multiply(self.node, self.constant.tensor, factor, axis)
        return product if isinstance(product, Refusal) else (SetConstant(self.index, self.slot, product, ""),)


def read_weight(facts: GraphFacts, index: int, slot: int) -> Weight | Refusal:
    """The constant weight at input `slot`, or why there is none that could be changed."""
    node = facts.nodes[index]
    if len(node.input) <= slot or not node.input[slot]:
        return Refusal(Code.SHAPE_MISMATCH, f"{label(node)} has no weight", label(node))
    producer = facts.producer(node.input[slot])
    if producer is not None and facts.op(producer) == "DequantizeLinear":
        from bnfold.rules.quantized import read_quantized

        return read_quantized(facts, producer, node)
    constant = read_constant(facts, node.input[slot], "the weight", node, Code.WEIGHTS_NOT_CONSTANT)
    if isinstance(constant, Refusal):
        return replace(constant, node=constant.node or label(node))
    if constant.stored is not None and bytes_of(constant.tensor) > constant.stored:
        message = (
            f"nodes generate the weight of {label(node)}; stored, it would take {size(bytes_of(constant.tensor))}"
        )
        return Refusal(Code.WOULD_GROW, message, label(node))
    return PlainWeight(node, index, slot, constant)


def read_bias(facts: GraphFacts, index: int, slot: int) -> Weight | Refusal | None:
    """The constant at an optional input; None where there is none, which an empty name says too."""
    node = facts.nodes[index]
    if len(node.input) <= slot or not node.input[slot]:
        return None
    producer = facts.producer(node.input[slot])
    if producer is not None and facts.op(producer) == "DequantizeLinear":
        from bnfold.rules.quantized import read_quantized

        return read_quantized(facts, producer, node)
    constant = read_constant(facts, node.input[slot], "the bias", node, Code.WEIGHTS_NOT_CONSTANT)
    if isinstance(constant, Refusal):
        return replace(constant, node=constant.node or label(node))
    return PlainWeight(node, index, slot, constant)


def multiply(node: NodeProto, weight: Tensor, factor: Float64Array, axis: int) -> Tensor | Refusal:
    """weight * factor, rounded once into its type; refused where a map along `axis` would overflow or lose bits."""
    dtype = weight.dtype
    assert dtype is not None
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is a fault, below
        product = scaled(weight, factor, dtype)
    return _fault(node, product, axis) or product


def _fault(node: NodeProto, product: Tensor, axis: int) -> Refusal | None:
    dtype, at = product.dtype, label(node)
    assert dtype is not None
    if isinstance(product, ScaledTensor):
        source, factor = product.source, product.factor
        fault = rounding_fault(source.array, factor, dtype, axis)
    else:
        source = product
        ones = np.ones([1] * len(product.shape))
        fault = rounding_fault(product.exact, ones, dtype, axis)
    if fault is None:
        return None
    first = fault.maps[0]
    where = f"{plural(len(fault.maps), 'map')} of the weight of {at}, first map {first}"
    if fault.kind == "underflow":
        message = f"{where}, would sink below the normal range of {dtype} and lose precision"
        return Refusal(Code.UNDERFLOW, message, at)
    if not np.isfinite(map_peaks(source.array(), axis)[first]):
        return Refusal(Code.NON_FINITE, f"the weight of {at} is NaN or infinite in map {first}", at)
    return Refusal(Code.OVERFLOW, f"{where}, would overflow {dtype}", at)


def set_bias(
    node: NodeProto, index: int, slot: int, *, old: Weight | None, new: Float64Array, weight: Weight
) -> tuple[Edit, ...] | Refusal:
    """The edit that makes `new` the bias at input `slot`, in the weight's type; none where there is nothing to add.

    Refused where it is not finite.
    """
    if old is None and not new.any():
        return ()
    tensor = finite(node, old.exact() if old is not None else None, new, weight.dtype)
    return tensor if isinstance(tensor, Refusal) else (SetConstant(index, slot, tensor, f"{weight.name}_bias"),)


def finite(node: NodeProto, old: Float64Array | None, new: Float64Array, dtype: np.dtype) -> ExactTensor | Refusal:
    """`new` as a tensor of `dtype`; refused where it is not finite. `old` tells whether that was so before."""
    tensor = ExactTensor(new, dtype)
    good = np.isfinite(tensor.array().astype(np.float64))
    if good.all():
        return tensor
    at = label(node)
    if old is not None and not np.isfinite(old).all():
        return Refusal(Code.NON_FINITE, f"the bias of {at} is NaN or infinite", at)
    first = np.flatnonzero(~good)[0]
    message = f"the bias of {at} would be {np.ravel(new)[first]:g} at map {first}, over {dtype}"
    return Refusal(Code.OVERFLOW, message, at)


def dead_maps(node: NodeProto, scale: Float64Array) -> tuple[str, ...]:
    """A note where some maps are multiplied by zero."""
    if scale.all():
        return ()
    dead = np.flatnonzero(scale == 0)
    maps = ", ".join(map(str, dead[:8])) + (", ..." if dead.size > 8 else "")
    return (f"gamma is 0 in {plural(dead.size, 'map')} of {label(node)} ({maps}): dead, constant output",)
