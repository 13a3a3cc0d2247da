"""MobileOne as it stands at training time, after Vasu, Gabriel, Zhu, Tuzel & Ranjan (2023).

What it brings: up to six BatchNormalizations summed by Adds, depthwise and pointwise. The identity branch's one
has no Conv of its own and reads what its siblings read.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from networks.repvgg import conv_bn


class MobileOneBlock(nn.Module):
    """activation(identity + 1x1 + several k x k branches), each with its BatchNorm.

    The identity branch is there where the shape stays, the 1x1 branch where `scale` asks for it and k > 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        branches: int = 1,
        *,
        scale: bool = True,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        terms: list[nn.Module] = []
        if scale and kernel > 1:
            terms.append(conv_bn(inputs, outputs, 1, stride, groups))
        if inputs == outputs and stride == 1:
            terms.append(nn.BatchNorm2d(inputs))
        terms.extend(conv_bn(inputs, outputs, kernel, stride, groups) for _ in range(branches))
        self.terms = nn.ModuleList(terms)
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        first, *others = self.terms
        total = first(x)
        for term in others:
            total = total + term(x)
        activated: torch.Tensor = self.activation(total)
        return activated


def separable(inputs: int, outputs: int, stride: int, branches: int) -> nn.Sequential:
    """A depthwise 3x3 block and a pointwise one."""
    return nn.Sequential(
        MobileOneBlock(inputs, inputs, 3, stride, groups=inputs, branches=branches),
        MobileOneBlock(inputs, outputs, 1, branches=branches),
    )


class MobileOne(nn.Module):
    """A stem that halves the size, stages whose first layer halves it again, the classifier.

    `MobileOne(48, (48, 128, 256, 1024), (2, 8, 10, 1), branches=4, classes=1000)` is MobileOne-S0.
    """

    def __init__(
        self,
        stem: int = 8,
        widths: Sequence[int] = (8, 16, 16),
        depths: Sequence[int] = (2, 2, 1),
        branches: int = 2,
        classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [MobileOneBlock(3, stem, 3, stride=2)]
        inputs = stem
        for width, depth in zip(widths, depths, strict=True):
            for index in range(depth):
                layers.append(separable(inputs, width, 1 if index else 2, branches))
                inputs = width
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.layers(image)).flatten(1))
        return logits
