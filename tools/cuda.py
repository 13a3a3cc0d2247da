"""Verify on a machine with an NVIDIA GPU, and write down what came of it.

    python tools/cuda.py tools/results/cuda-DATE.txt          everything: some minutes
    python tools/cuda.py OUT.txt --provider cpu --no-tests    the same on the CPU, without TF32 and pytest

Every model of models/ is folded in memory; the fold is verified on CUDA in float32 and in TF32, and a wrong one (its
first new weight 1 % too large) has to be called different in both. Then `pytest -m cuda` runs. Where onnxruntime-gpu
was installed with `pip install --target DIR`, PYTHONPATH=DIR does. Exit code 1 where something is not as it must be,
3 where there is no CUDA.
"""

import argparse
import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bnfold
from bnfold.document import serialise
from bnfold.rounding import FLOAT_TYPES
from bnfold.verification import Verification
from bnfold.verification.providers import CUDA, full_name
from bnfold.verification.runtime import CannotRunError, OrtRunner

ROOT = Path(__file__).resolve().parent.parent
NO_CUDA = 3
DRIVER = ("libcuda.so.1", "nvcuda.dll")
RUNTIME = ("libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll")
CUDNN = ("libcudnn.so.9", "cudnn64_9.dll")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all of it, and say whether all is as it must be."""
    chosen = _parse(arguments)
    problem = missing(chosen.provider)
    if problem:
        print(f"tools/cuda.py: {problem}", file=sys.stderr)
        return NO_CUDA
    started = time.perf_counter()
    lines = list(environment(chosen.provider))
    rows = []
    for path in chosen.models:
        rows.append(judge(path, chosen.provider))
        print(rows[-1].text, file=sys.stderr, flush=True)
    wrong = [row for row in rows if not row.is_right]
    lines += ["", *table(rows), "", f"{len(rows) - len(wrong)} of {len(rows)} models as they must be"]
    code = 1 if wrong or not rows else 0
    if not chosen.no_tests:
        failed, told = run_tests(())
        lines += ["", "pytest -m cuda", told]
        code = 1 if failed else code
    lines += ["", f"{time.perf_counter() - started:.0f} s in all"]
    text = "\n".join(lines)
    print(text)
    chosen.output.write_text(text + "\n", encoding="utf-8")
    return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the text file to write")
    parser.add_argument("--provider", default="cuda", help="as for bnfold; default: cuda")
    models = sorted((ROOT / "models").glob("*.onnx"))
    parser.add_argument("--models", nargs="+", type=Path, default=models, help="default: models/*.onnx")
    parser.add_argument("--no-tests", action="store_true", help="leave pytest out")
    return parser.parse_args(arguments)


def missing(provider: str) -> str:
    """Why nothing can run on this provider; empty where it can: one Relu is run there."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        OrtRunner(serialise(model), provider).run({"x": np.zeros(2, np.float32)})
    except CannotRunError as error:
        return str(error)
    return ""


def environment(provider: str) -> Iterator[str]:
    """Machine, device and versions, as far as they can be found out."""
    import onnxruntime

    runner = bnfold.verify(ROOT / "models" / "digits_resnet.onnx", ROOT / "models" / "digits_resnet.onnx",
                           providers=provider, trials=1).runs[0]  # fmt: skip
    yield f"date       {time.strftime('%Y-%m-%d')}"
    yield f"machine    {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    yield f"Python     {platform.python_version()}"
    yield f"device     {runner.device or 'unknown'}"
    yield f"providers  {', '.join(onnxruntime.get_available_providers())}"
    yield f"session    {runner.provider} with {dict(runner.options) or 'no options'}"
    yield f"packages   {', '.join(_packages())}"
    yield f"build      {' '.join(onnxruntime.get_build_info().split()) or 'unknown'}"
    if full_name(provider) != CUDA:
        return
    yield f"driver     {_driver()}, for CUDA {_dotted(_number(DRIVER, 'cuDriverGetVersion'))}"
    yield f"runtime    CUDA {_dotted(_number(RUNTIME, 'cudaRuntimeGetVersion'))}"
    yield f"cuDNN      {_cudnn()}"


