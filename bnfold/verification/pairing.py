"""Which values of two models are the same value, and where the two compute it differently.

Two models share values by name: whoever folds a BatchNormalization changes what lies around it and leaves the rest
as it is. A value that both models make is made the same way if the node is the same (operator, attributes,
constants) and reads the same shared values; then there is nothing to compare. Where it is not, the value is
*changed*, and each model has a *segment* that makes it: the nodes between the shared values before it and itself.

    original   x -> Conv -> c -> BatchNormalization -> y -> Relu -> z      shared: x, y, z;  changed: y
    folded     x -> Conv -> y -> Relu -> z                                segments of y: Conv, BN  |  Conv

Some tools let the Conv keep its output's name, and what read y read c instead: then c of the folded model is y of the
original. `aliases` says which values that may be true of; numbers decide.
"""

import functools
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, NodeProto

from bnfold.constants import Constant
from bnfold.graph import GraphFacts
from bnfold.nodes import standard_domain
from bnfold.reading import is_constant
from bnfold.tensors import same_numbers

MOST_UNLIKE = 4  # one name in so many may be made by unlike operators
FEWEST_UNLIKE = 3
_FOLDED = frozenset(  # what folds turn into one another
    ["Add", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Gemm", "Identity", "MatMul", "Mul", "Neg",
     "Reshape", "Sub", "Sum", "Transpose"]
)  # fmt: skip


@dataclass
class Pairing:
    """Two graphs and what they share.

    Attributes:
        original, folded: facts about both.
        renamed: values of the folded model under another name than the original gives them: folded to original.
        dropped: values of the original that the folded model has by name only.
        changed: shared values that are made differently, by their name in the original, in topological order.
        shared: the name in the original of every value of the folded model that both have.
    """

    original: GraphFacts
    folded: GraphFacts
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    changed: list[str] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """The name in the folded model of each shared value, by its name in the original."""
        return {original: folded for folded, original in self.shared.items()}


def pair(
    original: GraphFacts,
    folded: GraphFacts,
    renamed: Mapping[str, str] | None = None,
    dropped: AbstractSet[str] = frozenset(),
) -> Pairing:
    """Find what two graphs share, and where they differ.

    Args:
        original: facts about the one.
        folded: facts about the other.
        renamed: values of the folded model that are another value of the original than the one of their name.
        dropped: values of the original that are not to be taken for the ones of their names.
    """
    pairing = Pairing(original, folded, dict(renamed or {}), frozenset(dropped))
    shared = {name: name for name in _values(folded) if _makes(original, name)} | pairing.renamed
    pairing.shared = {name: there for name, there in shared.items() if there not in dropped}
    pairing.changed = [pairing.shared[value] for value in _changed(pairing)]
    return pairing


def trusted(original: GraphFacts, folded: GraphFacts) -> Pairing:
    """The pairing by names; by those of inputs and outputs alone where names plainly mean other values.

    Exporters number values. Where one that left a BatchNormalization out counted on, most numbers stand for something
    else: names of which too many are made by unlike operators are no names in common.
    """
    pairing = pair(original, folded)
    made = [name for name in pairing.shared if name in folded.producers and name in original.producers]
    ops = [(original.op(original.producers[name]), folded.op(folded.producers[name])) for name in made]
    unlike = sum(not _alike(*both) for both in ops)
    if unlike * MOST_UNLIKE <= len(made) or unlike < FEWEST_UNLIKE:
        return pairing
    return by_edges(pairing)


def by_edges(pairing: Pairing) -> Pairing:
    """The pairing in which inputs and outputs alone are the same values."""
    graph = pairing.original.model.graph
    edges = {value.name for value in (*graph.input, *graph.output)}
    return pair(pairing.original, pairing.folded, dropped=set(pairing.shared.values()) - edges)


def _alike(first: str, second: str) -> bool:
    return first == second or {first, second} <= _FOLDED


def aliases(pairing: Pairing) -> dict[str, str]:
    """Changed values that may be another value of the original: what the nodes make that alone read them there.

    A value of the original that only reaches others through nodes of which the folded model has none: the end of
    those nodes.
    """
    found: dict[str, str] = {}
    original, folded = pairing.original, pairing.folded
    for value in pairing.changed:
        end = value
        while (after := _only_after(original, end)) is not None and after not in folded.producers:
            end = after
        if end != value and value not in folded.outputs and end not in original.outputs:
            found[pairing.names[value]] = end
    return found


def _only_after(facts: GraphFacts, value: str) -> str | None:
    """The one output of the one node that reads `value`; None where it has other readers."""
    readers = {use.node for use in facts.users(value)}
    if len(readers) != 1 or value in facts.outputs:
        return None
    outputs = [name for name in facts.nodes[readers.pop()].output if name]
    return outputs[0] if len(outputs) == 1 else None


