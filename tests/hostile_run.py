"""Hostile files in a process of their own, whose memory is bounded and which notes every file that is opened.

    ends = ends_well(cases, folder)     in the test
    python -m tests.hostile_run ...     what that starts: one process for all the cases

Each case is a model's bytes. It is inspected and folded by the command line's own code.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

from tests.conftest import batchnorm_parameters, model, tensor

ROOT = Path(__file__).parent.parent
MEGABYTES = 400  # more than the process has after all imports
SECONDS = 120  # for all cases of a test; they take about one
COMMANDS = {
    "inspect": ["inspect", "model.onnx", "-v", "--sources", "all", "--clone-shared", "--partial", "--merge-branches"],
    "json": ["inspect", "model.onnx", "--format", "json", "--freeze-inputs"],
    "fold": ["fold", "model.onnx", "-o", "out/folded.onnx", "--no-verify", "--force", "--sources", "all",
             "--clone-shared", "--partial", "--merge-branches"],
}  # fmt: skip


N = helper.make_node
HUGE = 10**15


class End(NamedTuple):
    """How one command ended."""

    code: int
    out: str
    err: str
    opened: list[str]


def ends_well(
    cases: Mapping[str, bytes], folder: Path, commands: tuple[str, ...] = tuple(COMMANDS)
) -> dict[str, End]:
    """Run every case; each must end in exit 0, or in exit 2 with one printable line. Returns the last command's ends.

    No traceback, no crash, no hang, bounded memory, nothing read outside the case's folder, nothing left behind.
    """
    (folder / "out").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder.parent / f"{folder.name}.zip", "w") as archive:
        for name, data in cases.items():
            archive.writestr(name, data)
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile_run", archive.filename or "", folder, *commands],
        cwd=ROOT, capture_output=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    finished = {(line["case"], line["command"]): End(*line["end"]) for line in lines}
    missing = [(case, command) for case in cases for command in commands if (case, command) not in finished]
    assert not missing, f"died in {missing[0]}: {done.stderr.decode()[-1000:]}"
    wrong = [f"{key}: {found}" for key, end in finished.items() if (found := _wrong(end))]
    assert not wrong, "\n".join([f"{len(wrong)} wrong", *wrong[:5]])
    return {case: finished[case, commands[-1]] for case in cases}


def _wrong(end: End) -> str:
    """What is not as it must be; empty where all is."""
    shown = end.out + end.err
    raw = [c for c in shown if (c < " " and c != "\n") or "\x7f" <= c <= "\x9f"]
    if end.code not in (0, 2):
        return f"exit {end.code}: {end.err[:300]}"
    if raw:
        return f"{raw[0]!r} reaches the terminal: {shown[:300]!r}"
    if end.opened:
        return f"opened {end.opened}"
    if end.code == 2 and (end.err.count("\n") != 1 or end.out or len(end.err) > 2000):
        return f"no single short line: {shown[:300]!r}"
    if end.code == 0 and end.err:
        return f"exit 0 and a message: {end.err[:300]}"
    return ""


def between(*nodes: NodeProto, held: tuple[TensorProto, ...] = (), opset: int = 17) -> ModelProto:
    """x -> Conv -> h, the nodes (h to o), o -> BatchNormalization -> Conv -> y: something to pull and to push."""
    weights = [tensor("w", np.ones((4, 4, 1, 1))), *batchnorm_parameters(4), *held]
    first, *last = (
        N("Conv", ["x", "w"], ["h"]),
        N("BatchNormalization", ["o", "gamma", "beta", "mean", "var"], ["n"]),
        N("Conv", ["n", "w"], ["y"]),
    )
    return model([first, *nodes, *last], weights, (1, 4, 4, 4), opset=opset)


def lying(name: str, dims: list[int], kind: int = TensorProto.FLOAT, **fields: Any) -> TensorProto:
    """A tensor that says it is large and holds next to nothing."""
    return TensorProto(name=name, data_type=kind, dims=dims, **fields)


def calling(*functions: FunctionProto) -> ModelProto:
    """A model that calls the first of these functions between a Conv and a BatchNormalization."""
    proto = between(N("F0", ["h"], ["o"], domain="l"))
    proto.opset_import.append(helper.make_opsetid("l", 1))
    proto.functions.extend(functions)
    return proto


# The other process --------------------------------------------------------------------------------------------------


def main(archive: str, folder: str, *commands: str) -> None:
    """Try every case of the archive; one line of JSON for each command."""
    import onnx.reference  # noqa: F401 - imported before the limit is set
    import rich.table  # noqa: F401 - the same

    from bnfold import api  # noqa: F401 - the same

    os.chdir(folder)
    os.fsync = lambda _: None  # type: ignore[assignment]  # durability is not what this is about
    opened: list[str] = []
    results = os.fdopen(os.dup(1), "w")  # the parent's pipe, whatever becomes of stdout
    limit_memory(MEGABYTES)
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    with zipfile.ZipFile(archive) as cases:
        for case in cases.namelist():
            Path("model.onnx").write_bytes(cases.read(case))
            for command in commands:
                del opened[:]
                end = _run(COMMANDS[command])
                foreign = sorted({path for path in opened if _is_foreign(path)})
                results.write(json.dumps({"case": case, "command": command, "end": [*end, foreign]}) + "\n")
                results.flush()
                _tidy()


def _run(arguments: list[str]) -> tuple[int, str, str]:
    from bnfold.cli import _run as run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    return code, out.getvalue(), err.getvalue()


def _tidy() -> None:
    """Remove what a fold wrote; temporary files must be gone already."""
    for path in Path("out").iterdir():
        assert not path.name.endswith(".bnfold-tmp"), path
        path.unlink()


def _is_foreign(path: str) -> bool:
    """Whether a file is neither in the folder of the case, nor Python's and its packages' own."""
    if path.isdigit():  # a file descriptor
        return False
    full = Path(path).absolute()
    own = (Path.cwd(), ROOT, Path(sys.prefix), Path(sys.base_prefix))
    return ".." in full.parts or not any(full.is_relative_to(folder) for folder in own)


def limit_memory(megabytes: int) -> None:
    """Let this process take that much more than it has."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit: Any = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
