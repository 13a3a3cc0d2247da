"""The networks that are folded rightly and wrongly: small, each for one family of folds."""

import functools

import numpy as np
from onnx import ModelProto

from tests.mutations.build import Builder, Network, Site
from tests.mutations.folder import fold


def _block(b: Builder, x: str, maps: int, **given) -> str:
    return b.relu(b.folded(b.conv(x, maps, **given)))


def resnet(name: str = "resnet", dtype=np.float32, seed: int = 1) -> Network:
    """Stem, MaxPool, two residual blocks (the second wider, with stride and a 1x1 shortcut), two outputs."""
    b = Builder((2, 3, 12, 12), dtype=dtype, seed=seed)
    x = _block(b, "x", 8, bias=True)
    x = b.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    left = b.folded(b.conv(_block(b, x, 8), 8, dilations=[2, 2]), epsilon=1e-3)
    x = b.relu(b.node("Add", [left, x]))
    left = b.folded(b.conv(_block(b, x, 12, strides=[2, 2], bias=True), 12))
    right = b.folded(b.conv(x, 12, 1, strides=[2, 2]), epsilon=1e-3)
    x = b.relu(b.node("Add", [left, right]))
    pooled = b.node("Flatten", [b.node("GlobalAveragePool", [x])])
    weights = [b.tensor("fc", b.rng.normal(size=(12, 6)) / 4), b.tensor("fc_bias", b.rng.normal(size=6))]
    scores = b.node("Gemm", [pooled, *weights])
    other = b.node("Gemm", [pooled, b.tensor("fc2", b.rng.normal(size=(12, 6)) / 4), "fc_bias"])
    return b.finish(name, [scores, other])


def depthwise() -> Network:
    """Inverted residuals: 1x1, depthwise 3x3, 1x1 with a skip; Clip as activation."""
    b = Builder((2, 4, 8, 8), seed=2)
    bounds = [b.tensor("low", 0.0), b.tensor("high", 6.0)]
    x = _block(b, "x", 8)
    for _ in range(2):
        wide = b.node("Clip", [b.folded(b.conv(x, 16, 1), epsilon=1e-3), *bounds])
        deep = b.node("Clip", [b.folded(b.conv(wide, 16, group=16, bias=True), epsilon=1e-3), *bounds])
        x = b.node("Add", [b.folded(b.conv(deep, 8, 1), epsilon=1e-3), x])
    x = b.relu(b.folded(b.conv(x, 8, group=2)))
    return b.finish("depthwise", [x])


