"""A network as tf2onnx writes a frozen Keras graph, built node by node.

What it brings: BatchNormalizations that are Mul and Add by the time they reach ONNX, with constants of shape
(1, C, 1, 1), or of shape (C,) where a Transpose to NHWC stands before them; and two real BatchNormalizations.

    Conv -> Mul -> Add -> Clip -> depthwise Conv -> Mul -> Add -> Clip      stem
    Conv -> BatchNormalization                                              can be folded
    + (Mul -> Add -> Relu -> Conv -> Mul -> Add -> Relu -> Conv)            pre-activation residual
    BatchNormalization -> Relu                                              stands behind the residual's Add
    Conv -> Transpose -> Mul -> Add -> Relu -> Transpose -> Conv            NHWC island
    ReduceMean -> MatMul -> Add -> Softmax                                  head
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from networks.export import verify_file

NCHW, NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


class Builder:
    """Appends nodes and constants; every method returns the name of the value it made."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: ArrayLike) -> str:
        """An initializer, stored as float32."""
        self.constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        """A node of one output, called `name:0` as TensorFlow calls it."""
        output = f"model/{name}:0"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"model/{name}", **attributes))
        return output

    def conv(
        self,
        name: str,
        x: str,
        maps: tuple[int, int],
        kernel: int,
        stride: int = 1,
        *,
        group: int = 1,
        bias: bool | None = None,
    ) -> str:
        """A Conv as Keras' SAME padding asks for; unless told otherwise depthwise ones (group > 1) have a bias."""
        inputs, outputs = maps
        fan_in = inputs // group * kernel**2
        shape = (outputs, inputs // group, kernel, kernel)
        weight = self.constant(f"model/{name}/ReadVariableOp:0", self.random.normal(0, fan_in**-0.5, shape))
        feeds = [x, weight]
        if group > 1 if bias is None else bias:
            values = self.random.normal(0, 0.3, outputs)
            feeds.append(self.constant(f"model/{name}/BiasAdd/ReadVariableOp:0", values))
        begin = (kernel - stride) // 2 if kernel > stride else 0
        end = max(kernel - stride, 0) - begin
        pads = [begin, begin, end, end]
        spread = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "dilations": [1, 1], "pads": pads}
        return self.node("Conv", name, *feeds, group=group, **spread)

    def mul_add(self, name: str, x: str, shape: tuple[int, ...]) -> str:
        """A decomposed BatchNormalization: x * (gamma / sqrt(var + eps)) + (beta - mean * that)."""
        gamma, beta, mean, var = (array.reshape(shape) for array in self.statistics(int(np.prod(shape))))
        scale = gamma / np.sqrt(var + 1e-3)
        shift = beta - mean * scale
        x = self.node("Mul", f"{name}/mul_1", x, self.constant(f"model/{name}/mul:0", scale))
        return self.node("Add", f"{name}/add_1", x, self.constant(f"model/{name}/sub:0", shift))

    def batch_norm(self, name: str, x: str, maps: int) -> str:
        """A real BatchNormalization node with Keras' epsilon."""
        keys = ("gamma", "beta", "moving_mean", "moving_variance")
        arrays = self.statistics(maps)
        names = [self.constant(f"model/{name}/{k}:0", a) for k, a in zip(keys, arrays, strict=True)]
        return self.node("BatchNormalization", f"{name}/FusedBatchNormV3", x, *names, epsilon=1e-3)

    def clip6(self, name: str, x: str) -> str:
        """ReLU6."""
        low = self.constant(f"model/{name}/min:0", 0.0)
        high = self.constant(f"model/{name}/max:0", 6.0)
        return self.node("Clip", name, x, low, high)

    def statistics(self, maps: int) -> list[NDArray[np.float64]]:
        """Gamma (one zero, one negative), beta, mean and var, each (maps,)."""
        gamma = self.random.uniform(0.5, 1.5, maps)
        gamma[0], gamma[1] = 0, -gamma[1]
        beta, mean = self.random.normal(0, 0.3, maps), self.random.normal(0, 0.3, maps)
        return [gamma, beta, mean, self.random.uniform(0.5, 2.0, maps)]


