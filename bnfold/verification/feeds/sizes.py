"""Sizes for the free dimensions of a model's inputs.

Free dimensions get a size, the same for the same symbol; which sizes were chosen is part of the report. A
network does not say which sizes it can take, so there is a short list of attempts, tried in order; and for each
dimension a second size, which it is tried with once the model has run.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from bnfold.errors import UsageError
from bnfold.text import printable
from bnfold.verification.feeds.spec import InputSpec


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


@dataclass(frozen=True, slots=True)
class Chosen:
    """Whole shapes of all inputs, and how they came about.

    Attributes:
        shapes: by input name.
        sizes: those that were chosen here for free dimensions, by symbol or as "input[axis]".
        others: for each of these, another size to try.
    """

    shapes: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    others: dict[str, int]


def choose_shapes(
    specs: list[InputSpec], sizes: Sizes, shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, int]
) -> Chosen:
    """A whole shape for each input.

    Raises:
        UsageError: a shape or dimension was given that fits no input, or asks for more than there is memory for.
    """
    _check_hints(specs, shapes, dims)
    chosen: dict[str, int] = {}
    others: dict[str, int] = {}
    for spec in specs:
        for axis, key in _free(spec, shapes):
            if key not in dims and key not in chosen:
                chosen[key], others[key] = _size(sizes, axis, len(_declared(spec)))
    whole = shapes_with(specs, shapes, {**dims, **chosen})
    check_memory(whole)
    return Chosen(whole, chosen, others)


def shapes_with(
    specs: list[InputSpec], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """The shape of each input: as given in `shapes`, else as declared with `sizes` for what is free."""
    result: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        free = dict(_free(spec, shapes))
        declared = shapes.get(spec.name, _declared(spec))
        result[spec.name] = tuple(
            sizes[free[axis]] if axis in free else int(size or 0) for axis, size in enumerate(declared)
        )
    return result


def check_memory(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make sure that inputs of these shapes can be made up.

    Raises:
        UsageError: one is too large.
    """
    for name, shape in shapes.items():
        if prod(shape) > MOST_ELEMENTS:
            raise UsageError(f"input {printable(name)!r} of shape {list(shape)} is too large to make up")
    if sum(map(prod, shapes.values())) > MOST_ELEMENTS:
        raise UsageError(
            f"inputs of shapes {', '.join(str(list(s)) for s in shapes.values())} are too large to make up"
        )


def _declared(spec: InputSpec) -> tuple[int | str | None, ...]:
    """The declared sizes; of an input without a rank four free ones, as it most likely holds images."""
    return (None,) * 4 if spec.shape is None else spec.shape


def _free(spec: InputSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, str]]:
    """The axes whose size is free, and how each is called."""
    if spec.name in shapes:
        return []
    declared = enumerate(_declared(spec))
    free = [(axis, size) for axis, size in declared if not (isinstance(size, int) and size > 0)]
    return [(axis, size if isinstance(size, str) and size else f"{spec.name}[{axis}]") for axis, size in free]


def _size(sizes: Sizes, axis: int, rank: int) -> tuple[int, int]:
    """A size, and another one to try. Networks halve their locations up to five times, hence the 32."""
    if axis == 0:
        return sizes.batch, 3 - sizes.batch  # 1 and 2, which cost least
    if rank in (4, 5):
        return (sizes.channels, sizes.channels + 1) if axis == 1 else (sizes.spatial, sizes.spatial + 32)
    return sizes.other, sizes.other + max(sizes.other // 2, 1)


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
