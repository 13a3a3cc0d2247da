"""Linear operators whose weights can take a map in: Conv, ConvTranspose, Gemm and MatMul, in all their forms."""

from dataclasses import replace
from math import prod

import numpy as np

from tests.random_graphs.builder import Array, Builder, Value, need

MOST_MAPS = 12
MOST_SIZE = 10


def absorber(b: Builder, value: Value, *, padded: bool = True) -> Value:
    """Any of them that fits behind `value`."""
    value = single_axis(b, value)
    kinds = [conv, conv, conv, conv_transpose] if value.rank >= 3 and value.axes == (1,) else []
    if value.rank == 2:
        kinds += [gemm, gemm, gemm]
    kinds += [matmul_right, matmul_left] if value.rank <= 3 else [matmul_right, matmul_right]
    for _ in range(8):
        made = b.attempt(b.pick(kinds), value, padded=padded)
        if made is not None:
            return made
    need(False)  # noqa: FBT003
    return value


def single_axis(b: Builder, value: Value) -> Value:
    """Maps that lie over two neighbouring axes are laid along one."""
    if len(value.axes) == 1:
        return value
    first, last = min(value.axes), max(value.axes)
    need(last - first + 1 == len(value.axes), first == 1)
    target = [0, value.maps, *value.shape[last + 1 :]]
    return b.one("Reshape", [value, b.const(np.array(target, np.int64))], (first,))


# Weights ------------------------------------------------------------------------------------------------------------


def weight(b: Builder, numbers: Array, channel: int) -> str:
    """The weight as a constant: plain, computed, shared with an earlier one, quantised, or an output as well."""
    for name, known in reversed(b.initializers.items()):
        if name.startswith("w_") and known.shape == numbers.shape and b.chance(0.15):
            return name
    if b.opset >= 10 and b.dtype == np.float32 and b.chance(0.12):
        return quantised(b, numbers, channel)
    if b.chance(0.06):
        return b.node("Identity", [b.const(numbers, "w")])[0].name
    name = b.const(numbers, "w")
    if name in b.initializers and b.chance(0.03):
        b.outputs.append(name)
    return name


def quantised(b: Builder, numbers: Array, channel: int) -> str:
    """Whole numbers behind a DequantizeLinear: per tensor or along one axis, with or without a zero point."""
    kind = b.pick([np.int8, np.uint8])
    axis = b.pick([channel, channel, channel, 1 - channel]) if b.opset >= 13 and b.chance(0.7) else None
    shape = () if axis is None else (numbers.shape[axis],)
    scale = b.rng.uniform(0.5, 1.5, shape) / 60
    middle = 128 if kind == np.uint8 else 0
    zero = b.rng.integers(middle - 6, middle + 7, shape)
    along = [1] * numbers.ndim
    if axis is not None:
        along[axis] = -1
    low, high = (0, 255) if kind == np.uint8 else (-128, 127)
    with_zero = kind == np.uint8 or b.chance(0.6)
    offset = zero.reshape(along) if with_zero and axis is not None else (zero if with_zero else 0)
    whole = np.clip(np.round(numbers / scale.reshape(along if axis is not None else ())) + offset, low, high)
    names = [b.const(whole.astype(kind), "q"), b.const(scale)]
    names += [b.const(zero.astype(kind))] if with_zero else []
    return b.node("DequantizeLinear", names, axis=axis if b.opset >= 13 else None)[0].name


def bias(b: Builder, maps: int) -> list[str]:
    """The third input of a Conv: there, absent, or the empty name."""
    form = b.rng.random()
    if form < 0.5:
        return []
    return [""] if form < 0.55 else [b.const(b.normal((maps,)), "b")]


# Convolutions -------------------------------------------------------------------------------------------------------


