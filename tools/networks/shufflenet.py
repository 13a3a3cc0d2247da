"""ShuffleNetV2 after Ma, Zhang, Zheng & Sun (2018).

What it brings: the maps are split in two, one half passes untouched, and a shuffle of the maps (Reshape,
Transpose, Reshape) follows every Concat. Each BatchNormalization stands behind its own Conv.
"""

from collections.abc import Sequence

import torch
from torch import nn

from networks.repvgg import conv_bn


def shuffle(x: torch.Tensor) -> torch.Tensor:
    """Interleave the two halves of the maps of x (N, maps, H, W)."""
    batch, maps, height, width = x.shape
    return x.view(batch, 2, maps // 2, height, width).transpose(1, 2).reshape(batch, maps, height, width)


def main_branch(inputs: int, half: int, stride: int) -> nn.Sequential:
    """1x1, depthwise 3x3, 1x1; ReLU behind the pointwise ones alone."""
    pointwise = [conv_bn(inputs, half, 1, 1, 1), nn.ReLU()]
    return nn.Sequential(*pointwise, conv_bn(half, half, 3, stride, half), conv_bn(half, half, 1, 1, 1), nn.ReLU())


class Unit(nn.Module):
    """Half of the maps pass, the other half goes through the branch."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.branch = main_branch(maps // 2, maps // 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        kept, changed = x.chunk(2, dim=1)
        return shuffle(torch.cat([kept, self.branch(changed)], dim=1))


class Downsample(nn.Module):
    """Both branches read all maps and halve the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.shortcut = nn.Sequential(
            conv_bn(inputs, inputs, 3, 2, inputs), conv_bn(inputs, half, 1, 1, 1), nn.ReLU()
        )
        self.branch = main_branch(inputs, half, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / 2, W / 2)."""
        return shuffle(torch.cat([self.shortcut(x), self.branch(x)], dim=1))


class ShuffleNetV2(nn.Module):
    """Stem, stages of one Downsample and units, a last 1x1 Conv, the classifier.

    `ShuffleNetV2(24, (116, 232, 464), (4, 8, 4), last=1024, classes=1000)` is ShuffleNetV2 1.0.
    """

    def __init__(
        self,
        stem: int = 8,
        widths: Sequence[int] = (16, 24, 32),
        depths: Sequence[int] = (2, 3, 2),
        last: int = 48,
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, stem, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        inputs = stem
        for width, depth in zip(widths, depths, strict=True):
            layers += [Downsample(inputs, width), *(Unit(width) for _ in range(depth - 1))]
            inputs = width
        self.layers = nn.Sequential(*layers, conv_bn(inputs, last, 1, 1, 1), nn.ReLU())
        self.classifier = nn.Linear(last, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: torch.Tensor = self.classifier(self.layers(image).mean([2, 3]))
        return logits
