"""What a model says about its inputs, and the values that go there.

A value is an array; a list of arrays for a sequence; None for an optional that is absent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ValueInfoProto, helper

from bnfold.rounding import Array
from bnfold.text import printable

Feeds = dict[str, Any]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a model says about one input.

    Attributes:
        name: of the input.
        dtype: numpy's, of the tensor or the tensors inside; None where there is none (a map, sparse, opaque).
        shape: sizes, of the same; None or a symbol where free; None as a whole where not even the rank is known.
        wraps: what is around the tensor, outermost first: "optional", "sequence".
    """

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str | None, ...] | None
    wraps: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.shape is None:
            sizes = "of any shape"
        else:
            sizes = f"({', '.join('?' if size is None else printable(str(size)) for size in self.shape)})"
        around = "".join(f"{wrap} of " for wrap in self.wraps)
        return f"'{printable(self.name)}' {around}{self.dtype or 'of no tensor type'} {sizes}"

    @property
    def is_optional(self) -> bool:
        """Whether it may be absent."""
        return self.wraps[:1] == ("optional",)

    @property
    def is_sequence(self) -> bool:
        """Whether a present value is a list of tensors."""
        return self.wraps[-1:] == ("sequence",)


def input_spec(value: ValueInfoProto) -> InputSpec:
    """What the model declares about one of its inputs."""
    kind, wraps = value.type, []
    while (wrap := kind.WhichOneof("value")) in ("optional_type", "sequence_type"):
        wraps.append(str(wrap).removesuffix("_type"))
        kind = kind.optional_type.elem_type if wrap == "optional_type" else kind.sequence_type.elem_type
    known = tuple(wraps) in ((), ("sequence",), ("optional",), ("optional", "sequence"))
    if not known or not kind.HasField("tensor_type") or not kind.tensor_type.elem_type:
        return InputSpec(value.name, None, None, tuple(wraps))
    tensor = kind.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None, tuple(wraps))
    dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
    return InputSpec(value.name, dtype, dims, tuple(wraps))


def each_array(change: Callable[[Array], Array], value: Any) -> Any:
    """The value with each of its arrays changed: itself, those of a list, none of None."""
    if value is None:
        return None
    return [change(array) for array in value] if isinstance(value, list) else change(value)


def tensors_only(values: Feeds) -> dict[str, Array]:
    """Those values that are plain arrays."""
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
