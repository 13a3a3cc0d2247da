"""The only code that changes a model.

An `Editor` takes plans, one at a time, and applies each whole:

- a changed constant gets a fresh name. Where nothing else reads the old one it takes that tensor's place in
  the file (its doc string and metadata stay), otherwise it is added at the end and the old one is not touched;
- the value that takes the site's place takes the site's output name; a value whose contents changed on a
  path that was carried through gets a fresh name, recorded in `renamed`;
- what became unused by that, and only that, is removed.

Numbers are written at the end, in `commit`, so that several folds into one weight round once.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from onnx import NodeProto, TensorProto, helper

from bnfold.constants import Constant
from bnfold.edits import AddBias, Clone, DropInput, Edit, Plan, SetAttribute, SetConstant, TurnIntoAdd
from bnfold.graph import GraphFacts, Use
from bnfold.sweep import Sweep
from bnfold.tensors import Tensor, is_external, message_behind, onnx_type


class Editor:
    """Applies plans to the graph that `facts` describes, and keeps `facts` true."""

    def __init__(self, facts: GraphFacts) -> None:
        self.facts = facts
        self.renamed: list[tuple[str, str]] = []
        self.frozen: list[str] = []
        self._initializers: dict[str, TensorProto] = {t.name: t for t in facts.graph.initializer}
        self._sweep = Sweep()
        self._fresh_values: set[str] = set()

    def apply(self, plan: Plan) -> None:
        """Carry out one plan."""
        self._freeze(plan.frozen)
        copies, values = self._clone(plan.clones)
        loose: list[str] = []
        for edit in plan.edits:
            if isinstance(edit, TurnIntoAdd):
                edit = replace(edit, value=values.get(edit.value, edit.value))  # noqa: PLW2901 - of the copy
            loose += self._edit(edit if edit.node not in copies else replace(edit, node=copies[edit.node]))
        for node in plan.removed:
            loose += self._drop_node(node)
        for old, new in plan.takes_place:
            self._take_place(values.get(old, old), new)
        for old, new in plan.rewired:
            self._rewire(old, new)
        for value in plan.carried:
            if value not in values:
                self._rename(value)
        self._drop_orphans(loose)

    def commit(self) -> dict[str, Tensor]:
        """Write what is pending and remove what is dead.

        Returns:
            The constants whose numbers are not in the model's protobuf but yet to be written, by name.
        """
        return self._sweep.commit(self.facts, frozenset(self.frozen))

    def _freeze(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.facts.inputs:
                del self.facts.inputs[name]
                self.frozen.append(name)

    def _clone(self, clones: Iterable[Clone]) -> tuple[dict[int, int], dict[str, str]]:
        """Copy nodes; returns which node and which value each copy stands for."""
        copies: dict[int, int] = {}
        values: dict[str, str] = {}
        for clone in clones:
            node = self.facts.nodes[clone.node]
            value = self.facts.fresh(f"{clone.value}_folded")
            copy = self._insert(node.op_type, list(node.input), value, clone.node, f"{node.name}_folded")
            copied = self.facts.nodes[copy]
            copied.domain = node.domain
            self.facts.op_changed(copy)
            copied.attribute.extend(node.attribute)
            self._fresh_values.add(value)
            self._move_uses(clone.value, value, clone.uses)
            copies[clone.node], values[clone.value] = copy, value
        return copies, values

    def _edit(self, edit: Edit) -> list[str]:
        """Carry out one edit; returns the names that may be unread now."""
        match edit:
            case SetConstant():
                return self._set_constant(edit)
            case SetAttribute():
                _set_attribute(self.facts.nodes[edit.node], edit.name, edit.value)
                return []
            case AddBias():
                self._add_bias(edit)
                return []
            case TurnIntoAdd():
                return self._turn_into_add(edit)
            case DropInput():
                return self._drop_input(edit)

    def _add_bias(self, edit: AddBias) -> None:
        node = self.facts.nodes[edit.node]
        if edit.gemm:
            node.op_type = "Gemm"
            self.facts.op_changed(edit.node)
            self._set_constant(SetConstant(edit.node, 2, edit.tensor, edit.hint))
            return
        value = node.output[0]
        inner = self.facts.fresh(f"{value}_product")
        node.output[0] = inner
        self.facts.producers[inner] = self.facts.producers.pop(value)
        self.facts.shapes.renamed(value, inner)
        add = self._insert("Add", [inner, ""], value, edit.node, f"{node.name}_bias")
        self._set_constant(SetConstant(add, 1, edit.tensor, edit.hint))

    def _turn_into_add(self, edit: TurnIntoAdd) -> list[str]:
        node = self.facts.nodes[edit.node]
        read = self._unread(edit.node)
        node.op_type = "Add"
        self.facts.op_changed(edit.node)
        node.name = self.facts.fresh_node_name(f"{node.name}_shift") if node.name else ""
        node.ClearField("domain")
        del node.attribute[:], node.input[:], node.output[1:]
        node.input.extend([edit.value, ""])
        self.facts.uses.setdefault(edit.value, {})[Use(edit.node, 0)] = None
        self._set_constant(SetConstant(edit.node, 1, edit.tensor, edit.hint))
        return read

    def _drop_input(self, edit: DropInput) -> list[str]:
        node = self.facts.nodes[edit.node]
        read = self._unread(edit.node)
        del node.input[edit.index]
        for slot, name in enumerate(node.input):
            if name:
                self.facts.uses[name][Use(edit.node, slot)] = None
        return read

    def _insert(self, op: str, inputs: list[str], output: str, anchor: int, name: str) -> int:
        """A new node behind node `anchor`; returns its index."""
        node = self.facts.graph.node.add(op_type=op, input=inputs, output=[output])
        if self.facts.nodes[anchor].name:
            node.name = self.facts.fresh_node_name(name)
        index = self.facts.add_node(node, behind=anchor)
        self._sweep.inserted[index] = self._sweep.inserted.get(anchor, anchor)
        self.facts.producers[output] = index
        for slot, read in enumerate(inputs):
            if read:
                self.facts.uses.setdefault(read, {})[Use(index, slot)] = None
        return index

    def _set_constant(self, edit: SetConstant) -> list[str]:
        """Point the input at the new tensor; returns the name that the input read before, if any."""
        node = self.facts.nodes[edit.node]
        while len(node.input) <= edit.index:
            node.input.append("")
        old = node.input[edit.index]
        if old in self._sweep.pending and len(self.facts.uses[old]) == 1:
            self._sweep.pending[old] = (self._sweep.pending[old][0], edit.tensor)
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
            self._sweep.new_names[old] = name
            del self.facts.constants.stored[old], self._initializers[old]
            if old in self.facts.inputs:
                self.facts.inputs[name] = self.facts.inputs.pop(old)
        else:
            proto = self._add_initializer(name, edit.tensor, self.facts.constants.find(old))
        proto.name = name
        self._initializers[name] = proto
        self._sweep.pending[name] = (proto, edit.tensor)
        return name

    def _add_initializer(self, name: str, tensor: Tensor, source: Constant | None) -> TensorProto:
        added: TensorProto = self.facts.graph.initializer.add()
        added.dims.extend(tensor.shape)
        added.data_type = onnx_type(tensor)
        held = None if source is None else message_behind(source.tensor)
        if held is not None and is_external(held):
            added.data_location = TensorProto.EXTERNAL
        if self.facts.model.ir_version < 4:
            value = self.facts.graph.input.add()
            value.CopyFrom(helper.make_tensor_value_info(name, added.data_type, tensor.shape))
            self.facts.inputs[name] = value
        return added

    def _drop_node(self, index: int) -> list[str]:
        """Remove a node; returns the names it read."""
        self.facts.removed.add(index)
        for name in self.facts.nodes[index].output:
            self.facts.producers.pop(name, None)
            self._sweep.dead_values.add(name)
        return self._unread(index)

    def _unread(self, index: int) -> list[str]:
        """Forget what a node reads; returns the names."""
        node = self.facts.nodes[index]
        for i, name in enumerate(node.input):
            if name:
                del self.facts.uses[name][Use(index, i)]
        return [name for name in node.input if name]

    def _take_place(self, source: str, target: str) -> None:
        """Let the node that makes `source` make `target` instead; `source` is no more."""
        index = self.facts.producers.pop(source)
        _set_output(self.facts.nodes[index].output, source, target)
        self.facts.producers[target] = index
        self._sweep.dead_values.discard(target)
        self._move_uses(source, target, tuple(self.facts.users(source)))
        self._sweep.dead_values.add(source)

    def _rewire(self, old: str, new: str) -> None:
        """Let who reads `old`, which nothing makes any more, read `new`."""
        self._move_uses(old, new, tuple(self.facts.users(old)))
        self._sweep.dead_values.add(old)

    def _move_uses(self, old: str, new: str, uses: Iterable[Use]) -> None:
        for use in uses:
            self.facts.nodes[use.node].input[use.slot] = new
            del self.facts.uses[old][use]
            self.facts.uses.setdefault(new, {})[use] = None

    def _rename(self, value: str) -> None:
        """Give a value whose contents changed a fresh name, where it is made and where it is read."""
        if value in self._fresh_values:
            return
        name = self.facts.fresh(f"{value}_folded")
        index = self.facts.producers.pop(value)
        _set_output(self.facts.nodes[index].output, value, name)
        self.facts.producers[name] = index
        self.facts.shapes.renamed(value, name)
        self._move_uses(value, name, tuple(self.facts.users(value)))
        self._sweep.new_names[value] = name
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
                self._sweep.dead_tensors.add(name)
            elif index is not None and self.facts.constants.computes(index) and self._is_unread(index):
                names += self._drop_node(index)
                self._sweep.dead_values.add(name)


def _set_attribute(node: NodeProto, name: str, value: float) -> None:
    for place, entry in enumerate(node.attribute):
        if entry.name == name:
            del node.attribute[place]
            break
    node.attribute.append(helper.make_attribute(name, value))


def _set_output(outputs: Any, old: str, new: str) -> None:
    outputs[list(outputs).index(old)] = new
