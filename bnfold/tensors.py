"""Tensors as the rules see them: dtype, shape, and the numbers on demand, wherever they are stored.

A rule never touches a TensorProto. What it makes is a tensor too, exact until it is written:
``ScaledTensor`` remembers its source and the float64 factor, so that folding a second map into the same
weight multiplies the factors and still rounds once.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from onnx import TensorProto

from bnfold.affine import Float64Array
from bnfold.errors import InvalidModelError
from bnfold.external import read_external
from bnfold.rounding import BFLOAT16, Array, round_once, scale_and_round, to_float64
from bnfold.text import listed, printable

_DTYPES: dict[int, np.dtype] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.BFLOAT16: BFLOAT16,
    TensorProto.BOOL: np.dtype(np.bool_),
    TensorProto.INT8: np.dtype(np.int8),
    TensorProto.UINT8: np.dtype(np.uint8),
    TensorProto.INT16: np.dtype("<i2"),
    TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.UINT32: np.dtype("<u4"),
    TensorProto.UINT64: np.dtype("<u8"),
}
_ONNX_TYPES = {dtype: number for number, dtype in _DTYPES.items()}
_TYPED_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}


class Tensor(Protocol):
    """A constant's numbers. `dtype` is None for types that bnfold does not compute with (strings, int4, ...)."""

    @property
    def dtype(self) -> np.dtype | None:
        """The storage type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions; () for a scalar."""

    def array(self) -> Array:
        """The numbers in the storage type, rounded once. Read-only."""

    def exact(self) -> Float64Array:
        """The numbers in float64, before any rounding."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a TensorProto.

    `folder` is where its external data lives, None if it has none to read; `lifted` are the bytes that were left
    in the file when it was parsed (see `wire`).
    """

    proto: TensorProto
    folder: Path | None = None
    lifted: memoryview | None = None

    @property
    def dtype(self) -> np.dtype | None:
        """The storage type; none for a piece of a tensor (`segment`), which no runtime knows."""
        return None if self.proto.HasField("segment") else _DTYPES.get(self.proto.data_type)

    @property
    def shape(self) -> tuple[int, ...]:
        """The declared dimensions."""
        return tuple(self.proto.dims)

    def array(self) -> Array:
        """The numbers in the storage type.

        Raises:
            InvalidModelError: the data's length does not fit the declared shape and type.
        """
        dtype, shape, where = self.dtype, self.shape, self._where
        if dtype is None:
            raise InvalidModelError(f"{where} has a type that bnfold does not compute with")
        if min(shape, default=0) < 0:
            raise InvalidModelError(f"{where} has a negative dimension in {listed(shape)}")
        count = prod(shape)
        if is_external(self.proto):
            flat = np.frombuffer(read_external(self.proto, self.folder), dtype)
        elif self.lifted is not None or self.proto.HasField("raw_data"):
            raw = self.proto.raw_data if self.lifted is None else self.lifted
            self._check_length(len(raw), count * dtype.itemsize, "bytes")
            flat = np.frombuffer(raw, dtype)
        else:
            flat = self._typed_values(dtype)
        self._check_length(flat.size, count, "elements")
        try:
            return flat.reshape(shape)
        except ValueError:  # no elements, but dimensions beyond what numpy can count
            raise InvalidModelError(f"{where} has the shape {listed(shape)}") from None

    def exact(self) -> Float64Array:
        """The numbers in float64; every storage type converts exactly."""
        return to_float64(self.array())

    def _typed_values(self, dtype: np.dtype) -> Array:
        name = _TYPED_FIELDS.get(self.proto.data_type, "int32_data")
        values = np.array(getattr(self.proto, name))
        if self.proto.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            return values.astype(np.uint16).view(dtype)
        return values.astype(dtype)

    @property
    def _where(self) -> str:
        return f"tensor {printable(self.proto.name)!r}"

    def _check_length(self, found: int, expected: int, unit: str) -> None:
        if found != expected:
            raise InvalidModelError(
                f"{self._where} of shape {listed(self.shape)} needs {expected} {unit} but holds {found}"
            )


