"""Which values of a graph are the same in every run, and what they are.

An initializer, a Constant node, or what pure operators make of those (see `evaluate`). Which nodes compute
constants is decided in one pass; numbers are only computed when somebody asks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from bnfold.errors import InvalidModelError
from bnfold.evaluate import PURE, evaluate, inputs_that_matter
from bnfold.rounding import Array
from bnfold.tensors import ArrayTensor, StoredTensor, Tensor, of_attributes
from bnfold.text import printable

if TYPE_CHECKING:
    from bnfold.graph import GraphFacts

SAME_TYPE = frozenset(  # operators whose output has the element type of their first input
    ["Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Dropout",
     "Elu", "Expand", "Flatten", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
     "Identity", "InstanceNormalization", "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mish", "Mul", "Neg", "Pad",
     "PRelu", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Sub",
     "Sum", "Tanh", "Transpose", "Unsqueeze"]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is the same in every run.

    Attributes:
        name: of the value where it is stored or computed; Identity nodes are looked through.
        tensor: its numbers.
        overridable: the initializers behind it that are also graph inputs at IR >= 4, so that a caller may
            replace them.
        elements: how many numbers the file holds for it; less than the tensor has, where nodes generate it.
    """

    name: str
    tensor: Tensor
    elements: int
    overridable: tuple[str, ...] = ()


class Constants:
    """The constants of the graph that `facts` indexes.

    Attributes:
        stored: the initializers; `edits.Editor` adds and removes some.

    Raises:
        InvalidModelError: two initializers have one name.
    """

    def __init__(self, facts: "GraphFacts", lifted: Mapping[str, memoryview]) -> None:
        self._facts = facts
        graph = facts.graph
        self.stored: dict[str, Tensor] = {}
        for tensor in graph.initializer:
            if tensor.name in self.stored:
                raise InvalidModelError(f"there are two initializers called {printable(tensor.name)!r}")
            self.stored[tensor.name] = StoredTensor(tensor, facts.folder, lifted.get(tensor.name))
        infos = (*graph.input, *graph.value_info, *graph.output)
        self._types: dict[str, int] = {v.name: t for v in infos if (t := v.type.tensor_type.elem_type)}
        self._types |= {t.name: t.data_type for t in graph.initializer}
        self._nodes: set[int] = set()
        self._computed: dict[str, Tensor | None] = {}

    def index(self, order: Iterable[int]) -> None:
        """Find the nodes that compute constants; `order` is topological."""
        for node in order:
            if self._is_pure(node):
                self._nodes.add(node)

    def computes(self, node: int) -> bool:
        """Whether node `node` only computes a constant."""
        return node in self._nodes

    def _is_pure(self, node: int) -> bool:
        """Whether the node computes the same in every run: Constant, or a pure operator on constants."""
        op = self._facts.op(node)
        if op == "Constant":
            return True
        proto = self._facts.nodes[node]
        if op != "Identity" and (op not in PURE or len(proto.output) != 1):
            return False
        return all(
            name in self.stored or self._facts.producers.get(name) in self._nodes
            for name in inputs_that_matter(proto)
        )

    def find(self, value: str) -> Constant | None:
        """The constant behind `value`: an initializer, a Constant node, or what pure operators make of those."""
        value = self._facts.through_identity(value)
        if value in self.stored:
            tensor = self.stored[value]
            return Constant(value, tensor, prod(tensor.shape), self._overridable([value]))
        node = self._facts.producer(value)
        if node is None or node not in self._nodes:
            return None
        below = self._below(node)
        for index in below:
            self._compute(index)
        computed = self._computed[value]
        reads = {name for index in below for name in inputs_that_matter(self._facts.nodes[index])}
        held = [self.stored[name] for name in reads if name in self.stored]
        held += [made for index in below if self._facts.op(index) == "Constant" and (made := self._value_of(index))]
        elements = sum(prod(tensor.shape) for tensor in held)
        return None if computed is None else Constant(value, computed, elements, self._overridable(sorted(reads)))

    def _value_of(self, node: int) -> Tensor | None:
        return self._computed.get(self._facts.nodes[node].output[0])

    def _below(self, node: int) -> list[int]:
        """The nodes that the constant `node` is computed from, itself included, in order."""
        found, open_ = {node}, [node]
        while open_:
            for name in inputs_that_matter(self._facts.nodes[open_.pop()]):
                source = self._facts.producer(name)
                if source is not None and source not in found:
                    found.add(source)
                    open_.append(source)
        return sorted(found, key=self._facts.position)

    def _compute(self, node: int) -> None:
        proto = self._facts.nodes[node]
        output = proto.output[0]
        if output in self._computed:
            return
        if self._facts.op(node) == "Constant":
            self._computed[output] = of_attributes(proto, self._facts.folder)
            return
        inputs: dict[str, Array] = {}
        for name in (name for name in proto.input if name):
            tensor = self.stored.get(name) or self._computed.get(name)
            if tensor is not None and tensor.dtype is not None:
                inputs[name] = tensor.array()
            elif name in inputs_that_matter(proto):
                self._computed[output] = None
                return
            else:
                dtype = self.value_type(name)
                if dtype is None:
                    self._computed[output] = None
                    return
                inputs[name] = np.zeros(0, dtype)
        result = evaluate(proto, inputs, self._facts.opset())
        self._computed[output] = None if result is None else ArrayTensor(result)

    def value_type(self, value: str) -> np.dtype | None:
        """The element type of a value, declared or by what makes it; None where neither tells."""
        path: list[str] = []
        kind: int | None = None
        while not kind:
            path.append(value)
            kind = self._types.get(value)
            producer = self._facts.producer(value)
            if kind is not None or producer is None or self._facts.op(producer) not in SAME_TYPE:
                break
            value = self._facts.only_input(producer)
        self._types |= dict.fromkeys(path, kind or TensorProto.UNDEFINED)
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind)) if kind else None

    def _overridable(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names that a caller may feed another value for (below IR 4 all initializers are inputs)."""
        if self._facts.model.ir_version < 4:
            return ()
        return tuple(name for name in dict.fromkeys(names) if name in self.stored and name in self._facts.inputs)
