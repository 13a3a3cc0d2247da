"""U-Net after Ronneberger, Fischer & Brox (2015), with BatchNormalization behind every convolution.

What it brings: a BatchNormalization behind ConvTranspose, and skip connections joined by Concat.
"""

import torch
from torch import nn


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """(3x3 Conv, BatchNorm, ReLU) twice; the spatial size stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def up_conv(inputs: int, outputs: int) -> nn.Sequential:
    """2x2 ConvTranspose of stride 2, BatchNorm, ReLU; the spatial size doubles."""
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 2, stride=2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Encoder of `depth` levels, a bottom, and a decoder that mirrors the encoder.

    Level i has `width * 2**i` feature maps. The input's height and width are multiples of `2**depth`.
    """

    def __init__(self, width: int = 8, depth: int = 2, channels: int = 3, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        inputs = [channels, *widths[:-2]]
        self.encoder = nn.ModuleList(double_conv(i, o) for i, o in zip(inputs, widths[:-1], strict=True))
        self.bottom = double_conv(widths[-2], widths[-1])
        self.up = nn.ModuleList(up_conv(2 * w, w) for w in reversed(widths[:-1]))
        self.decoder = nn.ModuleList(double_conv(2 * w, w) for w in reversed(widths[:-1]))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to (N, classes, H, W)."""
        skips = []
        x = image
        for level in self.encoder:
            x = level(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, level in zip(self.up, self.decoder, strict=True):
            x = level(torch.cat([skips.pop(), up(x)], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits
