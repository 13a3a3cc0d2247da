"""Processes that are killed, and processes that work on the same file at once: every model that is there is whole."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest

from tests.conftest import conv_bn
from tests.test_external import assert_folded, externalise, files_of, network, shaped
from tools import kill
from tools.killing import judge
from tools.killing.scene import Scene, listing

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")


def test_killed_at_random_moments_the_model_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten kills of tools/kill.py, which runs 200: exactly the old or the new bytes, and names that say temporary."""
    monkeypatch.setattr(kill, "CALIBRATION_RUNS", 1)
    counts, _ = kill.kill(10, 7, tmp_path, kinds=[(True, True, True), (True, False, False)])
    assert counts.failures == []
    assert counts.scenes.total() == 10
    assert "broken" not in counts.states


def test_the_tool_sees_what_is_wrong(tmp_path: Path) -> None:
    """A half-written target, a file of another name, and an exit code that lies are each a failure."""
    scene = Scene(external=True, in_place=True, verify=False)
    scene.before = {"model.onnx": b"old", "weights.bin": b"w"}
    scene.done = {"model.onnx": b"new", "model.onnx.data": b"d"}
    said = "interrupted; nothing was written"
    right = (scene.before, scene.before | {"model.onnx.data": b"d"}, scene.done, scene.done | {"weights.bin": b"w"})
    for files in right:
        assert not list(judge.problems(scene, 9, -9, "", files | {".model.onnx.0123abcd.bnfold-tmp.data": b"x"}))
    assert list(judge.problems(scene, 9, -9, "", scene.before | {"model.onnx": b"ne"}))
    assert list(judge.problems(scene, 9, -9, "", scene.before | {"rest.data": b"d"}))
    assert list(judge.problems(scene, 9, -9, "", scene.before | {"model.onnx": b"new"}))
    assert not list(judge.problems(scene, 2, 130, said, scene.before))
    assert list(judge.problems(scene, 2, 130, said, scene.done))
    assert list(judge.problems(scene, 2, 0, "", scene.before))
    assert list(judge.problems(scene, 2, 3, "", scene.before))
    assert list(judge.problems(scene, 15, 130, said, scene.before | {".model.onnx.0123abcd.bnfold-tmp": b""}))


# Forks a child for each system call that a fold makes in its folder, and kills it right before that call.
# argv: folder with the model, how to fold. Prints, for each child, the call and what it left: names and bytes in hex.
AT_EVERY_CALL = """
import json, os, shutil, signal, sys
from pathlib import Path
import bnfold
import bnfold.api
room, how = Path(sys.argv[1]), sys.argv[2]
names = ("open", "write", "fsync", "fchmod", "link", "replace", "rename", "unlink", "mkdir")
calls = []
def wrap(name, real):
    def call(path, *args, **options):
        if isinstance(path, int) or os.fspath(path).startswith(str(room)):
            calls.append(name)
            if len(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *args, **options)
    return call
at, ends, status = 0, [], 1
while status:
    at += 1
    folder = room / str(at)
    shutil.copytree(room / "before", folder)
    child = os.fork()
    if not child:
        for name in names:
            setattr(os, name, wrap(name, getattr(os, name)))
        options = {"in_place": True} if how == "in-place" else {"output": folder / "out.onnx", "force": True}
        bnfold.fold(folder / "model.onnx", verify=False, **options)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    ends.append([status, {p.name: p.read_bytes().hex() for p in folder.iterdir()}])
print(json.dumps(ends))
"""


@pytest.mark.parametrize(
    ("how", "external"), [("in-place", True), ("new", True), ("force", True), ("in-place", False)]
)
def test_killed_at_every_system_call(how: str, external: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter
    """SIGKILL at each one in turn: the old model or the new one, whole, and nothing else but what is allowed."""
    (tmp_path / "before").mkdir()
    externalise(network(), tmp_path / "before" / "model.onnx", None if external else ())
    if how == "force":
        other = shaped(conv_bn(seed=9), 2, 4, 7, 7)
        externalise(other, tmp_path / "before" / "out.onnx", file="out.onnx.data")
    command = [sys.executable, "-c", AT_EVERY_CALL, tmp_path, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    ends = [(status, {name: bytes.fromhex(data) for name, data in files.items()}) for status, files in told]
    assert len(ends) > 5
    assert [status for status, _ in ends] == [9] * (len(ends) - 1) + [0]
    scene = Scene(external, how == "in-place", verify=False)
    scene.before, scene.done = listing(tmp_path / "before"), ends[-1][1]
    assert judge.state(scene, scene.done) == "new"
    seen = set()
    for number, (_, files) in enumerate(ends[:-1], 1):
        assert list(judge.problems(scene, 9, -9, "", files)) == []
        seen.add(judge.state(scene, {name: data for name, data in files.items() if "bnfold-tmp" not in name}))
        for name in {"model.onnx", "out.onnx"} & files.keys():
            assert judge.load_problem(tmp_path / str(number) / name) == ""
    expected = {"old", "new"} | ({"old, and the new data"} if external else set())
    expected |= {"new, and the old data"} if external and how != "new" else set()
    assert {"old", "new"} <= seen <= expected


def at_once(count: int, *args: object) -> list[tuple[int, str]]:
    """Start that many `bnfold fold` with these arguments together; exit codes and stderr of each."""
    command = [sys.executable, "-m", "bnfold", "fold", *map(str, args), "--no-verify"]
    started = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(count)
    ]
    return [(process.wait(), process.communicate()[1]) for process in started]


@pytest.mark.parametrize(
    ("how", "external"), [("new", True), ("force", True), ("in-place", True), ("in-place", False)]
)
def test_six_processes_at_once(how: str, external: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter
    """On one target: it is a whole model, nothing else is left, and each says 0, or 2 and why."""
    proto = network()
    source = tmp_path / "model.onnx"
    if external:
        externalise(proto, source)
    else:
        onnx.save(proto, source)
    target = source if how == "in-place" else tmp_path / "out.onnx"
    args = {"new": ["-o", target], "force": ["-o", target, "--force"], "in-place": ["--in-place"]}[how]
    ends = at_once(6, source, *args)
    codes = Counter(code for code, _ in ends)
    assert codes.keys() <= {0, 2}, ends
    assert codes[0] == (1 if how == "new" else max(codes[0], 1))
    for code, said in ends:
        assert code == 0 or any(word in said for word in ("meanwhile", "exists", "No such file", "cannot read")), said
    if how == "force":
        assert codes[0] == 6
    expected = files_of(target) | (files_of(source) if target != source else set())
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert_folded(proto, target)


def test_different_folds_to_one_target_at_once(tmp_path: Path) -> None:
    """Two models with external data, three processes each, --force: one of the two is there, whole, with its data."""
    sources = [externalise(conv_bn(seed=seed), tmp_path / f"{seed}.onnx", file=f"{seed}.bin") for seed in (1, 2)]
    target = tmp_path / "out.onnx"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "bnfold", "fold", source, "-o", target, "--force", "--no-verify", "-q"],
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3) for source in sources
    ]  # fmt: skip
    ends = [(process.wait(), process.communicate()[1]) for process in started]
    assert ends == [(0, "")] * 6
    onnx.load(target)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"1.onnx", "1.bin", "2.onnx", "2.bin", *files_of(target)}
