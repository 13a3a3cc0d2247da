"""Carriers over places: pooling, padding, reductions, resizing; and the activations that positive maps pass."""

import numpy as np

from tests.random_graphs.builder import Builder, Value, need


def ints(b: Builder, *numbers: int) -> str:
    """A constant of whole numbers."""
    return b.const(np.array(numbers, np.int64))


def average_pool(b: Builder, value: Value) -> Value:
    """AveragePool without padding, or with padding that is not counted; ceil_mode."""
    return _pool(b, value, "AveragePool", pads=b.chance(0.4))


def global_pool(b: Builder, value: Value) -> Value:
    """GlobalAveragePool, or ReduceMean over other axes."""
    need(value.axes == (1,), value.rank >= 3)
    if b.chance(0.5):
        return b.one("GlobalAveragePool", [value])
    return reduce(b, value, "ReduceMean", 18)


def reduce(b: Builder, value: Value, op: str, since: int) -> Value:
    """A reduction over one or all spatial axes, with keepdims or without."""
    need(value.axes == (1,), value.rank >= 3)
    spatial = list(range(2, value.rank))
    axes = spatial if b.chance(0.6) else [b.pick(spatial)]
    if b.opset >= 11 and b.chance(0.3):
        axes = [axis - value.rank for axis in axes]
    keep = b.pick([None, 1, 0])
    if b.opset >= since:
        return b.one(op, [value, ints(b, *axes)], keepdims=keep)
    return b.one(op, [value], keepdims=keep, axes=axes)


def resize(b: Builder, value: Value) -> Value:
    """Resize or Upsample: nearest, linear, cubic; up, down, by scales or sizes."""
    need(value.rank in (3, 4), value.axes == (1,), max(value.spatial, default=9) <= 6)
    factors = [b.pick([1.0, 2.0, 2.0, 1.5]) for _ in value.spatial]
    scales = np.array([1.0, 1.0, *factors], np.float32)
    mode = b.pick(["nearest", "linear"] + (["cubic"] if b.opset >= 11 and value.rank == 4 else []))
    if b.opset < 9:
        return b.one("Upsample", [value], mode=mode, scales=scales.tolist())
    if b.opset < 11:
        return b.one("Upsample" if b.opset == 9 else "Resize", [value, b.const(scales)], mode=mode)
    style = b.pick(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
    roi = "" if b.opset >= 13 else b.const(np.zeros(0, np.float32))
    if b.chance(0.3) and not b.free:
        sizes = [*value.shape[:2], *(b.whole(1, 6) for _ in value.spatial)]
        inputs = [value, roi, "" if b.opset >= 13 else b.const(np.zeros(0, np.float32)), ints(b, *sizes)]
    else:
        inputs = [value, roi, b.const(scales)]
    return b.one("Resize", inputs, mode=mode, coordinate_transformation_mode=style)


def mirror_pad(b: Builder, value: Value) -> Value:
    """Pad that repeats what is there: reflect, edge, wrap."""
    mode = b.pick(["reflect", "edge"] + (["wrap"] if b.opset >= 19 else []))
    need(all(size > 1 for size in value.spatial))
    return _pad(b, value, mode, None)


# Maps with s >= 0, maps with t = 0 ----------------------------------------------------------------------------------


def max_pool(b: Builder, value: Value) -> Value:
    """MaxPool, GlobalMaxPool, ReduceMax."""
    form = b.rng.random()
    if form < 0.2:
        need(value.rank >= 3, value.axes == (1,))
        return b.one("GlobalMaxPool", [value])
    if form < 0.4:
        return reduce(b, value, "ReduceMax", 18)
    return _pool(b, value, "MaxPool", pads=b.chance(0.5))


def zero_pad(b: Builder, value: Value) -> Value:
    """Pad with zeros."""
    return _pad(b, value, "constant", 0.0)


def counted_pool(b: Builder, value: Value) -> Value:
    """AveragePool that counts its padding."""
    return _pool(b, value, "AveragePool", pads=True, counted=True)


def rectifier(b: Builder, value: Value) -> Value:
    """Relu, LeakyRelu, PRelu."""
    form = b.pick(["Relu", "Relu", "LeakyRelu", "PRelu"])
    if form == "PRelu":
        need(value.axes == (1,))
        shapes = [(value.maps, *(1,) * (value.rank - 2)), (1,), ()]
        return b.one("PRelu", [value, b.const(b.rng.uniform(-0.3, 0.5, b.pick(shapes)))])
    return b.one(form, [value], value.axes, alpha=b.pick([None, 0.2]) if form == "LeakyRelu" else None)


def other_pad(b: Builder, value: Value) -> Value:
    """Pad with a number that is not zero: a map would have to keep it."""
    return _pad(b, value, "constant", float(b.pick([1.0, -0.5])))


def _pool(b: Builder, value: Value, op: str, *, pads: bool, counted: bool = False) -> Value:
    need(value.axes == (1,), value.rank >= 3)
    kernel = [min(b.whole(1, 3), size) for size in value.spatial]
    attributes = {"kernel_shape": kernel, "strides": [b.whole(1, 2) for _ in kernel]}
    if pads and b.chance(0.15):
        attributes["auto_pad"] = b.pick(["SAME_UPPER", "SAME_LOWER"])
    elif pads:
        attributes["pads"] = [b.whole(0, k - 1) for k in kernel * 2]
    if b.opset >= 10 and "auto_pad" not in attributes and b.chance(0.3):
        attributes["ceil_mode"] = 1
    if counted:
        attributes["count_include_pad"] = 1
    if b.opset >= 10 and op == "MaxPool" and b.chance(0.15):
        room = zip(kernel, value.spatial, strict=True)
        attributes["dilations"] = [2 if k > 1 and (k - 1) * 2 < size else 1 for k, size in room]
    return b.one(op, [value], **attributes)


def _pad(b: Builder, value: Value, mode: str, number: float | None) -> Value:
    need(value.axes == (1,), value.rank >= 3)
    sides = [b.whole(0, 1) for _ in value.spatial * 2]
    half = len(sides) // 2
    pads = [0, 0, *sides[:half], 0, 0, *sides[half:]]
    if b.opset < 11:
        return b.one("Pad", [value], mode=mode, pads=pads, value=number)
    inputs = [value, ints(b, *pads)] + ([] if number is None else [b.const(np.asarray(number))])
    return b.one("Pad", inputs, mode=mode)
