"""RepGhostNet as it stands at training time, after Chen, Guo, Wu, Chen, Cao & Dong (2022).

What it brings: a depthwise Conv and a bare BatchNormalization of the same value, summed; the value itself comes
from a Conv, with a ReLU behind it or not. Squeeze-and-excitation scales maps by computed numbers.
"""

from collections.abc import Sequence

import torch
from torch import nn

from networks.repvgg import conv_bn


class RepGhostModule(nn.Module):
    """1x1 [relu], then norm(depthwise(x)) + norm(x) [relu]."""

    def __init__(self, inputs: int, outputs: int, *, relu: bool) -> None:
        super().__init__()
        self.primary = conv_bn(inputs, outputs, 1, 1, 1)
        self.cheap = conv_bn(outputs, outputs, 3, 1, outputs)
        self.fusion = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        x = self.relu(self.primary(x))
        ghost: torch.Tensor = self.relu(self.cheap(x) + self.fusion(x))
        return ghost


class SqueezeExcite(nn.Module):
    """x times one number for each map, which the pooled maps determine."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(maps, maps // 4, 1)
        self.expand = nn.Conv2d(maps // 4, maps, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        pooled = x.mean((2, 3), keepdim=True)
        gate = nn.functional.hardsigmoid(self.expand(nn.functional.relu(self.reduce(pooled))))
        return x * gate


class Bottleneck(nn.Module):
    """Two RepGhost modules with a strided depthwise Conv and squeeze-and-excitation between, plus a shortcut."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int, *, squeeze: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [RepGhostModule(inputs, hidden, relu=True)]
        if stride > 1:
            layers.append(conv_bn(hidden, hidden, 3, stride, hidden))
        if squeeze:
            layers.append(SqueezeExcite(hidden))
        self.layers = nn.Sequential(*layers, RepGhostModule(hidden, outputs, relu=False))
        plain = inputs == outputs and stride == 1
        shortcut = [conv_bn(inputs, inputs, 3, stride, inputs), conv_bn(inputs, outputs, 1, 1, 1)]
        self.shortcut = nn.Identity() if plain else nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        total: torch.Tensor = self.layers(x) + self.shortcut(x)
        return total


Sizes = tuple[int, int, int, bool]  # hidden, outputs, stride, squeeze


class RepGhostNet(nn.Module):
    """Stem, bottlenecks, a last 1x1 Conv, the classifier."""

    def __init__(
        self,
        stem: int = 8,
        rows: Sequence[Sizes] = ((8, 8, 1, False), (16, 12, 2, False), (16, 12, 1, True), (24, 16, 2, True)),
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, stem, 3, 2, 1), nn.ReLU()]
        inputs = stem
        for hidden, outputs, stride, squeeze in rows:
            layers.append(Bottleneck(inputs, hidden, outputs, stride, squeeze=squeeze))
            inputs = outputs
        self.layers = nn.Sequential(*layers, conv_bn(inputs, 3 * inputs, 1, 1, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(3 * inputs, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.layers(image)).flatten(1))
        return logits
