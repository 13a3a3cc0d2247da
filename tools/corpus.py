"""Hold bnfold's promises to every model of the onnx backend tests, and to the models at hand.

    python tools/corpus.py [--folder DIR] > tools/results/corpus-DATE.txt

About 2,000 models: those that come with onnx (simple, node, light, from PyTorch), those that it makes for each
operator, models/, and ../shared/models where that is there. Each is opened, folded and saved, with the default
options and with every fold that a flag allows. Prints counts, every model that folds, and every broken promise:

- a model where nothing folds comes out byte for byte;
- onnx's checker (shape inference included) accepts what it accepted before;
- outputs stay, and inputs but for those that `--freeze-inputs` gives up and IR 3's own list of initializers;
- folding what was folded changes no byte, and a second process with another hash seed writes the same bytes;
- what folded and can be run gives the same outputs;
- `unfold`, where this bnfold has it, gives the original file back.

Exit 1 where one is broken. `--folder` keeps the models as files.
"""

import argparse
import datetime as dt
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import ModelProto

import bnfold

ROOT = Path(__file__).parent.parent
BACKEND = Path(onnx.__file__).parent / "backend" / "test" / "data"
EVERYTHING = {
    "sources": "all", "freeze_inputs": True, "clone_shared": True, "partial": True, "merge_branches": True,
    "assume_range": True,
}  # fmt: skip
CHOICES: dict[str, dict[str, Any]] = {"default": {}, "everything": EVERYTHING}


def backend_models() -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every model of the onnx backend tests, in files or made for an operator."""
    from onnx.backend.test.case.node import collect_testcases

    for path in sorted(BACKEND.rglob("*.onnx")):
        place = path.relative_to(BACKEND).with_suffix("").as_posix().removesuffix("/model")
        yield place, path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx's own cases overflow on purpose
        cases = collect_testcases(None)
    yield from ((f"made/{case.name}", case.model.SerializeToString()) for case in cases if case.model is not None)


def write_corpus(folder: Path) -> Counter[str]:
    """Write every model into `folder`: a second process must read the same bytes, and onnx draws some at random.

    Returns:
        How many there are, by where they come from.
    """
    found = list(backend_models())
    for kind, source in (("ours", ROOT / "models"), ("shared", ROOT.parent / "shared" / "models")):
        found += [(f"{kind}/{path.stem}", path.read_bytes()) for path in sorted(source.glob("*.onnx"))]
    for index, (name, data) in enumerate(found):
        (folder / f"{index:04} {name.replace('/', ' ')}.onnx").write_bytes(data)
    return Counter(name.split("/")[0] for name, _ in found)


@dataclass(slots=True)
class Tally:
    """What was seen.

    Attributes:
        counts: how many models, by what is said of them.
        codes: how many sites stay, by code.
        folding: one line for each model that folds.
        broken: one line for each broken promise.
        digests: of the bytes that were written, by model.
    """

    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    folding: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)


def is_valid(data: bytes) -> bool:
    """Whether onnx's checker, shape inference included, has nothing to say."""
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def interface_broken(before: ModelProto, result: bnfold.FoldResult, after: ModelProto) -> str:
    """What about inputs and outputs is not as it was; empty where nothing is."""
    if list(before.graph.output) != list(after.graph.output):
        return "its outputs changed"
    listed = before.ir_version < 4
    held = {tensor.name for tensor in before.graph.initializer} if listed else set(result.frozen)
    new = {tensor.name for tensor in after.graph.initializer} if listed else set()
    first = [value for value in before.graph.input if value.name not in held]
    second = [value for value in after.graph.input if value.name not in new]
    return "" if first == second else "its inputs changed"


def examine(path: Path, options: dict[str, Any], folder: Path, tally: Tally) -> None:
    """Fold one model and note what came of it."""
    target, data = folder / "out.onnx", path.read_bytes()
    tally.counts["models"] += 1
    try:
        result = bnfold.fold(path, target, force=True, verify=False, **options)
    except bnfold.BnfoldError as error:
        tally.broken.append(f"{path.stem}: {error}")
        return
    written = target.read_bytes()
    tally.digests[path.name] = hashlib.sha256(written).hexdigest()
    tally.codes.update(str(site.code) for site in result.refused)
    tally.counts["accepted by the checker"] += is_valid(data)
    note(tally, path, "restored by unfold", unfolding_broken(path, options, folder))
    if not result.folded:
        tally.counts["nothing folds"] += 1
        note(tally, path, "  of them byte for byte", "" if written == data else "nothing folds, and it changed")
        return
    tally.counts["something folds"] += 1
    left = f", {len(result.refused)} left" if result.refused else ""
    tally.folding.append(f"{path.stem[5:]}: {len(result.folded)} folded{left}")
    for promise, problem in promises(path, target, result, options):
        note(tally, path, f"  of them {promise}", problem)


