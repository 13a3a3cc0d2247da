"""The verdict on one value that two models make differently."""

from dataclasses import dataclass
from typing import Literal

from bnfold.text import printable

Layer = Literal["algebra", "values"]


@dataclass(frozen=True, slots=True)
class SiteCheck:
    """One value that the two models make differently.

    Attributes:
        value: its name in the original.
        node: the node that makes it in the folded model, as a label.
        covered: whether it could be judged; `problem` says why not.
        layer: "algebra": by weight and bias themselves; "values": by what both make of the same inputs.
        ran: whether what it was when the models ran was judged too.
        times: the largest difference, in multiples of what rounding may do; up to 1 is equal.
        map: the feature map with the largest difference; None where there are no maps.
        expected, found: the numbers there, in the original and in the folded model.
        what: which numbers: "weight", "bias", or "value".
    """

    value: str
    node: str
    covered: bool = True
    layer: Layer = "algebra"
    ran: bool = False
    times: float = 0.0
    map: int | None = None
    expected: float = 0.0
    found: float = 0.0
    what: str = "value"
    problem: str = ""

    @property
    def equal(self) -> bool:
        """Whether the difference is no more than rounding."""
        return self.covered and not self.problem and self.times <= 1

    @property
    def wrong(self) -> bool:
        """Whether the difference is more than rounding."""
        return self.covered and not self.equal

    def __str__(self) -> str:
        """The check as a clause: which value, where in it, how far off."""
        where = f"'{printable(self.value)}', made by {self.node}"
        if self.problem:
            return f"{where}: {self.problem}"
        map_ = "" if self.map is None else f" of map {self.map}"
        return (
            f"{where}: the {self.what}{map_} is {self.found:.9g} instead of {self.expected:.9g}, "
            f"{self.times:.3g} times what rounding may do"
        )
