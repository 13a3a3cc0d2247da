"""Given inputs, held against what the model declares: names, types, shapes, and that there are numbers in them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnfold.errors import UsageError
from bnfold.rounding import FLOAT_TYPES, Array
from bnfold.text import printable
from bnfold.verification.feeds.spec import Feeds, InputSpec


def checked(specs: list[InputSpec], given: Mapping[str, Any], where: str) -> Feeds:
    """The inputs as runtimes take them: arrays, lists of arrays, None; text as objects.

    Args:
        specs: the model's inputs.
        given: values by input name.
        where: what they came from, for messages.

    Raises:
        UsageError: a name, type or shape is not the model's, or there are no numbers, or NaN among them.
    """
    expected = ", ".join(map(str, specs)) or "no inputs"
    unknown = [name for name in given if name not in {spec.name for spec in specs}]
    if unknown:
        raise UsageError(f"{where}: the model has no input {printable(str(unknown[0]))!r}; it has {expected}")
    missing = [spec for spec in specs if spec.name not in given and not spec.is_optional]
    if missing:
        raise UsageError(f"{where}: input {printable(missing[0].name)!r} is missing; the model has {expected}")
    return {spec.name: _value(spec, given.get(spec.name), where) for spec in specs}


def _value(spec: InputSpec, value: Any, where: str) -> Any:
    if value is None and spec.is_optional:
        return None
    if isinstance(value, list) and spec.is_sequence:
        return [_array(spec, item, where) for item in value]
    if spec.is_sequence:
        raise UsageError(f"{where}: input {spec} takes a list of arrays, not {type(value).__name__}")
    return _array(spec, value, where)


def _array(spec: InputSpec, value: Any, where: str) -> Array:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise UsageError(f"{where}: input {spec} takes a numpy array, not {type(value).__name__}")
    array = _retyped(spec, np.asarray(value))
    if spec.dtype is None:
        raise UsageError(f"{where}: input {spec} cannot be given")
    if array.dtype != spec.dtype:
        raise UsageError(f"{where}: the model's input is {spec}, but the array is of type {array.dtype}")
    if spec.shape is not None:
        fixed = [size if isinstance(size, int) and size > 0 else None for size in spec.shape]
        same_rank = len(fixed) == array.ndim
        if not same_rank or any(f not in (None, s) for f, s in zip(fixed, array.shape, strict=True)):
            raise UsageError(f"{where}: the model's input is {spec}, but the array has shape {array.shape}")
    if not array.size:
        raise UsageError(f"{where}: the array for input {spec} is empty: shape {array.shape}")
    if array.dtype in FLOAT_TYPES and np.isnan(array).any():
        count = int(np.isnan(array).sum())
        raise UsageError(f"{where}: the array for input {spec} holds NaN, {count} of {array.size} elements")
    return array


def _retyped(spec: InputSpec, array: Array) -> Array:
    """Text as objects; bfloat16 and its kin, which .npy stores as bytes without a meaning, as what the model says."""
    if array.dtype.kind in "US" and spec.dtype == np.dtype(object):
        return array.astype(str).astype(object)
    if array.dtype.kind == "V" and array.dtype.names is None and spec.dtype is not None:
        return array.view(spec.dtype) if array.dtype.itemsize == spec.dtype.itemsize else array
    return array
