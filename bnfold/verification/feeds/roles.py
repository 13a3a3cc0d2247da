"""What operators take as whole numbers: an index, a length, an axis, a shape. Source: the ONNX operator specs.

`bound_of` answers for one input of one node. Shapes are asked for by name; where one is not known, neither is the
range that follows from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from onnx import NodeProto

from bnfold.rounding import Array

Dims = tuple[int | None, ...] | None
_LENGTH = 16  # of what a number makes: a Range, a window
_FEW = 4  # of what costs: turns of a Loop, elements along an axis


@dataclass(frozen=True, slots=True)
class Bound:
    """What an input of whole numbers may hold.

    Attributes:
        low: the least number.
        high: the largest one.
        distinct: which of them must not be the same: "rows" (all but the last axis tell rows apart), those along an
            axis, or None: all may.
        pattern: the numbers themselves, where they depend on their place; () where they do not.
    """

    low: int
    high: int
    distinct: int | Literal["rows"] | None = None
    pattern: tuple[int, ...] = ()

    def within(self, other: "Bound") -> "Bound":
        """What both allow; this one where they exclude each other."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        if low > high:
            return self
        distinct = self.distinct if self.distinct is not None else other.distinct
        return Bound(low, high, distinct, self.pattern or other.pattern)


class Facts(Protocol):
    """What is known about a graph."""

    makers: dict[str, NodeProto]

    def dims(self, name: str) -> Dims:
        """The shape of a value."""

    def constant(self, name: str) -> Array | None:
        """The numbers of a small constant."""


_Role = Callable[[Facts, NodeProto], Bound | None]


def bound_of(facts: Facts, node: NodeProto, slot: int, *, whole: bool) -> Bound | None:
    """What input `slot` of a node takes; None where it takes anything, or nothing is known.

    Args:
        facts: of the graph.
        node: which one.
        slot: which of its inputs.
        whole: whether the input is what the user gives; otherwise it is put together in the model, and no pattern
            fits.
    """
    if whole and (node.op_type, slot) in _PATTERNS:
        pattern = _PATTERNS[node.op_type, slot](facts, node)
        if pattern:
            return Bound(min(pattern), max(pattern), pattern=pattern)
    role = _ROLES.get((node.op_type, slot))
    return None if role is None else role(facts, node)


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((entry.i for entry in node.attribute if entry.name == name), default)


def _dim(facts: Facts, node: NodeProto, slot: int, axis: int) -> int | None:
    """The size of an input along an axis."""
    dims = facts.dims(node.input[slot]) if slot < len(node.input) else None
    return dims[axis] if dims and -len(dims) <= axis < len(dims) else None


def _index(slot: int, default: int, attribute: str = "axis") -> _Role:
    """An index along an axis of input `slot`."""

    def role(facts: Facts, node: NodeProto) -> Bound | None:
        size = _dim(facts, node, slot, _attribute(node, attribute, default))
        return Bound(0, size - 1) if size else None

    return role


def _place(facts: Facts, node: NodeProto) -> Bound | None:
    """An index along an axis of what is written to: no place twice, as the order of writing is nobody's."""
    axis = _attribute(node, "axis", 0)
    size = _dim(facts, node, 0, axis)
    return Bound(0, size - 1, distinct=axis) if size else None


def _tuple_index(facts: Facts, node: NodeProto) -> Bound | None:
    """An index of several axes at once: what the smallest of them allows."""
    dims, indices = facts.dims(node.input[0]), facts.dims(node.input[1])
    if not dims or not indices or not indices[-1]:
        return None
    first = _attribute(node, "batch_dims", 0)
    sizes = [size for size in dims[first : first + indices[-1]] if size]
    distinct: Literal["rows"] | None = "rows" if node.op_type == "ScatterND" else None
    return Bound(0, min(sizes) - 1, distinct) if sizes else None


def _one_hot(facts: Facts, node: NodeProto) -> Bound | None:
    depth = facts.constant(node.input[1])
    return Bound(0, int(depth.item()) - 1) if depth is not None and depth.size == 1 else None


def _length(slot: int, default: int, attribute: str) -> _Role:
    """How many elements along an axis of input `slot` count: 1 to all of them."""

    def role(facts: Facts, node: NodeProto) -> Bound | None:
        size = _dim(facts, node, slot, _attribute(node, attribute, default))
        return Bound(1, size) if size else None

    return role


def _between(low: int, high: int) -> _Role:
    return lambda _facts, _node: Bound(low, high)


def _whole_slice(facts: Facts, node: NodeProto) -> Bound:
    """The end of a Slice: where the shortest axis ends, so that the others are cut and none is empty."""
    sizes = [size for size in facts.dims(node.input[0]) or () if size]
    axes = facts.constant(node.input[3]) if len(node.input) > 3 else None
    if axes is not None:
        sizes = [size for axis in axes.ravel() if (size := _dim(facts, node, 0, int(axis)))]
    end = min(sizes, default=2**31 - 1)
    return Bound(end, end)


def _class(facts: Facts, node: NodeProto) -> Bound | None:
    """What is compared with the result of ArgMax or ArgMin is the number of a class."""
    for name in node.input:
        maker = facts.makers.get(name)
        while maker is not None and maker.op_type in ("Cast", "Squeeze", "Identity"):
            maker = facts.makers.get(maker.input[0])
        if maker is not None and maker.op_type in ("ArgMax", "ArgMin"):
            return _index(0, 0)(facts, maker)
    return None


