"""A find made small: parts of the model are taken away as long as the file fails in the same way."""

import time
from collections.abc import Callable

from google.protobuf.message import DecodeError, Message
from onnx import ModelProto

SECONDS = 40


def minimised(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """The smallest file found within `SECONDS`; the same one where it is no model."""
    try:
        best = ModelProto.FromString(data)
    except DecodeError:
        return data
    if not fails(best.SerializeToString()):
        return data
    end = time.monotonic() + SECONDS
    progress = True
    while progress and time.monotonic() < end:
        progress = False
        for path in _lists(best):
            best, cut = _shorten(best, path, fails, end)
            progress = progress or cut
    return best.SerializeToString()


Path = tuple[tuple[str, int], ...]


def _lists(root: Message, path: Path = ()) -> list[tuple[Path, str]]:
    """Where the repeated fields are, the outer ones first, and optional messages as lists of one."""
    found: list[tuple[Path, str]] = []
    for field, value in root.ListFields():
        found.append((path, field.name))
        if field.message_type is not None and len(found) < 400:
            inner = list(value) if field.is_repeated else [value]
            for index, message in enumerate(inner):
                found += _lists(message, (*path, (field.name, index)))
    return sorted(found, key=lambda entry: len(entry[0]))


def _at(root: Message, path: Path) -> Message | None:
    for name, index in path:
        value = getattr(root, name)
        if isinstance(value, Message):
            root = value
        elif index < len(value):
            root = value[index]
        else:
            return None
    return root


def _shorten(
    best: ModelProto, where: tuple[Path, str], fails: Callable[[bytes], bool], end: float
) -> tuple[ModelProto, bool]:
    """Half of the list away, a quarter, one; whichever still fails."""
    path, name = where
    message = _at(best, path)
    if message is None:
        return best, False
    value = getattr(message, name)
    if isinstance(value, (Message, str, bytes, int, float)):
        return _without(best, where, fails)
    size, cut = max(1, len(value) // 2), False
    while size and time.monotonic() < end:
        start = 0
        while start < len(getattr(_at(best, path), name)) and time.monotonic() < end:
            trial = ModelProto.FromString(best.SerializeToString())
            del getattr(_at(trial, path), name)[start : start + size]
            if fails(trial.SerializeToString()):
                best, cut = trial, True
            else:
                start += size
        size //= 2
    return best, cut


def _without(best: ModelProto, where: tuple[Path, str], fails: Callable[[bytes], bool]) -> tuple[ModelProto, bool]:
    path, name = where
    trial = ModelProto.FromString(best.SerializeToString())
    message = _at(trial, path)
    assert message is not None
    message.ClearField(name)
    if trial.ByteSize() < best.ByteSize() and fails(trial.SerializeToString()):
        return trial, True
    return best, False
