"""A chain of thousands of Conv and BatchNormalization pairs, to measure how time and memory grow with size.

Activations stay finite at any length: with the BatchNormalization's scale multiplied in, a pair's taps have
spectral norms that sum to 0.97, so it shrinks every difference in its input, and its shift is small.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch.nn.functional import batch_norm, conv2d

from networks.export import verify_file

MAPS = 8
SHAPE = (1, MAPS, 8, 8)
GAIN = 0.97

Pair = tuple[NDArray[np.float32], ...]  # weight (8, 8, 3, 3), then gamma, beta, mean, var, each (8,)


def write(path: Path, pairs: int, seed: int = 5) -> None:
    """Write a chain of that many pairs; the judge is torch, pair by pair."""
    random = np.random.default_rng(seed)
    layers = [_pair(random) for _ in range(pairs)]
    onnx.save(_model(layers), path)
    feed = random.normal(0, 1, SHAPE).astype(np.float32)
    verify_file(path, feed, _run(layers, feed))


def _pair(random: np.random.Generator) -> Pair:
    """A weight that mixes maps by a rotation at its centre plus small noise around, and its statistics."""
    effective = random.normal(0, 0.002, (3, 3, MAPS, MAPS))
    effective[1, 1] += np.linalg.qr(random.normal(0, 1, (MAPS, MAPS)))[0]
    effective *= GAIN / np.linalg.norm(effective, ord=2, axis=(2, 3)).sum()
    gamma = random.uniform(0.5, 1.5, MAPS) * random.choice([-1, 1], MAPS)
    var = random.uniform(0.5, 2.0, MAPS)
    beta, mean = random.normal(0, 0.1, MAPS), random.normal(0, 0.1, MAPS)
    scale = gamma / np.sqrt(var + 1e-5)
    weight = effective.transpose(2, 3, 0, 1) / scale[:, None, None, None]
    return tuple(array.astype(np.float32) for array in (weight, gamma, beta, mean, var))


def _model(layers: list[Pair]) -> onnx.ModelProto:
    """Opset 17; pair i is `conv_i`, `bn_i` and their constants."""
    nodes, constants = [], []
    value = "input"
    for i, arrays in enumerate(layers):
        names = [f"{kind}_{i}" for kind in ("weight", "gamma", "beta", "mean", "var")]
        constants += [numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True)]
        conv, norm = f"conv_{i}", f"bn_{i}"
        feeds = [value, names[0]]
        nodes.append(helper.make_node("Conv", feeds, [f"{conv}_out"], name=conv, pads=[1, 1, 1, 1]))
        value = f"{norm}_out" if i + 1 < len(layers) else "output"
        nodes.append(helper.make_node("BatchNormalization", [f"{conv}_out", *names[1:]], [value], name=norm))
    first, last = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, SHAPE) for name in ("input", "output"))
    graph = helper.make_graph(nodes, "chain", [first], [last], constants)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="bnfold-make-models")


def _run(layers: list[Pair], feed: NDArray[np.float32]) -> NDArray[np.float32]:
    """The chain's output by torch."""
    x = torch.from_numpy(feed)
    for arrays in layers:
        weight, gamma, beta, mean, var = map(torch.from_numpy, arrays)
        x = batch_norm(conv2d(x, weight, padding=1), mean, var, gamma, beta, eps=1e-5)
    return x.numpy()
