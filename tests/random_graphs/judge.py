"""What must hold between a model and its fold, judged without bnfold's own code: interface, costs, and values."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto

from tests.random_graphs.compare import Wrong, compare, look_up_indices, loosen_training, nudge, nudged
from tests.random_graphs.running import CannotRun, Exposed, feeds
from tests.scopes import scopes

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def judge(
    original: ModelProto, folded: ModelProto, sizes: Mapping[str, tuple[int, ...]], rng: np.random.Generator,
    options: Mapping[str, Any] | None = None,
) -> float:  # fmt: skip
    """Raise Wrong unless the fold is right; otherwise the largest difference, as a share of what is allowed.

    Raises:
        Wrong: something is not as it must be.
        CannotRun: onnxruntime cannot run the original.
    """
    options = options or {}
    reference = Exposed(original)
    first = feeds(original, sizes, rng, 0)
    reference.run(first)
    _valid(original, folded)
    _interface(original, folded)
    _annotated(original, folded)
    costs(original, folded, cloned=bool(options.get("clone_shared")))
    try:
        found = Exposed(folded)
    except CannotRun as problem:
        raise Wrong("does not load", str(problem)) from None
    shaken = [Exposed(nudged(original, rng)) for _ in range(2)]
    outputs = {value.name for value in original.graph.output}
    worst = 0.0
    for more in (0, 1):
        given = feeds(original, sizes, rng, more)
        try:
            expected = reference.run(given)
        except CannotRun:  # the second size does not fit this graph
            given = {name: array if array.dtype == np.bool_ else first[name] for name, array in given.items()}
            expected = reference.run(given)
        try:
            values = found.run(given)
        except CannotRun as problem:
            raise Wrong("does not run", str(problem)) from None
        noisy = [run.run({name: nudge(array, rng) for name, array in given.items()}) for run in shaken * 2]
        for values_of_one in (values, *noisy, expected):
            look_up_indices(original, values_of_one, expected)
        for values_of_one in noisy:
            loosen_training(original, values_of_one, expected)
        worst = max(worst, compare(expected, values, noisy, outputs, options))
    return worst


def _valid(original: ModelProto, folded: ModelProto) -> None:
    try:
        onnx.checker.check_model(original, full_check=True)
    except Exception:  # noqa: BLE001 - an input without any shape: allowed, but not to the checker
        return
    try:
        onnx.checker.check_model(folded, full_check=True)
    except Exception as problem:  # noqa: BLE001 - whatever the checker raises
        raise Wrong("invalid", str(problem).strip()) from None


def _interface(original: ModelProto, folded: ModelProto) -> None:
    if original.ir_version != folded.ir_version or original.opset_import != folded.opset_import:
        raise Wrong("interface", "another IR version or opset")
    if list(original.graph.output) != list(folded.graph.output):
        raise Wrong("interface", "the outputs are not the same")
    before, after = (
        [i for i in m.graph.input if m.ir_version >= 4 or i.name not in {t.name for t in m.graph.initializer}]
        for m in (original, folded)
    )
    if before != after:
        raise Wrong("interface", "the inputs are not the same")


# Costs --------------------------------------------------------------------------------------------------------------


def captures(node: NodeProto) -> Iterator[str]:
    """Names that the bodies of an If read; some may be their own."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from inner.input
                yield from captures(inner)


def every_node(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of all scopes."""
    for scope in scopes(model):
        yield from scope.nodes


def depths(model: ModelProto) -> dict[str, int]:
    """For each value, how many nodes lie on the longest path to it from an input; 0 for constants."""
    held = {t.name for t in model.graph.initializer}
    depth = {value.name: 1 for value in model.graph.input if value.name not in held}
    for node in model.graph.node:
        above = max((depth.get(name, 0) for name in (*node.input, *captures(node))), default=0)
        depth.update({name: above + 1 if above else 0 for name in node.output if name})
    return depth


def costs(original: ModelProto, folded: ModelProto, *, cloned: bool) -> None:
    """Raise Wrong where the fold costs something that nobody asked for, or leaves something behind."""
    before, after = (Counter(node.op_type for node in every_node(m)) for m in (original, folded))
    heavy = sum(after[op] for op in LINEAR) - sum(before[op] for op in LINEAR)
    if heavy > 0 and not cloned:
        raise Wrong("costs", f"{heavy} more linear operators than before")
    biases = max(0, _biases(folded) - _biases(original))
    made = after["Constant"] - before["Constant"] if folded.functions else 0  # they hold constants in no other way
    if after.total() > before.total() + biases + max(0, made) and not cloned:
        raise Wrong("costs", f"{after.total()} nodes instead of {before.total()}")
    first, second = depths(original), depths(folded)
    longer = [name for name in first.keys() & second.keys() if second[name] > first[name]]
    if longer:
        raise Wrong("costs", f"the path to {longer[0]!r} has become longer")
    left = unread(folded) - unread(original)
    if left:
        raise Wrong("orphans", f"nothing reads {sorted(left)} any more")


def _annotated(original: ModelProto, folded: ModelProto) -> None:
    """Shapes are declared only for values that exist."""
    known, left = (
        {v.name for v in m.graph.value_info} - {name for node in m.graph.node for name in node.output}
        - {t.name for t in m.graph.initializer}
        for m in (original, folded)
    )  # fmt: skip
    if left - known:
        raise Wrong("annotations", f"{sorted(left - known)} have a declared shape, and do not exist")


def _biases(model: ModelProto) -> int:
    """How many Adds of a constant lie directly behind a MatMul, in all scopes."""
    nodes = list(every_node(model))
    makers = {name: node.op_type for node in nodes for name in node.output}
    held = {name for scope in scopes(model) for name in scope.constants}
    held |= {name for name, depth in depths(model).items() if not depth}
    adds = (node for node in nodes if node.op_type == "Add")
    return sum(
        any(makers.get(name) == "MatMul" for name in node.input) and any(name in held for name in node.input)
        for node in adds
    )


def unread(model: ModelProto) -> set[str]:
    """Initializers and outputs of nodes that nothing reads; a node counts by its first output."""
    held = list(scopes(model))
    read = {name for scope in held for node in scope.nodes for name in node.input}
    read |= {name for scope in held for name in scope.outputs}
    made = [name for scope in held for name in scope.initializers]
    made += [node.output[0] for scope in held for node in scope.nodes if not read & set(node.output)]
    return set(made) - read
