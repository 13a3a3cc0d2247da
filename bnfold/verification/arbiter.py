"""Who is right where every changed value agrees and the outputs still differ: float64, site by site.

Rounding alone moves the outputs of some networks far, of the original as much as of the folded model. The site whose
two runs are furthest apart is evaluated in float64, each side from its own inputs, and both are held against that.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bnfold.rounding import Array, to_float64
from bnfold.text import printable
from bnfold.verification.float64 import Evaluator, NotEvaluatedError
from bnfold.verification.layers import Sites
from bnfold.verification.pairing import Pairing
from bnfold.verification.runs import Runs
from bnfold.verification.segments import frontier


@dataclass(frozen=True, slots=True)
class OwnErrors:
    """How far the runs of both models are from float64 at one value, each on its own inputs.

    Attributes:
        value: its name in the original.
        original: of the original's run.
        folded: of the other's.
        scale: the largest absolute value there.
    """

    value: str
    original: float
    folded: float
    scale: float

    @property
    def relative(self) -> float:
        """The larger of both, over the scale."""
        return max(self.original, self.folded) / self.scale if self.scale else 0.0

    def __str__(self) -> str:
        """Both as a clause."""
        where = f"at '{printable(self.value)}'"
        return f"{where} the original's run is {self.original:.2g} off float64, the folded model's {self.folded:.2g}"


def own_errors(sites: Sites, runs: Runs) -> OwnErrors | None:
    """Both runs against float64, at the site where they differ most; None where that is not known."""
    pairing = sites.reading
    apart = {value: _apart(pairing, value, runs) for value in pairing.changed}
    worst = max(apart, key=lambda value: apart[value], default=None)
    offs = _offs(pairing, worst, runs) if worst is not None and apart[worst] else None
    if worst is None or offs is None:
        return None
    return OwnErrors(worst, *offs, float(np.abs(to_float64(runs.original[worst])).max()))


def _apart(pairing: Pairing, value: str, runs: Runs) -> float:
    """The largest difference of both runs at a value, by its scale there."""
    first, second = runs.original.get(value), runs.folded.get(pairing.names[value])
    if first is None or second is None or first.shape != second.shape or not first.size:
        return 0.0
    one, other = to_float64(first), to_float64(second)
    scale = float(np.abs(one).max())
    with np.errstate(all="ignore"):
        found = float(np.abs(other - one).max()) / scale if scale else 0.0
    return found if np.isfinite(found) else 0.0


def _offs(pairing: Pairing, value: str, runs: Runs) -> tuple[float, float] | None:
    """How far both runs are from a float64 evaluation on their own inputs."""
    names = frontier(pairing, value).names
    sides = (
        (pairing.original, value, runs.original, {name: name for name in names}),
        (pairing.folded, pairing.names[value], runs.folded, {name: pairing.names[name] for name in names}),
    )
    found: list[float] = []
    for facts, name, numbers, own in sides:
        given: Mapping[str, Array] = {there: numbers[there] for there in own.values() if there in numbers}
        try:
            exact = Evaluator(facts, given).target(name).value
        except NotEvaluatedError:
            return None
        found.append(float(np.abs(to_float64(numbers[name]) - exact).max()))
    return found[0], found[1]
