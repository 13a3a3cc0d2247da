"""A map of a sum in which x stands beside a Conv of x: x itself becomes a tap of the kernel on the way.

    before:  c = Conv (x, W, b)     a = Add (c, x)     y = BatchNormalization (a, ...)
    after:   y = Conv (x, W', b')

    s[o] (Conv(x)[o] + x[o]) + t[o]:    W'[o, o mod (C/g), tap] = s[o] (W[o, ...] + 1),    b' = s b + t

as RepViT's blocks have it. The sum alone is left as it is: a plain residual Conv(x) + x is no site. The conditions
are those of `siblings`; all other branches of the sum must take the map in as for any pull.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from bnfold.affine import IDENTITY, ChannelAffine
from bnfold.edits import Edit, Plan, SetConstant
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts, Use
from bnfold.options import FoldOptions
from bnfold.plan.pull import pull
from bnfold.plan.siblings import SUMS, with_tap
from bnfold.plan.walk import ends
from bnfold.reading import is_constant
from bnfold.refusals import Code, Refusal
from bnfold.rules.weights import finite, multiply
from bnfold.tensors import ExactTensor

MOST_BRANCHES = 64


def residual(facts: GraphFacts, site: Site, source: Source, options: FoldOptions) -> Plan | Refusal:
    """The plan by which the sum behind which the site stands takes its map in, x as a tap of a Conv of x."""
    start = ends(facts, site)[0]
    producer = facts.producer(start)
    refusal = Refusal(Code.PRODUCER_SHARED, "no branch of a sum upstream is the input of a Conv beside it")
    if producer is None or facts.op(producer) not in ("Add", "Sum") or facts.opset() < 7:
        return refusal
    leaves = list(_leaves(facts, producer))
    convs = {facts.nodes[maker].input[0]: maker for _, maker in reversed(leaves) if maker is not None}
    for use, _ in leaves:
        conv = convs.get(facts.nodes[use.node].input[use.slot])
        pair = facts.nodes[use.node].input
        if conv is None or len(pair) != 2 or is_constant(facts, pair[1 - use.slot]):
            continue
        excused: dict[Use, ChannelAffine] = {use: IDENTITY}
        plan = pull(facts, site, source, options, excused)
        if isinstance(plan, Refusal):
            refusal = plan
            continue
        edits = _tapped(facts, conv, plan, excused[use]) if plan.takes_place else None  # not where an Add is left
        if edits is not None:
            return _without(facts, plan, use, start, edits)
    return refusal


def _leaves(facts: GraphFacts, total: int) -> Iterator[tuple[Use, int | None]]:
    """What a sum adds up, through the sums inside it: where each branch is read, and the Conv that makes it."""
    open_ = [total]
    for _ in range(MOST_BRANCHES):
        if not open_:
            return
        node = open_.pop()
        for slot, value in enumerate(itertools.islice(facts.nodes[node].input, MOST_BRANCHES)):
            maker = facts.producer(value)
            op = "" if maker is None else facts.op(maker)
            if maker is not None and op in SUMS and op != "Sub" and len(facts.users(value)) == 1:
                open_.append(maker)
            else:
                yield Use(node, slot), maker if op == "Conv" else None


def _tapped(facts: GraphFacts, conv: int, plan: Plan, leaf: ChannelAffine) -> tuple[Edit, ...] | None:
    """The plan's edits with those of `conv` changed so that its kernel holds the leaf too; None where it cannot."""
    node = facts.nodes[conv]
    weight = next((e for e in plan.edits if isinstance(e, SetConstant) and (e.node, e.index) == (conv, 1)), None)
    bias = next((e for e in plan.edits if isinstance(e, SetConstant) and (e.node, e.index) == (conv, 2)), None)
    if weight is None or weight.tensor.dtype is None or plan.clones:
        return None
    values = with_tap(facts, conv, weight.tensor.exact(), leaf)
    along = leaf.along(1, weight.tensor.shape[0])
    if values is None or along is None:
        return None
    kernel = multiply(node, ExactTensor(values, weight.tensor.dtype), np.ones([1] * values.ndim), 0)
    if isinstance(kernel, Refusal):
        return None
    edits = [e for e in plan.edits if e is not weight and (along.only_scales or e is not bias)]
    edits.append(SetConstant(conv, 1, kernel, weight.hint))
    if along.shift.any():
        old = 0.0 if bias is None else bias.tensor.exact()
        shifted = finite(node, None, along.shift + old, weight.tensor.dtype)
        if isinstance(shifted, Refusal) or (bias is None and len(node.input) > 2 and node.input[2]):
            return None
        edits.append(SetConstant(conv, 2, shifted, bias.hint if bias is not None else f"{node.input[1]}_bias"))
    return tuple(edits)


def _without(facts: GraphFacts, plan: Plan, use: Use, start: str, edits: tuple[Edit, ...]) -> Plan:
    """The plan with the sum of two at `use` gone: its other branch takes its place."""
    gone = facts.nodes[use.node]
    value, other = gone.output[0], gone.input[1 - use.slot]
    end = plan.takes_place[0][1]
    first, gone_too = (other, other) if value == start else (start, value)
    return Plan(
        "pull", (*plan.removed, use.node), edits, takes_place=((first, end),), rewired=((value, other),),
        carried=tuple(name for name in plan.carried if name != gone_too), absorbers=plan.absorbers,
        frozen=plan.frozen, notes=plan.notes,
    )  # fmt: skip
