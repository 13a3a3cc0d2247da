"""Tolerances that a caller asks for, in place of what rounding may do. They concern the outputs only.

As numpy.allclose has them, element by element: |found - expected| <= atol + rtol |expected|.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from bnfold.affine import Float64Array
from bnfold.errors import UsageError
from bnfold.text import printable

ALL = ""  # stands for every output that is not named


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What one output may be off by; what was not given is 0."""

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"

    def exceeded(self, expected: Float64Array, found: Float64Array) -> int:
        """How many of the elements, all finite, are further off."""
        return int(np.count_nonzero(np.abs(found - expected) > self.atol + self.rtol * np.abs(expected)))


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The tolerances of all outputs, by name; under `ALL` that of outputs that are not named."""

    rtol: Mapping[str, float]
    atol: Mapping[str, float]

    def of(self, output: str) -> Tolerance | None:
        """The tolerance of an output; None where none was asked for."""
        rtol, atol = (given.get(output, given.get(ALL)) for given in (self.rtol, self.atol))
        return None if rtol is None and atol is None else Tolerance(rtol or 0.0, atol or 0.0)

    def check(self, outputs: Collection[str]) -> None:
        """Make sure that every name is one of the outputs.

        Raises:
            UsageError: one is not.
        """
        for name in (*self.rtol, *self.atol):
            if name != ALL and name not in outputs:
                listed = ", ".join(printable(output) for output in outputs) or "none"
                raise UsageError(f"tolerance for {printable(name)!r}: no such output; the model has {listed}")


def parse_tolerance(option: str, text: str) -> tuple[str, float]:
    """`1e-3` or `output:1e-3` as an output's name (or `ALL`) and a number.

    Raises:
        UsageError: it is not of that form, or the number is negative or not finite.
    """
    name, colon, number = text.rpartition(":")
    plain = re.fullmatch(r"\d*\.?\d+([eE][+-]?\d+)?|\d+\.", number, re.ASCII)
    if not plain or (colon and not name) or not math.isfinite(float(number)):
        raise UsageError(f"{option} {printable(text)}: expected [OUTPUT:]VALUE, such as 1e-3 or logits:1e-3")
    return name, float(number)


def by_output(given: "float | Mapping[str, float] | None") -> dict[str, float]:
    """A tolerance as the API takes it: one number for all outputs, or numbers by output.

    Raises:
        UsageError: one is negative or not finite.
    """
    found = {} if given is None else dict(given) if isinstance(given, Mapping) else {ALL: given}
    for name, value in found.items():
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"tolerance {value} for {printable(name)!r} must be a finite number from 0 on")
    return found
