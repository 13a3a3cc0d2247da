"""What `verify` and `check` report, as trees of values. Renderers are pure functions of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from bnfold.report import SiteReport
from bnfold.verification import Verification
from bnfold.verification.sitecheck import SiteCheck

VERIFY_SCHEMA = "bnfold.verify/1"
CHECK_SCHEMA = "bnfold.check/1"
WORST_FIRST = (70, 2, 1, 3, 0)
VERDICT_CODES = {"equal": 0, "different": 1, "not verified": 3}


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A model file: its path, its size in bytes and its SHA-256 in hex, both without external data."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Everything that `bnfold verify` says.

    Attributes:
        version: of bnfold.
        versions: of what it ran with, by name.
        original, folded: the two files.
        verdict, exit_code: "equal" 0, "different" 1, "not verified" 3.
        blame: the first value that is made wrong; None where there is none.
        verification: the verdict of each provider, with every changed value and every output.
        seconds: how long it took.
    """

    version: str
    versions: Mapping[str, str]
    original: FileFacts
    folded: FileFacts
    verdict: str
    exit_code: int
    blame: SiteCheck | None
    verification: Verification
    seconds: float
    schema: str = field(default=VERIFY_SCHEMA)


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What `check` says of one model.

    Attributes:
        model: its path.
        outcome: "passed"; "failed": folding would change its outputs, or sites are left that should not be; "not
            verified"; "invalid": it cannot be read, or an option does not fit it; "bug": in bnfold.
        exit_code: the outcome as an exit code: 0, 1, 3, 2, 70.
        reasons: sentences; none where it passed.
        sha256, bytes: of the file, without external data; None and 0 where it cannot be read.
        foldable: how many sites would fold.
        left: how many sites would stay.
        codes: how many of them by code.
        sites: all of them, as in the report of `fold`.
        verification: of the folded model against this one; None where nothing folds.
        seconds: how long it took.
    """

    model: str
    outcome: Literal["passed", "failed", "not verified", "invalid", "bug"]
    exit_code: int
    reasons: tuple[str, ...] = ()
    sha256: str | None = None
    bytes: int = 0
    foldable: int = 0
    left: int = 0
    codes: Mapping[str, int] = field(default_factory=dict)
    sites: tuple[SiteReport, ...] = ()
    verification: Verification | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What `check` says of all models; true only where every one passed.

    Attributes:
        version: of bnfold.
        versions: of what it ran with, by name.
        allow_foldable, max_unfolded: what was asked.
        exit_code: the worst of 70 > 2 > 1 > 3 > 0.
        models: one for each model, in the order that they were given in.
        seconds: how long it took.
    """

    version: str
    versions: Mapping[str, str]
    allow_foldable: bool
    max_unfolded: int | None
    exit_code: int
    models: tuple[ModelCheck, ...]
    seconds: float
    schema: str = field(default=CHECK_SCHEMA)

    def __bool__(self) -> bool:
        return self.exit_code == 0


def worst(codes: Iterable[int]) -> int:
    """The exit code that speaks for several."""
    return min(codes, key=WORST_FIRST.index, default=0)
