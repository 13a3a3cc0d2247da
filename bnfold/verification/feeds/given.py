"""The trials that a user gives, out of files, labels and a script together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bnfold.errors import UsageError
from bnfold.text import printable
from bnfold.verification.feeds.data import read_data
from bnfold.verification.feeds.labels import Labels, read_labels, read_samples
from bnfold.verification.feeds.script import Script, run_script
from bnfold.verification.feeds.spec import Feeds, InputSpec, tensors_only
from bnfold.verification.feeds.trials import Given, Trial


def given_trials(paths: Sequence[Path], script: Script | None, specs: list[InputSpec]) -> Given | None:
    """All trials that were given, in the order of the files and then the script; None where none were.

    Raises:
        UsageError: something cannot be read, or does not fit the model or the rest.
    """
    tables = [read_labels(path) for path in paths if path.suffix == ".csv"]
    if len(tables) > 1:
        raise UsageError(f"--input-data {printable(str(tables[1].path))}: a second table of labels")
    sets = [found for path in paths if path.suffix != ".csv" for found in read_data(path, specs)]
    sets += run_script(script, specs) if script is not None else []
    trials = [Trial(name, feeds, _shapes(feeds)) for name, feeds in sets]
    if tables and tables[0].files:
        samples = read_samples(tables[0], specs)
        trials += [Trial(name, feeds, _shapes(feeds), labels=classes) for name, feeds, classes in samples]
    elif tables:
        trials = _labelled(trials, tables[0])
    return Given(trials) if trials else None


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in tensors_only(feeds).items()}


def _labelled(trials: list[Trial], labels: Labels) -> list[Trial]:
    """The trials with labels, their samples numbered from one to the next."""
    found: list[Trial] = []
    first = 0
    for trial in trials:
        batches = [shape[0] for shape in trial.shapes.values() if shape]
        count = batches[0] if batches else 1
        classes = np.asarray(labels.of(first, count))
        found.append(Trial(trial.name, trial.feeds, trial.shapes, trial.sizes, classes))
        first += count
    beyond = max(labels.indices)
    if beyond >= first:
        where = f"--input-data {printable(str(labels.path))}"
        raise UsageError(f"{where}: a label for sample {beyond}, but there are {first}: give --input-data with them")
    return found
