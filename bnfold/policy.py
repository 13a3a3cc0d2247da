"""Which of the folds that are exact are wanted (`--sources`), and which cannot be carried out as they are.

Not every Mul is a BatchNormalization in disguise. A 0.5 in front of a MatMul may be part of a GELU, and a factor
along the last axis the gamma of a LayerNormalization; runtimes recognise those by their nodes, and folding one of
these away stops them (measured with onnxruntime).
"""

from bnfold.edits import Plan, SetConstant
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.plan import ends
from bnfold.refusals import Code, Refusal
from bnfold.tensors import bytes_of
from bnfold.text import printable, size

MOST_READERS, MOST_COPIED = 64, 2**26  # of one tensor, and bytes of its copies, if each of them folds something else
CONVOLUTIONS = frozenset(["Conv", "ConvTranspose", "com.microsoft::FusedConv"])
MATRICES = frozenset(["Gemm", "MatMul", "com.microsoft::FusedGemm", "com.microsoft::FusedMatMul"])


def unwanted(facts: GraphFacts, site: Site, source: Source, plan: Plan, options: FoldOptions) -> Refusal | None:
    """Why an exact plan is not carried out under these options; None where it is."""
    if site.kind != "chain" or options.sources == "all":
        return None
    ops = {facts.op(node) for node in plan.absorbers}
    at = ", ".join(sorted({label(facts.nodes[node]) for node in plan.absorbers}))
    if part_of_a_pattern(facts, site, source):
        return Refusal(Code.OUTSIDE_SOURCES, "it belongs to a GELU or LayerNormalization that runtimes recognise")
    if ops <= CONVOLUTIONS:
        return None if ops else Refusal(Code.OUTSIDE_SOURCES, "it could only be moved into another constant")
    if ops <= CONVOLUTIONS | MATRICES and plan.direction == "pull" and source.scales_maps:
        return None
    return Refusal(
        Code.OUTSIDE_SOURCES, f"it would fold into {at}; by default only a chain like a BatchNormalization does"
    )


def part_of_a_pattern(facts: GraphFacts, site: Site, source: Source) -> bool:
    """Whether the chain is the end of a GELU, or the gamma and beta of a LayerNormalization written out."""
    producer = facts.producer(ends(facts, site)[0])
    if producer is None:
        return False
    op, inputs = facts.op(producer), facts.nodes[producer].input
    if op == "Mul" and not source.per_map:
        return any(_ends_in(facts, name, ("Add",), ("Erf", "Tanh")) for name in inputs)
    if op == "Div" and len(inputs) == 2:
        return _ends_in(facts, inputs[1], ("Sqrt", "Add"), ("ReduceMean",))
    if op == "Mul" and len(inputs) == 2:
        return any(_ends_in(facts, name, ("Reciprocal", "Sqrt", "Add"), ("ReduceMean",)) for name in inputs)
    return False


def _ends_in(facts: GraphFacts, value: str, path: tuple[str, ...], last: tuple[str, ...]) -> bool:
    """Whether `value` is made by the operators of `path`, each reading the next, and the last reads one of `last`."""
    values = [value]
    for op in path:
        makers = [facts.producer(name) for name in values]
        values = [
            name for node in makers if node is not None and facts.op(node) == op for name in facts.nodes[node].input
        ]
    return any((node := facts.producer(name)) is not None and facts.op(node) in last for name in values)


def crossing(facts: GraphFacts, plan: Plan) -> Refusal | None:
    """Why a plan is none: a value would have to be made in another scope than it is."""
    for old, new in plan.takes_place:
        if facts.home(old) != facts.home(new):
            message = f"{printable(old)!r} and {printable(new)!r} lie in different scopes"
            return Refusal(Code.CAPTURED_BY_SUBGRAPH, message)
    return None


def too_many_copies(facts: GraphFacts, plan: Plan) -> Refusal | None:
    """Why a plan is none: hundreds of folds into one shared tensor would each make a copy of it.

    All of them stay, so that a second run finds what the first one did.
    """
    for edit in plan.edits:
        names = facts.nodes[edit.node].input
        if not isinstance(edit, SetConstant) or edit.index >= len(names) or not names[edit.index]:
            continue
        old, readers = names[edit.index], len(facts.users(names[edit.index]))
        if readers > MOST_READERS and readers * bytes_of(edit.tensor) > MOST_COPIED:
            held = size(bytes_of(edit.tensor))
            return Refusal(
                Code.WOULD_GROW, f"{printable(old)!r}, {held}, has {readers} readers, each with a copy then"
            )
    return None
