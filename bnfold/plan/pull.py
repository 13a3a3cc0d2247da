"""Pull: can what lies upstream of a site produce affine(value) by changing constants only?"""

import heapq
import itertools
from dataclasses import replace

from bnfold.affine import ChannelAffine
from bnfold.edits import AddBias, Clone, Plan, SetConstant, TurnIntoAdd, TurnIntoIdentity
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts, Use
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.plan.walk import Walk, add_tensor, cannot, ends
from bnfold.reading import is_constant
from bnfold.refusals import Code, Refusal
from bnfold.rules import Step
from bnfold.rules.broadcast import constant_edit
from bnfold.rules.table import rule_of
from bnfold.tensors import bytes_of
from bnfold.text import printable, size

PIECES = frozenset(["Gather", "Shape", "Size", "Slice", "Split"])  # readers that may leave some maps alone
MOST_READERS = 1024  # that are looked at to say why a value is shared
# Reasons that a copy of the absorber does away with.
CLONABLE = (Code.PRODUCER_SHARED, Code.PRODUCER_IS_OUTPUT, Code.CAPTURED_BY_SUBGRAPH)


def pull(
    facts: GraphFacts,
    site: Site,
    source: Source,
    options: FoldOptions,
    excused: dict[Use, ChannelAffine] | None = None,
) -> Plan | Refusal:
    """The plan by which what lies upstream of the site makes what the site makes, or why there is none.

    What would be asked of the inputs that are the keys of `excused` is not asked, but noted there as their value:
    the caller knows another way for them.
    """
    start = ends(facts, site)[0]
    walk = Walk(facts, options)
    asked: dict[str, dict[Use, ChannelAffine]] = {start: {Use(site.nodes[0], site.slot): source.affine}}
    heap = [(_upstream(facts, start), start)]
    while heap:
        value = heapq.heappop(heap)[1]
        affine = _common(facts, value, asked[value])
        if isinstance(affine, Refusal):
            return affine
        producer = facts.producer(value)
        if producer is None or facts.constants.computes(producer):
            return _nothing_upstream(facts, value)
        step = walk.too_far(Code.PRODUCER_CANNOT_ABSORB) or _answer_pull(walk, producer, value, affine, asked[value])
        if isinstance(step, Refusal):
            return step
        if value != start:
            walk.carried.append(value)
        for slot, wanted in step.asks:
            if excused is not None and Use(producer, slot) in excused:
                excused[Use(producer, slot)] = wanted
                continue
            refusal = _ask(walk, asked, heap, Use(producer, slot), wanted, computes=step.computes)
            if refusal is not None:
                return refusal
    return _whole(walk, site, source)


def _whole(walk: Walk, site: Site, source: Source) -> Plan | Refusal:
    """The plan, all upstream of the site having answered."""
    facts, (start, end) = walk.facts, ends(walk.facts, site)
    refusal = walk.not_worth(site, Code.PRODUCER_CANNOT_ABSORB)
    if refusal is None and walk.new_add is not None and (walk.leaks or len(walk.absorbers) == 1):
        return _leaving_an_add(facts, site, source, walk.options, walk.new_add)
    if refusal is None and facts.home(start) != facts.homes[site.nodes[0]]:
        return _from_outside(facts, walk, site, source)
    return refusal or walk.plan("pull", site, source, takes_place=((start, end),))


def _from_outside(facts: GraphFacts, walk: Walk, site: Site, source: Source) -> Plan:
    """The plan for a site whose input lies in a scope around it: that value changes there, under a fresh name.

    What the site makes is the site's input then; a body may not put out what lies outside of it, so that there an
    Identity takes the site's place.
    """
    start, end = ends(facts, site)
    walk.carried.append(start)
    if end not in facts.outputs and end not in facts.pinned:
        return walk.plan("pull", site, source, rewired=((end, start),))
    walk.edits.append(TurnIntoIdentity(site.nodes[-1], start))
    return replace(walk.plan("pull", site, source), removed=site.nodes[:-1])


