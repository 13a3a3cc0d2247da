"""What callers see of a model: its inputs and outputs, with names, order, types, declared shapes and defaults.

Read from the files alone, so that a difference is found where no runtime can load them. An output may be declared
more closely than before (a size where there was none: tools infer shapes), never otherwise than before. From IR
version 4 on an initializer that is also an input is a default that callers may replace: it has to stay one, with its
numbers.
"""

from collections.abc import Iterator

from onnx import TensorProto, TypeProto, ValueInfoProto

from bnfold.document import Document
from bnfold.errors import InvalidModelError
from bnfold.tensors import StoredTensor, same_numbers
from bnfold.text import printable

FIRST_WITH_DEFAULTS = 4  # the IR version
Shape = tuple[int | str | None, ...] | None


def interface_differences(original: Document, folded: Document) -> tuple[str, ...]:
    """Every difference between the interfaces of two models as a clause; none where callers see the same."""
    return (
        *_values("input", _required(original), _required(folded)),
        *_values("output", list(original.proto.graph.output), list(folded.proto.graph.output)),
        *_defaults(original, folded),
    )


def _values(what: str, expected: list[ValueInfoProto], found: list[ValueInfoProto]) -> Iterator[str]:
    names, others = [v.name for v in expected], [v.name for v in found]
    if names != others:
        order = " (another order)" if sorted(names) == sorted(others) else ""
        yield f"the {what}s are {_listed(others)} instead of {_listed(names)}{order}"
    there = {value.name: value for value in found}
    for value in expected:
        if value.name in there:
            yield from _declared(what, value, there[value.name])


def _declared(what: str, expected: ValueInfoProto, found: ValueInfoProto) -> Iterator[str]:
    name = f"{what} '{printable(expected.name)}'"
    first, second = _type(expected.type), _type(found.type)
    if first != second:
        yield f"{name} is declared {second} instead of {first}"
    elif not _fits(_shape(expected.type), _shape(found.type), exactly=what == "input"):
        yield f"{name} is declared {_text(_shape(found.type))} instead of {_text(_shape(expected.type))}"


def _type(declared: TypeProto) -> str:
    kind = declared.WhichOneof("value") or "no type"
    if kind != "tensor_type":  # a sequence, an optional, a map: with all that they hold
        return f"{kind} {declared.SerializeToString(deterministic=True).hex()}"
    number = declared.tensor_type.elem_type
    return TensorProto.DataType.Name(number).lower() if number in TensorProto.DataType.values() else f"type {number}"


def _shape(declared: TypeProto) -> Shape:
    if not declared.HasField("tensor_type") or not declared.tensor_type.HasField("shape"):
        return None
    dims = declared.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims)


def _fits(expected: Shape, found: Shape, *, exactly: bool) -> bool:
    if exactly or expected is None or found is None:
        return expected == found or (expected is None and not exactly)
    return len(expected) == len(found) and all(a in (None, b) for a, b in zip(expected, found, strict=True))


def _text(shape: Shape) -> str:
    return (
        "without a shape"
        if shape is None
        else f"({', '.join('?' if d is None else printable(str(d)) for d in shape)})"
    )


def _required(document: Document) -> list[ValueInfoProto]:
    """The inputs that a caller has to give."""
    held = {tensor.name for tensor in document.proto.graph.initializer}
    held |= {tensor.values.name for tensor in document.proto.graph.sparse_initializer}
    return [value for value in document.proto.graph.input if value.name not in held]


def _overridable(document: Document) -> dict[str, TensorProto]:
    if document.proto.ir_version < FIRST_WITH_DEFAULTS:
        return {}
    inputs = {value.name for value in document.proto.graph.input}
    return {tensor.name: tensor for tensor in document.proto.graph.initializer if tensor.name in inputs}


def _defaults(original: Document, folded: Document) -> Iterator[str]:
    expected, found = _overridable(original), _overridable(folded)
    if lost := sorted(expected.keys() - found.keys()):
        yield f"callers can no longer replace the default of {_listed(lost)}"
    if more := sorted(found.keys() - expected.keys()) if original.proto.ir_version >= FIRST_WITH_DEFAULTS else []:
        yield f"callers can now replace {_listed(more)}, which were constants"
    for name in sorted(expected.keys() & found.keys()):
        if not _same(_stored(original, expected[name]), _stored(folded, found[name])):
            yield f"the default of input '{printable(name)}' is another one"


def _stored(document: Document, tensor: TensorProto) -> StoredTensor:
    return StoredTensor(tensor, document.folder, document.lifted.get(tensor.name))


def _same(first: StoredTensor, second: StoredTensor) -> bool:
    if first.dtype is None or second.dtype is None:  # text, or a type that numpy lacks: as it is stored
        return first.proto.SerializeToString(deterministic=True) == second.proto.SerializeToString(deterministic=True)
    try:
        return first.dtype == second.dtype and first.shape == second.shape and same_numbers(first, second)
    except InvalidModelError:
        return False


def _listed(names: list[str]) -> str:
    shown = [f"'{printable(name)}'" for name in names[:8]]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(shown) or "none") + more
