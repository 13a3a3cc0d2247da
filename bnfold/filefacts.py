"""What a report says about where it comes from: the files by their SHA-256, and the versions of what ran."""

import hashlib
import platform
from importlib import metadata
from pathlib import Path

import bnfold
from bnfold.errors import InvalidModelError
from bnfold.report.verdicts import FileFacts

_PACKAGES = ("onnx", "onnxruntime", "onnxruntime-gpu", "numpy")


def file_facts(path: Path) -> FileFacts:
    """Size and digest of a file.

    Raises:
        InvalidModelError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileFacts(str(path), file.tell(), digest)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidModelError(f"cannot read it: {reason}") from None


def versions() -> dict[str, str]:
    """The versions of bnfold, Python, and those packages that are there and decide what is computed."""
    found = {"bnfold": bnfold.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
