"""Keeping what two models differ on: one .npz with the inputs and both models' outputs.

    inputs/<name>, original/<name>, folded/<name>       elements of a sequence: <name>[0], <name>[1], ...

`--input-data` takes such a file again.
"""

import os
import re
import secrets
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bnfold.errors import OutputError
from bnfold.rounding import Array
from bnfold.staging import cannot_write
from bnfold.text import printable
from bnfold.verification.feeds.data import INPUTS
from bnfold.verification.feeds.trials import Trial


@dataclass(frozen=True, slots=True)
class Failing:
    """One trial that two models differ on.

    Attributes:
        provider: what ran.
        number: of the trial, from 0 on.
        trial: its inputs.
        names: of the outputs.
        original: what the original made of it.
        folded: what the folded model made of it; () where it did not run.
    """

    provider: str
    number: int
    trial: Trial
    names: list[str]
    original: list[Any]
    folded: list[Any]

    def save(self, folder: Path) -> Path:
        """Write it into `folder`, which is made if need be, whole or not at all; returns the file.

        Raises:
            OutputError: it cannot be written.
        """
        arrays: dict[str, Array] = {}
        for name, value in self.trial.feeds.items():
            _put(arrays, f"{INPUTS}{name}", value)
        for side, values in (("original", self.original), ("folded", self.folded)):
            for name, value in zip(self.names, values, strict=False):
                _put(arrays, f"{side}/{name}", value)
        provider = re.sub(r"\W", "_", self.provider.removesuffix("ExecutionProvider").lower())
        target = folder / f"failing-{provider}-trial{self.number}.npz"
        temporary = folder / f".{target.name}.{secrets.token_hex(4)}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                _write(file, arrays)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except (OSError, ValueError) as error:
            raise cannot_write(target, error) from None
        finally:
            temporary.unlink(missing_ok=True)
        return target


def _write(file: IO[bytes], arrays: dict[str, Array]) -> None:
    """Like numpy.savez, which pickles objects unless it is new enough to be told not to."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def check_folder(folder: Path) -> None:
    """Make sure, before any work is done, that files can be put there.

    Raises:
        OutputError: it is no folder, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--save-failing {printable(str(folder))}: {error.strerror}") from None


def _put(arrays: dict[str, Array], name: str, value: Any) -> None:
    if isinstance(value, list):
        for place, item in enumerate(value):
            _put(arrays, f"{name}[{place}]", item)
    elif isinstance(value, np.ndarray):
        arrays[name] = value.astype(str) if value.dtype == object else value
    elif value is not None and not isinstance(value, dict):
        arrays[name] = np.asarray(value)
