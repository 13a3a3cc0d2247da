"""Constants that are computed from constants, as exporters write them when nobody folded them.

    v = Shape <start = 0, end = 1> (W)    z = CastLike (zero, x)    bias = Expand (z, v)

Each node is evaluated on its own by onnx's reference implementation, in the graph's own types, as a runtime
would. Only operators on the list count, and nothing is evaluated whose result would be unreasonably large.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bnfold.rounding import Array

# Deterministic, without nested graphs, and cheap: their result is at most the broadcast of their inputs, or
# (Expand, ConstantOfShape) of a shape that is one of the inputs.
PURE = frozenset(
    ["Abs", "Add", "Cast", "CastLike", "Concat", "ConstantOfShape", "Div", "Exp", "Expand", "Flatten", "Gather",
     "Mul", "Neg", "Pow", "Reciprocal", "Reshape", "Shape", "Size", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose",
     "Unsqueeze"]
)  # fmt: skip
BROADCASTING = frozenset(["Add", "Div", "Mul", "Pow", "Sub"])
MOST_NEW_ELEMENTS = 2**20  # of a result that is larger than what it is made of


def inputs_that_matter(node: NodeProto) -> list[str]:
    """The inputs whose values decide the result. CastLike reads only the type of its second one."""
    names = list(node.input)[:1] if node.op_type == "CastLike" else list(node.input)
    return [name for name in names if name]


def evaluate(node: NodeProto, inputs: dict[str, Array], opset: int) -> Array | None:
    """The output of one node; None where the reference implementation cannot tell, or it would be too large."""
    if any(entry.name in ("broadcast", "axis") for entry in node.attribute) and node.op_type in BROADCASTING:
        return None  # opset 1 and 6: they align shapes by these attributes, which the implementation ignores
    arrays = [inputs[name] for name in node.input if name]
    if not arrays or _elements(node, arrays) > max(MOST_NEW_ELEMENTS, sum(array.size for array in arrays)):
        return None
    if node.op_type == "Cast" and any(entry.i == TensorProto.STRING for entry in node.attribute):
        return None
    from onnx.reference import ReferenceEvaluator

    names = [name for name in dict.fromkeys(node.input) if name]
    values = [helper.make_value_info(name, helper.make_tensor_type_proto(1, None)) for name in names]
    outputs = [helper.make_value_info(node.output[0], helper.make_tensor_type_proto(1, None))]
    graph = helper.make_graph([node], "constant", values, outputs)
    try:
        with np.errstate(all="ignore"):
            result: Any = ReferenceEvaluator(graph, opsets={"": opset}).run(None, inputs)
    except Exception:  # noqa: BLE001 - whatever the operator raises, the value stays unknown
        return None
    return np.asarray(result[0])


def _elements(node: NodeProto, inputs: Sequence[Array]) -> int:
    if node.op_type == "ConstantOfShape":
        return _product(inputs[0])
    if node.op_type == "Expand" and len(inputs) > 1:
        return max(inputs[0].size, 1) * _product(inputs[1])
    if node.op_type == "Gather":
        return prod(max(value.size, 1) for value in inputs)
    if node.op_type == "Concat":
        return sum(value.size for value in inputs)
    try:
        return prod(np.broadcast_shapes(*(value.shape for value in inputs)))
    except ValueError:
        return sum(value.size for value in inputs)


def _product(shape: Array) -> int:
    return prod(max(int(size), 1) for size in shape.astype(np.int64).ravel()[:64])
