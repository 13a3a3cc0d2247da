"""The part of the catalogue where BatchNormalizations stand elsewhere than behind a Conv, or are no such nodes."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from networks import export, from_transformers, frozen, keras_models
from networks.dpn import DPN
from networks.efficientvit import EfficientViT
from networks.entry import APACHE, HUGGING, LEGACY, OURS, Entry, full, noise, plain
from networks.fastvit import FastViT
from networks.mobilenet_v3 import MobileNetV3
from networks.mobileone import MobileOne
from networks.pre_activation import PyramidNet, ResNetV2
from networks.repghost import RepGhostNet
from networks.repvgg import RepVGG
from networks.repvit import RepViT
from networks.shufflenet import ShuffleNetV2
from networks.visformer import Visformer

A0_DEPTHS = (1, 2, 4, 14, 1)  # RepVGG-A0: the stem is a stage of one block
S0 = {"stem": 48, "widths": (48, 128, 256, 1024), "depths": (2, 8, 10, 1), "branches": 4}  # MobileOne-S0
KERAS = f"{OURS}, written by onnx.helper as tf2onnx writes Keras 3"


def tokens(length: int, vocabulary: int, seed: int = 1) -> torch.Tensor:
    """Two random sentences."""
    return torch.randint(0, vocabulary, (2, length), generator=torch.Generator().manual_seed(seed))


def bert(path: Path, opset: int) -> None:
    """BERT of two layers for sentences of 12 words."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    model = from_transformers.bert(0, vocab_size=60, max_position_embeddings=16, **sizes)
    export.legacy(model, tokens(12, 60), path, opset=opset, input_name="input_ids")


def bert_base_2(path: Path) -> None:
    """Two layers of BERT-base for sentences of 128 words."""
    model = from_transformers.bert(0, num_hidden_layers=2)
    export.legacy(model, tokens(128, 30522), path, input_name="input_ids")


def vit(path: Path, opset: int) -> None:
    """ViT of two layers for 32 x 32 images of 16 patches."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    model = from_transformers.vit(0, image_size=32, patch_size=8, num_labels=10, **sizes)
    export.legacy(model, noise(2, 3, 32, 32), path, opset=opset)


def transformer(name: str, what: str, write: Callable[[Path], None]) -> Entry:
    """A model whose definition is the transformers library's, by the legacy exporter."""
    return Entry(name, what, f"{HUGGING}; {LEGACY}", APACHE, write)


def frozen_resnet(name: str, how: str, write: Callable[[Path], None]) -> Entry:
    """One of the export paths of the frozen ResNet."""
    what = "ResNet with the depth of ResNet-50 and DETR's frozen BatchNorm"
    return Entry(name, what, f"{HUGGING}; torch.onnx.export, {how}", APACHE, write)


def ours(name: str, what: str, source: str, make: Callable[[], nn.Module], size: int) -> Entry:
    """A model that was written for this project after a paper, by the legacy exporter."""

    def write(path: Path) -> None:
        torch.manual_seed(0)
        plain(make(), path, size, input_name="image")

    return Entry(name, what, f"{OURS} after {source}; {LEGACY}", APACHE, write)


