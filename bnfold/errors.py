"""Every error bnfold raises on purpose. Each carries the exit code that the CLI ends with.

0 done or nothing to do; 1 the check found something; 2 usage, unreadable, invalid or unsafe input;
3 could not verify; 70 our own bug; 130 interrupted, by the convention of shells. A message says what is
wrong, where, and what to do.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnfold.report import Report
    from bnfold.results import FoldResult
    from bnfold.verification import Verification

EXIT_DONE = 0
EXIT_FOUND = 1
EXIT_INVALID = 2
EXIT_UNVERIFIED = 3
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class BnfoldError(Exception):
    """Root of all errors that bnfold raises on purpose."""

    exit_code = EXIT_INVALID


class InvalidModelError(BnfoldError):
    """The model cannot be read: not a file, not ONNX, truncated, or breaking a rule of the ONNX spec."""


class ByReferenceError(InvalidModelError):
    """An attribute in a function's body stands for what the calls give (`ref_attr_name`), and has no one value."""


class UnsafePathError(InvalidModelError):
    """External data points outside the model's folder, or at something that is not a plain file."""


class OutputError(BnfoldError):
    """The output cannot be written where it was asked for."""


class TooLargeError(OutputError):
    """The model does not fit into one protobuf of 2 GiB."""


class UndoError(BnfoldError):
    """The undo file is damaged, or belongs to another folded model. Nothing was written."""


class UsageError(BnfoldError):
    """An argument that makes no sense: an unknown provider, a shape that does not parse."""


class _ResultError(BnfoldError):
    """A verdict as an error. `result` is all of it: what `fold` (a FoldResult) or `verify` would have returned."""

    def __init__(self, message: str, result: "FoldResult | Verification | None" = None) -> None:
        super().__init__(message)
        self.result = result

    def fold_report(self) -> "Report":
        """The report of the fold that ended so.

        Raises:
            ValueError: no fold did.
        """
        report: Report | None = getattr(self.result, "report", None)
        if report is None:
            raise ValueError("this verdict is not that of a fold")
        return report


class VerificationFailed(_ResultError):
    """The folded model's outputs differ from the original's. `fold` wrote nothing."""

    exit_code = EXIT_FOUND


class NotVerified(_ResultError):
    """The outputs could not be compared: a runtime, provider or operator is missing, or inconclusive."""

    exit_code = EXIT_UNVERIFIED


class WrittenInterrupt(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came when the model was in its place already."""
