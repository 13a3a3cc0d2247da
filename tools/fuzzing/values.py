"""Changes that know what the values of a graph are: constants, declared shapes, outputs, annotations, data files."""

from collections.abc import Callable
from random import Random

from onnx import ModelProto, StringStringEntryProto, TensorProto, ValueInfoProto, helper

from tools.fuzzing.fields import TEXTS
from tools.fuzzing.tree import CannotChange, constant, fresh, names, pick, some_tensor


def move_constant(random: Random, model: ModelProto) -> None:
    """An initializer becomes an input as well, an input alone, a Constant node, sparse, or is listed twice."""
    graph = model.graph
    held = TensorProto()
    held.CopyFrom(pick(random, graph.initializer))
    change = random.random()
    if change < 0.5:
        graph.input.append(helper.make_tensor_value_info(held.name, held.data_type, held.dims))
    if change > 0.4:
        kept = [t for t in graph.initializer if t.name != held.name]
        del graph.initializer[:]
        graph.initializer.extend(kept)
    if 0.5 < change < 0.85:
        graph.node.insert(0, helper.make_node("Constant", [], [held.name], value=held))
    elif 0.85 < change < 0.95:
        indices = helper.make_tensor("", TensorProto.INT64, [1], [0])
        graph.sparse_initializer.append(helper.make_sparse_tensor(held, indices, list(held.dims)))
    elif change >= 0.95:
        graph.initializer.extend([held, held])


def feed_constant(random: Random, model: ModelProto) -> None:
    """An input of the model gets an initializer."""
    value = pick(random, model.graph.input)
    sizes = [max(1, min(dim.dim_value, 4)) for dim in value.type.tensor_type.shape.dim][:4]
    held = constant(random, TensorProto.FLOAT, sizes)
    held.name = value.name
    model.graph.initializer.append(held)


def lie(random: Random, model: ModelProto) -> None:
    """A declared shape that is not true, or a type without a shape, for any value."""
    graph = model.graph
    sizes = [random.choice((1, 2, 3, 4, 0, -1, 1 << 40, "N", "batch", None)) for _ in range(random.randrange(6))]
    info = helper.make_tensor_value_info(pick(random, names(model)), random.choice((1, 1, 7, 10, 16)), sizes)
    if random.random() < 0.3:
        info.type.tensor_type.ClearField("shape")
    if random.random() < 0.5:
        graph.value_info.append(info)
        return
    value = pick(random, (*graph.input, *graph.output, *graph.value_info))
    info.name = value.name
    value.CopyFrom(info)


def outputs(random: Random, model: ModelProto) -> None:
    """A value inside becomes an output of the model; or an output is one no more, or twice."""
    listed = model.graph.output
    change = random.random()
    if change < 0.7:
        listed.append(ValueInfoProto(name=pick(random, names(model))))
    elif change < 0.9 and len(listed) > 1:
        del listed[random.randrange(len(listed))]
    else:
        copy = ValueInfoProto()
        copy.CopyFrom(pick(random, listed))
        listed.append(copy)


def annotate(random: Random, model: ModelProto) -> None:
    """Quantization annotations, metadata and training steps that name tensors, real ones or not."""
    name = pick(random, [*names(model), "absent"])
    change = random.random()
    if change < 0.4:
        entry = model.graph.quantization_annotation.add(tensor_name=name)
        entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=pick(random, names(model)))
    elif change < 0.7:
        info = model.training_info.add()
        info.update_binding.add(key=name, value=pick(random, names(model)))
        info.algorithm.node.append(helper.make_node("Identity", [name], [fresh(random)]))
    else:
        place = random.choice((model, model.graph, pick(random, model.graph.node), *model.graph.initializer[:1]))
        place.metadata_props.append(StringStringEntryProto(key=random.choice(TEXTS), value=random.choice(TEXTS)))


def external(random: Random, model: ModelProto) -> None:
    """A tensor says that its numbers are in another file; `weights.bin` is one that is there."""
    held = some_tensor(random, model)
    count = len(held.raw_data)
    locations = ("weights.bin",) * 6 + ("../weights.bin", "/etc/passwd", "absent.bin", "", "link.bin", "weights.bin/")
    held.data_location = TensorProto.EXTERNAL
    held.external_data.add(key="location", value=random.choice(locations))
    if random.random() < 0.7:
        offset = random.choice((0, 0, 0, 4096, 1, 1 << 20, 1 << 63, -1))
        held.external_data.add(key="offset", value=str(offset))
    if random.random() < 0.7:
        length = random.choice((count, count, count, 0, count + 1, 1 << 62, -1))
        held.external_data.add(key="length", value=str(length))
    if random.random() < 0.8:
        held.ClearField("raw_data")
    if random.random() < 0.1:
        held.external_data.add(key="checksum", value="0" * 40)


def widen(random: Random, model: ModelProto) -> None:
    """A constant that nodes make: of a shape that may be far too large."""
    if not model.graph.node:
        raise CannotChange
    shape = [random.choice((1, 3, 4, 8, 1 << 10, 1 << 20, 1 << 40)) for _ in range(random.choice((0, 1, 1, 2, 4)))]
    held = helper.make_tensor(fresh(random), TensorProto.INT64, [len(shape)], shape)
    model.graph.initializer.append(held)
    node = pick(random, (node for node in model.graph.node if len(node.input) > 1))
    made = fresh(random)
    old = node.input[random.randrange(1, len(node.input))]
    op = random.choice(("ConstantOfShape", "Expand", "Tile"))
    inputs = [held.name] if op == "ConstantOfShape" else [old, held.name]
    node.input[1] = made
    model.graph.node.insert(0, helper.make_node(op, inputs, [made]))


Change = Callable[[Random, ModelProto], None]
CHANGES: dict[Change, int] = {
    move_constant: 6, feed_constant: 1, lie: 4, outputs: 4, annotate: 3, external: 3, widen: 3
}  # fmt: skip
