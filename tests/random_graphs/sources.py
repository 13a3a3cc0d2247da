"""Affine maps: BatchNormalization of every opset, and chains of Mul, Add, Sub, Div, Neg and Sum with constants."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from tests.random_graphs.builder import Array, Builder, Impossible, Value, need


@dataclass(frozen=True, slots=True)
class Mood:
    """What a map has to keep to, so that it passes through what lies between it and its absorber."""

    positive: bool = False
    unshifted: bool = False


def site(b: Builder, value: Value, mood: Mood) -> Value:
    """One affine map behind `value`; counted as planted."""
    b.planted += 1
    if value.axes == (1,) and value.rank >= 2 and b.chance(0.6):
        return batchnorm(b, value, mood)
    return chain(b, value, mood)


def batchnorm(b: Builder, value: Value, mood: Mood) -> Value:
    """A BatchNormalization in inference form."""
    need(value.axes == (1,), value.rank >= 2)
    maps = value.maps
    gamma = b.factors((maps,), positive=mood.positive)
    if b.chance(0.15):
        gamma[b.whole(0, maps - 1)] = 0
    beta, mean, var = b.normal((maps,)), b.normal((maps,)), b.rng.uniform(0.3, 3, maps)
    if mood.unshifted:
        beta, mean = np.zeros(maps), np.zeros(maps)
    mixed = b.dtype == np.float16 and b.opset >= 15 and b.chance(0.5)
    arrays = [np.asarray(a, np.float32 if mixed else np.float64) for a in (gamma, beta, mean, var)]
    names = [b.const(a, stem) for a, stem in zip(arrays, ("gamma", "beta", "mean", "var"), strict=True)]
    if b.opset < 9 and b.chance(0.3):
        return b.one("BatchNormalization", [value, *names], spatial=1)
    return b.one("BatchNormalization", [value, *names], epsilon=b.pick([None, 1e-3, 1e-5]))


def chain(b: Builder, value: Value, mood: Mood) -> Value:
    """One to four operators with per-map constants, in any order."""
    if not mood.unshifted and b.chance(0.15):
        return frozen(b, value, mood)
    steps = ["mul", "mul", "div"]
    steps += [] if mood.unshifted else ["add", "add", "sub", "sum"]
    steps += [] if mood.positive else ["neg"]
    steps += [] if mood.unshifted or mood.positive else ["rsub"]
    for step in [b.pick(steps) for _ in range(b.whole(1, 4))]:
        value = _step(b, value, step, positive=mood.positive)
    return value


def frozen(b: Builder, value: Value, mood: Mood) -> Value:
    """FrozenBatchNorm as exported without optimisation: scale and shift are computed by nodes from four tensors."""
    shape = per_map_shape(b, value, scalars=False)
    weight, bias, mean, var = (
        b.factors(shape, positive=mood.positive), b.normal(shape), b.normal(shape), b.rng.uniform(0.3, 3, shape),
    )  # fmt: skip
    if b.chance(0.5):  # stored flat, as (C,)
        size = b.const(np.array(shape, np.int64))
        names = [b.one("Reshape", [b.const(a.reshape(-1)), size]).name for a in (weight, bias, mean, var)]
    else:
        names = [b.const(a) for a in (weight, bias, mean, var)]
    root = b.one("Sqrt", [b.one("Add", [names[3], b.const(1e-3)])])
    scale = b.one("Mul", [names[0], b.one("Reciprocal", [root])]) if b.chance(0.7) else b.one("Div", [names[0], root])
    shift = b.one("Sub", [names[1], b.one("Mul", [names[2], scale])])
    return _two(b, "Add", _two(b, "Mul", value, scale.name), shift.name)


def per_map_shape(b: Builder, value: Value, *, scalars: bool = True) -> tuple[int, ...]:
    """A shape that broadcasts along the feature maps only: (1, C, 1, 1), (C, 1, 1), (), (1,), ..."""
    if scalars and b.chance(0.15):
        return b.pick([(), (1,), (1,) * value.rank])
    full = tuple(size if axis in value.axes else 1 for axis, size in enumerate(value.shape))
    first = min(value.axes)
    return full[b.whole(0, first) :]


def _step(b: Builder, value: Value, step: str, *, positive: bool) -> Value:
    if step == "neg":
        return b.one("Neg", [value], value.axes)
    shape = per_map_shape(b, value)
    numbers = b.factors(shape, positive=positive) if step in ("mul", "div") else b.normal(shape)
    if step == "mul" and numbers.size and b.chance(0.05):
        numbers.reshape(-1)[0] = 0
    if b.kind(value) == TensorProto.DOUBLE:
        raise Impossible
    name = b.computed(numbers) if b.chance(0.2) else b.const(numbers)
    if step == "div":
        return b.one("Div", [value, name], value.axes)
    if step == "sub":
        return b.one("Sub", [value, name], value.axes)
    if step == "rsub":
        return b.one("Sub", [name, value], value.axes)
    op = {"mul": "Mul", "add": "Add", "sum": "Sum" if b.opset >= 8 else "Add"}[step]
    return _two(b, op, value, name)


def _two(b: Builder, op: str, value: Value, constant: str) -> Value:
    """The constant on either side."""
    inputs = [value, constant] if b.chance(0.7) else [constant, value]
    return b.one(op, inputs, value.axes)


def misplaced(b: Builder, value: Value) -> Value:
    """A trap: a constant along the wrong axis, over whole activations, or one that raises the rank or the maps."""
    need(value.rank >= 3, value.axes == (1,))
    n, c, *rest = value.shape
    width = (value.shape[-1],)
    shapes = [width, (*rest,), (1, c, *rest), (*rest[:-1], 1)]
    shapes += [] if b.free else [(n, *(1,) * (value.rank - 1)), (n, c, *(1,) * len(rest))]
    shapes += [(1, 3, *(1,) * len(rest))] * 3 if c == 1 else []
    shapes += [(2, *(1,) * value.rank)] if b.chance(0.2) else []
    numbers: Array = b.factors(b.pick(shapes), positive=False)
    return _two(b, b.pick(["Mul", "Add"]), value, b.const(numbers))
