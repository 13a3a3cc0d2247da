"""FastViT as it stands at training time, after Vasu, Gabriel, Zhu, Tuzel & Ranjan (2023).

What it brings: RepMixer, whose norm is an identity branch that is *subtracted*, layer scales that are Mul by a
per-map constant, and a BatchNormalization before an attention's Linear, which only what comes after can absorb.
"""

from collections.abc import Sequence

import torch
from torch import nn

from networks.mobileone import MobileOneBlock
from networks.repvgg import conv_bn


class LayerScale(nn.Module):
    """x + scale * f(x), one number for each feature map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(maps, 1, 1))

    def forward(self, x: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """Both (N, maps, H, W)."""
        return x + self.scale * change


class RepMixer(nn.Module):
    """x + scale * (identity + 1x1 + 3x3 - identity), all depthwise."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(maps)
        self.mixer = MobileOneBlock(maps, maps, 3, groups=maps, activation=nn.Identity)
        self.residual = LayerScale(maps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        mixed: torch.Tensor = self.residual(x, self.mixer(x) - self.norm(x))
        return mixed


class Attention(nn.Module):
    """x + scale * attention(norm(x)) over the locations, by Linear layers on (locations, features)."""

    def __init__(self, maps: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm2d(maps)
        self.qkv = nn.Linear(maps, 3 * maps, bias=False)
        self.proj = nn.Linear(maps, maps)
        self.residual = LayerScale(maps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        batch, maps, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(batch, height * width, 3, self.heads, maps // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * (maps // self.heads) ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1)
        tokens = self.proj((weights @ value).transpose(1, 2).reshape(batch, height * width, maps))
        mixed: torch.Tensor = self.residual(x, tokens.transpose(1, 2).reshape(batch, maps, height, width))
        return mixed


class ConvFFN(nn.Module):
    """x + scale * (depthwise 7x7, norm, 1x1, GELU, 1x1)(x)."""

    def __init__(self, maps: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = conv_bn(maps, maps, 7, 1, maps)
        self.up = nn.Conv2d(maps, hidden, 1)
        self.act = nn.GELU()
        self.down = nn.Conv2d(hidden, maps, 1)
        self.residual = LayerScale(maps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        changed: torch.Tensor = self.residual(x, self.down(self.act(self.up(self.depthwise(x)))))
        return changed


class PatchEmbedding(nn.Module):
    """(7x7 + 3x3) depthwise of stride 2, GELU, a pointwise block with an identity branch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.large = conv_bn(inputs, outputs, 7, 2, inputs)
        self.small = conv_bn(inputs, outputs, 3, 2, inputs)
        self.act = nn.GELU()
        self.pointwise = MobileOneBlock(outputs, outputs, 1, activation=nn.GELU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / 2, W / 2)."""
        embedded: torch.Tensor = self.pointwise(self.act(self.large(x) + self.small(x)))
        return embedded


class FastViT(nn.Module):
    """Stem, stages of (mixer, ConvFFN) with a patch embedding between each two, the last stage with attention."""

    def __init__(
        self, widths: Sequence[int] = (6, 12, 24), depths: Sequence[int] = (2, 1, 1), classes: int = 10
    ) -> None:
        super().__init__()
        width = widths[0]
        layers: list[nn.Module] = [
            MobileOneBlock(3, width, 3, stride=2, activation=nn.GELU),
            MobileOneBlock(width, width, 3, stride=2, groups=width, activation=nn.GELU),
            MobileOneBlock(width, width, 1, activation=nn.GELU),
        ]
        for stage, depth in enumerate(depths):
            if stage:
                layers.append(PatchEmbedding(widths[stage - 1], widths[stage]))
            width = widths[stage]
            last = stage + 1 == len(depths)
            for _ in range(depth):
                layers += [Attention(width, 4) if last else RepMixer(width), ConvFFN(width, 2 * width)]
        layers.append(MobileOneBlock(width, 2 * width, 3, groups=width, activation=nn.GELU))
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.layers(image)).flatten(1))
        return logits
