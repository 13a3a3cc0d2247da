"""How each operator's output shapes follow from its inputs'. Returns nothing where they do not.

Source: the ONNX operator specifications. Operators that are not here count as unknown, and what the file
declares for their outputs is used.
"""

from collections.abc import Mapping, Sequence

from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute
from bnfold.parameters import reduced_axes
from bnfold.shapes import ONE, Dim, Shape, fixed
from bnfold.shapes.common import ShapeRule, cut, input_shape, made_up, wider
from bnfold.shapes.layout import LAYOUT
from bnfold.shapes.windows import WINDOWS


def _same(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    return [input_shape(facts, index)]


def _broadcast(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    shapes = [facts.shapes.of(name) for name in facts.nodes[index].input if name]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or not known or (facts.opset() < 7 and len({len(shape) for shape in known}) > 1):
        return []
    rank = max(map(len, known))
    columns = [[shape[axis - rank + len(shape)] for shape in known if axis - rank + len(shape) >= 0]
               for axis in range(rank)]  # fmt: skip
    return [tuple(wider(column) or made_up(facts, index, axis) for axis, column in enumerate(columns))]


def _gemm(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    node = facts.nodes[index]
    a, b = input_shape(facts, index), input_shape(facts, index, 1)
    rows = a[int_attribute(node, "transA", 0)] if a is not None else made_up(facts, index, 0)
    columns = b[1 - int_attribute(node, "transB", 0)] if b is not None else made_up(facts, index, 1)
    return [(rows, columns)]


def _matmul(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    a, b = input_shape(facts, index), input_shape(facts, index, 1)
    if a is None or b is None or len(a) < 1 or len(b) < 1:
        return []
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    outer = max(len(a), len(b)) - 2
    batch: list[Dim] = []
    for axis in range(outer):
        dims = [shape[axis - outer + len(shape) - 2] for shape in (a, b) if axis - outer + len(shape) - 2 >= 0]
        batch.append(wider(dims) or made_up(facts, index, axis))
    return [(*batch, *rows, *columns)]


def _fused_matmul(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    node = facts.nodes[index]
    transposes = any(int_attribute(node, name, 0) for name in ("transA", "transB", "transBatchA", "transBatchB"))
    return [] if transposes else _matmul(facts, index)


def _reduce(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, axes = input_shape(facts, index), reduced_axes(facts, index)
    if x is None or axes is None:
        return []
    keep = int_attribute(facts.nodes[index], "keepdims", 1)
    return [tuple(ONE if axis in axes else dim for axis, dim in enumerate(x) if keep or axis not in axes)]


def _constant(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    found = facts.constants.find(facts.nodes[index].output[0])
    return [] if found is None else [fixed(found.tensor.shape)]


def _constant_of_shape(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    target = facts.shapes.numbers(facts.nodes[index].input[0])
    if target is None:
        return []
    return [tuple(dim or made_up(facts, index, axis) for axis, dim in enumerate(target))]


def _shape(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = input_shape(facts, index)
    return [] if x is None else [(Dim(len(cut(facts, index, x))),)]


_SAME = [
    "Abs", "BatchNormalization", "Cast", "Celu", "Clip", "CumSum", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "InstanceNormalization",
    "LRN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization",
    "Mish", "Neg", "PRelu", "QuantizeLinear", "RMSNormalization", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid",
    "Sign", "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
]  # fmt: skip
_BROADCAST = ["Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Mean", "Min", "Mul", "Or", "Pow", "Sub", "Sum",
              "Where"]  # fmt: skip
_REDUCE = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

SHAPES: Mapping[str, ShapeRule] = {
    **WINDOWS,
    **LAYOUT,
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys([f"Reduce{name}" for name in _REDUCE], _reduce),
    "CastLike": _same,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "GatherElements": lambda facts, index: [input_shape(facts, index, 1)],
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Shape": _shape,
    "com.microsoft::FusedGemm": _gemm,
    "com.microsoft::FusedMatMul": _fused_matmul,
}
