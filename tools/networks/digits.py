"""Training on scikit-learn's bundled digits: 1,797 images of 8 x 8, ten classes.

An image is scaled from 0..16 to 0..1 and enlarged to 32 x 32 by repeating each pixel 4 x 4 times, which is
exact everywhere. A quarter of the images, stratified, is held out; the networks never see it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import nn
from torch.nn.functional import cross_entropy

from networks.statistics import measure_statistics

INPUT = "pixel_values"
SPLIT_SEED = 0
BATCH = 64

Split = tuple[NDArray[np.float32], NDArray[np.int64]]


def load_split() -> tuple[Split, Split]:
    """(train, test), each of images (N, 1, 32, 32) float32 and labels (N,) int64."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    images = images.repeat(4, axis=2).repeat(4, axis=3)
    labels = digits.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=0.25, random_state=SPLIT_SEED, stratify=labels)
    return (parts[0], parts[2]), (parts[1], parts[3])


def train(model: nn.Module, seed: int, epochs: int) -> nn.Module:
    """Fit `model` to the training part and leave it in inference mode."""
    (images, labels), _ = load_split()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    torch.manual_seed(seed)
    per_epoch = len(x) // BATCH
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=epochs * per_epoch)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x))[: per_epoch * BATCH].reshape(per_epoch, BATCH):
            optimiser.zero_grad()
            loss = cross_entropy(model(x[chosen])[0], y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    # Running averages lag behind the weights, so the statistics are measured anew at the end.
    measure_statistics(model, list(x[: per_epoch * BATCH].reshape(per_epoch, BATCH, *x.shape[1:])))
    return model
