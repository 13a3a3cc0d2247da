"""What must stop a map: nonlinear functions, Casts, second readers, outputs, captures, odd constants."""

from math import prod

import numpy as np
from onnx import TensorProto, helper

from tests.random_graphs.builder import Builder, Value, need
from tests.random_graphs.pooling import other_pad
from tests.random_graphs.sources import misplaced


def trap(b: Builder, value: Value) -> Value:
    """One of them, behind or beside `value`."""
    makers = [blocker, blocker, output, output, reader, reader, cast, misplaced, misplaced, misplaced, captured]
    makers += [training, scrambled, scrambled, indices, other_pad, run_time, other_axis, computed_weight]
    return b.attempt(b.pick(makers), value) or value


def blocker(b: Builder, value: Value) -> Value:
    """An activation that no map passes through."""
    names = ["Sigmoid", "Tanh", "Elu", "Abs", "Clip", "Softplus"]
    names += ["HardSwish"] if b.opset >= 14 and b.dtype == np.float32 else []
    name = b.pick(names)
    if name != "Clip":
        return b.one(name, [value], value.axes)
    if b.opset < 11:
        return b.one("Clip", [value], value.axes, min=0.0, max=6.0)
    return b.one("Clip", [value, b.const(0.0), b.const(6.0)], value.axes)


def output(b: Builder, value: Value) -> Value:
    """The value is an output of the model."""
    b.outputs.append(value.name)
    return value


def reader(b: Builder, value: Value) -> Value:
    """A second reader, whose result is an output."""
    b.one(b.pick(["Sigmoid", "Relu", "Neg", "Identity"]), [value])
    return value


def cast(b: Builder, value: Value) -> Value:
    """A Cast to a wider type and back."""
    wide = b.one("Cast", [value], value.axes, to=int(TensorProto.DOUBLE))
    return b.one("Cast", [wide], value.axes, to=helper.np_dtype_to_tensor_dtype(b.dtype))


def captured(b: Builder, value: Value) -> Value:
    """An If whose branches read the value from outside."""
    inner = [helper.make_tensor_value_info(name, b.kind(value), None) for name in (b.name("then"), b.name("else"))]
    bodies = [
        helper.make_graph([helper.make_node(op, [value.name], [info.name])], "branch", [], [info])
        for op, info in zip(["Neg", "Identity"], inner, strict=True)
    ]
    condition = b.const(np.array(b.chance(0.5)))
    node = helper.make_node("If", [condition], [b.name("v")], then_branch=bodies[0], else_branch=bodies[1])
    made = b.raw(node, value)
    return made if b.chance(0.3) else value


def training(b: Builder, value: Value) -> Value:
    """Beside it, a BatchNormalization that normalises with the statistics of the batch; its output is the model's."""
    need(b.opset >= 14, value.axes == (1,), prod(value.spatial) >= 6, b.dtype == np.float32)
    names = [b.const(b.rng.uniform(0.5, 2, value.maps)) for _ in range(4)]
    b.node("BatchNormalization", [value, *names], 3, training_mode=1, epsilon=0.1)
    return value


def scrambled(b: Builder, value: Value) -> Value:
    """A Reshape or Transpose after which axis 1 holds something else."""
    need(value.axes == (1,), value.rank >= 3, b.free != "spatial")
    n, c, *rest = value.shape
    if b.chance(0.4):
        return b.one("Transpose", [value], (1,), perm=[0, 2, 1, *range(3, value.rank)])
    if b.chance(0.2) and not b.free:
        return b.one("Transpose", [value], (1,), perm=[1, 0, *range(2, value.rank)])
    return b.one("Reshape", [value, b.const(np.array([0 if b.free else n, rest[0], c, *rest[1:]], np.int64))])


def indices(b: Builder, value: Value) -> Value:
    """A MaxPool whose Indices are used."""
    need(b.opset >= 8, value.axes == (1,), value.rank == 4, b.dtype == np.float32)
    pooled, places = b.node("MaxPool", [value], 2, kernel_shape=[min(2, size) for size in value.spatial])
    b.outputs.append(places.name)
    return pooled


def run_time(b: Builder, value: Value) -> Value:
    """A product or sum with something that is computed from the value."""
    need(value.axes == (1,), value.rank >= 3)
    gate = b.one("Sigmoid", [b.one("GlobalAveragePool", [value])])
    return b.one(b.pick(["Mul", "Add"]), [value, gate])


def other_axis(b: Builder, value: Value) -> Value:
    """A MatMul along an axis that is not the maps'."""
    need(value.rank in (3, 4), value.axes == (1,))
    size = value.shape[-1]
    return b.one("MatMul", [value, b.const(b.normal((size, size), size), "w")])


def computed_weight(b: Builder, value: Value) -> Value:
    """A Conv whose weight is computed while the model runs."""
    need(value.rank >= 3, value.axes == (1,), b.opset >= 13)
    shape = (3, value.maps, *[1] * len(value.spatial))
    gate = b.one("Sigmoid", [b.one("ReduceMax", [value], keepdims=0)])
    return b.one("Conv", [value, b.one("Mul", [b.const(b.normal(shape, value.maps), "w"), gate])])
