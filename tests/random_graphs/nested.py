"""Stretches of a finished graph moved into bodies: of an If, a Loop, a Scan, a local function, inside others.

    ... -> [Conv, Relu, BN] -> ...     becomes     ... -> If { Conv, Relu, BN | the same with other numbers } -> ...

What later nodes read leaves the body and keeps its name outside; inside it has another. Constants stay outside,
where all branches share them, or move in; a function has them as arguments or as Constant nodes.
"""

from onnx import NodeProto

from tests.random_graphs.bodies import Body, Nested, branches, free_names, function, loop, scan
from tests.random_graphs.builder import Builder

MOST_DEEP = 3


def nest(b: Builder) -> Nested:
    """Move one to three stretches of the graph into bodies; values and outputs of the main graph keep their names."""
    made = Nested()
    for _ in range(b.whole(1, 3)):
        b.nodes = _wrap(b, made, b.nodes, set(b.outputs), ())
    return made


def _wrap(
    b: Builder, made: Nested, nodes: list[NodeProto], needed: set[str], around: tuple[list[NodeProto], ...]
) -> list[NodeProto]:
    """The nodes with one stretch of them in a body; as they were where that does not fit.

    `needed` are the values that leave them, `around` the other nodes of each scope outside.
    """
    movable = [i for i, node in enumerate(nodes) if _movable(node)]
    if not movable:
        return nodes
    start = b.pick(movable)
    end = min(len(nodes), start + b.whole(1, 12))
    while end > start and not _movable(nodes[end - 1]):
        end -= 1
    stretch = nodes[start:end]
    if not all(_movable(node) or node.op_type == "Constant" for node in stretch):
        return nodes
    later = needed | set(free_names(nodes[end:]))
    before = [node for node in stretch if node.op_type == "Constant" and later & set(node.output)]
    stretch = [node for node in stretch if node not in before]
    outputs = [name for node in stretch for name in node.output if name in later]
    if not outputs:
        return nodes
    outside = (*around, [*nodes[:start], *before, *nodes[end:]])
    if len(outside) < MOST_DEEP and b.chance(0.45):
        stretch = _wrap(b, made, stretch, set(outputs), outside)
    kinds = [branches, branches] + [scan, function, function] * (b.opset >= 9) + [loop] * (b.opset >= 11)
    body = Body(b, made, stretch, outputs, outside)
    return [*nodes[:start], *before, *b.pick(kinds)(body), *nodes[end:]]


def _movable(node: NodeProto) -> bool:
    """Whether the comparison of values, which sees the main graph alone, can do without this node there."""
    training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    indices = node.op_type == "MaxPool" and len(node.output) > 1
    return node.op_type != "Constant" and not training and not indices
