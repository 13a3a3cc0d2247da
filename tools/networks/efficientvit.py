"""EfficientViT with cascaded group attention, after Liu, Peng, Zheng, Yang, Hu & Yuan (2023).

What it brings: a BatchNorm1d before the Linear of the head, and attention made of 1x1 Convs, each with its
BatchNormalization: those of query, key and value lie before a Split, one head's output is added to the next
one's input.
"""

import torch
from torch import nn

from networks.repvgg import conv_bn
from networks.repvit import BNLinear


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        changed: torch.Tensor = x + self.module(x)
        return changed


def feed_forward(maps: int) -> nn.Sequential:
    """1x1 to twice the maps, ReLU, 1x1 back, each Conv with its norm."""
    return nn.Sequential(conv_bn(maps, 2 * maps, 1, 1, 1), nn.ReLU(), conv_bn(2 * maps, maps, 1, 1, 1))


class CascadedAttention(nn.Module):
    """Each head sees its share of the maps plus what the head before it gave."""

    def __init__(self, maps: int, heads: int, key: int, size: int) -> None:
        super().__init__()
        self.heads, self.key, self.value = heads, key, maps // heads
        self.qkv = nn.ModuleList(conv_bn(self.value, 2 * key + self.value, 1, 1, 1) for _ in range(heads))
        self.depthwise = nn.ModuleList(conv_bn(key, key, 3, 1, key) for _ in range(heads))
        self.bias = nn.Parameter(torch.empty(heads, size * size, size * size))
        self.proj = nn.Sequential(nn.ReLU(), conv_bn(maps, maps, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, size, size) to the same shape."""
        given: list[torch.Tensor] = []
        for head, share in enumerate(x.chunk(self.heads, dim=1)):
            part = share + given[-1] if given else share
            query, key, value = self.qkv[head](part).split([self.key, self.key, self.value], dim=1)
            query, key, flat = self.depthwise[head](query).flatten(2), key.flatten(2), value.flatten(2)
            weights = query.transpose(-2, -1) @ key * self.key**-0.5 + self.bias[head]
            given.append((flat @ weights.softmax(dim=-1).transpose(-2, -1)).view_as(value))
        mixed: torch.Tensor = self.proj(torch.cat(given, dim=1))
        return mixed


def block(maps: int, heads: int, size: int) -> nn.Sequential:
    """Depthwise and feed-forward, attention, depthwise and feed-forward; each a residual."""

    def sandwich() -> list[nn.Module]:
        return [Residual(conv_bn(maps, maps, 3, 1, maps)), Residual(feed_forward(maps))]

    return nn.Sequential(*sandwich(), Residual(CascadedAttention(maps, heads, 4, size)), *sandwich())


class EfficientViT(nn.Module):
    """A stem of three Convs that takes 32 x 32 images to 4 x 4 patches, blocks, BatchNorm1d and Linear."""

    def __init__(self, maps: int = 16, heads: int = 2, blocks: int = 1, classes: int = 10) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        for inputs, outputs in ((3, maps // 2), (maps // 2, maps), (maps, maps)):
            stem += [conv_bn(inputs, outputs, 3, 2, 1), nn.ReLU()]
        self.stem = nn.Sequential(*stem[:-1])
        self.blocks = nn.Sequential(*(block(maps, heads, 4) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = BNLinear(maps, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) to (N, classes)."""
        logits: torch.Tensor = self.head(self.pool(self.blocks(self.stem(image))).flatten(1))
        return logits
