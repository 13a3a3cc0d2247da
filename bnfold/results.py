"""What `fold` and `inspect` return."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from bnfold.cleanup import unneeded_data
from bnfold.document import Document
from bnfold.output import staged
from bnfold.report import Report, SiteReport
from bnfold.staging import check_target
from bnfold.verification import Verification

if TYPE_CHECKING:
    from os import PathLike


@dataclass(slots=True)
class FoldResult:
    """What `fold` did.

    Attributes:
        report: everything, for renderers.
        verification: the verdict; None where nothing folded or verification was switched off.
    """

    report: Report
    verification: Verification | None
    _document: Document

    @property
    def model(self) -> ModelProto:
        """The folded model, a copy. Tensors that were in external data and did not change still are."""
        return self._document.inlined()

    @property
    def folded(self) -> tuple[SiteReport, ...]:
        """The BatchNormalizations that were folded."""
        return self.report.folded

    @property
    def refused(self) -> tuple[SiteReport, ...]:
        """The BatchNormalizations that were left, each with a code and a sentence."""
        return self.report.left

    @property
    def renamed(self) -> tuple[tuple[str, str], ...]:
        """Values upstream of a fold whose contents changed, old name and new."""
        return self.report.renamed

    @property
    def frozen(self) -> tuple[str, ...]:
        """Initializers that are no longer inputs of the model (`freeze_inputs`)."""
        return self.report.frozen

    def save(self, path: "str | PathLike[str]", *, force: bool = False) -> None:
        """Write the folded model; external data goes into one new file beside it.

        With `force`, data of the model that is replaced is removed where nothing else names it.

        Raises:
            OutputError: the path exists and `force` is off, or it cannot be written.
        """
        target = Path(path)
        check_target(target, force=force)
        document = self._document
        with staged(document, target, unchanged=not self.folded) as stage:
            stage.commit(replace=force, old=lambda: unneeded_data(target, document.data_paths()))


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` found: what `fold` would do, without doing it."""

    report: Report

    @property
    def sites(self) -> tuple[SiteReport, ...]:
        """One for each BatchNormalization."""
        return self.report.sites
