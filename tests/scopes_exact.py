"""Folded weights of models with nested graphs or functions, bit for bit as float64 arithmetic gives them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx.inliner
from onnx import ModelProto, NodeProto, numpy_helper

from tests.scopes import Scope, inside, scopes


def assert_exact(before: ModelProto, after: ModelProto) -> None:
    """Where one map, directly behind a Conv, went into it, weight and bias are what float64 makes of them."""
    first, second = (_convs(_inlined(proto)) for proto in (before, after))
    assert len(first) == len(second)
    for (scope, node), (other_scope, other) in zip(first, second, strict=True):
        old = [_numbers(scope, name) for name in node.input[1:]]
        new = [_numbers(other_scope, name) for name in other.input[1:]]
        if [_bits(a) for a in old] == [_bits(a) for a in new] or old[0] is None:
            continue
        maps = list(_batchnorms(scope, node.output[0]))
        pushed = any(n.op_type == "BatchNormalization" and node.input[0] in n.output for n in scope.nodes)
        if maps and not pushed:
            wanted = [[_bits(a) for a in _folded(old, *affine)] for affine in maps]
            assert [_bits(a) for a in new if a is not None] in wanted, (node, other)


def _inlined(proto: ModelProto) -> ModelProto:
    """Without functions. The inliner takes no default from a function's attributes: every call gets them first."""
    copy = ModelProto.FromString(proto.SerializeToString())
    functions = {(f.domain, f.name, f.overload): f for f in copy.functions}
    for scope in scopes(copy):
        for node in scope.body.node:
            function = functions.get((node.domain, node.op_type, node.overload))
            given = {attribute.name for attribute in node.attribute}
            defaults = [] if function is None else [a for a in function.attribute_proto if a.name not in given]
            node.attribute.extend(defaults)
    return onnx.inliner.inline_local_functions(copy) if functions else copy


def _convs(proto: ModelProto) -> list[tuple[Scope, NodeProto]]:
    return [(scope, node) for scope in scopes(proto) for node in scope.nodes if node.op_type == "Conv"]


def _numbers(scope: Scope | None, name: str) -> Any:
    """The constant that a name means in this scope; None where it is none."""
    while scope is not None:
        if name in scope.names:
            held = scope.constants.get(name)
            maker = next((n for n in scope.nodes if name in n.output and n.op_type == "Identity"), None)
            if maker is not None:
                return _numbers(scope, maker.input[0])
            return None if held is None else numpy_helper.to_array(held)
        scope = scope.parent
    return None


def _bits(array: Any) -> Any:
    return None if array is None else (array.shape, array.dtype.str, array.tobytes())


def _batchnorms(scope: Scope, value: str) -> Iterator[tuple[Any, Any]]:
    """Scale and shift of the BatchNormalization that reads `value`, of that and the next, and so on."""
    scale, shift = np.float64(1), np.float64(0)
    while True:
        found = [(s, n) for s in _with_deeper(scope) for n in s.nodes
                 if n.op_type == "BatchNormalization" and n.input[0] == value]  # fmt: skip
        if len(found) != 1:
            return
        scope, node = found[0]
        held = [_numbers(scope, name) for name in node.input[1:]]
        if any(array is None for array in held):
            return
        gamma, beta, mean, var = (array.astype(np.float64) for array in held)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), np.float32(1e-5))
        factor = gamma / np.sqrt(var + np.float64(epsilon))
        scale, shift = factor * scale, factor * shift + (beta - factor * mean)
        yield scale, shift
        value = node.output[0]


def _with_deeper(scope: Scope) -> Iterator[Scope]:
    yield scope
    for node in scope.nodes:
        for _, graph in inside(node):
            yield from _with_deeper(Scope((), graph, scope))


def _folded(old: list[Any], scale: Any, shift: Any) -> list[Any]:
    weight = old[0].astype(np.float64) * scale.reshape(-1, *[1] * (old[0].ndim - 1))
    bias = shift if len(old) < 2 or old[1] is None else old[1].astype(np.float64) * scale + shift
    return [weight.astype(old[0].dtype), bias.astype(old[0].dtype)]
