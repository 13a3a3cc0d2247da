"""A model whose external data is reached through links, for runtimes that do not follow them.

onnxruntime (1.24 and later) and onnx refuse data whose real path is outside the model's folder, as in Hugging Face's
cache: snapshots/<revision>/model.onnx_data -> ../../blobs/<digest>. Copying it would cost gigabytes. Instead the
model is handed over as bytes whose locations are the real ones, relative to a folder that all of them lie in.
"""

import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from onnx import ModelProto

from bnfold.external import TrustedFolder, all_tensors, is_plain_inside, read_external
from bnfold.tensors import is_external


@dataclass(frozen=True, slots=True)
class Relocated:
    """A model in memory with its external data on disk.

    Attributes:
        data: the bytes of an .onnx.
        folder: that the locations in it are relative to.
        skeleton: the same without its large numbers, where somebody has it; empty otherwise.
    """

    data: bytes
    folder: Path
    skeleton: bytes = b""

    def with_numbers(self) -> ModelProto:
        """The model, with its external data read in.

        Raises:
            InvalidModelError: the data cannot be read.
        """
        proto = ModelProto.FromString(self.data)
        for tensor in filter(is_external, all_tensors(proto)):
            tensor.raw_data = read_external(tensor, TrustedFolder(self.folder))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        return proto


def relocated(model: Path, locations: set[str]) -> "Path | Relocated":
    """`model` itself where none of its data files is a link, or where they have no folder in common."""
    if all(is_plain_inside(model.parent, location) for location in locations):
        return model
    real = {location: (model.parent / location).resolve() for location in locations}
    try:
        folder = Path(os.path.commonpath([path.parent for path in real.values()]))
        inside = {location: PurePath(os.path.relpath(path, folder)).as_posix() for location, path in real.items()}
        return Relocated(_with_locations(model, inside), folder)
    except ValueError:  # several drives, or a path that is no text
        return model


def _with_locations(model: Path, locations: dict[str, str]) -> bytes:
    proto = ModelProto.FromString(model.read_bytes())
    for tensor in filter(is_external, all_tensors(proto)):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = locations[entry.value]
    return bytes(proto.SerializeToString())
