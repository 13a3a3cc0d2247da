"""The messages of a model as one list, so that any of them can be picked."""

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

MOST_MESSAGES = 3000  # of a large model; the rest stays as it is
ATTRIBUTE_FIELDS = {
    AttributeProto.FLOAT: "f", AttributeProto.INT: "i", AttributeProto.STRING: "s", AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g", AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings", AttributeProto.TENSORS: "tensors", AttributeProto.GRAPHS: "graphs",
}  # fmt: skip


class CannotChange(Exception):
    """This change has nothing to work on here; another is tried."""


class Place(NamedTuple):
    """A field that can be changed."""

    message: Any
    field: FieldDescriptor


def messages(root: Message) -> list[Message]:
    """`root` and the messages inside it, at any depth."""
    found, open_ = [root], [root]
    while open_ and len(found) < MOST_MESSAGES:
        message = open_.pop()
        for field, value in message.ListFields():
            if field.message_type is not None:
                inner = list(value) if field.is_repeated else [value]
                found += inner
                open_ += inner
    return found


def of_kind(root: Message, kind: type) -> list[Any]:
    """The messages of one type inside `root`."""
    return [message for message in messages(root) if isinstance(message, kind)]


def pick(random: Random, things: Any) -> Any:
    """One of them.

    Raises:
        CannotChange: there is none.
    """
    listed = list(things)
    if not listed:
        raise CannotChange
    return random.choice(listed)


def graphs(model: ModelProto) -> list[GraphProto]:
    """The main graph and those inside nodes."""
    return of_kind(model, GraphProto)


def node_lists(model: ModelProto) -> Iterator[Any]:
    """The nodes of each graph, and of each function."""
    yield from (graph.node for graph in graphs(model))
    yield from (function.node for function in model.functions)


def some_nodes(random: Random, model: ModelProto) -> Any:
    """The nodes of one graph or function that has some; mostly the main graph."""
    if model.graph.node and random.random() < 0.6:
        return model.graph.node
    return pick(random, (nodes for nodes in node_lists(model) if nodes))


def names(model: ModelProto) -> list[str]:
    """The names of values of the main graph."""
    graph = model.graph
    found = [value.name for values in (graph.input, graph.initializer, graph.output) for value in values]
    return found + [name for node in graph.node for name in node.output if name]


def some_tensor(random: Random, model: ModelProto) -> TensorProto:
    """A tensor, wherever it is."""
    if model.graph.initializer and random.random() < 0.6:
        return random.choice(model.graph.initializer)
    return pick(random, of_kind(model, TensorProto))  # type: ignore[no-any-return]


def insert(nodes: Any, index: int, node: NodeProto) -> None:
    """Put a node between others."""
    nodes.insert(index, node)


def fresh(random: Random, hint: str = "fz") -> str:
    """A name that nobody has."""
    return f"{hint}_{random.randrange(10**9)}"


def constant(random: Random, kind: int, shape: list[int]) -> TensorProto:
    """A small tensor of floats with a fresh name."""
    count = 1
    for size in shape:
        count *= size
    values = [random.choice((0.5, 1.0, 2.0, -1.0, 0.0, random.gauss(0, 1))) for _ in range(count)]
    return helper.make_tensor(fresh(random, "k"), kind, shape, values)
