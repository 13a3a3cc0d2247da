"""Build the models of models/ again, or the full-size ones for measurements.

    python tools/make_models.py                        every file of models/, and the tables in its README
    python tools/make_models.py --only unet levit      these alone
    python tools/make_models.py --all DIR              the full-size ones, into DIR
    python tools/make_models.py --all DIR --only resnet50

Needs more than bnfold does: torch 2.13.0 (the build for CPU is enough), and

    pip install transformers==5.23.0 scikit-learn==1.9.1 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2

Everything is seeded and runs on one thread, so the same packages on the same kind of processor write the same
bytes. Other versions or processors train to other last digits: the accuracy stays, the hashes do not.
Each file is checked before it counts: valid, no BatchNormalization lost, torch's outputs within 1e-4.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / "models"


def main() -> None:
    """Choose, write, and bring the README's tables up to date."""
    parser = argparse.ArgumentParser(description="Build the small models of models/, or the full-size ones.")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="make these alone")
    parser.add_argument("--all", type=Path, metavar="DIR", help="make the full-size models in DIR instead")
    arguments = parser.parse_args()

    import torch  # here, so that --help answers at once
    from networks import catalogue, readme

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    offered = catalogue.FULL if arguments.all else catalogue.SMALL
    entries = {Path(entry.name).stem: entry for entry in offered}
    chosen = [Path(name).stem for name in arguments.only] or list(entries)
    if unknown := [name for name in chosen if name not in entries]:
        parser.error(f"no model {', '.join(unknown)}; there are: {', '.join(entries)}")
    folder = arguments.all or MODELS
    folder.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        make(entries[name].write, folder / entries[name].name)
    if not arguments.all:
        readme.update(MODELS, catalogue.SMALL)


def make(write: Callable[[Path], None], path: Path) -> None:
    """Write one file and say how large it is and how long it took."""
    started = time.perf_counter()
    write(path)
    took = time.perf_counter() - started
    print(f"{path.name:28} {path.stat().st_size:>11,} bytes {took:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
