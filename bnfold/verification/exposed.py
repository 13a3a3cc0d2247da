"""Models that also put out values from inside: throwaway copies, made without parsing what they hold.

Two protobuf messages one behind the other read as one, their repeated fields joined. So a few bytes behind a model's
own give it more outputs, whatever its size. Source: protobuf's encoding, "Last One Wins" and merging of messages.
"""

import mmap
from collections.abc import Iterable
from pathlib import Path

from onnx import GraphProto, ModelProto, ValueInfoProto

from bnfold.document import LIFT_FROM
from bnfold.relocated import Relocated
from bnfold.verification.runtime import Model
from bnfold.wire import lift


def exposing(model: Model, values: Iterable[str]) -> Model:
    """The model with `values` of its main graph as further outputs, behind its own."""
    more = GraphProto(output=[ValueInfoProto(name=name) for name in values])
    tail = ModelProto(graph=more).SerializeToString()
    if isinstance(model, Path):
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            data = b"".join((mapped, tail))  # copied once
        skeleton = lift(data, len(data) - len(tail)) if len(data) >= LIFT_FROM else None
        return Relocated(data, model.parent, b"" if skeleton is None else skeleton[0])
    if isinstance(model, Relocated):
        return Relocated(model.data + tail, model.folder)
    return model + tail
