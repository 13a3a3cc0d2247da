"""`bnfold check` and `bnfold.check`: what passes and what does not, several models and processes, reports for CI."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, helper

import bnfold
from bnfold import api
from bnfold.modelfiles import model_files
from bnfold.report.github import LARGEST_SUMMARY, step_summary
from bnfold.report.verdicts import CheckResult, ModelCheck, worst
from bnfold.workers import Died, run_all
from tests.conftest import Cli, batchnorm_parameters, conv_bn, model
from tests.dying import blocked, square

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"


def put(proto: ModelProto, path: Path) -> Path:
    """Write a model as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path


def stays() -> ModelProto:
    """x -> BatchNormalization 'late' -> Relu -> y: nothing folds, one stays."""
    names = ("gamma", "beta", "mean", "var")
    nodes = [
        helper.make_node("BatchNormalization", ["x", *names], ["r"], name="late"),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    return model(nodes, batchnorm_parameters(3), (1, 3, 8, 8))


def custom() -> ModelProto:
    """Conv -> BatchNormalization -> an operator that nobody has: it folds, and nothing can run it."""
    proto = conv_bn()
    proto.graph.node[1].output[0] = "z"
    proto.graph.node.append(helper.make_node("Mystery", ["z"], ["y"], name="mystery", domain="my.domain"))
    proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    return proto


@pytest.fixture
def zoo(tmp_path: Path) -> dict[str, Path]:
    """One file of each kind, in a folder of its own."""
    folder = tmp_path / "zoo"
    files = {
        "open": put(conv_bn(), folder / "open.onnx"),
        "closed": put(bnfold.fold(conv_bn()).model, folder / "closed.onnx"),
        "stays": put(stays(), folder / "stays.onnx"),
        "custom": put(custom(), folder / "custom.onnx"),
        "lfs": folder / "lfs.onnx",
        "absent": folder / "absent.onnx",
    }
    files["lfs"].write_bytes(LFS)
    return files


# Verdicts


@pytest.mark.parametrize(
    ("names", "args", "code", "words"),
    [
        ("closed", (), 0, "passed"),
        ("stays", (), 0, "1 activation-between"),
        ("open", (), 1, "1 site would fold (BatchNormalization 'bn'): run `bnfold fold`"),
        ("open", ("--allow-foldable",), 0, "passed"),
        ("open", ("--exclude", "bn"), 0, "passed"),
        ("stays", ("--max-unfolded", "1"), 0, "passed"),
        ("stays", ("--max-unfolded", "0"), 1, "1 site would stay, more than 0: 1 activation-between"),
        ("custom", (), 1, "could not verify"),
        ("custom", ("--allow-foldable",), 3, "Mystery"),
        ("lfs", (), 2, "git lfs pull"),
        ("absent", (), 2, "No such file"),
        ("closed open custom", ("--allow-foldable",), 3, "3 models: 2 passed, 1 not verified"),
        ("closed open custom", (), 1, "3 models: 1 passed, 2 failed"),
        ("lfs open custom", (), 2, "3 models: 1 invalid, 2 failed"),
    ],
)
def test_verdicts(names: str, args: tuple[str, ...], code: int, words: str, zoo: dict[str, Path], cli: Cli) -> None:
    """Each outcome has its exit code and says why; over several models the worst counts; nothing is written."""
    folder = zoo["open"].parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    found, out, err = cli("check", *(zoo[name] for name in names.split()), *args)
    assert (found, err) == (code, "")
    assert words in out
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_fold_that_would_be_wrong_fails(zoo: dict[str, Path], cli: Cli, wrong_fold: None) -> None:
    """Where folding would change the outputs the model fails, --allow-foldable or not."""
    code, out, _ = cli("check", zoo["open"], "--allow-foldable")
    assert code == 1
    assert "folding would change the outputs" in out
    assert "the bias of map" in out


def test_a_bug_with_one_model_stops_no_other(zoo: dict[str, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """70 for the model in which bnfold itself fails, and over all; the others are checked."""
    right = api.fold

    def fold(path: Path, **arguments: Any) -> Any:
        if path == zoo["open"]:
            raise ZeroDivisionError("ours")
        return right(path, **arguments)

    monkeypatch.setattr(api, "fold", fold)
    code, out, _ = cli("check", zoo["open"], zoo["closed"], zoo["lfs"])
    assert code == 70
    assert "this is a bug in bnfold, please report it: ZeroDivisionError: ours" in out
    assert "3 models: 1 bug, 1 passed, 1 invalid" in out


def test_the_worst_code_is_that_of_the_design() -> None:
    """70 > 2 > 1 > 3 > 0."""
    order = [70, 2, 1, 3, 0]
    assert [worst(order[i:]) for i in range(5)] == order
    assert [worst(reversed(order[i:])) for i in range(5)] == order


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["open.onnx", "-j", "0"],
        ["open.onnx", "--max-unfolded", "-1"],
        ["open.onnx", "--tf32"],
        ["open.onnx", "--provider", "abacus"],
        ["open.onnx", "--report", "open.onnx"],
        ["open.onnx", "--report", "x.xml"],
        ["nothing/*.onnx"],
        ["empty"],
    ],
)
def test_usage_errors_exit_2(
    args: list[str], zoo: dict[str, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be meant, before any model is looked at: 2, the reason on stderr, nothing on stdout."""
    monkeypatch.chdir(zoo["open"].parent)
    (zoo["open"].parent / "empty").mkdir()
    code, out, err = cli("check", *args)
    assert (code, out) == (2, "")
    assert err.strip()


def test_the_api_refuses_what_makes_no_sense(zoo: dict[str, Path]) -> None:
    """jobs, max_unfolded, unknown arguments, no models: UsageError; a result is true where all passed."""
    for arguments in ({"jobs": 0}, {"max_unfolded": -1}, {"verify": False}, {"sources": "some"}, {"trials": 0}):
        with pytest.raises(bnfold.UsageError):
            bnfold.check(zoo["open"], **arguments)
    with pytest.raises(bnfold.UsageError, match="no model"):
        bnfold.check([])
    assert bnfold.check(str(zoo["closed"]))
    assert not bnfold.check([zoo["closed"], zoo["open"]])


# Which files


def test_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every *.onnx below, sorted, once; dot folders are left out; a file stands for itself whatever its name."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.onnx", "a/z.ONNX", "a/y.onnx", "a/notes.txt", ".git/x.onnx", "c/d/e.onnx", "[1].onnx"):
        put(conv_bn(), Path(name))
    found = [path.as_posix() for path in model_files(["."])]
    assert found == ["[1].onnx", "b.onnx", "a/y.onnx", "a/z.ONNX", "c/d/e.onnx"]
    assert model_files(["**/*.onnx", "b.onnx"]) == [Path(n) for n in ("[1].onnx", "a/y.onnx", "b.onnx", "c/d/e.onnx")]
    assert model_files(["a/notes.txt", "[1].onnx"]) == [Path("a/notes.txt"), Path("[1].onnx")]
    assert model_files(["b.onnx", "./b.onnx", tmp_path / "b.onnx"]) == [Path("b.onnx")]
    assert model_files(["c*"]) == [Path("c/d/e.onnx")]


# Processes


def told(result: CheckResult) -> list[tuple[Any, ...]]:
    """What does not depend on who checked."""
    return [(m.model, m.outcome, m.reasons, m.sha256, m.sites, m.codes) for m in result.models]


def test_several_processes_say_the_same_as_one(zoo: dict[str, Path]) -> None:
    """-j changes nothing but who works: the same entries in the same order."""
    files = [zoo[name] for name in ("stays", "open", "lfs", "custom", "closed")]
    one, several = bnfold.check(files), bnfold.check(files, jobs=2)
    assert told(one) == told(several)
    assert one.exit_code == several.exit_code == 2


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX only")
def test_a_process_that_dies_costs_its_own_item_only() -> None:
    """As onnxruntime may crash: the items behind it are worked on by a new process."""
    assert dict(run_all(square, [0, 1, 2, 3], 2)) == {0: 0, 1: Died(-9), 2: 4, 3: Died(9)}


@pytest.mark.skipif(os.name == "nt", reason="signal masks are POSIX only")
def test_processes_never_see_a_ctrl_c() -> None:
    """They start with SIGINT blocked, so that none prints a traceback; this process still gets it."""
    assert dict(run_all(blocked, [0], 1)) == {0: [signal.SIGINT]}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(os.name == "nt", reason="process groups are POSIX only")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_behind(number: int, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM, which reach the whole group, end with 130, one line, and no process of -j left."""
    for index in range(400):
        put(conv_bn(), tmp_path / f"{index}.onnx")
    command = [sys.executable, "-m", "bnfold", "check", str(tmp_path), "-j", "2"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    if children.exists():
        while child.poll() is None and len(children.read_text().split()) < 2:
            time.sleep(0.01)
    else:
        time.sleep(2)
    os.killpg(child.pid, number)
    out, err = child.communicate()
    assert (child.returncode, out) == (130, b"")
    assert err == b"bnfold: error: interrupted; nothing was written\n"
    with pytest.raises(ProcessLookupError):  # noqa: PT012 - until the last one has gone
        while True:
            os.killpg(child.pid, 0)
            time.sleep(0.01)


# Reports


def test_json_holds_all_of_it(zoo: dict[str, Path], cli: Cli) -> None:
    """Schema, versions, digest, sites with codes, metrics of each output; the file is what stdout has."""
    report = zoo["open"].parent / "check.json"
    files = [zoo[name] for name in ("open", "stays", "lfs")]
    code, out, err = cli("check", *files, "--format", "json", "--report", report)
    assert (code, err) == (2, "")
    assert report.read_text() == out
    tree = json.loads(out)
    assert (tree["schema"], tree["exit_code"], tree["version"]) == ("bnfold.check/1", 2, bnfold.__version__)
    assert tree["versions"]["onnx"] == onnx.__version__
    first, second, third = tree["models"]
    assert first["sha256"] == hashlib.sha256(zoo["open"].read_bytes()).hexdigest()
    assert (first["outcome"], first["foldable"], first["left"]) == ("failed", 1, 0)
    assert [output["name"] for run in first["verification"]["runs"] for output in run["outputs"]] == ["y"]
    assert (second["outcome"], second["codes"], second["verification"]) == ("passed", {"activation-between": 1}, None)
    assert second["sites"][0]["code"] == "activation-between"
    assert (third["outcome"], third["exit_code"], third["sha256"]) == ("invalid", 2, None)


def test_quiet_and_verbose(zoo: dict[str, Path], cli: Cli) -> None:
    """-q: a line on stderr for each reason, nothing on stdout; -v: every site."""
    code, out, err = cli("check", zoo["closed"], zoo["open"], "-q")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"bnfold: failed: .*open\.onnx: 1 site would fold .*\n", err)
    assert cli("check", zoo["closed"], "-q") == (0, "", "")
    assert "would fold: BatchNormalization 'bn': into Conv 'conv'" in cli("check", zoo["open"], "-v")[1]


def hostile(folder: Path) -> Path:
    """A model whose file and nodes are named to break out of annotations, tables and markup."""
    proto = conv_bn()
    proto.graph.node[1].name = "##[error]x\n::error::y %0A|`</td><b>[l](http://e.vil)@all"
    return put(proto, folder / "::error file=x,title=t::%0A|a`b<i>##[group]\n::warning::_c_.onnx")


def unescaped(text: str, *, is_property: bool = False) -> str:
    """What GitHub's runner makes of the data or of a property of a command."""
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","))[: 4 if is_property else 2]:
        text = text.replace(code, character)
    return text.replace("%25", "%")


@pytest.mark.skipif(os.name == "nt", reason="such a file name is POSIX only")
def test_annotations_and_summary_survive_any_name(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """One annotation for the one model, whose file and reason are what they were; one row of a table, no markup."""
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    path = hostile(tmp_path)
    code, out, err = cli("check", path)
    assert code == 1
    commands = [line for line in (out + err).splitlines() if line.lstrip().startswith("::")]
    assert commands == err.splitlines()
    (parts,) = [re.fullmatch(r"::error file=([^,:]*),title=([^,:]*)::([^\r\n]*)", line) for line in commands]
    assert parts is not None
    file, title = (unescaped(text, is_property=True) for text in parts.groups()[:2])
    assert file == path.name.replace("\n", "\\n").replace("##[", "## [")
    assert title == "bnfold check: failed"
    assert "1 site would fold" in unescaped(parts[3])
    assert "##[" not in out + err
    row = summary.read_text(encoding="utf-8").splitlines()[4]
    assert row.count("|") == 8
    assert not re.search(r"[`<>\[\]*_@]|http:|www\.", row)
    assert "&#60;b&#62;" in row


def test_nothing_is_told_to_github_elsewhere(
    zoo: dict[str, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Outside of GitHub Actions: no annotation, no summary, names as they are."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    code, _, err = cli("check", zoo["open"])
    assert (code, err) == (1, "")
    assert not (tmp_path / "summary.md").exists()


def test_a_summary_that_cannot_be_written_changes_no_verdict(
    zoo: dict[str, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The exit code is that of the check; a line says that the summary is missing."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "summary.md"))
    code, _, err = cli("check", zoo["closed"])
    assert (code, err) == (0, "bnfold: cannot write the step summary: No such file or directory\n")


def test_the_summary_stays_below_githubs_limit() -> None:
    """Thousands of models: those that failed come first, and the rest is counted."""
    good = [ModelCheck(f"{'n' * 90}{i}.onnx", "passed", 0) for i in range(9000)]
    bad = ModelCheck("bad.onnx", "failed", 1, ("why",))
    text = step_summary(CheckResult("0", {}, allow_foldable=False, max_unfolded=None, exit_code=1,
                                    models=(*good, bad), seconds=0))  # fmt: skip
    assert len(text.encode()) < LARGEST_SUMMARY + 100
    assert "bad&#46;onnx" in text.splitlines()[4]
    shown = sum(line.startswith("| nnn") for line in text.splitlines())
    assert f"... and {9000 - shown} more" in text


def test_annotations_leave_json_on_stdout(zoo: dict[str, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go to stderr, so that `--format json` can be piped."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    code, out, err = cli("check", zoo["lfs"], zoo["closed"], "--format", "json")
    assert (code, json.loads(out)["exit_code"]) == (2, 2)
    assert err.startswith("::error file=")
    assert "git lfs pull" in err
