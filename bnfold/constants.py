"""Which values of a graph are the same in every run, and what they are.

An initializer, a Constant node, or what pure operators make of those (see `evaluate`). Which nodes compute
constants is decided in one pass; numbers are only computed when somebody asks.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from bnfold.errors import ByReferenceError, InvalidModelError
from bnfold.evaluate import PURE, evaluate, inputs_that_matter
from bnfold.nodes import int_attribute
from bnfold.rounding import Array
from bnfold.scopes import Scope
from bnfold.tensors import ArrayTensor, StoredTensor, Tensor, bytes_of, of_attributes
from bnfold.text import printable

if TYPE_CHECKING:
    from bnfold.graph import GraphFacts

MOST_ORIGINS = 1000  # constants of the file behind one computed constant
MOST_BYTES = 2**28  # of computed constants in one model; real ones are a few biases and parameters
SAME_TYPE = frozenset(  # operators whose output has the element type of their first input
    ["Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "DepthToSpace",
     "Div", "Dropout", "Elu", "Erf", "Exp", "Expand", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool",
     "GlobalMaxPool", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
     "LayerNormalization", "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mish", "Mul", "Neg", "PRelu", "Pad",
     "Pow", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Sigmoid", "Slice",
     "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Unsqueeze",
     "Upsample"]
)  # fmt: skip

TYPED_BY = {"CastLike": 1, "DequantizeLinear": 1, "Where": 1}  # the input that decides, where it is not the first


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is the same in every run.

    Attributes:
        name: of the value where it is stored or computed; Identity nodes are looked through.
        tensor: its numbers.
        overridable: the initializers behind it that are also graph inputs at IR >= 4, so that a caller may
            replace them.
        stored: how many bytes the file holds for it, where nodes generate it; None where it is stored as it is.
    """

    name: str
    tensor: Tensor
    stored: int | None
    overridable: tuple[str, ...] = ()


