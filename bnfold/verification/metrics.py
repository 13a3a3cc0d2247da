"""How two arrays compare, in the numbers that people ask for. Pure numpy; information, never the verdict."""

import math

import numpy as np

from bnfold.affine import Float64Array


def cosine(first: Float64Array, second: Float64Array) -> float | None:
    """The cosine of the angle between both, taken as vectors, (n,) each; None where one is zero."""
    scale = float(max(np.abs(first).max(), np.abs(second).max()))
    if not scale:
        return None
    a, b = first / scale, second / scale  # squares neither overflow nor vanish
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(max(float(a @ b) / length, -1.0), 1.0) if length else None


def snr_db(first: Float64Array, second: Float64Array) -> float | None:
    """The signal-to-noise ratio in dB: 10 log10(sum first^2 / sum (second - first)^2), (n,) each.

    Infinite where both are the same; None where the signal is zero.
    """
    scale = float(max(np.abs(first).max(), np.abs(second).max()))
    if not scale:
        return None
    a, b = first / scale, second / scale
    signal, noise = float(np.square(a).sum()), float(np.square(b - a).sum())
    if not signal:
        return None
    return 10 * math.log10(signal / noise) if noise else math.inf


def top1_agreement(first: Float64Array, second: Float64Array) -> float | None:
    """The share of samples whose largest score is the same class; None where these do not look like class scores.

    Class scores are (N, K) with K >= 2, as classifiers put them out.
    """
    if first.ndim != 2 or first.shape[0] < 1 or first.shape[1] < 2:
        return None
    return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))