def _packages() -> list[str]:
    own = ("bnfold", "onnx", "numpy", "onnxruntime", "onnxruntime-gpu")
    names = {name.lower(): entry.version for entry in metadata.distributions() if (name := entry.metadata["Name"])}
    found = {"bnfold": bnfold.__version__, **names}
    listed = [*own, *sorted(name for name in found if name.startswith("nvidia-"))]
    return [f"{name} {found[name]}" for name in listed if name in found]


def _library(names: Sequence[str]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)  # onnxruntime loaded it already, from wherever it lies
        except OSError:
            continue
    return None


def _number(names: Sequence[str], function: str) -> int:
    """What a CUDA function of the form `int f(int*)` says; 0 where it cannot be asked."""
    library, found = _library(names), ctypes.c_int()
    return 0 if library is None or getattr(library, function)(ctypes.byref(found)) else found.value


def _dotted(number: int) -> str:
    """CUDA's 12040 as 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else "unknown"


def _cudnn() -> str:
    """cuDNN's 90100 as 9.1.0."""
    library = _library(CUDNN)
    if library is None:
        return "unknown"
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = int(library.cudnnGetVersion())
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except OSError:
        return "unknown"
    return ", ".join(sorted(set(done.stdout.split()))) or "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """One model.

    Attributes:
        name: of the file.
        folded: how many sites.
        right: the verdicts on the fold, by title.
        wrong: those on the wrong fold; empty where nothing folds.
        seconds: for all of it.
    """

    name: str
    folded: int
    right: dict[str, Verification]
    wrong: dict[str, Verification]
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether each right fold is equal and each wrong one different."""
        told = all(v.verdict == "different" for v in self.wrong.values())
        return told and all(self.right.values()) and (bool(self.wrong) or not self.folded)

    @property
    def text(self) -> str:
        """One line, and the reasons of what is not as it must be."""
        fields = [f"{self.name:28}{self.folded:6}"]
        for title, found in self.right.items():
            worst = f"{found.worst.relative:.2g}" if found.worst is not None else ""
            told = self.wrong[title].verdict if title in self.wrong else "-"
            fields.append(f"{found.verdict:>14}{worst:>10}{told:>14}")
        bad = [(v, "equal") for v in self.right.values()] + [(v, "different") for v in self.wrong.values()]
        reasons = [f"\n    not {due}: {v.reason}" for v, due in bad if v.verdict != due]
        return "".join([*fields, f"{self.seconds:8.1f}", *reasons])


def judge(path: Path, provider: str) -> Row:
    """Fold a model in memory, and verify that fold and a wrong one; on CUDA in float32 and in TF32."""
    started = time.perf_counter()
    result = bnfold.fold(path, verify=False)
    modes = {"float32": False, "TF32": True} if full_name(provider) == CUDA else {"float32": False}
    bad = spoilt(path, result.model)
    pairs = [({}, result.model), ({}, bad)]
    for title, tf32 in modes.items():
        for found, model in pairs:
            if model is not None:
                found[title] = bnfold.verify(path, model, providers=provider, tf32=tf32)
    return Row(path.name, len(result.folded), pairs[0][0], pairs[1][0], time.perf_counter() - started)


def spoilt(path: Path, folded: ModelProto) -> ModelProto | None:
    """The fold with its first new weight 1 % too large; None where there is none."""
    import onnx

    before = {tensor.name: tensor.SerializeToString() for tensor in onnx.load(path).graph.initializer}
    copy = ModelProto.FromString(folded.SerializeToString())
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        is_new = before.get(tensor.name) != tensor.SerializeToString()
        if is_new and array.ndim > 1 and array.dtype in FLOAT_TYPES and array.any():
            tensor.CopyFrom(numpy_helper.from_array((array * 1.01).astype(array.dtype), tensor.name))
            return copy
    return None


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A heading, and a line for each model."""
    titles = rows[0].right if rows else {}
    yield (
        f"{'model':28}{'sites':>6}"
        + "".join(f"{t:>14}{'of scale':>10}{'a wrong one':>14}" for t in titles)
        + (f"{'s':>8}")
    )
    yield from (row.text for row in rows)


def run_tests(arguments: Sequence[str]) -> tuple[bool, str]:
    """Run the tests that need CUDA; whether something failed, and the last lines of what pytest said."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-o", "addopts=--strict-markers", *arguments]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    told = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return done.returncode != 0, "\n".join(told[-20:])


if __name__ == "__main__":
    sys.exit(main())
