"""Dual path network after Chen, Li, Xiao, Jin, Yan & Feng (2017).

What it brings: a layer's output is sliced, one part is added to the residual path, the other joined to the dense
path by Concat, and the next layer's pre-activation BatchNormalization reads both paths joined.
"""

from collections.abc import Sequence

import torch
from torch import nn

Paths = tuple[torch.Tensor, ...]  # the residual path and the dense path; behind the stem one that is both


def norm_relu_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """BatchNorm, ReLU, Conv without bias."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv)


class DualPathLayer(nn.Module):
    """1x1, grouped 3x3, 1x1 to residual + growth maps; the first layer of a stage has a projection as well."""

    def __init__(self, inputs: int, narrow: int, residual: int, growth: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.residual = residual
        outputs = residual + growth
        self.project = norm_relu_conv(inputs, outputs + growth, 1, stride) if first else None
        self.layers = nn.Sequential(
            norm_relu_conv(inputs, narrow, 1),
            norm_relu_conv(narrow, narrow, 3, stride, groups=4),
            norm_relu_conv(narrow, outputs, 1),
        )

    def forward(self, paths: Paths) -> Paths:
        """Both (N, maps, H, W)."""
        joined = torch.cat(paths, dim=1) if len(paths) > 1 else paths[0]
        if self.project is not None:
            shortcut = self.project(joined)
            paths = shortcut[:, : self.residual], shortcut[:, self.residual :]
        out = self.layers(joined)
        summed = paths[0] + out[:, : self.residual]
        return summed, torch.cat([paths[1], out[:, self.residual :]], dim=1)


class DPN(nn.Module):
    """Stem, stages of layers, the norm of both paths joined, the classifier."""

    def __init__(
        self,
        stem: int = 8,
        widths: Sequence[int] = (16, 24),
        depths: Sequence[int] = (3, 2),
        growth: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        layers: list[nn.Module] = []
        inputs = stem
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                layers.append(DualPathLayer(inputs, width, width, growth, stride, first=not index))
                inputs = width + 3 * growth if not index else inputs + growth
        self.layers = nn.ModuleList(layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        paths: Paths = (self.stem(image),)
        for layer in self.layers:
            paths = layer(paths)
        logits: torch.Tensor = self.classifier(self.pool(self.relu(self.norm(torch.cat(paths, dim=1)))).flatten(1))
        return logits
