"""The last step of editing: pending numbers are written, dead messages removed, each list in one sweep."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, ValueInfoProto

from bnfold.graph import GraphFacts
from bnfold.messages import declare, is_in_file, message_behind, write_into
from bnfold.tensors import ArrayTensor, Tensor, bytes_of, is_external
from bnfold.wire import SMALLEST


@dataclass(slots=True)
class Sweep:
    """What editing has left to do.

    Attributes:
        pending: constants to write, by name.
        inserted: new nodes, each with the node of the file that it comes behind.
        dead_tensors, dead_values: names of constants and values that are no more.
        new_names: old names to new.
    """

    pending: dict[str, tuple[TensorProto, Tensor]] = field(default_factory=dict)
    inserted: dict[int, int] = field(default_factory=dict)
    dead_tensors: set[str] = field(default_factory=set)
    dead_values: set[str] = field(default_factory=set)
    new_names: dict[str, str] = field(default_factory=dict)
    placed: dict[int, tuple[str, list[str], list[str]]] = field(default_factory=dict)

    def is_gone(self, name: str) -> bool:
        """Whether the tensor or value of that name in the file is no more, under whatever name."""
        while name in self.new_names:
            name = self.new_names[name]
        return name in self.dead_values or name in self.dead_tensors

    def settle(self, *, inside: bool) -> None:
        """Compute what is pending, before another body's commit writes over what it is computed from.

        `inside` a function or nested body nothing is read from the file later, so that there all of it is computed.
        """
        for name, (proto, tensor) in self.pending.items():
            if message_behind(tensor) is not None and (inside or not is_in_file(tensor)):
                self.pending[name] = (proto, ArrayTensor(tensor.array()))

    def note_devices(self, nodes: Sequence[NodeProto]) -> None:
        """Remember what the nodes that are placed on devices read and make: their shardings name it."""
        for index, node in enumerate(nodes):
            if node.device_configurations:
                self.placed[index] = (node.op_type, list(node.input), list(node.output))

    def same_device(self, copy: int, node: int) -> None:
        """Note that a node is a copy of another, its shardings included."""
        if node in self.placed:
            self.placed[copy] = self.placed[node]

    def commit(self, facts: GraphFacts, frozen: frozenset[str]) -> dict[str, Tensor]:
        """Write the pending numbers and remove what is dead, each list in one sweep.

        Returns:
            The constants whose numbers are yet to be written, by name.
        """
        changed = self._write(facts)
        for index, (op, inputs, outputs) in self.placed.items():
            _repoint(facts.nodes[index], op, inputs, outputs)
        self._sweep_nodes(facts)
        for scope in facts.scopes:
            if isinstance(scope.body, GraphProto):
                self._sweep_graph(scope.body, frozen)
            else:
                self._sweep_function(scope.body)
        self.pending.clear()
        return changed

    def _sweep_function(self, body: FunctionProto) -> None:
        infos = getattr(body, "value_info", [])  # since IR 10
        for value in infos:
            value.name = self.new_names.get(value.name, value.name)
        gone = self.dead_values | self.dead_tensors
        _remove(infos, lambda value: value.name in gone)

    def _sweep_graph(self, graph: GraphProto, frozen: frozenset[str]) -> None:
        _remove(graph.initializer, lambda tensor: tensor.name in self.dead_tensors)
        _remove(graph.input, lambda value: value.name in frozen)
        for value in (*graph.input, *graph.value_info):
            if value.name in self.new_names:
                value.name = self.new_names[value.name]
                if value.name in self.pending:
                    _set_shape(value, self.pending[value.name][1].shape)
        for annotation in graph.quantization_annotation:
            annotation.tensor_name = self.new_names.get(annotation.tensor_name, annotation.tensor_name)
        gone = self.dead_values | self.dead_tensors
        _remove(graph.input, lambda value: value.name in self.dead_tensors)
        _remove(graph.value_info, lambda value: value.name in gone)
        _remove(graph.quantization_annotation, lambda entry: entry.tensor_name in gone)

    def _write(self, facts: GraphFacts) -> dict[str, Tensor]:
        """Write the pending numbers into the model; returns those that are written with the file."""
        alive = {name: held for name, held in self.pending.items() if name not in self.dead_tensors}
        sources = Counter(
            id(source) for _, tensor in alive.values() if (source := message_behind(tensor)) is not None
        )
        nested = facts.in_function or len(facts.scopes) > 1
        for name, (proto, tensor) in alive.items():
            if sources[id(message_behind(tensor))] > 1 and (nested or not is_in_file(tensor)):
                alive[name] = (proto, ArrayTensor(tensor.array()))  # one is written over the other's source
        changed: dict[str, Tensor] = {}
        for name, (proto, tensor) in alive.items():
            if facts.home(name) > 0 or facts.in_function:  # where nothing is written later
                write_into(proto, tensor)
            elif is_external(proto):
                if tuple(proto.dims) != tensor.shape:  # a C of Gemm that was one number
                    del proto.dims[:]
                    proto.dims.extend(tensor.shape)
                changed[proto.name] = tensor
            elif bytes_of(tensor) >= SMALLEST:
                changed[proto.name] = tensor if is_in_file(tensor) else ArrayTensor(tensor.array())
                declare(proto, tensor)
            else:
                write_into(proto, tensor)
        return changed

    def _sweep_nodes(self, facts: GraphFacts) -> None:
        """Remove the dead nodes, and put each new one behind the node that it belongs to."""
        nodes = facts.nodes
        dead = {id(nodes[i]) for i in facts.removed}
        if self.inserted:
            behind = {id(nodes[new]): (anchor, place) for place, (new, anchor) in enumerate(self.inserted.items(), 1)}
            ranks = {id(node): behind.get(id(node), (i, 0)) for i, node in enumerate(nodes)}
            for home in {facts.homes[new] for new in self.inserted}:
                facts.scopes[home].body.node.sort(key=lambda node: ranks[id(node)])
        for home in {facts.homes[i] for i in facts.removed}:
            _remove(facts.scopes[home].body.node, lambda node: id(node) in dead)


def _repoint(node: NodeProto, op: str, inputs: list[str], outputs: list[str]) -> None:
    """Let a node's shardings name the inputs and outputs that it has now, place by place; drop those it has not."""
    slots = dict(zip(outputs, node.output, strict=False))
    turned = op != node.op_type and node.op_type in ("Add", "Identity")  # the parameters are no more
    slots |= dict(zip(inputs[: 1 if turned else None], node.input, strict=False))
    known = {*node.input, *node.output}
    for held in node.device_configurations:
        for spec in held.sharding_spec:
            spec.tensor_name = slots.get(spec.tensor_name, spec.tensor_name)
        _remove(held.sharding_spec, lambda spec: spec.tensor_name not in known)


def _set_shape(value: ValueInfoProto, shape: tuple[int, ...]) -> None:
    kind = value.type.tensor_type
    if kind.HasField("shape") and [dim.dim_value for dim in kind.shape.dim] != list(shape):
        kind.ClearField("shape")
        kind.shape.dim.extend([TensorShapeProto.Dimension(dim_value=size) for size in shape])
        kind.shape.SetInParent()


def _remove(items: Any, dead: Callable[[Any], bool]) -> None:
    """Delete the messages of a repeated field for which `dead` holds, in linear time and without copying any.

    A stable sort moves them to the end; deleting them one by one would shift the rest each time.
    """
    held = list(items)  # keeps the Python wrappers alive, so that their ids stay the same during the sort
    marked = {id(item) for item in held if dead(item)}
    if marked:
        items.sort(key=lambda item: id(item) in marked)
        del items[len(held) - len(marked) :]
