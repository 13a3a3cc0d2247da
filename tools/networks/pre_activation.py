"""Pre-activation networks: ResNetV2 after He, Zhang, Ren & Sun (2016), PyramidNet after Han, Kim & Kim (2017).

What they bring: a BatchNormalization at the start of each residual branch. In ResNetV2 a ReLU keeps it from the
Conv after it; the one before a projection is read by nobody else, so what comes before can absorb it, through
the Add. In PyramidNet no ReLU follows, but the 3x3 Conv pads with zeros, which the shift would change.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import pad


class PreActivation(nn.Module):
    """norm, relu, 1x1, norm, relu, 3x3, norm, relu, 1x1; a projection shortcut reads the first relu."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        narrow = outputs // 4
        self.norms = nn.ModuleList(nn.BatchNorm2d(maps) for maps in (inputs, narrow, narrow))
        self.reduce = nn.Conv2d(inputs, narrow, 1, bias=False)
        self.spatial = nn.Conv2d(narrow, narrow, 3, stride, padding=1, bias=False)
        self.expand = nn.Conv2d(narrow, outputs, 1, bias=False)
        project = inputs != outputs or stride > 1
        self.project = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if project else None
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        active = self.relu(self.norms[0](x))
        shortcut = x if self.project is None else self.project(active)
        narrow = self.relu(self.norms[1](self.reduce(active)))
        changed: torch.Tensor = self.expand(self.relu(self.norms[2](self.spatial(narrow)))) + shortcut
        return changed


class ResNetV2(nn.Module):
    """A plain 3x3 stem, stages whose first layer projects, the final norm, the classifier."""

    def __init__(
        self,
        stem: int = 8,
        widths: Sequence[int] = (16, 16, 32),
        depths: Sequence[int] = (2, 1, 2),
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, padding=1, bias=False)]
        inputs = stem
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                layers.append(PreActivation(inputs, width, stride=2 if stage and not index else 1))
                inputs = width
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.relu(self.norm(self.layers(image)))).flatten(1))
        return logits


class PyramidLayer(nn.Module):
    """norm, 3x3, norm, relu, 3x3, norm, plus the input: averaged where the size halves, with zero maps added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.more = outputs - inputs
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shrink = nn.AvgPool2d(2) if stride == 2 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        shortcut = pad(self.shrink(x), (0, 0, 0, 0, 0, self.more))
        changed: torch.Tensor = self.branch(x) + shortcut
        return changed


class PyramidNet(nn.Module):
    """Three stages of layers that grow by the same number of maps each.

    `PyramidNet(16, 18, 48 / 54, classes=100)` is PyramidNet-110 with alpha = 48.
    """

    def __init__(self, stem: int = 4, layers: int = 2, growth: float = 2, classes: int = 10) -> None:
        super().__init__()
        stack: list[nn.Module] = [nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem)]
        inputs = stem
        for index in range(3 * layers):
            outputs = round(stem + (index + 1) * growth)
            stack.append(PyramidLayer(inputs, outputs, stride=2 if index and not index % layers else 1))
            inputs = outputs
        self.layers = nn.Sequential(*stack)
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.relu(self.norm(self.layers(image)))).flatten(1))
        return logits
