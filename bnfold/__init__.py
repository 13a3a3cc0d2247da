"""bnfold: fold BatchNormalization into the convolutions of ONNX models, exactly, with a proof.

The public names load on first use, so that ``import bnfold`` (and ``bnfold --help``) costs nothing:

>>> import bnfold
>>> result = bnfold.fold("model.onnx")  # doctest: +SKIP
>>> result.save("model.folded.onnx")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "BnfoldError",
    "CheckResult",
    "FoldResult",
    "Inspection",
    "InvalidModelError",
    "NotVerified",
    "OutputError",
    "Restored",
    "UndoError",
    "UsageError",
    "Verification",
    "VerificationFailed",
    "__version__",
    "check",
    "fold",
    "inspect",
    "unfold",
    "verify",
]

if TYPE_CHECKING:
    from bnfold.api import check, fold, inspect, unfold, verify
    from bnfold.errors import (
        BnfoldError,
        InvalidModelError,
        NotVerified,
        OutputError,
        UndoError,
        UsageError,
        VerificationFailed,
    )
    from bnfold.report.verdicts import CheckResult
    from bnfold.results import FoldResult, Inspection
    from bnfold.undo.restore import Restored
    from bnfold.verification import Verification

_HOME = {
    "BnfoldError": "errors",
    "InvalidModelError": "errors",
    "NotVerified": "errors",
    "OutputError": "errors",
    "UndoError": "errors",
    "UsageError": "errors",
    "VerificationFailed": "errors",
    "FoldResult": "results",
    "Inspection": "results",
    "CheckResult": "report.verdicts",
    "check": "api",
    "fold": "api",
    "inspect": "api",
    "unfold": "api",
    "verify": "api",
    "Restored": "undo.restore",
    "Verification": "verification",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in, the first time it is asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"bnfold.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return __all__
