"""ResNet with frozen BatchNormalization, as detection networks (DETR, torchvision) have it, on four export paths.

What it brings: no BatchNormalization node at all. The frozen layer computes x * scale + bias, so each arrives as
Mul and Add. Their constants are initializers where the exporter computes them, else the output of a dozen
nodes (Reshape, Add, Sqrt, Div, Mul, Sub) on four initializers.
"""

from pathlib import Path
from typing import Any

import onnx
from torch import nn
from torch.onnx import TrainingMode

from networks import export, from_transformers
from networks.entry import noise
from networks.statistics import randomise

SIZE = 32
# Narrow, but with the 3 + 4 + 6 + 3 layers of ResNet-50: 1 + 3 * 16 + 4 = 53 frozen layers.
NARROW = {"embedding_size": 4, "hidden_sizes": [8, 8, 16, 16], "depths": [3, 4, 6, 3], "num_labels": 10}
SHORT = {
    "resnet/": "",
    "resnet.": "",
    "encoder/stages.": "s",
    "encoder.stages.": "s",
    "layers.": "l",
    "layer.": "c",
    "embedder/": "",
    "embedder.embedder.": "embedder.",
    "normalization": "norm",
    "convolution": "conv",
}
ALL_METADATA = (*export.DROPPED, "pkg.torch.onnx.fx_node", "pkg.torch.onnx.name_scopes")


def network(size: int = SIZE, **sizes: Any) -> nn.Module:
    """The ResNet, its statistics drawn as ever and then frozen; without sizes it is ResNet-50."""
    model = from_transformers.resnet(0, **sizes)
    randomise(model, noise(8, 3, size, size), seed=7)
    return from_transformers.frozen(model)


def legacy(path: Path, *, fold_constants: bool) -> None:
    """By the legacy exporter."""
    options: dict[str, Any] = {"training": TrainingMode.EVAL, "fold_constants": fold_constants}
    model, images = network(**NARROW), noise(2, 3, SIZE, SIZE)
    export.legacy(model, images, path, **options)
    shorten(path)
    export.verify(model, images, path)


def dynamo(path: Path, *, optimize: bool) -> None:
    """By the dynamo exporter; without its notes, which would be most of the file."""
    model, images = network(**NARROW), noise(2, 3, SIZE, SIZE)
    export.dynamo(model, images, path, optimize=optimize, dropped=ALL_METADATA)
    shorten(path)
    export.verify(model, images, path)


def shorten(path: Path) -> None:
    """Abbreviate the modules in all names, and drop the shapes of values between: together half of the file."""
    proto = onnx.load(path)
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        node.name = _short(node.name)
        node.input[:] = [_short(name) for name in node.input]
        node.output[:] = [_short(name) for name in node.output]
    for tensor in proto.graph.initializer:
        tensor.name = _short(tensor.name)
    onnx.save(proto, path)


def resnet50(path: Path) -> None:
    """ResNet-50 itself, by the legacy exporter."""
    export.legacy(network(224, num_labels=1000), noise(2, 3, 224, 224), path, training=TrainingMode.EVAL)


def _short(name: str) -> str:
    """`name` with the modules' names abbreviated."""
    for long, short in SHORT.items():
        name = name.replace(long, short)
    return name
