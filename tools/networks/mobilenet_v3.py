"""MobileNetV3 after Howard et al. (2019), its hard functions as operators or written out.

What it brings: x * relu6(x + 3) / 6 and relu6(x + 3) / 6, whose Add and Div by a number are affine maps too,
some of which a Conv can absorb; the BatchNormalizations all stand behind a Conv.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import hardsigmoid, hardswish, relu6

from networks.repvgg import conv_bn

Row = tuple[int, int, int, int, bool, bool]  # kernel, hidden, outputs, stride, squeeze, hardswish (else ReLU)
ROWS: Sequence[Row] = (
    (3, 8, 8, 1, False, False),
    (3, 24, 12, 2, False, False),
    (5, 24, 12, 1, True, False),
    (3, 32, 16, 2, False, True),
    (5, 40, 16, 1, True, True),
)


class HardSwish(nn.Module):
    """x * relu6(x + 3) / 6, as one operator or as four."""

    def __init__(self, *, decomposed: bool) -> None:
        super().__init__()
        self.decomposed = decomposed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return x * relu6(x + 3) / 6 if self.decomposed else hardswish(x)


class SqueezeExcite(nn.Module):
    """x times a hard sigmoid of two 1x1 Convs of the pooled maps."""

    def __init__(self, maps: int, *, decomposed: bool) -> None:
        super().__init__()
        self.decomposed = decomposed
        self.reduce = nn.Conv2d(maps, maps // 4, 1)
        self.expand = nn.Conv2d(maps // 4, maps, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, maps, H, W) to the same shape."""
        gate = self.expand(torch.relu(self.reduce(self.pool(x))))
        return x * (relu6(gate + 3) / 6 if self.decomposed else hardsigmoid(gate))


class Bottleneck(nn.Module):
    """1x1 expansion, depthwise, [squeeze-and-excitation,] 1x1 projection, plus the input where the shape stays."""

    def __init__(self, inputs: int, row: Row, *, decomposed: bool) -> None:
        super().__init__()
        kernel, hidden, outputs, stride, squeeze, swish = row
        act = HardSwish(decomposed=decomposed) if swish else nn.ReLU()
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers += [conv_bn(inputs, hidden, 1, 1, 1), act]
        layers += [conv_bn(hidden, hidden, kernel, stride, hidden), act]
        if squeeze:
            layers.append(SqueezeExcite(hidden, decomposed=decomposed))
        self.layers = nn.Sequential(*layers, conv_bn(hidden, outputs, 1, 1, 1))
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        changed: torch.Tensor = self.layers(x)
        return x + changed if self.residual else changed


class MobileNetV3(nn.Module):
    """Stem, bottlenecks, a last 1x1 Conv, and a classifier of two Linears."""

    def __init__(self, stem: int = 8, rows: Sequence[Row] = ROWS, classes: int = 10, *, decomposed: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, stem, 3, 2, 1), HardSwish(decomposed=decomposed)]
        inputs = stem
        for row in rows:
            layers.append(Bottleneck(inputs, row, decomposed=decomposed))
            inputs = row[2]
        last = 3 * inputs
        self.layers = nn.Sequential(*layers, conv_bn(inputs, last, 1, 1, 1), HardSwish(decomposed=decomposed))
        self.pool = nn.AdaptiveAvgPool2d(1)
        act = HardSwish(decomposed=decomposed)
        self.classifier = nn.Sequential(nn.Linear(last, 32), act, nn.Linear(32, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: torch.Tensor = self.classifier(self.pool(self.layers(image)).flatten(1))
        return logits
