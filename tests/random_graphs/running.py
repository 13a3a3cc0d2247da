"""Running a model in onnxruntime with every value in sight: outputs of all nodes, optimisations off."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

Values = dict[str, np.ndarray[Any, Any]]


class CannotRun(Exception):
    """onnxruntime has no kernel for this model, or refuses it."""


class Exposed:
    """A session that returns what every node of the main graph puts out, and the initializers."""

    def __init__(self, proto: ModelProto) -> None:
        copy = ModelProto()
        copy.CopyFrom(proto)
        self.constants: Values = {t.name: numpy_helper.to_array(t) for t in copy.graph.initializer}
        outputs = {value.name for value in copy.graph.output}
        self.names = list(dict.fromkeys(name for node in copy.graph.node for name in node.output if name))
        copy.graph.output.extend(ValueInfoProto(name=name) for name in self.names if name not in outputs)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = ort.InferenceSession(
                copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            raise CannotRun(str(error).splitlines()[0]) from None

    def run(self, feeds: Mapping[str, Any]) -> Values:
        """Every value by its name."""
        try:
            found = self._session.run(self.names, dict(feeds))
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no base class
            raise CannotRun(str(error).splitlines()[0]) from None
        return {**self.constants, **dict(zip(self.names, found, strict=True))}


def feeds(proto: ModelProto, sizes: Mapping[str, tuple[int, ...]], rng: np.random.Generator, more: int) -> Values:
    """Normal numbers for every input; free dimensions and flags depend on `sizes` and `more`."""
    made: Values = {}
    for value in proto.graph.input:
        if value.name not in sizes:
            continue  # an initializer
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.BOOL:
            made[value.name] = np.array((len(made) + more) % 2 == 0)
            continue
        nominal = sizes[value.name]
        shape = list(nominal)
        for axis, dim in enumerate(kind.shape.dim):
            shape[axis] = dim.dim_value or nominal[axis] + more
        made[value.name] = rng.normal(size=shape).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return made