_ROLES: Mapping[tuple[str, int], _Role] = {
    ("Gather", 1): _index(0, 0),
    ("GatherElements", 1): _index(0, 0),
    ("GatherND", 1): _tuple_index,
    ("ScatterND", 1): _tuple_index,
    ("ScatterElements", 1): _place,
    ("Scatter", 1): _place,
    ("EmbedLayerNormalization", 0): _index(2, 0, ""),
    ("EmbedLayerNormalization", 1): _index(4, 0, ""),
    ("RoiAlign", 2): _index(0, 0, ""),
    ("NegativeLogLikelihoodLoss", 1): _index(0, 1, ""),
    ("SoftmaxCrossEntropyLoss", 1): _index(0, 1, ""),
    ("Equal", 0): _class, ("Equal", 1): _class,
    ("OneHot", 0): _one_hot, ("OneHot", 1): _between(_FEW, _LENGTH),
    ("LSTM", 4): _length(0, 0, ""), ("GRU", 4): _length(0, 0, ""), ("RNN", 4): _length(0, 0, ""),
    ("ReverseSequence", 1): _length(0, 0, "time_axis"),
    ("TopK", 1): _length(0, -1, "axis"),
    ("CumSum", 1): _between(0, 0),
    ("Reshape", 1): _between(1, 1), ("Expand", 1): _between(1, 1), ("Tile", 1): _between(1, 2),
    ("ConstantOfShape", 0): _between(1, _FEW), ("Resize", 3): _between(8, 32), ("Pad", 1): _between(0, 1),
    ("Slice", 1): _between(0, 0), ("Slice", 2): _whole_slice, ("Slice", 4): _between(1, 1),
    ("Range", 0): _between(0, 0), ("Range", 1): _between(_LENGTH, _LENGTH), ("Range", 2): _between(1, 1),
    ("Squeeze", 1): _between(0, 0), ("Unsqueeze", 1): _between(0, 0), ("SequenceAt", 1): _between(0, 0),
    ("Loop", 0): _between(1, _FEW), ("NonMaxSuppression", 2): _between(1, 8),
    ("HannWindow", 0): _between(_LENGTH, _LENGTH), ("HammingWindow", 0): _between(_LENGTH, _LENGTH),
    ("BlackmanWindow", 0): _between(_LENGTH, _LENGTH),
    ("Div", 1): _between(1, 9), ("Mod", 1): _between(1, 9), ("Pow", 1): _between(0, 3),
    ("BitShift", 1): _between(0, 7),
}  # fmt: skip


def _reshaped(facts: Facts, node: NodeProto) -> tuple[int, ...]:
    """A target for Reshape: the declared one, or the first axes kept and the others joined."""
    output, own = facts.dims(node.output[0]), facts.dims(node.input[1])
    if output and all(output):
        return tuple(size or 1 for size in output)
    rank, dims = (own[0] if own else None), facts.dims(node.input[0])
    if not rank:
        return ()
    kept = min(rank, len(dims) if dims is not None else rank)
    keep = 1 if _attribute(node, "allowzero", 0) else 0
    return (-1, *[1] * (rank - 1)) if keep else (*[0] * (kept - 1), -1, *[1] * (rank - kept))


def _count_up(slot: int) -> Callable[[Facts, NodeProto], tuple[int, ...]]:
    """Axes: 0, 1, ... as many as the input holds."""
    return lambda facts, node: tuple(range((facts.dims(node.input[slot]) or (0,))[0] or 0))


def _ends(facts: Facts, node: NodeProto) -> tuple[int, ...]:
    """Where all of it ends, axis by axis, if the first axes are the ones that are sliced."""
    dims, own = facts.dims(node.input[0]), facts.dims(node.input[2])
    constant = facts.constant(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    if dims is None or not own or not own[0]:
        return ()
    axes = list(range(own[0])) if constant is None else [int(axis) for axis in constant.ravel()]
    return tuple(dims[axis] or 2**31 - 1 for axis in axes if -len(dims) <= axis < len(dims))


def _equal_parts(facts: Facts, node: NodeProto) -> tuple[int, ...]:
    size, parts = _dim(facts, node, 0, _attribute(node, "axis", 0)), len(node.output)
    return (*[size // parts] * (parts - 1), size - size // parts * (parts - 1)) if size else ()


def _resized(facts: Facts, node: NodeProto) -> tuple[int, ...]:
    """Twice as many locations, as many samples and maps."""
    dims, own = facts.dims(node.input[0]), facts.dims(node.input[3])
    if not dims or not own or not all(dims) or not own[0]:
        return ()
    whole = tuple((size or 1) * (1 if axis < 2 else 2) for axis, size in enumerate(dims))
    return whole[-own[0] :]


_PATTERNS: Mapping[tuple[str, int], Callable[[Facts, NodeProto], tuple[int, ...]]] = {
    ("Reshape", 1): _reshaped,
    ("Slice", 2): _ends,
    ("Slice", 3): _count_up(3),
    ("Split", 1): _equal_parts,
    ("Squeeze", 1): _count_up(1),
    ("Unsqueeze", 1): _count_up(1),
    ("Resize", 3): _resized,
}