@dataclass(frozen=True, slots=True)
class ArrayTensor:
    """Numbers that are in memory already: the value of a Constant node, or of a constant subgraph."""

    values: Array

    @property
    def dtype(self) -> np.dtype | None:
        """The storage type."""
        return self.values.dtype if self.values.dtype in _ONNX_TYPES else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        return self.values.shape

    def array(self) -> Array:
        """The numbers."""
        return self.values

    def exact(self) -> Float64Array:
        """The numbers in float64."""
        return to_float64(self.values)


@dataclass(frozen=True, slots=True)
class ExactTensor:
    """Numbers known in float64, stored as `dtype`."""

    values: Float64Array
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        return self.values.shape

    def array(self) -> Array:
        """The numbers, rounded once."""
        return round_once(self.values, self.dtype)

    def exact(self) -> Float64Array:
        """The numbers before rounding."""
        return self.values


@dataclass(frozen=True, slots=True)
class ScaledTensor:
    """source * factor. `factor` is float64 and broadcasts against `source`."""

    source: Tensor
    factor: Float64Array
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions; those of the source."""
        return self.source.shape

    def array(self) -> Array:
        """The product, rounded once. Computed whenever it is asked for: it may be large."""
        return scale_and_round(self.source.array(), self.factor, self.dtype)

    def exact(self) -> Float64Array:
        """The product before rounding."""
        return self.source.exact() * self.factor


@dataclass(frozen=True, slots=True)
class ByCall:
    """A constant of a function's body that is another one in each call: `each`, in the order of the calls."""

    each: tuple[Tensor, ...]

    @property
    def dtype(self) -> np.dtype | None:
        """The storage type, in the first call."""
        return self.each[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, in the first call."""
        return self.each[0].shape

    def array(self) -> Array:
        """The numbers, in the first call."""
        return self.each[0].array()

    def exact(self) -> Float64Array:
        """The numbers before rounding, in the first call."""
        return self.each[0].exact()


def scaled(source: Tensor, factor: Float64Array, dtype: np.dtype) -> Tensor:
    """The product source * factor; exact until it is written, however many factors there have been before."""
    if isinstance(source, ExactTensor):
        return ExactTensor(source.values * factor, dtype)
    if isinstance(source, ScaledTensor):
        return ScaledTensor(source.source, source.factor * factor, dtype)
    return ScaledTensor(source, factor, dtype)


def same_numbers(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same, to the last bit."""
    if first is second:
        return True
    if isinstance(first, ByCall) or isinstance(second, ByCall):
        return False
    one, other = first.array(), second.array()
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def onnx_type(tensor: Tensor) -> int:
    """The number of the tensor's type in onnx.TensorProto.DataType."""
    assert tensor.dtype is not None
    return _ONNX_TYPES[tensor.dtype]


def bytes_of(tensor: Tensor) -> int:
    """How many bytes the numbers take; 0 where the type is not known."""
    return 0 if tensor.dtype is None else prod(tensor.shape) * tensor.dtype.itemsize


def is_external(proto: TensorProto) -> bool:
    """Whether the numbers live in another file."""
    return proto.data_location == TensorProto.EXTERNAL


def of_attributes(node: onnx.NodeProto, folder: Path | None) -> Tensor | None:
    """The value of a Constant node in any of its dense numeric forms; None for strings and sparse tensors."""
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            return None
        if attribute.name == "value":
            return StoredTensor(attribute.t, folder)
        if attribute.name in ("value_float", "value_floats"):
            values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            return ArrayTensor(np.array(values, np.float32))
        if attribute.name in ("value_int", "value_ints"):
            numbers = attribute.i if attribute.name == "value_int" else list(attribute.ints)
            return ArrayTensor(np.array(numbers, np.int64))
    return None