def _changed(pairing: Pairing) -> list[str]:
    """The shared values that are made differently, by their name in the folded model."""
    shared, folded = pairing.shared, pairing.folded
    return [v for v in _values(folded) if v in shared and v in folded.producers and not _same(pairing, v)]


def _values(facts: GraphFacts) -> Iterator[str]:
    """Every value that is no constant: the inputs, then what nodes make, in topological order."""
    yield from (name for name in facts.inputs if not is_constant(facts, name))
    for index in facts.live():
        if not facts.constants.computes(index):
            yield from filter(None, facts.nodes[index].output)


def _makes(facts: GraphFacts, name: str) -> bool:
    """Whether the graph has a value of that name that is no constant."""
    return (name in facts.producers or name in facts.inputs) and not is_constant(facts, name)


def _maker(facts: GraphFacts, value: str) -> NodeProto | None:
    producer = facts.producer(value)
    return None if producer is None else facts.nodes[producer]


def _same(pairing: Pairing, value: str) -> bool:
    """Whether both models make `value` (its name in the folded one) by the same node from the same values."""
    original, folded = pairing.original, pairing.folded
    here, there = _maker(folded, value), _maker(original, pairing.shared[value])
    if here is None or there is None or here.op_type != there.op_type or len(here.input) != len(there.input):
        return False
    if list(here.output).index(value) != list(there.output).index(pairing.shared[value]):
        return False
    if folded.op(folded.producers[value]) != original.op(original.producers[pairing.shared[value]]):
        return False
    if _is_call(folded, here) and not _same_functions(pairing):
        return False
    both_open = folded.is_open(folded.producers[value]) and original.is_open(
        original.producers[pairing.shared[value]]
    )
    if both_open and not _same_bodies(pairing, here, there):
        return False
    if not _same_attributes(here, there, bodies=not both_open):
        return False
    if _version(folded, here) != _version(original, there):
        return False
    return all(_same_input(pairing, a, b) for a, b in zip(here.input, there.input, strict=True))


def _is_call(facts: GraphFacts, node: NodeProto) -> bool:
    return (standard_domain(node.domain), node.op_type) in facts.functions


def _same_functions(pairing: Pairing) -> bool:
    """Whether both models define the same functions; one of them that could not be inlined would decide."""
    first, second = (
        sorted(function.SerializeToString(deterministic=True) for function in facts.model.functions)
        for facts in (pairing.original, pairing.folded)
    )
    return first == second


def _version(facts: GraphFacts, node: NodeProto) -> int:
    """The version of the operator that the model means; its opset's where onnx does not know the operator."""
    opset = facts.opsets.get(standard_domain(node.domain), 1)
    return since_version(node.op_type, opset, standard_domain(node.domain))


@functools.cache
def since_version(op: str, opset: int, domain: str) -> int:
    """The version in which `opset` has an operator; the opset itself where onnx does not know it."""
    try:
        return int(onnx.defs.get_schema(op, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return opset


def _same_attributes(here: NodeProto, there: NodeProto, *, bodies: bool) -> bool:
    """Whether all attributes are the same; those that hold graphs count with `bodies` only."""
    kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    first, second = (
        {
            a.name: a.SerializeToString(deterministic=True) if bodies or a.type not in kinds else b""
            for a in node.attribute
        }
        for node in (here, there)
    )
    return first == second


def _same_bodies(pairing: Pairing, here: NodeProto, there: NodeProto) -> bool:
    """Whether bodies are given and hand out the same values; what they compute is compared as any other value."""
    first, second = ({a.name: a.g for a in node.attribute if a.HasField("g")} for node in (here, there))
    if first.keys() != second.keys():
        return False
    for name, body in first.items():
        for mine, others in ((body.input, second[name].input), (body.output, second[name].output)):
            pairs = list(zip(mine, others, strict=False))
            if len(mine) != len(others) or not all(_same_input(pairing, a.name, b.name) for a, b in pairs):
                return False
    return True


def _same_input(pairing: Pairing, here: str, there: str) -> bool:
    if not here or not there:
        return here == there
    if here in pairing.shared:
        return pairing.shared[here] == there
    first, second = pairing.folded.constants.find(here), pairing.original.constants.find(there)
    return first is not None and second is not None and same_constant(first, second)


def same_constant(first: Constant, second: Constant) -> bool:
    """Whether two constants have the same type and numbers."""
    if first.tensor.dtype is None or second.tensor.dtype is None:
        return False
    return first.tensor.dtype == second.tensor.dtype and same_numbers(first.tensor, second.tensor)
