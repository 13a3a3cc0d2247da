"""A weight behind a DequantizeLinear: the factor goes into its scale, the integers stay.

    before:  w = DequantizeLinear (q, scale, zero)        c = Conv (x, w)       y = BatchNormalization (c, ...)
    after:   w' = DequantizeLinear <axis> (q, scale', zero')                    y = Conv (x, w', b')

    s (q - zero) scale = (q - zero) (s scale)

One scale for the whole tensor becomes one for each index of the axis that the factor varies along, and the zero
point is repeated likewise. Scales are positive by convention: where s is negative, the integers of that map are
mirrored at the zero point, 2 zero - q, if all of them fit; where s is 0 the scale stays and the integers become the
zero point. No quantised weight is turned into a float one. Source: ONNX DequantizeLinear-10, -13, -19, -21.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from bnfold.affine import Float64Array
from bnfold.constants import Constant
from bnfold.edits import Edit, SetAttribute, SetConstant
from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, label
from bnfold.reading import read_constant
from bnfold.refusals import Code, Refusal
from bnfold.rounding import smallest_normal
from bnfold.rules.weights import finite
from bnfold.tensors import ArrayTensor

INTEGERS = frozenset(map(np.dtype, [np.int8, np.uint8, np.int16, np.uint16, np.int32]))


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """The output of DequantizeLinear node `index`: integers, their scale and zero point (None: zero).

    `axis` is the one that scale varies along, None for one scale; `may_vary` says whether the operator's version
    has such an axis at all.
    """

    node: NodeProto
    index: int
    integers: Constant
    scale: Constant
    zero: Constant | None
    axis: int | None
    may_vary: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions of the weight."""
        return self.integers.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        """The type that it is dequantised to."""
        assert self.scale.tensor.dtype is not None
        return self.scale.tensor.dtype

    @property
    def name(self) -> str:
        """The name of the integers."""
        return self.integers.name

    @property
    def frozen(self) -> tuple[str, ...]:
        """Overridable initializers behind it."""
        zero = self.zero.overridable if self.zero is not None else ()
        return (*self.integers.overridable, *self.scale.overridable, *zero)

    def _against(self) -> list[int]:
        """The shape that one number for each index of the axis, or one for all, has against the weight."""
        shape = [1] * len(self.shape)
        if self.axis is not None:
            shape[self.axis] = -1
        return shape

    def _centred(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """q - zero, and zero against the weight."""
        zero = np.zeros([1] * len(self.shape), np.int64)
        if self.zero is not None:
            zero = self.zero.tensor.array().astype(np.int64).reshape(self._against())
        return self.integers.tensor.array().astype(np.int64) - zero, zero

    def exact(self) -> Float64Array:
        """(q - zero) * scale."""
        return self._centred()[0].astype(np.float64) * self.scale.tensor.exact().reshape(self._against())

    def times(self, factor: Float64Array, axis: int) -> tuple[Edit, ...] | Refusal:
        """Multiply the scale; see above for signs and zeros."""
        del axis  # the scale has one axis at most
        if (factor == 1).all():
            return ()
        spans = [a for a in range(factor.ndim) if (factor != factor.take([0], a)).any()]
        along = spans[0] if spans else self.axis
        if len(spans) > 1 or (self.axis is not None and along != self.axis) or (spans and not self.may_vary):
            message = f"{label(self.node)} has its scale along axis {self.axis}, the factor varies along {spans}"
            return Refusal(Code.QUANTIZED_WEIGHT, message, label(self.node))
        flat = factor.ravel()[:1]
        if spans:
            flat = np.moveaxis(factor, spans[0], 0).reshape(factor.shape[spans[0]], -1)[:, 0]
        scale = self._scaled(flat, along)
        if isinstance(scale, Refusal):
            return scale
        integers = self._mirrored(flat, along)
        if isinstance(integers, Refusal):
            return integers
        return (*scale, *integers)

    def _scaled(self, flat: Float64Array, along: int | None) -> tuple[Edit, ...] | Refusal:
        """The edits of scale, zero point and axis."""
        old = self.scale.tensor.exact()
        magnitude = np.where(flat == 0, 1.0, np.abs(flat))
        shape = flat.shape if flat.size > 1 and self.axis is None else old.shape
        new = np.broadcast_to(old.reshape(-1) * magnitude, shape or (1,)).reshape(shape)
        product = finite(self.node, old, new, self.dtype)
        if isinstance(product, Refusal):
            return product
        if product.array().min(initial=np.inf) < min(smallest_normal(self.dtype), old.min(initial=np.inf)):
            message = f"the scale of {label(self.node)} would sink below the normal range of {self.dtype}"
            return Refusal(Code.UNDERFLOW, message, label(self.node))
        edits: list[Edit] = [SetConstant(self.index, 1, product, "")]
        if shape != old.shape:
            edits.append(SetAttribute(self.index, "axis", int(along or 0)))
            if self.zero is not None:
                wide = np.broadcast_to(self.zero.tensor.array().reshape(-1), shape).copy()
                edits.append(SetConstant(self.index, 2, ArrayTensor(wide), ""))
        return tuple(edits)

    def _mirrored(self, flat: Float64Array, along: int | None) -> tuple[Edit, ...] | Refusal:
        """The edit of the integers, where a factor is negative or zero."""
        if (flat > 0).all():
            return ()
        centred, zero = self._centred()
        against = [1] * centred.ndim
        if along is not None and flat.size > 1:
            against[along] = -1
        new = zero + centred * np.sign(flat).astype(np.int64).reshape(against)
        dtype = self.integers.tensor.dtype
        assert dtype is not None
        fitted = new.astype(dtype)
        if (fitted != new).any():
            message = f"a negative factor would take integers of {label(self.node)} out of the range of {dtype}"
            return Refusal(Code.QUANTIZED_WEIGHT, message, label(self.node))
        return (SetConstant(self.index, 0, ArrayTensor(fitted), ""),)


def read_quantized(facts: GraphFacts, index: int, reader: NodeProto) -> QuantizedWeight | Refusal:
    """The weight that DequantizeLinear node `index` makes for `reader`, or why it cannot be changed."""
    node = facts.nodes[index]
    at = label(node)
    if len(facts.users(node.output[0])) > 1 or node.output[0] in facts.outputs or node.output[0] in facts.pinned:
        return Refusal(Code.QUANTIZED_WEIGHT, f"the weight of {label(reader)}, made by {at}, is used elsewhere", at)
    found = [facts.constants.find(name) if name else None for name in node.input]
    integers = found[0] if found else None
    if len(found) < 2 or integers is None or integers.tensor.dtype not in INTEGERS:
        return Refusal(
            Code.QUANTIZED_WEIGHT, f"the integers of {at} are not constant, or of a type not known here", at
        )
    scale = read_constant(facts, node.input[1], "the scale", node, Code.WEIGHTS_NOT_CONSTANT)
    if isinstance(scale, Refusal):
        return scale
    zero = found[2] if len(found) > 2 else None
    if len(node.input) > 2 and node.input[2] and (zero is None or zero.tensor.dtype != integers.tensor.dtype):
        return Refusal(Code.QUANTIZED_WEIGHT, f"the zero point of {at} is not a constant of the integers' type", at)
    overridable = [c for c in (integers, zero) if c is not None and c.overridable]
    if overridable and not facts.freeze_inputs:
        return Refusal(Code.OVERRIDABLE_INITIALIZER, f"{at} reads an initializer that is also a model input", at)
    return _checked(facts, index, integers, scale, zero)


def _checked(
    facts: GraphFacts, index: int, integers: Constant, scale: Constant, zero: Constant | None
) -> QuantizedWeight | Refusal:
    """Whether shapes and attributes are those of one scale, or of one for each index of an axis."""
    node = facts.nodes[index]
    at, shape, held = label(node), integers.tensor.shape, scale.tensor.shape
    rank = len(shape)
    blocked = int_attribute(node, "block_size", 0) or len(held) > 1
    odd = zero is not None and zero.tensor.shape != held
    if blocked or odd or scale.tensor.exact().min(initial=1) <= 0:
        return Refusal(
            Code.QUANTIZED_WEIGHT, f"the scale of {at} is by blocks, not positive, or fits no zero point", at
        )
    axis: int | None = None
    if held and held[0] != 1:
        axis = int_attribute(node, "axis", 1) % max(rank, 1)
        if rank == 0 or shape[axis] != held[0]:
            return Refusal(Code.SHAPE_MISMATCH, f"the scale of {at} has shape {held}, the integers {shape}", at)
    return QuantizedWeight(node, index, integers, scale, zero, axis, facts.opset() >= 13)