def note(tally: Tally, path: Path, promise: str, problem: str | None) -> None:
    """Count a promise as kept, or list it as broken; None says that it could not be put to the test."""
    tally.counts[promise] += problem == ""
    if problem:
        tally.broken.append(f"{path.stem[5:]}: {problem}")


def promises(
    path: Path, target: Path, result: bnfold.FoldResult, options: dict[str, Any]
) -> Iterator[tuple[str, str | None]]:
    """Each promise to a model that folds, with what is wrong; empty where it is kept."""
    data, written = path.read_bytes(), target.read_bytes()
    worse = is_valid(data) and not is_valid(written)
    yield "no worse for the checker", "the checker accepts it no longer" if worse else ""
    before, after = ModelProto.FromString(data), ModelProto.FromString(written)
    yield "with the same interface", interface_broken(before, result, after)
    twice = target.with_name("twice.onnx")
    bnfold.fold(target, twice, force=True, verify=False, **options)
    yield "idempotent", "" if twice.read_bytes() == written else "folding it twice is not folding it once"
    try:
        bnfold.fold(path, trials=1, **options)
    except bnfold.VerificationFailed as error:
        yield "verified equal", str(error)
    except bnfold.NotVerified as error:
        yield f"not run: {error}", ""
    else:
        yield "verified equal", ""


def unfolding_broken(path: Path, options: dict[str, Any], folder: Path) -> str | None:
    """What is wrong with the way back; empty where nothing is, None where this bnfold has none."""
    unfold = getattr(bnfold, "unfold", None)
    if unfold is None:
        return None
    with tempfile.TemporaryDirectory(dir=folder) as name:
        folded, undo, back = (Path(name) / file for file in ("folded.onnx", "folded.undo", "back.onnx"))
        bnfold.fold(path, folded, verify=False, undo_file=undo, **options)
        unfold(folded, undo, back)
        return "" if back.read_bytes() == path.read_bytes() else "unfold gives another file"


def survey(models: Path, options: dict[str, Any], *, digests_only: bool) -> Tally:
    """Examine every model in a folder; with `digests_only` just what is written."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.onnx"
        for path in sorted(models.glob("*.onnx")):
            if not digests_only:
                examine(path, options, Path(folder), tally)
                continue
            bnfold.fold(path, target, force=True, verify=False, **options)
            tally.digests[path.name] = hashlib.sha256(target.read_bytes()).hexdigest()
    return tally


def digests_of_another_process(models: Path, choice: str) -> dict[str, str]:
    """What a new process with another hash seed writes, as digests by model."""
    command = [sys.executable, str(Path(__file__)), "--folder", str(models), "--digests", choice]
    environment = os.environ | {"PYTHONHASHSEED": "4242"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def show(choice: str, tally: Tally) -> None:
    """Print one survey."""
    options = " ".join(f"{name}={value}" for name, value in CHOICES[choice].items())
    print(f"\n{choice} options{': ' if options else ''}{options}")
    for name, count in tally.counts.items():
        if count:
            print(f"{count:7} {name}")
    print("sites that stay:", ", ".join(f"{code} {count}" for code, count in sorted(tally.codes.items())) or "none")
    print("models that fold:")
    print("\n".join(f"    {line}" for line in tally.folding) or "    none")
    print("broken promises:")
    print("\n".join(f"    {line}" for line in tally.broken) or "    none")


def main() -> int:
    """Print both surveys; 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--digests", choices=CHOICES)
    arguments = parser.parse_args()
    if arguments.digests:
        tally = survey(arguments.folder, CHOICES[arguments.digests], digests_only=True)
        print(json.dumps(tally.digests))
        return 0
    versions = f"bnfold {bnfold.__version__}, onnx {onnx.__version__}, onnxruntime {ort.__version__}"
    print(f"date      {dt.datetime.now(dt.UTC):%Y-%m-%d}")
    print(f"versions  {versions}, Python {platform.python_version()}")
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        models = arguments.folder or Path(folder)
        models.mkdir(exist_ok=True)
        print("corpus   ", ", ".join(f"{origin} {count}" for origin, count in write_corpus(models).items()))
        for choice, options in CHOICES.items():
            tally = survey(models, options, digests_only=False)
            other = digests_of_another_process(models, choice)
            tally.broken += [f"{name}: another process writes other bytes"
                             for name, digest in tally.digests.items() if other.get(name) != digest]  # fmt: skip
            same = sum(other.get(name) == digest for name, digest in tally.digests.items())
            tally.counts["written alike by two processes"] = same
            show(choice, tally)
            broken += len(tally.broken)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
