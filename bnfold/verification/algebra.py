"""What a changed convolution or product computes, as one weight and one bias: compared number by number, no data.

    original   y = s (W * (p x + q) + b) + t          folded   y = W' * x + b'

is the same function where W'[o, j, k] = s[o] W[o, j, k] p[j] and b' = s (b + sum over j, k of W[o, j, k] q[j]) + t.
Both sides are brought into that form, in float64, whatever stands before and behind the product: BatchNormalization,
Mul, Add, Sub, Div, Neg by constants, Identity. Where a segment is not of that form, `recover` says nothing.
Formulas: products by the operators' specs.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from bnfold.affine import Float64Array
from bnfold.graph import GraphFacts
from bnfold.nodes import float_attribute, int_attribute, ints_attribute, text_attribute
from bnfold.rounding import Array, to_float64
from bnfold.verification.affinemaps import Map, Sized, composed, constant, moving_input

CORES = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
MOST_NODES = 32  # on either side of the product
_FREE = ("alpha", "beta", "name")  # attributes that are part of the numbers, or mean nothing


@dataclass(frozen=True, slots=True)
class Product:
    """One product of constants and a value, all that stands around it included.

    Attributes:
        reads: the value that it reads.
        kind: operator and attributes that decide what it does, for comparing.
        weight: as it is stored, in the layout of the operator.
        factors: what it is multiplied by, each of a shape that broadcasts against it.
        slack: the same, of the factors' sizes by their absolute values; 1 where nothing cancelled.
        bias: one number for each map, with its size.
        axis: the axis of the maps in `weight`.
        node: the product's own node.
        steps: how many elementwise nodes are part of it.
    """

    reads: str
    kind: tuple[object, ...]
    weight: Array
    factors: tuple[Float64Array, ...]
    slack: tuple[Float64Array, ...]
    bias: Sized
    axis: int
    node: NodeProto
    steps: int

    def rows(self, start: int, stop: int) -> Float64Array:
        """A part of the whole weight, in float64, along its first axis."""
        found = to_float64(self.weight[start:stop])
        for factor in self.factors:
            found = found * (factor if len(factor) == 1 else factor[start:stop])
        return found


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a weight lies: the axis of its maps, how many maps and channels; axes of a value besides batch, 0: last."""

    axis: int
    maps: int
    channels: int
    lead: int

    def shape(self, count: int) -> tuple[int, ...]:
        """The shape of `count` numbers, one for each channel, against a value."""
        return (1,) * (self.lead > 0) + (count,) + (1,) * max(self.lead - 1, 0)


def recover(facts: GraphFacts, value: str, shared: AbstractSet[str]) -> Product | None:
    """The one product that makes `value` out of one of the `shared` values; None where it is not of that form."""
    behind: list[int] = []
    core = _core(facts, value, shared, behind)
    if core is None:
        return None
    node = facts.nodes[core]
    if len(node.input) < 2 or facts.constants.find(node.input[0]) is not None:
        return None
    weight = facts.constants.find(node.input[1])
    if weight is None or weight.tensor.dtype is None or weight.tensor.dtype.kind not in "fV":
        return None
    before: list[int] = []
    reads = _walk(facts, node.input[0], shared, before)
    return None if reads is None else _recovered(facts, core, weight.tensor.array(), reads, before, behind)


def _core(facts: GraphFacts, value: str, shared: AbstractSet[str], behind: list[int]) -> int | None:
    """The product upstream of `value`; the nodes between, last first, go to `behind`."""
    for _ in range(MOST_NODES):
        producer = facts.producer(value)
        if producer is None:
            return None
        if facts.op(producer) in CORES:
            return producer
        moving = moving_input(facts, producer)
        if moving is None:
            return None
        behind.append(producer)
        value = moving
        if value in shared:
            return None
    return None


def _walk(facts: GraphFacts, value: str, shared: AbstractSet[str], before: list[int]) -> str | None:
    """The shared value upstream of `value`; the nodes between, last first, go to `before`."""
    for _ in range(MOST_NODES):
        if value in shared:
            return value
        producer = facts.producer(value)
        moving = None if producer is None else moving_input(facts, producer)
        if producer is None or moving is None:
            return None
        before.append(producer)
        value = moving
    return None


def _recovered(
    facts: GraphFacts, core: int, weight: Array, reads: str, before: list[int], behind: list[int]
) -> Product | None:
    node, op = facts.nodes[core], facts.op(core)
    given = node.input[2] if len(node.input) > 2 else ""
    bias = constant(facts, given) if given else Sized(np.zeros(1), np.zeros(1))
    layout = None if bias is None else _layout(node, op, weight, bias)
    if layout is None or bias is None:
        return None
    first = composed(facts, before, layout.shape(layout.channels))
    last = composed(facts, behind, layout.shape(layout.maps))
    if first is None or last is None or (first.shift.any() and not _reads_no_padding(node, op)):
        return None
    alpha = _gemm_factors(node, op)[0]
    return Product(
        reads, (op, *_attributes(node, op)), weight, _factors(node, op, weight, last.scale * alpha, first.scale),
        _factors(node, op, weight, _ratio(last), _ratio(first)), _bias(node, op, weight, bias, first, last),
        layout.axis, node, len(before) + len(behind),
    )  # fmt: skip


