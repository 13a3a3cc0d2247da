"""Tensors and the messages that hold them: writing numbers into a TensorProto, and where numbers come from."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from bnfold.tensors import ScaledTensor, StoredTensor, Tensor, bytes_of, is_external, onnx_type

_DATA_FIELDS = (
    "dims", "float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data", "external_data",
    "data_location", "segment",
)  # fmt: skip


def write_into(proto: TensorProto, tensor: Tensor) -> None:
    """Make `proto` hold the numbers of `tensor`, inline. Its name, doc string and metadata stay."""
    array = tensor.array()  # first, for the same reason as in declare
    declare(proto, tensor)
    proto.raw_data = array.tobytes()


def declare(proto: TensorProto, tensor: Tensor) -> None:
    """Make `proto` say the type and shape of `tensor`, with empty raw_data for the numbers to come."""
    shape, kind = tensor.shape, onnx_type(tensor)  # first: `tensor` may be computed from `proto`
    fits = proto.data_type == kind and tuple(proto.dims) == shape
    if not (fits and proto.HasField("raw_data") and not is_external(proto)):
        for name in _DATA_FIELDS:
            proto.ClearField(name)
        proto.data_type = kind
        proto.dims.extend(shape)
    proto.raw_data = b""


def message_behind(tensor: Tensor) -> TensorProto | None:
    """The message that the numbers of `tensor` are read or computed from; None where they are in memory."""
    source = tensor.source if isinstance(tensor, ScaledTensor) else tensor
    return source.proto if isinstance(source, StoredTensor) else None


def is_in_file(tensor: Tensor) -> bool:
    """Whether the numbers come from a file and stay there, whatever becomes of the TensorProto."""
    if isinstance(tensor, ScaledTensor):
        return is_in_file(tensor.source)
    return isinstance(tensor, StoredTensor) and (tensor.lifted is not None or is_external(tensor.proto))


@dataclass(frozen=True, slots=True)
class RawBytes:
    """The numbers of a tensor as they are stored, little-endian, in C order; made when they are written."""

    tensor: Tensor

    def __len__(self) -> int:
        return bytes_of(self.tensor)

    def buffer(self) -> memoryview:
        """The bytes."""
        return np.ascontiguousarray(self.tensor.array()).reshape(-1).view(np.uint8).data
