"""What both directions share: the answers so far, and what to say of an operator that has none."""

from dataclasses import dataclass, field

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.edits import AddBias, Clone, Edit, Plan
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.refusals import Code, Refusal
from bnfold.rounding import BFLOAT16
from bnfold.rules import Rule, Step
from bnfold.text import printable

ACTIVATIONS = frozenset(
    ["Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
     "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"]
)  # fmt: skip
QUANTIZERS = frozenset(["QuantizeLinear", "DequantizeLinear"])
NORMALIZATIONS = frozenset(["GroupNormalization", "InstanceNormalization", "LayerNormalization",
                            "MeanVarianceNormalization", "RMSNormalization", "LpNormalization", "LRN"])  # fmt: skip
HALF = (np.dtype(np.float16), BFLOAT16)
NO_RULE = Rule()


@dataclass(slots=True)
class Walk:
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
        for edit in step.edits:  # of a DequantizeLinear before it, whose output is another now
            if edit.node != node:
                made = self.facts.nodes[edit.node].output[0]
                self.carried += [made] if made not in self.carried else []

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


def cannot(facts: GraphFacts, node: int, otherwise: Code, where: str) -> Refusal:
    """Why an operator without a rule is in the way."""
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
