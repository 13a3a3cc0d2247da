"""Print how many maps bnfold and the other tools leave in each model.

    python tools/sites.py MODELS... [--timeout 60] [--out FILE]

A map is a BatchNormalization, or a maximal chain of Mul, Add, Sub, Div, Neg by constants of which one has an entry
for each feature map; the bias of a MatMul is none. They are counted in the model as it is and in what each tool makes
of it, by the same code. Every tool runs at its own defaults, in a fresh process (onnxruntime at its extended level).
What a tool makes is also run against the original, all graph optimisations off: `wrong` where an output is off by
more than 1e-2 of its scale, `broken` where it does not load or lacks an output, `fails` where the tool itself does.
"""

import argparse
import datetime as dt
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from bnfold.errors import BnfoldError
from bnfold.find import Site, batchnorm, chain
from bnfold.graph import GraphFacts
from bnfold.options import FoldOptions
from bnfold.plan import pull
from bnfold.refusals import Refusal

_ONNXRUNTIME = """\
import sys, onnxruntime as ort
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
options.optimized_model_filepath = sys.argv[2]
options.log_severity_level = 4
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
_ONNXSCRIPT = """\
import sys, onnx
from onnxscript import optimizer
onnx.save(optimizer.optimize(onnx.load(sys.argv[1])), sys.argv[2])
"""
_ONNXOPTIMIZER = """\
import sys, onnx, onnxoptimizer
model = onnxoptimizer.optimize(onnx.load(sys.argv[1]), onnxoptimizer.get_fuse_and_elimination_passes())
onnx.save(model, sys.argv[2])
"""
TOOLS: dict[str, tuple[str, str]] = {
    "bnfold": ("bnfold", "import sys, bnfold; bnfold.fold(sys.argv[1], sys.argv[2], verify=False)"),
    "onnxruntime": ("onnxruntime", _ONNXRUNTIME),
    "onnxscript": ("onnxscript", _ONNXSCRIPT),
    "onnxslim": ("onnxslim", "import sys, onnxslim; onnxslim.slim(sys.argv[1], sys.argv[2])"),
    "onnxsim": ("onnxsim", "import sys, onnx, onnxsim as s; onnx.save(s.simplify(sys.argv[1])[0], sys.argv[2])"),
    "onnxoptimizer": ("onnxoptimizer", _ONNXOPTIMIZER),
}
WRONG = 1e-2


def count(model: onnx.ModelProto) -> tuple[int, int]:
    """How many BatchNormalization nodes, and how many chains with an entry for each map, a model has."""
    facts = GraphFacts(model, freeze_inputs=True)
    maps = sum(is_map(facts, site) for site in chain.sites(facts))
    return len(list(batchnorm.sites(facts))), maps


def is_map(facts: GraphFacts, site: Site) -> bool:
    """Whether a chain has an entry for each map, and is not just the bias of a MatMul with a Reshape between."""
    found = chain.source(facts, site)
    if isinstance(found, Refusal) or not found.per_map:
        return False
    answer = pull(facts, site, found, FoldOptions())
    return not (isinstance(answer, Refusal) and answer.quiet)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by name, all graph optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def feeds_for(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Seeded inputs: normal, small whole numbers where they are integers; free dimensions are 2."""
    random = np.random.default_rng(0)
    held = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in held:
            continue
        shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        drawn = random.integers(0, 2, shape) if dtype.kind in "iu" else random.normal(size=shape)
        feeds[value.name] = drawn.astype(dtype)
    return feeds


def verdict(original: onnx.ModelProto, made: onnx.ModelProto) -> str:
    """Nothing where both give the same."""
    feeds = feeds_for(original)
    wanted = run(original, feeds)
    try:
        found = run(made, feeds)
    except Exception:  # noqa: BLE001 - whatever the runtime raises, it does not run
        return "broken"
    if list(found) != list(wanted):
        return "broken"
    for name, value in wanted.items():
        scale = float(np.abs(value).max()) or 1.0
        if found[name].shape != value.shape or not np.abs(found[name] - value).max() <= WRONG * scale:
            return "wrong"
    return ""


def cell(path: Path, original: onnx.ModelProto, code: str, timeout: float) -> str:
    """How many maps one tool leaves in one model."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.onnx"
        try:
            subprocess.run(
                [sys.executable, "-c", code, str(path), str(target)], check=True, capture_output=True, timeout=timeout
            )
            made = onnx.load(target)
        except subprocess.TimeoutExpired:
            return f"> {timeout:g} s"
        except (subprocess.CalledProcessError, OSError):
            return "fails"
    try:
        left = sum(count(made))
    except BnfoldError:
        return "broken"
    wrong = verdict(original, made)
    return f"{left} {wrong}".strip()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    packages = ", ".join(f"{package} {version(package)}" for package, _ in TOOLS.values())
    lines = [
        f"date      {dt.datetime.now(dt.UTC).date()}",
        f"versions  {packages}, onnx {version('onnx')}, Python {platform.python_version()}",
        "",
        f"{'model':28}{'BN':>5}{'chains':>8}" + "".join(f"{name:>15}" for name in TOOLS),
    ]
    print("\n".join(lines), flush=True)
    for path in arguments.models:
        original = onnx.load(path)
        before = count(original)
        if not sum(before):
            continue
        cells = [cell(path, original, code, arguments.timeout) for _, code in TOOLS.values()]
        lines.append(f"{path.stem:28}{before[0]:>5}{before[1]:>8}" + "".join(f"{text:>15}" for text in cells))
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
