"""What both directions share: the answers so far, and what to say of an operator that has none."""

from dataclasses import dataclass, field

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.edits import AddBias, Clone, Edit, Plan
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.refusals import Code, Refusal
from bnfold.rounding import BFLOAT16, FLOAT_TYPES
from bnfold.rules import Step
from bnfold.rules.weights import finite
from bnfold.tensors import ExactTensor
from bnfold.text import printable

ACTIVATIONS = frozenset(
    ["Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish",
     "PRelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"]
)  # fmt: skip
QUANTIZERS = frozenset(["QuantizeLinear", "DequantizeLinear"])
NORMALIZATIONS = frozenset(["GroupNormalization", "InstanceNormalization", "LayerNormalization",
                            "MeanVarianceNormalization", "RMSNormalization", "LpNormalization", "LRN"])  # fmt: skip
HALF = (np.dtype(np.float16), BFLOAT16)
MOST_STEPS = 128
MOST_JOINED = 256  # inputs, or outputs, of an operator on the way; each of many sites looks at all of them


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
    steps: int = 0
    leaks: bool = False  # a path through what changes does not lead through the site

    def take(self, node: int, step: Step) -> None:
        """Add one operator's answer."""
        self.steps += 1
        self.edits += step.edits
        self.frozen += step.frozen
        self.notes += step.notes
        if step.absorbs:
            self.absorbers.append(node)
        for edit in step.edits:  # of a DequantizeLinear before it, whose output is another now
            if edit.node != node:
                made = self.facts.nodes[edit.node].output[0]
                self.carried += [made] if made not in self.carried else []

    def too_far(self, code: Code) -> Refusal | None:
        """Why to give up: no real path is this long, and looking on from each of many sites would take for ever."""
        if self.steps <= MOST_STEPS + 8 * len(self.absorbers):
            return None
        return Refusal(code, f"nothing with weights is found within {MOST_STEPS} operators")

    def too_wide(self, node: int, code: Code) -> Refusal | None:
        """Why to give up: from each of many sites, asking each of as many branches would take for ever."""
        proto = self.facts.nodes[node]
        if max(len(proto.input), len(proto.output)) <= MOST_JOINED:
            return None
        at = label(proto)
        return Refusal(code, f"{at} joins or splits more than {MOST_JOINED} values", at)

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

    @property
    def new_add(self) -> AddBias | None:
        """The edit that puts an Add behind a MatMul, if there is one."""
        return next((edit for edit in self.edits if isinstance(edit, AddBias) and not edit.gemm), None)

    def not_worth(self, site: Site, code: Code) -> Refusal | None:
        """Why a new Add is no gain (alone it only moves) or a risk (in half precision the product may overflow)."""
        add = self.new_add
        if add is None:
            return None
        at = label(self.facts.nodes[add.node])
        if site.kind == "chain" and len(site.nodes) < 2:
            return Refusal(code, f"it is the bias of {at} already, and would only move", at, quiet=True)
        if add.tensor.dtype in HALF and not self.options.assume_range:
            message = f"in {add.tensor.dtype} the product of {at} could overflow before its shift brings it back"
            return Refusal(Code.RANGE_RISK, message, at)
        return None

    def range_risk(self, node: int, value: str, affine: ChannelAffine, *, pulls: bool) -> Refusal | None:
        """Whether a value in float16 or bfloat16 that `node` computes with could overflow where it did not before."""
        grows = (np.abs(affine.scale) > 1).any() if pulls else (np.abs(affine.scale) < 1).any()
        if self.options.assume_range or not (grows or affine.shift.any()):
            return None
        dtype = self.facts.constants.value_type(value)
        if dtype not in HALF and not (dtype is None and self.facts.has_half):
            return None
        at, kind = label(self.facts.nodes[node]), dtype or "perhaps float16"
        return Refusal(Code.RANGE_RISK, f"{printable(value)!r}, in {kind}, would have another range inside {at}", at)


def ends(facts: GraphFacts, site: Site) -> tuple[str, str]:
    """The value that the site maps, and the value that it makes."""
    return facts.nodes[site.nodes[0]].input[site.slot], facts.nodes[site.nodes[-1]].output[0]


def cannot(facts: GraphFacts, node: int, otherwise: Code, where: str) -> Refusal:
    """Why an operator without a rule is in the way."""
    op, at = facts.op(node), label(facts.nodes[node])
    if facts.is_call(node):
        return Refusal(Code.IN_FUNCTION, f"{where} {at}, which is a local function", at)
    if op in ACTIVATIONS:
        return Refusal(Code.ACTIVATION_BETWEEN, f"{where} {at}, which is not linear", at)
    if op == "Cast":
        return Refusal(Code.CAST_BETWEEN, f"{where} {at}, whose rounding would move", at)
    if op in QUANTIZERS:
        return Refusal(Code.QUANTIZE_BETWEEN, f"{where} {at}, whose rounding would move", at)
    if op in NORMALIZATIONS and otherwise == Code.PRODUCER_CANNOT_ABSORB:
        return Refusal(Code.BEHIND_NORMALIZATION, f"{where} {at}, which cannot take it in", at)
    return Refusal(otherwise, f"bnfold does not fold into {at}", at)


def add_tensor(
    facts: GraphFacts, site: Site, affine: ChannelAffine, shift: Float64Array, dtype: np.dtype | None
) -> ExactTensor | Refusal:
    """`shift`, spread like the map `affine`, as the constant of an Add in the place of the site."""
    node = facts.nodes[site.nodes[-1]]
    rank = facts.shapes.rank(ends(facts, site)[0])
    if dtype is None or (affine.axes and (rank is None or rank <= max(affine.axes))):
        return Refusal(Code.UNKNOWN_SHAPE, f"type or rank of what {label(node)} maps is not known")
    sizes = affine.sizes()
    if dtype not in FLOAT_TYPES:
        return Refusal(Code.UNSUPPORTED_TYPE, f"{label(node)} maps values of type {dtype}")
    first = min(affine.axes, default=0)
    spread = [sizes.get(axis, 1) for axis in range(first, rank or 0)] if affine.axes else []
    return finite(node, None, shift.reshape(spread), dtype)
