"""How each operator's output shapes follow from its inputs'. Returns nothing where they do not.

Source: the ONNX operator specifications. Operators that are not here count as unknown, and what the file
declares for their outputs is used.
"""

from collections.abc import Callable, Mapping, Sequence

from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, ints_attribute, text_attribute
from bnfold.parameters import ABSENT, axis_of, floats, ints
from bnfold.shapes import MOST_NUMBERS, ONE, Dim, Numbers, Shape, Shapes, fixed, product, unknown

ShapeRule = Callable[[GraphFacts, int], Sequence[Shape | None]]


def _in(facts: GraphFacts, index: int, slot: int = 0) -> Shape | None:
    inputs = facts.nodes[index].input
    return facts.shapes.of(inputs[slot]) if slot < len(inputs) and inputs[slot] else None


def _new(facts: GraphFacts, index: int, axis: int) -> Dim:
    return unknown(next(iter(facts.nodes[index].output), ""), axis)


def _same(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    return [_in(facts, index)]


def _broadcast(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    shapes = [facts.shapes.of(name) for name in facts.nodes[index].input if name]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or not known or (facts.opset() < 7 and len({len(shape) for shape in known}) > 1):
        return []
    rank = max(map(len, known))
    columns = [[shape[axis - rank + len(shape)] for shape in known if axis - rank + len(shape) >= 0]
               for axis in range(rank)]  # fmt: skip
    return [tuple(_wider(column) or _new(facts, index, axis) for axis, column in enumerate(columns))]


def _wider(dims: list[Dim]) -> Dim | None:
    """The size that all of `dims` broadcast to; None where that depends on the run."""
    rest = set(dims) - {ONE}
    numbers = {dim for dim in rest if dim.size is not None}
    if len(rest) <= 1:
        return rest.pop() if rest else ONE
    return numbers.pop() if len(numbers) == 1 else None


def _conv(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, weight = _in(facts, index), _in(facts, index, 1)
    if weight is None or len(weight) < 3:
        return []
    batch = x[0] if x is not None else _new(facts, index, 0)
    return [(batch, weight[0], *_windows(facts, index, x, weight[2:]))]


def _conv_transpose(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, weight = _in(facts, index), _in(facts, index, 1)
    if weight is None or len(weight) < 3:
        return []
    node = facts.nodes[index]
    spatial = len(weight) - 2
    maps = weight[1] * Dim(int_attribute(node, "group", 1))
    batch = x[0] if x is not None else _new(facts, index, 0)
    rest = [_new(facts, index, axis) for axis in range(2, 2 + spatial)]
    plain = text_attribute(node, "auto_pad", "NOTSET") == "NOTSET" and ints_attribute(node, "output_shape") is None
    if x is not None and plain:
        stride, dilation = (ints_attribute(node, name) or (1,) * spatial for name in ("strides", "dilations"))
        pads = ints_attribute(node, "pads") or (0,) * (2 * spatial)
        extra = ints_attribute(node, "output_padding") or (0,) * spatial
        for i in range(spatial):
            size, kernel = x[2 + i].size, weight[2 + i].size
            if size is not None and kernel is not None:
                span = dilation[i] * (kernel - 1) + 1 + extra[i]
                rest[i] = Dim(stride[i] * (size - 1) + span - pads[i] - pads[spatial + i])
    return [(batch, maps, *rest)]


def _pool(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = _in(facts, index)
    kernel = ints_attribute(facts.nodes[index], "kernel_shape")
    if x is None or kernel is None:
        return []
    shape = (*x[:2], *_windows(facts, index, x, [Dim(size) for size in kernel]))
    return [shape, shape]


def _windows(facts: GraphFacts, index: int, x: Shape | None, kernel: Sequence[Dim]) -> list[Dim]:
    """The spatial sizes of a Conv or pooling."""
    node = facts.nodes[index]
    spatial = len(kernel)
    found = [_new(facts, index, axis) for axis in range(2, 2 + spatial)]
    stride, dilation = (ints_attribute(node, name) or (1,) * spatial for name in ("strides", "dilations"))
    pads = ints_attribute(node, "pads") or (0,) * (2 * spatial)
    mode = text_attribute(node, "auto_pad", "NOTSET")
    if x is None or len(x) != spatial + 2:
        return found
    for i in range(spatial):
        size, taps = x[2 + i], kernel[i].size
        if taps is None:
            continue
        reach = dilation[i] * (taps - 1)
        padded = 0 if mode == "VALID" else pads[i] + pads[spatial + i]
        if stride[i] == 1 and (mode in ("SAME_UPPER", "SAME_LOWER") or padded == reach):
            found[i] = size
        elif size.size is not None and mode in ("SAME_UPPER", "SAME_LOWER"):
            found[i] = Dim(-(-size.size // stride[i]))
        elif size.size is not None and not int_attribute(node, "ceil_mode", 0):
            found[i] = Dim((size.size + padded - reach - 1) // stride[i] + 1)
    return found


def _global_pool(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = _in(facts, index)
    return [] if x is None else [(*x[:2], *[ONE] * (len(x) - 2))]


def _gemm(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    node = facts.nodes[index]
    a, b = _in(facts, index), _in(facts, index, 1)
    rows = a[int_attribute(node, "transA", 0)] if a is not None else _new(facts, index, 0)
    columns = b[1 - int_attribute(node, "transB", 0)] if b is not None else _new(facts, index, 1)
    return [(rows, columns)]


def _matmul(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    a, b = _in(facts, index), _in(facts, index, 1)
    if a is None or b is None or len(a) < 1 or len(b) < 1:
        return []
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    outer = max(len(a), len(b)) - 2
    batch: list[Dim] = []
    for axis in range(outer):
        dims = [shape[axis - outer + len(shape) - 2] for shape in (a, b) if axis - outer + len(shape) - 2 >= 0]
        batch.append(_wider(dims) or _new(facts, index, axis))
    return [(*batch, *rows, *columns)]


def _transpose(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = _in(facts, index)
    if x is None:
        return []
    order = ints_attribute(facts.nodes[index], "perm")
    return [tuple(x[axis] for axis in (order or reversed(range(len(x)))))]


def _reshape(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, node = _in(facts, index), facts.nodes[index]
    listed = ints_attribute(node, "shape") if facts.opset() < 5 else None
    if listed is not None:
        target: Numbers | None = tuple(Dim(n) for n in listed)
    else:
        target = facts.shapes.numbers(node.input[1])
    if target is None:
        rank = _in(facts, index, 1)
        count = rank[0].size if rank is not None and len(rank) == 1 else None
        return (
            []
            if count is None or count > MOST_NUMBERS
            else [tuple(_new(facts, index, axis) for axis in range(count))]
        )
    copies = not int_attribute(node, "allowzero", 0)
    dims: list[Dim | None] = []
    for axis, size in enumerate(target):
        if size == Dim(0) and copies:
            dims.append(x[axis] if x is not None else _new(facts, index, axis))
        else:
            dims.append(None if size is not None and size.size == -1 else size or _new(facts, index, axis))
    return [_completed(facts, index, x, dims)]


def _completed(facts: GraphFacts, index: int, x: Shape | None, dims: list[Dim | None]) -> Shape:
    """The dimensions with the one that is open worked out from the number of elements, where that is possible."""
    made_up = [dim for axis, dim in enumerate(dims) if dim == _new(facts, index, axis)]
    open_ = [axis for axis, dim in enumerate(dims) if dim is None or (dim in made_up and len(made_up) == 1)]
    if len(open_) == 1 and x is not None:
        rest = product(dim for axis, dim in enumerate(dims) if axis != open_[0] and dim is not None)
        found = product(x).over(rest)
        if found is not None:
            dims[open_[0]] = found
    return tuple(dim or _new(facts, index, axis) for axis, dim in enumerate(dims))


def _flatten(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = _in(facts, index)
    if x is None:
        return []
    axis = int_attribute(facts.nodes[index], "axis", 1)
    axis = axis + len(x) if axis < 0 else axis
    return [(product(x[:axis]), product(x[axis:]))]


def _squeeze(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, axes = _in(facts, index), ints(facts, index, "axes", 1)
    if x is None or axes is None or (axes is ABSENT and any(dim.names for dim in x)):
        return []
    gone = {axis for axis, dim in enumerate(x) if dim == ONE} if axes is ABSENT else {a % len(x) for a in axes}
    return [tuple(dim for axis, dim in enumerate(x) if axis not in gone)]


def _unsqueeze(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, axes = _in(facts, index), ints(facts, index, "axes", 1)
    if x is None or axes is None or axes is ABSENT:
        return []
    rank = len(x) + len(axes)
    new = {axis % rank for axis in axes}
    rest = iter(x)
    return [tuple(ONE if axis in new else next(rest) for axis in range(rank))]


def _concat(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    shapes = [facts.shapes.of(name) for name in facts.nodes[index].input]
    first = next((shape for shape in shapes if shape is not None), None)
    axis = None if first is None else axis_of(int_attribute(facts.nodes[index], "axis", 1), len(first))
    if first is None or axis is None:
        return []
    lengths = [shape[axis].size if shape is not None else None for shape in shapes]
    total = _new(facts, index, axis) if None in lengths else Dim(sum(n for n in lengths if n is not None))
    return [(*first[:axis], total, *first[axis + 1 :])]


def _split(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, node = _in(facts, index), facts.nodes[index]
    lengths = split_lengths(facts, index)
    axis = None if x is None else axis_of(int_attribute(node, "axis", 0), len(x))
    if x is None or axis is None:
        return []
    pieces = [unknown(name, axis) for name in node.output] if lengths is None else [Dim(n) for n in lengths]
    return [(*x[:axis], piece, *x[axis + 1 :]) for piece in pieces]


def split_lengths(facts: GraphFacts, index: int) -> tuple[int, ...] | None:
    """How long each piece of a Split is; None where that is not known."""
    node = facts.nodes[index]
    given = ints(facts, index, "split", 1)
    if given is not ABSENT:
        return given if given is not None and len(given) == len(node.output) else None
    x = _in(facts, index)
    axis = None if x is None else axis_of(int_attribute(node, "axis", 0), len(x))
    total = None if x is None or axis is None else x[axis].size
    if total is None:
        return None
    each = -(-total // len(node.output))
    return tuple(max(0, min(each, total - each * i)) for i in range(len(node.output)))


def _slice(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = _in(facts, index)
    cuts = slices(facts, index)
    if x is None:
        return []
    if cuts is None:
        return [tuple(_new(facts, index, axis) for axis in range(len(x)))]
    dims = list(x)
    for axis, cut in cuts.items():
        size = x[axis].size
        if size is None:
            whole = (cut.start, cut.stop, cut.step) == (0, None, 1)
            dims[axis] = x[axis] if whole else _new(facts, index, axis)
        else:
            dims[axis] = Dim(len(range(*cut.indices(size))))
    return [tuple(dims)]


def slices(facts: GraphFacts, index: int) -> Mapping[int, slice] | None:
    """What a Slice keeps along each axis that it cuts; None where that is not the same in every run."""
    node = facts.nodes[index]
    rank = facts.shapes.rank(node.input[0]) if node.input else None
    starts, ends = ints(facts, index, "starts", 1), ints(facts, index, "ends", 2)
    axes, steps = ints(facts, index, "axes", 3), ints(facts, index, "", 4)
    if starts is None or starts is ABSENT or ends is None or ends is ABSENT or axes is None or steps is None:
        return None
    axes = tuple(range(len(starts))) if axes is ABSENT else axes
    steps = (1,) * len(starts) if steps is ABSENT else steps
    if rank is None or not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        return None
    cuts: dict[int, slice] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = axis_of(axis, rank)
        if place is None or (step < 0 and (start >= 0 or end >= 0) and min(start, end) < 0 <= max(start, end)):
            return None
        forever = (step > 0 and end >= 2**31 - 1) or (step < 0 and end <= -(2**31) + 1)
        cuts[place] = slice(start, None if forever else end, step)
    return cuts


def _gather(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, picked = _in(facts, index), _in(facts, index, 1)
    axis = None if x is None else axis_of(int_attribute(facts.nodes[index], "axis", 0), len(x))
    return [] if x is None or picked is None or axis is None else [(*x[:axis], *picked, *x[axis + 1 :])]


def _reduce(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, axes = _in(facts, index), reduced_axes(facts, index)
    if x is None or axes is None:
        return []
    keep = int_attribute(facts.nodes[index], "keepdims", 1)
    return [tuple(ONE if axis in axes else dim for axis, dim in enumerate(x) if keep or axis not in axes)]


def reduced_axes(facts: GraphFacts, index: int) -> frozenset[int] | None:
    """The axes that a Reduce operator takes together, counted from the front; None where they are not known."""
    node = facts.nodes[index]
    rank, axes = facts.shapes.rank(node.input[0]), ints(facts, index, "axes", 1)
    if rank is None or axes is None:
        return None
    if axes is ABSENT or not axes:
        nothing = int_attribute(node, "noop_with_empty_axes", 0)
        return frozenset() if nothing else frozenset(range(rank))
    places = [axis_of(axis, rank) for axis in axes]
    return None if None in places else frozenset(place for place in places if place is not None)


def _pad(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, pads = _in(facts, index), padded(facts, index)
    if x is None:
        return []
    if pads is None:
        return [tuple(_new(facts, index, axis) for axis in range(len(x)))]
    dims = list(x)
    for axis, (begin, end) in pads.items():
        if begin or end:
            size = x[axis].size
            dims[axis] = _new(facts, index, axis) if size is None else Dim(size + begin + end)
    return [tuple(dims)]


def padded(facts: GraphFacts, index: int) -> Mapping[int, tuple[int, int]] | None:
    """How much a Pad adds before and behind along each axis; None where that is not known."""
    node = facts.nodes[index]
    rank = facts.shapes.rank(node.input[0])
    name = "paddings" if facts.opset() < 2 else "pads"
    pads, axes = ints(facts, index, name, 1), ints(facts, index, "", 3)
    if rank is None or pads is None or pads is ABSENT or axes is None:
        return None
    places = [axis_of(axis, rank) for axis in (range(rank) if axes is ABSENT else axes)]
    if None in places or len(pads) != 2 * len(places):
        return None
    half = len(places)
    return {place: (pads[i], pads[half + i]) for i, place in enumerate(places) if place is not None}


def _resize(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, scales = _in(facts, index), resize_scales(facts, index)
    if x is None:
        return []
    if scales is None:
        return [tuple(_new(facts, index, axis) for axis in range(len(x)))]
    dims = [dim if scale == 1 else _new(facts, index, axis)
            for axis, (dim, scale) in enumerate(zip(x, scales, strict=True))]  # fmt: skip
    return [tuple(dims)]


def resize_scales(facts: GraphFacts, index: int) -> tuple[float, ...] | None:
    """By how much a Resize or Upsample enlarges each axis; nan where it is not 1 but not known. None: unknown."""
    node = facts.nodes[index]
    x = facts.shapes.of(node.input[0])
    old = facts.op(index) == "Upsample" or facts.opset() < 11
    scales = floats(facts, index, "scales", 1 if old else 2)
    axes = ABSENT if old else ints(facts, index, "axes")
    if x is None or scales is None or axes is None:
        return None
    places = [axis_of(axis, len(x)) for axis in (range(len(x)) if axes is ABSENT else axes)]
    found = [1.0] * len(x)
    if scales is not ABSENT and scales:
        listed: Sequence[float] = scales
    else:
        targets = None if old or len(node.input) < 4 else facts.shapes.numbers(node.input[3])
        if targets is None or len(targets) != len(places) or None in places:
            return None
        listed = [
            1.0 if target == x[place or 0] else float("nan") for place, target in zip(places, targets, strict=True)
        ]
    if len(listed) != len(places):
        return None
    for place, scale in zip(places, listed, strict=True):
        if place is None:
            return None
        found[place] = scale
    return tuple(found)


def _depth_to_space(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, block = _in(facts, index), Dim(int_attribute(facts.nodes[index], "blocksize", 1))
    maps = None if x is None or len(x) != 4 else x[1].over(block * block)
    return [] if x is None or maps is None else [(x[0], maps, x[2] * block, x[3] * block)]


def _space_to_depth(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, block = _in(facts, index), Dim(int_attribute(facts.nodes[index], "blocksize", 1))
    if x is None or len(x) != 4:
        return []
    rest = [dim.over(block) or _new(facts, index, 2 + i) for i, dim in enumerate(x[2:])]
    return [(x[0], x[1] * block * block, *rest)]


def _expand(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, node = _in(facts, index), facts.nodes[index]
    target = facts.shapes.numbers(node.input[1])
    if target is None:
        held = _in(facts, index, 1)
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
        dims.append((None if wanted is None else _wider([own, wanted])) or _new(facts, index, axis))
    return [tuple(dims)]


def _tile(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x, repeats = _in(facts, index), ints(facts, index, "", 1)
    if x is None or repeats is None or repeats is ABSENT or len(repeats) != len(x):
        return []
    return [tuple(dim * Dim(count) for dim, count in zip(x, repeats, strict=True))]


def _constant(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    found = facts.constants.find(facts.nodes[index].output[0])
    return [] if found is None else [fixed(found.tensor.shape)]


def _constant_of_shape(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    target = facts.shapes.numbers(facts.nodes[index].input[0])
    if target is None:
        return []
    return [tuple(dim or _new(facts, index, axis) for axis, dim in enumerate(target))]


def _shape(facts: GraphFacts, index: int) -> Sequence[Shape | None]:
    x = _in(facts, index)
    return [] if x is None else [(Dim(len(_cut(facts, index, x))),)]


def _cut(facts: GraphFacts, index: int, x: Shape) -> Shape:
    node = facts.nodes[index]
    start, end = int_attribute(node, "start", 0), int_attribute(node, "end", len(x))
    return x[slice(*slice(start, end).indices(len(x)))]


def follow_numbers(facts: GraphFacts, index: int, shapes: Shapes) -> Numbers | None:
    """The entries of the node's output, where it computes with sizes; None for all other nodes."""
    op, node = facts.op(index), facts.nodes[index]
    if op == "Shape":
        x = _in(facts, index)
        return None if x is None else _cut(facts, index, x)
    if op not in _FOLLOWED or not node.output or not node.input:
        return None
    known = [shapes.numbers(name) for name in node.input[: _FOLLOWED[op]] if name]
    values = [numbers for numbers in known if numbers is not None]
    if len(values) < len(known) or not values:
        return None
    if op == "Concat":
        return tuple(dim for numbers in values for dim in numbers)
    if op == "Gather":
        where = ints(facts, index, "", 1)
        inside = (
            where is not None and where is not ABSENT and all(-len(values[0]) <= i < len(values[0]) for i in where)
        )
        return tuple(values[0][i] for i in where) if inside and isinstance(where, tuple) else None
    if op == "Slice":
        cuts = slices(facts, index)
        return values[0][cuts[0]] if cuts is not None and set(cuts) == {0} else None
    if op in ("Mul", "Div"):
        return _arithmetic(op, values)
    return values[0]


_FOLLOWED = {"Cast": 1, "Concat": 2**31, "Div": 2, "Gather": 1, "Identity": 1, "Mul": 2, "Slice": 1, "Squeeze": 1,
             "Unsqueeze": 1, "Reshape": 1}  # fmt: skip


def _arithmetic(op: str, values: Sequence[Numbers]) -> Numbers | None:
    first, second = values
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        return None
    count = max(len(first), len(second))
    pairs = zip(first * (count // len(first)), second * (count // len(second)), strict=True)
    return tuple(None if a is None or b is None else (a * b if op == "Mul" else a.over(b)) for a, b in pairs)


_SAME = [
    "Abs", "BatchNormalization", "Cast", "Celu", "Clip", "CumSum", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp",
    "Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "InstanceNormalization",
    "LRN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization",
    "Mish", "Neg", "PRelu", "QuantizeLinear", "RMSNormalization", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid",
    "Sign", "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
]  # fmt: skip
_BROADCAST = ["Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Mean", "Min", "Mul", "Or", "Pow", "Sub", "Sum",
              "Where"]  # fmt: skip
_REDUCE = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]

SHAPES: Mapping[str, ShapeRule] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys([f"Reduce{name}" for name in _REDUCE], _reduce),
    **dict.fromkeys(["AveragePool", "LpPool", "MaxPool"], _pool),
    **dict.fromkeys(["GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"], _global_pool),
    "CastLike": _same,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": lambda facts, index: [_in(facts, index, 1)],
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
    "com.microsoft::FusedConv": _conv,
    "com.microsoft::FusedGemm": _gemm,
}
