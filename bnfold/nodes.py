"""What a single node or a whole model says about itself: attributes, labels, nested graphs, names. No index."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from bnfold.errors import ByReferenceError, InvalidModelError
from bnfold.text import printable

ONNX_DOMAINS = ("", "ai.onnx")
NESTING = frozenset(["If", "Loop", "Scan", "SequenceMap"])  # the standard operators that have graphs inside


def int_attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute.

    Raises:
        InvalidModelError: it is of another type.
    """
    entry = _attribute(node, name, AttributeProto.INT, "i")
    return default if entry is None else entry.i


def float_attribute(node: NodeProto, name: str, default: float) -> float:
    """A float attribute; its value is a float32.

    Raises:
        InvalidModelError: it is of another type.
    """
    entry = _attribute(node, name, AttributeProto.FLOAT, "f")
    return default if entry is None else entry.f


def text_attribute(node: NodeProto, name: str, default: str) -> str:
    """A string attribute.

    Raises:
        InvalidModelError: it is of another type, or not UTF-8.
    """
    entry = _attribute(node, name, AttributeProto.STRING, "s")
    try:
        return default if entry is None else entry.s.decode()
    except UnicodeDecodeError:
        raise InvalidModelError(f"attribute {name} of {label(node)} is not UTF-8 text") from None


def ints_attribute(node: NodeProto, name: str) -> tuple[int, ...] | None:
    """A list of integers; None where it is absent.

    Raises:
        InvalidModelError: it is of another type.
    """
    entry = _attribute(node, name, AttributeProto.INTS, "")
    return None if entry is None else tuple(entry.ints)


def floats_attribute(node: NodeProto, name: str) -> tuple[float, ...] | None:
    """A list of floats; None where it is absent.

    Raises:
        InvalidModelError: it is of another type.
    """
    entry = _attribute(node, name, AttributeProto.FLOATS, "")
    return None if entry is None else tuple(entry.floats)


class Geometry(NamedTuple):
    """How the windows of a Conv, ConvTranspose or pooling lie: one number for each spatial axis, pads two."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]


def geometry(node: NodeProto, spatial: int) -> Geometry | None:
    """The attributes of that name, or their defaults; None where one is of the wrong length."""
    strides, dilations = (ints_attribute(node, name) or (1,) * spatial for name in ("strides", "dilations"))
    pads = ints_attribute(node, "pads") or (0,) * (2 * spatial)
    fits = len(strides) == len(dilations) == spatial and len(pads) == 2 * spatial
    return Geometry(strides, dilations, pads) if fits else None


def _attribute(node: NodeProto, name: str, kind: int, field: str) -> AttributeProto | None:
    for entry in node.attribute:
        if entry.name == name:
            untyped = entry.type == AttributeProto.UNDEFINED and (not field or entry.HasField(field))
            typed = entry.type == kind or untyped
            if entry.ref_attr_name:
                raise ByReferenceError(
                    f"{name} of {label(node)} is what the calls of the function give, not one value"
                )
            if not typed:  # IR 1 files have values without a type
                raise InvalidModelError(
                    f"attribute {name} of {label(node)} is not of the type that the spec gives it"
                )
            return entry
    return None


def label(node: NodeProto) -> str:
    """How a node is called in messages: Conv 'name', or Conv -> 'output' where it has no name."""
    if node.name:
        return f"{printable(node.op_type)} '{printable(node.name)}'"
    return f"{printable(node.op_type)} -> '{printable(next(iter(node.output), ''))}'"


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs directly inside a node: the branches of an If, the body of a Loop or Scan."""
    return (graph for _, graph in named_subgraphs(node))


def named_subgraphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs directly inside a node, each with the name of its attribute."""
    if not may_nest(node):
        return
    for entry in node.attribute:
        if entry.type == AttributeProto.GRAPH:
            yield entry.name, entry.g
        elif entry.type == AttributeProto.GRAPHS:
            yield from ((entry.name, graph) for graph in entry.graphs)


def may_nest(node: NodeProto) -> bool:
    """Whether there may be graphs inside the node; for most there are none."""
    return node.op_type in NESTING or node.domain not in ONNX_DOMAINS


def captures(node: NodeProto) -> set[str]:
    """The names that the nested graphs of `node` take from the scopes around it."""
    found: set[str] = set()
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {tensor.values.name for tensor in graph.sparse_initializer}
        read = {value.name for value in graph.output}
        for inner in graph.node:
            read.update(inner.input)
            read |= captures(inner)
            own.update(inner.output)
        found |= read - own
    return found - {""}


def nested_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Every node inside the nested graphs of `nodes`, at any depth; not `nodes` themselves."""
    for node in filter(may_nest, nodes):
        for graph in subgraphs(node):
            yield from graph.node
            yield from nested_nodes(graph.node)


