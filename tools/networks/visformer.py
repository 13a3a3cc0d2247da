"""Visformer after Chen, Xie, Niu, Liu, Wei & Tian (2021).

What it brings: pre-norm with BatchNormalization, which stands before a 1x1 Conv with nothing in between and reads
what the residual reads too; it can only be absorbed by the Conv after it. The last one stands before the pooling
and the Linear.
"""

from collections.abc import Sequence

import torch
from torch import nn


class SpatialMix(nn.Module):
    """x + (norm, 1x1, GELU, 3x3 in groups, GELU, 1x1)(x); without `groups` the 3x3 is left out."""

    def __init__(self, maps: int, groups: int = 0) -> None:
        super().__init__()
        wide = 2 * maps
        layers: list[nn.Module] = [nn.BatchNorm2d(maps), nn.Conv2d(maps, wide, 1, bias=False), nn.GELU()]
        if groups:
            layers += [nn.Conv2d(wide, wide, 3, padding=1, groups=groups, bias=False), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(wide, maps, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        mixed: torch.Tensor = x + self.layers(x)
        return mixed


class Attention(nn.Module):
    """x + attention(norm(x)); query, key and value come from one 1x1 Conv."""

    def __init__(self, maps: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm2d(maps)
        self.qkv = nn.Conv2d(maps, 3 * maps, 1, bias=False)
        self.proj = nn.Conv2d(maps, maps, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        batch, maps, height, width = x.shape
        shape = (batch, 3, self.heads, maps // self.heads, height * width)
        query, key, value = self.qkv(self.norm(x)).reshape(shape).permute(1, 0, 2, 4, 3).unbind(0)
        weights = (query @ key.transpose(-2, -1) * (maps // self.heads) ** -0.5).softmax(dim=-1)
        mixed = (weights @ value).transpose(-2, -1).reshape(batch, maps, height, width)
        attended: torch.Tensor = x + self.proj(mixed)
        return attended


class Embedding(nn.Module):
    """A Conv of stride 2 and its norm, then a position embedding, one number for each map and location."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 2, stride=2)
        self.norm = nn.BatchNorm2d(outputs)
        self.position = nn.Parameter(torch.empty(1, outputs, size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, 2 * size, 2 * size) to (N, outputs, size, size)."""
        embedded: torch.Tensor = self.norm(self.conv(x)) + self.position
        return embedded


class Visformer(nn.Module):
    """A convolutional stage, then stages of attention; the embedding before each halves the size."""

    def __init__(
        self, size: int = 32, widths: Sequence[int] = (8, 12, 16), depth: int = 2, classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for stage, width in enumerate(widths):
            layers.append(Embedding(widths[max(stage - 1, 0)], width, size >> (stage + 2)))
            for _ in range(depth):
                layers += [Attention(width, 4), SpatialMix(width)] if stage else [SpatialMix(width, groups=4)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, size, size) to (N, classes)."""
        logits: torch.Tensor = self.head(self.pool(self.norm(self.layers(image))).flatten(1))
        return logits
