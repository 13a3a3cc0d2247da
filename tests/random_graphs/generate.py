"""The grammar: which motifs follow one another, and the free dimensions and types of the whole."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper, shape_inference

from tests.random_graphs.absorbers import absorber
from tests.random_graphs.bodies import DOMAIN, Nested
from tests.random_graphs.branches import concat_elsewhere, fork, meet, part, residual, sibling
from tests.random_graphs.builder import Builder, Value, need
from tests.random_graphs.carriers import LONGER, carrier
from tests.random_graphs.nested import nest
from tests.random_graphs.pooling import rectifier
from tests.random_graphs.sources import Mood, site
from tests.random_graphs.traps import blocker, trap

NESTED = 0.3  # how many have graphs inside
OPSETS = (7, 8, 9, 10, 11, 12, 13, 13, 14, 15, 16, 17, 17, 18, 19, 20, 21, 22)
MOODS = (Mood(), Mood(), Mood(positive=True), Mood(unshifted=True), Mood(positive=True, unshifted=True))


@dataclass(frozen=True, slots=True)
class GeneratedModel:
    """A random model, how many affine maps were put in, and the nominal shape of every input."""

    proto: ModelProto
    planted: int
    sizes: dict[str, tuple[int, ...]]


def random_model(rng: np.random.Generator) -> GeneratedModel:
    """A random valid model out of all sources, carriers and absorbers, mostly foldable, with traps."""
    free = str(rng.choice(["", "batch", "spatial"], p=[0.5, 0.3, 0.2]))
    dtype = np.float16 if rng.random() < 0.1 else np.float32
    b = Builder(rng, int(rng.choice(OPSETS)), dtype, free)
    value = b.input(_shape(b))
    for _ in range(b.whole(1, 3)):
        value = _next(b, value)
    _close(b, value)
    b.rng, rest = rng.spawn(1)[0], b.rng  # what is nested does not change what comes after
    nested = nest(b) if b.chance(NESTED) else Nested()
    b.rng = rest
    proto = _declare(b, nested)
    sizes = {value.name: value.shape for value in b.inputs}
    return GeneratedModel(proto, b.planted, {**sizes, **dict.fromkeys(nested.flags, ())})


def _shape(b: Builder) -> tuple[int, ...]:
    rank = int(b.rng.choice([2, 3, 4, 5], p=[0.12, 0.18, 0.6, 0.1]))
    most = {2: 0, 3: 9, 4: 8, 5: 5}[rank]
    return (b.whole(1, 2), b.pick([1, 2, 3, 4, 4, 6, 8]), *(b.whole(3, most) for _ in range(rank - 2)))


def _next(b: Builder, value: Value) -> Value:
    """One motif, and perhaps an activation or a trap behind it."""
    mood = b.pick(MOODS)
    for _ in range(8):
        made = b.attempt(b.pick(MOTIFS), value, mood)
        if made is not None and max(made.shape) <= 64 and np.prod(made.shape) <= 20_000:
            value = made
            break
    if b.chance(0.35):
        value = b.attempt(rectifier, value) or value
    return trap(b, value) if b.chance(0.12) else value


def _close(b: Builder, value: Value) -> None:
    """What nobody reads is an output; the last value always is."""
    read = {name for node in b.nodes for name in node.input}
    made = {name for node in b.nodes for name in node.output}
    names = [v.name for v in b.values if v.name in made and v.name not in read]
    b.outputs = list(dict.fromkeys([*names, *b.outputs, *([value.name] if value.name in made else [])]))


# Motifs -------------------------------------------------------------------------------------------------------------


def pull(b: Builder, value: Value, mood: Mood) -> Value:
    """Absorber, carriers, map."""
    value = _carriers(b, absorber(b, value), mood)
    return site(b, value, mood)


def push(b: Builder, value: Value, mood: Mood) -> Value:
    """Map, carriers, absorber."""
    value = _carriers(b, site(b, value, mood), mood)
    if b.chance(0.2):
        value = b.attempt(b.pick(LONGER), value) or value
    padded = mood.unshifted or b.chance(0.15)
    return absorber(b, value, padded=padded)


def both(b: Builder, value: Value, mood: Mood) -> Value:
    """Absorber, map, carriers, absorber."""
    return absorber(b, _carriers(b, pull(b, value, mood), mood), padded=mood.unshifted or b.chance(0.3))


def several(b: Builder, value: Value, mood: Mood) -> Value:
    """Absorber and two maps with carriers between."""
    return site(b, _carriers(b, pull(b, value, mood), mood), mood)


def _carriers(b: Builder, value: Value, mood: Mood) -> Value:
    for _ in range(b.pick([0, 0, 1, 1, 2, 3])):
        value = carrier(b, value, mood)
        if b.chance(0.02):
            value = blocker(b, value)
        if b.chance(0.03):
            value = trap(b, value)
    return value


def alone(b: Builder, value: Value, mood: Mood) -> Value:
    """Carriers, and an absorber without a map."""
    need(b.chance(0.5))
    return absorber(b, carrier(b, value, mood))


Motif = Callable[[Builder, Value, Mood], Value]
MOTIFS: tuple[Motif, ...] = (
    *(pull,) * 6, *(push,) * 5, both, both, several, meet, meet, concat_elsewhere, part, part, fork, sibling, sibling,
    residual, alone,
)  # fmt: skip


# Free dimensions ----------------------------------------------------------------------------------------------------


def _declare(b: Builder, nested: Nested) -> ModelProto:
    """The model with its free dimensions: batch N, spatial sizes by name; rarely no shape at all."""
    proto = _with_nested(b.model(), nested)
    for declared, value in zip(proto.graph.input, b.inputs, strict=False):  # flags come behind them
        if b.chance(0.03):
            declared.type.tensor_type.ClearField("shape")
            continue
        free = {"": [], "batch": [0], "spatial": [0, *range(2, value.rank)]}[b.free]
        for axis in free:
            declared.type.tensor_type.shape.dim[axis].dim_param = "N" if axis == 0 else f"S{axis}"
    for declared in proto.graph.output:  # the rank; with free dimensions, what inference knows of them
        for dim in declared.type.tensor_type.shape.dim:
            dim.Clear()
    inferred = shape_inference.infer_shapes(proto)
    for declared, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        declared.CopyFrom(found)
        for dim in declared.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("unk__"):
                dim.Clear()
    _constant_inputs(b, proto)
    if b.chance(0.3):
        proto.graph.value_info.extend(value for value in inferred.graph.value_info if b.chance(0.8))
    return proto


def _with_nested(proto: ModelProto, nested: Nested) -> ModelProto:
    """The model with the functions and flags that its nodes use."""
    proto.functions.extend(nested.functions)
    if nested.functions:
        proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    proto.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in nested.flags)
    return proto


def _constant_inputs(b: Builder, proto: ModelProto) -> None:
    """IR 3, where every initializer is an input as well; or a single one that callers may replace."""
    listed = list(proto.graph.initializer)
    if b.opset <= 8 and b.chance(0.5):
        proto.ir_version = 3
    elif listed and b.chance(0.02):
        listed = [b.pick(listed)]
    else:
        return
    proto.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in listed)
