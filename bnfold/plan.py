"""From a site to a plan: who upstream or downstream can take its map in, and what changes for that.

`pull`: can what lies upstream of the site produce affine(value) by changing constants only?
`push`: can everything downstream of the site accept x in place of affine(x)?

Each operator answers for itself (`rules`); a carrier's answer is further questions, so both are loops over open
questions: upstream from the last node to the first, downstream from the first to the last, so that a value that is
reached on several paths is settled once, by all of them together. They end with a Plan or with the first Refusal.
Nothing is changed here.
"""

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.edits import AddBias, Clone, Edit, Plan
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts, Use
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.reading import is_constant
from bnfold.refusals import Code, Refusal
from bnfold.rounding import BFLOAT16
from bnfold.rules import Rule, Step, rules
from bnfold.rules.broadcast import constant_edit
from bnfold.text import printable

ACTIVATIONS = frozenset(
    ["Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
     "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"]
)  # fmt: skip
QUANTIZERS = frozenset(["QuantizeLinear", "DequantizeLinear"])
NORMALIZATIONS = frozenset(["GroupNormalization", "InstanceNormalization", "LayerNormalization",
                            "MeanVarianceNormalization", "RMSNormalization", "LpNormalization", "LRN"])  # fmt: skip
HALF = (np.dtype(np.float16), BFLOAT16)
PIECES = frozenset(["Gather", "Shape", "Size", "Slice", "Split"])  # readers that may leave some maps alone
NO_RULE = Rule()


@dataclass(slots=True)
class _Walk:
    """What has been found so far."""

    facts: GraphFacts
    options: FoldOptions
    edits: list[Edit] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    absorbers: list[int] = field(default_factory=list)
    clones: list[Clone] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take(self, node: int, step: Step) -> None:
        """Add one operator's answer."""
        self.edits += step.edits
        self.frozen += step.frozen
        self.notes += step.notes
        if step.absorbs:
            self.absorbers.append(node)

    def plan(self, direction: str, site: Site, source: Source, **names: tuple[tuple[str, str], ...]) -> Plan:
        """The whole."""
        return Plan(
            direction,
            site.nodes,
            tuple(self.edits),
            carried=tuple(self.carried),
            absorbers=tuple(self.absorbers),
            clones=tuple(self.clones),
            frozen=(*source.overridable, *self.frozen),
            notes=tuple(self.notes),
            **names,
        )

    def only_moves(self, site: Site) -> bool:
        """Whether all that is won is an Add in another place."""
        alone = site.kind == "chain" and len(site.nodes) < 2
        return alone and any(isinstance(edit, AddBias) and not edit.gemm for edit in self.edits)

    def ask(
        self,
        asked: dict[str, dict[Use, ChannelAffine]],
        heap: list[tuple[float, str]],
        use: Use,
        wanted: ChannelAffine,
        *,
        computes: bool,
    ) -> Refusal | None:
        """Note that a value upstream must become wanted(value); a constant becomes that at once."""
        name = self.facts.nodes[use.node].input[use.slot]
        if wanted.is_identity:
            return None
        if is_constant(self.facts, name):
            made = constant_edit(self.facts, use.node, use.slot, wanted)
            if isinstance(made, Refusal):
                return made
            self.edits.append(made[0])
            self.frozen += made[1]
            return None
        if computes and (risk := self.range_risk(use.node, name, wanted, pulls=True)):
            return risk
        if name not in asked:
            asked[name] = {}
            heapq.heappush(heap, (_upstream(self.facts, name), name))
        # asked before, where another output of the node is asked for too
        asked[name][use] = wanted.after(asked[name][use]) if use in asked[name] else wanted
        return None

    def range_risk(self, node: int, value: str, affine: ChannelAffine, *, pulls: bool) -> Refusal | None:
        """Whether a value in float16 or bfloat16 that `node` computes with could overflow where it did not before."""
        grows = (np.abs(affine.scale) > 1).any() if pulls else (np.abs(affine.scale) < 1).any()
        if self.options.assume_range or not (grows or affine.shift.any()):
            return None
        dtype = self.facts.constants.value_type(value)
        if dtype is None or dtype not in HALF:
            return None
        at = label(self.facts.nodes[node])
        return Refusal(Code.RANGE_RISK, f"{printable(value)!r}, in {dtype}, would have another range inside {at}", at)


