"""Comparing all values of two runs by name, per feature map.

How far two may differ is measured: the original runs again with every constant and input moved by some units in the
last place, which is what rounding folded weights does to it.

    |found - reference| <= ROUNDINGS * (u * scale + noise),    scale and noise: the largest of the map
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

from tests.random_graphs.running import Values
from tests.scopes import scopes

Array = np.ndarray[Any, Any]
ROUNDINGS = 18.0
STEP = 8  # units in the last place: enough to show above the rounding of the run itself; counted as one


class Wrong(AssertionError):
    """A fold that is not what it must be. `kind` groups failures of one cause."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


def look_up_indices(model: ModelProto, values: Values, expected: Values) -> None:
    """In place of the Indices of a MaxPool, what they point at: of equal numbers, rounding may choose either."""
    for node in model.graph.node:
        if node.op_type == "MaxPool" and len(node.output) == 2 and node.output[1] in values:
            values[node.output[1]] = expected[node.input[0]].reshape(-1)[values[node.output[1]]]


def loosen_training(model: ModelProto, noisy: Values, expected: Values) -> None:
    """What a BatchNormalization in training form puts out: it takes the mean away, and with it the sign of noise."""
    for node in model.graph.node:
        if any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
            noisy.update({name: expected[name] * np.float32(1.001) for name in node.output if name})


def nudge(array: Array, rng: np.random.Generator) -> Array:
    """Every float moved up or down by `STEP` units in the last place."""
    if array.dtype.kind != "f":
        return array
    share = STEP * float(np.finfo(array.dtype).eps) * rng.choice([-1.0, 1.0], array.shape)
    return np.asarray(array * (1 + share), array.dtype)


def nudged(model: ModelProto, rng: np.random.Generator) -> ModelProto:
    """A copy of the model with every constant moved, but for scales that decide on shapes."""
    copy = ModelProto()
    copy.CopyFrom(model)
    held = list(scopes(copy))
    sizes = {n for s in held for node in s.nodes if node.op_type in ("Resize", "Upsample") for n in node.input[1:]}
    tensors = [(name, tensor) for scope in held for name, tensor in scope.constants.items()]
    for name, tensor in tensors:
        if name not in sizes:
            tensor.CopyFrom(numpy_helper.from_array(nudge(numpy_helper.to_array(tensor), rng), tensor.name))
    return copy


def compare(
    expected: Values, found: Values, noisy: list[Values], outputs: set[str], options: Mapping[str, Any]
) -> float:  # fmt: skip
    """Outputs are the same, and so is every other value of the same name. The largest share of what is allowed."""
    names = sorted(expected.keys() & found.keys(), key=lambda name: name not in outputs)
    return max(
        (_compare(n, expected[n], found[n], [v[n] for v in noisy], outputs, options) for n in names), default=0.0
    )


def _compare(
    name: str, first: Array, second: Array, noisy: list[Array], outputs: set[str], options: Mapping[str, Any]
) -> float:  # fmt: skip
    kind = "values" if name in outputs else "names"
    if first.dtype != second.dtype or first.shape != second.shape:
        raise Wrong(kind, f"{name!r} is {second.dtype}{second.shape} instead of {first.dtype}{first.shape}")
    if first.dtype.kind != "f":
        if np.array_equal(first, second):
            return 0.0
        raise Wrong(kind, f"{name!r} holds other whole numbers")
    if options.get("assume_range") and first.dtype == np.float16 and not np.isfinite(second).all():
        return 0.0  # the caller has vouched for the range
    try:
        # a scale of a Resize that a call passes may round to another size
        share = _share(first, second, [first, *(array for array in noisy if array.shape == first.shape)])
    except ValueError as problem:
        raise Wrong(kind, f"{name!r} is {problem}") from None
    if share > 1:
        raise Wrong(kind, f"{name!r} differs by {share:.3g} times what rounding may do to it")
    return share


def _share(first: Array, second: Array, noisy: list[Array]) -> float:
    """How much of what is allowed the worst map takes up."""
    unit = float(np.finfo(first.dtype).eps)
    if not np.array_equal(np.isnan(first), np.isnan(second)):
        raise ValueError("NaN in other places")
    finite = np.isfinite(first)
    if not np.array_equal(first[~finite], second[~finite], equal_nan=True) or not np.isfinite(second[finite]).all():
        raise ValueError("infinite in other places")
    wide, other = (np.where(finite, array, 0).astype(np.float64) for array in (first, second))
    moved = [np.where(finite & np.isfinite(array), array.astype(np.float64) - wide, 0) for array in noisy]
    noise = _by_map(np.max(np.abs(moved), axis=0)) / STEP
    noise = np.maximum(
        noise, np.max(noise, initial=0) / 16
    )  # a map of few numbers may show less than its own by chance
    allowed = ROUNDINGS * (unit * _by_map(np.abs(wide)) + noise)
    difference = _by_map(np.abs(other - wide))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(difference > 0, difference / allowed, 0), initial=0))


def _by_map(array: Array) -> Array:
    """The largest of each map of (N, C, ...); of the whole, for fewer axes."""
    if array.ndim < 3:
        return np.max(array, initial=0)
    return np.max(array, axis=(0, *range(2, array.ndim)), initial=0)
