"""Evaluating a model in float64 with onnx's reference evaluator.

It stands in where onnxruntime has no kernel (float64 and bfloat16 Conv on the CPU), and it arbitrates where
two models differ by more than rounding should explain: in float64 the rounding of the run itself is gone, and
what is left is the difference between the two models' stored numbers.

The evaluator's own BatchNormalization is wrong below opset 14 (BatchNormalization-9 mixes the statistics of the
batch in), so those in inference form are evaluated by the spec's formula, here.
"""

import warnings
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from bnfold.evaluate import BROADCASTING
from bnfold.external import all_tensors
from bnfold.relocated import Relocated
from bnfold.rounding import FLOAT_TYPES, Array, to_float64
from bnfold.verification.feeds import Feeds, input_spec
from bnfold.verification.feeds.spec import each_array
from bnfold.verification.loops import start_loops
from bnfold.verification.runtime import CannotRunError, Model, OutOfTimeError
from bnfold.verification.seeds import pin
from bnfold.verification.timed import DEFAULT_LIMIT, Deadline

_NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


class ReferenceRunner:
    """One model in onnx.reference.ReferenceEvaluator, all its floats widened to float64.

    Args:
        model: which one.
        time_limit: seconds that one run may take; the clock is looked at between operators.

    Raises:
        CannotRunError: the model does not load, or has an operator that the evaluator does not know.
    """

    provider = "reference"
    runtime = f"onnx {onnx.__version__} reference evaluator, in float64"

    def __init__(self, model: Model, time_limit: float = DEFAULT_LIMIT) -> None:
        from bnfold.verification.batchnorm import InferenceBatchNormalization, substitute

        try:
            proto = _load(model)
            initializers = {tensor.name for tensor in proto.graph.initializer}
            self.inputs = [input_spec(value) for value in proto.graph.input if value.name not in initializers]
            _check_broadcasting(proto)
            pin(proto)
            start_loops(proto)
            widen(proto)
            substitute(proto)
            self._limit, self._deadline = time_limit, Deadline()
            self._evaluator = _timed_evaluator(self._deadline)(proto, new_ops=[InferenceBatchNormalization])
        except Exception as error:  # noqa: BLE001 - the evaluator raises what its operators raise
            raise CannotRunError(f"the reference evaluator cannot load the model: {_short(error)}") from None
        self.outputs = [value.name for value in proto.graph.output]

    def run(self, feeds: Feeds) -> list[Any]:
        """The outputs of one run, in float64."""
        wide = {name: each_array(_wide, value) for name, value in feeds.items()}
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings(), self._deadline.set(self._limit):
                warnings.simplefilter("ignore")  # they would reach stderr, with lines of another package
                return list(self._evaluator.run(None, wide))
        except TimeoutError:
            raise OutOfTimeError(self._limit, "the reference evaluator") from None
        except Exception as error:  # noqa: BLE001 - the evaluator raises what its operators raise
            raise CannotRunError(f"the reference evaluator cannot run the model: {_short(error)}") from None


def _timed_evaluator(deadline: Deadline) -> Any:
    """A class of evaluator that asks about the time before each operator and each turn of a Loop.

    Nested graphs and functions are evaluated by the class of what holds them, and each logs what it is about to do.
    """
    from onnx.reference import ReferenceEvaluator

    class Timed(ReferenceEvaluator):
        """Stops between two operators."""

        def _log(self, *args: Any) -> None:  # noqa: ARG002 - nothing is logged
            deadline.check()

    return Timed


def _wide(array: Array) -> Array:
    return to_float64(array) if array.dtype in FLOAT_TYPES else array


def _load(model: Model) -> ModelProto:
    if isinstance(model, Relocated):
        return model.with_numbers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys of external data that onnx does not know; it reads the numbers
        return onnx.load(model) if isinstance(model, Path) else onnx.load_model_from_string(model)


def _check_broadcasting(model: ModelProto) -> None:
    """Below opset 7, `broadcast` and `axis` align the shapes of Add, Mul, ...; the evaluator ignores them.

    Raises:
        ValueError: the model uses them.
    """
    for node in model.graph.node:
        if node.op_type in BROADCASTING and any(entry.name == "broadcast" for entry in node.attribute):
            raise ValueError(f"{node.op_type} with the attribute broadcast")


def storage_type(model: ModelProto) -> np.dtype | None:
    """The floating-point type that most of the model's numbers are stored in; None where there are none."""
    counts: Counter[int] = Counter()
    for tensor in all_tensors(model):
        counts[tensor.data_type] += prod(tensor.dims)
    stored = [kind for kind, _ in counts.most_common() if kind in (*_NARROW, TensorProto.DOUBLE)]
    return np.dtype(helper.tensor_dtype_to_np_dtype(stored[0])) if stored else None


def widen(model: ModelProto) -> None:
    """Turn every narrower float in the model into float64: tensors, declared types, targets of Cast."""
    _widen_graph(model.graph)
    for function in model.functions:
        _widen_nodes(function.node)


def _widen_graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for values in (graph.input, graph.output, graph.value_info):
        for value in values:
            _widen_type(value)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.type == AttributeProto.GRAPH:
                _widen_graph(attribute.g)
            elif attribute.name in ("to", "dtype") and attribute.i in _NARROW:
                attribute.i = TensorProto.DOUBLE
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                tensor = numpy_helper.from_array(np.array(values, np.float64))
                attribute.CopyFrom(helper.make_attribute("value", tensor))


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _NARROW:
        array = to_float64(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _widen_type(value: ValueInfoProto) -> None:
    if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in _NARROW:
        value.type.tensor_type.elem_type = TensorProto.DOUBLE


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
