"""How deep each node of a graph lies, for files whose nodes are in no topological order. Runtimes take those too."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from onnx import NodeProto

from bnfold.errors import InvalidModelError
from bnfold.nodes import label
from bnfold.text import printable


def sorted_depths(
    nodes: Sequence[NodeProto],
    reads: Sequence[Sequence[str]],
    producers: Mapping[str, int],
    known: AbstractSet[str],
    inside: Mapping[int, Sequence[int]],
) -> list[int]:
    """The depth of each node: one more than that of the deepest node it depends on.

    `reads` are the names that each node reads, `producers` the nodes that make them, `known` those that no node
    makes, `inside` the nodes in the bodies of a node.

    Raises:
        InvalidModelError: a node reads what nothing produces, or there is a cycle.
    """
    waiting: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for i, names in enumerate(reads):
        for name in names:
            if name not in known and name not in producers:
                raise InvalidModelError(f"{label(nodes[i])} reads {printable(name)!r}, which nothing produces")
        sources = {producers[name] for name in names if name in producers} | {*inside.get(i, ())}
        waiting[i] = len(sources)
        for source in sources:
            readers.setdefault(source, []).append(i)
    depths = [1] * len(nodes)
    order = [i for i, count in waiting.items() if not count]
    for i in order:  # grows while it is walked: Kahn's algorithm
        for reader in readers.get(i, ()):
            waiting[reader] -= 1
            depths[reader] = max(depths[reader], depths[i] + 1)
            if not waiting[reader]:
                order.append(reader)
    if len(order) < len(nodes):
        stuck = next(i for i, count in waiting.items() if count)
        raise InvalidModelError(f"the graph has a cycle through, or before, {label(nodes[stuck])}")
    return depths
