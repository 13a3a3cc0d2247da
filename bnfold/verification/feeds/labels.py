"""Class labels for the accuracy of both models: information beside the verdict, never part of it.

    index,label        samples by their number in the other --input-data, in the order of its sets
    0,7                (a header is optional; with one column, the row is the number)

    cat_1.npy,281      or each sample as an .npy of its own, relative to the CSV: then this is the data too

The answer of a model is the largest score in each row of its first output of shape (samples, classes) or
(samples, classes, 1, 1), or its first output of whole numbers of shape (samples,).
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import UsageError
from bnfold.rounding import FLOAT_TYPES, Array
from bnfold.text import printable
from bnfold.verification.feeds.check import checked
from bnfold.verification.feeds.data import read_arrays
from bnfold.verification.feeds.spec import Feeds, InputSpec

_BATCH = 32  # samples that run together, where the model leaves it open
UNKNOWN = -1  # the label of a sample that has none

Classes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labels:
    """The rows of a CSV.

    Attributes:
        path: of the CSV.
        files: the sample of each row; () where rows name samples by number.
        indices: the number of each row's sample.
        classes: the label of each row.
    """

    path: Path
    files: tuple[str, ...]
    indices: tuple[int, ...]
    classes: tuple[int, ...]

    def of(self, first: int, count: int) -> Classes:
        """The labels (count,) of the samples from number `first` on."""
        found = np.full(count, UNKNOWN, np.int64)
        for index, label in zip(self.indices, self.classes, strict=True):
            if first <= index < first + count:
                found[index - first] = label
        return found


def read_labels(path: Path) -> Labels:
    """The labels in a CSV.

    Raises:
        UsageError: it cannot be read, or a label or sample makes no sense.
    """
    where = f"--input-data {printable(str(path))}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{where}: cannot read it: {printable(str(error))}") from None
    if rows and not rows[0][-1].isdecimal():
        del rows[0]  # a header
    if not rows or any(len(row) != len(rows[0]) for row in rows) or len(rows[0]) > 2:
        raise UsageError(f"{where}: expected rows of a file name or number and a class number, such as 0,7")
    wrong = next((row for row in rows if not (row[-1].isascii() and row[-1].isdecimal())), None)
    if wrong is not None:
        raise UsageError(f"{where}: the label {printable(wrong[-1])!r} is no class number (0, 1, ...)")
    keys = [row[0] for row in rows] if len(rows[0]) == 2 else [str(number) for number in range(len(rows))]
    numbered = all(key.isascii() and key.isdecimal() for key in keys)
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UsageError(f"{where}: sample {printable(twice)!r} is there twice")
    indices = tuple(map(int, keys)) if numbered else tuple(range(len(keys)))
    return Labels(path, () if numbered else tuple(keys), indices, tuple(int(row[-1]) for row in rows))


def read_samples(labels: Labels, specs: list[InputSpec]) -> list[tuple[str, Feeds, Classes]]:
    """The samples that the CSV names as files, in batches, with their labels. The last batch is filled up.

    Raises:
        UsageError: one cannot be read, or does not fit the model.
    """
    where = f"--input-data {printable(str(labels.path))}"
    if len(specs) != 1 or not specs[0].shape or specs[0].wraps:
        shown = ", ".join(map(str, specs)) or "none"
        raise UsageError(f"{where}: files of samples need a model with one input of batches; the inputs are: {shown}")
    fixed = specs[0].shape[0]
    batch = fixed if isinstance(fixed, int) and fixed > 0 else _BATCH
    samples = [_sample(labels.path.parent / name, len(specs[0].shape), where) for name in labels.files]
    found: list[tuple[str, Feeds, Classes]] = []
    for first in range(0, len(samples), batch):
        part = samples[first : first + batch]
        if batch == fixed:
            part += part[-1:] * (batch - len(part))
        try:
            array = np.stack(part)
        except ValueError:
            raise UsageError(f"{where}: samples from {first} on have different shapes") from None
        feeds = checked(specs, {specs[0].name: array}, where)
        found.append((f"{labels.path.name} [{first}]", feeds, labels.of(first, len(part))))
    return found


def _sample(path: Path, rank: int, where: str) -> Array:
    """One sample, without the axis of the batch."""
    if path.suffix != ".npy":
        raise UsageError(f"{where}: samples are .npy files, unlike {printable(path.name)!r}")
    array = read_arrays(path, f"{where}: {printable(path.name)}")[""]
    return np.asarray(array[0]) if array.ndim == rank and array.shape[0] == 1 else array


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often each model was right.

    Attributes:
        output: whose largest element is the answer.
        samples: how many have a label.
        before: how many of them the original got right.
        after: how many the folded model did.
        changed: on how many the two disagree.
    """

    output: str
    samples: int
    before: int
    after: int
    changed: int


@dataclass(slots=True)
class Tally:
    """Counts right answers, trial by trial. `accuracy` is None until there was a sample with a label."""

    accuracy: Accuracy | None = None
    _total: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def add(self, labels: Array | None, names: list[str], original: list[Any], folded: list[Any]) -> None:
        """Count the answers to the samples of one trial.

        Raises:
            UsageError: no output looks like classes.
        """
        if labels is None:
            return
        place = next((i for i, output in enumerate(original) if _answers(output, len(labels)) is not None), None)
        if place is None:
            raise UsageError(f"labels were given, but no output looks like classes of {len(labels)} samples")
        before, after = _answers(original[place], len(labels)), _answers(folded[place], len(labels))
        if before is None or after is None:
            return
        known = labels != UNKNOWN
        counts = [known, known & (before == labels), known & (after == labels), known & (before != after)]
        self._total = [total + int(count.sum()) for total, count in zip(self._total, counts, strict=True)]
        self.accuracy = Accuracy(names[place], *self._total)


def _answers(output: Any, samples: int) -> Classes | None:
    """The class of each sample, (samples,); None where the output holds something else."""
    if not isinstance(output, np.ndarray) or not output.ndim or output.shape[0] != samples:
        return None
    if output.dtype.kind in "iu" and output.ndim == 1:
        return output.astype(np.int64)
    scores = output.ndim in (2, 4) and output.shape[1] > 1 and output.shape[2:] in ((), (1, 1))
    if not scores or output.dtype not in FLOAT_TYPES:
        return None
    return np.asarray(output.reshape(samples, -1).argmax(axis=1), np.int64)