def standard_domain(domain: str) -> str:
    """The domain's name, where the standard operators' domain has two."""
    return "" if domain in ONNX_DOMAINS else domain


def check_text(model: ModelProto) -> None:
    """Make sure that every name is text: protobuf hands over as bytes what is not UTF-8.

    Raises:
        InvalidModelError: one is not.
    """
    try:
        "".join(_texts(model))
        for nodes in (model.graph.node, *(function.node for function in model.functions)):
            for node in (*nodes, *nested_nodes(nodes)):
                "".join([node.name, node.op_type, node.domain, *node.input, *node.output])
    except TypeError:
        raise InvalidModelError("a name in the model is not UTF-8 text") from None


def _texts(model: ModelProto) -> Iterator[str]:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    every = [*nodes, *nested_nodes(nodes)]
    for graph in (model.graph, *(g for node in every for g in subgraphs(node))):
        for values in (graph.input, graph.output, graph.value_info, graph.initializer):
            yield from (value.name for value in values)
        yield from (tensor.values.name for tensor in graph.sparse_initializer)
    yield from (entry.domain for entry in model.opset_import)
    yield from (entry.tensor_name for entry in model.graph.quantization_annotation)
    yield from (text for function in model.functions for text in (function.name, function.domain))


def other_names(model: ModelProto) -> Iterator[str]:
    """The names of values that are not made or read by the main graph's own nodes: declared, nested, training."""
    yield from (value.name for value in model.graph.value_info)
    yield from (entry.tensor_name for entry in model.graph.quantization_annotation)
    yield from names_in_annotations(model.graph)
    yield from names_in_training(model)
    for node in model.graph.node:
        yield from (spec.tensor_name for held in node.device_configurations for spec in held.sharding_spec)
        for inner in subgraphs(node):
            yield from _graph_names(inner)
    for info in model.training_info:
        yield from _graph_names(info.initialization)
        yield from _graph_names(info.algorithm)


def _graph_names(graph: GraphProto) -> Iterator[str]:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from (value.name for value in values)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from node.input
        yield from node.output
        for inner in subgraphs(node):
            yield from _graph_names(inner)


def types_in(model: ModelProto) -> Iterator[int]:
    """The element types of all tensors and declared values of the model, and those that nodes cast to."""
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    nodes = [node for body in bodies for part in (body, nested_nodes(body)) for node in part]
    for graph in (model.graph, *(inner for node in nodes if may_nest(node) for inner in subgraphs(node))):
        yield from (tensor.data_type for tensor in graph.initializer)
        for values in (graph.input, graph.output, graph.value_info):
            yield from (value.type.tensor_type.elem_type for value in values)
    for node in nodes:
        for entry in node.attribute:
            if entry.type == AttributeProto.TENSOR:
                yield entry.t.data_type
            elif entry.name in ("to", "dtype"):
                yield entry.i


def names_in_annotations(graph: GraphProto, is_gone: Callable[[str], bool] | None = None) -> Iterator[str]:
    """Names that quantization annotations refer to, in a graph and those inside it, but for those of what is gone."""
    for annotation in graph.quantization_annotation:
        if is_gone is None or not is_gone(annotation.tensor_name):
            yield from (entry.value for entry in annotation.quant_parameter_tensor_names)
    for node in filter(may_nest, graph.node):
        for inner in subgraphs(node):
            yield from names_in_annotations(inner, is_gone)


def names_in_training(model: ModelProto) -> Iterator[str]:
    """Names that training steps refer to: these tensors must stay."""
    for info in model.training_info:
        for graph in (info.initialization, info.algorithm):
            yield from _graph_names(graph)
        for binding in (*info.initialization_binding, *info.update_binding):
            yield binding.key
            yield binding.value
