"""What must hold between a model with nested graphs or functions and its fold, judged without bnfold's own code.

Interfaces of all scopes, every node and tensor that was not folded byte for byte, nothing left unread, folded
weights bit for bit as float64 arithmetic gives them, and every output and value of the main graph as onnxruntime
computes it, for each value of the conditions.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

import bnfold
from bnfold.api import FoldResult
from tests.conftest import random_feeds, run
from tests.folding import is_valid
from tests.scopes import Scope, inside, layout, parse, scopes
from tests.scopes_exact import assert_exact

LIMIT = 2e-6
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def check(
    text: str | ModelProto, after: str | Collection[str] | None, *left: str, folded: int | None = None,
    runs: bool = True, ir: int = 8, opset: int = 17, x: str = "T x, bool p", **options: Any,
) -> FoldResult:  # fmt: skip
    """Fold, and hold the result to everything; `after` is its layout (or several), None where nothing may change.

    `left` are the codes of the sites that stay (`one|other` for either), `folded` how many go (1, where anything
    changes); `runs` says that onnxruntime takes the model. Keywords of `parse` besides, and options of `fold`.
    """
    proto = parse(text, ir=ir, opset=opset, x=x) if isinstance(text, str) else text
    given = proto.SerializeToString(deterministic=True)
    result = bnfold.fold(proto, verify=False, provenance=False, **options)
    made = result.model
    assert proto.SerializeToString(deterministic=True) == given
    assert len(result.refused) == len(left), told(result)
    for site, codes in zip(result.refused, left, strict=True):
        assert site.code in codes.split("|"), told(result)
    assert all(site.message for site in result.refused)
    expected = folded if folded is not None else int(after is not None)
    assert len(result.folded) == expected, told(result)
    if after is None:
        assert made.SerializeToString(deterministic=True) == given
        return result
    assert layout(made) in ([after] if isinstance(after, str) else after)
    assert_right(proto, made, dict(result.renamed), runs=runs)
    again = bnfold.fold(made, verify=False, provenance=False, **options)
    assert not again.folded, told(again)
    assert again.model.SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)
    fresh = bnfold.fold(ModelProto.FromString(given), verify=False, provenance=False, **options)
    assert fresh.model.SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)
    inspected = bnfold.inspect(proto, **options).sites
    assert [(s.site, s.code) for s in inspected] == [(s.site, s.code) for s in result.report.sites]
    return result


def folds_or_stays(text: str | ModelProto, after: str, **options: Any) -> bool:
    """Hold a fold to everything, or no fold to be one: nothing changes, and a reason is given."""
    proto = parse(text, **options) if isinstance(text, str) else text
    result = bnfold.fold(proto, verify=False, provenance=False)
    if result.folded:
        check(proto, after, folded=len(result.folded))
        return True
    assert result.model == proto
    assert all(site.message for site in result.refused)
    return False


def told(result: FoldResult) -> str:
    """What became of each site, for messages."""
    return "; ".join(f"{s.site}: {s.outcome} {s.code or ''} {s.message or ''}" for s in result.report.sites)


def assert_right(before: ModelProto, after: ModelProto, renamed: Mapping[str, str], *, runs: bool = True) -> None:
    """Everything that must hold between the two."""
    assert is_valid(after) or not is_valid(before)
    assert_interface(before, after)
    first, second = ({scope.path: scope for scope in scopes(proto)} for proto in (before, after))
    assert first.keys() == second.keys()
    for path, scope in first.items():
        assert_untouched(scope, second[path], renamed)
    assert unread(after) <= unread(before), unread(after) - unread(before)
    if runs:
        assert_exact(before, after)
        assert_same_values(before, after)


def assert_interface(before: ModelProto, after: ModelProto) -> None:
    """The model's inputs and outputs, and all its fields but graph and functions, are the same."""
    held = {t.name for proto in (before, after) for t in proto.graph.initializer} if before.ir_version < 4 else set()
    inputs, others = (
        [v.SerializeToString() for v in proto.graph.input if v.name not in held] for proto in (before, after)
    )
    assert inputs == others
    assert list(before.graph.output) == list(after.graph.output)
    if before.ir_version < 4:
        assert {t.name for t in after.graph.initializer} <= {v.name for v in after.graph.input}
    bare = [ModelProto.FromString(proto.SerializeToString()) for proto in (before, after)]
    for proto in bare:
        proto.ClearField("graph")
        proto.ClearField("functions")
    assert bare[0] == bare[1]


