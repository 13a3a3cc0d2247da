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

from onnx import GraphProto, NodeProto, TensorProto, helper

from bnfold.constants import Constant
from bnfold.edits import (
    AddBias,
    Clone,
    DropInput,
    Edit,
    Plan,
    SetAttribute,
    SetConstant,
    TurnIntoAdd,
    TurnIntoIdentity,
)
from bnfold.graph import GraphFacts, Use
from bnfold.messages import message_behind
from bnfold.node_editor import NodeEditor
from bnfold.tensors import ByCall, Tensor, is_external, onnx_type, same_numbers
from bnfold.text import unmarked


class Editor(NodeEditor):
    """Applies plans to the graph that `facts` describes, and keeps `facts` true."""

    def __init__(self, facts: GraphFacts) -> None:
        super().__init__(facts)
        self.frozen: list[str] = []
        self._sweep.note_devices(facts.nodes)
        self._initializers: dict[str, TensorProto] = {t.name: t for s in facts.scopes for t in s.initializers}

    def apply(self, plan: Plan) -> dict[int, int]:
        """Carry out one plan; returns the nodes that it cloned, and the copy of each."""
        self._freeze(plan.frozen)
        copies, values = self._clone(plan.clones)
        loose: list[str] = []
        for edit in plan.edits:
            if isinstance(edit, TurnIntoAdd | TurnIntoIdentity):
                edit = replace(edit, value=values.get(edit.value, edit.value))  # noqa: PLW2901 - of the copy
            loose += self._edit(edit if edit.node not in copies else replace(edit, node=copies[edit.node]))
        for node in plan.removed:
            loose += self._drop_node(node)
        for old, new in plan.takes_place:
            self._take_place(values.get(old, old), new)
        for old, new in plan.rewired:
            self._rewire(old, values.get(new, new))
        for value in plan.carried:
            if value not in values:
                self._rename(value)
        self._drop_orphans(loose)
        return copies

    def repin(self) -> None:
        """Let go of tensors that only annotations of what is gone by now refer to."""
        self.facts.repin(self._sweep.is_gone)

    def settle(self) -> None:
        """Compute what is pending, so that bodies can be committed in any order."""
        self._sweep.settle(inside=self.facts.in_function)

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
            value = self.facts.fresh(f"{unmarked(clone.value)}_folded")
            copy = self._insert(node.op_type, list(node.input), value, clone.node, f"{node.name}_folded")
            copied = self.facts.nodes[copy]
            copied.domain = node.domain
            self.facts.op_changed(copy)
            copied.attribute.extend(node.attribute)
            copied.device_configurations.extend(node.device_configurations)
            self._sweep.same_device(copy, clone.node)
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
            case TurnIntoIdentity():
                return self._turn_into(edit.node, "Identity", "_folded", [edit.value])
            case DropInput():
                return self._drop_input_of(edit.node, edit.index)

    def _add_bias(self, edit: AddBias) -> None:
        node = self.facts.nodes[edit.node]
        if edit.gemm:
            node.op_type = "Gemm"
            self.facts.op_changed(edit.node)
            self._set_constant(SetConstant(edit.node, 2, edit.tensor, edit.hint))
            return
        value = node.output[0]
        inner = self.facts.fresh(f"{unmarked(value)}_product")
        node.output[0] = inner
        self.facts.producers[inner] = self.facts.producers.pop(value)
        self.facts.renamed(value, inner)
        add = self._insert("Add", [inner, ""], value, edit.node, f"{node.name}_bias")
        self._set_constant(SetConstant(add, 1, edit.tensor, edit.hint))

    def _turn_into_add(self, edit: TurnIntoAdd) -> list[str]:
        read = self._turn_into(edit.node, "Add", "_shift", [edit.value, ""])
        self._set_constant(SetConstant(edit.node, 1, edit.tensor, edit.hint))
        return read

    def set_arguments(self, edits: list[SetConstant]) -> None:
        """Set constant inputs of several calls of a function; what was one tensor and still is stays one."""
        groups: list[list[SetConstant]] = []
        for edit in edits:
            group = next((g for g in groups if self._may_share(g[0], edit)), None)
            if group is None:
                groups.append([edit])
            else:
                group.append(edit)
        loose = [name for group in groups for name in self._set_constants(group)]
        self._drop_orphans(loose)

    def _may_share(self, first: SetConstant, second: SetConstant) -> bool:
        """Whether one tensor may serve both: they read one now, have the same numbers, and would see the new one."""
        old, homes = self._input(first), self.facts.homes
        seen = old in self._initializers or homes[first.node] == homes[second.node]
        return seen and old == self._input(second) and same_numbers(first.tensor, second.tensor)

    def drop_argument(self, node: int, slot: int) -> None:
        """Let a call pass one input less."""
        if slot < len(self.facts.nodes[node].input):
            self._drop_orphans(self._drop_input_of(node, slot))

    def _input(self, edit: SetConstant) -> str:
        names = self.facts.nodes[edit.node].input
        return names[edit.index] if edit.index < len(names) else ""

    def _set_constant(self, edit: SetConstant) -> list[str]:
        """Point the input at the new tensor; returns the name that the input read before, if any."""
        return self._set_constants([edit])

    def _set_constants(self, edits: list[SetConstant]) -> list[str]:
        """Point inputs that read one constant at one new tensor; returns the name that they read before, if any."""
        first, old = edits[0], self._input(edits[0])
        uses = [Use(edit.node, edit.index) for edit in edits]
        whole = not isinstance(first.tensor, ByCall)  # what differs by call is no constant of the body any more
        if whole and old in self._sweep.pending and len(self.facts.uses[old]) == len(edits):
            self._sweep.pending[old] = (self._sweep.pending[old][0], first.tensor)
            self.facts.remember(old, first.tensor)
            return []
        for use in uses if old else ():
            del self.facts.uses[old][use]
        name = self._store(old, first)
        for node, index in uses:
            names = self.facts.nodes[node].input
            names.extend([""] * (index + 1 - len(names)))
            names[index] = name
        self.facts.uses[name] = dict.fromkeys(uses)
        self.facts.remember(name, first.tensor)
        return [old] if old else []

    def _store(self, old: str, edit: SetConstant) -> str:
        name = self.facts.fresh(f"{unmarked(old)}_folded" if old else edit.hint)
        proto = self._initializers.get(old)
        if proto is not None and self.facts.is_free(old):
            self._sweep.new_names[old] = name
            del self._initializers[old]
            self.facts.forget(old)
            self.facts.settles(name, self.facts.home(old))
            if old in self.facts.inputs:
                self.facts.inputs[name] = self.facts.inputs.pop(old)
        else:
            home = self.facts.home(old) if proto is not None else self.facts.homes[edit.node]
            proto = self._add_initializer(name, edit.tensor, self.facts.constants.find(old), home)
        proto.name = name
        self._initializers[name] = proto
        self._sweep.pending[name] = (proto, edit.tensor)
        return name

    def _add_initializer(self, name: str, tensor: Tensor, source: Constant | None, home: int) -> TensorProto:
        """A new initializer in scope `home`; below IR 4, where it has to be an input too, in the main graph."""
        home = 0 if self.facts.model.ir_version < 4 else home
        self.facts.settles(name, home)
        graph = self.facts.scopes[home].body
        assert isinstance(graph, GraphProto)
        added: TensorProto = graph.initializer.add()
        added.dims.extend(tensor.shape)
        added.data_type = onnx_type(tensor)
        held = None if source is None else message_behind(source.tensor)
        if held is not None and is_external(held) and home == 0:
            added.data_location = TensorProto.EXTERNAL
        if self.facts.model.ir_version < 4:
            value = graph.input.add()
            value.CopyFrom(helper.make_tensor_value_info(name, added.data_type, tensor.shape))
            self.facts.inputs[name] = value
        return added

    def _drop_orphans(self, names: list[str]) -> None:
        """Remove constants that nothing reads any more, and the nodes that only computed them."""
        names = list(names)
        while names:
            name = names.pop()
            if not self.facts.is_free(name):
                continue
            index = self.facts.producer(name)
            if name in self._initializers:
                del self._initializers[name]
                self.facts.forget(name)
                self.facts.inputs.pop(name, None)
                self._sweep.dead_tensors.add(name)
            elif index is not None and self.facts.constants.computes(index) and self._is_unread(index):
                names += self._drop_node(index)
                self._sweep.dead_values.add(name)
            else:
                self._drop_unread(name)

    def _drop_unread(self, name: str) -> None:
        """What else there is to do about a name that nothing reads any more: nothing in a graph."""


def _set_attribute(node: NodeProto, name: str, value: float) -> None:
    for place, entry in enumerate(node.attribute):
        if entry.name == name:
            del node.attribute[place]
            break
    node.attribute.append(helper.make_attribute(name, value))
