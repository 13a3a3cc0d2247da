"""What an entry of the catalogue is made of: the record, the words that repeat, and the usual recipe."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from networks import export
from networks.statistics import randomise

APACHE = "Apache-2.0"
DIGITS = "weights Apache-2.0; trained on digits, CC BY 4.0"
LEGACY = "torch.onnx.export, legacy (TorchScript), PRESERVE"
DYNAMO = "torch.onnx.export, dynamo, optimize=False"
HUGGING = "definition from transformers"
OURS = "definition by this project"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its name, its cells of the README's table, and the function that writes it."""

    name: str
    what: str
    origin: str
    licence: str
    write: Callable[[Path], None]


def full(name: str, what: str, write: Callable[[Path], None]) -> Entry:
    """A model of full size, for measurements; never committed, so it has no row in the README."""
    return Entry(name, what, "", APACHE, write)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    """Standard normal images."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(model: nn.Module, path: Path, size: int, **options: Any) -> None:
    """Randomise `model` for RGB images of that size and write it by the legacy exporter."""
    batch = 2 if options.get("dynamic_batch", True) else 1
    randomise(model, noise(8, 3, size, size), seed=7)
    export.legacy(model, noise(batch, 3, size, size), path, **options)