def _ratio(given: Map) -> Float64Array:
    with np.errstate(all="ignore"):
        return np.where(given.scale == 0, 1.0, given.scale_size / np.abs(given.scale))


def _layout(node: NodeProto, op: str, weight: Array, bias: Sized) -> _Layout | None:
    group = int_attribute(node, "group", 1)
    if op == "Conv":
        found = _Layout(0, weight.shape[0], weight.shape[1] * group, weight.ndim - 1)
    elif op == "ConvTranspose":
        found = _Layout(1, weight.shape[1] * group, weight.shape[0], weight.ndim - 1)
    elif weight.ndim != 2 or (op == "Gemm" and int_attribute(node, "transA", 0)):
        return None
    else:
        axis = 0 if _by_rows(node, op) else 1
        found = _Layout(axis, weight.shape[axis], weight.shape[1 - axis], 1 if op == "Gemm" else 0)
    shape = bias.value.shape
    lies_along = bias.value.size == found.maps and (op != "Gemm" or shape[-1:] == (found.maps,))
    return found if bias.value.size == 1 or lies_along else None


def _by_rows(node: NodeProto, op: str) -> bool:
    """Whether a matrix has one row for each map."""
    return op == "Gemm" and bool(int_attribute(node, "transB", 0))


def _gemm_factors(node: NodeProto, op: str) -> tuple[float, float]:
    return (float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)) if op == "Gemm" else (1.0, 1.0)


def _attributes(node: NodeProto, op: str) -> list[tuple[str, bytes]]:
    """What else decides what the operator does; transB is in the layout, defaults are left out."""
    kept: list[tuple[str, bytes]] = []
    for entry in sorted(node.attribute, key=lambda entry: entry.name):
        plain = entry.name in _FREE or (op == "Gemm") or entry.name == "kernel_shape"
        unit = entry.name in ("dilations", "strides") and set(entry.ints) <= {1}
        empty = entry.name in ("pads", "output_padding") and set(entry.ints) <= {0}
        default = (entry.name == "group" and entry.i == 1) or (entry.name == "auto_pad" and entry.s == b"NOTSET")
        if not (plain or unit or empty or default):
            kept.append((entry.name, entry.SerializeToString(deterministic=True)))
    return kept


def _reads_no_padding(node: NodeProto, op: str) -> bool:
    if op in ("Gemm", "MatMul"):
        return True
    if op == "ConvTranspose":
        return False
    mode = text_attribute(node, "auto_pad", "NOTSET")
    return mode == "VALID" or (mode == "NOTSET" and not any(ints_attribute(node, "pads") or ()))


def _factors(
    node: NodeProto, op: str, weight: Array, maps: Float64Array, channels: Float64Array
) -> tuple[Float64Array, ...]:
    """Numbers for maps and channels, shaped to broadcast against the weight; ones are left out."""
    s, p = maps.reshape(-1), channels.reshape(-1)
    if op in ("Gemm", "MatMul"):
        by_rows = _by_rows(node, op)
        both = (s.reshape(-1, 1), p.reshape(1, -1)) if by_rows else (s.reshape(1, -1), p.reshape(-1, 1))
        return tuple(factor for factor in both if (factor != 1).any())
    group, tail = int_attribute(node, "group", 1), (1,) * (weight.ndim - 2)
    outer, inner = (s, p) if op == "Conv" else (p, s)  # the weight's first axis, and its second in each group
    found = [outer.reshape(-1, 1, *tail)] if (outer != 1).any() else []
    if (inner != 1).any():
        per_group = inner.reshape(group, 1, weight.shape[1])
        rows = np.broadcast_to(per_group, (group, weight.shape[0] // group, weight.shape[1]))
        found.append((per_group if group == 1 else rows).reshape(-1, weight.shape[1], *tail))
    return tuple(found)


def _bias(node: NodeProto, op: str, weight: Array, bias: Sized, first: Map, last: Map) -> Sized:
    """The whole bias: what the shift before adds to every map, the product's own, and what stands behind."""
    alpha, beta = _gemm_factors(node, op)
    s, t, s_size, t_size = (p.reshape(-1) for p in (last.scale, last.shift, last.scale_size, last.shift_size))
    own, own_size = beta * bias.value.reshape(-1), abs(beta) * bias.size.reshape(-1)
    if first.shift.any():
        wide = to_float64(weight)
        own = own + alpha * _reach(node, op, wide, first.shift.reshape(-1))
        own_size = own_size + abs(alpha) * _reach(node, op, np.abs(wide), first.shift_size.reshape(-1))
    return Sized(s * own + t, s_size * own_size + t_size)


def _reach(node: NodeProto, op: str, weight: Float64Array, q: Float64Array) -> Float64Array:
    """What a shift of the input adds to every map, where no padding is read."""
    if op in ("Gemm", "MatMul"):
        return np.asarray(weight @ q if _by_rows(node, op) else q @ weight)
    group = int_attribute(node, "group", 1)
    sums = weight.sum(axis=tuple(range(2, weight.ndim))).reshape(group, -1, weight.shape[1])
    return np.asarray((sums * q.reshape(group, 1, weight.shape[1])).sum(axis=2).reshape(-1))
