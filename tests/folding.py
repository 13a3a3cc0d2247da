"""Graphs from lines of ONNX text, and one check that holds every fold to all the promises that can be run.

Beside ONNX's own syntax, `n = BN <maps = 4> (x)` is a BatchNormalization with random parameters of its own, some
gamma negative. Tensors are arrays, or tuples: a shape, to be filled with random numbers.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

import bnfold
from bnfold.api import FoldResult
from tests.conftest import model, ops, random_feeds, run, tensor

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
GROWING = ("clone_shared", "partial")


def rng_of(name: str) -> np.random.Generator:
    """The same numbers for the same name in every run."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def numbers(name: str, value: Any, dtype: Any) -> TensorProto:
    """A tensor of random numbers for a shape (a tuple), else of the numbers given; integers keep their type."""
    if isinstance(value, TensorProto):
        return value
    if isinstance(value, tuple):
        return tensor(name, rng_of(name).normal(size=value), dtype)
    array = np.asarray(value)
    return tensor(name, array, array.dtype if array.dtype.kind in "iu" else dtype)


def statistics(prefix: str, maps: int, dtype: Any) -> list[TensorProto]:
    """gamma, beta, mean, var: the first gamma is negative, and none is near 1."""
    rng = rng_of(prefix)
    gamma = rng.uniform(0.5, 2, maps) * rng.choice([-1, 1], maps)
    gamma[0] = -1.5
    values = (gamma, rng.normal(size=maps), rng.normal(size=maps), rng.uniform(0.2, 3, maps))
    return [tensor(prefix + n, v, dtype) for n, v in zip((".g", ".b", ".m", ".v"), values, strict=True)]


def graph(
    text: str, x: Sequence[Any] = (2, 4, 6, 6), *, opset: int = 17, ir_version: int = 8, dtype: Any = np.float32,
    outputs: Sequence[str] = ("y",), inputs: dict[str, Sequence[Any]] | None = None, y: Sequence[Any] | None = None,
    **tensors: Any,
) -> ModelProto:  # fmt: skip
    """A model of the nodes in `text`, one a line; an underscore at the end of a tensor's keyword does not count."""
    nodes: list[NodeProto] = []
    held = [numbers(name, value, dtype) for name, value in tensors.items()]
    for line in filter(str.strip, text.splitlines()):
        node = onnx.parser.parse_node(line.strip().replace("<>", ""))
        if node.op_type == "BN":
            maps = next(a.i for a in node.attribute if a.name == "maps")
            kept = [a for a in node.attribute if a.name != "maps"]
            made = statistics(node.output[0], maps, dtype)
            del node.attribute[:]
            node.attribute.extend(kept)
            node.op_type = "BatchNormalization"
            node.input.extend(t.name for t in made)
            held += made
        nodes.append(node)
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = model(nodes, held, x, y, opset=opset, ir_version=ir_version, elem_type=elem, outputs=outputs)
    for name, shape in (inputs or {}).items():
        proto.graph.input.append(helper.make_tensor_value_info(name, elem, list(shape)))
    if any(node.domain == "com.microsoft" for node in nodes):
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto if y is not None else _with_output_shapes(proto)


def _with_output_shapes(proto: ModelProto) -> ModelProto:
    """The outputs with the shapes that onnx infers, where it does: its checker asks for them."""
    inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(proto).graph.output}
    for value in proto.graph.output:
        if inferred[value.name].type.tensor_type.HasField("shape"):
            value.CopyFrom(inferred[value.name])
    return proto