def conv(b: Builder, value: Value, *, padded: bool = True) -> Value:
    """A Conv of any rank, group, stride, dilation and padding."""
    need(value.rank >= 3, value.axes == (1,))
    maps, group = value.maps, _group(b, value.maps)
    depthwise = group == maps > 1
    out = maps * b.pick([1, 1, 2]) if depthwise else group * b.maps(max(1, MOST_MAPS // group))
    need(out <= 2 * MOST_MAPS)
    kernel, strides, dilations = _window(b, value)
    attributes = _padding(b, kernel, dilations) if padded else _no_padding(b, len(kernel))
    numbers = b.normal((out, maps // group, *kernel), fan_in=maps // group * prod(kernel))
    inputs = [value, weight(b, numbers, 0), *bias(b, out)]
    return _small(
        b.one(
            "Conv", inputs, group=None if group == 1 and b.chance(0.5) else group, strides=strides,
            dilations=dilations if any(d > 1 for d in dilations) or b.chance(0.5) else None,
            kernel_shape=kernel if b.chance(0.8) else None, **attributes,
        )
    )  # fmt: skip


def conv_transpose(b: Builder, value: Value, *, padded: bool = True) -> Value:
    """A ConvTranspose; its weight is laid out (C_in, C_out / group, ...)."""
    need(value.rank >= 3, value.axes == (1,))
    maps, group = value.maps, _group(b, value.maps)
    each = b.maps(max(1, MOST_MAPS // group))
    kernel = [b.pick([1, 2, 3]) for _ in value.spatial]
    strides = [b.pick([1, 1, 2]) for _ in kernel]
    dilations = [b.pick([1, 1, 1, 2]) for _ in kernel]
    if not padded:  # where a shift is the same everywhere: begin and end pads that reach over the kernel
        strides = [1] * len(kernel)
        pads = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)] * 2
    else:
        pads = [b.whole(0, (k - 1) * d) for k, d in zip(kernel * 2, dilations * 2, strict=True)]
    extra = [b.whole(0, s - 1) if s > 1 else 0 for s in strides]
    numbers = b.normal((maps, each, *kernel), fan_in=maps // group * prod(kernel))
    inputs = [value, weight(b, numbers, 1), *bias(b, group * each)]
    return _small(
        b.one(
            "ConvTranspose", inputs, group=group, strides=strides, dilations=dilations,
            pads=pads if any(pads) or b.chance(0.5) else None,
            output_padding=extra if any(extra) else None,
        )
    )  # fmt: skip


def _group(b: Builder, maps: int) -> int:
    if b.chance(0.5):
        return 1
    return maps if b.chance(0.4) else b.pick([g for g in range(1, maps + 1) if maps % g == 0])


def _window(b: Builder, value: Value) -> tuple[list[int], list[int], list[int]]:
    kernel = [b.pick([1, 1, 2, 3, 3]) for _ in value.spatial] if b.chance(0.7) else [1] * len(value.spatial)
    strides = [b.pick([1, 1, 1, 2]) for _ in kernel]
    dilations = [b.pick([1, 1, 1, 2]) if k > 1 else 1 for k in kernel]
    return kernel, strides, dilations


def _no_padding(b: Builder, rank: int) -> dict[str, list[int] | str]:
    return b.pick([{}, {"pads": [0] * 2 * rank}, {"auto_pad": "VALID"}])


def _padding(b: Builder, kernel: list[int], dilations: list[int]) -> dict[str, list[int] | str]:
    form = b.rng.random()
    if form < 0.35:
        return _no_padding(b, len(kernel))
    if form < 0.5 and all(d == 1 for d in dilations):
        return {"auto_pad": b.pick(["SAME_UPPER", "SAME_LOWER"])}
    if form < 0.8:
        return {"pads": [(k - 1) * d // 2 for k, d in zip(kernel, dilations, strict=True)] * 2}
    return {"pads": [b.whole(0, 2) for _ in kernel * 2]}


def _small(value: Value) -> Value:
    need(max(value.spatial) <= MOST_SIZE, prod(value.shape) <= 20_000)
    return value


# Matrices -----------------------------------------------------------------------------------------------------------


def gemm(b: Builder, value: Value, *, padded: bool = True) -> Value:
    """A Gemm with any attributes and any C."""
    need(value.rank == 2)
    transposed = b.chance(0.2) and len(value.axes) == 1
    if transposed:
        value = b.one("Transpose", [value], (1 - value.axes[0],), perm=[1, 0])
    inner = value.shape[0 if transposed else 1]
    out, across = b.maps(MOST_MAPS), b.chance(0.5)
    numbers = b.normal((out, inner) if across else (inner, out), fan_in=inner)
    inputs = [value, weight(b, numbers, 0 if across else 1), *_gemm_c(b, value.shape[1 if transposed else 0], out)]
    return b.one(
        "Gemm", inputs, transA=int(transposed) or None, transB=1 if across else b.pick([None, 0]),
        alpha=b.pick([None, None, 1.0, 0.5, -1.5]), beta=b.pick([None, None, 1.0, 0.5, 2.0, 0.0]),
    )  # fmt: skip


def _gemm_c(b: Builder, rows: int, columns: int) -> list[str]:
    form = b.rng.random()
    if b.opset >= 11 and form < 0.25:
        return [] if form < 0.2 else [""]
    shapes: list[tuple[int, ...]] = [(columns,), (columns,), (columns,), (1, columns), (), (1,), (1, 1)]
    shapes += [] if b.free else [(rows, columns), (rows, 1)]
    return [b.const(b.normal(b.pick(shapes)), "c")]


def matmul_right(b: Builder, value: Value, *, padded: bool = True) -> Value:
    """Constant on the right, on the last axis; from (N, C, ...) by way of a Transpose. With an Add, or without."""
    need(value.rank >= 2)
    last = value.rank - 1
    laid = value
    if value.axes != (last,):
        need(value.axes == (1,))
        perm = [0, *range(2, value.rank), 1]
        laid = b.one("Transpose", [value], (last,), perm=perm)
    inner, out = laid.shape[-1], b.maps(MOST_MAPS)
    shape = (1, inner, out) if laid.rank == 3 and b.chance(0.1) else (inner, out)
    made = b.one("MatMul", [laid, weight(b, b.normal(shape, fan_in=inner), 1)], (last,))
    made = _matmul_bias(b, made)
    if laid is not value and b.chance(0.7):
        made = b.one("Transpose", [made], perm=[0, last, *range(1, last)])
    return made


def matmul_left(b: Builder, value: Value, *, padded: bool = True) -> Value:
    """Constant on the left: the rows, axis -2."""
    need(value.rank in (2, 3), value.axes == (value.rank - 2,))
    inner, out = value.shape[-2], b.maps(MOST_MAPS)
    made = b.one("MatMul", [weight(b, b.normal((out, inner), fan_in=inner), 0), value], value.axes)
    return _matmul_bias(b, made)


def _matmul_bias(b: Builder, value: Value) -> Value:
    if b.chance(0.5):
        return value
    shape = tuple(size if axis in value.axes else 1 for axis, size in enumerate(value.shape))
    shape = shape[b.whole(0, value.axes[0]) :]
    name = b.const(b.normal(shape), "b")
    made = b.one("Add", [value, name] if b.chance(0.6) else [name, value], value.axes)
    return replace(made, axes=value.axes)
