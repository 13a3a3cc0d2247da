"""A failing example made small: fewer outputs, fewer nodes, later inputs, for as long as it still fails alike."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from tests.random_graphs.judge import captures
from tests.random_graphs.running import CannotRun, Exposed, Values, feeds

Sizes = dict[str, tuple[int, ...]]
Example = tuple[ModelProto, Sizes]


def reduced(proto: ModelProto, sizes: Mapping[str, tuple[int, ...]], fails: Callable[[Example], bool]) -> Example:
    """The smallest example found for which `fails` still holds."""
    best: Example = (proto, dict(sizes))
    while True:
        size = _size(best[0])
        smaller = next((e for e in _smaller(*best) if 0 < _size(e[0]) < size and fails(e)), None)
        if smaller is None:
            return best
        best = smaller


def _size(proto: ModelProto) -> int:
    """Nodes and outputs; 0 where no node is left."""
    return len(proto.graph.node) and len(proto.graph.node) + len(proto.graph.output)


def _smaller(proto: ModelProto, sizes: Sizes) -> Iterator[Example]:
    """Examples with less in them, the smallest first."""
    rng = np.random.default_rng(0)
    try:
        values = Exposed(proto).run(feeds(proto, sizes, rng, 0))
    except CannotRun:
        return
    for output in proto.graph.output:
        yield _with_outputs(proto, [o for o in proto.graph.output if o.name != output.name]), sizes
    for node in proto.graph.node[:-1]:
        yield _with_outputs(proto, [_known(name, values) for name in node.output if name]), sizes
    for node in reversed(proto.graph.node):
        if values[node.output[0]].dtype.kind == "f" and node.op_type != "Constant":
            yield _with_input(proto, sizes, node.output[0], values)
    for node in proto.graph.node:
        for name in node.input:
            if name in values and values[name].shape == values[node.output[0]].shape:
                yield _without(proto, node.output[0], name), sizes


def _known(name: str, values: Values) -> ValueInfoProto:
    array = values[name]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)


def _copy(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _with_outputs(proto: ModelProto, outputs: list[ValueInfoProto]) -> ModelProto:
    """Only these outputs, and only what they need."""
    copy = _copy(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(outputs)
    return _pruned(copy)


def _with_input(proto: ModelProto, sizes: Sizes, name: str, values: Values) -> Example:
    """The value is an input of the model now, of fixed shape; what made it goes."""
    copy = _copy(proto)
    kept = [node for node in copy.graph.node if name not in node.output]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    kind = helper.np_dtype_to_tensor_dtype(values[name].dtype)
    copy.graph.input.append(helper.make_tensor_value_info(name, kind, values[name].shape))
    copy = _pruned(copy)
    left = {value.name for value in copy.graph.input}
    return copy, {key: size for key, size in {**sizes, name: values[name].shape}.items() if key in left}


def _without(proto: ModelProto, output: str, instead: str) -> ModelProto:
    """Readers of `output` read `instead`."""
    copy = _copy(proto)
    for node in copy.graph.node:
        for place, name in enumerate(node.input):
            if name == output:
                node.input[place] = instead
    return _pruned(copy)


def _pruned(copy: ModelProto) -> ModelProto:
    """Without the nodes, initializers and inputs that no output needs."""
    graph = copy.graph
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= {*node.input, *captures(node)}
    nodes.reverse()
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    inputs = [value for value in graph.input if value.name in needed]
    left = {name for node in nodes for name in node.output} - {value.name for value in (*graph.output, *inputs)}
    known = [value for value in graph.value_info if value.name in left]
    fields = ((graph.node, nodes), (graph.initializer, tensors), (graph.input, inputs), (graph.value_info, known))
    for field, kept in fields:
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
        del field[:]
        field.extend(copies)
    return copy