def is_valid(proto: ModelProto) -> bool:
    """Whether onnx's checker, shape inference included, has nothing to say."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def fold(proto: ModelProto, **options: Any) -> FoldResult:
    """Without verification: the tests compare for themselves."""
    return bnfold.fold(proto, verify=False, **options)


def check(
    proto: ModelProto, *, folded: int = 1, left: Iterable[str] = (), nodes: str | None = None, limit: float = 2e-6,
    runs: bool = True, **options: Any,
) -> FoldResult:  # fmt: skip
    """Fold, and hold the result to the promises; `nodes` are the operators left, `left` the codes of those that stay.

    Outputs and every value of the same name agree; the model given is not touched; a second fold changes nothing;
    no path is longer and no linear operator more, unless a flag asks; where nothing folds no byte changes.
    """
    given = proto.SerializeToString(deterministic=True)
    result = fold(proto, **options)
    after = result.model
    assert proto.SerializeToString(deterministic=True) == given
    assert (len(result.folded), [site.code for site in result.refused]) == (folded, list(left)), _told(result)
    assert all(site.message for site in result.refused)
    if nodes is not None:
        assert " ".join(ops(after)) == nodes
    if not folded:
        assert after.SerializeToString(deterministic=True) == given
        return result
    assert is_valid(after) or not is_valid(proto)
    held = {t.name: t for t in proto.graph.initializer}
    assert all(held.get(t.name, t) == t for t in after.graph.initializer)
    assert [v.name for v in after.graph.output] == [v.name for v in proto.graph.output]
    again = fold(after, **options)
    assert not again.folded, _told(again)
    assert again.model.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)
    if not any(options.get(flag) for flag in GROWING):
        before = longest_paths(proto.graph)
        assert all(length <= before[name] for name, length in longest_paths(after.graph).items())
        assert sum(map(ops(after).count, LINEAR)) <= sum(map(ops(proto).count, LINEAR))
    if runs:
        assert_same_values(proto, after, limit)
    return result


def assert_same_values(before: ModelProto, after: ModelProto, limit: float = 2e-6) -> None:
    """Every value that has the same name in both models is the same, to `limit` of its scale."""
    made = [[name for node in proto.graph.node for name in node.output if name] for proto in (before, after)]
    constant = {name for proto in (before, after) for node in proto.graph.node
                if node.op_type == "Constant" for name in node.output}  # fmt: skip
    shared = [name for name in made[0] if name in set(made[1]) - constant]
    feeds = random_feeds(before)
    first, second = (run(_exposing(proto, shared), feeds) for proto in (before, after))
    names = [*(v.name for v in before.graph.output), *_hidden(before, shared)]
    for name, old, new in zip(names, first, second, strict=True):
        assert (old.dtype, old.shape) == (new.dtype, new.shape), name
        one, other = (np.asarray(v).astype(np.float64) for v in (old, new))
        assert np.isfinite(one).all(), name
        scale = np.abs(one).max(initial=0)
        assert np.abs(one - other).max(initial=0) <= limit * scale, (name, np.abs(one - other).max(), scale)


def _hidden(proto: ModelProto, names: Sequence[str]) -> list[str]:
    public = {v.name for v in proto.graph.output}
    return [name for name in names if name not in public]


def _exposing(proto: ModelProto, names: Sequence[str]) -> ModelProto:
    new = ModelProto()
    new.CopyFrom(proto)
    new.graph.output.extend(ValueInfoProto(name=name) for name in _hidden(proto, names))
    return new


def longest_paths(graph_: GraphProto) -> dict[str, int]:
    """For each output of the main graph the most nodes on a path to it; what computes constants does not count."""
    depth: Counter[str] = Counter()
    constant = {t.name for t in graph_.initializer}
    for node in graph_.node:
        read = [name for name in node.input if name]
        if node.op_type == "Constant" or (read and constant.issuperset(read)):
            constant.update(node.output)
            continue
        for name in node.output:
            depth[name] = 1 + max((depth[i] for i in read), default=0)
    return {value.name: depth[value.name] for value in graph_.output}


def _told(result: FoldResult) -> str:
    return "; ".join(f"{s.site}: {s.outcome} {s.direction or ''} {s.code or ''} {s.message or ''}"
                     for s in result.report.sites)  # fmt: skip
