"""Changes that know the fields of the messages, and nothing of what they mean."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from onnx import ModelProto, TensorProto, ValueInfoProto

from tools.fuzzing.tree import CannotChange, Place, messages, names, of_kind, pick, some_tensor

INTEGERS = (0, 1, -1, 2, 3, 7, 8, 16, 255, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, -(1 << 31), 1 << 32, 10**15,
            (1 << 62) + 1, (1 << 63) - 1, -(1 << 63))  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, math.inf, -math.inf, math.nan, 1e-5, 0.5)
TEXTS = (
    "", " ", "a", "\x1b[31mred\x1b[0m", "\x00", "line\nbreak", "\r", "\x7f\x9b1m", "../../etc/passwd", "/dev/zero",
    "C:\\x", "<script>alert(1)</script>", "&amp;", "\u202egnp.exe", "\ufeff", "\U0010ffff", "é" * 50, "n" * 5000,
    "%s%n{0}", "'quoted'", '"', "\\", "[bold]rich[/bold]", "ai.onnx", "Conv", "BatchNormalization", "Identity",
)  # fmt: skip
_LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}

# Messages in which a change is likely to matter, and fields that only say how the header is refused.
_DULL = {("ModelProto", "ir_version"), ("ModelProto", "graph"), ("ModelProto", "opset_import"),
         ("OperatorSetIdProto", "version"), ("OperatorSetIdProto", "domain")}  # fmt: skip


def any_field(random: Random, model: ModelProto) -> None:
    """One field of one message has another value of its type, or none."""
    place = _place(random, model)
    message, field = place
    if field.is_repeated:
        _repeated(random, message, field)
    elif random.random() < 0.15:
        message.ClearField(field.name)
    elif field.message_type is not None:
        _message(random, model, message, field)
    else:
        setattr(message, field.name, _value(random, model, field, getattr(message, field.name)))


def new_field(random: Random, model: ModelProto) -> None:
    """A field that was absent is there."""
    message = pick(random, messages(model))
    listed = {field.name for field, _ in message.ListFields()}
    absent = [f for f in message.DESCRIPTOR.fields if f.name not in listed and f.message_type is None]
    field = pick(random, absent)
    if (message.DESCRIPTOR.name, field.name) in _DULL:
        raise CannotChange
    value = _value(random, model, field, None)
    if field.is_repeated:
        getattr(message, field.name).extend([value] * random.choice((1, 2, 4)))
    else:
        setattr(message, field.name, value)


def unknown_field(random: Random, model: ModelProto) -> None:
    """A field that no version of ONNX has."""
    message = pick(random, messages(model))
    message.MergeFromString(b"\xfa\x3f\x03new" if random.random() < 0.5 else b"\xf8\x3f\x07")


def dims(random: Random, model: ModelProto) -> None:
    """One dimension of a tensor is another."""
    held = some_tensor(random, model)
    if not held.dims or random.random() < 0.1:
        held.dims.append(random.choice((1, 1, 2, 0, -1)))
        return
    axis = random.randrange(len(held.dims))
    change = random.random()
    if change < 0.2:
        del held.dims[axis]
    elif change < 0.4:
        held.dims[:] = random.sample(list(held.dims), len(held.dims))
    else:
        held.dims[axis] = max(-(1 << 63), min((1 << 63) - 1, integer(random, held.dims[axis])))


def data_type(random: Random, model: ModelProto) -> None:
    """A tensor, or a declared value, is of another element type."""
    kinds = (*range(27), 99, -1)
    if random.random() < 0.5:
        some_tensor(random, model).data_type = random.choice(kinds)
        return
    value = pick(random, of_kind(model, ValueInfoProto))
    value.type.tensor_type.elem_type = random.choice(kinds)


def storage(random: Random, model: ModelProto) -> None:
    """Numbers lie in another field than they did, or are of another length."""
    held = some_tensor(random, model)
    raw = held.raw_data
    if random.random() < 0.5 and raw and held.data_type == TensorProto.FLOAT and len(raw) < 4096:
        held.ClearField("raw_data")
        held.float_data.extend(memoryview(raw[: len(raw) // 4 * 4]).cast("f").tolist())
        return
    change = random.random()
    if change < 0.3:
        held.raw_data = raw[: random.randrange(len(raw) + 1)]
    elif change < 0.6:
        held.raw_data = raw + bytes(random.choice((1, 4, 8, 100)))
    else:
        held.int32_data.extend([1, -1, 70000])


def numbers(random: Random, model: ModelProto) -> None:
    """Weights with odd values: not finite, tiny, huge, zero, negative."""
    held = some_tensor(random, model)
    if held.float_data:
        held.float_data[random.randrange(len(held.float_data))] = random.choice(FLOATS)
        return
    sizes = {TensorProto.FLOAT: 4, TensorProto.DOUBLE: 8, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2,
             TensorProto.INT64: 8, TensorProto.INT32: 4}  # fmt: skip
    size = sizes.get(held.data_type)
    if size is None or len(held.raw_data) < size:
        raise CannotChange
    odd = {4: (b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\1\0\0\0", b"\xff\xff\x7f\x7f", b"\0\0\x80\xbf", bytes(4)),
           8: (b"\0\0\0\0\0\0\xf0\x7f", b"\1\0\0\0\0\0\0\0", b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f"),
           2: (b"\0\x7c", b"\x80\x7f", b"\1\0", b"\xff\x7b", bytes(2))}[size]  # fmt: skip
    data = bytearray(held.raw_data)
    for _ in range(random.choice((1, 1, 3, len(data) // size))):
        at = random.randrange(len(data) // size) * size
        data[at : at + size] = random.choice(odd)
    held.raw_data = bytes(data)


def versions(random: Random, model: ModelProto) -> None:
    """Another opset or IR version; mostly one that exists."""
    if model.opset_import and random.random() < 0.7:
        model.opset_import[0].version = random.choice((*range(1, 26),) * 3 + (0, -1, 99))
    else:
        model.ir_version = random.choice((*range(1, 14),) * 2 + (0, 99))


# How ----------------------------------------------------------------------------------------------------------------


def _place(random: Random, model: ModelProto) -> Place:
    for _ in range(10):
        message = pick(random, messages(model))
        present = [f for f, _ in message.ListFields() if (message.DESCRIPTOR.name, f.name) not in _DULL]
        if present:
            return Place(message, random.choice(present))
    raise CannotChange


def _repeated(random: Random, message: Any, field: FieldDescriptor) -> None:
    values = getattr(message, field.name)
    place = random.randrange(len(values))
    change = random.random()
    if change < 0.35:
        del values[place]
    elif change < 0.6:
        other = values[random.randrange(len(values))]
        values.extend([other])
    elif change < 0.9:
        kept = list(values)
        random.shuffle(kept)
        copies = [type(kept[0]).FromString(k.SerializeToString()) for k in kept] if field.message_type else kept
        del values[:]
        values.extend(copies)
    else:
        del values[:]


def _message(random: Random, model: ModelProto, message: Any, field: FieldDescriptor) -> None:
    kind = field.message_type.name
    others = [m for m in messages(model) if m.DESCRIPTOR.name == kind and m.ByteSize() < 1 << 16]
    other = pick(random, others)
    copy = type(other).FromString(other.SerializeToString())
    getattr(message, field.name).CopyFrom(copy)


def _value(random: Random, model: ModelProto, field: FieldDescriptor, old: Any) -> Any:
    kind = field.cpp_type
    if kind in _LIMITS:
        low, high = _LIMITS[kind]
        return max(low, min(high, integer(random, old)))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return random.choice([value.number for value in field.enum_type.values])
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return random.choice(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.choice((b"", b"\0", b"\xff\xff", bytes(64), (old or b"")[:-1]))
    return random.choice(TEXTS) if random.random() < 0.5 else str(pick(random, names(model)))


def integer(random: Random, old: int | None) -> int:
    """A number that is odd, or near the old one."""
    if old is None or random.random() < 0.4:
        return random.choice(INTEGERS)
    return random.choice((old + 1, old - 1, -old, old * 2)) if abs(old) < 1 << 61 else 0


Change = Callable[[Random, ModelProto], None]
CHANGES: dict[Change, int] = {
    any_field: 10, new_field: 3, unknown_field: 1, dims: 5, data_type: 4, storage: 4, numbers: 4, versions: 3,
}  # fmt: skip