def build(seed: int = 11) -> onnx.ModelProto:
    """The network: (N, 32, 32, 3) NHWC images to (N, 10) probabilities."""
    b = Builder(seed)
    x = b.node("Transpose", "transpose_in", "input_1", perm=NCHW)
    x = _stem(b, x)
    x = b.batch_norm("project_bn", b.conv("project/Conv2D", x, (16, 24), 1), 24)
    x = b.node("Add", "block/add", x, _residual(b, x))
    x = b.node("Relu", "post/Relu", b.batch_norm("post_bn", x, 24))
    x = _nhwc_island(b, x)
    x = b.node("ReduceMean", "gap/Mean", x, axes=[2, 3], keepdims=0)
    kernel = b.constant("model/dense/MatMul/ReadVariableOp:0", b.random.normal(0, 32**-0.5, (32, 10)))
    bias = b.constant("model/dense/BiasAdd/ReadVariableOp:0", b.random.normal(0, 0.3, 10))
    x = b.node("Add", "dense/BiasAdd", b.node("MatMul", "dense/MatMul", x, kernel), bias)
    b.nodes.append(helper.make_node("Softmax", [x], ["dense"], name="model/dense/Softmax", axis=-1))
    return _model(b)


def write(path: Path) -> None:
    """Write the network; the judge is onnx's reference evaluator."""
    model = build()
    onnx.save(model, path)
    # Below opset 14 the evaluator mixes batch statistics into BatchNormalization. Else 13 and 15 agree here.
    model.opset_import[0].version = 15
    feed = np.random.default_rng(0).normal(0, 1, (2, 32, 32, 3)).astype(np.float32)
    outputs: Any = ReferenceEvaluator(model).run(None, {"input_1": feed})
    verify_file(path, feed, outputs[0])


def _stem(b: Builder, x: str) -> str:
    """A strided Conv and a depthwise one, each with its decomposed BatchNormalization and ReLU6."""
    x = b.mul_add("stem_bn/batchnorm", b.conv("stem/Conv2D", x, (3, 16), 3, 2), (1, 16, 1, 1))
    x = b.clip6("stem_relu/Relu6", x)
    x = b.mul_add("dw_bn/batchnorm", b.conv("dw/depthwise", x, (16, 16), 3, group=16), (1, 16, 1, 1))
    return b.clip6("dw_relu/Relu6", x)


def _residual(b: Builder, x: str) -> str:
    """The branch of a ResNetV2 block: its first Mul reads a value that the shortcut reads too."""
    x = b.node("Relu", "block/pre_relu/Relu", b.mul_add("block/pre_bn/batchnorm", x, (1, 24, 1, 1)))
    x = b.mul_add("block/mid_bn/batchnorm", b.conv("block/conv1/Conv2D", x, (24, 24), 3), (1, 24, 1, 1))
    x = b.node("Relu", "block/mid_relu/Relu", x)
    return b.conv("block/conv2/Conv2D", x, (24, 24), 1)


def _nhwc_island(b: Builder, x: str) -> str:
    """Conv, then a BatchNormalization and ReLU that were left in NHWC between two Transposes, then a Conv."""
    x = b.node("Transpose", "last/to_nhwc", b.conv("last/Conv2D", x, (24, 32), 3, 2), perm=NHWC)
    x = b.node("Relu", "last_relu/Relu", b.mul_add("last_bn/batchnorm", x, (32,)))
    return b.conv("tail/depthwise", b.node("Transpose", "last/to_nchw", x, perm=NCHW), (32, 32), 3, group=32)


def _model(b: Builder) -> onnx.ModelProto:
    """Opset 13, IR version 7, the batch size unknown under tf2onnx's name for it."""
    graph = helper.make_graph(
        b.nodes,
        "tf2onnx_like",
        [helper.make_tensor_value_info("input_1", onnx.TensorProto.FLOAT, ["unk__100", 32, 32, 3])],
        [helper.make_tensor_value_info("dense", onnx.TensorProto.FLOAT, ["unk__101", 10])],
        b.constants,
    )
    opsets = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=7, producer_name="bnfold-make-models")
