"""Operators that decide: where their output jumps although their input hardly moves, and what lies behind them.

    v -> QuantizeLinear -> q -> DequantizeLinear -> y          a jump of one step where v crosses (n + 1/2) scale

Rounding in front of such an operator may turn the decisions whose input lies next to a boundary, and no others:
`boundaries` judges by numbers; here stands which operators these are, and from which one an output comes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onnx import TensorProto

from bnfold.graph import GraphFacts
from bnfold.nodes import int_attribute, may_nest

STEPS = frozenset(["Cast", "Ceil", "Floor", "QuantizeLinear", "Round"])  # they grow in steps; Cast to whole numbers
COMPARISONS = frozenset(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
CHOICES = frozenset(["ArgMax", "ArgMin", "TopK"])
# They decide too, but how many elements come out, or all of them at once: only a judgement site by site can tell.
OTHERS = frozenset(
    ["Bernoulli", "Compress", "DynamicQuantizeLinear", "Hardmax", "IsInf", "IsNaN", "Mod", "Multinomial",
     "NonMaxSuppression", "NonZero", "OneHot", "Sign", "ThresholdedRelu", "Unique"]
)  # fmt: skip
DISCONTINUOUS = STEPS | COMPARISONS | CHOICES | OTHERS

# What may stand behind a decision so that each of its elements can still be told from the output: operators that
# move elements, and those that treat each by itself.
MOVES = frozenset(
    ["Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice",
     "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"]
)  # fmt: skip
ELEMENTWISE = frozenset(
    ["Add", "And", "Cast", "Clip", "DequantizeLinear", "Div", "Mul", "Neg", "Not", "Or", "Relu", "Sub", "Where"]
)
LONGEST = 32  # nodes between a decision and an output
_FLOATS = frozenset([TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16])


@dataclass(frozen=True, slots=True)
class Decision:
    """Where an output is decided.

    Attributes:
        output: of the model.
        node: the operator that decides, by its index.
        slot: which of that operator's outputs is read.
        tail: the nodes between it and the output, in the order in which they run.
    """

    output: str
    node: int
    slot: int
    tail: tuple[int, ...]

    def reads(self, facts: GraphFacts) -> list[str]:
        """The values that the decision and the tail need and the tail does not make; none of them constant."""
        nodes = [facts.nodes[index] for index in (self.node, *self.tail)]
        made = {name for node in nodes for name in node.output}
        read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        return [name for name in read if facts.constants.find(name) is None]


def decision_behind(facts: GraphFacts, output: str) -> Decision | None:
    """The one decision that an output comes from, elements moved or treated one by one since; None without it."""
    tail: list[int] = []
    found: Decision | None = None
    value = output
    while (producer := facts.producer(value)) is not None and len(tail) < LONGEST:
        op = facts.op(producer)
        slot = list(facts.nodes[producer].output).index(value)
        if op in STEPS | COMPARISONS | CHOICES and _decides(facts, producer, op, slot):
            here = Decision(output, producer, slot, tuple(reversed(tail)))
            if op != "Cast":
                return here
            found = here  # unless what it casts is decided already
        before = _before(facts, producer, op)
        if before is None:
            return found
        tail.append(producer)
        value = before
    return found


def _decides(facts: GraphFacts, node: int, op: str, slot: int) -> bool:
    """A Cast does where its target is no float; the first output of TopK are the numbers themselves."""
    if op == "TopK":
        return slot == 1
    return op != "Cast" or int_attribute(facts.nodes[node], "to", 0) not in _FLOATS


def _before(facts: GraphFacts, node: int, op: str) -> str | None:
    """The one value that a node of a tail passes on; None where it is no such node."""
    if op not in MOVES | ELEMENTWISE:
        return None
    inputs = list(facts.nodes[node].input)
    if op == "Where":
        return inputs[0] if inputs else None
    open_ = [name for name in inputs if name and facts.constants.find(name) is None]
    return open_[0] if len(open_) == 1 else None


def decided(facts: GraphFacts, outputs: Collection[str]) -> Mapping[str, bool]:
    """Of each output whether any discontinuous operator lies upstream; bodies and functions count as such."""
    behind: set[str] = set()
    for index in facts.live():
        node = facts.nodes[index]
        jumps = facts.op(index) in DISCONTINUOUS or may_nest(node) or facts.is_call(index)
        if jumps or not behind.isdisjoint(node.input):
            behind.update(filter(None, node.output))
    return {output: output in behind for output in outputs}
