"""DenseNet-BC after Huang, Liu, van der Maaten & Weinberger (2017).

What it brings: pre-activation. Half of the BatchNormalizations stand behind a Concat or a pooling, where no
Conv comes before them, so they can only be absorbed by what comes after, and a ReLU stands in between.
"""

from collections.abc import Sequence

import torch
from torch import nn


class DenseLayer(nn.Module):
    """norm, relu, 1x1 Conv to 4 * growth maps, norm, relu, 3x3 Conv to growth maps."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, growth, H, W)."""
        narrow = self.conv1(self.relu(self.norm1(x)))
        grown: torch.Tensor = self.conv2(self.relu(self.norm2(narrow)))
        return grown


class DenseBlock(nn.Module):
    """Layers that each read the concatenation of everything before them."""

    def __init__(self, layers: int, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(inputs + i * growth, growth) for i in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, inputs + layers * growth, H, W)."""
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x


def transition(inputs: int) -> nn.Sequential:
    """norm, relu, 1x1 Conv to half the maps, 2x2 average pooling."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, inputs // 2, 1, bias=False),
        nn.AvgPool2d(2),
    )


class DenseNet(nn.Module):
    """The stem, blocks with a transition between each two, the final norm, the classifier.

    `DenseNet((6, 12, 24, 16), growth=32, width=64, classes=1000)` is DenseNet-121.
    """

    def __init__(
        self, blocks: Sequence[int] = (2, 4, 3), growth: int = 8, width: int = 16, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages: list[nn.Module] = []
        for index, layers in enumerate(blocks):
            if index:
                stages.append(transition(width))
                width //= 2
            stages.append(DenseBlock(layers, width, growth))
            width += layers * growth
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        x = self.relu(self.norm(self.stages(self.stem(image))))
        logits: torch.Tensor = self.classifier(self.pool(x).flatten(1))
        return logits
