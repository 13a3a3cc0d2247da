"""A map of x beside a Conv of the same x, and the sum of both: the map is one more tap of the kernel.

    before:  c = Conv (x, W, b)     n = BatchNormalization (x, ...)     y = Add (c, n)
    after:   y = Conv (x, W', b')

    Conv(x)[o] + s[o] x[o] + t[o]:    W'[o, o mod (C/g), tap] = W[o, ...] + s[o],    b' = b + t

as the identity branches of RepVGG, MobileOne, FastViT and RepGhost have it. The tap is the one that reads x at the
output's own position: per axis stride 1, pad_begin + pad_end = dilation * (kernel - 1), pad_begin a multiple of the
dilation, tap = pad_begin / dilation; and C_in = C_out. x may have other readers; the outputs of the Conv and of the
map may not. The sum may run over several Add, Sum and Sub; the map takes the sign by which it and the Conv differ.
Source: Ding et al. 2021 (RepVGG), section 3.2.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.edits import DropInput, Edit, Plan, SetConstant
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts
from bnfold.nodes import geometry, int_attribute, label, text_attribute
from bnfold.options import FoldOptions
from bnfold.plan.walk import HALF, ends
from bnfold.reading import is_constant
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.weights import PlainWeight, finite, multiply, read_bias, read_weight
from bnfold.tensors import ExactTensor
from bnfold.text import printable

SUMS = frozenset(["Add", "Sub", "Sum"])
MOST_BRANCHES = 64


def sibling(facts: GraphFacts, site: Site, source: Source, options: FoldOptions) -> Plan | Refusal:
    """The plan by which a Conv beside the site takes its map in, or why there is none."""
    start, end = ends(facts, site)
    total = sum_of(facts, end)
    own = None if total is None else next((sign for value, sign in branches(facts, total, end) if value == end), None)
    if total is None or own is None or not _may_go(facts, end):
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"{printable(end)!r} is not one branch of a sum")
    refusal = Refusal(Code.CONSUMER_CANNOT_ABSORB, f"no Conv of {printable(start)!r} is another branch of the sum")
    for value, sign in branches(facts, total, end):
        producer = facts.producer(value)
        if producer is None or facts.op(producer) != "Conv" or facts.nodes[producer].input[0] != start:
            continue
        affine = source.affine
        signed = ChannelAffine(sign * own * affine.scale, sign * own * affine.shift, affine.axes)
        step = _tap_step(facts, producer, signed)
        if not isinstance(step, Refusal):
            plan = _plan(facts, site, source, producer, step)
            return _range_risk(facts, start, plan, options) or plan
        refusal = step
    return refusal


def _range_risk(facts: GraphFacts, start: str, plan: Plan, options: FoldOptions) -> Refusal | None:
    """In half precision the sums on the way, which change, could overflow where the whole does not."""
    dtype = facts.constants.value_type(start)
    half = dtype in HALF or (dtype is None and facts.has_half)
    if options.assume_range or not plan.carried or not half:
        return None
    at = label(facts.nodes[plan.absorbers[0]])
    return Refusal(Code.RANGE_RISK, f"{printable(plan.carried[0])!r}, made by {at}, would have another range", at)


def _only_reader(facts: GraphFacts, value: str) -> int | None:
    users = facts.users(value)
    if len(users) != 1 or value in facts.outputs or value in facts.pinned:
        return None
    use = next(iter(users))
    return use.node if use.slot >= 0 else None


def sum_of(facts: GraphFacts, value: str) -> int | None:
    """The outermost sum that `value` goes into through sums alone; None where it goes into none."""
    sums = _sums(facts, value) if facts.opset() >= 7 else []
    return sums[-1] if sums else None


def _may_go(facts: GraphFacts, value: str) -> bool:
    """Whether the sum that reads `value` can do without it.

    What is subtracted from it would need a Neg, and beside a constant it is no branch but a part of a chain.
    """
    use = next(iter(facts.users(value)))
    others = (name for slot, name in enumerate(facts.nodes[use.node].input) if slot != use.slot)
    minuend = facts.op(use.node) == "Sub" and use.slot == 0
    return not minuend and not all(is_constant(facts, name) for name in others)


def branches(facts: GraphFacts, total: int, whole: str) -> Iterator[tuple[str, int]]:
    """The values that a sum adds up, through the sums inside it, from left to right, each with its sign.

    `whole` is one of them, whatever makes it.
    """
    open_ = [(total, 1)]
    values: list[tuple[str, int]] = []
    for _ in range(MOST_BRANCHES):
        if open_:
            node, sign = open_.pop()
            signs = (sign, -sign) if facts.op(node) == "Sub" else (sign,) * MOST_BRANCHES
            values += reversed(list(zip(facts.nodes[node].input, signs, strict=False)))
        if not values:
            return
        value, sign = values.pop()
        producer = facts.producer(value)
        if _only_reader(facts, value) is None:
            continue
        if producer is not None and facts.op(producer) in SUMS and value != whole:
            open_.append((producer, sign))
        else:
            yield value, sign


def _tap_step(facts: GraphFacts, conv: int, affine: ChannelAffine) -> Step | Refusal:
    """The step that adds the map to the kernel, or why it is not one tap of it."""
    node = facts.nodes[conv]
    at = label(node)
    weight, bias = read_weight(facts, conv, 1), read_bias(facts, conv, 2)
    for found in (weight, bias):
        if isinstance(found, Refusal):
            return found
    if not isinstance(weight, PlainWeight) or isinstance(bias, Refusal):
        return Refusal(Code.QUANTIZED_WEIGHT, f"the weight of {at} is quantised", at)
    values = with_tap(facts, conv, weight.exact(), affine)
    along = affine.along(1, weight.shape[0])
    if values is None or along is None:
        message = f"{at}, of the same input and in the same sum, does not keep size, position and number of maps"
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, message, at)
    product = multiply(node, ExactTensor(values, weight.dtype), np.ones([1] * values.ndim), 0)
    if isinstance(product, Refusal):
        return product
    old = None if bias is None else bias.exact()
    new = finite(node, old, along.shift + (0 if old is None else old), weight.dtype)
    if isinstance(new, Refusal):
        return new
    edits: list[Edit] = [SetConstant(conv, 1, product, "")]
    if bias is not None or new.values.any():
        edits.append(SetConstant(conv, 2, new, f"{weight.name}_bias"))
    return Step(tuple(edits), absorbs=True, frozen=(*weight.frozen, *(bias.frozen if bias is not None else ())))


def with_tap(facts: GraphFacts, conv: int, kernel: Float64Array, affine: ChannelAffine) -> Float64Array | None:
    """The kernel (O, I/group, *k) of node `conv` plus the scale of a map of its input; None where that is no tap."""
    shape, group = kernel.shape, int_attribute(facts.nodes[conv], "group", 1)
    tap = _tap(facts, conv, shape[2:])
    along = affine.along(1, shape[0])
    if tap is None or along is None or len(shape) < 3 or shape[1] * group != shape[0]:
        return None
    maps = np.arange(shape[0])
    values = np.array(kernel)
    place: Any = (..., *tap)
    values[place][maps, maps % shape[1]] += along.scale  # values[place] is a view: (O, I/group)
    return values


def _tap(facts: GraphFacts, conv: int, kernel: tuple[int, ...]) -> tuple[int, ...] | None:
    """The tap that reads each output's own position; None where there is none for all of them."""
    node, spatial = facts.nodes[conv], len(kernel)
    shape = geometry(node, spatial)
    mode = text_attribute(node, "auto_pad", "NOTSET")
    if shape is None:
        return None
    strides, dilations, pads = shape
    taps: list[int] = []
    for i in range(spatial):
        reach = dilations[i] * (kernel[i] - 1)
        begin, end = pads[i], pads[spatial + i]
        if mode == "VALID":
            begin = end = 0
        elif mode in ("SAME_UPPER", "SAME_LOWER"):
            begin, end = (
                (reach // 2, reach - reach // 2) if mode == "SAME_UPPER" else (reach - reach // 2, reach // 2)
            )
        if (
            strides[i] != 1
            or dilations[i] < 1
            or begin + end != reach
            or begin % dilations[i]
            or begin < 0
            or end < 0
        ):
            return None
        taps.append(begin // dilations[i])
    return tuple(taps)


def _plan(facts: GraphFacts, site: Site, source: Source, conv: int, step: Step) -> Plan:
    """The Conv's branch gains the map, the site's branch loses it; where both meet, all is as before."""
    end = ends(facts, site)[1]
    gains, loses = facts.nodes[conv].output[0], end
    meeting = next(node for node in _sums(facts, loses) if node in set(_sums(facts, gains)))
    carried = [gains, *(facts.nodes[node].output[0] for node in _before(_sums(facts, gains), meeting))]
    first = next(iter(facts.users(end)))
    node = facts.nodes[first.node]
    lost = [facts.nodes[other].output[0] for other in _before(_sums(facts, loses), meeting)]
    removed, takes_place, rewired = list(site.nodes), [], []
    edits = step.edits
    if len(node.input) > 2:
        edits = (*edits, DropInput(first.node, first.slot))
    else:
        removed.append(first.node)
        other = node.input[1 - first.slot]
        if first.node == meeting:
            takes_place.append((other, node.output[0]))
            carried.remove(other)
        else:
            rewired.append((node.output[0], other))
            lost.remove(node.output[0])
    return Plan(
        "sibling", tuple(removed), edits, tuple(takes_place), tuple(rewired), (*carried, *lost), (conv,),
        frozen=(*source.overridable, *step.frozen),
    )  # fmt: skip


def _sums(facts: GraphFacts, value: str) -> list[int]:
    """The sums that `value` goes into, one into the other."""
    found: list[int] = []
    while len(found) < MOST_BRANCHES:
        reader = _only_reader(facts, value)
        if reader is None or facts.op(reader) not in SUMS:
            break
        found.append(reader)
        value = facts.nodes[reader].output[0]
    return found


def _before(nodes: list[int], node: int) -> list[int]:
    return nodes[: nodes.index(node)]
