"""The entries of integer tensors that are computed from shapes, such as the target of a Reshape."""

from collections.abc import Sequence

from onnx import TensorProto

from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute
from bnfold.parameters import ABSENT, ints, slices
from bnfold.shapes import Numbers, Shapes
from bnfold.shapes.common import cut, input_shape

_FOLLOWED = {"Cast": 1, "Concat": 2**31, "Div": 2, "Gather": 1, "Identity": 1, "Mul": 2, "Slice": 1, "Squeeze": 1,
             "Unsqueeze": 1, "Reshape": 1}  # fmt: skip


def follow_numbers(facts: GraphFacts, index: int, shapes: Shapes) -> Numbers | None:
    """The entries of the node's output, where it computes with sizes; None for all other nodes."""
    op, node = facts.op(index), facts.nodes[index]
    if op == "Shape":
        x = input_shape(facts, index)
        return None if x is None else cut(facts, index, x)
    if op not in _FOLLOWED or not node.output or not node.input:
        return None
    if op == "Cast" and int_attribute(node, "to", 0) not in (TensorProto.INT32, TensorProto.INT64):
        return None
    known = [shapes.numbers(name) for name in node.input[: _FOLLOWED[op]] if name]
    values = [numbers for numbers in known if numbers is not None]
    if len(values) < len(known) or not values:
        return None
    if op == "Concat":
        return tuple(dim for numbers in values for dim in numbers)
    if op == "Gather":
        where = ints(facts, index, "", 1)
        if where is None or where is ABSENT or not all(-len(values[0]) <= i < len(values[0]) for i in where):
            return None
        return tuple(values[0][i] for i in where)
    if op == "Slice":
        cuts = slices(facts, index)
        return values[0][cuts[0]] if cuts is not None and set(cuts) == {0} else None
    if op in ("Mul", "Div"):
        return _arithmetic(op, values)
    return values[0]


def _arithmetic(op: str, values: Sequence[Numbers]) -> Numbers | None:
    first, second = values
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        return None
    count = max(len(first), len(second))
    if not first or not second:
        return ()
    pairs = zip(first * (count // len(first)), second * (count // len(second)), strict=True)
    return tuple(None if a is None or b is None else (a * b if op == "Mul" else a.over(b)) for a, b in pairs)