def ends(facts: GraphFacts, site: Site) -> tuple[str, str]:
    """The value that the site maps, and the value that it makes."""
    return facts.nodes[site.nodes[0]].input[site.slot], facts.nodes[site.nodes[-1]].output[0]


def pull(facts: GraphFacts, site: Site, source: Source, options: FoldOptions) -> Plan | Refusal:
    """The plan by which what lies upstream of the site makes what the site makes, or why there is none."""
    start, end = ends(facts, site)
    walk = _Walk(facts, options)
    asked: dict[str, dict[Use, ChannelAffine]] = {start: {Use(site.nodes[0], site.slot): source.affine}}
    heap = [(_upstream(facts, start), start)]
    while heap:
        value = heapq.heappop(heap)[1]
        affine = _common(facts, value, asked[value])
        if isinstance(affine, Refusal):
            return affine
        producer = facts.producer(value)
        if producer is None or facts.constants.computes(producer):
            what = "a model input" if value in facts.inputs else "a constant"
            return Refusal(Code.NO_PRODUCER, f"{printable(value)!r} is {what}: nothing upstream can take the map in")
        step = _answer_pull(walk, producer, value, affine, asked[value])
        if isinstance(step, Refusal):
            return step
        if value != start:
            walk.carried.append(value)
        for slot, wanted in step.asks:
            refusal = walk.ask(asked, heap, Use(producer, slot), wanted, computes=step.computes)
            if refusal is not None:
                return refusal
    if walk.only_moves(site):
        return Refusal(Code.PRODUCER_CANNOT_ABSORB, "one Add would only become another")
    return walk.plan("pull", site, source, takes_place=((start, end),))


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
    rule = rules().get(facts.op(use.node), NO_RULE)
    if facts.op(use.node) not in PIECES or rule.push is None:
        return False
    one, other = (rule.push(facts, use.node, {use.slot: affine}) for affine in (total, wanted))
    if isinstance(one, Refusal) or isinstance(other, Refusal) or len(one.asks) != len(other.asks):
        return False
    return all(a[0] == b[0] and a[1].equals(b[1]) for a, b in zip(one.asks, other.asks, strict=True))


def _answer_pull(
    walk: _Walk, producer: int, value: str, affine: ChannelAffine, asked: dict[Use, ChannelAffine]
) -> Step | Refusal:
    facts = walk.facts
    node = facts.nodes[producer]
    rule = rules().get(facts.op(producer), NO_RULE)
    if rule.pull is None:
        return _cannot(facts, producer, Code.PRODUCER_CANNOT_ABSORB, "its input comes out of")
    shared = _used_elsewhere(facts, producer, value, affine, asked)
    if shared is not None and not (walk.options.clone_shared and shared.code in CLONABLE):
        return shared
    step = rule.pull(facts, producer, affine, list(node.output).index(value))
    if isinstance(step, Refusal):
        return step
    if shared is not None:
        if not step.absorbs or step.asks or len(node.output) > 1:
            return shared
        walk.clones.append(Clone(producer, value, tuple(asked)))
        walk.notes.append(f"{label(node)} is cloned: one more {node.op_type}, and weights of its own")
    walk.take(producer, step)
    return step


CLONABLE = (Code.PRODUCER_SHARED, Code.PRODUCER_IS_OUTPUT, Code.CAPTURED_BY_SUBGRAPH)