class Constants:
    """The constants of the graph that `facts` indexes; for a function, those `bound` to its inputs too.

    Attributes:
        stored: the initializers; `edits.Editor` adds and removes some.

    Raises:
        InvalidModelError: two initializers have one name.
    """

    def __init__(
        self, facts: "GraphFacts", lifted: Mapping[str, memoryview], bound: Mapping[str, Constant] | None = None
    ) -> None:
        self._facts = facts
        self._bound = bound or {}
        self.stored: dict[str, Tensor] = {name: constant.tensor for name, constant in self._bound.items()}
        self._types: dict[str, int] = {}
        for scope in facts.scopes:
            infos = (*scope.inputs, *scope.declared)
            self._types |= {v.name: t for v in infos if (t := v.type.tensor_type.elem_type)}
            self._types |= {t.name: t.data_type for t in scope.initializers}
            given = _given(facts, scope)
            for tensor in scope.initializers:
                if tensor.name in self.stored:
                    raise InvalidModelError(f"there are two initializers called {printable(tensor.name)!r}")
                if tensor.name not in given:
                    self.stored[tensor.name] = StoredTensor(tensor, facts.folder, lifted.get(tensor.name))
        self._nodes: set[int] = set()
        self._computed: dict[str, Tensor | None] = {}
        self._found: dict[str, Constant | None] = {}
        self._origins: dict[str, frozenset[str]] = {}
        self._spent = 0

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
        if value not in self.stored:
            node = self._facts.producer(value)
            if node is None or node not in self._nodes:
                return None
            value = self._facts.through_identity(value)
        if value in self.stored:
            tensor = self.stored[value]
            generated = self._bound[value].stored if value in self._bound else None
            return Constant(value, tensor, generated, self._overridable([value]))
        node = self._facts.producer(value)
        if node is None:
            return None
        if value not in self._found:
            self._found[value] = self._evaluate(value, node)
        return self._found[value]

    def _evaluate(self, value: str, node: int) -> Constant | None:
        for index in self._open_below(node):
            self._origins |= dict.fromkeys(self._facts.nodes[index].output, self._compute(index))
        tensor = self._computed.get(value)
        if tensor is None:
            return None
        origins = sorted(self._origins[value])
        stored = sum(bytes_of(held) for name in origins if (held := self._held(name)) is not None)
        return Constant(value, tensor, stored, self._overridable(origins))

    def _held(self, name: str) -> Tensor | None:
        return self.stored.get(name) or self._computed.get(name)

    def _open_below(self, node: int) -> list[int]:
        """The nodes that the constant `node` is computed from and that are not computed yet, itself too, in order."""
        found, open_ = {node}, [node]
        while open_:
            for name in inputs_that_matter(self._facts.nodes[open_.pop()]):
                source = self._facts.producer(name)
                if source is not None and source not in found and name not in self._computed:
                    found.add(source)
                    open_.append(source)
        return sorted(found, key=self._facts.position)

    def _compute(self, node: int) -> frozenset[str]:
        """Compute the node's output, None where that cannot be; returns the constants of the file behind it."""
        proto = self._facts.nodes[node]
        output = proto.output[0]
        if self._facts.op(node) == "Constant":
            self._computed[output] = of_attributes(proto, self._facts.folder)
            return frozenset([output])
        matter = inputs_that_matter(proto)
        origins = frozenset[str]().union(*(self._origins.get(name, {name}) for name in matter))
        if self._spent > MOST_BYTES or len(origins) > MOST_ORIGINS:
            self._computed[output] = None
            return frozenset()
        inputs = {name: self._input(name, matters=name in matter) for name in proto.input if name}
        known = {name: array for name, array in inputs.items() if array is not None}
        result = evaluate(proto, known, self._facts.opset()) if len(known) == len(inputs) else None
        self._spent += 0 if result is None else result.nbytes
        self._computed[output] = None if result is None else ArrayTensor(result)
        return origins

    def _input(self, name: str, *, matters: bool) -> Array | None:
        """The numbers of an input; for one of which only the type matters, an empty array of its type."""
        tensor = self._held(name)
        if tensor is not None and tensor.dtype is not None:
            return tensor.array()
        dtype = None if matters else self.value_type(name)
        return None if dtype is None else np.zeros(0, dtype)

    def value_type(self, value: str) -> np.dtype | None:
        """The element type of a value, declared or by what makes it; None where neither tells."""
        path: list[str] = []
        kind: int | None = None
        while not kind:
            path.append(value)
            kind = self._types.get(value)
            if kind is None and (held := self._held(value)) is not None:  # a constant that is new, or computed
                return held.dtype
            producer = self._facts.producer(value)
            if kind is not None or producer is None:
                break
            node, op = self._facts.nodes[producer], self._facts.op(producer)
            if op == "Cast":
                with contextlib.suppress(ByReferenceError):
                    kind = int_attribute(node, "to", 0)
                break
            slot = 0 if op in SAME_TYPE else TYPED_BY.get(op)
            if slot is None or slot >= len(node.input):
                break
            value = node.input[slot]
        self._types |= dict.fromkeys(path, kind or TensorProto.UNDEFINED)
        if not kind or kind not in TensorProto.DataType.values():
            return None
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind))

    def is_overridable(self, value: str) -> bool:
        """Whether a caller may feed something else for a stored constant, of another shape even."""
        facts = self._facts
        given = facts.in_function or (value in facts.inputs and facts.model.ir_version >= 4)
        return given and bool(self._overridable([value]))

    def _overridable(self, names: list[str]) -> tuple[str, ...]:
        """Those of the names that a caller may feed another value for (below IR 4 all initializers are inputs)."""
        if self._facts.in_function:
            return tuple([name for own in names if own in self._bound for name in self._bound[own].overridable])
        if self._facts.model.ir_version < 4:
            return ()
        return tuple([name for name in names if name in self._facts.inputs and name in self.stored])


def _given(facts: "GraphFacts", scope: Scope) -> frozenset[str]:
    """The inputs of a nested body, which are what the body is given, even where an initializer has the same name.

    Below IR 4 every initializer has to be an input too; there it counts in the branches of an If, which are given
    nothing.
    """
    nothing = scope.parent is None or (scope.op == "If" and facts.model.ir_version < 4)
    return frozenset() if nothing else frozenset(value.name for value in scope.inputs)