def assert_untouched(before: Scope, after: Scope, renamed: Mapping[str, str]) -> None:
    """Tensors of the same name, operators that are no absorbers, inputs and outputs of the scope: byte for byte."""
    held = before.constants
    for name, tensor in after.constants.items():
        assert held.get(name, tensor).SerializeToString() == tensor.SerializeToString(), name
    assert before.outputs == after.outputs
    if isinstance(before.body, GraphProto) and before.path != ("",):
        assert list(before.body.input) == list(after.body.input)
        assert list(before.body.output) == list(after.body.output)
    known = {value.name for value in before.body.value_info} - before.names
    assert {value.name for value in after.body.value_info} - after.names <= known
    old = {node.output[0]: node for node in before.nodes}
    kept = [node for node in after.nodes if node.op_type != "Constant" and node.output[0] in old]
    rank = {node.output[0]: place for place, node in enumerate(before.nodes)}
    places = [rank[node.output[0]] for node in kept if node.op_type == old[node.output[0]].op_type]
    assert places == sorted(places)
    for node in kept:
        assert_same_node(old[node.output[0]], node, renamed, visible(after))


def visible(scope: Scope | None) -> set[str]:
    """Names that mean something in this scope."""
    return set() if scope is None else scope.names | visible(scope.parent)


def assert_same_node(before: NodeProto, after: NodeProto, renamed: Mapping[str, str], known: set[str]) -> None:
    """A node that makes the same value in both models: all of it but weights, arguments and the graphs inside.

    It may read another name only for a value that was renamed, or whose name means nothing here any more.
    """
    if before.op_type != after.op_type:
        return  # a site's place is taken by what absorbed it; the layout says by what
    one, other = (NodeProto.FromString(node.SerializeToString()) for node in (before, after))
    for node in (one, other):
        graphs = [attribute for attribute in node.attribute if attribute.HasField("g") or attribute.graphs]
        for attribute in graphs:
            attribute.ClearField("g")
            attribute.ClearField("graphs")
        if node.op_type in LINEAR or node.domain == "local":
            del node.input[:]
        if node.op_type == "Gemm":
            del node.attribute[:]
    for place, (name, new) in enumerate(zip(one.input, other.input, strict=True)):
        if name not in known or renamed.get(name) == new:
            one.input[place] = new
    assert one.SerializeToString() == other.SerializeToString()


def unread(proto: ModelProto) -> Counter[str]:
    """Constants and formal parameters that nothing reads, by their scope's path and name."""
    made: Counter[str] = Counter()
    for scope in scopes(proto):
        own = set(scope.constants)
        if not isinstance(scope.body, GraphProto):
            own |= set(scope.inputs)
        read = set(reads(scope)) | set(scope.outputs)
        made.update(f"{'/'.join(scope.path)}/{name}" for name in own - read)
    return made


def reads(scope: Scope) -> Iterator[str]:
    """Every name that the scope's nodes take from it, once for each place; those deeper that mean it included."""
    for node in scope.nodes:
        yield from node.input
        for _, graph in inside(node):
            inner = Scope((), graph)
            own = inner.names
            yield from (name for name in (*reads(inner), *inner.outputs) if name not in own)


# Values -------------------------------------------------------------------------------------------------------------


def assert_same_values(before: ModelProto, after: ModelProto) -> None:
    """Outputs, and values of the main graph of the same name, for every combination of the conditions."""
    made = [{name for node in proto.graph.node for name in node.output} for proto in (before, after)]
    known = {value.name for value in before.graph.output} | set(Scope(("",), before.graph).constants)
    shown = sorted((made[0] & made[1]) - known - set(Scope(("",), after.graph).constants) - {""})
    for given in feeds(before):
        pairs = zip(*(run(_exposing(proto, shown), given) for proto in (before, after)), strict=True)
        for one, other in pairs:
            assert_close(one, other)


def assert_close(one: Any, other: Any) -> None:
    """Equal to the rounding of float32, as a share of the largest."""
    first, second = np.asarray(one), np.asarray(other)
    assert (first.dtype, first.shape) == (second.dtype, second.shape)
    assert np.isfinite(first).all()
    difference = np.abs(first.astype(np.float64) - second.astype(np.float64)).max(initial=0)
    assert difference <= LIMIT * np.abs(first.astype(np.float64)).max(initial=0)


def feeds(proto: ModelProto) -> Iterator[dict[str, Any]]:
    """Random numbers, with every combination of the Boolean inputs."""
    flags = [v.name for v in proto.graph.input if v.type.tensor_type.elem_type == TensorProto.BOOL]
    for choice in product((False, True), repeat=len(flags)):
        chosen = {name: np.array(flag) for name, flag in zip(flags, choice, strict=True)}
        yield {**random_feeds(proto), **chosen}


def _exposing(proto: ModelProto, names: list[str]) -> ModelProto:
    new = ModelProto()
    new.CopyFrom(proto)
    new.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return new
