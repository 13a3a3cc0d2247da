"""Sizes made to hurt: declared, doubled, or made by nodes; and ranks without end.

Each ends in exit 0, or in exit 2 with one line: in a process of bounded memory (see hostile_run).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from tests.conftest import ROOT, conv_bn, tensor
from tests.hostile_run import HUGE, N, between, ends_well, lying


def _held_sizes() -> Iterator[tuple[str, ModelProto]]:
    """10^15 elements in an initializer of every role, a Constant node, and what is declared."""
    for name in ("w", "gamma", "var"):
        for dims in ([HUGE], [HUGE, 0], [1 << 62, 4], [-4, 1, 1, 1], [4, -1, -4, 1], [1 << 31] * 8, [1] * 5000):
            for fields in ({}, {"raw_data": b"\0" * 16}, {"float_data": [1.0]}, {"int64_data": [1]}):
                proto = conv_bn((4, 3, 1, 1))
                index = next(i for i, t in enumerate(proto.graph.initializer) if t.name == name)
                proto.graph.initializer[index].CopyFrom(lying(name, dims, **fields))
                yield f"{name} {dims[:8]} {list(fields)}", proto
    constant = N("Constant", [], ["k"], value=lying("k", [HUGE, 1, 1]))
    yield "Constant", between(constant, N("Mul", ["h", "k"], ["o"]))
    proto = between(N("Identity", ["h"], ["o"]))
    for value in (*proto.graph.input, *proto.graph.output):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [HUGE, HUGE, 1 << 62, -5]))
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [HUGE] * 4))
    yield "declared", proto


def test_sizes_that_are_only_declared(tmp_path: Path) -> None:
    """10^15 elements in a small file, in initializers, Constant nodes and declared shapes, are not made."""
    cases = {name: proto.SerializeToString() for name, proto in _held_sizes()}
    ends = ends_well(cases, tmp_path / "run", ("fold",))
    assert all(len(data) < 16_000 for data in cases.values())
    refused = [case for case, end in ends.items() if end.code == 2]
    assert len(refused) > len(cases) // 2  # of the others no number is needed to see that nothing folds


def _makers() -> list[NodeProto]:
    """Nodes that make a constant k of far too many elements, or of a type that is none to compute with."""
    return [
        N("ConstantOfShape", ["huge"], ["k"]), N("Expand", ["one", "huge"], ["k"]), N("Tile", ["one", "huge"], ["k"]),
        N("Range", ["zero", "many", "step"], ["k"]), N("OneHot", ["huge", "many", "pair"], ["k"]),
        N("Pad", ["one", "pads"], ["k"]), N("Resize", ["one", "", "", "huge"], ["k"]),
        N("Gather", ["one", "many_indices"], ["k"]), N("Concat", ["one"] * 5000, ["k"], axis=0),
        N("Unsqueeze", ["one", "huge"], ["k"]), N("Reshape", ["one", "huge"], ["k"]),
        N("Pow", ["many", "many"], ["k"]), N("Cast", ["one"], ["k"], to=TensorProto.STRING),
    ]  # fmt: skip


def test_constants_that_nodes_would_make(tmp_path: Path) -> None:
    """A constant that evaluation would blow up is not evaluated; alone, or doubled and squared 60 times."""
    held = (
        tensor("huge", [HUGE, 1, 1], np.int64), tensor("one", np.ones((1, 1, 1))), tensor("zero", 0, np.int64),
        tensor("many", HUGE, np.int64), tensor("step", 1, np.int64), tensor("pair", [0.0, 1.0]),
        tensor("pads", [0, 0, 0, HUGE, 0, 0], np.int64), tensor("many_indices", np.zeros((64, 64)), np.int64),
    )  # fmt: skip
    double = [N("Concat", ["k" if i == 0 else f"k{i}"] * 2, [f"k{i + 1}"], axis=0) for i in range(60)]
    spread = [N("Mul", ["k" if i == 0 else f"k{i}"] * 2, [f"k{i + 1}"]) for i in range(60)]
    chains = (("doubled", double), ("squared", spread))
    cases = {}
    for node in _makers():
        cases[f"{node.op_type} alone"] = between(node, N("Mul", ["h", "k"], ["o"]), held=held)
        for name, chain in chains if node.op_type in ("Expand", "Concat", "Pow") else ():
            cases[f"{node.op_type} {name}"] = between(node, *chain, N("Mul", ["h", "k60"], ["o"]), held=held)
    ends = ends_well({name: proto.SerializeToString() for name, proto in cases.items()}, tmp_path / "run", ("fold",))
    assert {name for name, end in ends.items() if end.code} == set()


def test_sizes_that_double(tmp_path: Path) -> None:
    """A shape multiplied by itself 500 times: products end where no size is so large, and the fold goes on."""
    cases = {}
    for op in ("Mul", "Concat", "Add"):
        extra = {"axis": 0} if op == "Concat" else {}
        chain = [N("Shape", ["h"], ["s0"])]
        chain += [N(op, [f"s{i}"] * 2, [f"s{i + 1}"], **extra) for i in range(500)]
        proto = between(*chain, N("Reshape", ["h", "s500"], ["o"]))
        cases[f"{op} of numbers"] = proto.SerializeToString()
        for dim in proto.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_param = "N"
        cases[f"{op} of symbols"] = proto.SerializeToString()
    ends = ends_well(cases, tmp_path / "run", ("fold",))
    assert {name for name, end in ends.items() if end.code} == set()


def test_ranks_without_end(tmp_path: Path) -> None:
    """A value of 12,000 axes costs no more than one of 64."""
    chain = [N("Unsqueeze", ["h" if i == 0 else f"u{i}", "first"], [f"u{i + 1}"]) for i in range(12_000)]
    proto = between(*chain, N("Reshape", ["u12000", "four"], ["o"]), held=(
        tensor("first", [0], np.int64), tensor("four", [1, 4, 4, 4], np.int64)))  # fmt: skip
    assert ends_well({"model": proto.SerializeToString()}, tmp_path / "run", ("fold",))["model"].code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
@pytest.mark.parametrize("megabytes", [600, 1500])
def test_outputs_that_do_not_fit_into_memory(megabytes: int, tmp_path: Path) -> None:
    """A small model that puts out 400 MB; memory for one run, or for two and no comparison: exit 3."""
    proto = conv_bn((4, 3, 1, 1))
    proto.graph.initializer.append(tensor("size", [10**8], np.int64))
    proto.graph.node.append(N("ConstantOfShape", ["size"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    limited = f"import onnxruntime; from tests.hostile_run import limit_memory as limit; limit({megabytes})"
    program = f"{limited}; from bnfold.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "fold", "model.onnx", "-q", "--threads", "1"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("bnfold: error: could not verify")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
