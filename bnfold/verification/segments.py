"""The segments that make a changed value in both models: where they start, and what kind of operators they hold."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from onnx import NodeProto

from bnfold.graph import GraphFacts
from bnfold.verification.operators import CALM, CORES, SUMS
from bnfold.verification.pairing import Pairing
from bnfold.verification.weights import storage_roundoff

AFFINE = CORES | SUMS | {"AveragePool", "BatchNormalization", "Concat", "Div", "Dropout", "Identity", "Mul"}
# Operators that do in a corner what they do everywhere.
LOCAL = AFFINE - {"Concat"} | CALM | {"MaxPool"}


@dataclass(frozen=True, slots=True)
class Frontier:
    """Where the segments of a value start.

    Attributes:
        names: the shared values that they read, by their names in the original.
        common: those that both read.
        roundoff: the unit roundoff of the coarsest type of their constants.
        reach: how many locations their kernels reach at most.
        longer: whether the folded one computes in more steps than the original one.
        affine: whether both are affine maps, so that one set of numbers tells as much as any other.
        local: whether both do in a corner what they do everywhere.
        rows: of the largest table that they look something up in; 0 for none.
        axis: of the maps, in what the last product makes; None where that is not known.
    """

    names: frozenset[str]
    common: frozenset[str]
    roundoff: float
    reach: int
    longer: bool
    affine: bool
    local: bool
    rows: int
    axis: int | None


def frontier(pairing: Pairing, value: str) -> Frontier:
    """Where the segments of `value`, by its name in the original, start in both models."""
    first = _Segment(pairing.original, value, pairing.names.keys())
    second = _Segment(pairing.folded, pairing.names[value], pairing.shared.keys())
    theirs = frozenset(pairing.shared[name] for name in second.reads)
    ops = first.ops | second.ops
    return Frontier(
        first.reads | theirs, first.reads & theirs, first.roundoff, max(first.reach, second.reach),
        len(second.nodes) > len(first.nodes) or "Cast" in ops, ops <= AFFINE, ops <= LOCAL,
        max(first.rows, second.rows), None if "MatMul" in ops else 1,
    )  # fmt: skip


class _Segment:
    """The nodes that make a value out of the shared values before it, and what is to be known of them."""

    def __init__(self, facts: GraphFacts, value: str, shared: AbstractSet[str]) -> None:
        indices = _segment(facts, value, shared)
        self.nodes = [facts.nodes[index] for index in indices]
        self.ops = {facts.op(index) for index in indices}
        self.reads = frozenset(name for node in self.nodes for name in node.input if name in shared)
        self.roundoff = max(storage_roundoff(facts, node.input) for node in self.nodes)
        self.reach = max([1, *(size for node in self.nodes for size in _reach(node))])
        self.rows = max(_rows(facts, node) for node in self.nodes)


def _segment(facts: GraphFacts, value: str, shared: AbstractSet[str]) -> list[int]:
    """The nodes that make `value` out of the shared values before it."""
    found = {facts.producers[value]: None}
    open_ = list(found)
    while open_:
        for name in facts.nodes[open_.pop()].input:
            producer = facts.producer(name)
            if name in shared or producer is None or producer in found or facts.constants.computes(producer):
                continue
            found[producer] = None
            open_.append(producer)
    return list(found)


def _rows(facts: GraphFacts, node: NodeProto) -> int:
    """How many rows the table has that the node looks something up in; 0 where it does not."""
    table = facts.constants.find(node.input[0]) if node.op_type == "Gather" and node.input else None
    return 0 if table is None or not table.tensor.shape else table.tensor.shape[0]


def _reach(node: object) -> list[int]:
    """How far the kernel of a node reaches along each axis, as far as its attributes say."""
    entries = {entry.name: list(entry.ints) for entry in getattr(node, "attribute", ())}
    kernel = entries.get("kernel_shape", [])
    dilations = entries.get("dilations", [1] * len(kernel))
    return [size * step for size, step in zip(kernel, dilations, strict=False)]
