"""Print the accuracy of the trained networks in models/ on the held-out digits, before and after folding.

    python tools/accuracy.py

Folds each digits_*.onnx into a temporary folder (verified), runs both files in onnxruntime on the CPU with graph
optimisations off, and prints a table.
"""

import platform
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

import bnfold

MODELS = Path(__file__).parent.parent / "models"


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """The network's outputs, float32 (N, 10)."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixel_values": images})[0])


def main() -> None:
    """Print the table."""
    data = np.load(MODELS / "digits_test.npz")
    images, labels = data["pixel_values"], data["labels"]
    print(f"bnfold {bnfold.__version__}, onnxruntime {ort.__version__}, Python {platform.python_version()},", end=" ")
    print(f"{platform.machine()}; {len(labels)} held-out digits")
    print(
        f"{'model':24} {'BN before':>9} {'left':>5} {'accuracy before':>16} {'after':>7} {'difference / scale':>20}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(MODELS.glob("digits_*.onnx")):
            target = Path(folder) / path.name
            result = bnfold.fold(path, target)
            before, after = logits(path, images), logits(target, images)
            hits = [float((found.argmax(1) == labels).mean()) for found in (before, after)]
            error = float(np.abs(after - before).max() / np.abs(before).max())
            left = len(result.refused)
            print(
                f"{path.stem:24} {len(result.report.sites):9} {left:5} {hits[0]:16.2%} {hits[1]:7.2%} {error:20.1e}"
            )


if __name__ == "__main__":
    main()
