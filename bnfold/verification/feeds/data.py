"""Inputs from files: .npz by input name, .npy for a single input, folders of protobufs as in ONNX's model zoo.

    data.npz                                 x, ids, ...: one set of inputs
    data.npy                                 one set, for a model with one input
    test_data_set_0/input_0.pb, ...          one set for each such folder, or that folder itself

A model with a fixed batch takes a multiple of it from .npz and .npy: the samples are cut into sets. Pickles are
refused: they could run anything.
"""

import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from onnx import OptionalProto, SequenceProto, TensorProto, numpy_helper

from bnfold.errors import UsageError
from bnfold.rounding import Array
from bnfold.text import printable
from bnfold.verification.feeds.check import checked
from bnfold.verification.feeds.spec import Feeds, InputSpec

_UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, zipfile.BadZipFile, zlib.error,
               pickle.UnpicklingError, NotImplementedError, MemoryError)  # fmt: skip
INPUTS = "inputs/"  # before the name of an input, in files that hold outputs too (`failing`)
_ELEMENT = re.compile(r"(.*)\[(\d+)\]", re.DOTALL)

Set = tuple[str, Feeds]


def read_data(path: Path, specs: list[InputSpec]) -> list[Set]:
    """The sets of inputs in a file or folder, each with a name for it.

    Raises:
        UsageError: it cannot be read, or does not fit the model.
    """
    where = f"--input-data {printable(str(path))}"
    if path.is_dir():
        return [(name, checked(specs, feeds, f"{where}/{name}")) for name, feeds in _protobufs(path, specs, where)]
    if path.suffix not in (".npz", ".npy"):
        raise UsageError(f"{where}: expected .npz, .npy, .csv, or a folder with test_data_set_*/input_*.pb")
    arrays = read_arrays(path, where)
    if path.suffix == ".npy":
        if len(specs) != 1:
            names = ", ".join(map(str, specs)) or "none"
            raise UsageError(f"{where}: one array, but the model's inputs are: {names}; use .npz")
        arrays = {specs[0].name: arrays[""]}
    parts = _cut(specs, _gathered(arrays, specs))
    return [(f"{path.name}{rows}", checked(specs, feeds, where)) for rows, feeds in parts]


def read_arrays(path: Path, where: str) -> dict[str, Array]:
    """The arrays in an .npz, by name; the one in an .npy by the name "".

    Raises:
        UsageError: it cannot be read, or holds no arrays.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except _UNREADABLE as error:
        raise UsageError(f"{where}: {_why(path, error)}") from None
    if not arrays or (path.suffix == ".npz" and "" in arrays):
        raise UsageError(f"{where}: there are no named arrays in it")
    return arrays


def _why(path: Path, error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot read it: {error.strerror}"
    if "pickle" in str(error).lower() or isinstance(error, pickle.UnpicklingError):
        return "it holds a Python pickle, or is no numpy file; pickles can run anything and are refused"
    return f"not a {path.suffix} file, or cut short: {printable(str(error) or type(error).__name__)}"


def _gathered(arrays: dict[str, Array], specs: list[InputSpec]) -> dict[str, Any]:
    """The inputs among the arrays; x[0], x[1], ... are the elements of a sequence x."""
    if any(name.startswith(INPUTS) for name in arrays):
        arrays = {name.removeprefix(INPUTS): array for name, array in arrays.items() if name.startswith(INPUTS)}
    sequences = {spec.name for spec in specs if spec.is_sequence}
    found: dict[str, Any] = {}
    for name in sorted(arrays, key=_place):
        match = _ELEMENT.fullmatch(name)
        if match is not None and match[1] in sequences:
            found.setdefault(match[1], []).append(arrays[name])
        else:
            found[name] = arrays[name]
    return found


def _place(name: str) -> tuple[str, int]:
    match = _ELEMENT.fullmatch(name)
    return (name, 0) if match is None else (match[1], int(match[2]))


def _cut(specs: list[InputSpec], feeds: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Sets of as many samples as the model takes at once; all in one where that is free, or does not divide them."""
    sizes = {spec.name: spec.shape[0] if spec.shape else None for spec in specs}
    counts: set[int] = set()
    for name, array in feeds.items():
        batch = sizes.get(name)
        if not isinstance(batch, int) or batch < 1 or not isinstance(array, np.ndarray) or not array.ndim:
            return [("", feeds)]
        counts.add(array.shape[0] // batch if array.shape[0] % batch == 0 else 0)
    if len(counts) != 1 or max(counts) < 2:
        return [("", feeds)]
    sets = []
    for number in range(max(counts)):
        rows = {name: slice(number * int(sizes[name] or 1), (number + 1) * int(sizes[name] or 1)) for name in feeds}
        first = next(iter(rows.values()))
        text = f" [{first.start}]" if first.stop - first.start == 1 else f" [{first.start}:{first.stop}]"
        sets.append((text, {name: array[rows[name]] for name, array in feeds.items()}))
    return sets


def _protobufs(path: Path, specs: list[InputSpec], where: str) -> list[tuple[str, dict[str, Any]]]:
    folders = sorted((p for p in path.glob("test_data_set_*") if p.is_dir()), key=_number) or [path]
    found = []
    for folder in folders:
        files = sorted(folder.glob("input_*.pb"), key=_number)
        if not files:
            raise UsageError(f"{where}: there are no test_data_set_*/input_*.pb in it, nor input_*.pb")
        if len(files) > len(specs):
            names = ", ".join(map(str, specs)) or "none"
            raise UsageError(f"{where}: {len(files)} files in {printable(folder.name)}, but the inputs are: {names}")
        found.append((folder.name, {spec.name: _read(file, spec) for file, spec in zip(files, specs, strict=False)}))
    return found


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"_(\d+)(\.pb)?$", path.name, re.ASCII)
    return (int(digits[1]) if digits else 0), path.name


def _read(path: Path, spec: InputSpec) -> Any:
    """One value: a TensorProto, SequenceProto or OptionalProto, as the model declares it."""
    try:
        data = path.read_bytes()
        if spec.is_optional:
            return numpy_helper.to_optional(OptionalProto.FromString(data))
        if spec.is_sequence:
            return numpy_helper.to_list(SequenceProto.FromString(data))
        return numpy_helper.to_array(TensorProto.FromString(data))
    except (DecodeError, *_UNREADABLE) as error:
        kind = type(error).__name__ if not str(error) else str(error)
        raise UsageError(
            f"--input-data {printable(str(path))}: not the protobuf of {spec}, or cut short: {printable(kind)}"
        ) from None
