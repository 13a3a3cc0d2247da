"""The generated table of models/README.md: one row a file, with what only the file itself can tell.

Sizes, hashes and accuracies are read from the files as they lie there, so the table is right whichever of
them were rebuilt. The text around the markers is written by hand and stays.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np

from networks import digits
from networks.catalogue import Entry
from networks.export import run

BEGIN = "<!-- begin: written by tools/make_models.py -->"
END = "<!-- end -->"
PACKAGES = ("torch", "transformers", "scikit-learn", "onnx", "onnxruntime", "onnxscript", "numpy")
HEAD = "| file | what it is | origin | licence | made by | bytes | test accuracy | sha256 |"


def update(folder: Path, entries: tuple[Entry, ...]) -> None:
    """Replace what stands between the markers of `folder`/README.md."""
    readme = folder / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    rows = [HEAD, "|---" * HEAD.count(" | ") + "|---|", *(_row(folder, entry) for entry in entries)]
    table = "\n".join([f"Made with {versions}.", "", *rows])
    readme.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def accuracy(model: Path, test: Path) -> float:
    """The share of held-out digits that the file classifies rightly, in onnxruntime."""
    with np.load(test) as data:
        guesses = run(model, data[digits.INPUT]).argmax(axis=1)
        return float((guesses == data["labels"]).mean())


def _row(folder: Path, entry: Entry) -> str:
    """One line of the table."""
    path = folder / entry.name
    data = path.read_bytes()
    trained = entry.name.startswith("digits") and path.suffix == ".onnx"
    score = f"{accuracy(path, folder / 'digits_test.npz'):.2%}" if trained else "-"
    command = f"`make_models.py --only {path.stem}`"
    digest = hashlib.sha256(data).hexdigest()
    told = (f"`{entry.name}`", entry.what, entry.origin, entry.licence)
    measured = (command, f"{len(data):,}", score, f"`{digest}`")
    return "| " + " | ".join(told + measured) + " |"
