"""RepVGG as it stands at training time, after Ding et al. (2021).

What it brings: three BatchNormalizations summed by Adds. The identity branch's one has no Conv of its own,
and its input is the ReLU of the block before; it can be absorbed only by its siblings.
"""

from collections.abc import Sequence

import torch
from torch import nn


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    """A Conv without bias that keeps the size at stride 1, and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class RepVGGBlock(nn.Module):
    """relu(bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x)); the last term only where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = conv_bn(inputs, outputs, 3, stride, groups)
        self.pointwise = conv_bn(inputs, outputs, 1, stride, groups)
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        total = self.dense(x) + self.pointwise(x)
        if self.identity is not None:
            total = total + self.identity(x)
        activated: torch.Tensor = self.relu(total)
        return activated


class RepVGG(nn.Module):
    """Stages of blocks; the first block of each halves the size, every second one has `groups` groups.

    `RepVGG((48, 48, 96, 192, 1280), (1, 2, 4, 14, 1), classes=1000, groups=1)` is RepVGG-A0.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 16, 32),
        depths: Sequence[int] = (1, 2, 3),
        classes: int = 10,
        groups: int = 2,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = 3
        for width, depth in zip(widths, depths, strict=True):
            for index in range(depth):
                stride = 1 if index else 2
                blocks.append(RepVGGBlock(inputs, width, stride, groups=groups if index % 2 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.blocks(image)).flatten(1))
        return logits
