"""One node by onnx's reference evaluator, on float64."""

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from bnfold.rounding import Array


class NotEvaluatedError(Exception):
    """The segment holds something that is not evaluated here. The text says what."""


class UnfitError(NotEvaluatedError):
    """The shapes of the numbers do not fit the operator."""


def reference(node: NodeProto, inputs: list[Array | None], opset: int) -> list[Array]:
    """One node by onnx's reference evaluator, on float64.

    Raises:
        NotEvaluatedError: it does not know the operator, or cannot.
    """
    from onnx.reference import ReferenceEvaluator

    copy = NodeProto()
    copy.CopyFrom(node)
    names = [f"i{place}" if array is not None else "" for place, array in enumerate(inputs)]
    outputs = [f"o{place}" if name else "" for place, name in enumerate(node.output)]
    del copy.input[:], copy.output[:]
    copy.input.extend(names)
    copy.output.extend(outputs)
    kind = helper.make_tensor_type_proto(TensorProto.DOUBLE, None)
    infos: Any = [[helper.make_value_info(name, kind) for name in part if name] for part in (names, outputs)]
    graph = helper.make_graph([copy], "node", *infos)
    feeds: dict[str, Any] = {name: array for name, array in zip(names, inputs, strict=True) if name}
    try:
        found = ReferenceEvaluator(graph, opsets={"": opset}).run(None, feeds)
    except Exception as error:  # noqa: BLE001 - the evaluator raises what its operators raise
        raised = UnfitError if isinstance(error, ValueError) else NotEvaluatedError
        raise raised(f"{node.op_type}: {type(error).__name__}: {error}") from None
    return [np.asarray(array) for array in found]
