"""Inputs to compare two models on: seeded, of the types and shapes that the model declares.

Free dimensions get a size, the same for the same symbol; which sizes were chosen is part of the report. A
network does not say which sizes it can take, so there is a short list of attempts, tried in order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import ValueInfoProto, helper

from bnfold.errors import UsageError
from bnfold.rounding import Array, round_once
from bnfold.text import printable

Feeds = dict[str, Array]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a model says about one input.

    Attributes:
        name: of the input.
        dtype: numpy's; None where it is no plain tensor (sequence, optional).
        shape: sizes; None or a symbol where free; None as a whole where not even the rank is known.
    """

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else printable(str(size)) for size in self.shape or ())
        return f"'{printable(self.name)}' {self.dtype or 'of no tensor type'} ({sizes})"


def input_spec(value: ValueInfoProto) -> InputSpec:
    """What the model declares about one of its inputs."""
    if not value.type.HasField("tensor_type"):
        return InputSpec(value.name, None, None)
    tensor = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None)
    dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
    return InputSpec(value.name, dtype, dims)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What free dimensions are set to: the first one, those of images (rank 4 and 5, axis 2 on), others."""

    batch: int
    spatial: int
    other: int
    channels: int = 3


MOST_ELEMENTS = 2**28
ATTEMPTS = (
    Sizes(2, 64, 16), Sizes(2, 224, 128), Sizes(1, 224, 16), Sizes(2, 32, 8), Sizes(1, 64, 1, channels=1),
    Sizes(1, 512, 64),
)  # fmt: skip


def choose_shapes(
    specs: list[InputSpec], sizes: Sizes, shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, int]
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """A whole shape for each input, and the sizes that had to be chosen.

    Raises:
        UsageError: a shape or dimension was given that fits no input.
    """
    _check_hints(specs, shapes, dims)
    symbols = dict(dims)
    chosen: dict[str, int] = {}
    result: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        if spec.name in shapes:
            result[spec.name] = tuple(shapes[spec.name])
            continue
        whole: list[int] = []
        declared = (None,) * 4 if spec.shape is None else spec.shape  # of no rank: most likely images
        for axis, size in enumerate(declared):
            if isinstance(size, int) and size > 0:
                whole.append(size)
                continue
            key = size if isinstance(size, str) and size else f"{spec.name}[{axis}]"
            if key not in symbols:
                symbols[key] = chosen[key] = _size(sizes, axis, len(declared))
            whole.append(symbols[key])
        result[spec.name] = tuple(whole)
    for name, shape in result.items():
        if prod(shape) > MOST_ELEMENTS:
            raise UsageError(f"input {printable(name)!r} of shape {list(shape)} is too large to make up")
    return result, chosen


def _size(sizes: Sizes, axis: int, rank: int) -> int:
    if axis == 0:
        return sizes.batch
    if rank in (4, 5):
        return sizes.channels if axis == 1 else sizes.spatial
    return sizes.other


def _check_hints(specs: list[InputSpec], shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, int]) -> None:
    names = [spec.name for spec in specs]
    symbols = sorted({size for spec in specs for size in spec.shape or () if isinstance(size, str)})
    for name in shapes:
        if name not in names:
            raise UsageError(f"--shape {printable(name)}: no such input; the model has {_listed(names)}")
    for name in dims:
        if name not in symbols:
            raise UsageError(f"--dim {printable(name)}: no such dimension; the model has {_listed(symbols)}")
    for spec in specs:
        given = shapes.get(spec.name)
        if given is None or spec.shape is None:
            continue
        fixed = [size if isinstance(size, int) and size > 0 else None for size in spec.shape]
        fits = len(given) == len(fixed) and all(f in (None, g) for f, g in zip(fixed, given, strict=True))
        if not fits:
            declared = ", ".join(str(size) for size in spec.shape)
            raise UsageError(f"--shape {printable(spec.name)}: {list(given)} does not fit the declared ({declared})")


def _listed(names: list[str]) -> str:
    return ", ".join(printable(name) for name in names) or "none"


def make_feeds(specs: list[InputSpec], shapes: Mapping[str, tuple[int, ...]], seed: int, trial: int) -> Feeds:
    """One set of inputs. Every spec has a dtype.

    Floats are standard normal in even trials and uniform in [-1, 1) in odd ones; integers are 0 or 1, which is
    an index that any table has.
    """
    feeds: Feeds = {}
    for i, spec in enumerate(specs):
        rng = np.random.default_rng([seed, trial, i])
        assert spec.dtype is not None
        feeds[spec.name] = _values(rng, spec.dtype, shapes[spec.name], trial)
    return feeds


def _values(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...], trial: int) -> Array:
    if dtype.kind == "O":
        return np.full(shape, "bnfold", dtype=object)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "u" and dtype.itemsize == 1:
        return rng.integers(0, 256, shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 2, shape).astype(dtype)
    values: NDArray[np.float64] = rng.standard_normal(shape) if trial % 2 == 0 else rng.uniform(-1, 1, shape)
    return round_once(np.asarray(values), dtype)


def nudge(feeds: Feeds, seed: int) -> Feeds:
    """The same inputs with every float moved to a neighbouring number of its type, up or down at random."""
    rng = np.random.default_rng([seed, 1])
    moved: Feeds = {}
    for name, values in feeds.items():
        if values.dtype.kind != "f" or values.dtype.itemsize < 2:
            moved[name] = values
            continue
        towards = np.where(rng.integers(0, 2, values.shape) == 1, np.inf, -np.inf).astype(values.dtype)
        moved[name] = np.nextafter(values, towards)
    return moved


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`name:1,3,224,224` or `name:[1,3,224,224]` as a name and a shape; `name:` is a scalar.

    Raises:
        UsageError: it is not of that form.
    """
    name, _, sizes = text.rpartition(":")
    sizes = re.sub(r"\s", "", sizes).removeprefix("[").removesuffix("]")
    if not name or not re.fullmatch(r"(\d{1,10}([,x]\d{1,10})*)?", sizes, re.ASCII):
        raise UsageError(f"--shape {printable(text)}: expected NAME:1,3,224,224")
    return name, tuple(int(size) for size in re.split("[,x]", sizes) if size)


def parse_dim(text: str) -> tuple[str, int]:
    """`N=2` as a symbol and a size.

    Raises:
        UsageError: it is not of that form.
    """
    name, _, number = text.rpartition("=")
    if not name or not re.fullmatch(r"\d{1,10}", number, re.ASCII) or int(number) < 1:
        raise UsageError(f"--dim {printable(text)}: expected SYMBOL=SIZE with a size from 1 on, such as N=2")
    return name, int(number)