def _leaving_an_add(
    facts: GraphFacts, site: Site, source: Source, options: FoldOptions, add: AddBias
) -> Plan | Refusal:
    """The plan by which the scale goes upstream, and the site becomes the Add that a MatMul lacks."""
    start = ends(facts, site)[0]
    plan = pull(facts, site, source.scaling(), options)
    if isinstance(plan, Refusal):
        return plan
    shift = add_tensor(facts, site, source.affine, source.affine.shift, add.tensor.dtype)
    if isinstance(shift, Refusal):
        return shift
    edits = [edit for edit in plan.edits if not isinstance(edit, TurnIntoIdentity)]
    edits.append(TurnIntoAdd(site.nodes[-1], start, shift, f"{start}_bias"))
    carried = (start, *(value for value in plan.carried if value != start))
    return replace(plan, removed=site.nodes[:-1], edits=tuple(edits), takes_place=(), rewired=(), carried=carried)


def _nothing_upstream(facts: GraphFacts, value: str) -> Refusal:
    """Why there is no way on: the value is given, or constant."""
    shown = printable(value)
    if value not in facts.inputs:
        return Refusal(Code.NO_PRODUCER, f"{shown!r} is a constant: nothing upstream can take the map in")
    if facts.home(value):
        place = facts.scopes[facts.home(value)].place
        return Refusal(Code.NO_PRODUCER, f"{shown!r} is an input of {place}: nothing upstream can take the map in")
    if facts.in_function:
        return Refusal(
            Code.IN_FUNCTION, f"{shown!r} is an input of the function, which each call gives another value"
        )
    return Refusal(Code.NO_PRODUCER, f"{shown!r} is a model input: nothing upstream can take the map in")


def _upstream(facts: GraphFacts, value: str) -> float:
    producer = facts.producer(value)
    return 1.0 if producer is None else -facts.position(producer)


def _common(facts: GraphFacts, value: str, asked: dict[Use, ChannelAffine]) -> ChannelAffine | Refusal:
    """The one map that serves all askers; refused where there is none.

    Askers want the same map, or each reads only a piece of the value and leaves the maps of the others alone.
    """
    first, *others = asked.values()
    total: ChannelAffine | None = first
    for other in others:
        total = None if total is None else total.united(other)
    if total is None or (total is not first and not all(_sees(facts, use, total, asked[use]) for use in asked)):
        readers = ", ".join(sorted({label(facts.nodes[use.node]) for use in asked}))
        message = f"{printable(value)!r} is read several times, and each would need another map: {readers}"
        return Refusal(Code.PRODUCER_SHARED, message)
    return total


def _sees(facts: GraphFacts, use: Use, total: ChannelAffine, wanted: ChannelAffine) -> bool:
    """Whether a reader of a piece gives the same for the map `total` as for the map `wanted`."""
    rule = rule_of(facts.op(use.node))
    if facts.op(use.node) not in PIECES or rule.push is None:
        return False
    one, other = (rule.push(facts, use.node, {use.slot: affine}) for affine in (total, wanted))
    if isinstance(one, Refusal) or isinstance(other, Refusal) or len(one.asks) != len(other.asks):
        return False
    return all(a[0] == b[0] and a[1].equals(b[1]) for a, b in zip(one.asks, other.asks, strict=True))


def _answer_pull(
    walk: Walk, producer: int, value: str, affine: ChannelAffine, asked: dict[Use, ChannelAffine]
) -> Step | Refusal:
    facts = walk.facts
    node = facts.nodes[producer]
    rule = rule_of(facts.op(producer))
    if rule.pull is None:
        return cannot(facts, producer, Code.PRODUCER_CANNOT_ABSORB, "its input comes out of")
    if (wide := walk.too_wide(producer, Code.PRODUCER_CANNOT_ABSORB)) is not None:
        return wide
    shared = _used_elsewhere(facts, producer, value, affine, asked)
    if shared is not None and not (walk.options.clone_shared and shared.code in CLONABLE):
        return shared
    step = rule.pull(facts, producer, affine, list(node.output).index(value))
    if isinstance(step, Refusal):
        return step
    walk.leaks = walk.leaks or _leaks(facts, producer, value, asked)
    if shared is not None:
        foreign = any(edit.node != producer for edit in step.edits)  # a DequantizeLinear that both would read
        if not step.absorbs or step.asks or foreign or len(node.output) > 1:
            return shared
        walk.clones.append(Clone(producer, value, tuple(asked)))
        stored = sum(bytes_of(edit.tensor) for edit in step.edits if isinstance(edit, SetConstant))
        walk.notes.append(
            f"{label(node)} is cloned: one more {node.op_type}, and {size(stored)} of weights of its own"
        )
    walk.take(producer, step)
    return step


