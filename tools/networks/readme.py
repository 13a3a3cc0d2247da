"""The generated parts of models/README.md: a row for each file, and what was counted in it.

Sizes, hashes and accuracies are read from the files as they lie there, so the first table is right whichever of
them were rebuilt. The counts are those of tools/expected_folds.toml, which is written by hand, as is the text
around the markers.
"""

import hashlib
import textwrap
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from networks import digits
from networks.catalogue import Entry
from networks.export import run

BEGIN = "<!-- begin: written by tools/make_models.py -->"
BEGIN_COUNTED = "<!-- begin: written by tools/make_models.py from tools/expected_folds.toml -->"
END = "<!-- end -->"
COUNTED = Path(__file__).parent.parent / "expected_folds.toml"
PACKAGES = ("torch", "transformers", "scikit-learn", "onnx", "onnxruntime", "onnxscript", "numpy")
HEAD = "| file | what it is | origin | licence | made by | bytes | test accuracy | sha256 |"


def update(folder: Path, entries: tuple[Entry, ...]) -> None:
    """Replace what stands between the markers of `folder`/README.md."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = _replace(text, BEGIN, files(folder, entries))
    text = _replace(text, BEGIN_COUNTED, counted([Path(e.name).stem for e in entries if e.name.endswith(".onnx")]))
    readme.write_text(text, encoding="utf-8")


def files(folder: Path, entries: tuple[Entry, ...]) -> str:
    """The versions of the packages, and the table of the files."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    rows = [HEAD, "|---" * HEAD.count(" | ") + "|---|", *(_row(folder, entry) for entry in entries)]
    return "\n".join([f"Made with {versions}.", "", *rows])


def counted(names: list[str]) -> str:
    """The table of what was counted in each model, and how."""
    counts = tomllib.loads(COUNTED.read_text(encoding="utf-8"))
    if sorted(counts) != sorted(names):
        raise RuntimeError(f"{COUNTED.name} has other models than models/: {sorted(set(counts) ^ set(names))}")
    rows = ["| model | BatchNormalization | chains | fold | left |", "|---|---|---|---|---|"]
    rows += [_counted_row(name, counts[name]) for name in names]
    reasons = [
        textwrap.fill(
            f"- `{name}`: {counts[name]['why']}",
            110,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name in names
    ]
    return "\n".join([*rows, "", "How each was counted:", "", *reasons])


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


def _counted_row(name: str, count: dict[str, Any]) -> str:
    """One line of the table of counts; raise if the numbers do not add up."""
    if count["batchnorms"] + count["chains"] != count["folds"] + sum(count["left"].values()):
        raise RuntimeError(f"{COUNTED.name}: the numbers of {name} do not add up")
    left = ", ".join(f"{code} {number}" for code, number in count["left"].items()) or "-"
    return f"| `{name}.onnx` | {count['batchnorms']} | {count['chains']} | {count['folds']} | {left} |"


def _replace(text: str, begin: str, content: str) -> str:
    """`text` with `content` between `begin` and the next end marker."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n\n{content}\n\n{END}{after}"