SMALL = (
    frozen_resnet("frozen_legacy.onnx", "legacy, EVAL", lambda p: frozen.legacy(p, fold_constants=True)),
    frozen_resnet(
        "frozen_legacy_unfolded.onnx",
        "legacy, EVAL, do_constant_folding=False",
        lambda p: frozen.legacy(p, fold_constants=False),
    ),
    frozen_resnet("frozen_dynamo.onnx", "dynamo, optimize=False", lambda p: frozen.dynamo(p, optimize=False)),
    frozen_resnet("frozen_dynamo_optimized.onnx", "dynamo", lambda p: frozen.dynamo(p, optimize=True)),
    ours(
        "repvgg_a0.onnx",
        "RepVGG with the blocks of A0 at training time",
        "Ding et al. 2021",
        lambda: RepVGG((4, 4, 6, 6, 12), A0_DEPTHS, groups=1),
        64,
    ),
    ours("mobileone.onnx", "MobileOne at training time", "Vasu et al. 2023", MobileOne, 32),
    ours("fastvit.onnx", "FastViT at training time: RepMixer, layer scales", "Vasu et al. 2023", FastViT, 32),
    ours("repvit.onnx", "RepViT: BatchNorm1d before two Linears", "Wang et al. 2024", RepViT, 32),
    ours("repghost.onnx", "RepGhostNet at training time", "Chen et al. 2022", RepGhostNet, 32),
    ours("efficientvit.onnx", "EfficientViT: BatchNorm1d before Linear", "Liu et al. 2023", EfficientViT, 32),
    ours("visformer.onnx", "Visformer: BatchNormalization before 1x1 Conv", "Chen et al. 2021", Visformer, 32),
    ours("resnet_v2.onnx", "ResNetV2: BatchNormalization behind Add, before ReLU", "He et al. 2016", ResNetV2, 32),
    ours("pyramidnet.onnx", "PyramidNet: BatchNormalization before padded Conv", "Han et al. 2017", PyramidNet, 32),
    ours("shufflenet.onnx", "ShuffleNetV2: Split and shuffle of the maps", "Ma et al. 2018", ShuffleNetV2, 64),
    ours("dpn.onnx", "Dual path network: Slice, Add and Concat", "Chen et al. 2017", DPN, 32),
    ours(
        "mobilenet_v3.onnx",
        "MobileNetV3: HardSwish and HardSigmoid",
        "Howard et al. 2019",
        lambda: MobileNetV3(decomposed=False),
        32,
    ),
    ours(
        "mobilenet_v3_decomposed.onnx",
        "MobileNetV3, its hard functions as Add, Clip, Mul and Div",
        "Howard et al. 2019",
        lambda: MobileNetV3(decomposed=True),
        32,
    ),
    transformer("bert.onnx", "BERT, 2 layers; opset 14: LayerNorm and GELU decomposed", lambda p: bert(p, 14)),
    transformer("bert_opset17.onnx", "BERT, 2 layers; LayerNormalization, GELU decomposed", lambda p: bert(p, 17)),
    transformer("vit.onnx", "ViT, 2 layers; opset 14: LayerNorm and GELU decomposed", lambda p: vit(p, 14)),
    transformer("vit_opset17.onnx", "ViT, 2 layers; LayerNormalization, GELU decomposed", lambda p: vit(p, 17)),
    Entry(
        "keras_mobilenet_v2.onnx",
        "MobileNetV2: Mul and Add behind depthwise Convs, NCHW; opset 15",
        KERAS,
        APACHE,
        keras_models.mobilenet_v2,
    ),
    Entry(
        "keras_efficientnet_b0.onnx",
        "EfficientNetB0: Sub, Mul and Add behind depthwise Convs, NHWC; input normalised in the graph; opset 15",
        KERAS,
        APACHE,
        keras_models.efficientnet_b0,
    ),
    Entry(
        "keras_densenet121.onnx",
        "DenseNet121: every BatchNormalization is Mul and Add, NHWC; opset 15",
        KERAS,
        APACHE,
        keras_models.densenet121,
    ),
)

FULL = (
    full("frozen_resnet50.onnx", "ResNet-50 with frozen BatchNorm", frozen.resnet50),
    full(
        "repvgg_a0_full.onnx",
        "RepVGG-A0 at training time",
        lambda p: plain(RepVGG((48, 48, 96, 192, 1280), A0_DEPTHS, 1000, groups=1), p, 224),
    ),
    full(
        "shufflenet_v2.onnx",
        "ShuffleNetV2 1.0",
        lambda p: plain(ShuffleNetV2(24, (116, 232, 464), (4, 8, 4), last=1024, classes=1000), p, 224),
    ),
    full("pyramidnet110.onnx", "PyramidNet-110", lambda p: plain(PyramidNet(16, 18, 48 / 54, classes=100), p, 32)),
    full(
        "mobileone_s0.onnx", "MobileOne-S0 at training time", lambda p: plain(MobileOne(**S0, classes=1000), p, 224)
    ),
    full("bert_base_2.onnx", "two layers of BERT-base", bert_base_2),
)
