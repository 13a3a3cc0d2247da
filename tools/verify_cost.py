"""What verifying costs, against running: two plain sessions, created and run once each, on the same two models.

    python tools/make_models.py --all DIR
    python tools/verify_cost.py DIR/resnet50.onnx [MORE ...] [--rounds 5] [--shape 1,3,224,224] [--out FILE]

Both are measured in turn, in one process that has everything imported, with bnfold's and onnxruntime's defaults; a
plain session is fed what the first trial was fed in shape. Prints the medians, and the least and largest ratio of
neighbours.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

import bnfold

Shape = tuple[int, ...]


def plain(path: Path, shape: Shape) -> None:
    """One session with onnxruntime's defaults, and one run."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: np.zeros(shape, np.float32)})


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measured(path: Path, rounds: int, shape: Shape | None) -> str:
    """A line for one model."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        bnfold.fold(path, target, verify=False)
        name = onnx.load(path, load_external_data=False).graph.input[0].name
        shapes = None if shape is None else {name: shape}
        found = bnfold.verify(path, target, shapes=shapes)
        fed = [tuple(trial.shapes[name]) for trial in found.runs[0].inputs]
        pairs = [
            (
                seconds(lambda: (plain(path, fed[0]), plain(target, fed[0]))),
                seconds(lambda: bnfold.verify(path, target, shapes=shapes)),
            )
            for _ in range(rounds)
        ]
    ratios = sorted(second / first for first, second in pairs)
    medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
    trials = ", ".join("x".join(map(str, sizes)) for sizes in fed)
    return (
        f"{path.name:28} {found.verdict:12} {medians[0]:6.2f} s {medians[1]:6.2f} s "
        f"{statistics.median(ratios):6.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})   {trials}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    versions = f"bnfold {bnfold.__version__}, onnxruntime {ort.__version__}, onnx {onnx.__version__}"
    columns = f"{'model':28} {'verdict':12} {'plain':>8} {'verify':>8} {'ratio':>6} (least, most)  inputs of trials"
    lines = [f"{versions}, Python {platform.python_version()}, {arguments.rounds} rounds, medians", columns]
    print("\n".join(lines), flush=True)
    for path in arguments.models:
        lines.append(measured(path, arguments.rounds, arguments.shape))
        print(lines[-1], flush=True)
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
