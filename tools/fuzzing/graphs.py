"""Changes that know what a graph is: edges, names, nodes, constants, outputs, annotations."""

from collections.abc import Callable
from random import Random

from onnx import ModelProto, NodeProto, TensorProto, helper

from tools.fuzzing.fields import TEXTS
from tools.fuzzing.tree import constant, fresh, names, pick, some_nodes

OPS = (
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Clip", "Concat", "ConstantOfShape",
    "Conv", "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Expand", "Flatten", "Gather",
    "Gemm", "GlobalAveragePool", "Identity", "If", "LayerNormalization", "LeakyRelu", "Loop", "MatMul", "MaxPool",
    "Mul", "Neg", "Pad", "Pow", "PRelu", "QuantizeLinear", "ReduceMean", "Relu", "Reshape", "Resize", "Shape",
    "Slice", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Upsample",
    "Where", "Range", "OneHot", "Scan", "SequenceMap", "ImageScaler", "NoSuchOp",
)  # fmt: skip


def edge(random: Random, model: ModelProto) -> None:
    """An input of a node is another value, none, or one more than there were."""
    node = pick(random, (node for node in some_nodes(random, model) if node.input))
    slot = random.randrange(len(node.input))
    change = random.random()
    if change < 0.6:
        node.input[slot] = pick(random, names(model))
    elif change < 0.7:
        node.input[slot] = random.choice(("", fresh(random)))
    elif change < 0.8:
        node.input.append(pick(random, names(model)))
    elif change < 0.9:
        del node.input[slot]
    else:
        node.input[:] = random.sample(list(node.input), len(node.input))


def output(random: Random, model: ModelProto) -> None:
    """An output of a node is called like another value, is not named, gone, or one more."""
    node = pick(random, (node for node in some_nodes(random, model) if node.output))
    slot = random.randrange(len(node.output))
    change = random.random()
    if change < 0.3:
        node.output[slot] = pick(random, names(model))
    elif change < 0.5:
        node.output[slot] = ""
    elif change < 0.8:
        node.output.append(fresh(random))
    else:
        del node.output[slot]


def rename(random: Random, model: ModelProto) -> None:
    """A value is called something odd, everywhere."""
    old, new = pick(random, names(model)), random.choice(TEXTS)
    graph = model.graph
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for held in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if held.name == old:
            held.name = new


def operator(random: Random, model: ModelProto) -> None:
    """A node is another operator, or of another domain."""
    node = pick(random, some_nodes(random, model))
    if random.random() < 0.8:
        node.op_type = random.choice(OPS)
    else:
        node.domain = random.choice(("ai.onnx", "", "com.microsoft", "local", "\x1b[0m", "ai.onnx.ml"))


def drop_node(random: Random, model: ModelProto) -> None:
    """A node is gone; mostly, what read it reads its first input."""
    nodes = some_nodes(random, model)
    node = NodeProto()
    place = random.randrange(len(nodes))
    node.CopyFrom(nodes[place])
    del nodes[place]
    if not node.input or not node.output or random.random() < 0.2:
        return
    for other in nodes:
        other.input[:] = [node.input[0] if name == node.output[0] else name for name in other.input]


def copy_node(random: Random, model: ModelProto) -> None:
    """A node is there twice, with outputs of its own; some of the readers read the copy."""
    nodes = some_nodes(random, model)
    place = random.randrange(len(nodes))
    copy = NodeProto()
    copy.CopyFrom(nodes[place])
    if random.random() < 0.9:
        copy.output[:] = [fresh(random) if name else "" for name in copy.output]
    renamed = dict(zip(nodes[place].output, copy.output, strict=True))
    for other in nodes:
        if random.random() < 0.5:
            other.input[:] = [renamed.get(name, name) for name in other.input]
    nodes.insert(random.choice((place + 1, place, 0, len(nodes))), copy)


def swap_nodes(random: Random, model: ModelProto) -> None:
    """Two nodes have changed places in the list, or their operators."""
    nodes = some_nodes(random, model)
    first, second = random.choice(nodes), random.choice(nodes)
    if random.random() < 0.5:
        first.op_type, second.op_type = second.op_type, first.op_type
        return
    kept = NodeProto()
    kept.CopyFrom(first)
    first.CopyFrom(second)
    second.CopyFrom(kept)


def insert_node(random: Random, model: ModelProto) -> None:
    """A node more on the way: something that carries a map, or a map by a constant."""
    nodes = model.graph.node
    reader = pick(random, (node for node in nodes if node.input and node.input[0]))
    value, made = reader.input[0], fresh(random)
    op = random.choice(("Identity", "Relu", "Neg", "Mul", "Add", "Sub", "Div", "Dropout", "Abs", "MatMul", "Sqrt"))
    inputs = [value]
    if op in ("Mul", "Add", "Sub", "Div", "MatMul"):
        kind = random.choice((TensorProto.FLOAT,) * 4 + (TensorProto.FLOAT16, TensorProto.DOUBLE))
        held = constant(random, kind, random.choice(([], [1], [3], [4, 1, 1], [1, 3, 1, 1], [3, 3], [2, 1])))
        model.graph.initializer.append(held)
        inputs.insert(random.randrange(2), held.name)
    reader.input[0] = made
    place = next(i for i, node in enumerate(nodes) if node == reader)
    nodes.insert(place, helper.make_node(op, inputs, [made]))


def insert_batchnorm(random: Random, model: ModelProto) -> None:
    """A BatchNormalization more, with parameters that are there already or fit a weight."""
    graph = model.graph
    reader = pick(random, (node for node in graph.node if node.input and node.input[0]))
    weights = [t.dims[0] for t in graph.initializer if t.dims and 0 < t.dims[0] <= 64]
    held = [constant(random, TensorProto.FLOAT, [random.choice(weights or [3])]) for _ in range(1)]
    held += [constant(random, TensorProto.FLOAT, list(held[0].dims)) for _ in range(3)]
    if random.random() < 0.9:
        held[3].float_data[:] = [abs(value) + 0.1 for value in held[3].float_data]
    graph.initializer.extend(held)
    made = fresh(random)
    inputs = [reader.input[0], *(t.name for t in held)]
    place = next(i for i, node in enumerate(graph.node) if node == reader)
    reader.input[0] = made
    graph.node.insert(place, helper.make_node("BatchNormalization", inputs, [made]))


Change = Callable[[Random, ModelProto], None]
CHANGES: dict[Change, int] = {
    edge: 8, output: 3, rename: 3, operator: 6, drop_node: 5, copy_node: 5, swap_nodes: 3, insert_node: 6,
    insert_batchnorm: 8,
}  # fmt: skip
