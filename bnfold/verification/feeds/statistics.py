"""Inputs that let the first BatchNormalization see what its running statistics describe.

Trained networks expect inputs of a certain mean and scale: pixels from 0 to 255, say. With standard normal numbers
instead, what reaches a BatchNormalization lies far from its running mean, ReLUs are all open or all shut, and a wrong
fold may not show. So one kind of trial draws z standard normal and feeds

    x = m + s z

with one m and one s for all float inputs that the first BatchNormalization depends on. What lies before it is taken
for affine in x (it is: a Conv, perhaps behind some preprocessing), run for x = 0, 1, z, and then, with d_c = mean of
map c at 1 less that at 0, and v_c = variance of map c at z,

    m = least squares of  mean_c(0) + m d_c = running_mean_c,  each map weighted by 1 / running_var_c
    s = median over c of sqrt(running_var_c / v_c)

Where it is not affine the inputs are less apt, and no less valid. Running statistics: Ioffe & Szegedy 2015, Alg. 2.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from bnfold.affine import Float64Array
from bnfold.errors import BnfoldError
from bnfold.external import TrustedFolder, read_external
from bnfold.nodes import ONNX_DOMAINS, may_nest
from bnfold.relocated import Relocated
from bnfold.rounding import FLOAT_TYPES, round_once, to_float64
from bnfold.tensors import is_external
from bnfold.verification.feeds.spec import Feeds
from bnfold.verification.providers import Provider
from bnfold.verification.runtime import DEFAULT, CannotRunError, Model, OrtRunner, Settings, load_graph

_LONGEST = 24  # nodes before the first BatchNormalization; more are no preprocessing
_LARGEST = 1e6  # of mean and scale


class _Start(NamedTuple):
    """What lies before the first BatchNormalization, its inputs among the model's, and the statistics (C,)."""

    value: str
    nodes: list[NodeProto]
    inputs: list[str]
    mean: Float64Array
    var: Float64Array


def follow_statistics(
    model: Model, feeds: Feeds, provider: Provider, settings: Settings = DEFAULT
) -> dict[str, tuple[float, float]]:
    """Mean and scale, by name, of the float inputs that the first BatchNormalization depends on.

    Empty where there is none, where too much lies before it, or where it cannot be run alone.

    Args:
        model: the original.
        feeds: all its inputs; the floats standard normal.
        provider: where to run.
        settings: of the session.
    """
    try:
        proto = load_graph(model)
        start = _first(proto, _folder(model))
        if start is None:
            return {}
        floats = [n for n in start.inputs if isinstance(feeds.get(n), np.ndarray) and feeds[n].dtype in FLOAT_TYPES]
        if not floats or any(name not in feeds for name in start.inputs):
            return {}
        runner = OrtRunner(_cut(proto, start, model), provider, settings)
        given = {name: feeds[name] for name in start.inputs}
        found = [
            to_float64(runner.run(given | {name: change(feeds[name]) for name in floats})[0])
            for change in (np.zeros_like, np.ones_like, np.asarray)
        ]
    except (BnfoldError, CannotRunError, TypeError, ValueError):
        return {}
    solved = _solve(found, start)
    return dict.fromkeys(floats, solved) if solved is not None else {}


def _folder(model: Model) -> Path | None:
    if isinstance(model, Path):
        return model.parent
    return model.folder if isinstance(model, Relocated) else None


def _first(proto: ModelProto, folder: Path | None) -> _Start | None:
    """The first BatchNormalization in the order of the file, and what it depends on."""
    node = next((n for n in proto.graph.node if n.op_type == "BatchNormalization" and n.domain in ONNX_DOMAINS), None)
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    if node is None or not set(node.input[3:5]) <= held.keys():
        return None
    nodes = _before(proto.graph, node.input[0])
    if nodes is None:
        return None
    read = {name for n in nodes for name in n.input} | {node.input[0]}
    inputs = [value.name for value in proto.graph.input if value.name in read and value.name not in held]
    mean, var = (_numbers(held[name], folder) for name in node.input[3:5])
    epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
    return _Start(node.input[0], nodes, inputs, mean, var + epsilon)


def _before(graph: GraphProto, value: str) -> list[NodeProto] | None:
    """The nodes that make `value`, in the order of the file; None where they are too many or hold graphs."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    found: set[int] = set()
    open_ = [value]
    while open_:
        index = makers.get(open_.pop())
        if index is None or index in found:
            continue
        found.add(index)
        if len(found) > _LONGEST or may_nest(graph.node[index]):
            return None
        open_ += graph.node[index].input
    return [graph.node[index] for index in sorted(found)]


def _numbers(tensor: TensorProto, folder: Path | None) -> Float64Array:
    if is_external(tensor):
        bare = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
        bare.raw_data = read_external(tensor, TrustedFolder(folder) if folder is not None else None)
        tensor = bare
    return to_float64(numpy_helper.to_array(tensor))


def _cut(proto: ModelProto, start: _Start, model: Model) -> Model:
    """A model of the nodes before the BatchNormalization alone."""
    whole, output = proto.graph, f"{start.value}_is_seen"
    names = {start.value}.union(*(node.input for node in start.nodes))
    last = NodeProto(op_type="Identity", input=[start.value], output=[output])  # the value may be an input itself
    graph = GraphProto(name="start", node=[*start.nodes, last], output=[ValueInfoProto(name=output)])
    graph.input.extend(v for v in whole.input if v.name in start.inputs)
    graph.initializer.extend(tensor for tensor in whole.initializer if tensor.name in names)
    cut = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    cut.graph.CopyFrom(graph)
    folder = _folder(model)
    data = cut.SerializeToString()
    return data if folder is None else Relocated(data, folder)


def _solve(found: list[Float64Array], start: _Start) -> tuple[float, float] | None:
    """Mean and scale of the inputs, from what they make at 0, at 1 and at standard normal numbers."""
    if any(array.ndim < 2 or array.shape[1] != start.mean.size for array in found):
        return None
    others = tuple(axis for axis in range(found[0].ndim) if axis != 1)
    zero, one = (array.mean(axis=others) for array in found[:2])
    spread = (found[2] - found[0]).var(axis=others)
    change, weight = one - zero, 1 / np.maximum(start.var, 1e-30)
    total = float((weight * change**2).sum())
    mean = float((weight * change * (start.mean - zero)).sum()) / total if total > 0 else 0.0
    alive = (spread > 0) & (start.var > 0)
    if not alive.any():
        return None
    scale = float(np.median(np.sqrt(start.var[alive] / spread[alive])))
    usable = np.isfinite([mean, scale]).all() and abs(mean) < _LARGEST and 0 < scale < _LARGEST
    return (mean, scale) if usable else None


def fits(scaling: Mapping[str, tuple[float, float]], feeds: Feeds) -> bool:
    """Whether all numbers drawn with this scaling are far from the largest that the inputs' types hold."""
    largest = {name: np.asarray(16 * (abs(mean) + 8 * scale)) for name, (mean, scale) in scaling.items()}
    return all(np.isfinite(round_once(number, feeds[name].dtype)) for name, number in largest.items())
