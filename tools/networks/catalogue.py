"""Every model that `tools/make_models.py` can make: its name, its words in models/README.md, its recipe.

`families.py` holds those with BatchNormalizations elsewhere than behind a Conv.
"""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from networks import chain, digits, export, families, from_transformers, keras_like
from networks.densenet import DenseNet
from networks.entry import APACHE, DIGITS, DYNAMO, HUGGING, LEGACY, OURS, Entry, full, noise, plain
from networks.repvgg import RepVGG
from networks.statistics import randomise
from networks.unet import UNet


@cache
def digits_resnet() -> nn.Module:
    """A ResNet of 2 stages with 2 basic layers each, trained on the digits."""
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"}
    model = from_transformers.resnet(0, num_channels=1, num_labels=10, **sizes)
    return digits.train(model, seed=0, epochs=10)


@cache
def digits_mobilenet() -> nn.Module:
    """MobileNetV2 of about a seventh of the width, trained on the digits."""
    sizes = {"image_size": 32, "depth_multiplier": 0.15, "finegrained_output": False}
    model = from_transformers.mobilenet_v2(0, num_channels=1, num_labels=10, classifier_dropout_prob=0.2, **sizes)
    return digits.train(model, seed=0, epochs=20)


def digits_test(path: Path) -> None:
    """The held-out images, ready to feed, and their labels."""
    _, (images, labels) = digits.load_split()
    np.savez_compressed(path, pixel_values=images, labels=labels)


def digits_example() -> torch.Tensor:
    """A few held-out images."""
    return torch.from_numpy(digits.load_split()[1][0][:8])


def levit(path: Path) -> None:
    """LeViT of three stages with two layers each, for 96 x 96 images, the batch size fixed at 1."""
    sizes = {"hidden_sizes": [32, 40, 48], "num_attention_heads": [4, 5, 6], "depths": [2, 2, 2]}
    model = from_transformers.levit(0, image_size=96, key_dim=[8, 8, 8], num_labels=10, **sizes)
    plain(model, path, 96, dynamic_batch=False)


def resnet_opset7(path: Path) -> None:
    """A bottleneck ResNet at opset 7 and IR version 3, where initializers are graph inputs too."""
    sizes = {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 2]}
    model = from_transformers.resnet(0, num_labels=10, **sizes)
    plain(model, path, 64, opset=7, initializers_as_inputs=True)
    proto = onnx.load(path)
    if proto.ir_version != 3 or len(proto.graph.input) != 1 + len(proto.graph.initializer):
        raise RuntimeError(f"{path.name}: not in the form of IR version 3")


def mobilenet_opset9(path: Path) -> None:
    """MobileNetV2 at opset 9; equal parameters of some layers are joined by Identity."""
    sizes = {"image_size": 64, "depth_multiplier": 0.25, "finegrained_output": False, "expand_ratio": 3.0}
    model = from_transformers.mobilenet_v2(0, first_layer_is_expansion=False, num_labels=10, **sizes)
    randomise(model, noise(8, 3, 64, 64), seed=7, keep_affine_every=4)
    export.legacy(model, noise(2, 3, 64, 64), path, opset=9)


def levit_128s(path: Path) -> None:
    """The smallest LeViT of the paper, the batch size fixed at 1."""
    plain(from_transformers.levit(0, num_labels=1000), path, 224, dynamic_batch=False)


def densenet121(path: Path) -> None:
    """DenseNet-121."""
    plain(DenseNet((6, 12, 24, 16), growth=32, width=64, classes=1000), path, 224, input_name="image")


def resnet50_external(path: Path) -> None:
    """ResNet-50 with its tensors in `resnet50_external.onnx.data` beside it."""
    model = from_transformers.resnet(0, num_labels=1000)
    plain(model, path, 224)
    proto = onnx.load(path)
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx appends to a file that is there
    onnx.save(proto, path, save_as_external_data=True, location=data.name, size_threshold=1024)
    export.verify(model, noise(2, 3, 224, 224), path)


