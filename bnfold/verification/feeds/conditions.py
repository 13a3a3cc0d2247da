"""Conditions of an If that single numbers among the inputs and constants decide, as functions of these numbers.

    x (int64, one element) -> Sub (., 2) -> Equal (., 0) -> If        x -> whether the first branch runs

What makes the condition is cut out, across the graphs that it lies in, and evaluated by onnx's reference evaluator.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from bnfold.nodes import ONNX_DOMAINS, may_nest, named_subgraphs
from bnfold.rounding import Array
from bnfold.verification.seeds import RANDOM

Values = Mapping[str, float]  # of single numbers, by input
Branch = tuple[str, bool]  # a condition, or a Boolean input, and its value
_MOST_NODES = 64  # that make one condition
_MOST_ELEMENTS = 16  # of a constant whose numbers count as near


@dataclass(frozen=True, slots=True)
class Single:
    """An input of one element."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def array(self, value: float) -> Array:
        """The input with this value."""
        return np.full(self.shape, value).astype(self.dtype)


@dataclass(frozen=True, slots=True)
class IfNode:
    """An If: the value that decides, and the branches around it."""

    condition: str
    around: tuple[Branch, ...]


class Condition:
    """A value that is made of single inputs and constants alone.

    Attributes:
        inputs: which ones.
        numbers: of the constants on the way.
    """

    def __init__(self, model: ModelProto, inputs: Mapping[str, Single], numbers: tuple[float, ...]) -> None:
        self.inputs, self.numbers = inputs, numbers
        self._model = model
        self._seen: dict[tuple[float, ...], bool | None] = {}

    def holds(self, values: Values) -> bool | None:
        """Whether it is true for these values; None where it cannot be told."""
        key = tuple(values[name] for name in self.inputs)
        if key not in self._seen:
            self._seen[key] = self._run({name: one.array(values[name]) for name, one in self.inputs.items()})
        return self._seen[key]

    @functools.cached_property
    def _evaluator(self) -> Any:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(self._model)

    def _run(self, feeds: dict[str, Array]) -> bool | None:
        try:
            with np.errstate(all="ignore"):
                found = np.asarray(self._evaluator.run(None, feeds)[0])
        except Exception:  # noqa: BLE001 - whatever the operators raise, the condition stays unknown
            return None
        return bool(found.item()) if found.size == 1 else None


class Scope:
    """What makes each value, in all graphs of a model.

    Attributes:
        ifs: every If, in the order of the file.
    """

    def __init__(self, model: ModelProto, single: Mapping[str, Single]) -> None:
        self._model, self._single = model, single
        self._nodes: list[NodeProto] = []
        self._makers: dict[str, int] = {}
        self._constants: dict[str, TensorProto] = {}
        self.ifs: list[IfNode] = []
        self._walk(model.graph, ())

    def _walk(self, graph: GraphProto, around: tuple[Branch, ...]) -> None:
        self._constants |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            self._makers |= {name: len(self._nodes) for name in node.output if name}
            self._nodes.append(node)
            is_if = node.op_type == "If" and node.domain in ONNX_DOMAINS and len(node.input) == 1
            if is_if:
                self.ifs.append(IfNode(node.input[0], around))
            for name, inner in named_subgraphs(node):
                more = ((node.input[0], name == "then_branch"),) if is_if else ()
                self._walk(inner, (*around, *more))

    def condition(self, name: str) -> Condition | None:
        """A value as a function of the single inputs; None where it needs more than these."""
        found: set[int] = set()
        inputs: dict[str, Single] = {}
        constants: dict[str, TensorProto] = {}
        open_ = [name]
        while open_:
            value = open_.pop()
            if value in self._single:
                inputs[value] = self._single[value]
            elif value in self._constants:
                constants[value] = self._constants[value]
            elif not self._follow(value, found, open_):
                return None
        try:
            return self._condition(name, [self._nodes[index] for index in sorted(found)], inputs, constants)
        except (TypeError, ValueError):  # numbers that were left out of a light model, or are elsewhere
            return None

    def _follow(self, value: str, found: set[int], open_: list[str]) -> bool:
        """Go on to the inputs of what makes a value; False where that is not to be evaluated."""
        index = self._makers.get(value)
        if index is None or len(found) >= _MOST_NODES:
            return False
        node = self._nodes[index]
        if may_nest(node) or node.op_type in RANDOM:
            return False
        if index not in found:
            found.add(index)
            open_.extend(filter(None, node.input))
        return True

    def _condition(
        self, name: str, nodes: list[NodeProto], inputs: dict[str, Single], constants: dict[str, TensorProto]
    ) -> Condition:
        arrays = [*map(numpy_helper.to_array, constants.values()), *_inside(nodes)]
        if any(array.size != prod(t.dims) for array, t in zip(arrays, constants.values(), strict=False)):
            raise ValueError(name)
        near = [array for array in arrays if array.size <= _MOST_ELEMENTS and array.dtype.kind in "iuf"]
        numbers = tuple(float(number) for array in near for number in array.ravel() if np.isfinite(number))
        declared = [value for value in self._model.graph.input if value.name in inputs]
        output = ValueInfoProto(name=name)
        graph = helper.make_graph(nodes, "condition", declared, [output], list(constants.values()))
        model = ModelProto(graph=graph, ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        return Condition(model, inputs, numbers)


def _inside(nodes: list[NodeProto]) -> Iterator[Array]:
    """The numbers that Constant nodes hold."""
    for node in nodes:
        for entry in node.attribute if node.op_type == "Constant" else ():
            value = helper.get_attribute_value(entry)
            yield numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)
