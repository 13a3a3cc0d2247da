"""Convolutions and products in float64, whole, by one matrix product for each kernel tap.

onnx's reference evaluator does these too, but in loops over Python objects; a verdict on a network with fifty
convolutions needs them fast. x is (N, C, *locations), weights are (O, C/group, *kernel) for Conv and
(C, O/group, *kernel) for ConvTranspose. Source: ONNX operators Conv-1 to -22, ConvTranspose-1 to -22, Gemm-1 to -13.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from bnfold.affine import Float64Array
from bnfold.nodes import float_attribute, int_attribute, ints_attribute, text_attribute


def conv(node: NodeProto, x: Float64Array, weight: Float64Array, bias: Float64Array | None) -> Float64Array:
    """The output (N, O, *locations) of a Conv.

    Raises:
        ValueError: shapes or attributes do not fit together.
    """
    kernel = weight.shape[2:]
    strides, dilations, pads = _window(node, x.shape[2:], kernel)
    group, spatial = int_attribute(node, "group", 1), len(kernel)
    if x.shape[1] != weight.shape[1] * group or weight.shape[0] % group:
        raise ValueError(f"Conv of {x.shape} by {weight.shape} in {group} groups")
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
    sizes = [(padded.shape[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(spatial)]
    if min(sizes, default=1) < 1:
        raise ValueError(f"Conv of {x.shape} by {weight.shape}: nothing is left")
    grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    total = np.zeros((x.shape[0], group, grouped.shape[1], int(np.prod(sizes))))
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, sizes, strides, strict=True)
        )
        part = padded[(slice(None), slice(None), *window)].reshape(x.shape[0], group, weight.shape[1], -1)
        total += _tap(grouped, tap) @ part
    found = total.reshape(x.shape[0], weight.shape[0], *sizes)
    return found if bias is None else found + bias.reshape(-1, *[1] * spatial)


def conv_transpose(node: NodeProto, x: Float64Array, weight: Float64Array, bias: Float64Array | None) -> Float64Array:
    """The output (N, O, *locations) of a ConvTranspose.

    Raises:
        ValueError: shapes or attributes do not fit together.
    """
    kernel, spatial = weight.shape[2:], len(weight.shape) - 2
    group = int_attribute(node, "group", 1)
    strides = ints_attribute(node, "strides") or (1,) * spatial
    dilations = ints_attribute(node, "dilations") or (1,) * spatial
    extra = ints_attribute(node, "output_padding") or (0,) * spatial
    if x.shape[1] != weight.shape[0] or x.shape[1] % group:
        raise ValueError(f"ConvTranspose of {x.shape} by {weight.shape} in {group} groups")
    full = [strides[i] * (x.shape[2 + i] - 1) + extra[i] + dilations[i] * (kernel[i] - 1) + 1 for i in range(spatial)]
    pads = _transposed_pads(node, x.shape[2:], full, strides)
    inputs = x.reshape(x.shape[0], group, x.shape[1] // group, -1)
    grouped = weight.reshape(group, x.shape[1] // group, *weight.shape[1:])
    total = np.zeros((x.shape[0], group, weight.shape[1], *full))
    for tap in itertools.product(*map(range, kernel)):
        part = np.swapaxes(_tap(grouped, tap), 1, 2) @ inputs
        window = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
        )
        total[(slice(None), slice(None), slice(None), *window)] += part.reshape(*part.shape[:3], *x.shape[2:])
    found = total.reshape(x.shape[0], group * weight.shape[1], *full)
    inner = tuple(slice(pads[i], full[i] - pads[spatial + i]) for i in range(spatial))
    found = found[(slice(None), slice(None), *inner)]
    return found if bias is None else found + bias.reshape(-1, *[1] * spatial)


def gemm(node: NodeProto, a: Float64Array, b: Float64Array, c: Float64Array | None) -> Float64Array:
    """alpha op(A) op(B) + beta C."""
    a = a.T if int_attribute(node, "transA", 0) else a
    b = b.T if int_attribute(node, "transB", 0) else b
    found: Float64Array = float_attribute(node, "alpha", 1.0) * (a @ b)
    return found if c is None else found + float_attribute(node, "beta", 1.0) * c


def _tap(weight: Float64Array, tap: tuple[int, ...]) -> Float64Array:
    """The weights of one kernel tap, for all groups, maps and channels."""
    place: Any = (..., *tap)
    return np.asarray(weight[place])


def _window(
    node: NodeProto, size: Sequence[int], kernel: Sequence[int]
) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Strides, dilations and pads (begins, then ends), one for each axis of locations."""
    spatial = len(kernel)
    strides = ints_attribute(node, "strides") or (1,) * spatial
    dilations = ints_attribute(node, "dilations") or (1,) * spatial
    pads = ints_attribute(node, "pads") or (0,) * (2 * spatial)
    mode = text_attribute(node, "auto_pad", "NOTSET")
    if not len(strides) == len(dilations) == len(size) == spatial or len(pads) != 2 * spatial or min(strides) < 1:
        raise ValueError("attributes that do not fit the kernel")
    if mode == "VALID":
        return strides, dilations, (0,) * (2 * spatial)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, k, d in zip(size, strides, kernel, dilations, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return strides, dilations, [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    if min(pads, default=0) < 0:
        raise ValueError("negative pads")
    return strides, dilations, pads


def _transposed_pads(
    node: NodeProto, size: Sequence[int], full: Sequence[int], strides: Sequence[int]
) -> Sequence[int]:
    """What is cut off a ConvTranspose's whole output: begins, then ends."""
    spatial = len(size)
    mode, wanted = text_attribute(node, "auto_pad", "NOTSET"), ints_attribute(node, "output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(n * s for n, s in zip(size, strides, strict=True))
    if wanted is not None:
        totals = [n - w for n, w in zip(full, wanted[-spatial:], strict=True)]
        if min(totals) < 0:
            raise ValueError("output_shape beyond what the kernel reaches")
        half = [t // 2 for t in totals]
        rest = [t - h for t, h in zip(totals, half, strict=True)]
        return [*half, *rest] if mode == "SAME_UPPER" else [*rest, *half]
    if mode == "VALID":
        return (0,) * (2 * spatial)
    return ints_attribute(node, "pads") or (0,) * (2 * spatial)