SMALL = (
    Entry(
        "digits_resnet.onnx",
        "ResNet, basic layers, trained on digits; opset 17",
        f"{HUGGING}; {LEGACY}",
        DIGITS,
        lambda path: export.legacy(digits_resnet(), digits_example(), path),
    ),
    Entry(
        "digits_mobilenet.onnx",
        "MobileNetV2, width 0.15, trained on digits; opset 17",
        f"{HUGGING}; {LEGACY}",
        DIGITS,
        lambda path: export.legacy(digits_mobilenet(), digits_example(), path),
    ),
    Entry(
        "digits_resnet_dynamo.onnx",
        "the weights of digits_resnet.onnx; opset 20",
        f"{HUGGING}; {DYNAMO}",
        DIGITS,
        lambda path: export.dynamo(digits_resnet(), digits_example(), path),
    ),
    Entry(
        "digits_mobilenet_dynamo.onnx",
        "the weights of digits_mobilenet.onnx; opset 20",
        f"{HUGGING}; {DYNAMO}",
        DIGITS,
        lambda path: export.dynamo(digits_mobilenet(), digits_example(), path),
    ),
    Entry(
        "digits_test.npz",
        "450 held-out digits: `pixel_values` float32 (450, 1, 32, 32), `labels` int64 (450,)",
        "UCI optical digits (Alpaydin & Kaynak), the copy in scikit-learn; enlarged by repeating pixels",
        "CC BY 4.0",
        digits_test,
    ),
    Entry(
        "unet.onnx",
        "U-Net: BatchNormalization behind ConvTranspose",
        f"{OURS} after Ronneberger et al. 2015; {LEGACY}",
        APACHE,
        lambda path: plain(UNet(), path, 32, input_name="image"),
    ),
    Entry(
        "densenet.onnx",
        "DenseNet-BC: pre-activation BatchNormalization",
        f"{OURS} after Huang et al. 2017; {LEGACY}",
        APACHE,
        lambda path: plain(DenseNet(), path, 64, input_name="image"),
    ),
    Entry(
        "levit.onnx",
        "LeViT: Linear and BatchNormalization on (tokens, features); batch fixed at 1",
        f"{HUGGING}; {LEGACY}",
        APACHE,
        levit,
    ),
    Entry(
        "repvgg.onnx",
        "RepVGG at training time: 3x3, 1x1 and identity branches",
        f"{OURS} after Ding et al. 2021; {LEGACY}",
        APACHE,
        lambda path: plain(RepVGG(), path, 32, input_name="image"),
    ),
    Entry(
        "keras_like.onnx",
        "BatchNormalization decomposed into Mul and Add, NCHW and NHWC; opset 13",
        f"{OURS}, written by onnx.helper as tf2onnx writes",
        APACHE,
        keras_like.write,
    ),
    Entry(
        "resnet_opset7_ir3.onnx",
        "ResNet, bottleneck layers; opset 7, IR version 3, initializers are graph inputs",
        f"{HUGGING}; {LEGACY}",
        APACHE,
        resnet_opset7,
    ),
    Entry(
        "mobilenet_opset9.onnx",
        "MobileNetV2; opset 9, equal parameters shared through Identity",
        f"{HUGGING}; {LEGACY}",
        APACHE,
        mobilenet_opset9,
    ),
    *families.SMALL,
)


FULL = (
    full("resnet50.onnx", "ResNet-50", lambda p: plain(from_transformers.resnet(0, num_labels=1000), p, 224)),
    full("resnet50_external.onnx", "ResNet-50 with external data", resnet50_external),
    full(
        "mobilenet_v2.onnx",
        "MobileNetV2 1.0",
        lambda p: plain(from_transformers.mobilenet_v2(0, num_labels=1000), p, 224),
    ),
    full("levit_128s.onnx", "LeViT-128S", levit_128s),
    full("densenet121.onnx", "DenseNet-121", densenet121),
    full("unet_full.onnx", "U-Net of 4 levels, width 64", lambda p: plain(UNet(64, 4), p, 256)),
    full("chain2000.onnx", "2,000 pairs of Conv and BatchNormalization", lambda p: chain.write(p, 2000)),
    full("chain20000.onnx", "20,000 pairs of Conv and BatchNormalization", lambda p: chain.write(p, 20000)),
    *families.FULL,
)
