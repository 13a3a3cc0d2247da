"""Push: can everything downstream of a site accept x in place of affine(x)?"""

import heapq

from bnfold.affine import ChannelAffine
from bnfold.edits import Plan
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.plan.walk import Walk, cannot, ends
from bnfold.reading import is_constant
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.table import rule_of
from bnfold.text import printable

JOINS = frozenset(["Add", "Concat", "Sub", "Sum"])  # where a path of data may come in from the side


def push(facts: GraphFacts, site: Site, source: Source, options: FoldOptions) -> Plan | Refusal:
    """The plan by which all that reads what the site makes reads what it is made from, or why there is none."""
    start, end = ends(facts, site)
    walk = Walk(facts, options)
    changes: dict[int, dict[int, ChannelAffine]] = {}
    heap: list[tuple[float, int]] = []
    refusal = _spread(facts, end, source.affine, changes, heap)
    while refusal is None and heap:
        node = heapq.heappop(heap)[1]
        step = walk.too_far(Code.CONSUMER_CANNOT_ABSORB) or _answer(walk, node, changes[node])
        if isinstance(step, Refusal):
            return step
        for output, affine in step.asks:
            value = facts.nodes[node].output[output]
            if not value:
                at = label(facts.nodes[node])
                return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"output {output} of {at} has no name", at)
            walk.carried.append(value)
            refusal = refusal or _spread(facts, value, affine, changes, heap)
    if refusal is not None:
        return refusal
    if not facts.users(end):
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"nothing reads {printable(end)!r}")
    refusal = walk.not_worth(site, Code.CONSUMER_CANNOT_ABSORB)
    if refusal is None and walk.new_add is not None and walk.leaks:
        at = label(facts.nodes[walk.new_add.node])
        refusal = Refusal(Code.CONSUMER_CANNOT_ABSORB, f"{at} would need an Add, also on paths that lose nothing", at)
    return refusal or walk.plan("push", site, source, rewired=((end, start),))


def _answer(walk: Walk, node: int, changes: dict[int, ChannelAffine]) -> Step | Refusal:
    """What one reader says, all inputs of it that change considered."""
    facts = walk.facts
    rule = rule_of(facts.op(node))
    if rule.push is None:
        return cannot(facts, node, Code.CONSUMER_CANNOT_ABSORB, "its output goes into")
    if (wide := walk.too_wide(node, Code.CONSUMER_CANNOT_ABSORB)) is not None:
        return wide
    step = rule.push(facts, node, changes)
    if isinstance(step, Refusal):
        return step
    walk.take(node, step)
    names = facts.nodes[node].input
    if facts.op(node) in JOINS and not walk.leaks:
        others = [name for slot, name in enumerate(names) if slot not in changes]
        walk.leaks = not all(not name or is_constant(facts, name) for name in others)
    for slot, affine in changes.items() if step.computes else ():
        if risk := walk.range_risk(node, names[slot], affine, pulls=False):
            return risk
    return step


def _spread(
    facts: GraphFacts,
    value: str,
    affine: ChannelAffine,
    changes: dict[int, dict[int, ChannelAffine]],
    heap: list[tuple[float, int]],
) -> Refusal | None:
    """Note for every reader of `value` what changes for it; refused where somebody reads it who cannot be asked."""
    shown = printable(value)
    if value in facts.outputs:
        code = Code.IN_FUNCTION if facts.in_function and not facts.home(value) else Code.CONSUMER_IS_OUTPUT
        return Refusal(code, f"{shown!r} is an output of {facts.where(value)}")
    if value in facts.pinned:
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"{shown!r} is referred to by an annotation or a training step")
    for use in facts.users(value):
        if use.slot < 0:
            inside = label(facts.nodes[use.node])
            return Refusal(Code.CAPTURED_BY_SUBGRAPH, f"{shown!r} is read inside {inside}", inside)
        if use.node not in changes:
            changes[use.node] = {}
            heapq.heappush(heap, (facts.position(use.node), use.node))
        changes[use.node][use.slot] = affine
    return None
