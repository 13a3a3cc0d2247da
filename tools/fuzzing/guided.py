"""Files guided by coverage: atheris keeps those that make other lines of bnfold run, and changes them further.

Most of the changes are those of `mutate`, the others libFuzzer's own to the bytes.

    python -m tools.fuzzing.guided CORPUS -max_total_time=600      needs atheris; more options: libFuzzer's

CORPUS is a folder, filled with small seeds where it is empty. libFuzzer stops at the first find and saves it.
"""

import importlib
import pkgutil
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris
from google.protobuf.message import DecodeError
from onnx import ModelProto

with atheris.instrument_imports(include=["bnfold"]):
    import bnfold

    for module in pkgutil.walk_packages(bnfold.__path__, "bnfold."):  # rules are imported when they are needed
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

from tools.fuzzing.files import FINDS, limit_process
from tools.fuzzing.mutate import Example, change_some
from tools.fuzzing.seeds import load_seeds
from tools.fuzzing.target import Find, attempt, prepare

OPTIONS = {"sources": "all", "clone_shared": True, "partial": True, "merge_branches": True, "freeze_inputs": True}
BYTES = 0.3  # of the changes are to the bytes
LARGEST = 2000  # bytes of a seed


def changed(data: bytes, largest: int, seed: int) -> bytes:
    """The file changed once more."""
    random = Random(seed)
    if random.random() < BYTES:
        return bytes(atheris.Mutate(data, largest))
    try:
        proto = ModelProto.FromString(data)
    except DecodeError:
        return bytes(atheris.Mutate(data, largest))
    change_some(random, proto, Example(data, "guided", ""))
    made = proto.SerializeToString()
    return made if len(made) <= largest else data


def main() -> None:
    """Fill the corpus where it is empty, and go."""
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for seed in load_seeds(FINDS):
            if len(seed.data) <= LARGEST:
                (corpus / f"{seed.family}-{seed.name}").write_bytes(seed.data)
    folder = Path(tempfile.mkdtemp(prefix="bnfold-guided-"))
    limit_process()
    prepare(folder)

    def one(data: bytes) -> None:
        try:
            attempt(data, folder, OPTIONS)
        except Find as find:
            if not find.kind.startswith("refold"):  # bytes that are no valid model may fold in steps
                raise

    atheris.Setup(sys.argv, one, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