def transposed() -> Network:
    """A small decoder: ConvTranspose with kernel = stride, with pads and output_padding, grouped, with bias."""
    b = Builder((2, 8, 5, 5), seed=3)
    x = b.relu(b.folded(b.conv_transpose("x", 8, 2, strides=[2, 2])))
    given = {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
    x = b.relu(b.folded(b.conv_transpose(x, 8, 3, group=2, bias=True, **given), epsilon=1e-3))
    x = b.relu(b.folded(b.conv_transpose(x, 8, 3, pads=[1, 1, 1, 1], bias=True)))
    return b.finish("transposed", [_block(b, x, 4)])


def deep() -> Network:
    """Forty layers of Conv, BatchNormalization, Relu."""
    b = Builder((1, 6, 6, 6), seed=4)
    x = "x"
    for layer in range(40):
        x = _block(b, x, 6, bias=layer % 2 == 1)
    return b.finish("deep", [x])


def half() -> Network:
    """The ResNet in float16."""
    return resnet("half", np.float16, seed=5)


def dense() -> Network:
    """Gemm both ways round, with alpha and beta, and MatMul with and without a bias; square throughout."""
    b = Builder((8, 8), seed=6)
    x = "x"
    for transposed_ in (0, 1):
        weights = [b.tensor(f"g{transposed_}", b.rng.normal(size=(8, 8)) / 3)]
        weights.append(b.tensor(f"g{transposed_}_bias", b.rng.normal(size=8)))
        x = b.relu(b.folded(b.node("Gemm", [x, *weights], transB=transposed_, alpha=0.75, beta=1.5)))
    x = b.node("MatMul", [x, b.tensor("m0", b.rng.normal(size=(8, 8)) / 3)])
    x = b.relu(b.folded(x))
    x = b.node("MatMul", [x, b.tensor("m1", b.rng.normal(size=(8, 8)) / 3)])
    core = b.last()
    x = b.node("Add", [x, b.tensor("m1_bias", b.rng.normal(size=8))])
    added = b.last()
    x = b.batchnorm(x, epsilon=1e-3)
    b.sites.append(Site(x, (core,), (b.last(),), added=added))
    return b.finish("dense", [b.relu(x)])


def _before(b: Builder, x: str) -> tuple[str, str]:
    """A BatchNormalization that will go into what reads it: its output, its name."""
    return b.batchnorm(x, epsilon=1e-3), b.last()


def forward() -> Network:
    """BatchNormalization in front of Conv without padding, of a grouped one, and of Gemm; one in front of padding."""
    b = Builder((2, 4, 11, 11), seed=7)
    x = "x"
    for maps, group in ((8, 1), (8, 2)):
        x, name = _before(b, x)
        x = b.conv(x, maps, group=group, pads=[0, 0, 0, 0], bias=group == 1)
        b.sites.append(Site(x, (b.last(),), (name,), side="before"))
        x = b.relu(x)
    x, name = _before(b, x)
    x = b.conv(x, 8)
    b.traps["padding"] = Site(x, (b.last(),), (name,), side="before")
    x = b.node("Flatten", [b.node("GlobalAveragePool", [b.relu(x)])])
    x, name = _before(b, x)
    x = b.node("Gemm", [x, b.tensor("fc", b.rng.normal(size=(8, 8)) / 3), b.tensor("fc_bias", b.rng.normal(size=8))])
    b.sites.append(Site(x, (b.last(),), (name,), side="before"))
    return b.finish("forward", [x])


def decomposed() -> Network:
    """Chains of Mul and Add, and of Sub, Div, Mul, Add, instead of BatchNormalization."""
    b = Builder((2, 4, 8, 8), seed=8)
    x = "x"
    for layer in range(3):
        x = b.conv(x, 8, bias=layer == 1)
        core, count = b.last(), len(b.nodes)
        mean, var = b.statistics(x)
        gamma = b.rng.uniform(0.5, 1.5, 8) * b.rng.choice([-1, 1], 8)
        beta = b.rng.normal(size=8) / 2
        root = np.sqrt(var + 1e-5)
        steps = [("Sub", mean), ("Div", root), ("Mul", gamma), ("Add", beta)]
        if layer == 0:
            steps = [("Mul", gamma / root), ("Add", beta - mean * gamma / root)]
        for op, array in steps:
            x = b.node(op, [x, b.tensor(f"k{len(b.nodes)}", array.reshape(8, 1, 1))])
        b.sites.append(Site(x, (core,), tuple(n.name for n in b.nodes[count:])))
        x = b.relu(x)
    return b.finish("decomposed", [x])


def branches() -> Network:
    """RepVGG blocks, a Concat of two Convs in front of one BatchNormalization, a weight that two Convs share."""
    b = Builder((2, 8, 8, 8), seed=9)
    x = "x"
    for _ in range(2):
        wide, point = b.folded(b.conv(x, 8)), b.folded(b.conv(x, 8, 1))
        x = b.relu(b.node("Add", [b.node("Add", [wide, point]), b.batchnorm(x)]))
    first = b.conv(x, 8)
    one = b.last()
    second = b.conv(x, 8, 1, bias=True)
    other = b.last()
    joined = b.node("Concat", [first, second], axis=1)
    through = b.last()
    x = b.batchnorm(joined)
    b.sites.append(Site(x, (one, other), (b.last(),), (through,)))
    x = _block(b, b.relu(x), 8, kernel=1)
    shared = b.tensor("shared", b.rng.normal(size=(8, 8, 3, 3)) / 8)
    left = b.folded(b.node("Conv", [x, shared], pads=[1, 1, 1, 1]))
    right = b.node("Conv", [b.relu(left), shared], pads=[1, 1, 1, 1])
    return b.finish("branches", [b.node("Add", [left, right])])


def pooled() -> Network:
    """MaxPool and Relu between Conv and BatchNormalization: gamma is negative, so nothing may pass; a dead map."""
    b = Builder((2, 4, 10, 10), seed=10)
    core = b.conv(_block(b, "x", 8), 8)
    name = b.last()
    x = b.node("MaxPool", [core], kernel_shape=[2, 2], strides=[2, 2])
    through = b.last()
    x = b.batchnorm(x)
    b.traps["MaxPool"] = Site(x, (name,), (b.last(),), (through,))
    core = b.conv(x, 8, bias=True)
    name = b.last()
    x = b.relu(core)
    through = b.last()
    x = b.batchnorm(x)
    b.traps["Relu"] = Site(x, (name,), (b.last(),), (through,))
    x = b.relu(b.folded(b.conv(x, 8)))
    weight = b.rng.normal(size=(4, 8, 1, 1))
    weight[:, 2] = 0
    x = b.node("Conv", [x, b.tensor("last", weight), b.tensor("last_bias", b.rng.normal(size=4))])
    return b.finish("pooled", [x], frozen=("last_bias",))


BUILDERS = (resnet, depthwise, transposed, deep, half, dense, forward, decomposed, branches, pooled)
NAMES = tuple(builder.__name__ for builder in BUILDERS)


@functools.cache
def network(name: str) -> Network:
    """The network of that name; built once."""
    return next(builder for builder in BUILDERS if builder.__name__ == name)()


@functools.cache
def right(name: str) -> ModelProto:
    """The network of that name, every site folded in float64."""
    return fold(network(name))
