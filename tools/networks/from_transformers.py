"""Networks whose definitions come from the transformers library (Apache-2.0); only the sizes are ours.

Weights are drawn after `torch.manual_seed`, nothing is downloaded.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LevitConfig,
    LevitForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.detr.modeling_detr import replace_batch_norm


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


def frozen(model: nn.Module) -> nn.Module:
    """`model` with every BatchNorm2d turned into DETR's DetrFrozenBatchNorm2d, which computes with constants."""
    replace_batch_norm(model)
    return model.eval()


def bert(seed: int, **sizes: Any) -> nn.Module:
    """BERT (Devlin et al. 2019) with a classifier; without sizes it is BERT-base."""
    torch.manual_seed(seed)
    config = BertConfig(return_dict=False, attn_implementation="eager", **sizes)
    return awake_norms(BertForSequenceClassification(config))


def vit(seed: int, **sizes: Any) -> nn.Module:
    """ViT (Dosovitskiy et al. 2021); without sizes it is ViT-B/16."""
    torch.manual_seed(seed)
    return Logits(awake_norms(ViTForImageClassification(ViTConfig(attn_implementation="eager", **sizes))))


class Logits(nn.Module):
    """The logits alone, of a network that cannot be told to return a plain tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: torch.Tensor = self.network(pixel_values).logits
        return logits


@torch.no_grad()
def awake_norms(model: nn.Module) -> nn.Module:
    """Draw gamma and beta of every LayerNorm and every bias, which start at one and zero; in inference mode."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
        if isinstance(module, nn.LayerNorm | nn.Linear) and module.bias is not None:
            module.bias.normal_(0, 0.1)
    return model.eval()
