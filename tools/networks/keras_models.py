"""MobileNetV2, EfficientNetB0 and DenseNet121 as tf2onnx writes Keras 3's models, but narrow.

Keras 3 computes a BatchNormalization as x * inv + (beta - mean * inv), so no such node reaches ONNX. The
converter's own passes merge the constants into plain Convs, but not into depthwise ones:

    MobileNetV2     Conv (depthwise) -> Mul -> Add -> Clip              NCHW, constants (1, C, 1, 1)
    EfficientNetB0  Conv (depthwise) -> Transpose -> Sub -> Mul -> Add  NHWC, constants (C,)
                    Mul -> Sub -> Div -> Transpose -> Conv (padded)     the preprocessing layers
    DenseNet121     Conv -> Transpose -> Mul -> Add -> Relu             NHWC, constants (1, 1, 1, C), no pass has run
                    Concat -> Mul -> Add -> Relu                        pre-activation

Architectures after Sandler et al. (2018), Tan & Le (2019), Huang et al. (2017); node names as Keras' layers.
"""

from pathlib import Path

from networks.keras_layers import (
    biased,
    classify,
    depthwise,
    halve,
    mobile_block,
    nhwc_conv,
    norm_relu,
    preprocess,
    swish,
    write_model,
)
from networks.keras_like import NCHW, NHWC, Builder

# expansion, maps, layers, stride of the first
MOBILENET = ((1, 4, 1, 1), (6, 4, 2, 2), (6, 6, 3, 2), (6, 6, 4, 2), (6, 8, 3, 1), (6, 8, 3, 2), (6, 12, 1, 1))
# expansion, maps, layers, stride of the first, kernel
EFFICIENTNET = (
    (1, 4, 1, 1, 3),
    (6, 4, 2, 2, 3),
    (6, 4, 2, 2, 5),
    (6, 4, 3, 2, 3),
    (6, 4, 3, 1, 5),
    (6, 6, 4, 2, 5),
    (6, 6, 1, 1, 3),
)
DENSENET = (3, 6, 12, 8)  # half of the layers


def mobilenet_v2(path: Path) -> None:
    """Seventeen bottlenecks, the depthwise Conv of each with its Mul and Add."""
    b = Builder(seed=21)
    x = b.node("Transpose", "transpose_in", "input_1", perm=NCHW)
    x = b.clip6("Conv1_relu", biased(b, "Conv1", x, (3, 8), 3, 2))
    inputs, block = 8, 0
    for expansion, maps, layers, first in MOBILENET:
        for layer in range(layers):
            name, stride, wide = f"block_{block}", 1 if layer else first, inputs * expansion
            y = x
            if expansion > 1:
                y = b.clip6(f"{name}_expand_relu", biased(b, f"{name}_expand", y, (inputs, wide), 1))
            y = depthwise(b, f"{name}_depthwise", y, wide, 3, stride)
            y = b.mul_add(f"{name}_depthwise_BN/batchnorm", y, (1, wide, 1, 1))
            y = biased(b, f"{name}_project", b.clip6(f"{name}_depthwise_relu", y), (wide, maps), 1)
            x = b.node("Add", f"{name}_add", x, y) if layer else y
            inputs, block = maps, block + 1
    x = b.clip6("out_relu", biased(b, "Conv_1", x, (inputs, 32), 1))
    classify(b, x, 32, [2, 3])
    write_model(b, path)


def efficientnet_b0(path: Path) -> None:
    """Preprocessing in the graph, sixteen blocks with squeeze-and-excitation, swish everywhere."""
    b = Builder(seed=22)
    x = preprocess(b, "input_1")
    x = swish(b, "stem_activation", biased(b, "stem_conv", x, (3, 4), 3, 2))
    inputs, block = 4, 0
    for expansion, maps, layers, first, kernel in EFFICIENTNET:
        for layer in range(layers):
            name, stride = f"block{block}", 1 if layer else first
            y = mobile_block(b, name, x, (inputs, inputs * expansion, maps), kernel, stride)
            x = b.node("Add", f"{name}_add", y, x) if layer else y
            inputs, block = maps, block + 1
    x = swish(b, "top_activation", biased(b, "top_conv", x, (inputs, 32), 1))
    classify(b, x, 32, [2, 3])
    write_model(b, path)


def densenet121(path: Path) -> None:
    """Half of DenseNet121's 58 layers of two Convs; every value is NHWC, every Conv stands between two Transposes."""
    b = Builder(seed=23)
    width = 4
    x = norm_relu(b, "conv1", nhwc_conv(b, "conv1/conv", "input_1", (3, width), 7, 2), width)
    x = b.node("Transpose", "pool1/to_nchw", x, perm=NCHW)
    x = b.node("MaxPool", "pool1", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = b.node("Transpose", "pool1/to_nhwc", x, perm=NHWC)
    for stage, layers in enumerate(DENSENET):
        if stage:
            name = f"pool{stage + 1}"
            x = nhwc_conv(b, f"{name}_conv", norm_relu(b, name, x, width), (width, width // 2), 1)
            x, width = halve(b, f"{name}_pool", x), width // 2
        for layer in range(layers):
            name = f"conv{stage + 2}_block{layer + 1}"
            y = nhwc_conv(b, f"{name}_1_conv", norm_relu(b, f"{name}_0", x, width), (width, 4), 1)
            y = nhwc_conv(b, f"{name}_2_conv", norm_relu(b, f"{name}_1", y, 4), (4, 2), 3)
            x, width = b.node("Concat", f"{name}_concat", x, y, axis=3), width + 2
    classify(b, norm_relu(b, "bn", x, width), width, [1, 2])
    write_model(b, path)
