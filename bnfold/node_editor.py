"""Editing nodes and the names of what they make and read; facts stay true. What plans are made of is `editor`'s."""

from collections.abc import Iterable
from typing import Any

from bnfold.graph import GraphFacts, Use
from bnfold.sweep import Sweep
from bnfold.text import unmarked


class NodeEditor:
    """Inserts, drops, rewires and renames in the graph that `facts` describes.

    Attributes:
        facts: the facts, kept true.
        renamed: values whose contents changed, old name and new.
    """

    def __init__(self, facts: GraphFacts) -> None:
        self.facts = facts
        self.renamed: list[tuple[str, str]] = []
        self._sweep = Sweep()
        self._fresh_values: set[str] = set()

    def _insert(self, op: str, inputs: list[str], output: str, anchor: int, name: str) -> int:
        """A new node behind node `anchor`; returns its index."""
        node = self.facts.scopes[self.facts.homes[anchor]].body.node.add(op_type=op, input=inputs, output=[output])
        if self.facts.nodes[anchor].name:
            node.name = self.facts.fresh_node_name(name)
        index = self.facts.add_node(node, behind=anchor)
        self._sweep.inserted[index] = self._sweep.inserted.get(anchor, anchor)
        self.facts.producers[output] = index
        for slot, read in enumerate(inputs):
            if read:
                self.facts.uses.setdefault(read, {})[Use(index, slot)] = None
        return index

    def _turn_into(self, index: int, op: str, ending: str, inputs: list[str]) -> list[str]:
        """Make another operator of a node; returns the names that it read."""
        node = self.facts.nodes[index]
        read = self._unread(index)
        node.op_type = op
        self.facts.op_changed(index)
        node.name = self.facts.fresh_node_name(f"{node.name}{ending}") if node.name else ""
        node.ClearField("domain")
        del node.attribute[:], node.input[:], node.output[1:]
        node.input.extend(inputs)
        self.facts.uses.setdefault(inputs[0], {})[Use(index, 0)] = None
        return read

    def _drop_input_of(self, index: int, slot: int) -> list[str]:
        """Take one input away from a node; returns the names that it read."""
        node = self.facts.nodes[index]
        read = self._unread(index)
        del node.input[slot]
        for place, name in enumerate(node.input):
            if name:
                self.facts.uses[name][Use(index, place)] = None
        return read

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
        name = self.facts.fresh(f"{unmarked(value)}_folded")
        index = self.facts.producers.pop(value)
        _set_output(self.facts.nodes[index].output, value, name)
        self.facts.producers[name] = index
        self.facts.renamed(value, name)
        self._move_uses(value, name, tuple(self.facts.users(value)))
        self._sweep.new_names[value] = name
        self._fresh_values.add(name)
        self.renamed.append((unmarked(value), name))

    def _is_unread(self, node: int) -> bool:
        return all(self.facts.is_free(name) for name in self.facts.nodes[node].output)


def _set_output(outputs: Any, old: str, new: str) -> None:
    outputs[list(outputs).index(old)] = new