def _used_elsewhere(
    facts: GraphFacts, producer: int, value: str, affine: ChannelAffine, asked: dict[Use, ChannelAffine]
) -> Refusal | None:
    """Why the value must stay as it is for somebody else; None where all its readers ask, or do not care."""
    uses = facts.users(value)
    if len(uses) == len(asked) and value not in facts.outputs and value not in facts.pinned:
        return None
    at, shown = label(facts.nodes[producer]), printable(value)
    if value in facts.outputs:
        return Refusal(Code.PRODUCER_IS_OUTPUT, f"{shown!r}, made by {at}, is an output of the model", at)
    for use in uses:
        if use.slot < 0:
            inside = label(facts.nodes[use.node])
            return Refusal(Code.CAPTURED_BY_SUBGRAPH, f"{shown!r}, made by {at}, is read inside {inside}", at)
    if value in facts.pinned:
        message = f"{shown!r}, made by {at}, is referred to by an annotation or a training step"
        return Refusal(Code.PRODUCER_SHARED, message, at)
    if len(uses) <= 16 and all(use in asked or _does_not_care(facts, use, affine) for use in uses):
        return None
    some = sorted({label(facts.nodes[use.node]) for use in itertools.islice(uses, 4)})
    others = ", ".join(some) + (", ..." if len(uses) > 4 else "")
    return Refusal(Code.PRODUCER_SHARED, f"{shown!r}, made by {at}, is read {len(uses)} times: {others}", at)


def _does_not_care(facts: GraphFacts, use: Use, affine: ChannelAffine) -> bool:
    """Whether a reader gives the same whatever the map does: Shape, or a Slice of maps that it leaves alone."""
    rule = rules().get(facts.op(use.node), NO_RULE)
    if facts.op(use.node) not in PIECES or rule.push is None:
        return False
    step = rule.push(facts, use.node, {use.slot: affine})
    return isinstance(step, Step) and not step.edits and not step.asks and not step.frozen


def push(facts: GraphFacts, site: Site, source: Source, options: FoldOptions) -> Plan | Refusal:
    """The plan by which all that reads what the site makes reads what it is made from, or why there is none."""
    start, end = ends(facts, site)
    walk = _Walk(facts, options)
    changes: dict[int, dict[int, ChannelAffine]] = {}
    heap: list[tuple[float, int]] = []
    refusal = _spread(facts, end, source.affine, changes, heap)
    while refusal is None and heap:
        node = heapq.heappop(heap)[1]
        rule = rules().get(facts.op(node), NO_RULE)
        if rule.push is None:
            return _cannot(facts, node, Code.CONSUMER_CANNOT_ABSORB, "its output goes into")
        step = rule.push(facts, node, changes[node])
        if isinstance(step, Refusal):
            return step
        walk.take(node, step)
        for slot, affine in changes[node].items() if step.computes else ():
            if risk := walk.range_risk(node, facts.nodes[node].input[slot], affine, pulls=False):
                return risk
        for output, affine in step.asks:
            value = facts.nodes[node].output[output]
            walk.carried.append(value)
            refusal = refusal or _spread(facts, value, affine, changes, heap)
    if refusal is not None:
        return refusal
    if not facts.users(end):
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, f"nothing reads {printable(end)!r}")
    if walk.only_moves(site):
        return Refusal(Code.CONSUMER_CANNOT_ABSORB, "one Add would only become another")
    return walk.plan("push", site, source, rewired=((end, start),))


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
        return Refusal(Code.CONSUMER_IS_OUTPUT, f"{shown!r} is an output of the model")
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


def _cannot(facts: GraphFacts, node: int, otherwise: Code, where: str) -> Refusal:
    op, at = facts.op(node), label(facts.nodes[node])
    if op in ACTIVATIONS:
        return Refusal(Code.ACTIVATION_BETWEEN, f"{where} {at}, which is not linear", at)
    if op == "Cast":
        return Refusal(Code.CAST_BETWEEN, f"{where} {at}, whose rounding would move", at)
    if op in QUANTIZERS:
        return Refusal(Code.QUANTIZE_BETWEEN, f"{where} {at}, whose rounding would move", at)
    if op in NORMALIZATIONS and otherwise == Code.PRODUCER_CANNOT_ABSORB:
        return Refusal(Code.BEHIND_NORMALIZATION, f"{where} {at}, which cannot take it in", at)
    return Refusal(otherwise, f"bnfold does not fold into {at}", at)
