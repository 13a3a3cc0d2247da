"""From a source to a plan: who upstream can take its map in, and which constants change for that.

`pull(value, affine)`: can what lies upstream of `value` produce affine(value) by changing constants only?
Each operator answers for itself (`rules`); a carrier's answer is further questions, so this is a loop over
open questions, and it ends with a list of edits or with the first refusal. Nothing is changed here.
"""

import itertools
from collections.abc import Mapping

from bnfold.affine import ChannelAffine
from bnfold.edits import Plan, SetConstant
from bnfold.find import batchnorm
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.refusals import Code, Refusal
from bnfold.rules import PullRule, Step, pull_rules
from bnfold.text import printable

ACTIVATIONS = frozenset(
    ["Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
     "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"]
)  # fmt: skip
QUANTIZERS = frozenset(["QuantizeLinear", "DequantizeLinear"])


def plan_site(facts: GraphFacts, site: int) -> Plan | Refusal:
    """The plan that absorbs the BatchNormalization `site` into what lies upstream, or why it stays."""
    source = batchnorm.source(facts, site)
    if isinstance(source, Refusal):
        return source
    return _pull(facts, site, source)


def _pull(facts: GraphFacts, site: int, source: batchnorm.Source) -> Plan | Refusal:
    rules = pull_rules()
    start = facts.nodes[site].input[0]
    edits: list[SetConstant] = []
    carried: list[str] = []
    frozen = list(source.overridable)
    notes: list[str] = []
    asks: list[tuple[str, ChannelAffine]] = [(start, source.affine)]
    while asks:
        value, affine = asks.pop()
        step = _ask(facts, rules, value, affine)
        if isinstance(step, Refusal):
            return step
        if value != start:
            carried.append(value)
        edits += step.edits
        asks += step.asks
        frozen += step.frozen
        notes += step.notes
    absorber = label(facts.nodes[edits[0].node])
    return Plan(site, tuple(edits), tuple(carried), absorber, tuple(frozen), tuple(notes))


def _ask(facts: GraphFacts, rules: Mapping[str, PullRule], value: str, affine: ChannelAffine) -> Step | Refusal:
    producer = facts.producer(value)
    if producer is None:
        what = "a model input" if value in facts.inputs else "a constant"
        return Refusal(Code.NO_PRODUCER, f"{printable(value)!r} is {what}: there is no convolution upstream")
    rule = rules.get(facts.op(producer)) if facts.nodes[producer].output[0] == value else None
    if rule is None:
        return _cannot(facts, producer)
    return _used_elsewhere(facts, producer, value) or rule(facts, producer, affine)


def _cannot(facts: GraphFacts, producer: int) -> Refusal:
    op, at = facts.op(producer), label(facts.nodes[producer])
    if op in ACTIVATIONS:
        return Refusal(Code.ACTIVATION_BETWEEN, f"its input comes out of {at}, which is not linear", at)
    if op == "Cast":
        return Refusal(Code.CAST_BETWEEN, f"its input comes out of {at}, whose rounding would move", at)
    if op in QUANTIZERS:
        return Refusal(Code.QUANTIZE_BETWEEN, f"its input comes out of {at}, whose rounding would move", at)
    return Refusal(Code.PRODUCER_CANNOT_ABSORB, f"bnfold does not fold into {at}", at)


def _used_elsewhere(facts: GraphFacts, producer: int, value: str) -> Refusal | None:
    at, shown = label(facts.nodes[producer]), printable(value)
    if value in facts.outputs:
        return Refusal(Code.PRODUCER_IS_OUTPUT, f"{shown!r}, made by {at}, is an output of the model", at)
    uses = facts.users(value)
    captured = [use for use in uses if use.slot < 0]
    if captured:
        inside = label(facts.nodes[captured[0].node])
        return Refusal(Code.CAPTURED_BY_SUBGRAPH, f"{shown!r}, made by {at}, is read inside {inside}", at)
    if value in facts.pinned:
        message = f"{shown!r}, made by {at}, is referred to by an annotation or a training step"
        return Refusal(Code.PRODUCER_SHARED, message, at)
    if len(uses) > 1:
        some = sorted({label(facts.nodes[use.node]) for use in itertools.islice(uses, 4)})
        others = ", ".join(some) + (", ..." if len(uses) > 4 else "")
        return Refusal(Code.PRODUCER_SHARED, f"{shown!r}, made by {at}, is read {len(uses)} times: {others}", at)
    return None
