"""One way to call `bnfold fold`, and the model that is folded."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

import bnfold

Files = dict[str, bytes]


@dataclass(slots=True)
class Scene:
    """One way to call `bnfold fold`, and what its folder holds before and after."""

    external: bool
    in_place: bool
    verify: bool
    before: Files = field(default_factory=dict)
    done: Files = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        data, place = "external" if self.external else "inline", "in place" if self.in_place else "new target"
        return f"{data}, {place}, {'verified' if self.verify else 'not verified'}"

    @property
    def target(self) -> str:
        """The file that the fold writes."""
        return "model.onnx" if self.in_place else "out.onnx"

    def start(self, folder: Path) -> "subprocess.Popen[str]":
        """A fold in `folder`, which is made as it was before."""
        folder.mkdir()
        for name, content in self.before.items():
            (folder / name).write_bytes(content)
        where = ["--in-place"] if self.in_place else ["-o", folder / "out.onnx"]
        command = [sys.executable, "-m", "bnfold", "fold", folder / "model.onnx", *where, "--threads", "1"]
        command += [] if self.verify else ["--no-verify"]
        return subprocess.Popen(
            list(map(str, command)), cwd=bnfold.__path__[0] + "/..", text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip


def network(maps: int = 96, layers: int = 6) -> ModelProto:
    """x -> (Conv -> BatchNormalization -> Relu) many times -> y: about 2 MB of weights."""
    rng = np.random.default_rng(0)
    nodes, held, value = [], [], "x"
    for i in range(layers):
        parameters = {f"g{i}": (maps,), f"b{i}": (maps,), f"m{i}": (maps,), f"v{i}": (maps,)}
        for name, shape in {f"w{i}": (maps, maps, 3, 3), **parameters}.items():
            held.append(numpy_helper.from_array(rng.uniform(0.01, 0.1, shape).astype(np.float32), name))
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *parameters], [f"n{i}"]))
        nodes.append(helper.make_node("Relu", [f"n{i}"], [f"r{i}"]))
        value = f"r{i}"
    shape = [1, maps, 12, 12]
    ends = [[helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name in ("x", value)]
    graph = helper.make_graph(nodes, "g", *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def listing(folder: Path) -> Files:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
