"""Networks whose definitions come from the transformers library (Apache-2.0); only the sizes are ours.

Weights are drawn after `torch.manual_seed`, nothing is downloaded.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    LevitConfig,
    LevitForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)


def resnet(seed: int, **sizes: Any) -> nn.Module:
    """ResNet (He et al. 2016); without sizes it is ResNet-50."""
    torch.manual_seed(seed)
    return ResNetForImageClassification(ResNetConfig(return_dict=False, **sizes))


def mobilenet_v2(seed: int, **sizes: Any) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018); without sizes it is the 1.0 network for 224 x 224 images.

    `tf_padding=False`: Conv pads by itself, so that no Pad node comes before it.
    """
    torch.manual_seed(seed)
    config = MobileNetV2Config(return_dict=False, tf_padding=False, **sizes)
    return MobileNetV2ForImageClassification(config)


def levit(seed: int, **sizes: Any) -> nn.Module:
    """LeViT (Graham et al. 2021); without sizes it is LeViT-128S."""
    torch.manual_seed(seed)
    return LevitForImageClassification(LevitConfig(return_dict=False, **sizes))
