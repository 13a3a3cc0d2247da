"""Operators that a map can pass through, sorted by what they ask of it: any map, s >= 0, t = 0."""

from collections.abc import Callable
from math import prod

import numpy as np

from tests.random_graphs.builder import Builder, Value, need
from tests.random_graphs.pooling import (
    average_pool,
    counted_pool,
    global_pool,
    ints,
    max_pool,
    mirror_pad,
    rectifier,
    resize,
    zero_pad,
)
from tests.random_graphs.sources import Mood

MOST = 20_000


def carrier(b: Builder, value: Value, mood: Mood) -> Value:
    """One operator that lets a map of this mood through; unchanged where nothing fits."""
    table = ANY + (POSITIVE if mood.positive else ()) + (UNSHIFTED if mood.unshifted else ())
    table += BOTH if mood.positive and mood.unshifted else ()
    for _ in range(6):
        made = b.attempt(b.pick(table), value)
        if made is not None and prod(made.shape) <= MOST:
            return made
    return value


def _others(value: Value) -> list[int]:
    """Axes that are neither the batch nor hold feature maps."""
    return [axis for axis in range(1, value.rank) if axis not in value.axes]


def with_axes(b: Builder, op: str, value: Value, axes: list[int], since: int, result: tuple[int, ...]) -> Value:
    """Squeeze and Unsqueeze: axes are an attribute below opset `since`, an input from there on."""
    if b.opset >= since:
        return b.one(op, [value, ints(b, *axes)], result)
    return b.one(op, [value], result, axes=axes)


# Any map ------------------------------------------------------------------------------------------------------------


def identity(b: Builder, value: Value) -> Value:
    """Identity, or a Dropout that does nothing."""
    if b.chance(0.5):
        return b.one("Identity", [value], value.axes)
    if b.opset >= 12:
        more = b.pick([[], [b.const(np.float32(0.5).astype(b.dtype))], ["", b.const(np.array(False))]])  # noqa: FBT003
        return b.one("Dropout", [value, *more], value.axes)
    return b.one("Dropout", [value], value.axes, ratio=0.5)


def transpose(b: Builder, value: Value) -> Value:
    """Spatial axes change places, or channels go last; sometimes straight back."""
    need(value.rank >= 3, value.axes == (1,))
    last = value.rank - 1
    if b.chance(0.5):
        perm = [0, 1, *b.rng.permutation(np.arange(2, value.rank)).tolist()]
        return b.one("Transpose", [value], perm=perm)
    return b.one("Transpose", [value], (last,), perm=[0, *range(2, value.rank), 1])


def back(b: Builder, value: Value) -> Value:
    """Channels that lie last come back to axis 1."""
    last = value.rank - 1
    need(value.rank >= 3, value.axes == (last,))
    return b.one("Transpose", [value], perm=[0, last, *range(1, last)])


def squeeze(b: Builder, value: Value) -> Value:
    """An axis of size one goes."""
    ones = [axis for axis in _others(value) if value.shape[axis] == 1]
    need(bool(ones), b.free != "spatial")
    gone = b.pick(ones)
    axes = tuple(axis - (axis > gone) for axis in value.axes)
    return with_axes(b, "Squeeze", value, [gone if b.opset < 11 or b.chance(0.7) else gone - value.rank], 13, axes)


def unsqueeze(b: Builder, value: Value) -> Value:
    """An axis of size one comes."""
    need(value.rank <= 4)
    place = b.whole(max(value.axes) + 1 if b.chance(0.8) else 1, value.rank)
    need(all(axis < place for axis in value.axes) or all(axis >= place for axis in value.axes))
    axes = tuple(axis + (axis >= place) for axis in value.axes)
    return with_axes(b, "Unsqueeze", value, [place], 13, axes)


def expand(b: Builder, value: Value) -> Value:
    """An axis of size one is repeated by Expand; or any but the maps' by Tile."""
    others = _others(value)
    need(bool(others))
    axis = b.pick(others)
    counts = [1] * value.rank
    counts[axis] = 2
    if value.shape[axis] == 1 and b.opset >= 8:
        return b.one("Expand", [value, ints(b, *counts)], value.axes)
    need(value.shape[axis] <= 4)
    return b.one("Tile", [value, ints(b, *counts)], value.axes)


def reshape(b: Builder, value: Value) -> Value:
    """Everything behind the maps is laid in one axis, or the last axis is split."""
    need(value.axes == (1,), value.rank >= 3)
    if b.chance(0.6):
        target = b.pick([[0, 0, -1], [0, value.maps, -1], [-1, value.maps, prod(value.spatial)]])
        return b.one("Reshape", [value, ints(b, *target)])
    need(value.shape[-1] % 2 == 0, value.rank <= 4)
    return b.one("Reshape", [value, ints(b, 0, 0, *value.shape[2:-1], -1, 2)])


