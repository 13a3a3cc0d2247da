"""The operators that are evaluated in float64, each with the size of what it puts out (see `float64`).

Errors move through an operator by at most its slope: sizes of sums are added, of products multiplied; a quotient or
a root near zero makes them large. Operators that do not let errors grow (Relu, MaxPool, Sigmoid) hand the size on.
Source: Higham 2002, chapters 3.1 and 3.5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from bnfold.affine import Float64Array
from bnfold.nodes import float_attribute, int_attribute
from bnfold.rounding import FLOAT_TYPES, Array, to_float64
from bnfold.verification.linear import conv, conv_transpose, gemm
from bnfold.verification.onenode import NotEvaluatedError, reference

# Operators that only move, select or average numbers: sizes go the way of the values.
MOVING = frozenset(
    ["AveragePool", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherND",
     "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Pad", "ReduceMax", "ReduceMean", "ReduceSum",
     "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Upsample"]
)  # fmt: skip
# Operators along which a change of the input changes the output by no more, or hardly more.
CALM = frozenset(
    ["Abs", "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu",
     "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh"]
)  # fmt: skip
SUMS = frozenset(["Add", "Sub", "Sum", "Neg"])
CORES = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
PRODUCTS = CORES | {"Div", "Mul"}
ROOTS = frozenset(["Reciprocal", "Sqrt"])


RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)


@dataclass(frozen=True, slots=True)
class Number:
    """A value on its way through a segment.

    Attributes:
        value: the numbers.
        size: of what was added up to them.
        depth: the layers of matrix products on the way.
        steps: the operators on the way that round.
        length: of the longest dot product on the way.
    """

    value: Any
    size: Float64Array
    depth: int = 0
    steps: int = 0
    length: int = 1


Pair = tuple[Float64Array, Float64Array]  # a value and its size


def number_of(array: Array) -> Number:
    """A number that is given: floats widened, their sizes their absolute values."""
    if array.dtype in FLOAT_TYPES:
        wide = to_float64(array)
        return Number(wide, np.abs(wide))
    return Number(array, np.zeros(()))


def apply(node: NodeProto, op: str, inputs: list[Number | None], opset: int) -> list[Number]:
    """What a node makes of its inputs.

    Raises:
        NotEvaluatedError: the operator or a type is not evaluated here.
    """
    there = [number for number in inputs if number is not None]
    depth = max((number.depth for number in there), default=0)
    steps = max((number.steps for number in there), default=0)
    length = max((number.length for number in there), default=1)
    floats = [number is not None and number.value.dtype == np.float64 for number in inputs]
    if op in ("Shape", "Size") or (not any(floats) and op not in RANDOM and inputs):
        values = reference(node, [n if n is None else n.value for n in inputs], opset)
        return [number_of(value) for value in values]
    if op == "Cast":
        return [_cast(node, inputs[0])]
    if op == "DequantizeLinear":
        return [_dequantized(node, inputs)]
    if op in MOVING or op in CALM:
        values = reference(node, [n if n is None else n.value for n in inputs], opset)
        sizes = _sizes(node, op, inputs, values, opset)
        return [Number(*both, depth, steps, length) for both in zip(values, sizes, strict=False)]
    if op in PRODUCTS:
        pair = _product(node, op, inputs)
    elif op == "BatchNormalization":
        pair = _batchnorm(node, inputs, opset)
    elif op in SUMS:
        pair = _sum(op, there)
    elif op in ROOTS:
        pair = _root(op, there)
    else:
        raise NotEvaluatedError(f"{op} is not evaluated in float64")
    if op not in CORES:
        return [Number(*pair, depth, steps + 1, length)]
    return [Number(*pair, depth + 1, steps + 1, max(length, _dot_length(op, inputs)))]


def _dot_length(op: str, inputs: list[Number | None]) -> int:
    weight = inputs[1]
    assert weight is not None  # as the product was computed
    shape = weight.value.shape
    return int(np.prod(shape[1:])) if op == "Conv" else int(weight.value.size // max(shape[-1], 1))


def _cast(node: NodeProto, given: Number | None) -> Number:
    """A Cast between floating-point types: what it rounds is left out here, as in all else."""
    kinds = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    if given is None or int_attribute(node, "to", 0) not in kinds:
        raise NotEvaluatedError("a Cast to whole numbers is not evaluated")
    return given


def _dequantized(node: NodeProto, inputs: list[Number | None]) -> Number:
    """Whole numbers times their scale: y = (x - zero point) scale, by tensor or along an axis."""
    x, scale, zero = (*inputs, None)[:3]
    if x is None or scale is None or x.value.dtype.kind not in "iu" or scale.value.ndim > 1:
        raise NotEvaluatedError("DequantizeLinear by blocks, or of other than whole numbers, is not evaluated")
    axis = int_attribute(node, "axis", 1) % max(x.value.ndim, 1)
    by_map = scale.value.size > 1
    along = [-1 if by_map and place == axis else 1 for place in range(x.value.ndim)]
    offset = np.zeros(scale.value.shape) if zero is None else zero.value.astype(np.float64)
    value = (x.value.astype(np.float64) - offset.reshape(along)) * scale.value.reshape(along)
    return Number(value, np.abs(value))


def _sizes(
    node: NodeProto, op: str, inputs: list[Number | None], values: list[Array], opset: int
) -> list[Float64Array]:
    """The sizes of what an operator puts out that moves numbers, or does not let errors grow."""
    first = inputs[0]
    assert first is not None
    if op in CALM:
        slopes = inputs[1].size if op == "PRelu" and inputs[1] is not None else _slope(node, op)
        return [np.maximum(np.maximum(first.size, first.size * slopes), np.abs(values[0]))]
    if op == "MaxPool" and len(values) > 1:
        raise NotEvaluatedError("MaxPool with Indices is not evaluated")
    sized = [n if n is None else n.size if n.value.dtype == np.float64 else n.value for n in inputs]
    stretched = 2.0 if op in ("Resize", "Upsample") else 1.0  # cubic weights may be negative
    return [stretched * np.abs(size) for size in reference(node, sized, opset)]


def _slope(node: NodeProto, op: str) -> float:
    """The most that an operator multiplies a small change by, where its parameters say. Source: its spec."""
    if op in ("Celu", "Elu", "LeakyRelu"):
        return abs(float_attribute(node, "alpha", 1.0))
    if op == "Selu":
        gamma = abs(float_attribute(node, "gamma", 1.05070102))
        return gamma * max(1.0, abs(float_attribute(node, "alpha", 1.67326319)))
    return abs(float_attribute(node, "alpha", 0.2)) if op == "HardSigmoid" else 1.5


def _product(node: NodeProto, op: str, inputs: list[Number | None]) -> Pair:
    first, second = inputs[0], inputs[1]
    third = inputs[2] if len(inputs) > 2 else None
    if first is None or second is None:
        raise NotEvaluatedError(f"{op} lacks an input")
    _check_floats(first, second, third)
    value = _multiplied(node, op, first.value, second.value, None if third is None else third.value)
    if op == "Div":
        return value, first.size * second.size / second.value**2
    size = _multiplied(_positive(node), op, first.size, second.size, None if third is None else third.size)
    return value, size


def _multiplied(node: NodeProto, op: str, a: Float64Array, b: Float64Array, c: Float64Array | None) -> Float64Array:
    if op == "Conv":
        return conv(node, a, b, c)
    if op == "ConvTranspose":
        return conv_transpose(node, a, b, c)
    if op == "Gemm":
        return gemm(node, a, b, c)
    if op == "MatMul":
        return np.asarray(a @ b)
    return np.asarray(a * b if op == "Mul" else a / b)


def _positive(node: NodeProto) -> NodeProto:
    """The node with the absolute values of alpha and beta."""
    names = [entry.name for entry in node.attribute if entry.name in ("alpha", "beta") and entry.f < 0]
    if not names:
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    for entry in copy.attribute:
        entry.f = abs(entry.f) if entry.name in names else entry.f
    return copy


def _batchnorm(node: NodeProto, inputs: list[Number | None], opset: int) -> Pair:
    training = int_attribute(node, "training_mode", 0) or any(node.output[1:])
    if training or len(inputs) != 5 or any(number is None for number in inputs):
        raise NotEvaluatedError("BatchNormalization that is not in inference form")
    if opset < 7 and not int_attribute(node, "is_test", 0):
        raise NotEvaluatedError("BatchNormalization that is not in inference form")
    x, *parameters = [number for number in inputs if number is not None]
    _check_floats(x, *parameters)
    locations = (1,) * (x.value.ndim - 1 - parameters[0].value.ndim)
    gamma, beta, mean, var = (p.value.reshape(*p.value.shape, *locations) for p in parameters)
    scale = gamma / np.sqrt(var + float_attribute(node, "epsilon", float(np.float32(1e-5))))
    return scale * (x.value - mean) + beta, np.abs(scale) * (x.size + np.abs(mean)) + np.abs(beta)


def _sum(op: str, inputs: list[Number]) -> Pair:
    _check_floats(*inputs)
    first, rest = inputs[0], inputs[1:]
    if op == "Neg":
        return -first.value, first.size
    value, size = first.value, first.size
    for number in rest:
        value = value - number.value if op == "Sub" else value + number.value
        size = size + number.size
    return value, size


def _root(op: str, inputs: list[Number]) -> Pair:
    """Operators that are steep next to zero."""
    _check_floats(*inputs)
    x = inputs[0]
    if op == "Reciprocal":
        return 1 / x.value, x.size / x.value**2
    root = np.sqrt(x.value)
    return root, np.maximum(root, x.size / (2 * root))


def _check_floats(*numbers: Number | None) -> None:
    if any(number is not None and number.value.dtype != np.float64 for number in numbers):
        raise NotEvaluatedError("arithmetic on whole numbers is not evaluated")
