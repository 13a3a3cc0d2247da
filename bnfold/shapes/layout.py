"""The output shapes of the operators that only move, repeat or drop elements. Source: the ONNX specifications."""

from collections.abc import Mapping, Sequence

from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, ints_attribute
from bnfold.parameters import ABSENT, axis_of, ints, padded, resize_scales, slices, split_lengths
from bnfold.shapes import MOST_NUMBERS, ONE, Dim, Numbers, Shape, product, unknown
from bnfold.shapes.common import ShapeRule, input_shape, made_up, wider


def _transpose(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = input_shape(facts, index)
    if x is None:
        return []
    order = ints_attribute(facts.nodes[index], "perm")
    return [tuple(x[axis] for axis in (order or reversed(range(len(x)))))]


def _reshape(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, node = input_shape(facts, index), facts.nodes[index]
    listed = ints_attribute(node, "shape") if facts.opset() < 5 else None
    if listed is not None:
        target: Numbers | None = tuple(Dim(n) for n in listed)
    else:
        target = facts.shapes.numbers(node.input[1])
    if target is None:
        rank = input_shape(facts, index, 1)
        count = rank[0].size if rank is not None and len(rank) == 1 else None
        if count is None or count > MOST_NUMBERS:
            return []
        return [tuple(made_up(facts, index, axis) for axis in range(count))]
    copies = not int_attribute(node, "allowzero", 0)
    dims: list[Dim | None] = []
    for axis, size in enumerate(target):
        if size == Dim(0) and copies:
            dims.append(x[axis] if x is not None else made_up(facts, index, axis))
        else:
            dims.append(None if size is not None and size.size == -1 else size or made_up(facts, index, axis))
    return [_completed(facts, index, x, dims)]


def _completed(facts: GraphFacts, index: int, x: Shape | None, dims: list[Dim | None]) -> Shape:
    """The dimensions with the one that is open worked out from the number of elements, where that is possible."""
    unknown_ = [dim for axis, dim in enumerate(dims) if dim == made_up(facts, index, axis)]
    open_ = [axis for axis, dim in enumerate(dims) if dim is None or (dim in unknown_ and len(unknown_) == 1)]
    if len(open_) == 1 and x is not None:
        rest = product(dim for axis, dim in enumerate(dims) if axis != open_[0] and dim is not None)
        found = product(x).over(rest)
        if found is not None:
            dims[open_[0]] = found
    return tuple(dim or made_up(facts, index, axis) for axis, dim in enumerate(dims))


def _flatten(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = input_shape(facts, index)
    if x is None:
        return []
    axis = int_attribute(facts.nodes[index], "axis", 1)
    axis = axis + len(x) if axis < 0 else axis
    return [(product(x[:axis]), product(x[axis:]))]


def _squeeze(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, axes = input_shape(facts, index), ints(facts, index, "axes", 1)
    if x is None or axes is None or (axes is ABSENT and any(dim.names for dim in x)):
        return []
    gone = {axis for axis, dim in enumerate(x) if dim == ONE} if axes is ABSENT else {a % len(x) for a in axes}
    return [tuple(dim for axis, dim in enumerate(x) if axis not in gone)]


def _unsqueeze(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, axes = input_shape(facts, index), ints(facts, index, "axes", 1)
    if x is None or axes is None or axes is ABSENT:
        return []
    rank = len(x) + len(axes)
    new = {axis % rank for axis in axes}
    if len(new) < len(axes):
        return []  # an axis twice
    rest = iter(x)
    return [tuple(ONE if axis in new else next(rest) for axis in range(rank))]


def _concat(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    shapes = [facts.shapes.of(name) for name in facts.nodes[index].input]
    first = next((shape for shape in shapes if shape is not None), None)
    axis = None if first is None else axis_of(int_attribute(facts.nodes[index], "axis", 1), len(first))
    if first is None or axis is None:
        return []
    lengths = [shape[axis].size if shape is not None else None for shape in shapes]
    total = made_up(facts, index, axis) if None in lengths else Dim(sum(n for n in lengths if n is not None))
    return [(*first[:axis], total, *first[axis + 1 :])]


def _split(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, node = input_shape(facts, index), facts.nodes[index]
    lengths = split_lengths(facts, index)
    axis = None if x is None else axis_of(int_attribute(node, "axis", 0), len(x))
    if x is None or axis is None:
        return []
    pieces = [unknown(name, axis) for name in node.output] if lengths is None else [Dim(n) for n in lengths]
    return [(*x[:axis], piece, *x[axis + 1 :]) for piece in pieces]


def _slice(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = input_shape(facts, index)
    cuts = slices(facts, index)
    if x is None:
        return []
    if cuts is None:
        return [tuple(made_up(facts, index, axis) for axis in range(len(x)))]
    dims = list(x)
    for axis, cut in cuts.items():
        size = x[axis].size
        if size is None:
            whole = (cut.start, cut.stop, cut.step) == (0, None, 1)
            dims[axis] = x[axis] if whole else made_up(facts, index, axis)
        else:
            dims[axis] = Dim(len(range(*cut.indices(size))))
    return [tuple(dims)]


def _gather(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, picked = input_shape(facts, index), input_shape(facts, index, 1)
    axis = None if x is None else axis_of(int_attribute(facts.nodes[index], "axis", 0), len(x))
    return [] if x is None or picked is None or axis is None else [(*x[:axis], *picked, *x[axis + 1 :])]


def _pad(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, pads = input_shape(facts, index), padded(facts, index)
    if x is None:
        return []
    if pads is None:
        return [tuple(made_up(facts, index, axis) for axis in range(len(x)))]
    dims = list(x)
    for axis, (begin, end) in pads.items():
        if begin or end:
            size = x[axis].size
            dims[axis] = made_up(facts, index, axis) if size is None else Dim(size + begin + end)
    return [tuple(dims)]


def _resize(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, scales = input_shape(facts, index), resize_scales(facts, index)
    if x is None:
        return []
    if scales is None:
        return [tuple(made_up(facts, index, axis) for axis in range(len(x)))]
    dims = [dim if scale == 1 else made_up(facts, index, axis)
            for axis, (dim, scale) in enumerate(zip(x, scales, strict=True))]  # fmt: skip
    return [tuple(dims)]


def _depth_to_space(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, block = input_shape(facts, index), Dim(int_attribute(facts.nodes[index], "blocksize", 1))
    maps = None if x is None or len(x) != 4 else x[1].over(block * block)
    return [] if x is None or maps is None else [(x[0], maps, x[2] * block, x[3] * block)]


def _space_to_depth(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, block = input_shape(facts, index), Dim(int_attribute(facts.nodes[index], "blocksize", 1))
    if x is None or len(x) != 4:
        return []
    rest = [dim.over(block) or made_up(facts, index, 2 + i) for i, dim in enumerate(x[2:])]
    return [(x[0], x[1] * block * block, *rest)]


def _expand(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, node = input_shape(facts, index), facts.nodes[index]
    target = facts.shapes.numbers(node.input[1])
    if target is None:
        held = input_shape(facts, index, 1)
        count = held[0].size if held is not None and len(held) == 1 else None
        target = (None,) * count if count is not None and count <= MOST_NUMBERS else None
    if x is None or target is None:
        return []
    rank = max(len(x), len(target))
    dims: list[Dim] = []
    for axis in range(rank):
        own = x[axis - rank + len(x)] if axis - rank + len(x) >= 0 else ONE
        place = axis - rank + len(target)
        wanted = target[place] if place >= 0 else ONE
        dims.append((None if wanted is None else wider([own, wanted])) or made_up(facts, index, axis))
    return [tuple(dims)]


def _tile(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, repeats = input_shape(facts, index), ints(facts, index, "", 1)
    if x is None or repeats is None or repeats is ABSENT or len(repeats) != len(x):
        return []
    return [tuple(dim * Dim(count) for dim, count in zip(x, repeats, strict=True))]


LAYOUT: Mapping[str, ShapeRule] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
