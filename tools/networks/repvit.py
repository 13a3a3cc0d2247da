"""RepViT as it stands at training time, after Wang, Chen, Lin, Han & Ding (2024).

What it brings: a BatchNorm1d before each of two Linears that read the same pooled features, as models that were
distilled have them; and in each block a BatchNormalization of Conv(x) + Conv(x) + x.
"""

from collections.abc import Sequence

import torch
from torch import nn

from networks.repvgg import conv_bn


class BNLinear(nn.Sequential):
    """BatchNorm1d, then Linear."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(nn.BatchNorm1d(features), nn.Linear(features, classes))


class RepVGGDepthwise(nn.Module):
    """norm(norm(3x3(x)) + 1x1(x) + x), depthwise; the third term carries no constant."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.dense = conv_bn(maps, maps, 3, 1, maps)
        self.pointwise = nn.Conv2d(maps, maps, 1, groups=maps)
        self.norm = nn.BatchNorm2d(maps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        mixed: torch.Tensor = self.norm(self.dense(x) + self.pointwise(x) + x)
        return mixed


class ChannelMixer(nn.Module):
    """x + (1x1, norm, GELU, 1x1, norm)(x)."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.up = conv_bn(maps, 2 * maps, 1, 1, 1)
        self.act = nn.GELU()
        self.down = conv_bn(2 * maps, maps, 1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        mixed: torch.Tensor = x + self.down(self.act(self.up(x)))
        return mixed


def downsample(inputs: int, outputs: int) -> nn.Sequential:
    """A block, then depthwise 3x3 of stride 2 and 1x1, each with its norm, then the channel mixer."""
    depthwise = conv_bn(inputs, inputs, 3, 2, inputs)
    block = [RepVGGDepthwise(inputs), ChannelMixer(inputs)]
    return nn.Sequential(*block, depthwise, conv_bn(inputs, outputs, 1, 1, 1), ChannelMixer(outputs))


class RepViT(nn.Module):
    """A stem of two Convs, stages of blocks, and a distilled head: the mean of two classifiers."""

    def __init__(self, widths: Sequence[int] = (12, 24), depths: Sequence[int] = (2, 2), classes: int = 10) -> None:
        super().__init__()
        width = widths[0]
        layers: list[nn.Module] = [conv_bn(3, width // 2, 3, 2, 1), nn.GELU(), conv_bn(width // 2, width, 3, 2, 1)]
        for stage, depth in enumerate(depths):
            if stage:
                layers.append(downsample(widths[stage - 1], widths[stage]))
            for _ in range(depth):
                layers += [RepVGGDepthwise(widths[stage]), ChannelMixer(widths[stage])]
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = BNLinear(widths[-1], classes)
        self.distilled = BNLinear(widths[-1], classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        pooled = self.pool(self.layers(image)).flatten(1)
        logits: torch.Tensor = (self.classifier(pooled) + self.distilled(pooled)) / 2
        return logits
