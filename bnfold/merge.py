"""Parallel Conv of one input, added up, become one Conv (`--merge-branches`).

    before:  a = Conv (x, W, b)     c = Conv (x, V, d)     y = Add (a, c)
    after:   y = Conv (x, W', b')                          W' = W + V laid into the middle of W, b' = b + d

A 1x1 kernel is a 3x3 one whose other taps are zero. Both have the same group, strides and dilations; the smaller one
is placed where it reads what it read: its first tap at (pad_begin of the larger - its own) / dilation, in whole taps,
and the same room behind. Exact: real numbers are added, and rounded once. Source: Ding et al. 2021, figure 4.
"""

from collections.abc import Iterator

import numpy as np

from bnfold.affine import Float64Array
from bnfold.edits import Edit, Plan, SetConstant, together
from bnfold.errors import ByReferenceError
from bnfold.graph import GraphFacts
from bnfold.nodes import Geometry, geometry, int_attribute, label, text_attribute
from bnfold.refusals import Refusal
from bnfold.rules.weights import PlainWeight, finite, multiply, read_bias, read_weight
from bnfold.tensors import ExactTensor


def merges(facts: GraphFacts) -> Iterator[tuple[Plan, int, str]]:
    """Every pair of parallel Conv that can be merged exactly: the plan, the Conv that goes, what takes it in.

    The plans have to be applied as they come.
    """
    for index in list(facts.live()):
        if index in facts.removed or facts.op(index) != "Add" or facts.opset() < 7:
            continue
        pair = _pair(facts, index)
        plan = None if pair is None else _plan_of_all_calls(facts, index, *pair)
        if pair is None or plan is None:
            continue
        yield plan, pair[1], label(facts.nodes[pair[0]])


def _plan_of_all_calls(facts: GraphFacts, add: int, large: int, small: int) -> Plan | None:
    """The plan; in a function, that of every call together."""
    plans: list[Plan] = []
    for context in range(facts.contexts):
        try:
            with facts.using(context):
                plan = _plan(facts, add, large, small)
        except (ByReferenceError, IndexError, KeyError, ValueError, ArithmeticError):
            return None  # an attribute that the calls do not agree on, or a model that contradicts itself
        if plan is None:
            return None
        plans.append(plan)
    return together(plans)


def _pair(facts: GraphFacts, add: int) -> tuple[int, int] | None:
    """The two Conv that node `add` adds up, the one with the larger kernel first; None where it does not."""
    makers: list[int] = []
    for value in facts.nodes[add].input:
        maker = facts.producer(value)
        if maker is None or facts.op(maker) != "Conv" or len(facts.users(value)) != 1:
            return None
        if len(facts.nodes[maker].input) < 2:
            return None
        if value in facts.outputs or value in facts.pinned or facts.homes[maker] != facts.homes[add]:
            return None
        makers.append(maker)
    if len(makers) != 2 or facts.nodes[makers[0]].input[0] != facts.nodes[makers[1]].input[0]:
        return None
    sizes = [facts.shapes.of(facts.nodes[maker].input[1]) or () for maker in makers]
    taps = [[dim.size or 0 for dim in size[2:]] for size in sizes]
    return (makers[0], makers[1]) if taps[0] >= taps[1] else (makers[1], makers[0])


def _geometry(facts: GraphFacts, conv: int, spatial: int) -> Geometry | None:
    """How the windows lie, where explicit pads say so."""
    mode = text_attribute(facts.nodes[conv], "auto_pad", "NOTSET")
    found = geometry(facts.nodes[conv], spatial) if mode in ("NOTSET", "VALID") else None
    return found._replace(pads=(0,) * (2 * spatial)) if found is not None and mode == "VALID" else found


def _plan(facts: GraphFacts, add: int, large: int, small: int) -> Plan | None:
    node = facts.nodes[large]
    weights = [read_weight(facts, conv, 1) for conv in (large, small)]
    biases = [read_bias(facts, conv, 2) for conv in (large, small)]
    first, second = weights
    if not isinstance(first, PlainWeight) or not isinstance(second, PlainWeight):
        return None
    if any(isinstance(bias, Refusal) for bias in biases) or first.dtype != second.dtype:
        return None
    odd = [b for b in biases if b is not None and not isinstance(b, Refusal) and b.shape != first.shape[:1]]
    spatial = len(first.shape) - 2
    if odd or spatial < 1:
        return None
    groups = {int_attribute(facts.nodes[conv], "group", 1) for conv in (large, small)}
    places = _places(_geometry(facts, large, spatial), _geometry(facts, small, spatial), first.shape, second.shape)
    if places is None or len(groups) > 1:
        return None
    total = np.array(first.exact())
    window = tuple(slice(start, start + size) for start, size in zip(places, second.shape[2:], strict=True))
    total[(slice(None), slice(None), *window)] += second.exact()
    weight = multiply(node, ExactTensor(total, first.dtype), np.ones([1] * total.ndim), 0)
    held = [bias.exact() for bias in biases if bias is not None and not isinstance(bias, Refusal)]
    summed: Float64Array = np.sum(held, axis=0) if held else np.zeros(first.shape[0])
    bias = finite(node, None, summed, first.dtype)
    if isinstance(weight, Refusal) or isinstance(bias, Refusal):
        return None
    edits: tuple[Edit, ...] = (SetConstant(large, 1, weight, ""),)
    if held:
        edits = (*edits, SetConstant(large, 2, bias, f"{first.name}_bias"))
    frozen = (*first.frozen, *second.frozen)
    frozen += tuple(name for b in biases if b is not None and not isinstance(b, Refusal) for name in b.frozen)
    return Plan("merge", (add, small), edits, takes_place=((node.output[0], facts.nodes[add].output[0]),),
                absorbers=(large,), frozen=frozen)  # fmt: skip


def _places(
    large: Geometry | None, small: Geometry | None, shape: tuple[int, ...], inner: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The tap of the larger kernel that the smaller one's first tap is, per axis; None where it does not fit."""
    if large is None or small is None or len(shape) != len(inner) or shape[:2] != inner[:2]:
        return None
    if large.strides != small.strides:
        return None
    places: list[int] = []
    spatial = len(shape) - 2
    for i in range(spatial):
        dilation = large.dilations[i]
        if dilation < 1 or (small.dilations[i] != dilation and inner[2 + i] > 1):
            return None
        room, behind = large.pads[i] - small.pads[i], large.pads[spatial + i] - small.pads[spatial + i]
        place, odd = divmod(room, dilation)
        if odd or place < 0 or place + inner[2 + i] > shape[2 + i]:
            return None
        if room + behind != dilation * (shape[2 + i] - inner[2 + i]):
            return None
        places.append(place)
    return tuple(places)
