"""The shapes of values, as far as the graph tells: sizes that are numbers, and sizes that are not known but named.

A dimension is a product: 7 * 49 * batch. Reshape and Flatten multiply and divide dimensions, and two products
that are the same product are the same size in every run, whatever `batch` is. That is all that a rule needs to
know in order to follow a feature map through a Reshape with 0, -1 or a computed target.

Everything is derived from the graph's inputs and constants, once, when the first question is asked; what a file
declares in value_info is used only where nothing follows for an operator (see `shapes.rules`).
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from onnx import ValueInfoProto

from bnfold.errors import InvalidModelError
from bnfold.text import SCOPE_MARK

if TYPE_CHECKING:
    from bnfold.graph import GraphFacts

MOST_NUMBERS = 64  # entries of an integer tensor that is followed as a possible shape
MOST_AXES = 64  # of a shape that is followed; numpy knows no more
MOST_NAMES = 64  # in one product; each Mul of a size by itself doubles them
LARGEST = 2**63 - 1  # a size


class Dim(NamedTuple):
    """A dimension: `factor` times the product of the named sizes. Without names it is just a number."""

    factor: int
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """The number, where it is one."""
        return None if self.names else self.factor

    def __mul__(self, other: "Dim") -> "Dim":  # type: ignore[override]  # a product, not a longer tuple
        names = (*self.names, *other.names)
        factor = self.factor * other.factor
        if abs(factor) > LARGEST or len(names) > MOST_NAMES:
            raise OverflowError(f"a size of {len(names)} factors, or beyond {LARGEST}")
        return Dim(factor, tuple(sorted(names)) if self.names and other.names else names)

    def over(self, other: "Dim") -> "Dim | None":
        """The quotient; None where `other` is not a factor of this product."""
        names = list(self.names)
        for name in other.names:
            if name not in names:
                return None
            names.remove(name)
        if other.factor == 0 or self.factor % other.factor:
            return None
        return Dim(self.factor // other.factor, tuple(names))


ONE = Dim(1)
Shape = tuple[Dim, ...]
Numbers = tuple[Dim | None, ...]


def product(dims: Iterable[Dim]) -> Dim:
    """The number of elements of these dimensions.

    Raises:
        OverflowError: it is beyond what a size can be.
    """
    total = ONE
    for dim in dims:
        total = total * dim
    return total


def sizes(shape: Shape | None) -> tuple[int, ...] | None:
    """The shape in numbers; None unless every dimension is one."""
    if shape is None or any(dim.names for dim in shape):
        return None
    return tuple(dim.factor for dim in shape)


class Shapes:
    """Shapes of the values of the graph that `facts` indexes, derived when the first is asked for.

    Overridable initializers count as unknown here, frozen or not: a shape would not tell whose they were.

    Attributes:
        deriving: shapes are being derived.
    """

    def __init__(self, facts: "GraphFacts") -> None:
        self._facts = facts
        self._shapes: dict[str, Shape | None] | None = None
        self._before: dict[str, Shape | None] = {}
        self._numbers: dict[str, Numbers] = {}
        self.deriving = False

    def of(self, value: str) -> Shape | None:
        """The shape of a value; None where not even its rank is known."""
        if value in self._facts.constants.stored and not self._facts.constants.is_overridable(value):
            return fixed(self._facts.constants.stored[value].shape)
        if self._shapes is None:
            self.deriving = True
            self._derive()
            self.deriving = False
        return self._shapes.get(value) if self._shapes is not None else None

    def rank(self, value: str) -> int | None:
        """How many dimensions a value has."""
        shape = self.of(value)
        return None if shape is None else len(shape)

    def renamed(self, old: str, new: str) -> None:
        """Note that what was called `old` is called `new`."""
        if self._shapes is not None and old in self._shapes:
            self._shapes[new] = self._shapes[old]

    def derive_again(self) -> None:
        """Note that the graph has changed: more may follow now than before, and what was known still holds."""
        if self._shapes is not None:
            self._before = self._shapes
            self._shapes = None
            self._numbers.clear()

    def numbers(self, value: str) -> Numbers | None:
        """The entries of an integer tensor of at most one axis, as dimensions; None where nothing is known."""
        if value in self._numbers:
            return self._numbers[value]
        found = self._facts.constants.find(value)
        if found is None or found.overridable:
            return None
        dtype, shape = found.tensor.dtype, found.tensor.shape
        if dtype is None or dtype.kind not in "iu" or len(shape) > 1 or prod(shape) > MOST_NUMBERS:
            return None
        try:
            return tuple(Dim(int(n)) for n in np.ravel(found.tensor.array()))
        except InvalidModelError:
            return None

    def _derive(self) -> None:
        from bnfold.shapes.numbers import follow_numbers
        from bnfold.shapes.rules import SHAPES

        facts = self._facts
        declared = {v.name: v for scope in facts.scopes for v in scope.declared}
        self._shapes = {v.name: _declared(v) for scope in facts.scopes for v in scope.inputs}
        for index in facts.live():
            node = facts.nodes[index]
            rule = SHAPES.get(facts.op(index))
            try:
                found: Sequence[Shape | None] = () if rule is None else rule(facts, index)
            except (InvalidModelError, ValueError, IndexError, ArithmeticError):
                found = ()
            for place, name in enumerate(node.output):
                if not name:
                    continue
                shape = found[place] if place < len(found) else None
                if shape is None and name in declared:
                    shape = _declared(declared[name])
                shape = self._before.get(name) if shape is None else shape
                self._shapes[name] = shape if shape is None or len(shape) <= MOST_AXES else None
            made = self._shapes.get(node.output[0]) if node.output else None
            if made is not None and len(made) <= 1:
                try:
                    numbers = follow_numbers(facts, index, self)
                except (InvalidModelError, ValueError, IndexError, ArithmeticError):
                    numbers = None
                if numbers is not None and len(numbers) <= MOST_NUMBERS:
                    self._numbers[node.output[0]] = numbers


def fixed(shape: Sequence[int]) -> Shape:
    """A shape of numbers."""
    return tuple(Dim(int(size)) for size in shape)


def _declared(value: ValueInfoProto) -> Shape | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    dims: list[Dim] = []
    where = "".join(value.name.partition(SCOPE_MARK)[1:])  # a symbol may be another size in a nested body
    for axis, dim in enumerate(kind.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(Dim(dim.dim_value))
        else:
            dims.append(Dim(1, (dim.dim_param + where,)) if dim.dim_param else unknown(value.name, axis))
    return tuple(dims)


def unknown(value: str, axis: int) -> Dim:
    """A size that is not known, under a name that no other has."""
    return Dim(1, (f"\0{value}:{axis}",))
