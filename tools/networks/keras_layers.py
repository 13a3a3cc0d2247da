"""The layers that keras_models.py puts together, each as the nodes tf2onnx writes for it; and the writing itself."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from networks.export import verify_file
from networks.keras_like import NCHW, NHWC, Builder

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as Keras' EfficientNet has them
CLASSES = 10


def biased(b: Builder, name: str, x: str, maps: tuple[int, int], kernel: int, stride: int = 1) -> str:
    """A Conv with a bias, which is what a plain Conv and its normalisation have become."""
    return b.conv(name, x, maps, kernel, stride, bias=True)


def depthwise(b: Builder, name: str, x: str, maps: int, kernel: int, stride: int) -> str:
    """A depthwise Conv without bias."""
    return b.conv(name, x, (maps, maps), kernel, stride, group=maps, bias=False)


def nhwc_conv(b: Builder, name: str, x: str, maps: tuple[int, int], kernel: int, stride: int = 1) -> str:
    """A Conv without bias on an NHWC value, between two Transposes."""
    x = b.node("Transpose", f"{name}/to_nchw", x, perm=NCHW)
    return b.node("Transpose", f"{name}/to_nhwc", b.conv(name, x, maps, kernel, stride, bias=False), perm=NHWC)


def norm_relu(b: Builder, name: str, x: str, maps: int) -> str:
    """Mul and Add by constants of shape (1, 1, 1, maps), and ReLU, on an NHWC value."""
    return b.node("Relu", f"{name}_relu", b.mul_add(f"{name}_bn/batchnorm", x, (1, 1, 1, maps)))


def sub_mul_add(b: Builder, name: str, x: str, maps: int) -> str:
    """(x - mean) * (gamma / sqrt(var + eps)) + beta by constants of shape (maps,), on an NHWC value."""
    gamma, beta, mean, var = b.statistics(maps)
    x = b.node("Sub", f"{name}/sub", x, b.constant(f"model/{name}/mean:0", mean))
    x = b.node("Mul", f"{name}/mul", x, b.constant(f"model/{name}/scale:0", gamma / np.sqrt(var + 1e-3)))
    return b.node("Add", f"{name}/add", x, b.constant(f"model/{name}/beta:0", beta))


def swish(b: Builder, name: str, x: str) -> str:
    """x * sigmoid(x)."""
    return b.node("Mul", f"{name}/mul", x, b.node("Sigmoid", f"{name}/Sigmoid", x))


def halve(b: Builder, name: str, x: str) -> str:
    """2 x 2 average pooling of an NHWC value."""
    x = b.node("Transpose", f"{name}/to_nchw", x, perm=NCHW)
    x = b.node("AveragePool", name, x, kernel_shape=[2, 2], strides=[2, 2])
    return b.node("Transpose", f"{name}/to_nhwc", x, perm=NHWC)


def preprocess(b: Builder, x: str) -> str:
    """Rescaling and Normalization of an NHWC image, then the Transpose to NCHW."""
    x = b.node("Mul", "rescaling/mul", x, b.constant("model/rescaling/scale:0", 1 / 255))
    x = b.node("Sub", "normalization/sub", x, b.constant("model/normalization/mean:0", [[[MEAN]]]))
    x = b.node("Div", "normalization/truediv", x, b.constant("model/normalization/std:0", [[[DEVIATION]]]))
    return b.node("Transpose", "stem_conv/to_nchw", x, perm=NCHW)


def mobile_block(b: Builder, name: str, x: str, maps: tuple[int, int, int], kernel: int, stride: int) -> str:
    """Expansion, depthwise Conv, squeeze-and-excitation, projection; NHWC from the depthwise Conv on."""
    inputs, wide, outputs = maps
    if wide > inputs:
        x = swish(b, f"{name}_expand_activation", biased(b, f"{name}_expand_conv", x, (inputs, wide), 1))
    x = depthwise(b, f"{name}_dwconv", x, wide, kernel, stride)
    x = b.node("Transpose", f"{name}_dwconv/to_nhwc", x, perm=NHWC)
    x = swish(b, f"{name}_activation", sub_mul_add(b, f"{name}_bn/batchnorm", x, wide))
    x = b.node("Mul", f"{name}_se_excite", x, _gate(b, name, x, wide))
    x = b.node("Transpose", f"{name}_project_conv/to_nchw", x, perm=NCHW)
    return biased(b, f"{name}_project_conv", x, (wide, outputs), 1)


def classify(b: Builder, x: str, maps: int, axes: list[int]) -> None:
    """The mean over the locations, a Dense layer, Softmax; the graph's output is called `dense`."""
    x = b.node("ReduceMean", "avg_pool/Mean", x, axes=axes, keepdims=0)
    kernel = b.random.normal(0, maps**-0.5, (maps, CLASSES))
    x = b.node("MatMul", "predictions/MatMul", x, b.constant("model/predictions/kernel:0", kernel))
    bias = b.constant("model/predictions/bias:0", b.random.normal(0, 0.3, CLASSES))
    x = b.node("Add", "predictions/BiasAdd", x, bias)
    b.nodes.append(helper.make_node("Softmax", [x], ["dense"], name="model/predictions/Softmax", axis=-1))


def write_model(b: Builder, path: Path) -> None:
    """Write what `b` holds, for (N, 32, 32, 3) images, at opset 15; the judge is onnx's reference evaluator."""
    batch = "unk__100"
    inputs = [helper.make_tensor_value_info("input_1", onnx.TensorProto.FLOAT, [batch, 32, 32, 3])]
    outputs = [helper.make_tensor_value_info("dense", onnx.TensorProto.FLOAT, [batch, CLASSES])]
    graph = helper.make_graph(b.nodes, path.stem, inputs, outputs, b.constants)
    opsets = [helper.make_opsetid("", 15)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="bnfold-make-models")
    onnx.save(model, path)
    feed = np.random.default_rng(0).normal(0, 1, (2, 32, 32, 3)).astype(np.float32)
    results: Any = ReferenceEvaluator(model).run(None, {"input_1": feed})
    verify_file(path, feed, results[0])


def _gate(b: Builder, name: str, x: str, maps: int) -> str:
    """One number in 0 .. 1 for each map of an NHWC value, from two 1x1 Convs of the means."""
    x = b.node("ReduceMean", f"{name}_se_squeeze/Mean", x, axes=[1, 2], keepdims=1)
    x = b.node("Transpose", f"{name}_se_reduce/to_nchw", x, perm=NCHW)
    x = swish(b, f"{name}_se_activation", biased(b, f"{name}_se_reduce", x, (maps, max(1, maps // 8)), 1))
    x = b.node("Sigmoid", f"{name}_se_gate/Sigmoid", biased(b, f"{name}_se_expand", x, (max(1, maps // 8), maps), 1))
    return b.node("Transpose", f"{name}_se_gate/to_nhwc", x, perm=NHWC)