def _leaks(facts: GraphFacts, producer: int, value: str, asked: dict[Use, ChannelAffine]) -> bool:
    """Whether a path leads from this node past the site: by another output, or by a reader that does not care."""
    outputs = facts.nodes[producer].output
    beside = len(outputs) > 1 and any(name and name != value and not facts.is_free(name) for name in outputs)
    return beside or len(facts.users(value)) > len(asked)


def _used_elsewhere(
    facts: GraphFacts, producer: int, value: str, affine: ChannelAffine, asked: dict[Use, ChannelAffine]
) -> Refusal | None:
    """Why the value must stay as it is for somebody else; None where all its readers ask, or do not care."""
    uses = facts.users(value)
    if len(uses) == len(asked) and value not in facts.outputs and value not in facts.pinned:
        return None
    at, shown = label(facts.nodes[producer]), printable(value)
    if value in facts.outputs:
        return Refusal(Code.PRODUCER_IS_OUTPUT, f"{shown!r}, made by {at}, is an output of {facts.where(value)}", at)
    for use in itertools.islice(uses, MOST_READERS):
        if use.slot < 0:
            inside = label(facts.nodes[use.node])
            return Refusal(Code.CAPTURED_BY_SUBGRAPH, f"{shown!r}, made by {at}, is read inside {inside}", at)
    if value in facts.pinned:
        message = f"{shown!r}, made by {at}, is referred to by an annotation or a training step"
        return Refusal(Code.PRODUCER_SHARED, message, at)
    if len(uses) <= 16 and all(use in asked or _does_not_care(facts, use, affine) for use in uses):
        return None
    foreign = (
        use.node
        for use in itertools.islice(uses, MOST_READERS)
        if use not in asked and facts.homes[use.node] != facts.home(value)
    )
    if (reader := next(foreign, None)) is not None:
        place = facts.scopes[facts.homes[reader]].place
        return Refusal(Code.CAPTURED_BY_SUBGRAPH, f"{shown!r}, made by {at}, is read in {place}", at)
    some = sorted({label(facts.nodes[use.node]) for use in itertools.islice(uses, 4)})
    others = ", ".join(some) + (", ..." if len(uses) > 4 else "")
    return Refusal(Code.PRODUCER_SHARED, f"{shown!r}, made by {at}, is read {len(uses)} times: {others}", at)


def _does_not_care(facts: GraphFacts, use: Use, affine: ChannelAffine) -> bool:
    """Whether a reader gives the same whatever the map does: Shape, or a Slice of maps that it leaves alone."""
    rule = rule_of(facts.op(use.node))
    if facts.op(use.node) not in PIECES or rule.push is None:
        return False
    step = rule.push(facts, use.node, {use.slot: affine})
    return isinstance(step, Step) and not step.edits and not step.asks and not step.frozen


def _ask(
    walk: Walk,
    asked: dict[str, dict[Use, ChannelAffine]],
    heap: list[tuple[float, str]],
    use: Use,
    wanted: ChannelAffine,
    *,
    computes: bool,
) -> Refusal | None:
    """Note that a value upstream must become wanted(value); a constant becomes that at once."""
    name = walk.facts.nodes[use.node].input[use.slot]
    if wanted.is_identity:
        return None
    if is_constant(walk.facts, name):
        shape = walk.facts.shapes.of(name)
        own = None if shape is None else len(shape)
        made = constant_edit(walk.facts, use.node, use.slot, wanted, own)
        if isinstance(made, Refusal):
            return made
        walk.edits.append(made[0])
        walk.frozen += made[1]
        return None
    if computes and (risk := walk.range_risk(use.node, name, wanted, pulls=True)):
        return risk
    if name not in asked:
        asked[name] = {}
        heapq.heappush(heap, (_upstream(walk.facts, name), name))
    # asked before, where another output of the node is asked for too
    asked[name][use] = wanted.after(asked[name][use]) if use in asked[name] else wanted
    return None