def split_maps(b: Builder, value: Value) -> Value:
    """The channel axis becomes two."""
    need(value.axes == (1,), value.rank in (2, 3, 4), value.maps > 1)
    parts = b.pick([g for g in range(2, value.maps + 1) if value.maps % g == 0])
    each = value.maps // parts
    first = b.pick([[0, parts, each], [-1, parts, each], [0, parts, -1]])
    return b.one("Reshape", [value, ints(b, *first, *value.spatial)], (1, 2))


def shuffle(b: Builder, value: Value) -> Value:
    """ShuffleNet's channel shuffle."""
    need(value.rank in (3, 4))
    parted = split_maps(b, value)
    perm = [0, 2, 1, *range(3, parted.rank)]
    mixed = b.one("Transpose", [parted], (1, 2), perm=perm)
    return b.one("Reshape", [mixed, ints(b, b.pick([0, -1]), value.maps, *value.spatial)])


def merge_axes(b: Builder, value: Value) -> Value:
    """Maps over two axes are laid along one again."""
    need(value.axes == (1, 2))
    return b.one("Reshape", [value, ints(b, 0, value.maps, *value.shape[3:])])


def slice_maps(b: Builder, value: Value) -> Value:
    """A Slice of the maps (step and negative indices included) or of another axis."""
    need(b.opset >= 10, len(value.axes) == 1)
    axis = value.axes[0] if b.chance(0.6) else b.pick(_others(value) or [value.axes[0]])
    size = value.shape[axis]
    need(size > 1)
    start, end, step = b.pick([(0, size - 1, 1), (1, size, 1), (0, size, 2), (-2, 2**31, 1), (-1, -(2**31), -1)])
    named = axis if b.chance(0.7) else axis - value.rank
    inputs = [value, ints(b, start), ints(b, end), ints(b, named)] + ([ints(b, step)] if step != 1 else [])
    return b.one("Slice", inputs, value.axes)


def gather(b: Builder, value: Value) -> Value:
    """A Gather with repeated indices, on the maps or another axis."""
    need(len(value.axes) == 1)
    axis = value.axes[0] if b.chance(0.6) else b.pick(_others(value) or [value.axes[0]])
    size = value.shape[axis]
    count = b.whole(1, min(12, size + 2))
    low = -size if b.opset >= 11 and b.chance(0.3) else 0
    indices = b.rng.integers(low, size, count).astype(b.pick([np.int64, np.int32]))
    return b.one("Gather", [value, b.const(indices)], value.axes, axis=axis)


def depth_to_space(b: Builder, value: Value) -> Value:
    """DepthToSpace, both modes: the four maps of a block become one."""
    need(value.rank == 4, value.axes == (1,), value.maps % 4 == 0, max(value.spatial, default=9) <= 6)
    return b.one("DepthToSpace", [value], blocksize=2, mode=b.pick(["DCR", "CRD"]) if b.opset >= 11 else None)


def space_to_depth(b: Builder, value: Value) -> Value:
    """SpaceToDepth: one map becomes four."""
    need(value.rank == 4, value.axes == (1,), value.maps <= 8, all(size % 2 == 0 for size in value.spatial))
    return b.one("SpaceToDepth", [value], blocksize=2)


# Maps that become longer: only in front of an absorber --------------------------------------------------------------


def flatten(b: Builder, value: Value) -> Value:
    """Flatten to (N, C * H * W), by Flatten or Reshape."""
    need(value.rank >= 3, value.axes in ((1,), (1, 2)), b.free != "spatial")
    if b.chance(0.6):
        return b.one("Flatten", [value], axis=b.pick([None, 1]))
    return b.one("Reshape", [value, ints(b, b.pick([0, -1]), prod(value.shape[1:]))])


def merge_height(b: Builder, value: Value) -> Value:
    """(N, C, H, W) to (N, C * H, W): each map H times."""
    need(value.rank == 4, value.axes == (1,), b.free != "spatial", value.maps * value.shape[2] <= 48)
    return b.one("Reshape", [value, ints(b, 0, -1, value.shape[3])])


Carrier = Callable[[Builder, Value], Value]
ANY: tuple[Carrier, ...] = (
    identity, identity, transpose, back, back, squeeze, unsqueeze, expand, reshape, split_maps, shuffle, merge_axes,
    merge_axes, slice_maps, gather, average_pool, average_pool, global_pool, resize, resize, resize,
    depth_to_space, depth_to_space, depth_to_space, space_to_depth, space_to_depth, squeeze, expand,
    mirror_pad,
)  # fmt: skip
POSITIVE: tuple[Carrier, ...] = (max_pool,) * 5
UNSHIFTED: tuple[Carrier, ...] = (zero_pad, zero_pad, counted_pool)
BOTH: tuple[Carrier, ...] = (rectifier,) * 5
LONGER: tuple[Carrier, ...] = (flatten, flatten, flatten, merge_height)
