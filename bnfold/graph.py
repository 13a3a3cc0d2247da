"""Facts about a graph: who produces a value, who uses it, what is constant, which opset, which names are free.

Built in one pass, each question answered in constant time. Nothing here changes the model; `edits.Editor`
does, and keeps these facts true while it works.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from bnfold.errors import InvalidModelError
from bnfold.evaluate import PURE, evaluate, inputs_that_matter
from bnfold.rounding import Array
from bnfold.tensors import ArrayTensor, StoredTensor, Tensor, of_attributes
from bnfold.text import printable

ONNX_DOMAINS = ("", "ai.onnx")
SAME_TYPE = frozenset(  # operators whose output has the element type of their first input
    ["Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Dropout",
     "Elu", "Expand", "Flatten", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
     "Identity", "InstanceNormalization", "LeakyRelu", "MatMul", "Max", "MaxPool", "Min", "Mish", "Mul", "Neg", "Pad",
     "PRelu", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Sub",
     "Sum", "Tanh", "Transpose", "Unsqueeze"]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Use:
    """One place where a value is read: input `index` of node `node`, or, with index -1, inside its nested graphs."""

    node: int
    index: int


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


class GraphFacts:
    """Facts about the main graph of a model. Nodes are named by their index in `nodes`.

    `freeze_inputs` says that initializers which are also graph inputs count as constants all the same.

    Attributes:
        nodes: the nodes, in the order of the file.
        order: their indices in a topological order; that of the file, where it is one.

    Raises:
        InvalidModelError: a value has two producers or none, or the graph has a cycle.
    """

    def __init__(self, model: ModelProto, folder: Path | None = None, *, freeze_inputs: bool = False) -> None:
        self.model = model
        self.freeze_inputs = freeze_inputs
        self.graph = model.graph
        self.folder = folder
        self.nodes: list[NodeProto] = list(self.graph.node)
        self.opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
        self.inputs: dict[str, ValueInfoProto] = {value.name: value for value in self.graph.input}
        self.outputs = {value.name for value in self.graph.output}
        self.constants: dict[str, Tensor] = {}
        for tensor in self.graph.initializer:
            if tensor.name in self.constants:
                raise InvalidModelError(f"there are two initializers called {printable(tensor.name)!r}")
            self.constants[tensor.name] = StoredTensor(tensor, folder)
        self.sparse = {tensor.values.name for tensor in self.graph.sparse_initializer}
        self.pinned = set(_names_pinned_elsewhere(model))
        self.producers: dict[str, int] = {}
        self.uses: dict[str, dict[Use, None]] = {}  # an ordered set: removing one of many takes no time
        self._local_functions = {(_domain(f.domain), f.name) for f in model.functions}
        self._constant_nodes: set[int] = set()
        self._computed: dict[str, Tensor | None] = {}
        infos = (*self.graph.input, *self.graph.value_info, *self.graph.output)
        self._types: dict[str, int] = {v.name: t for v in infos if (t := v.type.tensor_type.elem_type)}
        self._types |= {t.name: t.data_type for t in self.graph.initializer}
        self._taken: set[str] | None = None
        self._counts: dict[str, int] = {}
        self._positions: dict[int, int] = {}
        self.order: Sequence[int] = range(len(self.nodes))
        self._index_nodes()
        self._check_outputs()

    def _index_nodes(self) -> None:
        known = self.inputs.keys() | self.constants.keys() | self.sparse | {""}
        in_order = True
        for i, node in enumerate(self.nodes):
            reads = self._index_reads(i, node)
            in_order = in_order and all(name in known or name in self.producers for name in reads)
            for value in filter(None, node.output):
                if value in self.producers or value in known:
                    raise InvalidModelError(
                        f"{printable(value)!r} is produced twice, the second time by {label(node)}"
                    )
                self.producers[value] = i
        if not in_order:
            self.order = self._sort(known)
        for i in self.order:
            if self._is_constant_node(i):
                self._constant_nodes.add(i)

    def _check_outputs(self) -> None:
        for name in sorted(self.outputs):
            if not (name in self.producers or name in self.inputs or name in self.constants or name in self.sparse):
                raise InvalidModelError(f"nothing produces {printable(name)!r}, an output of the model")

    def _index_reads(self, i: int, node: NodeProto) -> list[str]:
        """Note what the node reads, its nested graphs included; returns the names."""
        captured = sorted(captures(node))
        for index, value in enumerate(node.input):
            if value:
                self.uses.setdefault(value, {})[Use(i, index)] = None
        for value in captured:
            self.uses.setdefault(value, {})[Use(i, -1)] = None
        return [*node.input, *captured]

    def _sort(self, known: AbstractSet[str]) -> list[int]:
        """A topological order, for the files whose nodes are in none. Runtimes take those, and so do we."""
        waiting: dict[int, int] = {}
        readers: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            reads = [*node.input, *sorted(captures(node))]
            for name in reads:
                if name not in known and name not in self.producers:
                    raise InvalidModelError(f"{label(node)} reads {printable(name)!r}, which nothing produces")
            sources = {self.producers[name] for name in reads if name in self.producers}
            waiting[i] = len(sources)
            for source in sources:
                readers.setdefault(source, []).append(i)
        order = [i for i, count in waiting.items() if not count]
        for i in order:  # grows while it is walked: Kahn's algorithm
            for reader in readers.get(i, ()):
                waiting[reader] -= 1
                if not waiting[reader]:
                    order.append(reader)
        if len(order) < len(self.nodes):
            stuck = next(i for i, count in waiting.items() if count)
            raise InvalidModelError(f"the graph has a cycle through, or before, {label(self.nodes[stuck])}")
        return order

    def _is_constant_node(self, node: int) -> bool:
        """Whether the node computes the same in every run: Constant, or a pure operator on constants."""
        op = self.op(node)
        if op == "Constant":
            return True
        proto = self.nodes[node]
        if op != "Identity" and (op not in PURE or len(proto.output) != 1):
            return False
        return all(
            name in self.constants or self.producers.get(name) in self._constant_nodes
            for name in inputs_that_matter(proto)
        )

    def only_input(self, node: int) -> str:
        """The first input of a node that must have one.

        Raises:
            InvalidModelError: it has none.
        """
        proto = self.nodes[node]
        if not proto.input or not proto.input[0]:
            raise InvalidModelError(f"{label(proto)} has no input")
        return proto.input[0]

    def op(self, node: int) -> str:
        """The operator's name where it is a standard one; `domain::name` for all others."""
        proto = self.nodes[node]
        domain = _domain(proto.domain)
        if domain == "" and ("", proto.op_type) not in self._local_functions:
            return proto.op_type
        return f"{domain}::{proto.op_type}"

    def opset(self) -> int:
        """The version of the standard operators; 1 where the model does not say (IR < 3)."""
        return int(self.opsets.get("", 1))

    def producer(self, value: str) -> int | None:
        """The node that makes `value`; None for inputs and initializers."""
        return self.producers.get(value)

    def users(self, value: str) -> Collection[Use]:
        """Every place that reads `value`, nested graphs included."""
        return self.uses.get(value, {})

    def is_free(self, value: str) -> bool:
        """Nothing reads `value`: no node, no graph output, no annotation, no training step."""
        return not (self.users(value) or value in self.outputs or value in self.pinned)

    def is_constant_node(self, node: int) -> bool:
        """Whether node `node` only computes a constant."""
        return node in self._constant_nodes

    def constant(self, value: str) -> Constant | None:
        """The constant behind `value`: an initializer, a Constant node, or what pure operators make of those."""
        value = self.through_identity(value)
        if value in self.constants:
            tensor = self.constants[value]
            return Constant(value, tensor, prod(tensor.shape), self._overridable([value]))
        node = self.producer(value)
        if node is None or node not in self._constant_nodes:
            return None
        below = self._constant_nodes_below(node)
        for index in below:
            self._compute(index)
        computed = self._computed[value]
        reads = {name for index in below for name in inputs_that_matter(self.nodes[index])}
        held = [self.constants[name] for name in reads if name in self.constants]
        held += [made for index in below if self.op(index) == "Constant" and (made := self._value_of(index))]
        elements = sum(prod(tensor.shape) for tensor in held)
        return None if computed is None else Constant(value, computed, elements, self._overridable(sorted(reads)))

    def _value_of(self, node: int) -> Tensor | None:
        return self._computed.get(self.nodes[node].output[0])

    def through_identity(self, value: str) -> str:
        """The value that `value` is a copy of, through any number of Identity nodes; often itself."""
        while (node := self.producer(value)) is not None and self.op(node) == "Identity":
            value = self.only_input(node)
        return value

    def _constant_nodes_below(self, node: int) -> list[int]:
        """The nodes that the constant `node` is computed from, itself included, in order."""
        found, open_ = {node}, [node]
        while open_:
            for name in inputs_that_matter(self.nodes[open_.pop()]):
                source = self.producer(name)
                if source is not None and source not in found:
                    found.add(source)
                    open_.append(source)
        return sorted(found, key=self._position)

    def _position(self, node: int) -> int:
        """Where the node stands in `order`."""
        if isinstance(self.order, range):
            return node
        if not self._positions:
            self._positions = {index: place for place, index in enumerate(self.order)}
        return self._positions[node]

    def _compute(self, node: int) -> None:
        proto = self.nodes[node]
        output = proto.output[0]
        if output in self._computed:
            return
        if self.op(node) == "Constant":
            self._computed[output] = of_attributes(proto, self.folder)
            return
        inputs: dict[str, Array] = {}
        for name in (name for name in proto.input if name):
            tensor = self.constants.get(name) or self._computed.get(name)
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
        result = evaluate(proto, inputs, self.opset())
        self._computed[output] = None if result is None else ArrayTensor(result)

    def value_type(self, value: str) -> np.dtype | None:
        """The element type of a value, declared or by what makes it; None where neither tells."""
        path: list[str] = []
        kind: int | None = None
        while not kind:
            path.append(value)
            kind = self._types.get(value)
            producer = self.producer(value)
            if kind is not None or producer is None or self.op(producer) not in SAME_TYPE:
                break
            value = self.only_input(producer)
        self._types |= dict.fromkeys(path, kind or TensorProto.UNDEFINED)
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind)) if kind else None

    def _overridable(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names that a caller may feed another value for (below IR 4 all initializers are inputs)."""
        if self.model.ir_version < 4:
            return ()
        return tuple(name for name in dict.fromkeys(names) if name in self.constants and name in self.inputs)

    def fresh(self, hint: str) -> str:
        """A name like `hint` that nothing in the model uses; taken from now on."""
        if self._taken is None:
            self._taken = set(_all_names(self.model)) | self.constants.keys()
        name, count = hint, self._counts.get(hint, 1)
        while name in self._taken:
            count += 1
            name = f"{hint}_{count}"
        self._counts[hint] = count
        self._taken.add(name)
        return name


def int_attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute.

    Raises:
        InvalidModelError: it is of another type.
    """
    entry = _attribute(node, name, AttributeProto.INT, "i")
    return default if entry is None else entry.i


def float_attribute(node: NodeProto, name: str, default: float) -> float:
    """A float attribute; its value is a float32.

    Raises:
        InvalidModelError: it is of another type.
    """
    entry = _attribute(node, name, AttributeProto.FLOAT, "f")
    return default if entry is None else entry.f


def _attribute(node: NodeProto, name: str, kind: int, field: str) -> AttributeProto | None:
    for entry in node.attribute:
        if entry.name == name:
            typed = entry.type == kind or (entry.type == AttributeProto.UNDEFINED and entry.HasField(field))
            if entry.ref_attr_name or not typed:  # IR 1 files have values without a type
                raise InvalidModelError(
                    f"attribute {name} of {label(node)} is not of the type that the spec gives it"
                )
            return entry
    return None


def label(node: NodeProto) -> str:
    """How a node is called in messages: Conv 'name', or Conv -> 'output' where it has no name."""
    if node.name:
        return f"{printable(node.op_type)} '{printable(node.name)}'"
    return f"{printable(node.op_type)} -> '{printable(next(iter(node.output), ''))}'"


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs directly inside a node: the branches of an If, the body of a Loop or Scan."""
    for entry in node.attribute:
        if entry.type == AttributeProto.GRAPH:
            yield entry.g
        elif entry.type == AttributeProto.GRAPHS:
            yield from entry.graphs


def captures(node: NodeProto) -> set[str]:
    """The names that the nested graphs of `node` take from the scopes around it."""
    found: set[str] = set()
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {tensor.values.name for tensor in graph.sparse_initializer}
        read = {value.name for value in graph.output}
        for inner in graph.node:
            read.update(inner.input)
            read |= captures(inner)
            own.update(inner.output)
        found |= read - own
    return found - {""}


def nested_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Every node inside the nested graphs of `nodes`, at any depth; not `nodes` themselves."""
    for node in nodes:
        for graph in subgraphs(node):
            yield from graph.node
            yield from nested_nodes(graph.node)


def _domain(domain: str) -> str:
    return "" if domain in ONNX_DOMAINS else domain


def all_text(model: ModelProto) -> Iterator[str | bytes]:
    """Every string that bnfold reads from a model; bytes, where it is not the UTF-8 text it ought to be."""
    yield from _all_names(model)
    yield from (entry.domain for entry in model.opset_import)
    yield from (entry.tensor_name for entry in model.graph.quantization_annotation)
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in (*nodes, *nested_nodes(nodes)):
            yield from (node.name, node.op_type, node.domain)
            yield from (entry.name for entry in node.attribute)
            yield from node.output
    for function in model.functions:
        yield from (function.name, function.domain)


def _all_names(model: ModelProto) -> Iterator[str]:
    yield from _graph_names(model.graph)
    for info in model.training_info:
        yield from _graph_names(info.initialization)
        yield from _graph_names(info.algorithm)


def _graph_names(graph: GraphProto) -> Iterator[str]:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from (value.name for value in values)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from node.input
        yield from node.output
        for inner in subgraphs(node):
            yield from _graph_names(inner)


def _names_pinned_elsewhere(model: ModelProto) -> Iterator[str]:
    """Names that quantization annotations and training steps refer to: these tensors must stay."""
    for annotation in model.graph.quantization_annotation:
        yield from (entry.value for entry in annotation.quant_parameter_tensor_names)
    for info in model.training_info:
        for graph in (info.initialization, info.algorithm):
            yield from _graph_names(graph)
        for binding in (*info.initialization_binding, *info.update_binding):
            yield binding.key
            yield binding.value
