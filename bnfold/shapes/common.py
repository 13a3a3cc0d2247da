"""What all shape rules share."""

from collections.abc import Callable, Sequence

from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute
from bnfold.shapes import ONE, Dim, Shape, unknown

ShapeRule = Callable[[GraphFacts, int], Sequence[Shape | None]]


def input_shape(facts: GraphFacts, index: int, slot: int = 0) -> Shape | None:
    """The shape of an input; None where it is not known or there is none."""
    inputs = facts.nodes[index].input
    return facts.shapes.of(inputs[slot]) if slot < len(inputs) and inputs[slot] else None


def made_up(facts: GraphFacts, index: int, axis: int) -> Dim:
    """A name for the size of an axis of the node's first output that does not follow from anything."""
    return unknown(next(iter(facts.nodes[index].output), ""), axis)


def wider(dims: list[Dim]) -> Dim | None:
    """The size that all of `dims` broadcast to; None where that depends on the run."""
    rest = set(dims) - {ONE}
    numbers = {dim for dim in rest if dim.size is not None}
    if len(rest) <= 1:
        return rest.pop() if rest else ONE
    return numbers.pop() if len(numbers) == 1 else None


def cut(facts: GraphFacts, index: int, x: Shape) -> Shape:
    """The dimensions that a Shape with `start` and `end` gives."""
    node = facts.nodes[index]
    start, end = int_attribute(node, "start", 0), int_attribute(node, "end", len(x))
    return x[slice(*slice(start, end).indices(len(x)))]
