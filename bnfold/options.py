"""What may be folded: the choices that a caller has."""

from dataclasses import dataclass
from typing import Literal

from bnfold.errors import UsageError

Sources = Literal["bn", "affine", "all"]
SOURCES = ("bn", "affine", "all")


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """The choices of `fold` and `inspect`.

    Attributes:
        sources: "bn": BatchNormalization only. "affine": besides, chains of Mul, Add, ... by constants, where they
            go into Conv or ConvTranspose, or hold one factor for each map and go into the Gemm or MatMul before
            them. "all": every chain that can be folded exactly.
        freeze_inputs: initializers that are also model inputs (IR >= 4) count as constants.
        clone_shared: where what lies upstream is used elsewhere too, fold into a copy of it.
        partial: before a padded Conv, move the scale into the weights and leave one Add.
        merge_branches: add up parallel Conv of one input.
        assume_range: in float16 and bfloat16, assume that no value on the way overflows.
        only, exclude: patterns of site names (fnmatch).
        provenance: note in the metadata of each node what was folded into it.
    """

    sources: Sources = "affine"
    freeze_inputs: bool = False
    clone_shared: bool = False
    partial: bool = False
    merge_branches: bool = False
    assume_range: bool = False
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    provenance: bool = False

    def __post_init__(self) -> None:
        if self.sources not in SOURCES:
            raise UsageError(f"sources is one of {', '.join(SOURCES)}, not {self.sources!r}")
