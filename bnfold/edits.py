"""The only code that changes a model.

An `Editor` takes plans, one at a time, and applies each whole:

- a changed constant gets a fresh name. Where nothing else reads the old one it takes that tensor's place in
  the file (its doc string and metadata stay), otherwise it is added at the end and the old one is not touched;
- the value that takes the site's place takes the site's output name; a value whose contents changed on a
  path that was carried through gets a fresh name, recorded in `renamed`;
- what became unused by that, and only that, is removed.

Numbers are written at the end, in `commit`, so that two folds into one weight round once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto, helper

from bnfold.constants import Constant
from bnfold.graph import GraphFacts, Use
from bnfold.tensors import (
    ArrayTensor,
    StoredTensor,
    Tensor,
    bytes_of,
    declare,
    is_external,
    is_in_file,
    onnx_type,
    write_into,
)
from bnfold.wire import SMALLEST


@dataclass(frozen=True, slots=True)
class SetConstant:
    """Let input `index` of `node` read `tensor` instead. `hint` names it where there was no input before."""

    node: int
    index: int
    tensor: Tensor
    hint: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How one site goes: the constants to set, the values carried through, the constants to freeze.

    Attributes:
        site: index of the node that is absorbed; its first input takes over its first output's name.
        edits: constants to change.
        carried: values upstream of the site's input whose contents change too.
        absorber: label of the node that takes the map in.
        frozen: overridable initializers that this plan takes for constants.
        notes: what the user should know, such as dead maps.
    """

    site: int
    edits: tuple[SetConstant, ...]
    carried: tuple[str, ...]
    absorber: str
    frozen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Editor:
    """Applies plans to the graph that `facts` describes, and keeps `facts` true."""

    def __init__(self, facts: GraphFacts) -> None:
        self.facts = facts
        self.renamed: list[tuple[str, str]] = []
        self.frozen: list[str] = []
        self.changed: dict[str, Tensor] = {}
        self._initializers: dict[str, TensorProto] = {t.name: t for t in facts.graph.initializer}
        self._pending: dict[str, tuple[TensorProto, Tensor]] = {}
        self._dead_nodes: set[int] = set()
        self._dead_tensors: set[str] = set()
        self._dead_values: set[str] = set()
        self._fresh_values: set[str] = set()
        self._new_names: dict[str, str] = {}

    def apply(self, plan: Plan) -> None:
        """Carry out one plan."""
        self._freeze(plan.frozen)
        loose: list[str] = []
        for edit in plan.edits:
            loose += self._set_constant(edit)
        site = self.facts.nodes[plan.site]
        source, target = site.input[0], site.output[0]
        loose += self._drop_node(plan.site)
        self._take_place(source, target)
        for value in plan.carried:
            self._rename(value)
        self._drop_orphans(loose)

    def commit(self) -> None:
        """Write the pending numbers and remove what is dead, each list in one sweep."""
        for proto, tensor in self._pending.values():
            if is_external(proto):
                self.changed[proto.name] = tensor
            elif bytes_of(tensor) >= SMALLEST:
                self.changed[proto.name] = tensor if is_in_file(tensor) else ArrayTensor(tensor.array())
                declare(proto, tensor)
            else:
                write_into(proto, tensor)
        self._pending.clear()
        graph = self.facts.graph
        dead_nodes = {id(self.facts.nodes[i]) for i in self._dead_nodes}
        _remove(graph.node, lambda node: id(node) in dead_nodes)
        _remove(graph.initializer, lambda tensor: tensor.name in self._dead_tensors)
        gone = self._dead_values | self._dead_tensors
        _remove(graph.input, lambda value: value.name in self._dead_tensors or value.name in self.frozen)
        for value in (*graph.input, *graph.value_info):
            if value.name in self._new_names:
                value.name = self._new_names[value.name]
        for annotation in graph.quantization_annotation:
            if annotation.tensor_name in self._new_names:
                annotation.tensor_name = self._new_names[annotation.tensor_name]
        _remove(graph.value_info, lambda value: value.name in gone)
        _remove(graph.quantization_annotation, lambda entry: entry.tensor_name in gone)

    def _freeze(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.facts.inputs:
                del self.facts.inputs[name]
                self.frozen.append(name)

    def _set_constant(self, edit: SetConstant) -> list[str]:
        """Point the input at the new tensor; returns the name that the input read before, if any."""
        node = self.facts.nodes[edit.node]
        while len(node.input) <= edit.index:
            node.input.append("")
        old = node.input[edit.index]
        if old in self._pending:
            self._pending[old] = (self._pending[old][0], edit.tensor)
            self.facts.constants.stored[old] = edit.tensor
            return []
        if old:
            del self.facts.uses[old][Use(edit.node, edit.index)]
        name = self._store(old, edit)
        node.input[edit.index] = name
        self.facts.uses[name] = {Use(edit.node, edit.index): None}
        self.facts.constants.stored[name] = edit.tensor
        return [old] if old else []

    def _store(self, old: str, edit: SetConstant) -> str:
        name = self.facts.fresh(f"{old}_folded" if old else edit.hint)
        proto = self._initializers.get(old)
        if proto is not None and self.facts.is_free(old):
            self._new_names[old] = name
            del self.facts.constants.stored[old], self._initializers[old]
            if old in self.facts.inputs:
                self.facts.inputs[name] = self.facts.inputs.pop(old)
        else:
            proto = self._add_initializer(name, edit.tensor, self.facts.constants.find(old))
        proto.name = name
        self._initializers[name] = proto
        self._pending[name] = (proto, edit.tensor)
        return name

    def _add_initializer(self, name: str, tensor: Tensor, source: Constant | None) -> TensorProto:
        added: TensorProto = self.facts.graph.initializer.add()
        added.dims.extend(tensor.shape)
        added.data_type = onnx_type(tensor)
        if source is not None and isinstance(source.tensor, StoredTensor) and is_external(source.tensor.proto):
            added.data_location = TensorProto.EXTERNAL
        if self.facts.model.ir_version < 4:
            value = self.facts.graph.input.add()
            value.CopyFrom(helper.make_tensor_value_info(name, added.data_type, tensor.shape))
            self.facts.inputs[name] = value
        return added

    def _drop_node(self, index: int) -> list[str]:
        """Remove a node; returns the names it read."""
        self._dead_nodes.add(index)
        node = self.facts.nodes[index]
        read = [name for name in node.input if name]
        for i, name in enumerate(node.input):
            if name:
                del self.facts.uses[name][Use(index, i)]
        for name in node.output:
            self.facts.producers.pop(name, None)
        return read

    def _take_place(self, source: str, target: str) -> None:
        """Let the node that makes `source` make `target` instead; `source` is no more."""
        index = self.facts.producers.pop(source)
        _set_output(self.facts.nodes[index].output, source, target)
        self.facts.producers[target] = index
        self._dead_values.add(source)

    def _rename(self, value: str) -> None:
        """Give a value whose contents changed a fresh name, where it is made and where it is read."""
        if value in self._fresh_values:
            return
        name = self.facts.fresh(f"{value}_folded")
        index = self.facts.producers.pop(value)
        _set_output(self.facts.nodes[index].output, value, name)
        self.facts.producers[name] = index
        self.facts.uses[name] = self.facts.uses.pop(value)
        for use in self.facts.uses[name]:
            self.facts.nodes[use.node].input[use.slot] = name
        self._new_names[value] = name
        self._fresh_values.add(name)
        self.renamed.append((value, name))

    def _is_unread(self, node: int) -> bool:
        return all(self.facts.is_free(name) for name in self.facts.nodes[node].output)

    def _drop_orphans(self, names: list[str]) -> None:
        """Remove constants that nothing reads any more, and the nodes that only computed them."""
        names = list(names)
        while names:
            name = names.pop()
            if not self.facts.is_free(name):
                continue
            index = self.facts.producer(name)
            if name in self._initializers:
                del self._initializers[name], self.facts.constants.stored[name]
                self.facts.inputs.pop(name, None)
                self._dead_tensors.add(name)
            elif index is not None and self.facts.constants.computes(index) and self._is_unread(index):
                names += self._drop_node(index)
                self._dead_values.add(name)


def _set_output(outputs: Any, old: str, new: str) -> None:
    outputs[list(outputs).index(old)] = new


def _remove(items: Any, dead: Callable[[Any], bool]) -> None:
    """Delete the messages of a repeated field for which `dead` holds, in linear time and without copying any.

    A stable sort moves them to the end; deleting them one by one would shift the rest each time.
    """
    held = list(items)  # keeps the Python wrappers alive, so that their ids stay the same during the sort
    marked = {id(item) for item in held if dead(item)}
    if marked:
        items.sort(key=lambda item: id(item) in marked)
        del items[len(held) - len(marked) :]
