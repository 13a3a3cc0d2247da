"""Editing the body of a local function: its new constants are Constant nodes, or new arguments of every call."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from onnx import FunctionProto, NodeProto, TensorProto, helper

from bnfold.constants import Constant
from bnfold.editor import Editor
from bnfold.edits import SetConstant
from bnfold.graph import GraphFacts
from bnfold.tensors import ByCall, Tensor, onnx_type


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function: node `index` of what `editor` edits."""

    editor: Editor
    index: int

    @property
    def node(self) -> NodeProto:
        """The node that calls."""
        return self.editor.facts.nodes[self.index]

    @property
    def contexts(self) -> int:
        """How often it counts: once for each call of the function that it lies in."""
        return self.editor.facts.contexts

    def constants(self) -> Iterator[list[Constant | None]]:
        """The constant that is passed for each input, None where there is none; once for each context."""
        facts = self.editor.facts
        for context in range(facts.contexts):
            with facts.using(context):
                yield [facts.constants.find(name) if name else None for name in self.node.input]

    def passes_constant(self, slot: int) -> bool:
        """Whether what it passes for input `slot` is constant."""
        return all(slot < len(passed) and passed[slot] is not None for passed in self.constants())


class FunctionEditor(Editor):
    """Applies plans to the body of a local function and, where that concerns them, to its calls."""

    def __init__(self, facts: GraphFacts, main: Editor, calls: tuple[Call, ...]) -> None:
        super().__init__(facts)
        self.calls = calls
        self._main = main
        body = facts.scopes[0].body
        assert isinstance(body, FunctionProto)
        self._body = body
        self._inside: dict[str, TensorProto] = {}
        self._own_inputs: set[str] = set()

    def commit(self) -> dict[str, Tensor]:
        """Write what is pending and remove what is dead."""
        changed = super().commit()
        new = [(name, tensor) for name, tensor in self._inside.items() if self._initializers.get(name) is tensor]
        nodes = [self._body.node.add(op_type="Constant", output=[name]) for name, _ in new]
        for node, (_, tensor) in zip(nodes, new, strict=True):
            tensor.ClearField("name")
            node.attribute.append(helper.make_attribute("value", tensor))
        first = {id(node) for node in nodes}
        held = list(self._body.node)  # keeps the Python wrappers alive, so that their ids stay the same
        if held:
            self._body.node.sort(key=lambda node: id(node) not in first)
        return changed

    def _freeze(self, names: Iterable[str]) -> None:
        self._main._freeze(names)  # noqa: SLF001 - the same, one level up

    def _store(self, old: str, edit: SetConstant) -> str:
        passed = self._is_input(old)
        if not passed and not isinstance(edit.tensor, ByCall):
            return super()._store(old, edit)
        if passed and self.facts.is_free(old):
            name = old if old in self._own_inputs else self._rename_input(old)
        else:
            name = self.facts.fresh(f"{old}_folded" if old else edit.hint)
            self._body.input.append(name)
            self.facts.inputs[name] = self.facts.scopes[0].inputs[-1]
        self._own_inputs.add(name)
        self._pass(list(self._body.input).index(name), replace(edit, hint=name))
        return name

    def _is_input(self, value: str) -> bool:
        return value in self._body.input

    def _rename_input(self, old: str) -> str:
        name = self.facts.fresh(f"{old}_folded")
        self._body.input[list(self._body.input).index(old)] = name
        self.facts.inputs[name] = self.facts.inputs.pop(old)
        self.facts.forget(old)
        return name

    def _pass(self, slot: int, edit: SetConstant) -> None:
        """Let every call pass its own numbers for input `slot`."""
        tensors = edit.tensor.each if isinstance(edit.tensor, ByCall) else (edit.tensor,) * self.facts.contexts
        start = 0
        by_editor: dict[int, tuple[Editor, list[SetConstant]]] = {}
        for call in self.calls:
            own = tensors[start : start + call.contexts]
            start += call.contexts
            edits = by_editor.setdefault(id(call.editor), (call.editor, []))[1]
            edits.append(SetConstant(call.index, slot, own[0] if len(own) == 1 else ByCall(own), edit.hint))
        for editor, edits in by_editor.values():
            editor.set_arguments(edits)

    def _add_initializer(self, name: str, tensor: Tensor, source: Constant | None, home: int) -> TensorProto:
        if home:
            return super()._add_initializer(name, tensor, source, home)
        self.facts.settles(name, home)
        held = TensorProto(name=name, data_type=onnx_type(tensor), dims=tensor.shape)
        self._inside[name] = held
        return held

    def _drop_unread(self, name: str) -> None:
        """An input that every call passes a constant for, and that nothing reads any more, goes."""
        if not self._is_input(name) or not self.facts.is_constant_input(name):
            return
        slot = list(self._body.input).index(name)
        del self._body.input[slot]
        del self.facts.inputs[name]
        self.facts.forget(name)
        for call in self.calls:
            call.editor.drop_argument(call.index, slot)
