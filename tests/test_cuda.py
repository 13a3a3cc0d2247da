"""CUDA itself, where there is some; and the parts of tools/cuda.py, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.errors import NotVerified
from bnfold.verification import ProviderRun, Verification
from bnfold.verification.placement import profile
from bnfold.verification.providers import CUDA, Provider
from bnfold.verification.runtime import Settings
from tests.conftest import MODELS, conv_bn, model, random_feeds
from tests.test_time_limit import looping
from tools import cuda as tool

SMALL = MODELS / "digits_resnet.onnx"


@pytest.fixture
def gpu() -> None:
    """Skip where there is no CUDA."""
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("needs an NVIDIA GPU and onnxruntime-gpu")


@pytest.mark.cuda
def test_products_run_on_cuda(gpu: None) -> None:
    """Every Conv and Gemm of a model is in the profile, on CUDA."""
    proto = onnx.load(SMALL)
    ran = [r for r in profile(SMALL, Provider(CUDA), Settings(), random_feeds(proto)) if r.is_product]
    assert {r.provider for r in ran} == {CUDA}
    assert len(ran) == sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in proto.graph.node)


@pytest.mark.cuda
@pytest.mark.parametrize("tf32", [False, True])
def test_wrong_folds_are_different_on_cuda(tf32: bool, gpu: None) -> None:  # noqa: FBT001
    """One weight 1 % too large, in float32 and in TF32."""
    bad = tool.spoilt(SMALL, bnfold.fold(SMALL, verify=False).model)
    assert bad is not None
    found = bnfold.verify(SMALL, bad, providers="cuda", tf32=tf32)
    assert (found.verdict, found.runs[0].options["use_tf32"]) == ("different", str(int(tf32)))


@pytest.mark.cuda
def test_an_endless_loop_is_stopped_on_cuda(gpu: None) -> None:
    """The flag that stops a run works there too."""
    with pytest.raises(NotVerified, match="--time-limit"):
        bnfold.fold(looping(), providers="cuda", time_limit=1)


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """tools/cuda.py in a process of its own, from another folder."""
    command = [sys.executable, str(MODELS.parent / "tools" / "cuda.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=os.sep)


def test_the_tool_writes_what_it_prints(tmp_path: Path) -> None:
    """On the CPU: versions, a line for each model with both verdicts, exit code 0."""
    output, nothing = tmp_path / "out.txt", tmp_path / "nothing.onnx"
    onnx.save(model([onnx.helper.make_node("Relu", ["x"], ["y"])], [], (1, 2)), nothing)
    done = run_tool(str(output), "--provider", "cpu", "--no-tests", "--models", str(SMALL), str(nothing))
    assert (done.returncode, output.read_text()) == (0, done.stdout)
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert lines[SMALL.name][1:3] + lines[SMALL.name][4:5] == ["10", "equal", "different"]
    assert lines["nothing.onnx"][1:3] + lines["nothing.onnx"][4:5] == ["0", "equal", "-"]
    assert f"onnx {onnx.__version__}" in done.stdout
    assert "CPUExecutionProvider" in lines["session"]


def test_the_tool_without_cuda_is_3(tmp_path: Path) -> None:
    """Nothing is written, and the last line says what is missing."""
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("there is CUDA here")
    done = run_tool(str(tmp_path / "out.txt"))
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (3, "", [])
    assert "no CUDAExecutionProvider here" in done.stderr


def row(right: str, wrong: str | None, folded: int = 1) -> tool.Row:
    """A row with these verdicts."""

    def found(verdict: str) -> Verification:
        return Verification(verdict, "because", (ProviderRun("p", "r", verdict),))  # type: ignore[arg-type]

    return tool.Row("m.onnx", folded, {"float32": found(right)}, {"float32": found(wrong)} if wrong else {}, 1.0)


@pytest.mark.parametrize(
    ("entry", "is_right", "words"),
    [
        (row("equal", "different"), True, "different"),
        (row("different", "different"), False, "not equal: because"),
        (row("not verified", "different"), False, "not equal: because"),
        (row("equal", "equal"), False, "not different: because"),
        (row("equal", "not verified"), False, "not different: because"),
        (row("equal", None), False, "-"),
        (row("equal", None, folded=0), True, "-"),
    ],
)
def test_what_has_to_be(entry: tool.Row, is_right: bool, words: str) -> None:  # noqa: FBT001
    """Right folds equal, wrong ones different, and one of each wherever something folds; else the reason is told."""
    assert entry.is_right is is_right
    assert words in entry.text


def test_the_wrong_fold_is_one(tmp_path: Path) -> None:
    """It differs from the fold in one tensor, by 1 %; where nothing was folded there is none."""
    path = tmp_path / "net.onnx"
    onnx.save(conv_bn(), path)
    right = bnfold.fold(path).model
    bad = tool.spoilt(path, right)
    assert bad is not None
    pairs = [(a, b) for a, b in zip(right.graph.initializer, bad.graph.initializer, strict=True) if a != b]
    assert [a.name for a, _ in pairs] == ["w_folded"]
    first, second = (onnx.numpy_helper.to_array(tensor) for tensor in pairs[0])
    assert np.array_equal(second, (first * 1.01).astype(np.float32))
    assert tool.spoilt(path, onnx.load(path)) is None


def test_versions_of_cuda_read_as_versions() -> None:
    """12040 is 12.4; a library that is not there is unknown."""
    assert [tool._dotted(number) for number in (12040, 13010, 0)] == ["12.4", "13.1", "unknown"]
    assert tool._number(("libnosuch.so.1",), "cuDriverGetVersion") == 0


def test_the_tool_runs_the_marked_tests() -> None:
    """What pytest said comes back, and whether it failed: here no test at all is one that failed."""
    has_failed, told = tool.run_tests(("tests/test_cuda.py", "-k", "endless"))
    assert not has_failed
    assert "1 skipped" in told or "1 passed" in told
    assert tool.run_tests(("tests/test_affine.py",))[0]
